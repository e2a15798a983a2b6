// Does the instrument tell the truth? `multiwrite bench` beside fio on a device of choice (see agreement.mjs): requests per
// second, p50 and p99 of the total latency, at several depths, unmerged, and what each of both spends per request.
//
//   node bench/instrument.mjs [--target=varying|delayed|loop|disk] [--rw=randwrite] [--bs=4k] [--depths=8,32,128,1] [--batch=1]
//                             [--rounds=7] [--runtime=1] [--may-sleep]

import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { agreementOf, besideFio, devices, fastDevice } from './agreement.mjs'
import { keepAwake } from './awake.mjs'
import { fioVersion } from './peers.mjs'
import { atTheLatestAtExit } from './targets.mjs'

/** @typedef {import('./agreement.mjs').Contender} Contender */
/** @typedef {import('./measure.mjs').Spread} Spread */

const CACHE = fileURLToPath(new URL('../.cache/', import.meta.url))
const SIZE = 512 << 20

const { values } = parseArgs({
  options: {
    target: { type: 'string', default: 'varying' },
    rw: { type: 'string', default: 'randwrite' },
    bs: { type: 'string', default: '4k' },
    depths: { type: 'string', default: '8,32,128,1' },
    rounds: { type: 'string', default: '7' },
    runtime: { type: 'string', default: '1' },
    batch: { type: 'string', default: '1' },
    json: { type: 'string' },
    'may-sleep': { type: 'boolean', default: false },
  },
})

/** A file on the disk that the project lies on; direct I/O goes past the page cache. */
function diskFile() {
  fs.mkdirSync(CACHE, { recursive: true })
  const directory = fs.mkdtempSync(path.join(CACHE, 'instrument-'))
  const remove = atTheLatestAtExit(() => fs.rmSync(directory, { recursive: true, force: true }))
  const file = path.join(directory, 'file')
  return { name: "file on this machine's disk, direct", path: file, size: SIZE, direct: true, remove }
}

/** @param {number} value */
function rate(value) {
  return value < 1e4 ? value.toFixed(0) : `${(value / 1e3).toFixed(1)}k`
}

/** @param {number} ns */
function micro(ns) {
  return `${(ns / 1e3).toFixed(1)}`
}

if (fioVersion() === null) {
  console.error('fio is not installed: nothing to compare with')
  process.exit(1)
}
const { varying, delayed } = devices
const makers = { varying: varying.make, delayed: delayed.make, loop: fastDevice, disk: diskFile }
const target = makers[values.target]?.()
if (target === undefined) throw new RangeError(`--target=${values.target} is not known`)
console.log(`${values.rw} ${values.bs}, ${target.name}; ${values.rounds} rounds in turns, ${values.runtime} s each`)
const calls = values.batch === '1' ? 'a call per request' : `up to ${values.batch} requests in a call`
console.log(
  `multiwrite bench (unmerged, ${calls}) beside ${fioVersion()} (io_uring); processors ${values['may-sleep'] ? 'may sleep' : keepAwake()}\n`,
)

/** @type {Record<string, Contender[]>} */
const all = {}
let agreed = true
for (const depth of values.depths.split(',')) {
  const { rw, bs, batch, rounds, runtime } = values
  const how = { rw, bs, batch: Number(batch), rounds: Number(rounds), runtime_s: Number(runtime), ramp_s: 0.5 }
  const [ours, fio] = await besideFio(target, { ...how, depth: Number(depth) })
  all[depth] = [ours, fio]
  console.log(`depth ${depth}`)
  for (const [label, key, format] of /** @type {const} */ ([
    ['IOPS', 'iops', rate],
    ['p50 us', 'p50_ns', micro],
    ['p99 us', 'p99_ns', micro],
  ])) {
    const { mine, theirs, ratio, within, near, agrees } = agreementOf([ours, fio], key)
    if (depth !== '1' && !agrees) agreed = false
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
