// How the cost of a request changes with the size of a batch, depth, the size of a request, the share that can be merged, the
// number of devices and of workers. Along each axis the points are measured in turns, several rounds, and the median counts.
//
//     node bench/scaling.mjs [--axis NAME] [--rounds N] [--seconds S] [--out docs/performance]
//
// Prints a table per axis and says where the cost rises: more than a quarter above the lowest cost of any point before it.
// With --out it writes the tables as scaling.md there, with a chart each.

import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { Worker } from 'node:worker_threads'
import { open } from '../dist/index.js'
import { keepAwake } from './awake.mjs'
import { cpuPerRequest, inTurns, rateOf, roundsSoFar, spread, timed } from './measure.mjs'
import { multiwrite, writes } from './ours.mjs'
import { plot } from './plot.mjs'
import { loopDevice } from './targets.mjs'
import { adjacent, REQUEST_BYTES, SCATTER_BYTES, scattered } from './workload.mjs'

/** @typedef {import('../dist/index.js').BlockDevice} BlockDevice */
/** @typedef {import('./measure.mjs').Contender} Contender */
/** @typedef {import('./targets.mjs').Target} Target */

const SIZE = 512 << 20
const SMALL_SIZE = 32 << 20
/** So much dearer than the cheapest point before it a point may be. */
const RISE_MAX = 1.25

const { values } = parseArgs({
  options: {
    axis: { type: 'string', multiple: true },
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '0.15' },
    out: { type: 'string' },
  },
})
const how = { rounds: Number(values.rounds), duration_ms: Number(values.seconds) * 1000 }

/**
 * @typedef {object} Line
 * @property {string} name
 * @property {Contender[]} points
 */

/**
 * @typedef {object} Axis
 * @property {string} name
 * @property {string} title
 * @property {string} across
 * @property {string[]} ticks
 * @property {(keep: Keep) => Promise<Line[]>} lines
 * @property {'request' | 'KiB'} [per] what the cost is told for
 * @property {(at: number) => number} [units] of that in a request
 */

/** What an axis opens, closed after it in the opposite order. */
class Keep {
  /** @type {(() => unknown)[]} */
  #closers = []

  /** @param {number} size */
  target(size) {
    const target = loopDevice(size)
    this.#closers.push(target.remove)
    return target
  }

  /** @param {Target} target @param {import('../dist/index.js').OpenOptions} [options] */
  async disk(target, options) {
    const disk = await open(target.path, { exclusive: false, ...options })
    this.#closers.push(() => disk.close())
    return disk
  }

  /** @param {() => unknown} close */
  add(close) {
    this.#closers.push(close)
  }

  async close() {
    for (const close of this.#closers.splice(0).reverse()) await close()
  }
}

const BATCHES = [1, 4, 16, 64, 256, 1024, 4096, 16_384, 100_000]
const DEPTHS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
const SIZES = [512, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304]
const SHARES = [0, 10, 25, 50, 75, 90, 100]
const DEVICES = [1, 2, 4, 8, 16]
const WORKERS = [1, 2, 3, 4]
const MIXED_COUNT = 256
const LANES_OF_DEVICE = 16
/** Where the requests of one batch are written from: more of them share buffers, which a write may. */
const BUFFERS_MAX = 1024

/** @param {number} bytes */
const inBytes = (bytes) => (bytes < 1024 ? `${bytes} B` : bytes < 1 << 20 ? `${bytes >> 10} KiB` : `${bytes >> 20} MiB`)

/** Memory that is used over and over, whatever the size of a batch. @param {BlockDevice} disk */
function sharedMemory(disk) {
  const buffers = Array.from({ length: BUFFERS_MAX }, () => disk.alloc(REQUEST_BYTES))
  let next = 0
  return () => buffers[next++ % BUFFERS_MAX]
}

/**
 * Batches of which a share touches the request before it.
 * @param {BlockDevice} disk
 * @param {number} percent
 * @returns {Contender}
 */
function mixed(disk, percent) {
  const data = Array.from({ length: MIXED_COUNT }, () => disk.alloc(REQUEST_BYTES))
  let place = 0
  const step = () => {
    if (place + MIXED_COUNT * SCATTER_BYTES > SIZE) place = 0
    const requests = data.map((bytes, i) => {
      // Evenly spread: request i touches its predecessor if the whole number of touching ones grows at i.
      const touches = Math.floor(((i + 1) * percent) / 100) > Math.floor((i * percent) / 100)
      place += touches && i > 0 ? REQUEST_BYTES : SCATTER_BYTES
      return { offset: place - REQUEST_BYTES, data: bytes }
    })
    return disk.multiwrite(requests)
  }
  return { name: `${percent}`, run: (duration_ms) => timed(duration_ms, 2, MIXED_COUNT, step) }
}

/** @param {BlockDevice} disk @param {number} length @returns {Contender} */
function sized(disk, length) {
  const lanes = 4
  const buffers = Array.from({ length: lanes }, () => disk.alloc(length))
  const places = Math.floor(SIZE / length)
  let next = 0
  /** @param {number} lane */
  const step = (lane) => {
    // Every third, so that what is in flight together never touches.
    next = (next + 3) % places
    return disk.write(next * length, buffers[lane])
  }
  return { name: inBytes(length), run: (duration_ms) => timed(duration_ms, lanes, 1, step) }
}

/** The sum of what several do at the same time. @param {import('./measure.mjs').Sample[]} samples */
function together(samples) {
  const [first] = samples
  return { ...first, requests: samples.reduce((sum, { requests }) => sum + requests, 0) }
}

/** @type {Axis[]} */
const axes = [
  {
    name: 'batch',
    title: 'Batch size: one batch in flight',
    across: 'requests of 4 KiB in a batch',
    ticks: BATCHES.map(String),
    lines: async (keep) => {
      const disk = await keep.disk(keep.target(SIZE))
      const alloc = sharedMemory(disk)
      /** @param {typeof adjacent} make */
      const points = (make) =>
        BATCHES.map((count) => multiwrite(String(count), disk, make({ lanes: 1, count, size: SIZE, alloc })))
      return [
        { name: 'adjacent', points: points(adjacent) },
        { name: 'random', points: points(scattered) },
      ]
    },
  },
  {
    name: 'depth',
    title: 'Depth: single random writes in so many lanes',
    across: 'lanes',
    ticks: DEPTHS.map(String),
    lines: async (keep) => {
      const disk = await keep.disk(keep.target(SIZE))
      const alloc = disk.alloc.bind(disk)
      const points = DEPTHS.map((lanes) =>
        writes(String(lanes), disk, scattered({ lanes, count: 1, size: SIZE, alloc })),
      )
      return [{ name: 'random', points }]
    },
  },
  {
    name: 'size',
    title: 'Request size: single writes in four lanes',
    across: 'bytes of a request',
    ticks: SIZES.map(inBytes),
    per: 'KiB',
    units: (at) => SIZES[at] / 1024,
    lines: async (keep) => {
      const disk = await keep.disk(keep.target(SIZE))
      return [{ name: 'write', points: SIZES.map((length) => sized(disk, length)) }]
    },
  },
  {
    name: 'mergeable',
    title: `Share of mergeable requests: batches of ${MIXED_COUNT}, two in flight`,
    across: 'percent of the requests that touch their predecessor',
    ticks: SHARES.map((percent) => `${percent} %`),
    lines: async (keep) => {
      const target = keep.target(SIZE)
      const full = await keep.disk(target)
      const sort = await keep.disk(target, { merge: { mode: 'sort' } })
      return [
        { name: 'merge full', points: SHARES.map((percent) => mixed(full, percent)) },
        { name: 'merge sort', points: SHARES.map((percent) => mixed(sort, percent)) },
      ]
    },
  },
  {
    name: 'devices',
    title: `Devices: ${LANES_OF_DEVICE} lanes of random writes each, one thread`,
    across: 'devices',
    ticks: DEVICES.map(String),
    lines: async (keep) => {
      /** @type {Contender[]} */
      const each = []
      for (let i = 0; i < Math.max(...DEVICES); i++) {
        const disk = await keep.disk(keep.target(SMALL_SIZE))
        const alloc = disk.alloc.bind(disk)
        each.push(writes('', disk, scattered({ lanes: LANES_OF_DEVICE, count: 1, size: SMALL_SIZE, alloc })))
      }
      const points = DEVICES.map((count) => ({
        name: String(count),
        run: async (/** @type {number} */ duration_ms) =>
          together(await Promise.all(each.slice(0, count).map((contender) => contender.run(duration_ms)))),
      }))
      return [{ name: 'random', points }]
    },
  },
  {
    name: 'workers',
    title: `Workers: ${LANES_OF_DEVICE} lanes of random writes each, each on a device of its own`,
    across: 'workers',
    ticks: WORKERS.map(String),
    lines: async (keep) => {
      /** @type {Worker[]} */
      const workers = []
      for (let i = 0; i < Math.max(...WORKERS); i++) {
        const { path: target } = keep.target(SMALL_SIZE)
        const workerData = { path: target, size: SMALL_SIZE, lanes: LANES_OF_DEVICE }
        const worker = new Worker(new URL('./scaling-worker.mjs', import.meta.url), { workerData })
        await answer(worker)
        workers.push(worker)
        keep.add(() => {
          worker.postMessage(0)
          return new Promise((resolve) => worker.once('exit', resolve))
        })
      }
      const points = WORKERS.map((count) => ({
        name: String(count),
        run: async (/** @type {number} */ duration_ms) => {
          const cpu = process.cpuUsage()
          const samples = await Promise.all(
            workers.slice(0, count).map((worker) => {
              worker.postMessage(duration_ms)
              return answer(worker)
            }),
          )
          // Each tells the CPU time of the whole process.
          const { user, system } = process.cpuUsage(cpu)
          return { ...together(samples), user_us: user, system_us: system }
        },
      }))
      return [{ name: 'random', points }]
    },
  },
]

/** @param {Worker} worker @returns {Promise<any>} */
function answer(worker) {
  return new Promise((resolve, reject) => {
    worker.once('error', reject)
    worker.once('message', (message) => {
      worker.off('error', reject)
      resolve(message)
    })
  })
}

/** Where a cost rises. @param {number[]} costs @param {string[]} ticks */
function rises(costs, ticks) {
  let lowest = costs[0]
  /** @type {string[]} */
  const found = []
  for (const [i, cost] of costs.entries()) {
    if (cost > lowest * RISE_MAX) found.push(`${ticks[i]} (${(cost / lowest).toFixed(1)}x)`)
    lowest = Math.min(lowest, cost)
  }
  return found
}

/** @param {Axis} axis */
async function measureAxis({ name, title, across, ticks, lines, per = 'request', units = () => 1 }) {
  const keep = new Keep()
  try {
    const measured = await lines(keep)
    const samples = await inTurns(
      measured.flatMap(({ points }) => points),
      how,
    )
    const results = measured.map((line, n) => {
      const mine = samples.slice(n * ticks.length, (n + 1) * ticks.length)
      return {
        name: line.name,
        rate: mine.map((ofOne) => spread(ofOne.map(rateOf)).median),
        cpu: mine.map((ofOne, at) => spread(ofOne.map(cpuPerRequest)).median / units(at)),
        elapsed: mine.map((ofOne, at) => spread(ofOne.map((sample) => 1e6 / rateOf(sample))).median / units(at)),
      }
    })
    return { name, title, across, ticks, per, results }
  } finally {
    await keep.close()
  }
}

/** @param {Awaited<ReturnType<typeof measureAxis>>} measured */
function toMarkdown({ name, title, across, ticks, per, results }) {
  const columns = results.flatMap((line) => [`${line.name}: requests/s`, `CPU us/${per}`, `us/${per}`])
  const rows = ticks.map((tick, i) => [
    tick,
    ...results.flatMap(({ rate, cpu, elapsed }) => [
      Math.round(rate[i]).toLocaleString('en-US'),
      cpu[i].toFixed(2),
      elapsed[i].toFixed(2),
    ]),
  ])
  const remarks = results.flatMap((line) =>
    [
      { what: 'CPU time', found: rises(line.cpu, ticks) },
      { what: 'time', found: rises(line.elapsed, ticks) },
    ].map(({ what, found }) =>
      found.length === 0
        ? `${line.name}: ${what} per ${per} is flat or falling.`
        : `${line.name}: ${what} per ${per} rises at ${found.join(', ')}.`,
    ),
  )
  return [
    `## ${title}`,
    '',
    `![${title}](scaling-${name}.svg)`,
    '',
    `| ${across} | ${columns.join(' | ')} |`,
    `|---|${columns.map(() => '---:|').join('')}`,
    ...rows.map((row) => `| ${row.join(' | ')} |`),
    '',
    ...remarks.map((remark) => `- ${remark}`),
    '',
  ].join('\n')
}

const processors = keepAwake()
const chosen = axes.filter(({ name }) => values.axis === undefined || values.axis.includes(name))
if (chosen.length === 0) throw new RangeError(`--axis takes ${axes.map(({ name }) => name).join(', ')}`)
/** @type {string[]} */
const pages = []
if (values.out !== undefined) fs.mkdirSync(values.out, { recursive: true })
for (const axis of chosen) {
  const measured = await measureAxis(axis)
  const page = toMarkdown(measured)
  console.log(page)
  pages.push(page)
  if (values.out === undefined) continue
  const { title, across, ticks, per, results } = measured
  const series = results.map((line) => ({ name: line.name, values: line.cpu }))
  const chart = plot({ title, across, up: `CPU us per ${per}`, ticks, series })
  fs.writeFileSync(path.join(values.out, `scaling-${axis.name}.svg`), chart)
}
const { measured, dropped } = roundsSoFar
const described = `Medians of ${how.rounds} rounds of ${how.duration_ms} ms, the points of an axis in turns, on a loop device over tmpfs, direct I/O, \
io_uring, the processors ${processors}; ${os.type()} ${os.release()}, ${os.cpus().length} x ${os.cpus()[0]?.model.trim()}, Node ${process.version}. ${dropped} of \
${measured} rounds do not count, since other programs took part in them. CPU time is the process's own; the loop device's workers are not in it.`
console.log(described)
if (values.out !== undefined && chosen.length === axes.length) {
  const note =
    'Made by `node bench/scaling.mjs --out docs/performance`. A point "rises" if it costs a quarter more than the cheapest before it.'
  fs.writeFileSync(
    path.join(values.out, 'scaling.md'),
    [`# How the cost of a request scales`, '', described, note, '', ...pages].join('\n'),
  )
}
