// The measuring loop: keeps a target busy and times every request. One per thread.
//
//   issue ──► call ──► (device) ──► callback: done ──► issue ...
//     │         │                        │
//   started  submitted                  done          the stamps, by one clock
//
// Closed loop: as many requests are in flight as the depth says; whenever one is answered the next one starts. Open loop
// (a fixed rate): request k is due at k / rate, whatever the target does. If it can't start then, because the depth is reached
// or this thread is late, its latency counts from when it was due all the same; a slow target can't hide its queue by slowing
// down the one who asks (coordinated omission).
//
// Stamps: `started` is taken just before the call that hands requests over, `submitted` when it has returned, `done` first thing
// in the request's own callback. slat = submitted - started, clat = done - submitted, lat = done - started, or in an open loop
// done - due. So clat and lat include what it takes to wake this thread and to reach JavaScript: that is what a caller waits.
//
// For a request nothing is allocated here: its object, its buffer and its stamps are those of its slot, made before the start.

import { clock } from './clock.ts'
import { Histogram } from './histogram.ts'
import { Offsets, Random } from './offsets.ts'
import { checkBlock, fillBlock, type Mismatch, WORD_BYTES } from './pattern.ts'
import { type DirectionData, type Failed, lessSubmissions, type Measured, type Spent } from './results.ts'
import { Series } from './series.ts'
import { type SpentAt, spentAt, spentSince } from './spent.ts'
import type { Request, Submissions, Target } from './target.ts'

/** A load as one thread carries it out. */
export interface Load {
  bs: number
  /** Blocks of `bs` bytes, from the start of the target. */
  blocks: number
  random: boolean
  /** Percentage of reads; 0: writes only. */
  readPercent: number
  depth: number
  batch: number
  batchComplete: number
  /** Requests to make; infinite if the time ends the run. */
  requests: number
  runtime_ns: number
  ramp_ns: number
  /** Requests a second; `null`: closed loop. */
  rate: number | null
  /** A flush after so many writes; 0: none. */
  flushEvery: number
  /** Of offsets. */
  seed: number
  /** Of contents; `null`: not verified. */
  verifySeed: number | null
}

/** What other threads see while the loop runs; plain stores, as only the order of magnitude matters. */
export const LIVE = { reads: 0, writes: 1, bytes: 2, length: 3 } as const

/** A timer may be so much late; from here on the event loop is kept turning instead. */
const SPIN_NS = 3e6

class Slot implements Request {
  offset = 0
  read = false
  /** The block's generation that a read must find; 0: unknown. */
  generation = 0
  readonly index: number
  readonly data: Buffer
  readonly into: Buffer
  readonly words: Uint32Array
  /** For calls of a single request. */
  readonly alone: readonly [Slot]
  readonly #loop: Loop

  constructor(loop: Loop, index: number, memory: Buffer) {
    this.#loop = loop
    this.index = index
    this.data = memory
    this.into = memory
    this.words = new Uint32Array(memory.buffer, memory.byteOffset, Math.floor(memory.length / WORD_BYTES))
    this.alone = [this]
  }

  callback(error: Error | null): void {
    this.#loop.done(this, error)
  }
}

function newDirection(): { bytes: number; slat: Histogram; clat: Histogram; lat: Histogram } {
  return { bytes: 0, slat: new Histogram(), clat: new Histogram(), lat: new Histogram() }
}

export class Loop {
  readonly #target: Target
  readonly #load: Load
  readonly #stop: Int32Array
  readonly #live: Float64Array
  readonly #offsets: Offsets
  readonly #random: Random
  readonly #slots: Slot[] = []
  readonly #free: Slot[] = []
  // Stamps by slot, in ns.
  readonly #due: Float64Array
  readonly #started: Float64Array
  readonly #submitted: Float64Array
  readonly #read = newDirection()
  readonly #write = newDirection()
  readonly #sync = new Histogram()
  readonly #wait = new Histogram()
  readonly #series = new Series()
  readonly #depths: Float64Array
  readonly #submits: Float64Array
  readonly #completes: Float64Array
  readonly #interval_ns: number
  readonly #turnEnds = (): void => this.#turnEnded()
  readonly #tick = (): void => this.#ticked()
  /** Numbers of the last writes of the blocks. */
  readonly generations: Uint32Array | null
  #generation = 0
  #writesSinceFlush = 0
  #issued = 0
  #inFlight = 0
  #begin = 0
  #deadline = 0
  /** When what counts begins; what is done before is forgotten. */
  #countFrom = 0
  #counting = false
  #counted = false
  /**
   * After a ramp, what counts begins with the first answer, which is not counted, and ends with the first one after the time or
   * the run's early end, which is: some devices answer many at once, and one time more of those would be a rate that nobody
   * has. Not so with a fixed rate, which is known: what comes after the ramp is counted, however late it is.
   */
  readonly #endsWithAnswer: boolean
  #lastDone = 0
  #stopping = false
  #finished: (() => void) | null = null
  #doneThisTurn = 0
  #pacing = false
  #submissionsBefore: Submissions | null = null
  #submissions: Submissions | null = null
  #spentBefore: SpentAt | null = null
  #spent: Spent | null = null
  #failed: Failed | null = null
  #unstarted = 0
  mismatch: Mismatch | null = null
  #checkedBytes = 0

  constructor(target: Target, load: Load, stop: Int32Array, live: Float64Array) {
    const { depth, bs, blocks, seed, rate } = load
    this.#target = target
    this.#load = load
    this.#stop = stop
    this.#live = live
    this.#offsets = new Offsets(blocks, load.random, seed)
    this.#random = new Random(seed ^ 0x5bd1e995)
    this.#due = new Float64Array(depth)
    this.#started = new Float64Array(depth)
    this.#submitted = new Float64Array(depth)
    this.#depths = new Float64Array(depth + 1)
    this.#submits = new Float64Array(depth + 1)
    this.#completes = new Float64Array(depth + 1)
    this.#interval_ns = rate === null ? 0 : 1e9 / rate
    this.#endsWithAnswer = load.ramp_ns > 0 && rate === null
    this.generations = load.verifySeed !== null && load.readPercent < 100 ? new Uint32Array(blocks) : null
    // Not zeros: some devices and file systems make something else of those.
    const fill = new Random(seed)
    for (let index = 0; index < depth; index++) {
      const memory = target.alloc(bs)
      for (let at = 0; at + 4 <= bs; at += 4) memory.writeUInt32LE(fill.next(), at)
      this.#slots.push(new Slot(this, index, memory))
    }
    // The first slot is the first to be used.
    this.#free.push(...[...this.#slots].reverse())
  }

  /** Runs until the time is over, the requests are made, `stop` is set, or something fails; and until all are answered. */
  run(): Promise<void> {
    const { runtime_ns, ramp_ns } = this.#load
    return new Promise((resolve) => {
      this.#finished = resolve
      this.#begin = clock()
      this.#countFrom = this.#begin + ramp_ns
      this.#deadline = this.#endsWithAnswer ? Number.POSITIVE_INFINITY : this.#countFrom + runtime_ns
      if (ramp_ns === 0) this.#startCounting()
      this.#ticked()
    })
  }

  /** What has come out, once it has run. */
  get measured(): Measured {
    const elapsed_ms = Math.max(0, this.#lastDone - this.#countFrom) / 1e6
    const data = ({ bytes, slat, clat, lat }: ReturnType<typeof newDirection>): DirectionData => {
      return { bytes, slat: slat.data, clat: clat.data, lat: lat.data }
    }
    return {
      read: data(this.#read),
      write: data(this.#write),
      sync: this.#sync.data,
      wait: this.#wait.data,
      series: this.#series.data,
      elapsed_ms,
      spent: this.#spent!,
      depths: this.#depths,
      submits: this.#submits,
      completes: this.#completes,
      submissions: this.#submissions,
      unstarted: this.#unstarted,
      failed: this.#failed,
      verified: this.#checkedBytes === 0 ? null : { bytes: this.#checkedBytes, mismatch: this.mismatch },
    }
  }

  /** A request is answered. */
  done(slot: Slot, error: Error | null): void {
    const now = clock()
    this.#inFlight--
    if (this.#doneThisTurn++ === 0) RESOLVED.then(this.#turnEnds)
    if (error !== null) this.#fail(error)
    else this.#count(slot, now)
    if (slot.read && this.#load.verifySeed !== null && error === null) this.#check(slot)
    this.#free.push(slot)
    // A call for each is what was asked for, so it need not wait for the others of this wake-up.
    if (this.#load.batch === 1) this.#goOn(now)
  }

  /** All that one wake-up has to tell is told. */
  #turnEnded(): void {
    if (!this.#counted) this.#completes[Math.min(this.#doneThisTurn, this.#load.depth)]!++
    this.#doneThisTurn = 0
    if (this.#load.batch > 1) this.#goOn(clock())
  }

  #count(slot: Slot, now: number): void {
    if (this.#counted) return
    const ends = this.#endsWithAnswer && (now >= this.#deadline || this.#stopping || this.#stop[0] !== 0)
    if (!this.#counting && (now < this.#countFrom || ends)) return
    this.#lastDone = now
    if (!this.#counting) {
      this.#startCounting()
      if (this.#endsWithAnswer) {
        this.#countFrom = now
        this.#deadline = now + this.#load.runtime_ns
        return
      }
    }
    if (ends) this.#endCounting()
    const { index, read } = slot
    const { bs } = this.#load
    const started = this.#started[index]!
    const submitted = this.#submitted[index]!
    const lat = now - (this.#interval_ns === 0 ? started : this.#due[index]!)
    const direction = read ? this.#read : this.#write
    direction.bytes += bs
    direction.slat.record(submitted - started)
    direction.clat.record(now - submitted)
    direction.lat.record(lat)
    if (this.#interval_ns !== 0) this.#wait.record(started - this.#due[index]!)
    this.#series.record((now - this.#countFrom) / 1e6, read, bs, lat)
    this.#live[read ? LIVE.reads : LIVE.writes]!++
    this.#live[LIVE.bytes]! += bs
  }

  #startCounting(): void {
    this.#counting = true
    this.#submissionsBefore = this.#target.submissions()
    this.#spentBefore = spentAt()
    for (const counts of [this.#depths, this.#submits, this.#completes]) counts.fill(0)
  }

  #endCounting(): void {
    this.#counted = true
    const after = this.#target.submissions()
    this.#submissions = after && this.#submissionsBefore && lessSubmissions(after, this.#submissionsBefore)
    this.#spent = spentSince(this.#spentBefore ?? spentAt())
  }

  #goOn(now: number): void {
    if (now >= this.#deadline || this.#stop[0] !== 0) this.#stopAt(now)
    if (!this.#stopping) this.#issue(now)
    if (this.#interval_ns !== 0) this.#pace()
    if (this.#inFlight === 0 && (this.#stopping || this.#issued >= this.#load.requests)) this.#finish()
  }

  #ticked(): void {
    this.#pacing = false
    this.#goOn(clock())
  }

  /** Starts what may be started. */
  #issue(now: number): void {
    const { batch, batchComplete, requests, flushEvery } = this.#load
    for (;;) {
      const open = this.#interval_ns !== 0
      const left = Math.min(requests - this.#issued, open ? this.#dueBy(now) : Number.POSITIVE_INFINITY)
      const count = Math.min(batch, this.#free.length, left)
      if (count <= 0 || (!open && count < Math.min(batchComplete, left))) return
      if (flushEvery > 0 && this.#writesSinceFlush >= flushEvery) {
        this.#flush()
        continue
      }
      if (count === 1) this.#issueOne()
      else this.#issueSeveral(flushEvery > 0 ? Math.min(count, flushEvery - this.#writesSinceFlush) : count)
      this.#depths[this.#inFlight]!++
    }
  }

  #issueOne(): void {
    const slot = this.#take()
    this.#submits[1]!++
    this.#started[slot.index] = clock()
    if (slot.read) this.#target.read(slot.alone)
    else this.#target.write(slot.alone)
    this.#submitted[slot.index] = clock()
  }

  #issueSeveral(count: number): void {
    const reads: Slot[] = []
    const writes: Slot[] = []
    for (let i = 0; i < count; i++) {
      const slot = this.#take()
      if (slot.read) reads.push(slot)
      else writes.push(slot)
    }
    this.#submits[count]!++
    const started = clock()
    for (const slot of reads) this.#started[slot.index] = started
    for (const slot of writes) this.#started[slot.index] = started
    if (reads.length > 0) this.#target.read(reads)
    if (writes.length > 0) this.#target.write(writes)
    const submitted = clock()
    for (const slot of reads) this.#submitted[slot.index] = submitted
    for (const slot of writes) this.#submitted[slot.index] = submitted
  }

  /** The next request, in a free slot. */
  #take(): Slot {
    const { bs, readPercent, verifySeed } = this.#load
    const slot = this.#free.pop()!
    const block = this.#offsets.next()
    slot.offset = block * bs
    slot.read = readPercent === 100 || (readPercent > 0 && this.#random.next() % 100 < readPercent)
    this.#due[slot.index] = this.#begin + this.#issued * this.#interval_ns
    this.#issued++
    this.#inFlight++
    if (!slot.read) this.#writesSinceFlush++
    if (verifySeed !== null) this.#prepareContent(slot, block, verifySeed)
    return slot
  }

  #prepareContent(slot: Slot, block: number, seed: number): void {
    const { generations } = this
    if (slot.read) {
      slot.generation = generations === null ? 0 : generations[block]!
    } else {
      this.#generation = (this.#generation + 1) >>> 0 || 1
      generations![block] = this.#generation
      fillBlock(slot.words, slot.offset, seed, this.#generation)
    }
  }

  /** A read's content: what the last write before it has left, or in a load without writes what an earlier run has. */
  #check(slot: Slot): void {
    if (slot.generation === 0 && this.generations !== null) return
    this.#checkedBytes += this.#load.bs
    const expected = this.generations === null ? null : slot.generation
    const mismatch = checkBlock(slot.words, slot.offset, this.#load.verifySeed!, expected)
    if (mismatch === null || (this.mismatch !== null && this.mismatch.offset <= mismatch.offset)) return
    this.mismatch = mismatch
    this.#stopping = true
  }

  /** A flush has a place in the queue, like a request. */
  #flush(): void {
    const slot = this.#free.pop()!
    this.#writesSinceFlush = 0
    this.#inFlight++
    const started = clock()
    const ended = (error: Error | null): void => {
      const now = clock()
      this.#inFlight--
      if (!this.#counted) this.#lastDone = now
      if (error !== null) this.#fail(error)
      else if (this.#counting && !this.#counted) this.#sync.record(now - started)
      this.#free.push(slot)
      this.#goOn(now)
    }
    this.#target.flush().then(() => ended(null), ended)
  }

  #fail(error: Error): void {
    this.#failed ??= { message: error.message, code: (error as NodeJS.ErrnoException).code ?? '' }
    this.#stopping = true
  }

  /** Requests that are due and not started; what would be due when the time is over is not any more. */
  #dueBy(now: number): number {
    return Math.floor((Math.min(now, this.#deadline - 1) - this.#begin) / this.#interval_ns) + 1 - this.#issued
  }

  /** Comes back when the next request is due. Timers are coarse, so just before that the event loop keeps turning. */
  #pace(): void {
    // With all slots in flight the next answer comes back by itself.
    if (this.#pacing || this.#stopping || this.#issued >= this.#load.requests || this.#free.length === 0) return
    this.#pacing = true
    const wait = this.#begin + this.#issued * this.#interval_ns - clock()
    if (wait > SPIN_NS) setTimeout(this.#tick, Math.min(100, (wait - SPIN_NS) / 1e6))
    else setImmediate(this.#tick)
  }

  #stopAt(now: number): void {
    if (this.#stopping) return
    this.#stopping = true
    if (this.#interval_ns !== 0)
      this.#unstarted = Math.max(0, Math.min(this.#dueBy(now), this.#load.requests - this.#issued))
  }

  #finish(): void {
    const finished = this.#finished
    if (finished === null) return
    this.#finished = null
    if (!this.#counted) this.#endCounting()
    finished()
  }
}

/** A promise job of it is cheaper than `queueMicrotask`, which makes an async resource. */
const RESOLVED = Promise.resolve()
