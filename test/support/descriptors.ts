// What this process has open. Also for programs that run outside of the test runner.

import fs from 'node:fs'

/** How many descriptors of this process lead to a file. */
export function descriptorsOf(path: string): number {
  return fs.readdirSync('/proc/self/fd').filter((name) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${name}`) === path
    } catch {
      // That was the one that the question itself needs.
      return false
    }
  }).length
}
