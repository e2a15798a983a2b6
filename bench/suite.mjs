// What is compared with what: the sections of the suite. A section makes its target, opens it once per way of merging, names
// its contenders and the peers that the ratios are taken to, and takes everything away again.

import { Bench, onTarget, plainMemory, TARGET_BYTES } from './bench.mjs'
import { CONVERT, DD, DD_CMP, flashers, makeImage, QEMU_DD } from './flashers.mjs'
import { measure } from './measure.mjs'
import { multiwrite, multiwriteCallbacks, writes, writesSingly } from './ours.mjs'
import { fsWriteFanOut, fsWriteSingly, promisesFanOut, writevByHand } from './peers.mjs'
import { growingImages } from './qcow2.mjs'
import { ext4File, loopDevice, tmpfsFile } from './targets.mjs'
import { adjacent, REQUEST_BYTES, SCATTER_BYTES, scattered } from './workload.mjs'

/** @typedef {import('./bench.mjs').Bench} Bench */
/** @typedef {import('./measure.mjs').Contender} Contender */
/** @typedef {import('../dist/index.js').BlockDevice} BlockDevice */

/**
 * @typedef {object} Settings
 * @property {boolean} quick leaves out what is of second interest
 * @property {boolean} fio whether it is installed
 * @property {boolean} qemu likewise
 * @property {RegExp | null} only names of contenders; the others are left out
 * @property {number} rounds
 * @property {number} duration_ms
 */

/**
 * @typedef {object} Table
 * @property {string} title
 * @property {boolean} latency whether it is about latency
 * @property {import('../dist/index.js').DeviceLimits} limits
 * @property {import('./measure.mjs').Result[]} results
 * @property {import('./costs.mjs').CostTable} [costs] what was counted besides
 */

/**
 * @typedef {object} Section
 * @property {string} name
 * @property {(settings: Settings) => AsyncGenerator<Table>} tables throws `Unavailable` where the target can't be had
 */

const RANDOM_DEPTH = 32
const BUSY_POLL_US = 200
/** Large enough for the start of a program to be a small part of its time. */
const FLASHED_BYTES = 2 ** 31
/** @param {string} program @param {number} blockSize @param {number} depth */
const inBlocks = (program, blockSize, depth) => `${program}, ${blockSize >> 10} KiB blocks, depth ${depth}`

/** @param {Bench} bench @param {'io_uring' | 'libaio'} engine @param {number} blockSize @param {number} depth */
function fioInBlocks(bench, engine, blockSize, depth) {
  return bench.fio(inBlocks(`fio ${engine}`, blockSize, depth), { engine, rw: 'write', blockSize, depth })
}

/** @param {Bench} bench @param {number} blockSize @param {number} depth */
function qemuInBlocks(bench, blockSize, depth) {
  return bench.qemu(inBlocks('qemu-img bench', blockSize, depth), { blockSize, step: blockSize, depth })
}

/**
 * One target, merged, sorted only and as given.
 * @param {Bench} bench
 */
const openedPerMode = async (bench) => ({
  full: await bench.disk(),
  sort: await bench.disk({ merge: { mode: 'sort' } }),
  off: await bench.disk({ merge: { mode: 'off' } }),
})

const FAN_OUT = 'fs.write, one per request'
const BY_HAND = 'fs.writev, merged by hand'

/** @type {Section[]} */
export const sections = [
  { name: 'adjacent', tables: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, adjacentBatches) },
  { name: 'shuffled', tables: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, shuffledBatches) },
  { name: 'random', tables: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, randomWrites) },
  { name: 'latency', tables: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, latency) },
  { name: 'ext4', tables: (settings) => onTarget(() => ext4File(TARGET_BYTES, false), settings, fileBatches) },
  { name: 'ext4-direct', tables: (settings) => onTarget(() => ext4File(TARGET_BYTES, true), settings, fileBatches) },
  { name: 'tmpfs', tables: (settings) => onTarget(() => tmpfsFile(TARGET_BYTES), settings, fileBatches) },
  { name: 'flash', tables: (settings) => onTarget(() => loopDevice(FLASHED_BYTES), settings, flashed) },
  { name: 'flash-ext4', tables: (settings) => onTarget(() => ext4File(FLASHED_BYTES, true), settings, flashedFile) },
  { name: 'qcow2', tables: growingImages },
]

/**
 * @param {Bench} bench
 * @param {string} title
 * @param {BlockDevice} disk
 * @param {Contender[]} contenders
 * @param {string[]} peers
 * @param {boolean} [latency]
 * @returns {Promise<Table>}
 */
async function table({ target, settings }, title, disk, contenders, peers, latency = false) {
  const { only } = settings
  const chosen = contenders.filter(({ name }) => only === null || only.test(name))
  const results = chosen.length === 0 ? [] : await measure(chosen, peers, settings)
  return { title: `${title}; ${target.name}`, latency, limits: disk.limits, results }
}

/** @param {Bench} bench */
async function* adjacentBatches(bench) {
  const { size } = bench.target
  const { full, sort, off } = await openedPerMode(bench)
  const aio = await bench.disk({ engine: 'aio' })
  const threads = await bench.disk({ engine: 'threads' })
  const handle = await bench.handle()
  const alloc = full.alloc.bind(full)
  for (const count of [64, 256]) {
    for (const lanes of [1, 4]) {
      if (bench.settings.quick && count === 256 && lanes === 1) continue
      const workload = adjacent({ lanes, count, size, alloc })
      const copied = adjacent({ lanes, count, size, alloc: plainMemory })
      // The peers' blocks are as large as a batch, and as many of them are in flight.
      const blockSize = count * REQUEST_BYTES
      const large = inBlocks('fio io_uring', blockSize, lanes)
      const contenders = [
        multiwrite('multiwrite, merge full', full, workload),
        multiwriteCallbacks('multiwrite, merge full, callbacks', full, workload),
        multiwrite('multiwrite, merge full, Buffer.alloc', full, copied),
        multiwrite('multiwrite, merge sort', sort, workload),
        multiwrite('multiwrite, merge off', off, workload),
        ...(bench.settings.quick
          ? []
          : [
              multiwrite('multiwrite, merge full, aio', aio, workload),
              multiwrite('multiwrite, merge full, threads', threads, workload),
            ]),
        fsWriteFanOut(handle.fd, workload),
        ...(bench.settings.quick
          ? []
          : [
              promisesFanOut(handle, workload),
              bench.fsWriteByUring({ work: 'fan out', shape: 'adjacent', lanes, count }),
            ]),
        writevByHand(handle.fd, workload),
        ...fioInBlocks(bench, 'io_uring', blockSize, lanes),
        ...(bench.settings.quick
          ? []
          : [
              ...fioInBlocks(bench, 'libaio', blockSize, lanes),
              ...qemuInBlocks(bench, blockSize, lanes),
              ...fioInBatches(bench, count, lanes),
            ]),
      ]
      const title = `batches of ${count} adjacent 4 KiB writes, ${lanes} in flight`
      yield await table(bench, title, full, contenders, [FAN_OUT, BY_HAND, large])
    }
  }
}

/**
 * The same requests by fio, as many per system call; the kernel may merge them.
 * @param {Bench} bench
 * @param {number} count
 * @param {number} lanes
 */
function fioInBatches(bench, count, lanes) {
  return bench.fio(`fio io_uring, 4 KiB blocks, ${count} per call`, {
    engine: 'io_uring',
    rw: 'write',
    blockSize: REQUEST_BYTES,
    depth: count * lanes,
    batchSubmit: count,
    batchComplete: count,
  })
}

/** @param {Bench} bench */
async function* shuffledBatches(bench) {
  const { size } = bench.target
  const { full, sort, off } = await openedPerMode(bench)
  const handle = await bench.handle()
  const workload = adjacent({ lanes: 4, count: 64, size, alloc: full.alloc.bind(full), shuffled: true })
  const contenders = [
    multiwrite('multiwrite, merge full', full, workload),
    multiwrite('multiwrite, merge sort', sort, workload),
    multiwrite('multiwrite, merge off', off, workload),
    fsWriteFanOut(handle.fd, workload),
  ]
  const title = 'batches of 64 adjacent 4 KiB writes in random order, 4 in flight'
  yield await table(bench, title, full, contenders, [FAN_OUT, 'multiwrite, merge sort'])
}

/** @param {Bench} bench */
async function* randomWrites(bench) {
  const { size } = bench.target
  const { quick } = bench.settings
  const disk = await bench.disk()
  const handle = await bench.handle()
  const alloc = disk.alloc.bind(disk)
  const singly = scattered({ lanes: RANDOM_DEPTH, count: 1, size, alloc })
  const inOne = scattered({ lanes: 1, count: RANDOM_DEPTH, size, alloc })
  const inTwo = scattered({ lanes: 2, count: RANDOM_DEPTH / 2, size, alloc })
  const copied = scattered({ lanes: RANDOM_DEPTH, count: 1, size, alloc: plainMemory })
  const job = /** @type {const} */ ({
    engine: 'io_uring',
    rw: 'randwrite',
    blockSize: REQUEST_BYTES,
    blockAlign: SCATTER_BYTES,
    depth: RANDOM_DEPTH,
  })
  const plainFio = `fio io_uring, depth ${RANDOM_DEPTH}`
  const batchFio = `fio io_uring, ${RANDOM_DEPTH} per call, all awaited`
  const contenders = [
    multiwrite(`multiwrite, batches of ${RANDOM_DEPTH}, 1 in flight`, disk, inOne),
    multiwrite(`multiwrite, batches of ${RANDOM_DEPTH / 2}, 2 in flight`, disk, inTwo),
    writes(`write, ${RANDOM_DEPTH} lanes`, disk, singly),
    writes(`write, ${RANDOM_DEPTH} lanes, Buffer.alloc`, disk, copied),
    ...(quick ? [] : [writes(`write, ${RANDOM_DEPTH} lanes, aio`, await bench.disk({ engine: 'aio' }), singly)]),
    ...(quick
      ? []
      : [writes(`write, ${RANDOM_DEPTH} lanes, threads`, await bench.disk({ engine: 'threads' }), singly)]),
    fsWriteFanOut(handle.fd, singly),
    ...(quick ? [] : [bench.fsWriteByUring({ work: 'fan out', shape: 'scattered', lanes: RANDOM_DEPTH, count: 1 })]),
    ...bench.fio(plainFio, job),
    ...bench.fio(batchFio, { ...job, batchSubmit: RANDOM_DEPTH, batchComplete: RANDOM_DEPTH }),
    ...(quick
      ? []
      : [
          ...bench.fio(`fio libaio, depth ${RANDOM_DEPTH}`, { ...job, engine: 'libaio' }),
          ...bench.qemu(`qemu-img bench, every second block, depth ${RANDOM_DEPTH}`, {
            blockSize: REQUEST_BYTES,
            step: SCATTER_BYTES,
            depth: RANDOM_DEPTH,
          }),
        ]),
  ]
  const title = `random 4 KiB writes that can't be merged, depth ${RANDOM_DEPTH}`
  yield await table(bench, title, disk, contenders, [FAN_OUT, plainFio, batchFio])
}

/** @param {Bench} bench */
async function* latency(bench) {
  const { size } = bench.target
  const disk = await bench.disk()
  const handle = await bench.handle()
  const workload = scattered({ lanes: 1, count: 1, size, alloc: disk.alloc.bind(disk) })
  const job = /** @type {const} */ ({
    rw: 'randwrite',
    blockSize: REQUEST_BYTES,
    blockAlign: SCATTER_BYTES,
    depth: 1,
  })
  const peer = 'fio io_uring, depth 1'
  const contenders = [
    writesSingly('write', disk, workload),
    ...(bench.settings.quick ? [] : [writesSingly('write, aio', await bench.disk({ engine: 'aio' }), workload)]),
    ...(bench.settings.quick
      ? []
      : [writesSingly('write, threads', await bench.disk({ engine: 'threads' }), workload)]),
    ...(bench.settings.quick
      ? []
      : [
          bench.openedForItsRounds(`write, busyPollUs ${BUSY_POLL_US}`, { busyPollUs: BUSY_POLL_US }, (polling) =>
            writesSingly('', polling, workload),
          ),
        ]),
    fsWriteSingly(handle.fd, workload),
    ...(bench.settings.quick ? [] : [bench.fsWriteByUring({ work: 'singly', shape: 'scattered', lanes: 1, count: 1 })]),
    ...bench.fio(peer, { ...job, engine: 'io_uring' }),
    ...(bench.settings.quick ? [] : bench.fio('fio psync', { ...job, engine: 'psync' })),
  ]
  yield await table(bench, 'random 4 KiB writes one at a time', disk, contenders, ['fs.write', peer], true)
}

/** @param {Bench} bench */
async function* fileBatches(bench) {
  const { size, direct } = bench.target
  const full = await bench.disk()
  const sort = await bench.disk({ merge: { mode: 'sort' } })
  const handle = await bench.handle()
  const alloc = full.alloc.bind(full)
  for (const lanes of bench.settings.quick ? [1] : [1, 4]) {
    const workload = adjacent({ lanes, count: 64, size, alloc })
    const copied = adjacent({ lanes, count: 64, size, alloc: plainMemory })
    const blockSize = 64 * REQUEST_BYTES
    const contenders = [
      multiwrite('multiwrite, merge full', full, workload),
      multiwrite('multiwrite, merge full, Buffer.alloc', full, copied),
      multiwrite('multiwrite, merge sort', sort, workload),
      ...(bench.settings.quick
        ? []
        : [multiwrite('multiwrite, merge full, threads', await bench.disk({ engine: 'threads' }), workload)]),
      fsWriteFanOut(handle.fd, workload),
      ...(bench.settings.quick ? [] : [bench.fsWriteByUring({ work: 'fan out', shape: 'adjacent', lanes, count: 64 })]),
      writevByHand(handle.fd, workload),
      ...(bench.settings.quick
        ? []
        : [...fioInBlocks(bench, 'io_uring', blockSize, lanes), ...qemuInBlocks(bench, blockSize, lanes)]),
    ]
    const title = `batches of 64 adjacent 4 KiB writes, ${lanes} in flight, ${direct ? 'direct' : 'buffered'}`
    yield await table(bench, title, full, contenders, [FAN_OUT, BY_HAND])
  }
}

/** @param {Bench} bench */
async function* flashed(bench) {
  yield* flashedBeside(bench, [DD, CONVERT, QEMU_DD, DD_CMP])
}

/** Without the one that takes as long as all others together. @param {Bench} bench */
async function* flashedFile(bench) {
  yield* flashedBeside(bench, [DD, CONVERT, DD_CMP])
}

/** @param {Bench} bench @param {string[]} peers */
async function* flashedBeside(bench, peers) {
  if (bench.settings.quick) return
  const { path, size } = bench.target
  const { file: image, remove } = makeImage(size, false)
  try {
    const disk = await bench.openDisk({ readOnly: true })
    await disk.close()
    const all = flashers({ image, target: path, requests: size / REQUEST_BYTES })
    const contenders = all.filter(({ name }) => name !== QEMU_DD || peers.includes(name))
    yield await table(bench, `an image of ${size / 2 ** 20} MiB, flushed`, disk, contenders, peers)
  } finally {
    remove()
  }
}
