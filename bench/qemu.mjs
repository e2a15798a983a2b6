// `qemu-img bench` as a peer: QEMU's block layer on the same target, writing blocks that follow each other, or lie `step` bytes
// apart; it has no random mode. It is given a number of requests, not a time, so each round is sized by the one before.
//
// It tells the time that the requests took. Its CPU time is what the kernel has charged to ended children of this process, in
// hundredths of a second, less that of a run of a single request: the program's start.

import { execFile, execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { promisify } from 'node:util'

/** @typedef {import('./measure.mjs').Contender} Contender */

const US_PER_TICK = 1e4
/** Fields of /proc/self/stat after the name in brackets: cutime and cstime. */
const [CHILDREN_USER, CHILDREN_SYSTEM] = [13, 14]
const FIRST_ROUND_REQUESTS = 2000

/** Its version, or `null` where it isn't installed. */
export function qemuVersion() {
  try {
    const output = execFileSync('qemu-img', ['--version'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
    return output.split('\n', 1)[0]
  } catch {
    return null
  }
}

/** CPU time of all children that have ended so far, in microseconds, by hundredths of a second. */
export function timeOfChildren() {
  const stat = fs.readFileSync('/proc/self/stat', 'utf8')
  const fields = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number)
  return { user_us: fields[CHILDREN_USER] * US_PER_TICK, system_us: fields[CHILDREN_SYSTEM] * US_PER_TICK }
}

/**
 * @typedef {object} QemuJob
 * @property {string} path
 * @property {boolean} direct
 * @property {number} blockSize bytes
 * @property {number} step bytes from one request to the next
 * @property {number} depth
 */

/**
 * @param {string} name
 * @param {QemuJob} job
 * @param {number} requestsPerBlock how many of our requests one of its blocks is worth
 * @returns {Contender}
 */
export function qemuBench(name, { path, direct, blockSize, step, depth }, requestsPerBlock) {
  /** @param {number} count */
  const run = async (count) => {
    const before = timeOfChildren()
    const { stdout } = await promisify(execFile)('qemu-img', [
      ...['bench', '-w', '-f', 'raw', '-t', direct ? 'none' : 'writeback', ...(direct ? ['-i', 'io_uring'] : [])],
      ...['-c', String(count), '-d', String(depth), '-s', String(blockSize), '-S', String(step), path],
    ])
    const after = timeOfChildren()
    const seconds = /completed in ([\d.]+) seconds/.exec(stdout)?.[1]
    if (seconds === undefined) throw new Error(`qemu-img bench said: ${stdout}`)
    return {
      elapsed_ns: Number(seconds) * 1e9,
      user_us: after.user_us - before.user_us,
      system_us: after.system_us - before.system_us,
    }
  }
  /** @type {{ user_us: number, system_us: number } | null} */
  let start = null
  let perSecond = 0
  return {
    name,
    run: async (duration_ms) => {
      start ??= await run(1)
      if (perSecond === 0) perSecond = FIRST_ROUND_REQUESTS / ((await run(FIRST_ROUND_REQUESTS)).elapsed_ns / 1e9)
      const count = Math.max(1, Math.round((perSecond * duration_ms) / 1e3))
      const { elapsed_ns, user_us, system_us } = await run(count)
      perSecond = count / (elapsed_ns / 1e9)
      return {
        requests: count * requestsPerBlock,
        elapsed_ns,
        user_us: Math.max(0, user_us - start.user_us),
        system_us: Math.max(0, system_us - start.system_us),
      }
    },
  }
}
