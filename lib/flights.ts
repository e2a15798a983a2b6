// What is in flight, by the blocks that it moves, so that a submission that is about to leave meets those near it without a look
// at all the others: some thousands may be in flight. The queue's business; nobody waits here, the gate has seen to that.

import type { Submission } from './submission.ts'
import { Hold, Tracker } from './tracker.ts'

const NONE: readonly Submission[] = []

export class Flights {
  readonly #tracker = new Tracker<Submission>()
  readonly #released: Hold<Submission>[] = []
  #count = 0
  #alone: Submission | null = null

  get count(): number {
    return this.#count
  }

  /** The one in flight that goes through the page cache of a direct file; there is no second. */
  get alone(): Submission | null {
    return this.#alone
  }

  /** Takes in a submission; tells those that are in flight near it. */
  add(submission: Submission): readonly Submission[] {
    const hold = new Hold(submission.blockStart, submission.blockEnd, submission.read, submission)
    submission.flight = hold
    this.#count++
    if (submission.alone) this.#alone = submission
    if (this.#tracker.addApart(hold, 1)) return NONE
    const near = this.near(submission)
    this.#tracker.add(hold)
    return near
  }

  remove(submission: Submission): void {
    this.#tracker.remove(submission.flight!, this.#released)
    submission.flight = null
    this.#count--
    if (this.#alone === submission) this.#alone = null
  }

  /** Whether something moves blocks from this place on. */
  reach(place: number): boolean {
    return this.#tracker.conflicts(place, Number.MAX_SAFE_INTEGER, false)
  }

  /** Those whose blocks overlap or touch the blocks of a submission. */
  near(submission: Submission): readonly Submission[] {
    const start = submission.blockStart - 1
    const end = submission.blockEnd + 1
    if (this.#tracker.empty || !this.#tracker.conflicts(start, end, false)) return NONE
    return this.#tracker.overlapping(start, end).map(({ tag }) => tag)
  }
}
