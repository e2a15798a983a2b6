// One merged run on its way to the kernel and back: its vectors, its copy in the staging pool if it needs one, the reading of
// blocks that it covers only in part, short results, retries. Made by a batch from its plan, sent by the queue call by call,
// reported back exactly once.
//
//   fill ──► one system call ──advance──► ended, or fill again: the next part, the rest of a short result, another try
//
// Direct I/O moves whole blocks. A run that starts or ends inside one is staged with the whole blocks around it; what it does
// not write of them is read first. Its batch's claim covers those blocks, so nobody changes them meanwhile.

import { constants } from 'node:os'
import type { Engine, Operation } from './engine.ts'
import { PIECE_MAX, placeOf, type Region, regionOf, type Staging } from './memory.ts'
import { FLAG_DSYNC, OP } from './native.ts'
import { overBlock } from './planner/submissions.ts'
import type { Plan } from './planner/units.ts'
import type { Work } from './requests.ts'
import type { Hold, Tracker } from './tracker.ts'

const { EAGAIN, EINTR, EIO, ENOSPC } = constants.errno

/** What a submission needs to know of its device. */
export interface Target {
  readonly file: number
  /** O_DIRECT: places and lengths are multiples of `alignment`, addresses of `memoryAlignment`. */
  readonly direct: boolean
  readonly alignment: number
  readonly memoryAlignment: number
  /** Whether the block layer may merge what is submitted together, so that it fails together. */
  readonly kernelMerges: boolean
  /** A second descriptor of a direct file, without O_DIRECT; -1: none. */
  readonly tailFile: number
  /** Where a file ends now, which a failed truncation may have left below what was accepted; Infinity for a block device. */
  readonly size: number
  /** Where the last, partial block of a direct file begins: from here on `tailFile` serves. Infinity: nowhere. */
  readonly tail: number
}

/** What became of an attempt to make up the next system call. */
export const Filled = { yes: 0, noMemory: 1, lostMemory: 2, pastEnd: 3 } as const
export type Filled = (typeof Filled)[keyof typeof Filled]

/** What is to be done after a result. */
export const Outcome = { ended: 0, again: 1, rest: 2, next: 3 } as const
export type Outcome = (typeof Outcome)[keyof typeof Outcome]

/** A place in the order of calls, shared by the submissions that replace each other in it. */
export interface Claim {
  readonly hold: Hold<Waiter>
  /** Submissions that have not ended. */
  parts: number
}

/** Some requests of a batch. */
export interface Owners {
  has(owner: number): boolean
}

/** What a submission, and those who carry it, need of the batch that made it. */
export interface SubmissionOwner {
  readonly work: Work
  /**
   * Per request: its place in the order of calls, where it is held by itself and not by a merged run; entered in `tracker`, if
   * it has one. `null` if no request is.
   */
  readonly holds: (Hold<Waiter> | null)[] | null
  readonly tracker: Tracker<Waiter> | null
  /** Whether its runs count as submissions of writes: not the zeros of an operation that has a counter of its own. */
  readonly isCounted: boolean
  /** Whether it stands in the list of those that `tell` is to be called of. */
  isToTell: boolean
  firstUnitOf(owner: number): number
  readsOverlap(submission: Submission): boolean
  mayMerge(owner: number): boolean
  isWithdrawn(owner: number): boolean
  release(owners: readonly number[]): Submission[]
  replan(submission: Submission, leaving: Owners, errorOf: (owner: number) => Error): Submission[]
  single(owner: number, start: number, end: number, fua: boolean): Submission[]
  fuaFailed(submission: Submission): void
  fail(owner: number, error: Error): void
  failSubmission(owner: number, errno: number): void
  memoryError(owner: number): Error
  ended(submission: Submission, done: ((owner: number) => void) | null): void
  tell(): void
}

/** Who is told the kernel's answer. */
export interface Lane {
  settled(submission: Submission, result: number): void
}

/** Who waits for a turn: a request of a batch, or an operation that is run as a whole. */
export interface Waiter {
  readonly batch: SubmissionOwner | null
  readonly owner: number
  readonly run?: () => void
}

/** For plans of a part of a batch: per unit of the plan, its number in the batch and what was cut off its start. */
export interface UnitMap {
  unit: Int32Array
  start: Float64Array
}

/** Who hears that a submission has ended, if not the queue's gate. */
export interface Parent {
  /** Whether there is only one request to carry out. */
  readonly isOne: boolean
  childEnded(child: Submission): void
  /** Goes on; returns how many requests had their turn. */
  run(): number
}

export class Submission implements Operation {
  readonly batch: SubmissionOwner
  readonly plan: Plan
  readonly index: number
  readonly units: UnitMap | null
  /** Requests that wait for this submission, in array order: `members[membersFrom]` to `members[membersTo - 1]`. */
  readonly members: Int32Array
  readonly membersFrom: number
  readonly membersTo: number
  claim: Claim | null
  readonly offset: number
  readonly length: number
  readonly read: boolean
  parent: Parent | null = null
  lane: Lane | null = null
  errno = 0
  /** Its place among those in flight; the queue's business. */
  flight: Hold<Submission> | null = null
  /** Whether others were in flight with it whose ranges begin or end where its own does: the kernel may have merged them. */
  hadNeighbour = false
  /** Whether it was handed to the engine before. */
  sent = false

  // The next system call, for the queue.
  op = 0
  file = 0
  place = -1
  flags = 0
  /** Whether it goes through the page cache of a direct file: nothing else may be in flight near it then. */
  alone = false
  /** Whether `fill` made a copy for the first time. */
  bounces = false
  /** Whether `fill` begins to read blocks. */
  readsBlocks = false

  /** The whole blocks that it moves, which direct I/O widens it to; known once `begin` was called. */
  blockStart = 0
  blockEnd = 0
  /** What is not done yet begins here; a multiple of the alignment, or anywhere for buffered I/O. */
  #next = -1
  #alignment = 1
  #stagedAt = -1
  #stagedLength = 0
  /** Blocks still to be read before the staged part can be written: place and length, pair by pair. */
  #blocks: number[] = NO_BLOCKS
  #blocksRead = false
  #loose = false
  #wasStaged = false

  constructor(
    batch: SubmissionOwner,
    plan: Plan,
    index: number,
    units: UnitMap | null,
    members: Int32Array,
    membersFrom: number,
    membersTo: number,
    claim: Claim | null,
  ) {
    this.batch = batch
    this.plan = plan
    this.index = index
    this.units = units
    this.members = members
    this.membersFrom = membersFrom
    this.membersTo = membersTo
    this.claim = claim
    this.offset = plan.offset[index]!
    this.length = plan.length[index]!
    this.read = batch.work.read
  }

  get end(): number {
    return this.offset + this.length
  }

  /** Whether it goes out with FUA. */
  get fua(): boolean {
    return this.plan.fua[this.index] === 1
  }

  /** Bytes from the start on that the kernel has confirmed. */
  get done(): number {
    return Math.max(0, Math.min(this.#next, this.end) - this.offset)
  }

  settle(result: number): void {
    this.lane!.settled(this, result)
  }

  /**
   * Makes up the next system call: gives the engine its vectors and sets `op`, `file`, `place` and `flags`.
   *
   * @param mayStage whether it may take staging memory: others may wait for that
   */
  fill(engine: Engine, staging: Staging, target: Target, mayStage: boolean): Filled {
    if (this.end > target.size) {
      this.errno = this.read ? EIO : ENOSPC
      return Filled.pastEnd
    }
    this.bounces = false
    this.readsBlocks = false
    if (this.#stagedAt < 0) {
      const needs = this.#vectors(engine, target)
      if (needs === Filled.yes) {
        this.#call(this.read ? OP.read : OP.write, this.#next)
        return needs
      }
      engine.rewind()
      if (needs === Filled.lostMemory) return needs
      if (!mayStage || !this.#stage(staging)) return Filled.noMemory
    } else if (!this.read && this.#blocks.length === 0 && this.#isLost()) {
      // Blocks were read meanwhile, or the kernel asked for another try: the memory may have gone since it was looked at.
      this.#unstage(staging)
      return Filled.lostMemory
    }
    engine.begin()
    const at = staging.bytes.byteOffset + this.#stagedAt
    if (this.#blocks.length > 0) {
      const [place, length] = this.#blocks as [number, number]
      engine.vectorIn(staging.region, at + place - this.#next, length)
      this.#call(OP.read, place)
      return Filled.yes
    }
    if (!this.read) this.#copyIn(staging)
    engine.vectorIn(staging.region, at, this.#stagedLength)
    this.#call(this.read ? OP.read : OP.write, this.#next)
    return Filled.yes
  }

  /** Ends what was carried out by another way than the engine: wholly, or not at all. */
  finish(errno: number): void {
    this.errno = errno
    this.#next = errno === 0 ? this.end : this.offset
  }

  /** Finds out which blocks it moves, and by which way. Must be called before `fill`. */
  begin(target: Target): void {
    if (this.#next >= 0) return
    // Reads need no second way: direct I/O reads up to the end of a file.
    const inTail = !this.read && this.offset >= target.tail
    this.alone = inTail
    this.file = inTail ? target.tailFile : target.file
    this.#alignment = target.direct && !inTail ? target.alignment : 1
    const over = overBlock(this.end, this.#alignment)
    this.blockStart = this.offset - overBlock(this.offset, this.#alignment)
    this.blockEnd = over === 0 ? this.end : this.end - over + this.#alignment
    this.#next = this.blockStart
  }

  #call(op: number, place: number): void {
    this.op = op
    this.place = place
    this.flags = op === OP.write && this.fua ? FLAG_DSYNC : 0
  }

  /**
   * Gives the engine the vectors of what is not done yet, if all the memory can be shown to the kernel as it stands. Otherwise
   * tells whether it must be copied (`noMemory`: there is none to show) or is gone; what the engine was given is then void.
   */
  #vectors(engine: Engine, target: Target): typeof Filled.yes | typeof Filled.noMemory | typeof Filled.lostMemory {
    engine.begin()
    const direct = this.#alignment > 1 || (target.direct && this.file === target.file)
    const { firstSegment, segmentLength, segmentStart, segmentUnit } = this.plan
    const { views } = this.batch.work
    const { alignment, memoryAlignment } = target
    const map = this.units
    const end = firstSegment[this.index + 1]!
    let skip = this.#next - this.offset
    // Pieces that follow each other in memory are one vector: the kernel looks up the pages of each anew.
    let run: Region | undefined
    let runStart = 0
    let runEnd = 0
    let staging =
      overBlock(this.offset, this.#alignment) !== 0 ||
      this.blockEnd !== this.end ||
      (this.read && this.batch.readsOverlap(this))
    let buffer: ArrayBufferLike | null = null
    let bufferRegion: Region | undefined
    this.#loose = false
    for (let s = firstSegment[this.index]!; s < end; s++) {
      const planned = segmentUnit[s]!
      if (planned < 0) {
        staging = true
        continue
      }
      const view = views[map === null ? planned : map.unit[planned]!]!
      const start = map === null ? segmentStart[s]! : segmentStart[s]! + map.start[planned]!
      const length = segmentLength[s]!
      const known = placeOf(view)
      let region: Region | undefined
      let from: number
      if (known !== undefined) {
        region = known.region
        from = known.start + start
      } else {
        // Pieces of one buffer often follow each other.
        if (view.buffer !== buffer) {
          buffer = view.buffer
          bufferRegion = regionOf(buffer)
        }
        region = bufferRegion
        from = region === undefined ? start : view.byteOffset + start
      }
      if (region === undefined) {
        if (view.length < this.#lengthOfUnit(s)) return Filled.lostMemory
        if (isShared(view)) {
          staging ||= direct
        } else {
          // The kernel must not write into memory that JavaScript may take away, nor read from what may shrink.
          staging ||= direct || this.read || isResizable(view)
          this.#loose = true
        }
      } else if (direct) {
        staging ||=
          overBlock(length, alignment) !== 0 ||
          ((region !== run || from !== runEnd) && overBlock(from + skip - region.boundary, memoryAlignment) !== 0)
      }
      // Once it is to be copied, the rest is only looked at for memory that is gone.
      if (staging) continue
      if (skip >= length) {
        skip -= length
      } else if (region !== undefined && region === run && from === runEnd) {
        runEnd += length
      } else {
        if (run !== undefined) engine.vectorIn(run.id, runStart, runEnd - runStart)
        run = region
        runStart = from + skip
        runEnd = from + length
        if (region === undefined) engine.vectorOf(view, runStart, length - skip)
        skip = 0
      }
    }
    if (staging) return Filled.noMemory
    if (run !== undefined) engine.vectorIn(run.id, runStart, runEnd - runStart)
    return Filled.yes
  }

  /** Takes staging memory for the next part, and notes which of its blocks must be read before it can be written. */
  #stage(staging: Staging): boolean {
    const length = Math.min(this.blockEnd - this.#next, PIECE_MAX)
    const at = staging.take(length)
    if (at < 0) return false
    this.#stagedAt = at
    this.#stagedLength = length
    this.bounces = !this.#wasStaged
    this.#wasStaged = true
    if (this.read) return true
    this.#loose = false
    this.#blocks = this.#partialBlocks(length)
    this.readsBlocks = this.#blocks.length > 0 && !this.#blocksRead
    this.#blocksRead ||= this.readsBlocks
    return true
  }

  /** Blocks of the next `length` bytes that the submission does not write wholly: place and length, pair by pair. */
  #partialBlocks(length: number): number[] {
    const size = this.#alignment
    if (size === 1) return NO_BLOCKS
    const [from, to] = [this.#next, this.#next + length]
    const blocks: number[] = []
    const add = (place: number): void => {
      const block = place - (place % size)
      if (block >= from && block < to && blocks.at(-2) !== block) blocks.push(block, size)
    }
    if (this.offset > from) add(from)
    const { firstSegment, segmentLength, segmentUnit } = this.plan
    let place = this.offset
    for (let s = firstSegment[this.index]!; s < firstSegment[this.index + 1]!; s++) {
      if (segmentUnit[s]! < 0) add(place)
      place += segmentLength[s]!
    }
    if (this.end < to) add(to - size)
    // Two system calls are cheaper than the bytes between head and tail; more than that are not.
    return blocks.length > 4 ? [from, length] : blocks
  }

  /** Copies the staged part of the run from its owners' memory. */
  #copyIn(staging: Staging): void {
    const { firstSegment, segmentLength, segmentUnit } = this.plan
    const [from, to] = [this.#next, this.#next + this.#stagedLength]
    let place = this.offset
    for (let s = firstSegment[this.index]!; place < to && s < firstSegment[this.index + 1]!; s++) {
      const length = segmentLength[s]!
      const [start, end] = [Math.max(place, from), Math.min(place + length, to)]
      if (start < end && segmentUnit[s]! >= 0) {
        const view = this.#viewOf(s)
        const first = this.#startOf(s) + start - place
        const whole = end - start === view.length
        staging.bytes.set(whole ? view : view.subarray(first, first + end - start), this.#stagedAt + start - from)
      }
      place += length
    }
  }

  /** Copies `length` bytes that were read into the memory of everyone who asked for them. */
  #copyOut(staging: Staging, length: number): void {
    const from = this.#next
    for (let m = this.membersFrom; m < this.membersTo; m++) {
      const { work } = this.batch
      const owner = this.members[m]!
      for (let unit = this.batch.firstUnitOf(owner); unit < this.batch.firstUnitOf(owner + 1); unit++) {
        const place = work.units.offset[unit]!
        const start = Math.max(place, from)
        const end = Math.min(place + work.units.length[unit]!, from + length)
        const view = work.views[unit]!
        // Memory that was taken away meanwhile takes nothing; `lostOwners` tells of it.
        if (start >= end || view.length < end - place) continue
        const at = this.#stagedAt + start - from
        view.set(staging.bytes.subarray(at, at + end - start), start - place)
      }
    }
  }

  /** Takes in what the kernel answered to the last call. */
  advance(result: number, staging: Staging): Outcome {
    if (result === -EINTR || result === -EAGAIN) return this.#again(staging)
    if (result < 0) return this.#end(-result, staging)
    if (this.#blocks.length > 0) return this.#advanceBlocks(result, staging)
    const reached = this.#next + result
    // Direct I/O goes on at whole blocks only: a torn one is done again. A read may end inside the padding of its last block.
    const progress = reached >= this.end ? result : result - (result % this.#alignment)
    // An end of file below what was promised, or a kernel that does nothing and says so: never a loop.
    if (progress === 0) return this.#end(EIO, staging)
    const wasWholePart = this.#stagedAt >= 0 && progress === this.#stagedLength
    if (this.#stagedAt >= 0) {
      if (this.read) this.#copyOut(staging, progress)
      this.#unstage(staging)
    }
    this.#next += progress
    if (this.#next >= this.end) return Outcome.ended
    return wasWholePart ? Outcome.next : Outcome.rest
  }

  #advanceBlocks(result: number, staging: Staging): Outcome {
    const [place, length] = this.#blocks as [number, number]
    const progress = result - (result % this.#alignment)
    if (progress === 0) return this.#end(EIO, staging)
    this.#blocks.splice(0, 2)
    if (progress === length) return Outcome.next
    this.#blocks.unshift(place + progress, length - progress)
    return Outcome.rest
  }

  /** The copy of a write is kept until it is done; a read's memory is needed by nobody meanwhile. */
  #again(staging: Staging): Outcome {
    if (this.read && this.#stagedAt >= 0) this.#unstage(staging)
    return Outcome.again
  }

  #end(errno: number, staging: Staging): Outcome {
    if (this.#stagedAt >= 0) this.#unstage(staging)
    this.#blocks = NO_BLOCKS
    this.errno = errno
    return Outcome.ended
  }

  #unstage(staging: Staging): void {
    staging.give(this.#stagedAt, this.#stagedLength)
    this.#stagedAt = -1
  }

  #isLost(): boolean {
    const { firstSegment, segmentUnit } = this.plan
    for (let s = firstSegment[this.index]!; s < firstSegment[this.index + 1]!; s++) {
      if (segmentUnit[s]! >= 0 && this.#viewOf(s).length < this.#lengthOfUnit(s)) return true
    }
    return false
  }

  /** Requests whose memory was taken away while the submission was on its way, or before it left. */
  lostOwners(): Set<number> {
    const lost = new Set<number>()
    const { work } = this.batch
    for (let m = this.membersFrom; m < this.membersTo; m++) {
      const owner = this.members[m]!
      for (let unit = this.batch.firstUnitOf(owner); unit < this.batch.firstUnitOf(owner + 1); unit++) {
        if (work.views[unit]!.length < work.units.length[unit]!) lost.add(owner)
      }
    }
    return lost
  }

  /** Whether a request of `owners` waits for this submission. */
  concerns(owners: Owners): boolean {
    for (let m = this.membersFrom; m < this.membersTo; m++) {
      if (owners.has(this.members[m]!)) return true
    }
    return false
  }

  /** Whether it holds staging memory, so that `fill` needs none. */
  get isStaged(): boolean {
    return this.#stagedAt >= 0
  }

  /** Whether `lostOwners` must be asked at the end: memory that could be taken away was used by the kernel, or read into. */
  get loose(): boolean {
    return this.#loose
  }

  #unitOf(segment: number): number {
    const unit = this.plan.segmentUnit[segment]!
    return this.units === null ? unit : this.units.unit[unit]!
  }

  #viewOf(segment: number): Uint8Array {
    return this.batch.work.views[this.#unitOf(segment)]!
  }

  #startOf(segment: number): number {
    const start = this.plan.segmentStart[segment]!
    return this.units === null ? start : start + this.units.start[this.plan.segmentUnit[segment]!]!
  }

  #lengthOfUnit(segment: number): number {
    return this.batch.work.units.length[this.#unitOf(segment)]!
  }
}

const NO_BLOCKS: number[] = []

function isShared(view: Uint8Array): boolean {
  return view.buffer instanceof SharedArrayBuffer
}

function isResizable(view: Uint8Array): boolean {
  return (view.buffer as { resizable?: boolean }).resizable === true
}
