// What is written, the same for all contenders: buffers that are made once and used over and over, and offsets that go on from
// batch to batch. Each lane has buffers of its own, as what is in flight must not be written twice at once.

export const REQUEST_BYTES = 4096

/**
 * A batch: `count` requests of `length` bytes.
 * @typedef {object} Batch
 * @property {number} count
 * @property {number} length
 * @property {Buffer[]} buffers
 * @property {number[]} offsets
 */

/**
 * @typedef {object} Workload
 * @property {number} lanes batches in flight
 * @property {number} count requests of a batch
 * @property {(lane: number) => Batch} next valid until the lane asks again
 */

/**
 * @param {number} lanes
 * @param {number} count
 * @param {(size: number) => Buffer} alloc
 * @returns {Batch[]}
 */
function lanesOf(lanes, count, alloc) {
  return Array.from({ length: lanes }, () => ({
    count,
    length: REQUEST_BYTES,
    buffers: Array.from({ length: count }, () => alloc(REQUEST_BYTES).fill(0x5a)),
    offsets: new Array(count).fill(0),
  }))
}

/**
 * Batches whose requests touch each other; each batch goes where the last one of all lanes ended.
 *
 * @param {{ lanes: number, count: number, size: number, alloc: (size: number) => Buffer, shuffled?: boolean }} options
 *   `shuffled`: the requests of a batch stand in a random order, the same one in each
 * @returns {Workload}
 */
export function adjacent({ lanes, count, size, alloc, shuffled = false }) {
  const batches = lanesOf(lanes, count, alloc)
  const order = Array.from({ length: count }, (_, i) => i)
  if (shuffled) shuffle(order)
  let place = 0
  return {
    lanes,
    count,
    next: (lane) => {
      const batch = batches[lane]
      if (place + count * REQUEST_BYTES > size) place = 0
      for (let i = 0; i < count; i++) batch.offsets[i] = place + order[i] * REQUEST_BYTES
      place += count * REQUEST_BYTES
      return batch
    },
  }
}

/** Random requests lie on every second block, so that no two of them ever touch. */
export const SCATTER_BYTES = 2 * REQUEST_BYTES

/**
 * Batches of requests at random that can't be merged.
 *
 * @param {{ lanes: number, count: number, size: number, alloc: (size: number) => Buffer }} options
 * @returns {Workload}
 */
export function scattered({ lanes, count, size, alloc }) {
  const batches = lanesOf(lanes, count, alloc)
  const places = Math.floor(size / SCATTER_BYTES)
  return {
    lanes,
    count,
    next: (lane) => {
      const batch = batches[lane]
      for (let i = 0; i < count; i++) batch.offsets[i] = random(places) * SCATTER_BYTES
      return batch
    },
  }
}

// A fixed seed: the same offsets on every run.
let seed = 12345

/** @param {number} below */
function random(below) {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
  return Math.floor((seed / 2 ** 32) * below)
}

/** @param {number[]} values */
function shuffle(values) {
  for (let i = values.length - 1; i > 0; i--) {
    const j = random(i + 1)
    const kept = values[i]
    values[i] = values[j]
    values[j] = kept
  }
}
