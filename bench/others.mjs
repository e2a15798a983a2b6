// How much of the machine other programs take while something is measured, from the kernel's own accounts: user time, theirs
// being what is neither this process's nor its children's, and time that a hypervisor has given to others. System time is left
// out, since most of it is done for us: a loop device's work is in nobody's account.

import fs from 'node:fs'

/** From proc(5): the unit of both files below, on every architecture that Node runs on. */
const TICKS_PER_SECOND = 100
/** Fields of /proc/stat's first line: user, nice and steal. */
const [USER, NICE, STEAL] = [1, 2, 8]
/** Fields of /proc/self/stat after the name in brackets: utime and cutime. */
const [OWN_USER, CHILDREN_USER] = [11, 13]

/** Seconds that others have had so far, of all processors together; `null` where the kernel does not say. */
function secondsOfOthers() {
  try {
    const all = fs.readFileSync('/proc/stat', 'utf8').split('\n', 1)[0].split(/\s+/).map(Number)
    const own = fs.readFileSync('/proc/self/stat', 'utf8')
    const fields = own
      .slice(own.lastIndexOf(')') + 2)
      .split(' ')
      .map(Number)
    const others = all[USER] + all[NICE] + all[STEAL] - fields[OWN_USER] - fields[CHILDREN_USER]
    return others / TICKS_PER_SECOND
  } catch {
    return null
  }
}

/** Starts to watch; the function returned tells the processors that others have kept busy since: 0.1 is a tenth of one. */
export function watchOthers() {
  const before = secondsOfOthers()
  const start_ms = performance.now()
  return () => {
    const after = secondsOfOthers()
    if (before === null || after === null) return 0
    return Math.max(0, ((after - before) * 1000) / (performance.now() - start_ms))
  }
}
