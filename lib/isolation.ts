// A merged submission failed: whose fault is it? Its requests are carried out again one by one, from the last to the first,
// each writing only what no later one has written, so that the bytes are those of carrying them out in order and each request
// fails if and only if it would have failed alone. What a short write has done counts as written. The failed submission keeps
// its claim meanwhile, so nobody else is at its range.
//
// Reads have no later ones to mind: each is read again, whole.

import { constants } from 'node:os'
import type { Span } from './blocks.ts'
import type { Submission } from './submission.ts'

const { ENODEV, ENXIO } = constants.errno
/** Not in os.constants. */
const ENOMEDIUM = 123
/** What the kernel says where there is no device any more. */
export const GONE: ReadonlySet<number> = new Set([ENODEV, ENXIO, ENOMEDIUM])

export class Isolation {
  readonly #failed: Submission
  readonly #send: (submissions: Submission[]) => void
  readonly #done: (failed: Submission) => void
  /** What is on the device, ascending and disjoint. */
  #written: Span[] = []
  /** Index into the members of the next request to be carried out, going down. */
  #next: number
  #owner = -1
  /** What is left to send of the request whose turn it is. One after the other: two pieces may share a block. */
  #pieces: Submission[] = []
  #isUnderWay = false

  /**
   * @param send sends submissions before all that wait
   * @param done called when every request of the submission has had its turn
   */
  constructor(failed: Submission, send: (submissions: Submission[]) => void, done: (failed: Submission) => void) {
    this.#failed = failed
    this.#send = send
    this.#done = done
    this.#next = failed.membersTo - 1
    if (!failed.read && failed.done > 0) this.#written.push({ start: failed.offset, end: failed.offset + failed.done })
  }

  get isOne(): boolean {
    return this.#failed.membersTo - this.#failed.membersFrom === 1
  }

  /** Carries out the next requests until one has something in flight. Returns how many had their turn. */
  run(): number {
    let turns = 0
    const { batch } = this.#failed
    while (!this.#isUnderWay) {
      const piece = this.#pieces.shift()
      if (piece !== undefined) {
        piece.parent = this
        this.#isUnderWay = true
        this.#send([piece])
      } else if (this.#next >= this.#failed.membersFrom) {
        const owner = this.#failed.members[this.#next--]!
        this.#owner = owner
        turns++
        this.#pieces = this.#missing(owner).flatMap(({ start, end }) =>
          batch.single(owner, start, end, this.#failed.fua),
        )
      } else {
        this.#failed.errno = 0
        this.#done(this.#failed)
        break
      }
    }
    return turns
  }

  childEnded(child: Submission): void {
    this.#isUnderWay = false
    const { batch } = this.#failed
    if (child.errno !== 0) batch.failSubmission(this.#owner, child.errno)
    if (child.loose && child.lostOwners().has(this.#owner)) batch.fail(this.#owner, batch.memoryError(this.#owner))
    if (!child.read && child.done > 0) {
      this.#written.push({ start: child.offset, end: child.offset + child.done })
      this.#written.sort((a, b) => a.start - b.start)
    }
  }

  /** The parts of a request, within the failed submission, that have not been written. */
  #missing(owner: number): Span[] {
    const { batch } = this.#failed
    const { work } = batch
    let start = Math.max(work.offset[owner]!, this.#failed.offset)
    const end = Math.min(work.offset[owner]! + work.length[owner]!, this.#failed.end)
    const missing: Span[] = []
    for (const span of this.#written) {
      if (span.end <= start) continue
      if (span.start >= end) break
      if (span.start > start) missing.push({ start, end: span.start })
      start = Math.max(start, span.end)
    }
    if (start < end) missing.push({ start, end })
    return missing
  }
}

/**
 * Whether it is to be found out which request is at fault: not if there is one only and nothing that the kernel may have merged
 * it with, or no device left to ask.
 */
export function mustIsolate(submission: Submission): boolean {
  const { errno } = submission
  if (errno === 0 || GONE.has(errno)) return false
  return submission.membersTo - submission.membersFrom > 1 || submission.hadNeighbour
}
