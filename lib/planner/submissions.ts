// Takes segments one after another and cuts them into submissions: what touches is joined, what lies near is joined where
// the gap may be filled with zeros, and no submission carries more than the limits. Both ways of planning write their plan
// through this file. A segment is written once, to its final place; nothing is copied but when an array has to grow.
//
// The cut is greedy: a submission takes segments until the next one does not fit. As every part of a submission that fits
// fits too, no other cut at the same segments makes fewer submissions. Where the device takes whole blocks only, bytes are
// counted from the start of the first block, and a submission that is full inside of a block goes on to the block's end.

import { float64s, int32s, uint8s } from './arrays.ts'
import type { Limits, MayFill, Plan } from './units.ts'

/** Arrays for submissions start no larger than this: most batches merge into a few. */
const SUBMISSIONS_AT_FIRST_MAX = 64

/** An array that is full is replaced by one this many times as long. */
const GROWTH = 2

const NO_UNIT = -1

/** Collects the segments of one plan. */
export class Submissions {
  readonly maxBytes: number
  readonly maxSegments: number
  readonly alignment: number
  readonly tail: number
  readonly mayFill: MayFill | null
  /** Submissions must come out ascending and disjoint. */
  readonly ascending: boolean

  /** The open submission is number `count - 1`; it starts at `start`, in the block at `base`, and has run to `end`. */
  private count = 0
  private base = 0
  private start = 0
  private end = 0
  private isOpen = false
  private fuaOpen = 0
  /** What the segments of the open submission sum up to, kept apart from its length as a check on both. */
  private sum = 0
  private segments = 0
  private segmentsOpen = 0

  private offsets: Float64Array
  private lengths: Float64Array
  private fuas: Uint8Array
  private firstSegments: Int32Array
  private segmentUnits: Int32Array
  private segmentStarts: Float64Array
  private segmentLengths: Float64Array

  constructor(limits: Limits, mayFill: MayFill | null, segmentsExpected: number, ascending: boolean) {
    this.maxBytes = limits.maxBytes
    this.maxSegments = limits.maxSegments
    this.alignment = limits.alignment ?? 1
    this.tail = limits.tail ?? Number.POSITIVE_INFINITY
    this.mayFill = mayFill
    this.ascending = ascending
    const segments = Math.max(1, segmentsExpected)
    const submissions = Math.min(segments, SUBMISSIONS_AT_FIRST_MAX)
    this.offsets = float64s(submissions)
    this.lengths = float64s(submissions)
    this.fuas = uint8s(submissions)
    this.firstSegments = int32s(submissions + 1)
    this.segmentUnits = int32s(segments)
    this.segmentStarts = float64s(segments)
    this.segmentLengths = float64s(segments)
  }

  /** Takes the next segment: `length` bytes for `offset`, from byte `from` of `unit` on. */
  add(unit: number, from: number, offset: number, length: number, fua: number): void {
    if (offset < this.tail && offset + length > this.tail) {
      const before = this.tail - offset
      this.add(unit, from, offset, before, fua)
      this.close()
      this.add(unit, from + before, this.tail, length - before, fua)
      return
    }
    let done = 0
    if (this.isOpen) {
      if (this.fits(offset, length, fua)) {
        this.append(unit, from, length)
        return
      }
      done = this.fillBlock(unit, from, offset, length, fua)
      if (done === length) return
      // The rest adds to the segment that is there: no vector more.
      const isWithin = offset + length - this.base <= this.maxBytes && this.segmentsOpen <= this.maxSegments
      if (done > 0 && fua === this.fuaOpen && isWithin) {
        this.extend(length - done)
        return
      }
      this.close()
    }
    const alignment = offset < this.tail ? this.alignment : 1
    for (;;) {
      const over = overBlock(offset + done, alignment)
      const room = this.maxBytes - over
      this.open(offset + done, over, fua)
      if (length - done <= room) break
      this.append(unit, from + done, room)
      this.close()
      done += room
    }
    this.append(unit, from + done, length - done)
  }

  /**
   * Where the open submission ends inside the block that the segment starts in: takes so much of the segment as lies in that
   * block, and what is between them. Returns how much.
   */
  private fillBlock(unit: number, from: number, offset: number, length: number, fua: number): number {
    const over = this.start < this.tail ? overBlock(this.end, this.alignment) : 0
    if (over === 0) return 0
    const blockEnd = this.end - over + this.alignment
    if (offset >= Math.min(blockEnd, this.tail)) return 0
    if (offset > this.end) this.append(NO_UNIT, 0, offset - this.end)
    // A block goes out once: with FUA if any of its bytes needs it.
    if (fua === 1) {
      this.fuaOpen = 1
      this.fuas[this.count - 1] = 1
    }
    const taken = Math.min(length, blockEnd - offset)
    this.append(unit, from, taken)
    return taken
  }

  /** Ends the open submission: the next segment starts one of its own, whether or not it touches. */
  close(): void {
    if (!this.isOpen) return
    const length = this.end - this.start
    assert(length === this.sum, 'the segments of a submission add up to its length')
    assert(length <= this.maxBytes, 'a submission keeps to the limit of bytes')
    assert(this.segmentsOpen <= this.maxSegments || this.alignment > 1, 'a submission keeps to the limit of vectors')
    this.lengths[this.count - 1] = length
    this.isOpen = false
  }

  /** The plan of all that was added. Nothing may be added after this. */
  finish(): Plan {
    this.close()
    this.firstSegments[this.count] = this.segments
    return {
      count: this.count,
      offset: this.offsets,
      length: this.lengths,
      fua: this.fuas,
      firstSegment: this.firstSegments,
      segmentUnit: this.segmentUnits,
      segmentStart: this.segmentStarts,
      segmentLength: this.segmentLengths,
      whole: false,
      inOrder: false,
    }
  }

  /** Whether the segment can join the open submission; a gap between them is filled here if it may be. */
  private fits(offset: number, length: number, fua: number): boolean {
    if (this.start < this.tail && offset >= this.tail) return false
    if (fua !== this.fuaOpen || offset + length - this.base > this.maxBytes) return false
    const gap = offset - this.end
    if (gap === 0) return this.segmentsOpen < this.maxSegments
    if (this.mayFill === null || gap < 0 || this.segmentsOpen + 2 > this.maxSegments) return false
    // Only `true` is consent: a promise, which is what a hook that is asynchronous by mistake returns, is none.
    if (this.mayFill({ offset: this.start, length: this.end - this.start }, { offset, length }) !== true) return false
    this.append(NO_UNIT, 0, gap)
    return true
  }

  /** Adds to the segment that was appended last. */
  private extend(length: number): void {
    this.segmentLengths[this.segments - 1]! += length
    this.end += length
    this.sum += length
  }

  private open(offset: number, over: number, fua: number): void {
    assert(!this.ascending || offset >= this.end, 'submissions ascend and do not overlap')
    if (this.count === this.offsets.length) this.growSubmissions()
    this.offsets[this.count] = offset
    this.fuas[this.count] = fua
    this.firstSegments[this.count] = this.segments
    this.count++
    this.base = offset - over
    this.start = offset
    this.end = offset
    this.isOpen = true
    this.fuaOpen = fua
    this.sum = 0
    this.segmentsOpen = 0
  }

  private append(unit: number, from: number, length: number): void {
    const at = this.segments
    if (at === this.segmentUnits.length) this.growSegments()
    this.segmentUnits[at] = unit
    this.segmentStarts[at] = from
    this.segmentLengths[at] = length
    this.segments = at + 1
    this.segmentsOpen++
    this.end += length
    this.sum += length
  }

  private growSubmissions(): void {
    const size = this.offsets.length * GROWTH
    this.offsets = copyInto(float64s(size), this.offsets)
    this.lengths = copyInto(float64s(size), this.lengths)
    this.fuas = copyInto(uint8s(size), this.fuas)
    this.firstSegments = copyInto(int32s(size + 1), this.firstSegments)
  }

  private growSegments(): void {
    const size = this.segmentUnits.length * GROWTH
    this.segmentUnits = copyInto(int32s(size), this.segmentUnits)
    this.segmentStarts = copyInto(float64s(size), this.segmentStarts)
    this.segmentLengths = copyInto(float64s(size), this.segmentLengths)
  }
}

/**
 * How far `offset` lies above a multiple of `alignment`, which is less than 2 GiB. This is `%`, exact for every safe integer, at a
 * tenth of its cost: the remainder of two doubles is computed bit by bit. What the kernel asks for are powers of two, of which
 * the low bits tell; `&` keeps those of any safe integer.
 */
export function overBlock(offset: number, alignment: number): number {
  const low = alignment - 1
  return (alignment & low) === 0 ? offset & low : offset - Math.floor(offset / alignment) * alignment
}

function copyInto<T extends Float64Array | Int32Array | Uint8Array>(to: T, from: T): T {
  to.set(from)
  return to
}

function assert(holds: boolean, what: string): void {
  if (!holds) throw new Error(`multiwrite planner: it does not hold that ${what}`)
}
