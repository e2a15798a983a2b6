// The formats that have a name. Nothing else imports a driver.

import type { FormatDriver } from './driver.ts'

const drivers: Readonly<Record<'qcow2', FormatDriver>> = {
  qcow2: {
    name: 'qcow2',
    open: () => Promise.reject(new Error('not there yet')),
  },
}

export function driverNamed(name: keyof typeof drivers): FormatDriver {
  return drivers[name]
}
