// Who may go now. Operations of different calls that overlap take effect in the order of their calls; those that do not run
// together (G4), and no two operations in flight overlap unless both only read.
//
// The common batch meets nothing: it is planned at once and its merged runs are entered as one hold each. A batch that
// overlaps something earlier, or whose requests must not be merged, is entered request by request: those that are free go
// now, as one plan; the others go when the last hold before them is removed. Within a batch, requests that may be merged do
// not wait for each other as long as they go together: the planner settles their order. Operations that are no batch, such as
// a discard, are one hold and are run when it is free.
//
// A write holds whole blocks, since direct I/O may have to rewrite all of a block for some of its bytes.

import type { Batch } from './batch.ts'
import type { Blocks, Span } from './blocks.ts'
import type { Plan } from './planner/units.ts'
import type { Claim, Submission, SubmissionOwner, Waiter } from './submission.ts'
import { Hold, Tracker } from './tracker.ts'

/** Who takes requests when their turn has come, and plans them at once or later. */
export interface Staged {
  release(batch: SubmissionOwner, owners: readonly number[]): Submission[]
}

export class Gate {
  readonly #tracker = new Tracker<Waiter>()
  readonly #ordered: boolean
  readonly #blocks: Blocks
  readonly #stage: Staged | null

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
      const plan = batch.planAll()
      if (this.#tracker.empty || !this.#meetsAny(plan, batch.work.read)) {
        if (!this.#ordered) return batch.releaseAll(plan, () => null)
        const waiter: Waiter = { batch, owner: -1 }
        return batch.releaseAll(plan, (s) => this.#claim(waiter, batch.work.read, plan, s))
      }
    }
    return this.#admitSingly(batch)
  }

  /** Runs an operation on a range when nothing earlier is in its way; it must `leave` when it has ended. */
  enter(start: number, end: number, run: () => void): Hold<Waiter> {
    const hold = new Hold<Waiter>(start, end, false, { batch: null, owner: -1, run })
    // Also where calls are not ordered: what is entered then is a lock, or an operation like this one.
    this.#tracker.add(hold, this.#tracker.frontier(hold))
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
    this.#tracker.add(hold, [])
    submission.claim = { hold, parts: 1 }
  }

  /** Takes in that a submission has ended; returns what may go now. */
  ended(submission: Submission): Submission[] {
    const { batch, claim } = submission
    const released: Hold<Waiter>[] = []
    if (claim !== null && --claim.parts === 0) this.#tracker.remove(claim.hold, released)
    const { holds } = batch
    if (holds === null) {
      batch.ended(submission, null)
    } else {
      const tracker = batch.tracker ?? this.#tracker
      batch.ended(submission, (owner) => tracker.remove(holds[owner]!, released))
    }
    return released.length === 0 ? [] : this.#release(released)
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

  #claim(waiter: Waiter, read: boolean, plan: Plan, s: number): Claim {
    const { start, end } = this.#span(plan.offset[s]!, plan.offset[s]! + plan.length[s]!, read)
    const hold = new Hold<Waiter>(start, end, read, waiter)
    this.#tracker.add(hold, NONE)
    return { hold, parts: 1 }
  }

  #span(start: number, end: number, read: boolean): Span {
    return read ? { start, end } : this.#blocks.around(start, end)
  }

  #admitSingly(batch: Batch): Submission[] {
    // Without order across calls, requests of one batch still take effect in their order.
    if (!this.#ordered && this.#tracker.empty) batch.tracker = new Tracker<Waiter>()
    const tracker = batch.tracker ?? this.#tracker
    const { work } = batch
    const holds: (Hold<Waiter> | null)[] = []
    const free: number[] = []
    for (let owner = 0; owner < work.count; owner++) {
      const length = work.length[owner]!
      if (length === 0) {
        holds.push(null)
        continue
      }
      const { start, end } = this.#span(work.offset[owner]!, work.offset[owner]! + length, work.read)
      const hold = new Hold<Waiter>(start, end, work.read, { batch, owner })
      const before = tracker.frontier(hold)
      const blocked = before.some((other) => other.tag.batch !== batch || other.blockers > 0 || !together(other, hold))
      if (work.fua !== null) inheritFua(batch, owner, before)
      tracker.add(hold, blocked ? before : [])
      if (!blocked) free.push(owner)
      holds.push(hold)
    }
    batch.holds = holds
    return free.length === 0 ? [] : this.#plan(batch, free)
  }

  /** Plans what was released, batch by batch. A withdrawn request's turn passes to those behind it. */
  #release(released: Hold<Waiter>[]): Submission[] {
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
    let submissions: Submission[] = []
    for (const [batch, owners] of groups) {
      submissions = submissions.concat(
        this.#plan(
          batch,
          owners.sort((a, b) => a - b),
        ),
      )
    }
    return submissions
  }
}

const NONE: readonly Hold<Waiter>[] = []

/** What was asked to be on stable storage is not to be hidden by bytes that are not: they go out with FUA, too. */
function inheritFua(batch: Batch, owner: number, before: readonly Hold<Waiter>[]): void {
  if (before.some(({ tag }) => tag.batch === batch && batch.goesWithFua(tag.owner))) batch.raiseFua(owner)
}

/** Whether two requests of one batch can be settled by one plan. */
function together(a: Hold<Waiter>, b: Hold<Waiter>): boolean {
  return a.tag.batch!.mayMerge(a.tag.owner) && b.tag.batch!.mayMerge(b.tag.owner)
}
