// The formats that have a name. Nothing else imports a driver.

import type { FormatDriver } from './driver.ts'
import { qcow2 } from './qcow2/driver.ts'

const drivers: Readonly<Record<'qcow2', FormatDriver>> = { qcow2 }

export function driverNamed(name: keyof typeof drivers): FormatDriver {
  return drivers[name]
}
