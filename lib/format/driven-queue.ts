// Merged runs of a driven device on their way to the driver: so many at once, the others in order behind them. It stands where
// the queue of a raw device stands, and what it does with outcomes is the same: a failed run is taken apart into its requests,
// what may go next is sent first, and users are called back last. Resuming and retrying are the host's business.

import { constants } from 'node:os'
import type { Blocks } from '../blocks.ts'
import type { SubmissionQueue } from '../dispatch.ts'
import { type AbortError, BlockError, reasonOf } from '../errors.ts'
import { Fifo } from '../fifo.ts'
import type { Gate } from '../gate.ts'
import { Isolation, mustIsolate } from '../isolation.ts'
import type { Counters } from '../stats.ts'
import type { Parent, Submission, SubmissionOwner } from '../submission.ts'
import type { FormatImage, Range } from './driver.ts'
import type { Stage } from './stage.ts'

const { EFAULT, EIO, ENOSPC } = constants.errno

/** Zeros for the gaps of runs, and their length. */
const ZEROS = new Uint8Array(new SharedArrayBuffer(64 << 10))

/** What a driven queue needs to know. */
export interface DrivenQueueOptions {
  readonly path: string
  readonly engine: string
  readonly image: FormatImage
  readonly stage: Stage
  readonly blocks: Blocks
  /** Runs in flight at once. */
  readonly depth: number
  /** Whether the host goes past the page cache, whose lost pages belong to no range. */
  readonly direct: boolean
  readonly counters: Counters
}

export class DrivenQueue implements SubmissionQueue {
  readonly #gate: Gate
  readonly #beforeSending: () => void
  readonly #options: DrivenQueueOptions
  readonly #waiting = new Fifo<Submission>()
  readonly #front = new Fifo<Submission>()
  #inFlight = 0
  #ended: { submission: Submission; error: unknown }[] = []
  #toTell: SubmissionOwner[] = []
  #settlingSoon = false
  readonly #settle = (): void => {
    this.#settlingSoon = false
    this.#settleAll()
  }

  /** @param beforeSending called before anything is sent; it may withdraw what waits */
  constructor(gate: Gate, options: DrivenQueueOptions, beforeSending: () => void) {
    this.#gate = gate
    this.#beforeSending = beforeSending
    this.#options = options
    options.stage.attach(gate, (submissions) => {
      this.enqueue(submissions)
      this.pump()
    })
  }

  enqueue(submissions: readonly Submission[]): void {
    for (const submission of submissions) this.#waiting.push(submission)
  }

  flush(done: (result: number, mayRetry?: boolean) => void): void {
    const { image } = this.#options
    image.flush().then(
      () => done(0),
      (error: unknown) => done(-errnoOf(error), image.mayFlushAgain === true),
    )
  }

  pump(): void {
    this.#beforeSending()
    while (this.#inFlight < this.#options.depth) {
      const submission = this.#front.take() ?? this.#waiting.take()
      if (submission === undefined) break
      this.#start(submission)
    }
  }

  withdraw(all: ReadonlyMap<SubmissionOwner, ReadonlyMap<number, AbortError>>): void {
    const { stage } = this.#options
    const keep = (submission: Submission): Submission[] => {
      const leaving = all.get(submission.batch)
      if (leaving === undefined || submission.sent || submission.parent !== null) return [submission]
      if (!submission.concerns(leaving)) return [submission]
      const rest = submission.batch.replan(submission, leaving, (owner) => leaving.get(owner)!)
      const now = stage.share(submission, rest)
      this.#end(submission, null)
      return now
    }
    stage.replaceWaiting(keep)
    this.#waiting.replaceEach(keep)
    this.#front.replaceEach(keep)
  }

  #start(submission: Submission): void {
    this.#count(submission)
    this.#inFlight++
    let done: Promise<void>
    try {
      done = submission.read ? this.#read(submission) : this.#write(submission)
    } catch (error) {
      done = Promise.reject(error)
    }
    done.then(
      () => {
        this.#inFlight--
        this.#end(submission, null)
      },
      (error: unknown) => {
        this.#inFlight--
        this.#end(submission, error ?? new Error('the format driver failed'))
      },
    )
  }

  #write(submission: Submission): Promise<void> {
    const { image, blocks } = this.#options
    if (submission.end > blocks.size) throw this.#error(submission.batch, -1, ENOSPC)
    return image.write(submission.offset, piecesOf(submission), { fua: submission.fua }, gapsOf(submission))
  }

  async #read(submission: Submission): Promise<void> {
    const { image, blocks } = this.#options
    if (submission.end > blocks.size) throw this.#error(submission.batch, -1, ENOSPC)
    if (!submission.batch.readsOverlap(submission)) return image.read(submission.offset, piecesOf(submission))
    // Several requests ask for the same bytes: they are read once.
    const bytes = new Uint8Array(submission.length)
    await image.read(submission.offset, [bytes])
    copyOut(submission, bytes)
  }

  #count(submission: Submission): void {
    if (submission.parent !== null || submission.sent) return
    submission.sent = true
    if (!submission.batch.isCounted) return
    const { read, write } = this.#options.counters
    const counters = submission.read ? read : write
    counters.submissions++
    counters.bytes += submission.length
  }

  #end(submission: Submission, error: unknown): void {
    this.#ended.push({ submission, error })
    if (this.#settlingSoon) return
    this.#settlingSoon = true
    // Those that the host has ended at once follow each other as promise jobs: the tick comes after all of them.
    process.nextTick(this.#settle)
  }

  #settleAll(): void {
    const ended = this.#ended
    this.#ended = []
    for (const { submission, error } of ended) this.#conclude(submission, error)
    this.pump()
    const batches = this.#toTell
    this.#toTell = []
    for (const batch of batches) {
      batch.isToTell = false
      batch.tell()
    }
  }

  #conclude(submission: Submission, error: unknown): void {
    const { parent, batch } = submission
    let errno = error === null ? 0 : errnoOf(error)
    // What follows memory that was taken away may have moved up into its place: nothing of the run is believed.
    if (errno === 0 && (submission.sent || parent !== null) && hasLostMemory(submission)) errno = EFAULT
    // What was never sent has not been done either, but nobody asks.
    submission.finish(errno)
    // Lost memory is no lost data, and neither are tables that are in memory still.
    const isLoss = errno !== 0 && errno !== EFAULT && this.#options.image.mayFlushAgain !== true
    if (isLoss && submission.fua && !this.#options.direct) batch.fuaFailed(submission)
    const isolates = parent === null && mustIsolate(submission)
    if (errno !== 0 && !isolates) this.#explain(submission, errno, error)
    if (parent !== null) {
      parent.childEnded(submission)
      this.#runSingles(parent)
    } else if (isolates) {
      const isolation = new Isolation(
        submission,
        (singles) => {
          for (const single of singles) this.#front.push(single)
        },
        (failed) => this.#finish(failed),
      )
      this.#runSingles(isolation)
    } else {
      this.#finish(submission)
    }
  }

  #runSingles(isolation: Parent): void {
    this.#options.counters.isolated += isolation.run()
  }

  #finish(submission: Submission): void {
    this.enqueue(this.#options.stage.ended(submission))
    this.enqueue(this.#gate.ended(submission))
    const { batch } = submission
    if (batch.isToTell) return
    batch.isToTell = true
    this.#toTell.push(batch)
  }

  /** What a driver refuses, it refuses with a reason: its words reach the requests. */
  #explain(submission: Submission, errno: number, error: unknown): void {
    const { batch } = submission
    for (let m = submission.membersFrom; m < submission.membersTo; m++) {
      const owner = submission.members[m]!
      batch.fail(owner, errno === EFAULT ? batch.memoryError(owner) : this.#error(batch, owner, errno, error))
    }
  }

  #error(batch: SubmissionOwner, owner: number, errno: number, cause?: unknown): BlockError {
    const { path, engine } = this.#options
    const { work } = batch
    const reason = reasonOf(cause)
    const [offset, length] = owner < 0 ? [undefined, undefined] : [work.offset[owner], work.length[owner]]
    return new BlockError(errno, { syscall: work.read ? 'read' : 'write', path, engine, offset, length, reason, cause })
  }
}

/** The errno of what a driver rejects with: that of a `BlockError`, else `EIO`. */
export function errnoOf(error: unknown): number {
  return error instanceof BlockError ? -error.errno : EIO
}

/** The memory of a run, piece by piece; gaps are zeros. Memory that was taken away is an error. */
function piecesOf(submission: Submission): Uint8Array[] {
  const { plan, index, units, batch } = submission
  const { firstSegment, segmentUnit, segmentStart, segmentLength } = plan
  const pieces: Uint8Array[] = []
  for (let s = firstSegment[index]!; s < firstSegment[index + 1]!; s++) {
    const planned = segmentUnit[s]!
    let length = segmentLength[s]!
    if (planned < 0) {
      for (; length > ZEROS.length; length -= ZEROS.length) pieces.push(ZEROS)
      pieces.push(ZEROS.subarray(0, length))
      continue
    }
    const unit = units === null ? planned : units.unit[planned]!
    const start = segmentStart[s]! + (units === null ? 0 : units.start[planned]!)
    const view = batch.work.views[unit]!
    if (view.length < batch.work.units.length[unit]!)
      throw batch.memoryError(submission.members[submission.membersFrom]!)
    pieces.push(start === 0 && length === view.length ? view : view.subarray(start, start + length))
  }
  return pieces
}

/** Whether memory of a run was taken away while the driver had it. */
function hasLostMemory({ batch, membersFrom, membersTo, members }: Submission): boolean {
  const { units, views } = batch.work
  for (let m = membersFrom; m < membersTo; m++) {
    const owner = members[m]!
    for (let unit = batch.firstUnitOf(owner); unit < batch.firstUnitOf(owner + 1); unit++) {
      if (views[unit]!.length < units.length[unit]!) return true
    }
  }
  return false
}

/** The gaps of a run that were filled. */
function gapsOf({ plan, index, offset }: Submission): Range[] {
  const { firstSegment, segmentUnit, segmentLength } = plan
  let gaps: Range[] = NO_GAPS
  let place = offset
  for (let s = firstSegment[index]!; s < firstSegment[index + 1]!; s++) {
    const length = segmentLength[s]!
    if (segmentUnit[s]! < 0) {
      if (gaps === NO_GAPS) gaps = []
      gaps.push({ offset: place, length })
    }
    place += length
  }
  return gaps
}

const NO_GAPS: Range[] = []

/** Copies what was read into the memory of everyone who asked for it. */
function copyOut(submission: Submission, bytes: Uint8Array): void {
  const { batch, offset, end } = submission
  const { units, views } = batch.work
  for (let m = submission.membersFrom; m < submission.membersTo; m++) {
    const owner = submission.members[m]!
    for (let unit = batch.firstUnitOf(owner); unit < batch.firstUnitOf(owner + 1); unit++) {
      const place = units.offset[unit]!
      const start = Math.max(place, offset)
      const stop = Math.min(place + units.length[unit]!, end)
      if (start >= stop) continue
      const view = views[unit]!
      if (view.length < units.length[unit]!) batch.fail(owner, batch.memoryError(owner))
      else view.set(bytes.subarray(start - offset, stop - offset), start - place)
    }
  }
}
