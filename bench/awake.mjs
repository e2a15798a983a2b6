// Keeps processors from sleeping while something is measured, as tools for latency do (cyclictest, the profiles of tuned). One
// that sleeps has to be woken for each request that finds it so, which on a virtual machine costs more than the request: what
// is measured then is who happens to run where. It holds for all contenders alike.
//
// The kernel's interface is a file that takes the longest wake-up in microseconds that may be, as a 32-bit number, and keeps to
// it for as long as the file is open (Documentation/power/pm_qos_interface.rst). It needs root, and an idle driver that obeys.

import fs from 'node:fs'

const LATENCY_FILE = '/dev/cpu_dma_latency'
const DRIVER_FILE = '/sys/devices/system/cpu/cpuidle/current_driver'

/** Until this program ends. Returns how the processors are kept, in words. */
export function keepAwake() {
  let descriptor = -1
  try {
    const driver = fs.readFileSync(DRIVER_FILE, 'utf8').trim()
    if (driver === 'none') return 'may sleep (no idle driver that could be told not to)'
    descriptor = fs.openSync(LATENCY_FILE, 'w')
    fs.writeSync(descriptor, new Int32Array([0]))
    return 'kept awake'
  } catch (error) {
    if (descriptor >= 0) fs.closeSync(descriptor)
    return `may sleep (${/** @type {Error} */ (error).message})`
  }
}
