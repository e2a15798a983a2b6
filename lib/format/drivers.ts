// The formats that have a name. Nothing else imports a driver, and none is loaded before somebody asks for it: most never do.

import type { FormatDriver } from './driver.ts'

const drivers: Readonly<Record<'qcow2', () => Promise<FormatDriver>>> = {
  qcow2: async () => (await import('./qcow2/driver.ts')).qcow2,
}

export function driverNamed(name: keyof typeof drivers): Promise<FormatDriver> {
  return drivers[name]()
}
