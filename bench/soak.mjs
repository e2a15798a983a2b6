// A soak: all engines under a random load for as long as you like, while devices are opened and closed and workers come and go.
// Every 5 seconds it says what the process holds; in the end whether that has grown, and what an open device costs that has
// nothing to do.
//
//     node bench/soak.mjs [seconds]        120 by default; ends with 1 if something grew, was wrong or was left behind
//
// The same file is what the workers run.

import { mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { isMainThread, Worker, workerData } from 'node:worker_threads'
import { open } from 'multiwrite'

const PAGE = 4096
/** Pages that a lane writes and reads, and nobody else. */
const LANE_PAGES = 64
const LANES = 4
const FILE_BYTES = LANES * LANE_PAGES * PAGE
const SAMPLE_MS = 5000
/** Steps of a lane between two openings of its device. */
const STEPS_PER_OPENING = 2000
/** The part of the run that fills caches and pools, and is not judged. */
const WARM_UP = 0.3
/** What counts as growth: so much, and more than the noise between samples. */
const GROWTH_MIB = 24
const IDLE_MS = 3000

/** @typedef {{ engine: 'io_uring' | 'aio' | 'threads', direct: boolean }} Way */

/** @type {Way[]} */
const WAYS = [
  { engine: 'io_uring', direct: false },
  { engine: 'io_uring', direct: true },
  { engine: 'aio', direct: true },
  { engine: 'threads', direct: false },
  { engine: 'threads', direct: true },
]

let requests = 0

/** @param {number} below */
const random = (below) => Math.floor(Math.random() * below)

/**
 * One after the other, the things that users do, on pages of its own. Each page holds one value throughout, and the lane knows
 * which.
 */
class Lane {
  #first
  #values = new Uint8Array(LANE_PAGES)

  /** @param {number} number */
  constructor(number) {
    this.#first = number * LANE_PAGES
  }

  /** @param {import('multiwrite').BlockDevice} disk */
  async step(disk) {
    const kind = random(12)
    if (kind < 4) await this.#batch(disk)
    else if (kind < 7) await this.#singles(disk)
    else if (kind < 10) await this.#check(disk)
    else if (kind === 10) await this.#aborted(disk)
    else if (random(20) === 0) await disk.flush()
    else await this.#lost(disk)
  }

  /** @param {number} page */
  #offset(page) {
    return (this.#first + page) * PAGE
  }

  /** Memory of a page, of any kind. @param {import('multiwrite').BlockDevice} disk @param {number} value */
  #memory(disk, value) {
    const kind = random(3)
    if (kind === 0) return disk.alloc(PAGE).fill(value)
    if (kind === 1) return Buffer.alloc(PAGE, value)
    return [Buffer.alloc(100, value), Buffer.alloc(PAGE - 100, value)]
  }

  /** @param {import('multiwrite').BlockDevice} disk */
  async #batch(disk) {
    const list = Array.from({ length: 1 + random(40) }, () => {
      const page = random(LANE_PAGES)
      const value = random(256)
      this.#values[page] = value
      return { offset: this.#offset(page), data: this.#memory(disk, value) }
    })
    await disk.multiwrite(list)
    requests += list.length
  }

  /** In pieces that are no blocks, and durable now and then. @param {import('multiwrite').BlockDevice} disk */
  async #singles(disk) {
    const page = random(LANE_PAGES)
    const value = random(256)
    this.#values[page] = value
    const cut = 1 + random(PAGE - 1)
    const fua = random(100) === 0
    const offset = this.#offset(page)
    await Promise.all([
      disk.write(offset, Buffer.alloc(cut, value), { fua }),
      disk.write(offset + cut, disk.alloc(PAGE - cut).fill(value), { fua }),
    ])
    requests += 2
  }

  /** @param {import('multiwrite').BlockDevice} disk */
  async #check(disk) {
    const page = random(LANE_PAGES)
    const value = this.#values[page]
    const into = random(2) === 0 ? disk.alloc(PAGE) : Buffer.alloc(PAGE)
    await disk.read(this.#offset(page), into)
    if (into.compare(Buffer.alloc(PAGE, value)) !== 0) throw new Error(`page ${page} is not what was written to it`)
    requests++
  }

  /** @param {import('multiwrite').BlockDevice} disk */
  async #aborted(disk) {
    const abort = new AbortController()
    const page = random(LANE_PAGES)
    const data = Buffer.alloc(PAGE, this.#values[page])
    const call = disk.multiwrite([{ offset: this.#offset(page), data }], { signal: abort.signal })
    abort.abort()
    await call.catch((error) => {
      if (error.name !== 'AbortError') throw error
    })
    requests++
  }

  /** Memory that is given away in flight: the request may fail. @param {import('multiwrite').BlockDevice} disk */
  async #lost(disk) {
    const page = random(LANE_PAGES)
    const data = Buffer.from(new ArrayBuffer(PAGE))
    const call = disk.write(this.#offset(page), data)
    structuredClone(data.buffer, { transfer: [data.buffer] })
    await call.catch((error) => {
      if (error.code !== 'EFAULT') throw error
    })
    requests++
    this.#values[page] = 1
    await disk.write(this.#offset(page), Buffer.alloc(PAGE, 1))
  }
}

/**
 * Keeps one file busy, opening it anew again and again, for as long as `goOn` says.
 * @param {string} path @param {Way} way @param {() => boolean} goOn
 */
async function load(path, way, goOn) {
  const lanes = Array.from({ length: LANES }, (_, number) => new Lane(number))
  while (goOn()) {
    const disk = await open(path, way)
    let steps = STEPS_PER_OPENING
    try {
      await Promise.all(
        lanes.map(async (lane) => {
          while (steps-- > 0 && goOn()) await lane.step(disk)
        }),
      )
    } finally {
      await disk.close()
    }
  }
}

/** @param {string} path */
function emptyFile(path) {
  writeFileSync(path, '')
  truncateSync(path, FILE_BYTES)
  return path
}

/** Workers under load, one after the other, that end by themselves or are terminated. @param {string} path @param {() => boolean} goOn */
async function workers(path, goOn) {
  let count = 0
  while (goOn()) {
    // A terminated worker leaves any of its writes behind; the next one begins with a file that it knows.
    emptyFile(path)
    const way = WAYS[count++ % WAYS.length]
    const worker = new Worker(new URL(import.meta.url), { workerData: { path, way, duration_ms: 500 + random(1500) } })
    const ended = new Promise((resolve, reject) => {
      worker.on('error', reject)
      worker.on('exit', resolve)
    })
    if (random(2) === 0) {
      await Promise.race([sleep(random(800)), ended])
      await worker.terminate()
    }
    await ended
  }
  return count
}

/** Per resource: samples over the whole run. */
function newSamples() {
  return { resident_mib: [], heap_mib: [], descriptors: [], threads: [] }
}

/** Whether a row of numbers has grown: the median of its last third against that of the first, after warming up. */
function growth(row) {
  const judged = row.slice(Math.floor(row.length * WARM_UP))
  const third = Math.max(1, Math.floor(judged.length / 3))
  return median(judged.slice(-third)) - median(judged.slice(0, third))
}

/** @param {number[]} row */
function median(row) {
  const sorted = [...row].sort((a, b) => a - b)
  return sorted[sorted.length >> 1]
}

/** Descriptors, without source files: a worker that is terminated while Node loads its modules leaves those behind. */
function descriptors() {
  return readdirSync('/proc/self/fd').filter((name) => {
    try {
      return !readlinkSync(`/proc/self/fd/${name}`).endsWith('.js')
    } catch {
      return false
    }
  }).length
}

/** CPU milliseconds that the process takes while one device of each kind is open and idle. @param {string} path */
async function idleCost(path) {
  const disks = await Promise.all(WAYS.map((way) => open(path, way)))
  for (const disk of disks) await disk.write(0, Buffer.alloc(PAGE))
  await sleep(500)
  const before = process.cpuUsage()
  await sleep(IDLE_MS)
  const { user, system } = process.cpuUsage(before)
  await Promise.all(disks.map((disk) => disk.close()))
  return (user + system) / 1000
}

async function soak(seconds) {
  // A worker that ends may wait for its own code to be compiled, in the background, by a job that waits for the worker to collect
  // garbage: for ever. Node has this from V8; without the background there is none of it.
  setFlagsFromString('--no-concurrent-recompilation')
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc')
  // Beside the package, on a disk: what lies in memory may not know direct I/O.
  const cache = join(dirname(dirname(fileURLToPath(import.meta.url))), '.cache')
  mkdirSync(cache, { recursive: true })
  const folder = mkdtempSync(join(cache, 'soak-'))
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(130))

  const started_ms = performance.now()
  const elapsed_s = () => (performance.now() - started_ms) / 1000
  const goOn = () => elapsed_s() < seconds
  const samples = newSamples()
  const running = Promise.all([
    workers(join(folder, 'workers'), goOn),
    ...WAYS.map((way, at) => load(emptyFile(join(folder, String(at))), way, goOn)),
  ])
  console.log('   time   resident       heap  descriptors  threads   requests')
  const sampling = (async () => {
    while (goOn()) {
      await sleep(Math.min(SAMPLE_MS, Math.max(1, (seconds - elapsed_s()) * 1000)))
      gc()
      const { rss, heapUsed } = process.memoryUsage()
      const now = {
        resident_mib: rss / 2 ** 20,
        heap_mib: heapUsed / 2 ** 20,
        descriptors: descriptors(),
        threads: readdirSync('/proc/self/task').length,
      }
      for (const [name, value] of Object.entries(now)) samples[name].push(value)
      console.log(
        `${elapsed_s().toFixed(0).padStart(5)} s  ${now.resident_mib.toFixed(1).padStart(6)} MiB  ` +
          `${now.heap_mib.toFixed(1).padStart(5)} MiB  ${String(now.descriptors).padStart(11)}  ` +
          `${String(now.threads).padStart(7)}  ${String(requests).padStart(9)}`,
      )
    }
  })()
  const [[workersRun]] = await Promise.all([running, sampling])

  const left = descriptors()
  const idle_ms = await idleCost(emptyFile(join(folder, 'idle')))
  const grown = {
    resident_mib: growth(samples.resident_mib),
    descriptors: growth(samples.descriptors),
    threads: growth(samples.threads),
  }
  console.log(
    `${requests} requests of the main thread were carried out and checked; ${workersRun} workers came and went`,
  )
  console.log(
    `after warming up: resident memory ${signed(grown.resident_mib)} MiB, descriptors ${signed(grown.descriptors)}, ` +
      `threads ${signed(grown.threads)}; ${left} descriptors in the end`,
  )
  console.log(`5 open devices, idle: ${idle_ms.toFixed(1)} ms of CPU in ${IDLE_MS / 1000} s`)
  const flat = grown.resident_mib < GROWTH_MIB && grown.descriptors <= 2 && grown.threads <= 2
  console.log(flat ? 'flat' : 'NOT flat')
  process.exitCode = flat ? 0 : 1
}

/** @param {number} value */
const signed = (value) => `${value >= 0 ? '+' : ''}${value.toFixed(1)}`

if (isMainThread) {
  const seconds = Number(process.argv[2] ?? 120)
  if (!(seconds > 0)) throw new TypeError(`seconds: ${process.argv[2]}`)
  await soak(seconds)
} else {
  const { path, way, duration_ms } = workerData
  const deadline_ms = performance.now() + duration_ms
  await load(path, way, () => performance.now() < deadline_ms)
}
