// What merging is worth in an image that grows: 4 KiB writes into a new qcow2 image, beside `qemu-img bench` with the same
// requests, depth and cache mode, and beside ourselves with merging off. And what it costs on the host: bytes written per byte of
// the guest, clusters allocated, writes of tables and flushes per 1000 requests.
//
//   node bench/qcow2.mjs [--rounds N] [--requests N] [--disk DIR]
//
// One image after the other, in turns; a ratio is taken per round and the median told. Without qemu-img its part is left out;
// without strace its bytes are not told.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { readTrace } from '../dist/cli/trace.js'
import { qcow2 } from '../dist/format/qcow2/driver.js'
import { create, open } from '../dist/index.js'
import { spread } from './measure.mjs'
import { atTheLatestAtExit } from './targets.mjs'

const REQUEST_BYTES = 4096
const DEPTH = 64
const MIB = 1 << 20

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    requests: { type: 'string', default: '32768' },
    disk: { type: 'string', default: fileURLToPath(new URL('../.cache/', import.meta.url)) },
  },
})
const rounds = Number(values.rounds)
const requests = Number(values.requests)
if (!Number.isSafeInteger(rounds) || rounds < 1) throw new RangeError('--rounds takes a whole number >= 1')
if (!Number.isSafeInteger(requests) || requests < 64) throw new RangeError('--requests takes a whole number >= 64')

const hasQemu = spawnSync('qemu-img', ['--version']).status === 0
const hasStrace = spawnSync('strace', ['-V']).status === 0

/**
 * Writes of one page each: the `n`-th at `n * step`, modulo the size.
 * @typedef {object} Pattern
 * @property {string} name
 * @property {number} size of the guest, in bytes
 * @property {number} step bytes
 * @property {number} count
 * @property {number} flushEvery requests; 0: never
 */

const sequentialBytes = requests * REQUEST_BYTES
/** @type {Pattern[]} */
const patterns = [
  { name: 'sequential', size: sequentialBytes, step: REQUEST_BYTES, count: requests, flushEvery: 0 },
  {
    name: 'sequential, a flush every 1024',
    size: sequentialBytes,
    step: REQUEST_BYTES,
    count: requests,
    flushEvery: 1024,
  },
  // Four places that advance in turns.
  { name: 'four streams', size: 64 * MIB, step: 16 * MIB + REQUEST_BYTES, count: 16384, flushEvery: 0 },
  // Every page once, far from the one before. QEMU's benchmark knows no random order.
  { name: 'scattered over 64 MiB', size: 64 * MIB, step: 4999 * REQUEST_BYTES, count: 16384, flushEvery: 0 },
]

/** @param {Pattern} pattern @param {number} n */
const placeOf = (pattern, n) => (n * pattern.step) % pattern.size

/**
 * Counts what the driver writes to its host.
 * @param {{ writes: number, bytes: number }} count
 * @returns {import('../dist/index.js').FormatDriver}
 */
function counting(count) {
  /** @param {import('../dist/index.js').FormatHost} host */
  const wrap = (host) => {
    const write = /** @type {typeof host.write} */ (
      (offset, data, options) => {
        count.writes++
        if (data instanceof Uint8Array) count.bytes += data.length
        else for (const piece of data) count.bytes += piece.length
        return host.write(offset, data, options)
      }
    )
    return new Proxy(host, {
      get(target, name) {
        if (name === 'write') return write
        const value = Reflect.get(target, name, target)
        return typeof value === 'function' ? value.bind(target) : value
      },
    })
  }
  return { ...qcow2, open: (host, options) => qcow2.open(wrap(host), options) }
}

/**
 * @typedef {object} Sample
 * @property {number} perSecond
 * @property {number} hostBytes per byte of the guest
 * @property {number} runs per 1000 requests
 * @property {number} tables writes of them, per 1000 requests
 * @property {number} flushes per 1000 requests
 * @property {number} clusters allocated per 1000 requests
 */

/**
 * @param {string} image
 * @param {object} how
 * @param {number} how.size
 * @param {boolean} how.direct
 * @param {'full' | 'off'} how.mode
 * @param {(disk: import('../dist/index.js').BlockDevice) => Promise<{ requests: number, bytes: number }>} work
 * @returns {Promise<Sample>}
 */
async function measure(image, { size, direct, mode }, work) {
  const count = { writes: 0, bytes: 0 }
  const made = await create(image, { format: 'qcow2', size, overwrite: true })
  await made.close()
  const disk = await open(image, { format: counting(count), direct, merge: { mode } })
  const start = process.hrtime.bigint()
  const done = await work(disk)
  const seconds = Number(process.hrtime.bigint() - start) / 1e9
  const { write, metadata, flushes } = disk.stats
  const per1000 = 1000 / done.requests
  await disk.close()
  const { allocatedClusters } = await checked(image)
  fs.rmSync(image)
  return {
    perSecond: done.requests / seconds,
    hostBytes: count.bytes / done.bytes,
    runs: write.submissions * per1000,
    tables: metadata.submissions * per1000,
    flushes: flushes * per1000,
    clusters: allocatedClusters * per1000,
  }
}

/** @param {string} image */
async function checked(image) {
  const disk = await open(image, { format: 'qcow2', readOnly: true })
  const result = await disk.check()
  await disk.close()
  if (result.corruptions + result.leaks > 0) throw new Error(`${image} is not in order after the benchmark`)
  return result
}

/** As `qemu-img bench` does it: so many under way, each followed by the next. @param {Pattern} pattern */
function writer(pattern) {
  /** @param {import('../dist/index.js').BlockDevice} disk */
  return async (disk) => {
    const data = disk.alloc(REQUEST_BYTES).fill(0x55)
    let next = 0
    const lane = async () => {
      while (next < pattern.count) {
        const n = next++
        await disk.write(placeOf(pattern, n), data)
        if (pattern.flushEvery > 0 && n % pattern.flushEvery === pattern.flushEvery - 1) await disk.flush()
      }
    }
    await Promise.all(Array.from({ length: DEPTH }, lane))
    return { requests: pattern.count, bytes: pattern.count * REQUEST_BYTES }
  }
}

/** @param {string} image @param {Pattern} pattern @param {boolean} direct @param {string[]} before */
function qemu(image, pattern, direct, before = []) {
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(pattern.size)])
  const args = ['bench', '-w', '-f', 'qcow2', '-c', String(pattern.count), '-d', String(DEPTH)]
  args.push('-s', String(REQUEST_BYTES), '-S', String(pattern.step), '-t', direct ? 'none' : 'writeback')
  if (direct) args.push('-n')
  if (pattern.flushEvery > 0) args.push(`--flush-interval=${pattern.flushEvery}`, '--no-drain')
  const [command, ...rest] = [...before, 'qemu-img', ...args, image]
  const run = spawnSync(/** @type {string} */ (command), rest, { encoding: 'utf8' })
  const seconds = Number(/in ([\d.]+) seconds/.exec(run.stdout)?.[1])
  if (!(seconds > 0)) throw new Error(`qemu-img bench: ${run.stdout}${run.stderr}`)
  fs.rmSync(image)
  return pattern.count / seconds
}

/** What QEMU writes to the host for the same, by its system calls. @param {string} image @param {Pattern} pattern */
function qemuBytes(image, pattern) {
  if (!hasStrace) return null
  const log = `${image}.strace`
  // Buffered, on threads: asynchronous I/O would not show.
  qemu(image, pattern, false, ['strace', '-f', '-q', '-e', 'trace=pwrite64,pwritev', '-o', log])
  let bytes = 0
  for (const line of fs.readFileSync(log, 'utf8').split('\n')) {
    const result = /(?:pwritev?(?:64)?\(.*|resumed>.*) = (\d+)$/.exec(line)
    if (result !== null) bytes += Number(result[1])
  }
  fs.rmSync(log)
  return bytes / (pattern.count * REQUEST_BYTES)
}

/** @param {number} value */
const decimal = (value) => (value < 10 ? value.toFixed(2) : value.toFixed(value < 100 ? 1 : 0))
/** @param {number[]} list */
const median = (list) => spread(list).median

/** @param {string} name @param {Sample[]} samples */
function tell(name, samples) {
  /** @param {keyof Sample} key */
  const of = (key) => median(samples.map((sample) => sample[key]))
  const figures = [
    `${Math.round(of('perSecond')).toLocaleString('en-US')} requests/s`,
    `host/guest bytes ${of('hostBytes').toFixed(3)}`,
    `per 1000: ${decimal(of('runs'))} runs, ${decimal(of('clusters'))} clusters, ${decimal(of('tables'))} table I/Os, ${decimal(of('flushes'))} flushes`,
  ]
  console.log(`  ${name.padEnd(14)} ${figures.join('; ')}`)
}

/** A guest's own batches, one after the other; a flush where it flushed. @param {string} name */
async function recorded(name) {
  const trace = await readTrace(fileURLToPath(new URL(`traces/${name}.csv.gz`, import.meta.url)))
  /** @param {import('../dist/index.js').BlockDevice} disk */
  const work = async (disk) => {
    const data = disk.alloc(4 * MIB).fill(0x55)
    let done = 0
    let bytes = 0
    /** @type {Promise<unknown>[]} */
    let under = []
    for (const batch of trace.batches) {
      const writes = batch.filter(({ op }) => op === 'W')
      if (writes.length > 0) {
        under.push(disk.multiwrite(writes.map(({ offset, length }) => ({ offset, data: data.subarray(0, length) }))))
      }
      done += writes.length
      for (const { length } of writes) bytes += length
      if (batch.some(({ op }) => op === 'F')) under.push(disk.flush())
      if (under.length >= 16) {
        await Promise.all(under)
        under = []
      }
    }
    await Promise.all(under)
    return { requests: done, bytes }
  }
  return { size: Math.ceil(trace.diskEnd / MIB) * MIB, work }
}

/** @param {string} title @param {string} folder @param {boolean} direct */
async function compare(title, folder, direct) {
  const image = path.join(folder, 'image.qcow2')
  for (const pattern of patterns) {
    console.log(`\n${pattern.name}, ${pattern.count.toLocaleString('en-US')} requests, depth ${DEPTH}, ${title}`)
    const how = { size: pattern.size, direct }
    /** @type {{ full: Sample[], off: Sample[], qemu: number[] }} */
    const found = { full: [], off: [], qemu: [] }
    const contenders = [
      async () => found.qemu.push(hasQemu ? qemu(image, pattern, direct) : 0),
      async () => found.full.push(await measure(image, { ...how, mode: 'full' }, writer(pattern))),
      async () => found.off.push(await measure(image, { ...how, mode: 'off' }, writer(pattern))),
    ]
    // The first round warms up. Each takes its turn behind each other one: what was written is written back meanwhile.
    for (let round = 0; round <= rounds; round++) {
      for (let n = 0; n < contenders.length; n++) await contenders[(round + n) % contenders.length]?.()
    }
    for (const list of [found.full, found.off, found.qemu]) list.shift()
    tell('merged', found.full)
    tell('not merged', found.off)
    const beside = found.full.map(({ perSecond }, n) => perSecond / /** @type {Sample} */ (found.off[n]).perSecond)
    console.log(`  merged / not merged: ${decimal(median(beside))}`)
    if (!hasQemu) continue
    const bytes = qemuBytes(image, pattern)
    const words = bytes === null ? '' : `; host/guest bytes ${bytes.toFixed(3)}`
    console.log(
      `  ${'qemu-img bench'.padEnd(14)} ${Math.round(median(found.qemu)).toLocaleString('en-US')} requests/s${words}`,
    )
    const ratios = found.full.map(({ perSecond }, n) => perSecond / /** @type {number} */ (found.qemu[n]))
    const { min, max } = spread(ratios)
    console.log(`  merged / qemu-img bench: ${decimal(median(ratios))} (${decimal(min)} to ${decimal(max)})`)
  }
}

/** @param {string} folder */
async function replay(folder) {
  const image = path.join(folder, 'image.qcow2')
  for (const name of ['ext4-cp', 'fio-4k-4streams']) {
    const { size, work } = await recorded(name)
    console.log(`\nrecorded guest: ${name}, buffered, in memory`)
    /** @type {Record<'full' | 'off', Sample[]>} */
    const found = { full: [], off: [] }
    for (let round = 0; round <= rounds; round++) {
      const modes = /** @type {const} */ (round % 2 === 0 ? ['full', 'off'] : ['off', 'full'])
      for (const mode of modes) {
        const sample = await measure(image, { size, direct: false, mode }, work)
        if (round > 0) found[mode].push(sample)
      }
    }
    tell('merged', found.full)
    tell('not merged', found.off)
  }
}

/** @param {string} parent */
function folderIn(parent) {
  fs.mkdirSync(parent, { recursive: true })
  const folder = fs.mkdtempSync(path.join(parent, 'multiwrite-bench-'))
  atTheLatestAtExit(() => fs.rmSync(folder, { recursive: true, force: true }))
  return folder
}

console.log(
  `node ${process.version}; ${hasQemu ? execFileSync('qemu-img', ['--version'], { encoding: 'utf8' }).split('\n')[0] : 'no qemu-img'}; medians of ${rounds} rounds`,
)
const memory = fs.existsSync('/dev/shm') ? folderIn('/dev/shm') : folderIn(values.disk)
await compare('buffered, in memory', memory, false)
await replay(memory)
const disk = folderIn(values.disk)
await compare(`buffered, on ${path.resolve(values.disk)}`.replace(process.cwd(), '.'), disk, false)
await compare(`direct, on ${path.resolve(values.disk)}`.replace(process.cwd(), '.'), disk, true)
