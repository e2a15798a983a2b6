// How many system calls a request takes, counted by perf at the kernel's own trace events in a run of its own: that costs time,
// but far less than strace would, under which fewer requests end at once and each is more calls.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { atTheLatestAtExit, Unavailable } from './targets.mjs'

/** @typedef {import('./measure.mjs').Contender} Contender */

/** Those that are told by name; the rest is in the sum. */
const NAMED = [
  ...['io_uring_enter', 'io_submit', 'io_getevents', 'epoll_pwait', 'epoll_wait'],
  ...['pwrite64', 'pwritev', 'read', 'write', 'futex'],
]
const COUNTED_MS = 250
const PROGRAM_MS = 1000
const WARM_UP_MS = 400

/** @typedef {{ requests: number, all: number, named: Record<string, number> }} Calls */

/** @param {Map<string, number>} found @param {number} requests @returns {Calls} */
function toCalls(found, requests) {
  const all = found.get('sys_enter') ?? 0
  const named = Object.fromEntries([...found].filter(([name, count]) => NAMED.includes(name) && count > requests / 1e3))
  return { requests, all, named }
}

/** Starts perf, which adds up the events of `whom` until it is told to stop. @param {string[]} whom */
function startPerf(whom) {
  const events = ['raw_syscalls:sys_enter', ...NAMED.map((name) => `syscalls:sys_enter_${name}`)]
  const args = ['stat', '-x', ',', '-D', '-1', '--control', 'fd:3,4', '-e', events.join(','), ...whom]
  const perf = spawn('perf', args, { stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'] })
  const stop = atTheLatestAtExit(() => perf.exitCode === null && perf.kill('SIGKILL'))
  let output = ''
  const text = /** @type {import('node:stream').Readable} */ (perf.stderr)
  text.setEncoding('utf8').on('data', (piece) => (output += piece))
  const ended = once(perf, 'close').finally(stop)
  // Whoever waits for a word of it would wait for ever if it does not start.
  ended.catch(() => {})
  /** @param {'enable' | 'disable'} command */
  const tell = async (command) => {
    /** @type {import('node:stream').Writable} */
    perf.stdio[3].write(`${command}\n`)
    await Promise.race([
      once(/** @type {import('node:events').EventEmitter} */ (perf.stdio[4]), 'data'),
      ended.then(() => {
        throw new Unavailable(`perf can't count system calls: ${output.trim()}`)
      }),
    ])
  }
  const counts = async () => {
    perf.kill('SIGINT')
    await ended
    /** @type {Map<string, number>} */
    const found = new Map()
    for (const line of output.split('\n')) {
      const [value, , event] = line.split(',')
      if (event !== undefined) found.set(event.replace(/^.*:(sys_enter_)?/, ''), Number(value))
    }
    return found
  }
  return { tell, counts }
}

/** Throws `Unavailable` where perf is missing or may not count. */
export function requirePerf() {
  try {
    execFileSync('perf', ['stat', '-x', ',', '-e', 'raw_syscalls:sys_enter', 'true'], { stdio: 'pipe' })
  } catch (error) {
    throw new Unavailable(`perf can't count system calls: ${error instanceof Error ? error.message : error}`)
  }
}

/**
 * The system calls of this process, all its threads, while a contender runs.
 * @param {Contender} contender
 * @returns {Promise<Calls>}
 */
export async function systemCallsOf(contender) {
  await contender.run(WARM_UP_MS)
  const perf = startPerf(['-p', String(process.pid)])
  await perf.tell('enable')
  const { requests } = await contender.run(COUNTED_MS)
  await perf.tell('disable')
  return toCalls(await perf.counts(), requests)
}

/**
 * The system calls of the program that a contender starts: perf follows the children that this process has from now on. Those
 * of its start are among them, and those of this process, which waits: few beside so many requests.
 * @param {Contender} contender
 * @returns {Promise<Calls>}
 */
export async function systemCallsOfProgram(contender) {
  const perf = startPerf(['-p', String(process.pid)])
  await perf.tell('enable')
  const { requests } = await contender.run(PROGRAM_MS)
  await perf.tell('disable')
  return toCalls(await perf.counts(), requests)
}
