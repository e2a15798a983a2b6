// Submissions on their way to the engine: so many at once, the others in order behind them.
//
//   enqueue ──► waiting ──pump──► engine ──settled──► ended ──► gate (what is released joins `waiting`) ──► batch.tell
//                 ▲ front: the rest of short results, what must be tried again, and requests of a failed run, one by one
//
// What waits here holds references only; copies are made when a submission leaves. Results are collected while a drain reads
// them; when it has, more is sent first and users are called back last.
//
// Who can't go does not keep back who can. What must be copied waits in a line of its own while there is no memory to copy
// into, and what needs none goes by; nobody takes memory before those that came first, or small copies would starve large ones.
// Who must not be in flight beside something that is there steps aside and is looked at first the next time; what would be in
// its way as well does not go by, or it might wait for ever. A few may stand aside; when they are many, everybody waits.

import { constants } from 'node:os'
import { folioStart } from './blocks.ts'
import { tellSubmission } from './diagnostics.ts'
import type { SubmissionQueue } from './dispatch.ts'
import type { Engine, Operation } from './engine.ts'
import type { AbortError } from './errors.ts'
import { Fifo, withOne } from './fifo.ts'
import { Flights } from './flights.ts'
import type { Gate } from './gate.ts'
import { Isolation, mustIsolate } from './isolation.ts'
import type { Staging } from './memory.ts'
import { OP } from './native.ts'
import type { Counters } from './stats.ts'
import {
  Filled,
  type Lane,
  Outcome,
  type Owners,
  type Parent,
  type Submission,
  type SubmissionOwner,
  type Target,
} from './submission.ts'

const { EAGAIN, EINTR } = constants.errno

/**
 * Milliseconds until something is tried again that the kernel had no room for. What is in flight may make room sooner, but with
 * each of its completions as a reason to try there would be nothing but trying.
 */
const RETRY_DELAY_MS = 1

/** Each that goes by is compared with those that stand aside. */
const ASIDE_MAX = 32

/** So many are found to need memory that is not there before the rest waits for the next time: a look has to read their vectors. */
const LOOKS_MAX = 256

/** A device that has nothing to do gets the first submission at once, if it is so long, while the others are made up. */
const EARLY_BYTES = 128 << 10

const NOBODY = new Fifo<Submission>()

export class Queue implements SubmissionQueue, Lane {
  readonly #engine: Engine
  readonly #staging: Staging
  readonly #gate: Gate
  readonly #target: Target
  readonly #depth: number
  readonly #ordered: boolean
  readonly #counters: Counters
  readonly #isGone: (() => Promise<boolean>) | null
  readonly #beforeSending: () => void
  readonly #waiting = new Fifo<Submission>()
  /** Those that must be copied and found no memory, in their order. */
  readonly #uncopied = new Fifo<Submission>()
  /** Those that could not go though it was their turn, in their order: near something in flight, or `front` without memory. */
  #aside: Submission[] = []
  /** Those that hold staging memory stand first: they go on with what they have, and others may wait for just that. */
  readonly #front = new Fifo<Submission>()
  /** What the kernel had no room for, until the timer runs out; what comes meanwhile may pass it. */
  #later: Submission[] = []
  #laterFlushes: ((result: number) => void)[] = []
  #flushes: ((result: number) => void)[] = []
  /** Flushes that have ended. */
  #flushed: (() => void)[] = []
  readonly #flights = new Flights()
  #singlesInFlight = 0
  #ended: Submission[] = []
  /** Batches with something to answer, each once. An array: the tables of a set that is cleared again and again keep each
   * other alive, with all that was in them, until the next full collection. */
  #toTell: SubmissionOwner[] = []
  #collecting = false
  #retrying = false
  #settlingSoon = false
  /** Submissions that failed, while it is asked whether there is a device left. */
  #failed: Submission[] = []
  /** For when there may be room again. Whose results were in the same drain sends in a moment anyway. */
  readonly #pumpAgain = (): void => {
    if (!this.#collecting) this.pump()
  }
  readonly #send = (): void => this.#sendMore()
  readonly #tell = (): void => this.#tellAll()

  /**
   * @param staging memory for copies
   * @param depth submissions in flight at once
   * @param ordered whether overlaps in flight would be a mistake of ours
   * @param isGone asks whether there is no device any more; `null` for a file, which stays
   * @param beforeSending called before anything is sent; it may withdraw what waits
   */
  constructor(
    engine: Engine,
    staging: Staging,
    gate: Gate,
    target: Target,
    depth: number,
    ordered: boolean,
    counters: Counters,
    isGone: (() => Promise<boolean>) | null,
    beforeSending: () => void,
  ) {
    this.#engine = engine
    this.#staging = staging
    this.#gate = gate
    this.#target = target
    this.#depth = depth
    this.#ordered = ordered
    this.#counters = counters
    this.#isGone = isGone
    this.#beforeSending = beforeSending
  }

  /** Puts submissions behind those that wait; `pump` sends them. */
  enqueue(submissions: readonly Submission[]): void {
    for (const submission of submissions) {
      submission.lane = this
      this.#waiting.push(submission)
    }
  }

  /** Starts an fdatasync: at once if there is a free slot. It is not a submission and does not count against the depth. */
  flush(done: (result: number) => void): void {
    this.#flushes.push(done)
    this.pump()
  }

  /** Sends what may be in flight, in one native call, or two for long ones where the device had nothing to do. */
  pump(): void {
    this.#beforeSending()
    const again = this.#aside.length === 0 ? NOBODY : new Fifo(this.#aside)
    if (again !== NOBODY) this.#aside = []
    let hasMemory = true
    let looks = 0
    for (;;) {
      const line = this.#flights.count < this.#depth && looks < LOOKS_MAX ? this.#nextLine(again, hasMemory) : null
      if (line === null && this.#flushes.length === 0) break
      if (!this.#engine.hasSlot()) {
        this.#engine.stall(this.#pumpAgain)
        break
      }
      if (line === null || this.#flushes.length > 0) {
        this.#engine.begin()
        this.#engine.add(this.#flushOperation(this.#flushes.shift()!), OP.fdatasync, this.#target.file, 0, 0)
        continue
      }
      const submission = line.first()!
      submission.begin(this.#target)
      const mayGo = !this.#mustKeepAway(submission)
      const filled = mayGo ? submission.fill(this.#engine, this.#staging, this.#target, hasMemory) : null
      if (filled === Filled.noMemory && hasMemory) {
        hasMemory = false
        this.#engine.stall(this.#pumpAgain)
        if (line === this.#uncopied) continue
      }
      line.take()
      if (filled === Filled.yes) this.#hand(submission)
      else if (filled === Filled.pastEnd) this.#endSoon(submission)
      else if (filled === Filled.lostMemory) this.#replaceLost(submission)
      else if (submission.isStaged) this.#aside.unshift(submission)
      else if (filled === null || line !== this.#waiting) this.#aside.push(submission)
      else {
        this.#uncopied.push(submission)
        looks++
      }
    }
    for (let left = again.take(); left !== undefined; left = again.take()) this.#aside.push(left)
    this.#engine.commit()
  }

  /** The line whose first has its turn; `null` if nobody has. `again` are those who stood aside the last time. */
  #nextLine(again: Fifo<Submission>, hasMemory: boolean): Fifo<Submission> | null {
    const front = this.#front.first()
    if (front?.isStaged === true) return this.#front
    if (this.#aside.length >= ASIDE_MAX) return null
    if (again.length > 0) return again
    if (front !== undefined) return this.#front
    if (hasMemory && this.#uncopied.length > 0) return this.#uncopied
    return this.#waiting.length > 0 ? this.#waiting : null
  }

  /** Hands over a submission whose system call was made up. */
  #hand(submission: Submission): void {
    this.#count(submission)
    this.#meet(submission, this.#flights.add(submission))
    if (submission.parent !== null) this.#singlesInFlight++
    this.#engine.add(submission, submission.op, submission.file, submission.place, submission.flags)
    if (this.#flights.count === 1 && submission.length >= EARLY_BYTES) this.#engine.commit()
  }

  #flushOperation(done: (result: number) => void): Operation {
    return {
      settle: (result) => {
        if (result === -EINTR || result === -EAGAIN) {
          this.#counters.resubmitted++
          if (result === -EINTR) this.#flushes.push(done)
          else this.#laterFlushes.push(done)
          this.#collect()
          return
        }
        this.#flushed.push(() => done(result))
        this.#collect()
      },
    }
  }

  /** The kernel's answer to a submission; called while a drain reads results. */
  settled(submission: Submission, result: number): void {
    this.#land(submission)
    const outcome = submission.advance(result, this.#staging)
    if (outcome === Outcome.ended) {
      this.#ended = withOne(this.#ended, submission)
    } else {
      if (outcome !== Outcome.next) this.#counters.resubmitted++
      if (result === -EAGAIN) this.#later.push(submission)
      else if (submission.isStaged) this.#front.pushFirst(submission)
      else this.#front.push(submission)
    }
    this.#collect()
  }

  #land(submission: Submission): void {
    this.#flights.remove(submission)
    if (submission.parent !== null) this.#singlesInFlight--
  }

  /**
   * Looks at a submission beside those in flight near it. The kernel keeps no order among them: overlaps would be decided by
   * chance, and of two that rewrite one block one would be lost, so there must be none. Those that touch it may merge, and fail
   * as one.
   */
  #meet(submission: Submission, near: readonly Submission[]): void {
    for (const other of near) {
      if (other.blockEnd === submission.blockStart || submission.blockEnd === other.blockStart) {
        if (!this.#target.kernelMerges || isSameRequest(other, submission)) continue
        other.hadNeighbour = true
        submission.hadNeighbour = true
      } else if (this.#ordered && inTheWay(other, submission)) {
        throw new Error(
          `multiwrite: ${submission.offset}+${submission.length} would overlap ${other.offset}+${other.length} in flight`,
        )
      }
    }
  }

  /** Whether a submission can't be in flight beside what is, or would be in the way of one that stands aside for that. */
  #mustKeepAway(submission: Submission): boolean {
    const { alone } = this.#flights
    if (alone !== null && sharesFolio(alone, submission)) return true
    if (submission.alone && this.#flights.reach(folioStart(submission.offset))) return true
    if (submission.parent !== null || this.#singlesInFlight > 0) {
      for (const other of this.#flights.near(submission)) if (mayFailTogether(other, submission)) return true
    }
    // Whoever holds memory may be waited for by just those.
    if (submission.isStaged) return false
    for (const other of this.#aside) {
      if (mayFailTogether(other, submission) || sharesFolio(other, submission)) return true
    }
    return false
  }

  #collect(): void {
    if (this.#collecting) return
    this.#collecting = true
    this.#engine.afterDrain(this.#send, this.#tell)
  }

  #sendMore(): void {
    this.#collecting = false
    const ended = this.#ended
    this.#ended = []
    for (const submission of ended) this.#conclude(submission)
    if (this.#flushed.length > 0) for (const done of this.#flushed.splice(0)) done()
    if (!this.#retrying && this.#later.length + this.#laterFlushes.length > 0) {
      this.#retrying = true
      setTimeout(() => this.#retry(), RETRY_DELAY_MS)
    }
    this.pump()
  }

  #retry(): void {
    this.#retrying = false
    for (const submission of this.#later) {
      if (submission.isStaged) this.#front.pushFirst(submission)
      else this.#front.push(submission)
    }
    this.#flushes = this.#flushes.concat(this.#laterFlushes)
    this.#later = []
    this.#laterFlushes = []
    this.pump()
  }

  #conclude(submission: Submission): void {
    const { parent } = submission
    // The page cache reports a lost page to whoever syncs first, and then forgets it. What never left has not asked it.
    const cached = (!this.#target.direct || submission.alone) && submission.place >= 0
    if (submission.errno !== 0 && submission.fua && cached) submission.batch.fuaFailed(submission)
    if (parent !== null) {
      parent.childEnded(submission)
      this.#runSingles(parent)
    } else if (mustIsolate(submission)) {
      this.#gate.lock(submission)
      if (this.#isGone === null) this.#isolate(submission)
      else this.#isolateUnlessGone(submission, this.#isGone)
    } else {
      this.#finish(submission)
    }
  }

  #isolate(submission: Submission): void {
    const isolation = new Isolation(
      submission,
      (singles) => this.#sendFirst(singles),
      (failed) => this.#finish(failed),
    )
    this.#runSingles(isolation)
  }

  /** A device that went away has size 0, and no errno of its own: to carry out a long batch singly would be to no avail. */
  #isolateUnlessGone(submission: Submission, isGone: () => Promise<boolean>): void {
    if (this.#failed.push(submission) > 1) return
    void isGone().then((gone) => {
      const failed = this.#failed
      this.#failed = []
      for (const one of failed) {
        if (gone) this.#finish(one)
        else this.#isolate(one)
      }
      this.pump()
      this.#tellAll()
    })
  }

  #runSingles(isolation: Parent): void {
    const turns = isolation.run()
    // A run of one request, which the kernel may have merged with others, is tried again rather than taken apart.
    if (isolation.isOne) this.#counters.resubmitted += turns
    else this.#counters.isolated += turns
  }

  #finish(submission: Submission): void {
    this.enqueue(this.#gate.ended(submission))
    const { batch } = submission
    if (batch.isToTell) return
    batch.isToTell = true
    this.#toTell = withOne(this.#toTell, batch)
  }

  #sendFirst(submissions: readonly Submission[]): void {
    for (const submission of submissions) {
      submission.lane = this
      this.#front.push(submission)
    }
  }

  #tellAll(): void {
    const batches = this.#toTell
    this.#toTell = []
    for (const batch of batches) {
      batch.isToTell = false
      batch.tell()
    }
  }

  /** Memory was taken away before the submission left: what is left of it goes instead, before all that wait. */
  #replaceLost(submission: Submission): void {
    const { batch } = submission
    const lost = submission.lostOwners()
    if (submission.parent !== null) {
      for (const owner of lost) batch.fail(owner, batch.memoryError(owner))
      this.#endSoon(submission)
      return
    }
    this.#sendFirst(this.#replace(submission, lost, (owner) => batch.memoryError(owner)))
  }

  /** Withdraws requests of batches from the submissions that were never sent; what is left of those is planned anew. */
  withdraw(all: ReadonlyMap<SubmissionOwner, ReadonlyMap<number, AbortError>>): void {
    const keep = (submission: Submission): Submission | Submission[] => {
      const leaving = all.get(submission.batch)
      return leaving === undefined || submission.sent || submission.parent !== null || !submission.concerns(leaving)
        ? submission
        : this.#replace(submission, leaving, (owner) => leaving.get(owner)!)
    }
    this.#waiting.replaceEach(keep)
    this.#uncopied.replaceEach(keep)
    this.#aside = this.#aside.flatMap(keep)
    this.#front.replaceEach(keep)
  }

  #replace(submission: Submission, leaving: Owners, errorOf: (owner: number) => Error): Submission[] {
    const rest = submission.batch.replan(submission, leaving, errorOf)
    for (const one of rest) one.lane = this
    this.#endSoon(submission)
    return rest
  }

  /** Ends what never left. Not inside the caller's call: answers come from the event loop. */
  #endSoon(submission: Submission): void {
    this.#ended.push(submission)
    if (this.#settlingSoon) return
    this.#settlingSoon = true
    setImmediate(() => {
      this.#settlingSoon = false
      this.#sendMore()
      this.#tellAll()
    })
  }

  #count(submission: Submission): void {
    if (submission.parent !== null) return
    if (submission.readsBlocks) this.#counters.rmw++
    if (submission.bounces) this.#counters.bounced++
    if (submission.sent) return
    submission.sent = true
    if (!submission.batch.isCounted) return
    const counters = submission.read ? this.#counters.read : this.#counters.write
    counters.submissions++
    counters.bytes += submission.length
    tellSubmission(this.#counters, submission)
  }
}

/**
 * Whether one of two goes through the page cache of a direct file, near the other: the kernel can't drop a folio from below a
 * direct write while the page cache dirties it, and calls that lost data.
 */
function sharesFolio(a: Submission, b: Submission): boolean {
  return (a.alone && b.blockEnd > folioStart(a.offset)) || (b.alone && a.blockEnd > folioStart(b.offset))
}

/** A request that is carried out singly must not touch anything in flight: the kernel would merge them again. */
function mayFailTogether(a: Submission, b: Submission): boolean {
  if (a.parent === null && b.parent === null) return false
  return a.blockEnd === b.blockStart || b.blockEnd === a.blockStart
}

/** Whether two submissions must not be in flight together. A write moves whole blocks; a read needs its own bytes only. */
function inTheWay(a: Submission, b: Submission): boolean {
  if (a.read && b.read) return false
  const [startA, endA] = a.read ? [a.offset, a.end] : [a.blockStart, a.blockEnd]
  const [startB, endB] = b.read ? [b.offset, b.end] : [b.blockStart, b.blockEnd]
  return startA < endB && startB < endA
}

/** Whether both are parts of one request: then they fail together in any case. */
function isSameRequest(a: Submission, b: Submission): boolean {
  if (a.batch !== b.batch || a.membersTo - a.membersFrom !== 1 || b.membersTo - b.membersFrom !== 1) return false
  return a.members[a.membersFrom] === b.members[b.membersFrom]
}
