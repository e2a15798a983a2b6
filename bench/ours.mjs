// Our own contenders: the public API, fed with the same workloads as the peers.

import { timed, timedSingly } from './measure.mjs'

/** @typedef {import('../dist/index.js').BlockDevice} BlockDevice */
/** @typedef {import('./measure.mjs').Contender} Contender */
/** @typedef {import('./workload.mjs').Workload} Workload */

/**
 * A batch as a user makes it, anew each time.
 * @param {import('./workload.mjs').Batch} batch
 */
function requestsOf({ count, buffers, offsets }) {
  const requests = new Array(count)
  for (let i = 0; i < count; i++) requests[i] = { offset: offsets[i], data: buffers[i] }
  return requests
}

/** @param {import('./workload.mjs').Batch} batch */
function fuaRequestsOf({ count, buffers, offsets }) {
  const requests = new Array(count)
  for (let i = 0; i < count; i++) requests[i] = { offset: offsets[i], data: buffers[i], fua: true }
  return requests
}

/**
 * A sample with the number of submissions that its requests made.
 * @param {BlockDevice} disk
 * @param {() => Promise<import('./measure.mjs').Sample>} run
 */
async function counted(disk, run) {
  const before = disk.stats.write.submissions
  const sample = await run()
  return { ...sample, submissions: disk.stats.write.submissions - before }
}

/**
 * Batches by `multiwrite`, each lane awaiting its own.
 * @param {string} name
 * @param {BlockDevice} disk
 * @param {Workload} workload
 * @returns {Contender}
 */
export function multiwrite(name, disk, workload) {
  /** @param {number} lane */
  const step = (lane) => disk.multiwrite(requestsOf(workload.next(lane)))
  return {
    name,
    run: (duration_ms) => counted(disk, () => timed(duration_ms, workload.lanes, workload.count, step)),
  }
}

/**
 * The same with a callback for each request.
 * @param {string} name
 * @param {BlockDevice} disk
 * @param {Workload} workload
 * @returns {Contender}
 */
export function multiwriteCallbacks(name, disk, workload) {
  /** @param {number} lane */
  const step = (lane) => {
    const requests = requestsOf(workload.next(lane))
    for (const request of requests) {
      request.callback = (/** @type {Error | null} */ error) => {
        if (error) throw error
      }
    }
    return disk.multiwrite(requests)
  }
  return {
    name,
    run: (duration_ms) => counted(disk, () => timed(duration_ms, workload.lanes, workload.count, step)),
  }
}

/**
 * Batches whose requests are to be on stable storage when they are answered.
 * @param {string} name
 * @param {BlockDevice} disk
 * @param {Workload} workload
 * @returns {Contender}
 */
export function multiwriteFua(name, disk, workload) {
  /** @param {number} lane */
  const step = (lane) => disk.multiwrite(fuaRequestsOf(workload.next(lane)))
  return {
    name,
    run: (duration_ms) => counted(disk, () => timed(duration_ms, workload.lanes, workload.count, step)),
  }
}

/**
 * The same requests one after another.
 * @param {string} name
 * @param {BlockDevice} disk
 * @param {Workload} workload
 * @returns {Contender}
 */
export function writesFua(name, disk, workload) {
  const fua = { fua: true }
  /** @param {number} lane */
  const step = async (lane) => {
    const { count, offsets, buffers } = workload.next(lane)
    for (let i = 0; i < count; i++) await disk.write(offsets[i], buffers[i], fua)
  }
  return {
    name,
    run: (duration_ms) => counted(disk, () => timed(duration_ms, workload.lanes, workload.count, step)),
  }
}

/**
 * Single writes, each lane awaiting its own: what independent callers do.
 * @param {string} name
 * @param {BlockDevice} disk
 * @param {Workload} workload one request per batch
 * @returns {Contender}
 */
export function writes(name, disk, workload) {
  /** @param {number} lane */
  const step = (lane) => {
    const { offsets, buffers } = workload.next(lane)
    return disk.write(offsets[0], buffers[0])
  }
  return {
    name,
    run: (duration_ms) => counted(disk, () => timed(duration_ms, workload.lanes, workload.count, step)),
  }
}

/**
 * One write at a time, each of them timed.
 * @param {string} name
 * @param {BlockDevice} disk
 * @param {Workload} workload one request per batch
 * @returns {Contender}
 */
export function writesSingly(name, disk, workload) {
  const step = () => {
    const { offsets, buffers } = workload.next(0)
    return disk.write(offsets[0], buffers[0])
  }
  return { name, run: (duration_ms) => counted(disk, () => timedSingly(duration_ms, step)) }
}
