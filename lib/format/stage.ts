// Where writes of a driven device wait for an allocation, between the order of calls and the planner.
//
//   gate ──release──► load tables ──► does it touch what is being allocated? ──no──► plan, lock what it allocates ──► queue
//                          ▲                │ yes
//                          └── lock ends ◄──┘
//
// Requests that wait are planned when the lock ends, together: that is how the second write into a new cluster is merged with
// the third instead of being padded. A lock covers whole clusters, so two runs of one plan that share a new cluster follow each
// other, and the driver's answer about a gap holds until the run that fills it has ended.
//
// Order among overlapping requests is the gate's business; those that overlap wait together here, so that it is kept.

import type { Gate } from '../gate.ts'
import type { Range } from '../planner/units.ts'
import type { Submission, SubmissionOwner } from '../submission.ts'
import { Hold, Tracker } from '../tracker.ts'
import type { FormatImage } from './driver.ts'

/** Clusters that are being allocated, or that nobody may allocate in; or requests that wait for such, and lock nothing. */
interface Lock {
  /** Runs that hold it and have not begun: one after the other, as two of them may share a new cluster, which one must make. */
  starting: Submission[]
  /** The run whose turn it is. */
  running: Submission | null
  /** Runs that hold it and have not ended. */
  parts: number
  /** An operation that holds it, if no run does. */
  run: (() => void) | null
  /** Requests that are looked at again when the locks that they met have ended. */
  parked: { batch: SubmissionOwner; owners: number[] } | null
}

/** Requests of one batch that overlap each other, directly or by way of others. */
interface Overlapping {
  start: number
  end: number
  owners: number[]
}

export class Stage {
  readonly #image: FormatImage
  readonly #locks = new Tracker<Lock>()
  readonly #held = new Map<Submission, Hold<Lock>>()
  #gate: Gate | null = null
  #send: ((submissions: readonly Submission[]) => void) | null = null

  constructor(image: FormatImage) {
    this.#image = image
  }

  /** @param send takes what may go after all, and sends it */
  attach(gate: Gate, send: (submissions: readonly Submission[]) => void): void {
    this.#gate = gate
    this.#send = send
  }

  /** Takes in requests whose turn has come; returns what may go at once. */
  release(batch: SubmissionOwner, owners: readonly number[]): Submission[] {
    const loading = this.#image.prepare?.(rangesOf(batch, owners), !batch.work.read)
    if (loading === undefined) return this.#plan(batch, owners)
    // What can't be loaded is asked for again by the run itself, and fails there.
    const go = (): void => this.#send!(this.#resume(batch, owners))
    loading.then(go, go)
    return []
  }

  /** Runs an operation when nothing is allocated in the range any more, and keeps allocations out until `unlock`. */
  lock(start: number, end: number, run: () => void): Hold<Lock> {
    const size = this.#image.clusterSize ?? 1
    const [from, to] = [start - (start % size), end % size === 0 ? end : end - (end % size) + size]
    const hold = new Hold<Lock>(from, to, false, { starting: [], running: null, parts: 1, run, parked: null })
    this.#locks.enter(hold)
    if (hold.blockers === 0) run()
    return hold
  }

  /** Takes in that the operation has ended; returns what may go now. */
  unlock(hold: Hold<Lock>): Submission[] {
    const released: Hold<Lock>[] = []
    this.#locks.remove(hold, released)
    const submissions: Submission[] = []
    const groups = new Map<SubmissionOwner, number[]>()
    for (const next of released) {
      const { tag } = next
      if (tag.parked !== null) {
        const { batch, owners } = tag.parked
        const group = groups.get(batch)
        if (group === undefined) groups.set(batch, owners)
        else for (const owner of owners) group.push(owner)
      } else if (tag.run !== null) tag.run()
      // All its runs were withdrawn while it waited; its place in the order was kept.
      else if (tag.parts === 0) append(submissions, this.unlock(next))
      else append(submissions, nextOf(tag))
    }
    for (const [batch, owners] of groups) {
      owners.sort((a, b) => a - b)
      append(submissions, this.#resume(batch, owners, true))
    }
    return submissions
  }

  /** Takes in that a run has ended; returns what may go now. */
  ended(submission: Submission): Submission[] {
    const hold = this.#held.get(submission)
    if (hold === undefined) return NONE
    this.#held.delete(submission)
    const { tag } = hold
    tag.parts--
    if (tag.running === submission) tag.running = null
    if (hold.blockers > 0) return NONE
    return tag.parts === 0 ? this.unlock(hold) : nextOf(tag)
  }

  /** Runs that wait for others of their batch; each is to be replaced by what `keep` makes of it. */
  replaceWaiting(keep: (submission: Submission) => Submission[]): void {
    for (const hold of new Set(this.#held.values())) {
      if (hold.tag.starting.length > 0) hold.tag.starting = hold.tag.starting.flatMap(keep)
    }
  }

  /** Gives a run's lock to those that replace it, too; it must be ended as well. Returns which of them take its place now. */
  share(submission: Submission, others: Submission[]): Submission[] {
    const hold = this.#held.get(submission)
    if (hold === undefined) return others
    const { tag } = hold
    for (const other of others) this.#held.set(other, hold)
    tag.parts += others.length
    if (tag.running !== submission || others.length === 0) return others
    tag.running = others[0]!
    tag.starting = [...others.slice(1), ...tag.starting]
    return [tag.running]
  }

  /** Goes on with requests that have waited: some may have been withdrawn meanwhile. */
  #resume(batch: SubmissionOwner, owners: readonly number[], reload = false): Submission[] {
    const gone = owners.filter((owner) => batch.isWithdrawn(owner))
    const rest = gone.length === 0 ? owners : owners.filter((owner) => !batch.isWithdrawn(owner))
    const passed = gone.length === 0 ? NONE : this.#gate!.pass(batch, gone)
    if (rest.length === 0) return passed
    return passed.concat(reload ? this.release(batch, rest) : this.#plan(batch, rest))
  }

  #plan(batch: SubmissionOwner, owners: readonly number[]): Submission[] {
    if (batch.work.read) return batch.release(owners)
    const free = this.#locks.empty ? owners : this.#park(batch, owners)
    if (free.length === 0) return NONE
    const submissions = batch.release(free)
    return this.#image.allocates === undefined ? submissions : submissions.filter((one) => this.#enter(one))
  }

  /** Puts aside the requests that meet a lock; returns the others. */
  #park(batch: SubmissionOwner, owners: readonly number[]): readonly number[] {
    const free: number[] = []
    for (const { start, end, owners: together } of overlappingOf(batch, owners)) {
      const span = this.#image.allocates?.({ offset: start, length: end - start }) ?? null
      const from = span === null ? start : Math.min(start, span.offset)
      const to = span === null ? end : Math.max(end, span.offset + span.length)
      if (this.#locks.conflicts(from, to, false))
        this.#locks.wait(new Hold<Lock>(from, to, false, parked(batch, together)))
      else for (const owner of together) free.push(owner)
    }
    return free.sort((a, b) => a - b)
  }

  /** Locks what a run allocates; returns whether it may go at once. */
  #enter(submission: Submission): boolean {
    const span = this.#image.allocates!({ offset: submission.offset, length: submission.length })
    if (span === null) return true
    const tag: Lock = { starting: NO_SUBMISSIONS, running: submission, parts: 1, run: null, parked: null }
    const hold = new Hold<Lock>(span.offset, span.offset + span.length, false, tag)
    this.#locks.enter(hold)
    this.#held.set(submission, hold)
    if (hold.blockers === 0) return true
    tag.running = null
    tag.starting = [submission]
    return false
  }
}

const NONE: Submission[] = []
const NO_SUBMISSIONS: Submission[] = []

/** The run of a lock whose turn it is now, if none has begun. */
function nextOf(lock: Lock): Submission[] {
  if (lock.running !== null) return NONE
  lock.running = lock.starting.shift() ?? null
  return lock.running === null ? NONE : [lock.running]
}

/** Not `concat`, which copies what is there already, for each of many batches anew. */
function append(submissions: Submission[], more: readonly Submission[]): void {
  for (const one of more) submissions.push(one)
}

function parked(batch: SubmissionOwner, owners: number[]): Lock {
  return { starting: NO_SUBMISSIONS, running: null, parts: 0, run: null, parked: { batch, owners } }
}

/** The ranges of requests; those that touch their predecessor are one. */
function rangesOf(batch: SubmissionOwner, owners: readonly number[]): Range[] {
  const { offset, length } = batch.work
  const ranges: Range[] = []
  let last: Range | null = null
  for (const owner of owners) {
    const start = offset[owner]!
    if (last !== null && start === last.offset + last.length) {
      last.length += length[owner]!
    } else {
      last = { offset: start, length: length[owner]! }
      ranges.push(last)
    }
  }
  return ranges
}

function overlappingOf(batch: SubmissionOwner, owners: readonly number[]): Overlapping[] {
  const { offset, length } = batch.work
  const order = [...owners].sort((a, b) => offset[a]! - offset[b]!)
  const groups: Overlapping[] = []
  let last: Overlapping | null = null
  for (const owner of order) {
    const start = offset[owner]!
    const end = start + length[owner]!
    if (last !== null && start < last.end) {
      last.end = Math.max(last.end, end)
      last.owners.push(owner)
    } else {
      last = { start, end, owners: [owner] }
      groups.push(last)
    }
  }
  return groups
}
