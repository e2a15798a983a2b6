// What this library is to reach, each as a ratio to a peer in the same run. A goal has one or more figures; a figure is the
// median over rounds whose contenders are measured one right after the other, and is met or missed.
//
// Both sides of a figure have as many bytes in flight, in memory of the same size: buffers made once and used over and over.
// fio's figures are those of its job's thread alone, without the program's start and without io_uring's workers, which take no
// part where its CPU time is compared.

import { agreement } from './agreement.mjs'
import { countAllocations } from './allocations.mjs'
import { Bench, onTarget, TARGET_BYTES } from './bench.mjs'
import { cpuPerRequest, inTurns, rateOf, spread } from './measure.mjs'
import { multiwrite, multiwriteFua, writes, writesFua, writesSingly } from './ours.mjs'
import { fsWriteFanOut, writevByHand } from './peers.mjs'
import { PLANNED_REQUESTS, planningCost } from './planner.mjs'
import { growthFolders, sequentialGrowth } from './qcow2.mjs'
import { ext4File, loopDevice, Unavailable } from './targets.mjs'
import { besideKernel, besideQemu } from './traces.mjs'
import { adjacent, REQUEST_BYTES, SCATTER_BYTES, scattered } from './workload.mjs'

/** @typedef {import('./measure.mjs').Contender} Contender */
/** @typedef {import('./measure.mjs').Sample} Sample */
/** @typedef {import('./measure.mjs').Spread} Spread */
/** @typedef {import('./suite.mjs').Settings} Settings */

/**
 * @typedef {object} Figure
 * @property {string} measure
 * @property {Spread} spread
 * @property {'>=' | '<=' | '~'} is
 * @property {number} bound with `~`, how far from 1
 * @property {string} [note]
 * @property {boolean} [met] where the bound does not say it all
 */

/**
 * @typedef {object} Goal
 * @property {string} name
 * @property {string} title
 * @property {(settings: Settings) => AsyncGenerator<Figure>} figures
 */

const DEPTH = 32
const FAN_OUT = 64
const LANES = 4
const BUSY_POLL_US = 200
/** The least that a merged batch is to reach of fio's large blocks; the goal is higher. */
const P1_LEAST = 0.75

/** @type {Goal[]} */
export const goals = [
  {
    name: 'p1',
    title: 'adjacent 4 KiB requests in batches, 4 in flight, over fio io_uring writing the merged size at depth 4',
    figures: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, mergedOverFio),
  },
  {
    name: 'p2',
    title: `random 4 KiB, depth ${DEPTH}, over fio io_uring`,
    figures: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, randomOverFio),
  },
  {
    name: 'p3',
    title: 'random 4 KiB, depth 1: median latency beside fio io_uring',
    figures: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, latencyBesideFio),
  },
  {
    name: 'p4',
    title: `batches of ${FAN_OUT} over fs.write fan-out`,
    figures: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, overFanOut),
  },
  {
    name: 'p5',
    title: 'adjacent batches over fs.writev merged by hand, equally many in flight',
    figures: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, overWritev),
  },
  {
    name: 'p6',
    title: '64 adjacent FUA writes as a batch over the same singly, ext4 file, direct',
    figures: (settings) => onTarget(() => ext4File(TARGET_BYTES, true), settings, fuaOverSingly),
  },
  {
    name: 'p7',
    title: 'batches of 64 adjacent 4 KiB over fs.write fan-out, ext4 file, buffered',
    figures: (settings) => onTarget(() => ext4File(TARGET_BYTES, false), settings, bufferedOverFanOut),
  },
  { name: 'p8', title: 'sequential 4 KiB into a new qcow2 image, depth 64, over qemu-img bench', figures: growth },
  { name: 'p9', title: 'submissions left of recorded traffic', figures: submissionsOverPeers },
  {
    name: 'instrument',
    title: "the medians of `multiwrite bench` over fio's, unmerged random 4 KiB",
    figures: agreement,
  },
  { name: 'p10', title: `planning alone, a batch of ${PLANNED_REQUESTS}; allocations`, figures: planning },
]

/** A spread of one value that has none. @param {number} value @returns {Spread} */
const exactly = (value) => ({ min: value, median: value, max: value })

/**
 * Contenders measured in turns, and figures made of pairs of them.
 */
class Pairs {
  /** @param {Contender[]} contenders @param {Settings} settings */
  static async measure(contenders, settings) {
    return new Pairs(contenders, await inTurns(contenders, settings))
  }

  /** @param {Contender[]} contenders @param {Sample[][]} samples */
  constructor(contenders, samples) {
    this.names = contenders.map(({ name }) => name)
    this.samples = samples
  }

  /** @param {Contender} contender */
  of(contender) {
    return this.samples[this.names.indexOf(contender.name)]
  }

  /**
   * A figure taken in each round from what two contenders did in it.
   * @param {Contender} mine
   * @param {Contender} peer
   * @param {(mine: Sample, peer: Sample) => number} figure
   */
  each(mine, peer, figure) {
    const theirs = this.of(peer)
    return spread(this.of(mine).map((sample, round) => figure(sample, theirs[round])))
  }

  /** @param {Contender} mine @param {Contender} peer */
  rates(mine, peer) {
    return this.each(mine, peer, (a, b) => rateOf(a) / rateOf(b))
  }

  /** @param {Contender} mine @param {Contender} peer */
  cpu(mine, peer) {
    return this.each(mine, peer, (a, b) => cpuPerRequest(a) / cpuPerRequest(b))
  }

  /** Requests per second and CPU time of a request, in words. @param {Contender[]} contenders */
  note(...contenders) {
    return contenders
      .map((contender) => {
        const samples = this.of(contender)
        const rate = spread(samples.map(rateOf)).median
        return `${Math.round(rate / 1e3)}k/s ${spread(samples.map(cpuPerRequest)).median.toFixed(2)} us`
      })
      .join(' | ')
  }
}

/** @param {Contender[]} contenders none where fio isn't installed */
function required([contender]) {
  if (contender === undefined) throw new Unavailable('fio is not installed')
  return contender
}

/** @param {Bench} bench */
async function* mergedOverFio(bench) {
  const disk = await bench.disk()
  for (const count of [64, 256]) {
    const workload = adjacent({ lanes: LANES, count, size: bench.target.size, alloc: (size) => disk.alloc(size) })
    const mine = multiwrite('multiwrite', disk, workload)
    const blockSize = count * REQUEST_BYTES
    const peer = required(bench.fio('fio', { engine: 'io_uring', rw: 'write', blockSize, depth: LANES }))
    const pairs = await Pairs.measure([mine, peer], bench.settings)
    const figure = pairs.rates(mine, peer)
    yield {
      measure: `requests/s, batches of ${count} over blocks of ${blockSize >> 10} KiB`,
      spread: figure,
      is: /** @type {const} */ ('>='),
      bound: 0.9,
      note: `${pairs.note(mine, peer)}${figure.median < P1_LEAST ? `; below the least, ${P1_LEAST}` : ''}`,
    }
  }
}

/** @param {Bench} bench */
async function* randomOverFio(bench) {
  const disk = await bench.disk()
  const { size } = bench.target
  const alloc = disk.alloc.bind(disk)
  const singly = writes('write in 32 lanes', disk, scattered({ lanes: DEPTH, count: 1, size, alloc }))
  const batches = multiwrite('batches of 32', disk, scattered({ lanes: 1, count: DEPTH, size, alloc }))
  const job = /** @type {const} */ ({
    engine: 'io_uring',
    rw: 'randwrite',
    blockSize: REQUEST_BYTES,
    blockAlign: SCATTER_BYTES,
    depth: DEPTH,
  })
  const plain = required(bench.fio('fio', job))
  const batching = required(bench.fio('fio, iodepth_batch 32', { ...job, batchSubmit: DEPTH }))
  const whole = required(
    bench.fio('fio, iodepth_batch 32, all awaited', { ...job, batchSubmit: DEPTH, batchComplete: DEPTH }),
  )
  const pairs = await Pairs.measure([singly, plain, batches, batching, whole], bench.settings)
  // A batch is awaited as a whole: its peer awaits all of a batch, too. The others refill what has ended.
  for (const [mine, peer] of [
    [singly, plain],
    [singly, batching],
    [batches, whole],
  ]) {
    const note = pairs.note(mine, peer)
    const names = `${mine.name} over ${peer.name}`
    yield { measure: `IOPS, ${names}`, spread: pairs.rates(mine, peer), is: '>=', bound: 1, note }
    yield { measure: `CPU per request, ${names}`, spread: pairs.cpu(mine, peer), is: '<=', bound: 1, note }
  }
}

/** @param {Bench} bench */
async function* latencyBesideFio(bench) {
  const disk = await bench.disk()
  const workload = scattered({ lanes: 1, count: 1, size: bench.target.size, alloc: disk.alloc.bind(disk) })
  const mine = writesSingly('write', disk, workload)
  const options = { busyPollUs: BUSY_POLL_US }
  const polling = bench.openedForItsRounds('write, polling', options, (own) => writesSingly('', own, workload))
  const peer = required(
    bench.fio('fio', {
      engine: 'io_uring',
      rw: 'randwrite',
      blockSize: REQUEST_BYTES,
      blockAlign: SCATTER_BYTES,
      depth: 1,
    }),
  )
  const pairs = await Pairs.measure([mine, peer, polling], bench.settings)
  /** @param {Sample} sample */
  const p50_us = ({ p50_ns }) => /** @type {number} */ (p50_ns) / 1e3
  /** @param {Contender[]} contenders */
  const note = (...contenders) =>
    contenders.map((one) => `p50 ${spread(pairs.of(one).map(p50_us)).median.toFixed(1)} us`).join(' | ')
  yield {
    measure: 'p50 less fio, us',
    spread: pairs.each(mine, peer, (a, b) => p50_us(a) - p50_us(b)),
    is: '<=',
    bound: 6,
    note: note(mine, peer),
  }
  yield {
    measure: `p50 over fio, completion polling for ${BUSY_POLL_US} us`,
    spread: pairs.each(polling, peer, (a, b) => p50_us(a) / p50_us(b)),
    is: '<=',
    bound: 1.1,
    note: note(polling, peer),
  }
}

/** @param {Bench} bench */
async function* overFanOut(bench) {
  const disk = await bench.disk()
  const handle = await bench.handle()
  const { size } = bench.target
  const alloc = disk.alloc.bind(disk)
  for (const { shape, make, bound } of [
    { shape: 'adjacent', make: adjacent, bound: 12 },
    { shape: 'random', make: scattered, bound: 2 },
  ]) {
    const workload = make({ lanes: 1, count: FAN_OUT, size, alloc })
    const mine = multiwrite('multiwrite', disk, workload)
    const peer = fsWriteFanOut(handle.fd, workload)
    const pairs = await Pairs.measure([mine, peer], bench.settings)
    const note = pairs.note(mine, peer)
    yield { measure: `requests/s, ${shape}`, spread: pairs.rates(mine, peer), is: '>=', bound, note }
  }
}

/** @param {Bench} bench */
async function* overWritev(bench) {
  const disk = await bench.disk()
  const handle = await bench.handle()
  const alloc = disk.alloc.bind(disk)
  for (const count of [64, 256]) {
    for (const { lanes, bound } of [
      { lanes: 1, bound: 1.3 },
      { lanes: LANES, bound: 1.1 },
    ]) {
      const workload = adjacent({ lanes, count, size: bench.target.size, alloc })
      const mine = multiwrite('multiwrite', disk, workload)
      const peer = writevByHand(handle.fd, workload)
      const pairs = await Pairs.measure([mine, peer], bench.settings)
      const note = pairs.note(mine, peer)
      const shape = `batches of ${count}, ${lanes} in flight`
      yield { measure: `requests/s, ${shape}`, spread: pairs.rates(mine, peer), is: '>=', bound, note }
      yield { measure: `CPU per request, ${shape}`, spread: pairs.cpu(mine, peer), is: '<=', bound: 0.7, note }
    }
  }
}

/** @param {Bench} bench */
async function* fuaOverSingly(bench) {
  const disk = await bench.disk()
  const workload = adjacent({ lanes: 1, count: 64, size: bench.target.size, alloc: disk.alloc.bind(disk) })
  const mine = multiwriteFua('multiwrite', disk, workload)
  const peer = writesFua('one after another', disk, workload)
  const pairs = await Pairs.measure([mine, peer], bench.settings)
  yield {
    measure: 'requests/s',
    spread: pairs.rates(mine, peer),
    is: /** @type {const} */ ('>='),
    bound: 30,
    note: pairs.note(mine, peer),
  }
}

/** @param {Bench} bench */
async function* bufferedOverFanOut(bench) {
  const disk = await bench.disk()
  const handle = await bench.handle()
  const workload = adjacent({ lanes: 1, count: 64, size: bench.target.size, alloc: disk.alloc.bind(disk) })
  const mine = multiwrite('multiwrite', disk, workload)
  const peer = fsWriteFanOut(handle.fd, workload)
  const pairs = await Pairs.measure([mine, peer], bench.settings)
  yield {
    measure: 'requests/s',
    spread: pairs.rates(mine, peer),
    is: /** @type {const} */ ('>='),
    bound: 3,
    note: pairs.note(mine, peer),
  }
}

/** @param {Settings} settings @returns {AsyncGenerator<Figure>} */
async function* growth(settings) {
  if (!settings.qemu) throw new Unavailable('qemu-img is not installed')
  for (const make of growthFolders) {
    const folder = make()
    try {
      const { mine, off, peer, ...bytes } = sequentialGrowth(folder)
      const pairs = await Pairs.measure([mine, peer], settings)
      const note = pairs.note(mine, peer)
      yield { measure: `requests/s, ${folder.name}`, spread: pairs.rates(mine, peer), is: '>=', bound: 2, note }
      await off.run(1)
      const theirs = bytes.hostBytesOfPeer()?.toFixed(3) ?? '?'
      yield {
        measure: `bytes of the host per byte of the guest, ${folder.name}`,
        spread: exactly(bytes.hostBytes()),
        is: '<=',
        bound: 1.02,
        note: `${bytes.hostBytes().toFixed(4)}, merging off ${bytes.hostBytesUnmerged().toFixed(4)} | ${theirs}`,
      }
    } finally {
      folder.remove()
    }
  }
}

/** @returns {AsyncGenerator<Figure>} */
async function* submissionsOverPeers() {
  for (const { name, requests, ours, theirs } of besideQemu()) {
    const note = `${requests} writes: ${ours} | ${theirs}`
    yield { measure: `over QEMU's, ${name}`, spread: exactly(ours / theirs), is: '<=', bound: 1, note }
  }
  const { name, requests, ours, theirs } = besideKernel()
  const note = `${requests} writes: ${ours} | ${theirs}`
  yield { measure: `over the kernel's, ${name}`, spread: exactly(ours / theirs), is: '<=', bound: 0.7, note }
}

/** @param {Settings} settings @returns {AsyncGenerator<Figure>} */
async function* planning(settings) {
  yield { measure: 'ns per request, sorted', spread: planningCost('sorted'), is: '<=', bound: 100 }
  yield { measure: 'ns per request, shuffled', spread: planningCost('shuffled'), is: '<=', bound: 300 }
  yield* onTarget(() => loopDevice(TARGET_BYTES), settings, allocations)
}

/** @param {Bench} bench @returns {AsyncGenerator<Figure>} */
async function* allocations(bench) {
  for (const { shape, ours, addon, process, requests } of await countAllocations(bench.target)) {
    if (!ours) continue
    yield {
      measure: `native allocations per request, ${shape}`,
      spread: exactly(addon / requests),
      is: '<=',
      bound: 0,
      note: `the whole process: ${(process / requests).toFixed(4)}`,
    }
  }
}
