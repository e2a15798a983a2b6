// Brings units into the order of their offsets: stable, so that of equal starts the earlier one of the batch stands first.
//
// Real batches are seldom random. They are ascending already, or consist of a few ascending streams, or run backwards. So
// this is a natural merge sort: it looks for runs that stand in order, turns strictly descending ones round (strictly,
// because turning equals round would not be stable) and merges neighbours until one run is left. Sorted input costs one
// comparison a unit and no memory. Offsets are compared, never subtracted: a difference cut to 32 bits is how starts
// 1 TiB apart once came out in the wrong order and destroyed file systems.

import { float64s, int32s } from './arrays.ts'

/** Runs shorter than this are made longer by insertion: below it, moving entries is cheaper than merging runs. */
const RUN_LENGTH_MIN = 16

/** Keys of batches up to this long are sorted in the same memory again and again: for a few, an array costs more than the rest. */
const KEPT_KEYS_MAX = 4096
let keptKeys = new Float64Array(64)

function roomForKeys(count: number): Float64Array {
  if (count > KEPT_KEYS_MAX) return float64s(count)
  if (count > keptKeys.length) keptKeys = new Float64Array(KEPT_KEYS_MAX)
  return keptKeys
}

/**
 * The order in which to visit the first `count` entries of `offset`: ascending, ties by index.
 *
 * @returns indices into `offset`, or `null` where the entries stand in order already
 */
export function sortOrder(offset: Float64Array, count: number): Int32Array | null {
  let sorted = 1
  while (sorted < count && offset[sorted - 1]! <= offset[sorted]!) sorted++
  if (sorted >= count) return null
  const order = int32s(count)
  for (let i = 0; i < count; i++) order[i] = i
  const keys = roomForKeys(count)
  for (let i = 0; i < count; i++) keys[i] = offset[i]!
  const runs = findRuns(keys, order, count)
  return runs.length > 2 ? mergeRuns(keys, order, runs) : order
}

/**
 * Puts `keys`, and `order` along with them, into ascending runs.
 *
 * @returns where each run starts, and `count` at the end
 */
function findRuns(keys: Float64Array, order: Int32Array, count: number): number[] {
  const runs = [0]
  let start = 0
  while (start < count) {
    let end = start + 1
    if (end < count && keys[end]! < keys[start]!) {
      while (end < count && keys[end]! < keys[end - 1]!) end++
      turnRound(keys, order, start, end)
    }
    // A run that was turned round may go on ascending.
    while (end < count && keys[end - 1]! <= keys[end]!) end++
    const wanted = Math.min(start + RUN_LENGTH_MIN, count)
    for (; end < wanted; end++) insert(keys, order, start, end)
    // What stands in order with the run before it is one run with it.
    if (start > 0 && keys[start - 1]! <= keys[start]!) runs.pop()
    runs.push(end)
    start = end
  }
  return runs
}

/** Not by `subarray(...).reverse()`: for the few entries of most runs, the two arrays cost more than the rest. */
function turnRound(keys: Float64Array, order: Int32Array, start: number, end: number): void {
  for (let low = start, high = end - 1; low < high; low++, high--) {
    const key = keys[low]!
    keys[low] = keys[high]!
    keys[high] = key
    const index = order[low]!
    order[low] = order[high]!
    order[high] = index
  }
}

/** Moves entry `at` down to its place in the run that ends there. */
function insert(keys: Float64Array, order: Int32Array, start: number, at: number): void {
  const key = keys[at]!
  const index = order[at]!
  let place = at
  while (place > start && keys[place - 1]! > key) {
    keys[place] = keys[place - 1]!
    order[place] = order[place - 1]!
    place--
  }
  keys[place] = key
  order[place] = index
}

/** Merges neighbouring runs, pass by pass and to and fro between two pairs of arrays, until one run is left. */
function mergeRuns(keys: Float64Array, order: Int32Array, runs: number[]): Int32Array {
  let fromKeys = keys
  let fromOrder = order
  let toKeys = float64s(order.length)
  let toOrder = int32s(order.length)
  let left = runs
  while (left.length > 2) {
    const merged = [0]
    for (let run = 0; run + 1 < left.length; run += 2) {
      const start = left[run]!
      const middle = left[run + 1]!
      const end = left[run + 2] ?? middle
      mergeTwo(fromKeys, fromOrder, toKeys, toOrder, start, middle, end)
      merged.push(end)
    }
    ;[fromKeys, toKeys] = [toKeys, fromKeys]
    ;[fromOrder, toOrder] = [toOrder, fromOrder]
    left = merged
  }
  return fromOrder
}

/** Merges the runs [start, middle) and [middle, end). On a tie the first run goes first: its indices are the lower ones. */
function mergeTwo(
  fromKeys: Float64Array,
  fromOrder: Int32Array,
  toKeys: Float64Array,
  toOrder: Int32Array,
  start: number,
  middle: number,
  end: number,
): void {
  let a = start
  let b = middle
  let to = start
  if (a < middle && b < end) {
    let keyA = fromKeys[a]!
    let keyB = fromKeys[b]!
    for (;;) {
      if (keyA <= keyB) {
        toKeys[to] = keyA
        toOrder[to++] = fromOrder[a++]!
        if (a === middle) break
        keyA = fromKeys[a]!
      } else {
        toKeys[to] = keyB
        toOrder[to++] = fromOrder[b++]!
        if (b === end) break
        keyB = fromKeys[b]!
      }
    }
  }
  for (; a < middle; a++, to++) {
    toKeys[to] = fromKeys[a]!
    toOrder[to] = fromOrder[a]!
  }
  for (; b < end; b++, to++) {
    toKeys[to] = fromKeys[b]!
    toOrder[to] = fromOrder[b]!
  }
}
