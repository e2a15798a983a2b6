// One call's requests from admission to answer: who owns what, which submissions each request still waits for, and who hears
// of which outcome.
//
// A batch is released in groups: all its requests at once where nothing is in their way, else each request when the last
// earlier operation that it overlaps has ended. A group is planned when it is released, so a plan never holds a free request
// behind a blocked one. If memory of a request is found to be gone before a submission left, the rest of that submission is
// planned anew.
//
// `pending` counts the submissions that a request waits for; with the last one it is answered, exactly once. Answers are
// given by `answer` in the drain's last phase, never while results are still being read.

import { constants } from 'node:os'
import type { Durability, Ticket } from './durability.ts'
import { BlockError } from './errors.ts'
import { withOne } from './fifo.ts'
import type { MergeMode } from './options.ts'
import { ascending, float64s, int32s, uint8s } from './planner/arrays.ts'
import { planMerged } from './planner/merge.ts'
import { planSeparately } from './planner/separate.ts'
import type { Limits, MayFill, Plan, Units } from './planner/units.ts'
import type { Work } from './requests.ts'
import type { Counters } from './stats.ts'
import { type Claim, type Owners, Submission, type SubmissionOwner, type UnitMap, type Waiter } from './submission.ts'
import type { Hold, Tracker } from './tracker.ts'

const { EFAULT } = constants.errno

/** Where a request stands. */
const State = { waiting: 0, released: 1, withdrawn: 2, ended: 3 } as const

/** How a device has its batches planned, and what its errors say of it. */
export interface BatchContext {
  readonly path: string
  readonly engine: string
  readonly mode: MergeMode
  /** What holds now: where the tail of a file begins can change. */
  readonly limits: (read: boolean) => Limits
  /** Whether gaps between writes may be filled; `null`: never. */
  readonly mayFill: MayFill | null
  readonly counters: Counters
  /** Where the batch has a place among the operations, and a failed write with FUA latches. */
  readonly durability: Pick<Durability, 'end' | 'failure' | 'latch'>
}

/** Who made a batch. */
export interface BatchListener {
  /** Called once per request. */
  answer(owner: number, error: Error | null): void
  /** Called after the last answer. */
  finished(): void
}

export class Batch implements SubmissionOwner {
  readonly work: Work
  readonly #context: BatchContext
  readonly #listener: BatchListener
  readonly #ticket: Ticket | null
  /** Per request: submissions that it waits for; and behind them all, per request, where it stands. */
  readonly #pending: Int32Array
  /** Per request: the first failure among its submissions. */
  #errors: Map<number, Error> | null = null
  /** Per request: its place in the order of calls, where it is held by itself and not by a merged run. */
  holds: (Hold<Waiter> | null)[] | null = null
  /** What its holds are entered in, where that is not the device's: order inside the batch only. */
  tracker: Tracker<Waiter> | null = null
  isToTell = false
  isCounted = true
  /** Requests not answered yet. */
  #open: number
  #answered: number[] = []
  #isFinished = false
  #firstUnits: Int32Array | null = null
  /** Per request: 1 where it goes out with FUA although it does not ask for it. */
  #raised: Uint8Array | null = null
  /** Whether requests overlap that were planned together. */
  #overlaps = false

  /** @param ticket its place among the operations; `null` for a part of an operation that has one */
  constructor(work: Work, context: BatchContext, listener: BatchListener, ticket: Ticket | null) {
    this.work = work
    this.#context = context
    this.#listener = listener
    this.#ticket = ticket
    this.#pending = int32s(2 * work.count)
    this.#open = work.count
  }

  /** Whether all requests can be planned as one: none stands for itself, or it is the only one. */
  get mergeable(): boolean {
    return this.work.count === 1 || (this.#context.mode === 'full' && this.work.noMerge === null)
  }

  /** Whether no request may share a submission with another. */
  get mergesNone(): boolean {
    return this.#context.mode !== 'full'
  }

  /** Whether a request may share a submission with others of its batch. */
  mayMerge(owner: number): boolean {
    return this.#context.mode === 'full' && this.work.noMerge?.[owner] !== 1
  }

  /** Has a request go out with FUA that did not ask for it. */
  raiseFua(owner: number): void {
    this.#raised ??= uint8s(this.work.count)
    this.#raised[owner] = 1
  }

  ownerOf(unit: number): number {
    return this.work.owner === null ? unit : this.work.owner[unit]!
  }

  /** Units of a request are those from this one up to the next request's first. */
  firstUnitOf(owner: number): number {
    if (this.work.owner === null) return owner
    this.#firstUnits ??= firstUnits(this.work.owner, this.work.units.count, this.work.count)
    return this.#firstUnits[owner]!
  }

  /** Whether a submission reads bytes that more than one unit asked for. */
  readsOverlap(submission: Submission): boolean {
    if (!this.#overlaps) return false
    let wanted = 0
    for (let m = submission.membersFrom; m < submission.membersTo; m++) {
      const owner = submission.members[m]!
      const start = Math.max(this.work.offset[owner]!, submission.offset)
      wanted += Math.min(this.work.offset[owner]! + this.work.length[owner]!, submission.end) - start
    }
    return wanted > submission.length
  }

  /** The plan of the whole batch; only for batches that are `mergeable`. */
  planAll(): Plan {
    return planMerged(this.work.units, this.#context.limits(this.work.read), this.#mayFill)
  }

  /** The plan of the whole batch with its requests apart: of one that merges none, or of one request. */
  planAllSeparately(): Plan {
    const { units, owner, read } = this.work
    return planSeparately(units, owner, this.#context.limits(read), this.#context.mode !== 'off')
  }

  /** The submissions of a plan of the whole batch. `claimOf` is asked once per submission. */
  releaseAll(plan: Plan, claimOf: (index: number) => Claim | null): Submission[] {
    this.#pending.fill(State.released, this.work.count)
    this.#countOverlap(this.work.units, plan)
    return this.#submissions(plan, null, null, claimOf)
  }

  /** The same for a plan in which requests are apart. */
  releaseSeparately(plan: Plan, claimOf: (index: number) => Claim | null): Submission[] {
    this.#pending.fill(State.released, this.work.count)
    return this.#submissionsOfOne(plan, null, claimOf)
  }

  /**
   * Plans a group of requests, in array order; none of them overlaps another unless both may be merged. Where the group is held
   * by its merged runs, `claimOf` is asked once per run of the plan.
   */
  release(owners: readonly number[], claimOf: ((plan: Plan, index: number) => Claim) | null = null): Submission[] {
    for (const owner of owners) this.#setState(owner, State.released)
    const merged = owners.filter((owner) => this.mayMerge(owner))
    let submissions: Submission[] = []
    if (merged.length > 0) {
      const { units, map } = this.#select(merged)
      const plan = planMerged(units, this.#context.limits(this.work.read), this.#mayFill)
      this.#countOverlap(units, plan)
      submissions = this.#submissions(plan, map, merged, (s) => (claimOf === null ? null : claimOf(plan, s)))
    }
    if (merged.length < owners.length) {
      const single = owners.filter((owner) => !this.mayMerge(owner))
      const { units, map } = this.#select(single)
      const unitOwners = map.unit.map((unit) => this.ownerOf(unit))
      const plan = planSeparately(units, unitOwners, this.#context.limits(this.work.read), this.#context.mode !== 'off')
      submissions = submissions.concat(this.#submissionsOfOne(plan, map, () => null))
    }
    return submissions
  }

  /**
   * Replaces a submission that was never sent by what is left of it without the requests in `leaving`, which fail with
   * `errorOf`. The old submission must be ended as well.
   */
  replan(submission: Submission, leaving: Owners, errorOf: (owner: number) => Error): Submission[] {
    const { offset, length, claim } = submission
    const kept: number[] = []
    for (let m = submission.membersFrom; m < submission.membersTo; m++) {
      const owner = submission.members[m]!
      if (leaving.has(owner)) this.fail(owner, errorOf(owner))
      else kept.push(owner)
    }
    if (kept.length === 0) return []
    const { units, map } = this.#select(kept, offset, offset + length)
    const plan = planMerged(units, this.#context.limits(this.work.read), this.#mayFill)
    if (claim !== null) claim.parts += plan.count
    return this.#submissions(plan, map, kept, () => claim, offset, offset + length)
  }

  /**
   * Submissions that carry out a piece of one request again, alone. They wait for nobody and answer to their parent.
   *
   * @param fua whether the piece goes out with FUA, also if the request does not ask for it: another one that it covers may
   */
  single(owner: number, start: number, end: number, fua: boolean): Submission[] {
    const { units, map } = this.#select([owner], start, end)
    if (fua) units.fua = uint8s(units.count).fill(1)
    const plan = planMerged(units, this.#context.limits(this.work.read), this.#mayFill)
    const submissions: Submission[] = []
    for (let s = 0; s < plan.count; s++) submissions.push(this.#submissionOf(owner, plan, s, map, null))
    return submissions
  }

  /**
   * Withdraws those of the requests that still wait for their turn: the next `tell` answers them. Returns whether there were
   * any. They keep their place in the order of calls until it comes: others may wait behind them.
   */
  withdraw(leaving: ReadonlyMap<number, Error>): boolean {
    let any = false
    for (const [owner, error] of leaving) {
      if (this.#stateOf(owner) !== State.waiting || this.work.length[owner] === 0) continue
      this.#setState(owner, State.withdrawn)
      this.fail(owner, error)
      this.#noteAnswered(owner)
      any = true
    }
    return any
  }

  #stateOf(owner: number): number {
    return this.#pending[this.work.count + owner]!
  }

  #setState(owner: number, state: number): void {
    this.#pending[this.work.count + owner] = state
  }

  /** The next `tell` is to answer it. */
  #noteAnswered(owner: number): void {
    this.#answered = withOne(this.#answered, owner)
  }

  isWithdrawn(owner: number): boolean {
    return this.#stateOf(owner) === State.withdrawn
  }

  #goesWithFua(owner: number): boolean {
    return this.work.fua?.[owner] === 1 || this.#raised?.[owner] === 1
  }

  get #mayFill(): MayFill | null {
    return this.work.read ? null : this.#context.mayFill
  }

  /** What later requests of the batch cover is not written; what several ask for is read once. */
  #countOverlap(units: Units, plan: Plan): void {
    if (plan.whole) return
    let overlap = 0
    for (let u = 0; u < units.count; u++) overlap += units.length[u]!
    for (let s = 0; s < plan.count; s++) overlap -= plan.length[s]!
    if (this.#mayFill !== null) {
      const gaps = gapBytes(plan)
      this.#context.counters.write.gapBytes += gaps
      overlap += gaps
    }
    // Negative where blocks are joined across a gap: then overlaps can't be excluded, and looking for them is cheap.
    if (overlap !== 0) this.#overlaps = true
    if (overlap > 0 && !this.work.read) this.#context.counters.write.overlapBytes += overlap
  }

  /** Notes that a request has failed. The first failure is the one that is told. */
  fail(owner: number, error: Error): void {
    this.#errors ??= new Map()
    if (!this.#errors.has(owner)) this.#errors.set(owner, error)
  }

  /** Notes that the kernel refused bytes of a request. */
  failSubmission(owner: number, errno: number): void {
    this.fail(owner, this.#errorOf(owner, errno))
  }

  /** Notes that a write with FUA through the page cache has failed, whatever becomes of its requests. */
  fuaFailed(submission: Submission): void {
    this.#context.durability.latch(this.#errorOf(submission.members[submission.membersFrom]!, submission.errno))
  }

  /** The error of a request whose memory is gone. */
  memoryError(owner: number): BlockError {
    return this.#errorOf(
      owner,
      EFAULT,
      'the memory was detached or shrunk before the request was done: leave it alone until then',
    )
  }

  #errorOf(owner: number, errno: number, reason?: string): BlockError {
    const { path, engine } = this.#context
    const [offset, length] = [this.work.offset[owner]!, this.work.length[owner]!]
    return new BlockError(errno, { syscall: this.work.read ? 'read' : 'write', path, engine, offset, length, reason })
  }

  /**
   * Takes in that a submission has ended, or was replaced. Requests that wait for nothing more are answered by the next
   * `tell`; `done` hears of them at once.
   */
  ended(submission: Submission, done: ((owner: number) => void) | null): void {
    if (submission.loose) {
      for (const owner of submission.lostOwners()) this.fail(owner, this.memoryError(owner))
    }
    for (let m = submission.membersFrom; m < submission.membersTo; m++) {
      const owner = submission.members[m]!
      if (submission.errno !== 0) this.failSubmission(owner, submission.errno)
      if (--this.#pending[owner]! > 0) continue
      this.#setState(owner, State.ended)
      this.#noteAnswered(owner)
      if (done !== null) done(owner)
    }
  }

  /** Requests without bytes have nothing to wait for: the next `tell` answers them. Returns whether it is due at once. */
  endEmpty(): boolean {
    for (let owner = 0; this.work.hasEmpty && owner < this.work.count; owner++) {
      if (this.work.length[owner] === 0) this.#noteAnswered(owner)
    }
    return this.#answered.length > 0 || this.#open === 0
  }

  /** Answers the requests that have ended, in the order in which they did; after the last one the batch is finished. */
  tell(): void {
    const answered = this.#answered
    this.#answered = []
    for (const owner of answered) {
      this.#open--
      this.#listener.answer(owner, this.#errors?.get(owner) ?? this.#failureOfFlush(owner))
    }
    if (this.#open > 0 || this.#isFinished) return
    this.#isFinished = true
    if (this.#ticket !== null) this.#context.durability.end(this.#ticket)
    this.#listener.finished()
  }

  /** After a failed flush nothing can be promised to be stable. */
  #failureOfFlush(owner: number): BlockError | null {
    return this.#ticket !== null && this.work.fua?.[owner] === 1 ? this.#context.durability.failure : null
  }

  /** The units of some requests, cut to a range. */
  #select(owners: readonly number[], start = 0, end: number = Number.MAX_SAFE_INTEGER): { units: Units; map: UnitMap } {
    const { work } = this
    const unit: number[] = []
    for (const owner of owners) {
      for (let u = this.firstUnitOf(owner); u < this.firstUnitOf(owner + 1); u++) {
        const from = work.units.offset[u]!
        if (from < end && from + work.units.length[u]! > start) unit.push(u)
      }
    }
    const count = unit.length
    const offset = float64s(count)
    const length = float64s(count)
    const cut = float64s(count)
    const unitOf = int32s(count)
    const fua = work.units.fua === null ? null : uint8s(count)
    for (let i = 0; i < count; i++) {
      const u = unit[i]!
      unitOf[i] = u
      const from = work.units.offset[u]!
      offset[i] = Math.max(from, start)
      length[i] = Math.min(from + work.units.length[u]!, end) - offset[i]!
      cut[i] = offset[i]! - from
      if (fua !== null) fua[i] = this.#goesWithFua(this.ownerOf(u)) ? 1 : 0
    }
    return { units: { count, offset, length, fua }, map: { unit: unitOf, start: cut } }
  }

  /**
   * Submissions of a merged plan, which are disjoint and ascending. A request waits for every one that touches its range:
   * its own bytes, and those of later requests that cover it.
   */
  #submissions(
    plan: Plan,
    map: UnitMap | null,
    owners: readonly number[] | null,
    claimOf: (index: number) => Claim | null,
    start = 0,
    end: number = Number.MAX_SAFE_INTEGER,
  ): Submission[] {
    const { work } = this
    const members = owners === null ? work.count : owners.length
    if (plan.count === 1 && members === 1) {
      const owner = owners === null ? 0 : owners[0]!
      this.#pending[owner]!++
      return [this.#submissionOf(owner, plan, 0, map, claimOf(0))]
    }
    if (plan.count === 1 && owners === null && !work.hasEmpty) {
      this.#pending.fill(1, 0, members)
      return [new Submission(this, plan, 0, map, ascending(members), 0, members, claimOf(0))]
    }
    if (plan.count === 1) {
      const list = int32s(members)
      let count = 0
      for (let i = 0; i < members; i++) {
        const owner = owners === null ? i : owners[i]!
        if (work.length[owner] === 0) continue
        this.#pending[owner]!++
        list[count++] = owner
      }
      return [new Submission(this, plan, 0, map, list, 0, count, claimOf(0))]
    }
    if (owners === null && map === null && plan.inOrder && work.owner === null) {
      this.#pending.fill(1, 0, this.work.count)
      const { firstSegment } = plan
      const submissions: Submission[] = []
      for (let s = 0; s < plan.count; s++) {
        const members = ascending(firstSegment[s + 1]!)
        submissions.push(
          new Submission(this, plan, s, null, members, firstSegment[s]!, firstSegment[s + 1]!, claimOf(s)),
        )
      }
      return submissions
    }
    if (plan.count === members && this.#isOneEach(plan, map)) return this.#submissionsOfOne(plan, map, claimOf)
    const first = int32s(members)
    const counts = int32s(plan.count + 1)
    let total = 0
    let s = 0
    for (let i = 0; i < members; i++) {
      const owner = owners === null ? i : owners[i]!
      const length = work.length[owner]!
      if (length === 0) continue
      const from = Math.max(work.offset[owner]!, start)
      const to = Math.min(work.offset[owner]! + length, end)
      // Most batches ascend: the next request begins where this one did, or in the next submission.
      if (s >= plan.count || !isFirstEndingAfter(plan, s, from)) {
        if (s + 1 < plan.count && isFirstEndingAfter(plan, s + 1, from)) s++
        else s = firstEndingAfter(plan, from)
      }
      first[i] = s
      const firstOfOwner = s
      for (; s < plan.count && plan.offset[s]! < to; s++) {
        counts[s]!++
        total++
      }
      this.#pending[owner]! += s - firstOfOwner
      s = firstOfOwner
    }
    const list = int32s(total)
    const place = int32s(plan.count + 1)
    const next = int32s(plan.count + 1)
    for (let s = 0; s < plan.count; s++) next[s + 1] = place[s + 1] = place[s]! + counts[s]!
    for (let i = 0; i < members; i++) {
      const owner = owners === null ? i : owners[i]!
      const length = work.length[owner]!
      if (length === 0) continue
      const to = Math.min(work.offset[owner]! + length, end)
      for (let s = first[i]!; s < plan.count && plan.offset[s]! < to; s++) list[next[s]!++] = owner
    }
    const submissions: Submission[] = []
    for (let s = 0; s < plan.count; s++) {
      submissions.push(new Submission(this, plan, s, map, list, place[s]!, place[s + 1]!, claimOf(s)))
    }
    return submissions
  }

  /** A submission with one owner. */
  #submissionOf(owner: number, plan: Plan, s: number, map: UnitMap | null, claim: Claim | null): Submission {
    return new Submission(this, plan, s, map, ascending(owner + 1), owner, owner + 1, claim)
  }

  /** Whether each submission of a plan is one whole request of one piece. */
  #isOneEach(plan: Plan, map: UnitMap | null): boolean {
    const { units, owner } = this.work
    if (owner !== null) return false
    for (let s = 0; s < plan.count; s++) {
      const segment = plan.firstSegment[s]!
      if (plan.firstSegment[s + 1] !== segment + 1) return false
      const planned = plan.segmentUnit[segment]!
      if (planned < 0) return false
      const unit = map === null ? planned : map.unit[planned]!
      if (plan.segmentLength[segment] !== units.length[unit]) return false
    }
    return true
  }

  /** Submissions of a plan without merging: each has one owner. */
  #submissionsOfOne(plan: Plan, map: UnitMap | null, claimOf: (index: number) => Claim | null): Submission[] {
    const submissions: Submission[] = []
    for (let s = 0; s < plan.count; s++) {
      const unit = plan.segmentUnit[plan.firstSegment[s]!]!
      const owner = this.ownerOf(map === null ? unit : map.unit[unit]!)
      this.#pending[owner]!++
      submissions.push(this.#submissionOf(owner, plan, s, map, claimOf(s)))
    }
    return submissions
  }
}

function gapBytes(plan: Plan): number {
  let bytes = 0
  for (let s = 0; s < plan.firstSegment[plan.count]!; s++) {
    if (plan.segmentUnit[s]! < 0) bytes += plan.segmentLength[s]!
  }
  return bytes
}

function firstUnits(owner: Int32Array, units: number, owners: number): Int32Array {
  const first = int32s(owners + 1)
  for (let u = 0; u < units; u++) first[owner[u]! + 1]!++
  for (let i = 0; i < owners; i++) first[i + 1]! += first[i]!
  return first
}

/** Whether submission `s` is the first one that ends after `place`. */
function isFirstEndingAfter(plan: Plan, s: number, place: number): boolean {
  if (plan.offset[s]! + plan.length[s]! <= place) return false
  return s === 0 || plan.offset[s - 1]! + plan.length[s - 1]! <= place
}

/** The first submission that ends after `place`. */
function firstEndingAfter(plan: Plan, place: number): number {
  let low = 0
  let high = plan.count
  while (low < high) {
    const middle = (low + high) >>> 1
    if (plan.offset[middle]! + plan.length[middle]! > place) high = middle
    else low = middle + 1
  }
  return low
}
