// What merging is worth in an image that grows: 4 KiB writes into a new qcow2 image, beside `qemu-img bench` with the same
// requests, depth and cache mode, and beside ourselves with merging off. And what it costs on the host: bytes written per byte of
// the guest, clusters allocated, I/O of tables and flushes.
//
// A round fills new images until its time is over; making, closing and checking them is not part of it. QEMU's bytes are those of its
// system calls, from a run of their own under strace; without strace they are not told, and without qemu-img it is left out.

import { execFile, execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { readTrace } from '../dist/cli/trace.js'
import { qcow2 } from '../dist/format/qcow2/driver.js'
import { create, open } from '../dist/index.js'
import { measure } from './measure.mjs'
import { timeOfChildren } from './qemu.mjs'
import { ext4Folder, tmpfsFolder } from './targets.mjs'
import { REQUEST_BYTES } from './workload.mjs'

/** @typedef {import('../dist/index.js').BlockDevice} BlockDevice */
/** @typedef {import('./measure.mjs').Contender} Contender */
/** @typedef {import('./suite.mjs').Settings} Settings */
/** @typedef {import('./suite.mjs').Table} Table */
/** @typedef {import('./targets.mjs').Folder} Folder */

const DEPTH = 64
const MIB = 1 << 20
/** Bytes of a guest of ours that does not come from a trace. */
const GUEST_BYTES = 64 * MIB
const COUNT = GUEST_BYTES / REQUEST_BYTES
/** Images of a trace are sparse: what is written to them is less. */
const FOLDER_BYTES = 256 * MIB
/** Batches of a recorded guest that are under way at once. */
const BATCHES_AT_ONCE = 16

const QEMU = `qemu-img bench, depth ${DEPTH}`
const MERGED = 'multiwrite, merge full'
const NOT_MERGED = 'multiwrite, merge off'
const HOST_BYTES = 'host/guest bytes'

/**
 * Writes of one page each: the `n`-th at `n * step`, modulo the size.
 * @typedef {object} Pattern
 * @property {string} name
 * @property {number} step bytes
 * @property {number} flushEvery requests; 0: never
 */

/** @type {Pattern} */
const SEQUENTIAL = { name: 'sequential', step: REQUEST_BYTES, flushEvery: 0 }
/** @type {Pattern[]} */
const PATTERNS = [
  SEQUENTIAL,
  { name: 'sequential, a flush every 1024', step: REQUEST_BYTES, flushEvery: 1024 },
  // Four places that advance in turns.
  { name: 'four streams', step: GUEST_BYTES / 4 + REQUEST_BYTES, flushEvery: 0 },
  // Every page once, far from the one before. QEMU's benchmark knows no random order.
  { name: 'scattered over 64 MiB', step: 4999 * REQUEST_BYTES, flushEvery: 0 },
]
/** The guest copying files, and four programs that write. */
const TRACES = ['ext4-cp', 'fio-4k-4streams']

/** What was done so far, of all rounds together. */
class Costs {
  requests = 0
  guestBytes = 0
  hostBytes = 0
  clusters = 0
  tables = 0
  flushes = 0

  get figures() {
    const per1000 = 1000 / this.requests
    return {
      [HOST_BYTES]: this.hostBytes / this.guestBytes,
      'clusters/1000': this.clusters * per1000,
      'table I/O/1000': this.tables * per1000,
      'flushes/1000': this.flushes * per1000,
    }
  }
}

/**
 * The driver, counting the bytes that it writes to its host.
 * @param {Costs} costs
 * @returns {import('../dist/index.js').FormatDriver}
 */
function counting(costs) {
  /** @param {import('../dist/index.js').FormatHost} host */
  const wrap = (host) => {
    const write = /** @type {typeof host.write} */ (
      (offset, data, options) => {
        if (data instanceof Uint8Array) costs.hostBytes += data.length
        else for (const piece of data) costs.hostBytes += piece.length
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
 * What is done to a new image.
 * @typedef {object} Work
 * @property {number} size of the guest, in bytes
 * @property {(disk: BlockDevice) => Promise<{ requests: number, bytes: number }>} run
 */

/**
 * Fills new images, one after the other.
 * @param {string} name
 * @param {'full' | 'off'} mode
 * @param {Folder} folder
 * @param {Work} work
 * @param {Costs} costs
 * @returns {Contender}
 */
function filling(name, mode, folder, work, costs) {
  const image = path.join(folder.path, 'image.qcow2')
  return {
    name,
    run: async (duration_ms) => {
      const sample = { requests: 0, submissions: 0, elapsed_ns: 0, user_us: 0, system_us: 0 }
      while (sample.elapsed_ns < duration_ms * 1e6) {
        await (await create(image, { format: 'qcow2', size: work.size, overwrite: true })).close()
        const disk = await open(image, { format: counting(costs), direct: folder.direct, merge: { mode } })
        const cpu = process.cpuUsage()
        const started_ms = performance.now()
        const done = await work.run(disk)
        sample.elapsed_ns += (performance.now() - started_ms) * 1e6
        const { user, system } = process.cpuUsage(cpu)
        sample.user_us += user
        sample.system_us += system
        sample.requests += done.requests
        const { write, metadata, flushes } = disk.stats
        sample.submissions += write.submissions
        costs.requests += done.requests
        costs.guestBytes += done.bytes
        costs.tables += metadata.submissions
        costs.flushes += flushes
        const { allocatedClusters, corruptions, leaks } = await disk.check()
        if (corruptions + leaks > 0) throw new Error(`${image} is not in order after the benchmark`)
        costs.clusters += allocatedClusters
        await disk.close()
        fs.rmSync(image)
      }
      return sample
    },
  }
}

/** As `qemu-img bench` does it: so many under way, each followed by the next. @param {Pattern} pattern @returns {Work} */
function writing({ step, flushEvery }) {
  return {
    size: GUEST_BYTES,
    run: async (disk) => {
      const data = disk.alloc(REQUEST_BYTES).fill(0x55)
      let next = 0
      const lane = async () => {
        while (next < COUNT) {
          const n = next++
          await disk.write((n * step) % GUEST_BYTES, data)
          if (flushEvery > 0 && n % flushEvery === flushEvery - 1) await disk.flush()
        }
      }
      await Promise.all(Array.from({ length: DEPTH }, lane))
      return { requests: COUNT, bytes: COUNT * REQUEST_BYTES }
    },
  }
}

/** A guest's own batches, one after the other; a flush where it flushed. @param {string} name @returns {Promise<Work>} */
async function recorded(name) {
  const trace = await readTrace(fileURLToPath(new URL(`traces/${name}.csv.gz`, import.meta.url)))
  return {
    size: Math.ceil(trace.diskEnd / MIB) * MIB,
    run: async (disk) => {
      const data = disk.alloc(4 * MIB).fill(0x55)
      let requests = 0
      let bytes = 0
      /** @type {Promise<unknown>[]} */
      const under = []
      for (const batch of trace.batches) {
        const writes = batch.filter(({ op }) => op === 'W')
        if (writes.length > 0) {
          under.push(disk.multiwrite(writes.map(({ offset, length }) => ({ offset, data: data.subarray(0, length) }))))
        }
        requests += writes.length
        for (const { length } of writes) bytes += length
        if (batch.some(({ op }) => op === 'F')) under.push(disk.flush())
        if (under.length >= BATCHES_AT_ONCE) await Promise.all(under.splice(0))
      }
      await Promise.all(under)
      return { requests, bytes }
    },
  }
}

/** @param {Pattern} pattern @param {boolean} direct @param {number} count @param {string} image */
function qemuArguments({ step, flushEvery }, direct, count, image) {
  return [
    ...['bench', '-w', '-f', 'qcow2', '-c', String(count), '-d', String(DEPTH), '-s', String(REQUEST_BYTES)],
    ...['-S', String(step), '-t', direct ? 'none' : 'writeback', ...(direct ? ['-n'] : [])],
    ...(flushEvery > 0 ? [`--flush-interval=${flushEvery}`, '--no-drain'] : []),
    image,
  ]
}

/** @param {string} image */
function makeByQemu(image) {
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(GUEST_BYTES)])
}

/**
 * QEMU filling one image a round: its benchmark is given a number of requests, not a time.
 * @param {Folder} folder
 * @param {Pattern} pattern
 * @returns {Contender}
 */
function qemu({ path: folder, direct }, pattern) {
  const image = path.join(folder, 'image.qcow2')
  /** @param {number} count */
  const fill = async (count) => {
    makeByQemu(image)
    const before = timeOfChildren()
    const { stdout } = await promisify(execFile)('qemu-img', qemuArguments(pattern, direct, count, image))
    const after = timeOfChildren()
    fs.rmSync(image)
    const seconds = Number(/in ([\d.]+) seconds/.exec(stdout)?.[1])
    if (!(seconds > 0 || count === 1)) throw new Error(`qemu-img bench said: ${stdout}`)
    const [user_us, system_us] = [after.user_us - before.user_us, after.system_us - before.system_us]
    return { elapsed_ns: seconds * 1e9, user_us, system_us }
  }
  /** The program's start. @type {{ user_us: number, system_us: number } | null} */
  let start = null
  return {
    name: QEMU,
    run: async () => {
      start ??= await fill(1)
      const { elapsed_ns, user_us, system_us } = await fill(COUNT)
      return {
        requests: COUNT,
        elapsed_ns,
        user_us: Math.max(0, user_us - start.user_us),
        system_us: Math.max(0, system_us - start.system_us),
      }
    },
  }
}

/** Bytes that QEMU writes to the host per byte of the guest; `null` where that can't be told. @param {Pattern} pattern */
function bytesOfQemu(pattern) {
  if (spawnSync('strace', ['-V']).status !== 0) return null
  const { path: folder, remove } = tmpfsFolder()
  try {
    const [image, log] = [path.join(folder, 'image.qcow2'), path.join(folder, 'log')]
    makeByQemu(image)
    // Buffered, on threads: asynchronous I/O would not show.
    const trace = ['-f', '-q', '--seccomp-bpf', '-e', 'trace=pwrite64,pwritev', '-o', log]
    const run = spawnSync('strace', [...trace, 'qemu-img', ...qemuArguments(pattern, false, COUNT, image)])
    if (run.status !== 0) return null
    let bytes = 0
    for (const line of fs.readFileSync(log, 'utf8').split('\n')) {
      bytes += Number(/(?:pwritev?(?:64)?\(.*|resumed>.*) = (\d+)$/.exec(line)?.[1] ?? 0)
    }
    return bytes / GUEST_BYTES
  } finally {
    remove()
  }
}

/**
 * Ours with merging and without, and the costs of both.
 * @param {Folder} folder
 * @param {Work} work
 */
function ours(folder, work) {
  const [merged, unmerged] = [new Costs(), new Costs()]
  const contenders = [filling(MERGED, 'full', folder, work, merged), filling(NOT_MERGED, 'off', folder, work, unmerged)]
  return { contenders, merged, unmerged }
}

/**
 * @param {string} title
 * @param {Folder} folder
 * @param {Work} work
 * @param {Pattern | null} pattern what QEMU can do as well
 * @param {Settings} settings
 * @returns {Promise<Table>}
 */
async function table(title, folder, work, pattern, settings) {
  const { contenders, merged, unmerged } = ours(folder, work)
  if (pattern !== null && settings.qemu) contenders.push(qemu(folder, pattern))
  const chosen = contenders.filter(({ name }) => settings.only === null || settings.only.test(name))
  const results = chosen.length === 0 ? [] : await measure(chosen, [NOT_MERGED, QEMU], settings)
  const whole = `${title}; ${folder.name}`
  const costs = [
    { name: MERGED, figures: merged.figures },
    { name: NOT_MERGED, figures: unmerged.figures },
  ].filter(({ name }) => chosen.some((one) => one.name === name))
  const bytes = chosen.some(({ name }) => name === QEMU) && pattern !== null ? bytesOfQemu(pattern) : null
  return {
    title: whole,
    latency: false,
    limits: await limitsIn(folder),
    results,
    costs: {
      title: `what it cost, per 1000 requests; ${whole}`,
      costs: bytes === null ? costs : [...costs, { name: QEMU, figures: { [HOST_BYTES]: bytes } }],
    },
  }
}

/** @param {Folder} folder */
async function limitsIn(folder) {
  const file = path.join(folder.path, 'limits')
  const disk = await create(file, { size: REQUEST_BYTES, direct: folder.direct })
  const { limits } = disk
  await disk.close()
  fs.rmSync(file)
  return limits
}

/** The section of the suite. @param {Settings} settings @returns {AsyncGenerator<Table>} */
export async function* growingImages(settings) {
  const memory = tmpfsFolder()
  try {
    for (const pattern of settings.quick ? [SEQUENTIAL] : PATTERNS) {
      const title = `4 KiB writes into a new qcow2 image, ${pattern.name}, depth ${DEPTH}`
      yield await table(title, memory, writing(pattern), pattern, settings)
    }
    for (const name of settings.quick ? [] : TRACES) {
      yield await table(
        `a recorded guest, into a new qcow2 image: ${name}`,
        memory,
        await recorded(name),
        null,
        settings,
      )
    }
  } finally {
    memory.remove()
  }
  if (settings.quick) return
  const disk = ext4Folder(FOLDER_BYTES)
  try {
    for (const pattern of [SEQUENTIAL, /** @type {Pattern} */ (PATTERNS.at(-1))]) {
      const title = `4 KiB writes into a new qcow2 image, ${pattern.name}, depth ${DEPTH}`
      yield await table(title, disk, writing(pattern), pattern, settings)
    }
  } finally {
    disk.remove()
  }
}

/**
 * Sequential writes, for the goal: ours, ours unmerged and QEMU's, and the bytes on the host of all three.
 * @param {Folder} folder
 */
export function sequentialGrowth(folder) {
  const { contenders, merged, unmerged } = ours(folder, writing(SEQUENTIAL))
  const [mine, off] = /** @type {[Contender, Contender]} */ (contenders)
  return {
    mine,
    off,
    peer: qemu(folder, SEQUENTIAL),
    hostBytes: () => merged.figures[HOST_BYTES],
    hostBytesUnmerged: () => unmerged.figures[HOST_BYTES],
    hostBytesOfPeer: () => bytesOfQemu(SEQUENTIAL),
  }
}

/** Where the goal is measured. @returns {(() => Folder)[]} */
export const growthFolders = [() => ext4Folder(FOLDER_BYTES), tmpfsFolder]
