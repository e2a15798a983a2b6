// Who may go now. Operations of different calls that overlap take effect in the order of their calls; those that do not run
// together (G4), and no two operations in flight overlap unless both only read.
//
// The common batch meets nothing: it is planned at once and its merged runs are entered as one hold each. Of a batch that
// overlaps something earlier those requests wait that do, and those that overlap these, with a hold each; the others go now, as
// one plan. A request that waits goes when the last hold before it is removed. Within a batch, requests that may be merged do
// not wait for each other as long as they go together: the planner settles their order. Where one must not be merged that meets
// something, and before a format driver, which plans later, each request has a hold. Operations that are no batch, such as a
// discard, are one hold and are run when it is free.
//
// A write holds whole blocks, since direct I/O may have to rewrite all of a block for some of its bytes.

import type { Batch } from './batch.ts'
import type { Blocks, Span } from './blocks.ts'
import { sortOrder } from './planner/sort.ts'
import type { Plan } from './planner/units.ts'
import type { Claim, Submission, SubmissionOwner, Waiter } from './submission.ts'
import { Hold, Tracker } from './tracker.ts'

/** Who takes requests when their turn has come, and plans them at once or later. */
export interface Staged {
  release(batch: SubmissionOwner, owners: readonly number[]): Submission[]
}

const NO_CLAIM = (): null => null
const NONE: readonly Submission[] = []

export class Gate {
  readonly #tracker = new Tracker<Waiter>()
  readonly #ordered: boolean
  readonly #blocks: Blocks
  readonly #stage: Staged | null
  /** Whether the last batch met something. Where one does the next often does, and its requests are asked about at once. */
  #metLast = false
  /** Empty: who goes next when a submission has ended is noted here. Mostly that is nobody. */
  #released: Hold<Waiter>[] = []

  /**
   * @param ordered whether overlapping calls wait for each other; if not, only what is locked keeps others waiting
   * @param stage takes what is released, where more is to be waited for before it can be planned
   */
  constructor(ordered: boolean, blocks: Blocks, stage: Staged | null = null) {
    this.#ordered = ordered
    this.#blocks = blocks
    this.#stage = stage
  }

  /** Takes in a batch; returns what may go at once. */
  admit(batch: Batch): Submission[] {
    if (batch.mergeable && this.#stage === null) {
      if (this.#tracker.empty || !this.#metLast) {
        const plan = batch.planAll()
        const claims = this.#claimApart(batch, plan)
        if (claims !== null) return batch.releaseAll(plan, claims)
      }
      return this.#admitAround(batch)
    }
    const apart = batch.mergesNone && this.#stage === null ? this.#admitApart(batch) : null
    return apart ?? this.#admitSingly(batch)
  }

  /** Runs an operation on a range when nothing earlier is in its way; it must `leave` when it has ended. */
  enter(start: number, end: number, run: () => void): Hold<Waiter> {
    const hold = new Hold<Waiter>(start, end, false, { batch: null, owner: -1, run })
    // Also where calls are not ordered: what is entered then is a lock, or an operation like this one.
    this.#tracker.enter(hold)
    if (hold.blockers === 0) run()
    return hold
  }

  /** Takes in that an operation has ended; returns what may go now. */
  leave(hold: Hold<Waiter>): Submission[] {
    const released: Hold<Waiter>[] = []
    this.#tracker.remove(hold, released)
    return this.#release(released)
  }

  /** Keeps everybody else away from a submission's range until it has ended, where its place in the order does not already. */
  lock(submission: Submission): void {
    const { batch } = submission
    if (submission.claim !== null || (this.#ordered && batch.holds !== null)) return
    const { start, end } = this.#blocks.around(submission.offset, submission.end)
    const hold = new Hold<Waiter>(start, end, submission.read, { batch, owner: -1 })
    this.#tracker.add(hold)
    submission.claim = { hold, parts: 1 }
  }

  /** Takes in that a submission has ended; returns what may go now. */
  ended(submission: Submission): readonly Submission[] {
    const { batch, claim } = submission
    const released = this.#released
    if (claim !== null && --claim.parts === 0) this.#tracker.remove(claim.hold, released)
    const { holds } = batch
    if (holds === null) {
      batch.ended(submission, null)
    } else {
      const tracker = batch.tracker ?? this.#tracker
      batch.ended(submission, (owner) => {
        const hold = holds[owner]!
        if (hold !== null) tracker.remove(hold, released)
      })
    }
    if (released.length === 0) return NONE
    this.#released = []
    return this.#release(released)
  }

  /** Passes the turn of requests that were withdrawn when it had come; returns what may go now. */
  pass(batch: SubmissionOwner, owners: readonly number[]): Submission[] {
    const released: Hold<Waiter>[] = []
    const tracker = batch.tracker ?? this.#tracker
    for (const owner of owners) tracker.remove(batch.holds![owner]!, released)
    return this.#release(released)
  }

  #plan(batch: SubmissionOwner, owners: readonly number[]): Submission[] {
    return this.#stage === null ? batch.release(owners) : this.#stage.release(batch, owners)
  }

  #meetsAny(plan: Plan, read: boolean): boolean {
    for (let s = 0; s < plan.count; s++) {
      const { start, end } = this.#span(plan.offset[s]!, plan.offset[s]! + plan.length[s]!, read)
      if (this.#tracker.conflicts(start, end, read)) return true
    }
    return false
  }

  #holdOf(waiter: Waiter, read: boolean, plan: Plan, s: number): Hold<Waiter> {
    const { start, end } = this.#span(plan.offset[s]!, plan.offset[s]! + plan.length[s]!, read)
    return new Hold<Waiter>(start, end, read, waiter)
  }

  #claim(waiter: Waiter, read: boolean, plan: Plan, s: number): Claim {
    const hold = this.#holdOf(waiter, read, plan, s)
    this.#tracker.add(hold)
    return { hold, parts: 1 }
  }

  #span(start: number, end: number, read: boolean): Span {
    return read ? { start, end } : this.#blocks.around(start, end)
  }

  /**
   * Holds the runs of a batch if nothing is in the way of any: a claim each, or none where calls are not ordered. `null`:
   * something is.
   */
  #claimApart(batch: Batch, plan: Plan): ((index: number) => Claim | null) | null {
    const { read } = batch.work
    if (!this.#ordered) return this.#meetsAny(plan, read) ? null : NO_CLAIM
    const waiter: Waiter = { batch, owner: -1 }
    const claims = new Array<Claim>(plan.count)
    for (let s = 0; s < plan.count; s++) {
      const hold = this.#holdOf(waiter, read, plan, s)
      if (!this.#tracker.addApart(hold, 0)) {
        if (this.#tracker.conflicts(hold.start, hold.end, read)) {
          for (let before = 0; before < s; before++) this.#tracker.remove(claims[before]!.hold, [])
          return null
        }
        this.#tracker.add(hold)
      }
      claims[s] = { hold, parts: 1 }
    }
    return (s) => claims[s]!
  }

  /** Takes in a batch of which some requests may have to wait; the others are held by their merged runs. */
  #admitAround(batch: Batch): Submission[] {
    const { count, offset, length, read } = batch.work
    const holds: (Hold<Waiter> | null)[] = []
    const free: number[] = []
    // What is in the way of later requests of the batch: those that wait.
    let waiting = null as Tracker<null> | null
    for (let owner = 0; owner < count; owner++) {
      holds.push(null)
      if (length[owner] === 0) continue
      const { start, end } = this.#span(offset[owner]!, offset[owner]! + length[owner]!, read)
      if (this.#tracker.conflicts(start, end, read) || waiting?.conflicts(start, end, read) === true) {
        holds[owner] = new Hold<Waiter>(start, end, read, { batch, owner })
        waiting ??= new Tracker()
        waiting.add(new Hold(start, end, read, null))
      } else {
        free.push(owner)
      }
    }
    this.#metLast = waiting !== null
    const waiter: Waiter = { batch, owner: -1 }
    const claimOf = (plan: Plan, s: number): Claim => this.#claim(waiter, read, plan, s)
    if (waiting === null) {
      const plan = batch.planAll()
      return batch.releaseAll(plan, this.#ordered ? (s) => claimOf(plan, s) : NO_CLAIM)
    }
    const submissions = free.length === 0 ? [] : batch.release(free, claimOf)
    for (const hold of holds) if (hold !== null) this.#tracker.enter(hold)
    this.#inheritFua(batch, holds)
    batch.holds = holds
    return submissions
  }

  /** Takes in a batch that is not to be merged, if nothing is in the way of any of its requests; otherwise `null`. */
  #admitApart(batch: Batch): Submission[] | null {
    const plan = batch.planAllSeparately()
    if (!this.#liesApart(plan)) return null
    const claims = this.#claimApart(batch, plan)
    return claims === null ? null : batch.releaseSeparately(plan, claims)
  }

  /** Whether no two submissions of a plan move the same block. */
  #liesApart({ count, offset, length }: Plan): boolean {
    const order = sortOrder(offset, count)
    let before = 0
    for (let i = 0; i < count; i++) {
      const s = order === null ? i : order[i]!
      const { start, end } = this.#blocks.around(offset[s]!, offset[s]! + length[s]!)
      if (start < before) return false
      before = end
    }
    return true
  }

  /** Takes in a batch with a hold for each request. */
  #admitSingly(batch: Batch): Submission[] {
    // Without order across calls, requests of one batch still take effect in their order.
    if (!this.#ordered && this.#tracker.empty) batch.tracker = new Tracker<Waiter>()
    const tracker = batch.tracker ?? this.#tracker
    const holds = this.#holdsOf(batch)
    batch.holds = holds
    let free: number[] = []
    if (batch.mergesNone) {
      for (const hold of holds) {
        if (hold === null) continue
        tracker.enter(hold)
        if (hold.blockers === 0) free.push(hold.tag.owner)
      }
    } else {
      const sorted = sort(batch, holds, tracker)
      free = sorted.free
      for (const owner of free) tracker.add(holds[owner]!)
      for (const hold of sorted.waiting) tracker.enter(hold)
    }
    this.#inheritFua(batch, holds)
    return free.length === 0 ? [] : this.#plan(batch, free)
  }

  /**
   * What was asked to be on stable storage is not to be hidden by bytes that are not: a request that waits goes out with FUA if
   * an earlier one of its batch did that it overlaps. Of those that go together the planner takes care.
   */
  #inheritFua(batch: Batch, holds: readonly (Hold<Waiter> | null)[]): void {
    const { fua, count, offset, length, read } = batch.work
    if (fua === null) return
    const asked = new Tracker<null>()
    for (let owner = 0; owner < count; owner++) {
      if (length[owner] === 0) continue
      const { start, end } = this.#span(offset[owner]!, offset[owner]! + length[owner]!, read)
      const hold = holds[owner]!
      if (fua[owner] === 1) asked.add(new Hold(start, end, false, null))
      else if (hold !== null && hold.blockers > 0 && asked.conflicts(start, end, false)) batch.raiseFua(owner)
    }
  }

  /** A hold for each request of a batch that has bytes. */
  #holdsOf(batch: Batch): (Hold<Waiter> | null)[] {
    const { count, offset, length, read } = batch.work
    const holds: (Hold<Waiter> | null)[] = []
    for (let owner = 0; owner < count; owner++) {
      if (length[owner] === 0) {
        holds.push(null)
        continue
      }
      const { start, end } = this.#span(offset[owner]!, offset[owner]! + length[owner]!, read)
      holds.push(new Hold<Waiter>(start, end, read, { batch, owner }))
    }
    return holds
  }

  /** Plans what was released, batch by batch. A withdrawn request's turn passes to those behind it. */
  #release(released: Hold<Waiter>[]): Submission[] {
    // They were released at once, and go in the order of calls.
    if (released.length > 1) released.sort((a, b) => a.order - b.order)
    const groups = new Map<SubmissionOwner, number[]>()
    for (let i = 0; i < released.length; i++) {
      const hold = released[i]!
      const { batch, owner, run } = hold.tag
      if (batch === null) {
        run?.()
        continue
      }
      if (batch.isWithdrawn(owner)) {
        const tracker = batch.tracker ?? this.#tracker
        tracker.remove(hold, released)
        continue
      }
      const owners = groups.get(batch)
      if (owners === undefined) groups.set(batch, [owner])
      else owners.push(owner)
    }
    const submissions: Submission[] = []
    for (const [batch, owners] of groups) {
      owners.sort((a, b) => a - b)
      for (const submission of this.#plan(batch, owners)) submissions.push(submission)
    }
    return submissions
  }
}

/**
 * Tells the requests of a batch that may go now from those that have to wait: for something in the tracker, or for another one of
 * the batch that waits or can't be settled with it by one plan. Those that are free are to be entered first: whichever of them
 * is in the way of one that waits was called before it, or else it would be one that waits for that itself.
 */
function sort(
  batch: Batch,
  holds: readonly (Hold<Waiter> | null)[],
  tracker: Tracker<Waiter>,
): { free: number[]; waiting: Hold<Waiter>[] } {
  const free: number[] = []
  const waiting: Hold<Waiter>[] = []
  const before = tracker.empty ? null : tracker
  // What is in the way of later requests of the batch: of all, and of those that must not be merged.
  const ofAll = new Tracker<null>()
  const ofUnmerged = new Tracker<null>()
  for (const hold of holds) {
    if (hold === null) continue
    const { start, end, read } = hold
    const { owner } = hold.tag
    const mayMerge = batch.mayMerge(owner)
    if (
      before?.conflicts(start, end, read) === true ||
      ofAll.conflicts(start, end, read) ||
      (!mayMerge && ofUnmerged.conflicts(start, end, read))
    ) {
      waiting.push(hold)
      ofAll.add(new Hold(start, end, read, null))
    } else {
      free.push(owner)
      if (!mayMerge) ofAll.add(new Hold(start, end, read, null))
      else if (!batch.mergeable) ofUnmerged.add(new Hold(start, end, read, null))
    }
  }
  return { free, waiting }
}
