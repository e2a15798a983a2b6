// Does the instrument tell the truth? `multiwrite bench` and fio measure the same device under the same load, in turns, and the
// figures are laid side by side: requests per second, p50 and p99 of the total latency, at several depths, unmerged.
//
//   node bench/instrument.mjs [--target=loop|disk] [--rw=randwrite] [--bs=4k] [--depths=8,32,128,1] [--batch=1]
//                             [--rounds=7] [--runtime=1]
//
// Agreement means: the median of ours lies within what fio's own rounds spread over, or within 5 % of fio's median (p99: 10 %).
// It can be expected where the device sets the pace. Where it answers faster than a request can be made and handed over, both
// measure themselves instead: at depth 1 the difference is what JavaScript costs per request, and on a device in memory the
// rate at any depth is that of the CPU that submits. What each spends per request is therefore told as well.

import { execFile } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { fioVersion } from './peers.mjs'
import { atTheLatestAtExit, loopDevice } from './targets.mjs'

const MAIN = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))
const CACHE = fileURLToPath(new URL('../.cache/', import.meta.url))
const SIZE = 512 << 20
/** Medians so far apart still agree. */
const NEAR = { iops: 0.05, p50_ns: 0.05, p99_ns: 0.1 }

const { values } = parseArgs({
  options: {
    target: { type: 'string', default: 'loop' },
    rw: { type: 'string', default: 'randwrite' },
    bs: { type: 'string', default: '4k' },
    depths: { type: 'string', default: '8,32,128,1' },
    rounds: { type: 'string', default: '7' },
    runtime: { type: 'string', default: '1' },
    batch: { type: 'string', default: '1' },
    json: { type: 'string' },
  },
})

/** A file on the disk that the project lies on; direct I/O goes past the page cache. */
function diskFile() {
  fs.mkdirSync(CACHE, { recursive: true })
  const directory = fs.mkdtempSync(path.join(CACHE, 'instrument-'))
  const remove = atTheLatestAtExit(() => fs.rmSync(directory, { recursive: true, force: true }))
  return { name: "file on this machine's disk, direct", path: path.join(directory, 'file'), remove }
}

/**
 * @typedef {{ min: number, median: number, max: number }} Spread
 * @typedef {{ name: string, spread: Record<'iops' | 'p50_ns' | 'p99_ns' | 'user_us' | 'system_us', Spread> }} Contender
 */

/** @param {string} target @param {string} depth @returns {Promise<Contender[]>} ours, then fio */
async function compared(target, depth) {
  const args = [
    ...['bench', `--filename=${target}`, `--size=${SIZE}`, '--direct=1', '--merge=off', '--force', '--json'],
    ...[`--rw=${values.rw}`, `--bs=${values.bs}`, `--iodepth=${depth}`, `--batch=${values.batch}`],
    '--compare=fio',
    ...[`--rounds=${values.rounds}`, `--runtime=${values.runtime}`, '--ramp=0.5'],
  ]
  const { stdout } = await promisify(execFile)(process.execPath, [MAIN, ...args], { maxBuffer: 64 << 20 })
  return JSON.parse(stdout).multiwrite.comparison.contenders
}

/** @param {number} value */
function rate(value) {
  return `${(value / 1e3).toFixed(1)}k`
}

/** @param {number} ns */
function micro(ns) {
  return `${(ns / 1e3).toFixed(1)}`
}

if (fioVersion() === null) {
  console.error('fio is not installed: nothing to compare with')
  process.exit(1)
}
const target = values.target === 'disk' ? diskFile() : loopDevice(SIZE)
console.log(`${values.rw} ${values.bs}, ${target.name}; ${values.rounds} rounds in turns, ${values.runtime} s each`)
const calls = values.batch === '1' ? 'a call per request' : `up to ${values.batch} requests in a call`
console.log(`multiwrite bench (unmerged, ${calls}) beside ${fioVersion()} (io_uring)\n`)

/** @type {Record<string, Contender[]>} */
const all = {}
let agreed = true
for (const depth of values.depths.split(',')) {
  const [ours, fio] = await compared(target.path, depth)
  all[depth] = [ours, fio]
  console.log(`depth ${depth}`)
  for (const [label, key, format] of /** @type {const} */ ([
    ['IOPS', 'iops', rate],
    ['p50 us', 'p50_ns', micro],
    ['p99 us', 'p99_ns', micro],
  ])) {
    const [mine, theirs] = [ours.spread[key], fio.spread[key]]
    const ratio = mine.median / theirs.median
    const within = mine.median >= theirs.min && mine.median <= theirs.max
    const near = Math.abs(ratio - 1) <= NEAR[key]
    if (depth !== '1' && !within && !near) agreed = false
    const verdict = [within ? 'within its spread' : 'outside its spread', near ? 'near' : 'not near'].join(', ')
    const spreadOf = (/** @type {Spread} */ { min, median, max }) =>
      `${format(median).padStart(8)} (${format(min)} to ${format(max)})`.padEnd(32)
    console.log(`  ${label.padEnd(7)} ours ${spreadOf(mine)} fio ${spreadOf(theirs)} ${ratio.toFixed(3)}  ${verdict}`)
  }
  const cpu = (/** @type {Contender} */ { spread: { user_us, system_us } }) =>
    `${user_us.median.toFixed(2)} + ${system_us.median.toFixed(2)}`
  console.log(`  CPU     ours ${cpu(ours)}, fio ${cpu(fio)} us per request, user + system`)
  if (depth === '1') {
    const more = (ours.spread.p50_ns.median - fio.spread.p50_ns.median) / 1e3
    console.log(
      `  The median is ${more.toFixed(1)} us ${more < 0 ? 'less' : 'more'} than fio's: a call from JavaScript, and a turn of`,
    )
    console.log('  the event loop from wake-up to callback, where fio sleeps in the system call that reaps.')
  }
}
console.log(agreed ? '\nThey agree at all depths above 1.' : '\nThey do not agree everywhere; see above.')
if (values.json !== undefined) fs.writeFileSync(values.json, `${JSON.stringify(all, null, 2)}\n`)
target.remove()
