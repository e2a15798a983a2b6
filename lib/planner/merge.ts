// The plan of a batch that is to be merged: every byte once, from the last unit that writes it, in as few submissions as the
// limits allow.
//
// The units are visited by ascending offset. One that no other overlaps, the usual case, is a segment as it stands. Where
// units overlap, a line sweeps over the group of them and asks at each start and each end which is the latest unit that
// covers the place: its bytes are the ones that carrying the batch out one by one would have left. A heap of unit indices
// knows; a unit that has ended stays in it until it comes to the top.
//
//     unit 0   aaaaaaaaaaaaaaaa
//     unit 1       bbbb                    segments:  aaaa bbbb aa cccccccc
//     unit 2             cccccccc
//
// A place is written with FUA if any unit that covers it asks for FUA, a hidden one included: its request is answered by the
// bytes that hide it. As the sweep moves upwards, that is so where the furthest end of the FUA units met so far lies ahead.

import { ascending, float64s, int32s, noFlags, uint8s, zeros } from './arrays.ts'
import { sortOrder } from './sort.ts'
import { overBlock, Submissions } from './submissions.ts'
import type { Limits, MayFill, Plan, Units } from './units.ts'

/**
 * Plans the units as one batch: sorted, overlaps resolved in favour of the later unit, merged and cut to the limits.
 *
 * @param units in the order of their batch
 * @param limits what one submission may carry
 * @param mayFill asked for gaps that would fit; without it no gap is filled
 */
export function planMerged(units: Units, limits: Limits, mayFill: MayFill | null = null): Plan {
  const { count, offset, length, fua } = units
  if (count === 1 && isOne(units, limits)) return planOne(units)
  const order = sortOrder(offset, count)
  const whole = planWhole(units, order, limits, mayFill !== null)
  if (whole !== null) return whole
  const out = new Submissions(limits, mayFill, count, true)
  let heap: UnitHeap | null = null
  let next = 0
  while (next < count) {
    const unit = order === null ? next : order[next]!
    const unitLength = length[unit]!
    next++
    if (unitLength === 0) continue
    const unitOffset = offset[unit]!
    if (next === count || offset[order === null ? next : order[next]!]! >= unitOffset + unitLength) {
      out.add(unit, 0, unitOffset, unitLength, fua === null ? 0 : fua[unit]!)
    } else {
      heap ??= new UnitHeap(units)
      next = sweepGroup(units, order, next - 1, heap, out)
    }
  }
  return out.finish()
}

/** Whether one submission may carry all of one unit: counted from the start of the block that it starts in. */
function isOne({ offset, length }: Units, limits: Limits): boolean {
  const start = offset[0]!
  const size = length[0]!
  if (size === 0 || size + overBlock(start, limits.alignment ?? 1) > limits.maxBytes) return false
  return limits.tail === undefined || start >= limits.tail || start + size <= limits.tail
}

/** The plan of a single unit within the limits: the common batch of one, at a fraction of the cost of the general way. */
function planOne(units: Units): Plan {
  const { offset, length, fua } = units
  return {
    count: 1,
    offset,
    length,
    fua: fua !== null && fua[0] === 1 ? fua : noFlags(1),
    firstSegment: ascending(2),
    segmentUnit: ascending(1),
    segmentStart: zeros(1),
    segmentLength: length,
    whole: true,
    inOrder: true,
  }
}

/**
 * The plan of units of which none overlaps another or has to be divided, each a segment as it stands: what sequential and
 * random requests are, at a part of the cost of the general way, which makes seven arrays. `null`: they are not.
 */
function planWhole(units: Units, order: Int32Array | null, limits: Limits, fillsGaps: boolean): Plan | null {
  const { count, offset, length, fua } = units
  const { maxBytes, maxSegments, alignment = 1, tail = Number.POSITIVE_INFINITY } = limits
  // Per submission: its first segment. Made with the first submission that has two: until then they are the same.
  let first: Int32Array | null = null
  let submissions = 0
  // The submission under way: where it starts, the block in which it does, and what it has so far.
  let from = 0
  let base = 0
  let end = Number.NEGATIVE_INFINITY
  let segments = 0
  let flag = 0
  // One that starts inside a block has so much less room.
  const most = maxBytes - (alignment - 1)
  for (let i = 0; i < count; i++) {
    const unit = order === null ? i : order[i]!
    const start = offset[unit]!
    const size = length[unit]!
    const wanted = fua === null ? 0 : fua[unit]!
    if (size === 0 || size > most) return null
    const gap = start - end
    end = start + size
    if (gap === 0) {
      if (segments === 1) base = from - overBlock(from, alignment)
      if (wanted === flag && segments < maxSegments && end - base <= maxBytes) {
        first ??= firstOfEach(submissions, count)
        segments++
        continue
      }
      // A run is cut between blocks only.
      if (overBlock(start, alignment) > 0) return null
    } else if (gap < alignment || (fillsGaps && submissions > 0)) {
      // Nearer than a block is long, two may have a block in common.
      return null
    }
    if (first !== null) first[submissions] = i
    from = start
    submissions++
    segments = 1
    flag = wanted
  }
  if (end > tail) return null
  const inOrder = order === null
  const plan: Plan = {
    count: submissions,
    offset,
    length,
    fua: fua ?? noFlags(count),
    firstSegment: first ?? ascending(count + 1),
    segmentUnit: order ?? (first === null ? ascending(count) : ascending(count).subarray(0, count)),
    segmentStart: zeros(count),
    segmentLength: inOrder ? length : inOrderOf(order, length, float64s(count)),
    whole: true,
    inOrder,
  }
  if (first === null) {
    // Submissions that are the units, one by one.
    if (inOrder) return plan
    plan.offset = inOrderOf(order, offset, float64s(count))
    plan.length = plan.segmentLength
    if (fua !== null) plan.fua = inOrderOf(order, fua, uint8s(count))
    return plan
  }
  first[submissions] = count
  const { segmentUnit } = plan
  const offsets = float64s(submissions)
  const lengths = float64s(submissions)
  const fuas = fua === null ? plan.fua : uint8s(submissions)
  for (let s = 0; s < submissions; s++) {
    const from = segmentUnit[first[s]!]!
    const to = segmentUnit[first[s + 1]! - 1]!
    offsets[s] = offset[from]!
    lengths[s] = offset[to]! + length[to]! - offset[from]!
    if (fua !== null) fuas[s] = fua[from]!
  }
  plan.offset = offsets
  plan.length = lengths
  plan.fua = fuas
  return plan
}

/** Room for a list of the first segments of up to `count` submissions, of which so many have one each. */
function firstOfEach(submissions: number, count: number): Int32Array {
  const first = int32s(count + 1)
  for (let s = 0; s < submissions; s++) first[s] = s
  return first
}

/** The values of all units as `order` has them, in `sorted`, which is as long. */
function inOrderOf<A extends Float64Array | Uint8Array>(order: Int32Array, values: A, sorted: A): A {
  for (let i = 0; i < sorted.length; i++) sorted[i] = values[order[i]!]!
  return sorted
}

/**
 * Resolves the group of units that starts at place `first` of the order and is connected by overlaps.
 *
 * @returns the place in the order after the group
 */
function sweepGroup(units: Units, order: Int32Array | null, first: number, heap: UnitHeap, out: Submissions): number {
  const { count, offset, length, fua } = units
  let next = first
  let place = offset[order === null ? first : order[first]!]!
  // The furthest ends of the units met so far, and of those that ask for FUA.
  let reach = place
  let reachFua = place
  // The segment under way: it grows for as long as the same unit wins with the same flag.
  let segmentUnit = -1
  let segmentOffset = place
  let segmentFua = 0
  heap.clear()
  for (;;) {
    // Take in the unit that starts here.
    const unit = order === null ? next : order[next]!
    const unitLength = length[unit]!
    next++
    if (unitLength > 0) {
      const end = place + unitLength
      heap.push(unit, end)
      if (end > reach) reach = end
      if (fua !== null && fua[unit] === 1 && end > reachFua) reachFua = end
    }
    const nextOffset = next < count ? offset[order === null ? next : order[next]!]! : reach
    const stop = Math.min(nextOffset, reach)
    while (place < stop) {
      const winner = heap.topAt(place)
      const winnerFua = reachFua > place ? 1 : 0
      if (winner !== segmentUnit || winnerFua !== segmentFua) {
        if (place > segmentOffset) {
          const from = segmentOffset - offset[segmentUnit]!
          out.add(segmentUnit, from, segmentOffset, place - segmentOffset, segmentFua)
        }
        segmentUnit = winner
        segmentOffset = place
        segmentFua = winnerFua
      }
      let end = offset[winner]! + length[winner]!
      if (end > stop) end = stop
      if (winnerFua === 1 && end > reachFua) end = reachFua
      place = end
    }
    if (nextOffset >= reach) break
  }
  out.add(segmentUnit, segmentOffset - offset[segmentUnit]!, segmentOffset, place - segmentOffset, segmentFua)
  return next
}

/** A binary heap of unit indices, the highest at the top. */
class UnitHeap {
  private readonly offset: Float64Array
  private readonly length: Float64Array
  private entries = new Int32Array(16)
  private size = 0

  constructor(units: Units) {
    this.offset = units.offset
    this.length = units.length
  }

  clear(): void {
    this.size = 0
  }

  /** Takes in a unit that starts where the sweep stands and goes to `end`. */
  push(unit: number, end: number): void {
    if (this.size > 0) {
      // Most overlaps need no heap: one of the two hides the other from here to its end.
      const top = this.entries[0]!
      const endTop = this.offset[top]! + this.length[top]!
      if (unit < top && end <= endTop) return
      if (unit > top && end >= endTop) {
        this.entries[0] = unit
        return
      }
    }
    if (this.size === this.entries.length) {
      const grown = new Int32Array(this.size * 2)
      grown.set(this.entries)
      this.entries = grown
    }
    let hole = this.size++
    while (hole > 0) {
      const parent = (hole - 1) >> 1
      const above = this.entries[parent]!
      if (above > unit) break
      this.entries[hole] = above
      hole = parent
    }
    this.entries[hole] = unit
  }

  /** The latest unit that covers `place`; those above it that have ended are dropped. */
  topAt(place: number): number {
    for (;;) {
      const top = this.entries[0]!
      if (this.offset[top]! + this.length[top]! > place) return top
      this.pop()
    }
  }

  private pop(): void {
    const last = this.entries[--this.size]!
    let hole = 0
    for (;;) {
      let child = 2 * hole + 1
      if (child >= this.size) break
      if (child + 1 < this.size && this.entries[child + 1]! > this.entries[child]!) child++
      const below = this.entries[child]!
      if (below < last) break
      this.entries[hole] = below
      hole = child
    }
    this.entries[hole] = last
  }
}
