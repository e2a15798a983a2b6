// From checked work to answers: makes batches, puts them in the order of calls and sends what may go; `calls.ts` turns what
// became of each request into callbacks and promises. One per device; the device itself only checks and describes.
//
//   device ─► Dispatch.run / gather ─► Batch ─► Gate ─► planner ─► Queue ─► Engine
//   caller ◄─ callback, promise     ◄─ Batch ◄──────────────────── Queue ◄─ Engine

import { onAbort } from './abort.ts'
import { Batch, type BatchContext, type BatchListener } from './batch.ts'
import type { Blocks } from './blocks.ts'
import { BatchCall, GatheredCalls } from './calls.ts'
import { batchesAreWatched, introduce, watchBatch } from './diagnostics.ts'
import { Durability, type Synced } from './durability.ts'
import { AbortError, BlockError } from './errors.ts'
import { Gate, type Staged } from './gate.ts'
import { type Caller, Gather, type Gathered } from './gather.ts'
import type { CheckedCallOptions, MergeMode } from './options.ts'
import type { Limits, MayFill } from './planner/units.ts'
import { isUint8Array, type Work } from './requests.ts'
import type { Counters } from './stats.ts'
import type { Submission, SubmissionOwner } from './submission.ts'

/** What a batch came to. */
export interface BatchResult {
  /** Requests of the batch. */
  requests: number
  /** Requests that failed; each told its callback. */
  failed: number
}

/** Takes submissions whose turn has come, and carries them out. */
export interface SubmissionQueue {
  /** Puts submissions behind those that wait; `pump` sends them. */
  enqueue(submissions: readonly Submission[]): void
  /** Sends what may be in flight. */
  pump(): void
  /**
   * Makes durable what has ended. `done` gets 0 or a negative errno, never inside the call; and `true` if a later flush that
   * succeeds may be believed all the same.
   */
  flush(done: (result: number, mayRetry?: boolean) => void): void
  /** Withdraws requests of batches from the submissions that were never sent. */
  withdraw(leaving: ReadonlyMap<SubmissionOwner, ReadonlyMap<number, AbortError>>): void
}

/** What dispatching needs to know of its device. */
export interface DispatchOptions {
  readonly path: string
  readonly engineName: string
  readonly blocks: Blocks
  readonly mode: MergeMode
  readonly merge: Limits
  readonly ordered: boolean
  readonly counters: Counters
  /**
   * Where submissions go; called once, while the dispatch is made. The queue calls `beforeSending` before it sends anything: it
   * may withdraw what waits.
   */
  readonly queue: (gate: Gate, ordered: boolean, beforeSending: () => void) => SubmissionQueue
  /** What a format driver has to say before requests are planned; `null` without one. */
  readonly stage: Staged | null
  readonly mayFill: MayFill | null
}

export class Dispatch {
  readonly gate: Gate
  readonly queue: SubmissionQueue
  readonly durability: Durability
  readonly #options: DispatchOptions
  readonly #context: BatchContext
  readonly #writes: Gather
  readonly #reads: Gather
  /** Per batch, the requests to be withdrawn. */
  #leaving = new Map<Batch, Map<number, AbortError>>()
  /**
   * Takes back what was not submitted of them. All at once, since it means to look at everything that waits, and there can be
   * a hundred thousand of them; but before anything else is sent.
   */
  readonly #withdraw = (): void => {
    const leaving = this.#leaving
    if (leaving.size === 0) return
    this.#leaving = new Map()
    this.queue.withdraw(leaving)
    for (const [batch, owners] of leaving) {
      if (batch.withdraw(owners)) queueMicrotask(() => batch.tell())
    }
  }

  constructor(options: DispatchOptions) {
    const { blocks, merge, counters, path, engineName, mayFill } = options
    this.#options = options
    introduce(options.counters, { path: options.path, engine: options.engineName })
    this.durability = new Durability((done) => this.#sync(done))
    let direct = { ...merge, alignment: blocks.alignment, tail: blocks.tail }
    this.#context = {
      path,
      engine: engineName,
      mode: options.mode,
      limits: (read) => {
        if (blocks.alignment === 1 || read) return merge
        if (direct.tail !== blocks.tail) direct = { ...merge, alignment: blocks.alignment, tail: blocks.tail }
        return direct
      },
      mayFill,
      counters,
      durability: this.durability,
    }
    // Rewriting blocks needs the order of calls in any case.
    const ordered = options.ordered || blocks.alignment > 1
    this.gate = new Gate(ordered, blocks, options.stage)
    this.queue = options.queue(this.gate, ordered, this.#withdraw)
    this.#writes = new Gather(false, (gathered) => this.#startGathered(gathered))
    this.#reads = new Gather(true, (gathered) => this.#startGathered(gathered))
  }

  /** Carries out the requests of one call. */
  run(work: Work, signal: AbortSignal | undefined): Promise<BatchResult> {
    if (!batchesAreWatched()) return this.#run(work, signal)
    return watchBatch(this.#options.counters, work, () => this.#run(work, signal))
  }

  #run(work: Work, signal: AbortSignal | undefined): Promise<BatchResult> {
    this.sendGathered()
    const counters = work.read ? this.#options.counters.read : this.#options.counters.write
    counters.requests += work.count
    return new Promise((resolve, reject) => {
      const call = new BatchCall(work, resolve, reject, signal)
      const batch = this.#start(work, call)
      if (signal !== undefined) call.stopListening = onAbort(signal, () => this.#leave(batch, allOf(work), signal))
      this.#go(batch)
    })
  }

  /** Takes in a single write; throws if it goes past `size`. */
  write(
    offset: number,
    data: Uint8Array | readonly Uint8Array[],
    size: number,
    options: CheckedCallOptions,
  ): Promise<void> {
    return this.#gather(this.#writes, this.#reads, offset, data, size, options)
  }

  /** Takes in a single read; throws if it goes past `size`. */
  read(
    offset: number,
    into: Uint8Array | readonly Uint8Array[],
    size: number,
    options: CheckedCallOptions,
  ): Promise<void> {
    return this.#gather(this.#reads, this.#writes, offset, into, size, options)
  }

  #gather(
    gather: Gather,
    other: Gather,
    offset: number,
    data: Uint8Array | readonly Uint8Array[],
    size: number,
    options: CheckedCallOptions,
  ): Promise<void> {
    if (other.mayOverlap(offset, lengthOf(data))) other.send()
    const promise = gather.add(offset, data, size, options)
    const counters = gather === this.#reads ? this.#options.counters.read : this.#options.counters.write
    counters.requests++
    return promise
  }

  /** Any other call on the device sends what was gathered first. */
  sendGathered(): void {
    this.#writes.send()
    this.#reads.send()
  }

  /** Writes on a range whose order is settled, as a part of an operation that is counted as such. */
  writeInside(work: Work): Promise<BlockError | null> {
    return new Promise((resolve) => {
      let failure: BlockError | null = null
      const listener = {
        answer: (_: number, error: Error | null): void => {
          if (error instanceof BlockError) failure = error
        },
        finished: (): void => resolve(failure),
      }
      const batch = new Batch(work, this.#context, listener, null)
      batch.isCounted = false
      this.queue.enqueue(batch.releaseAll(batch.planAllSeparately(), () => null))
      this.#go(batch)
    })
  }

  /** Makes durable what has been written so far. A failure latches, as that of any flush. */
  sync(): Promise<BlockError | null> {
    return new Promise((resolve) => {
      this.#sync((error, latches) => {
        if (error !== null && latches) this.durability.latch(error)
        resolve(error)
      })
    })
  }

  #sync(done: Synced): void {
    const { counters, path, engineName } = this.#options
    counters.flushes++
    this.queue.flush((result, mayRetry = false) => {
      const failure = { syscall: 'fdatasync', path, engine: engineName }
      done(result < 0 ? new BlockError(-result, failure) : null, !mayRetry)
    })
  }

  #startGathered({ collector, callers }: Gathered): void {
    const work = collector.finish([])
    const calls = new GatheredCalls(callers)
    const batch = this.#start(work, calls)
    if (batchesAreWatched()) {
      const ended = new Promise<BatchResult>((resolve) => {
        calls.over = resolve
      })
      void watchBatch(this.#options.counters, work, () => ended)
    }
    for (const [signal, owners] of ownersBySignal(callers) ?? []) {
      const leave = (): void => this.#leave(batch, owners, signal)
      // Raised while the calls were being gathered: nothing of them has been submitted.
      if (signal.aborted) {
        leave()
        continue
      }
      calls.stopListening ??= []
      calls.stopListening.push(onAbort(signal, leave))
    }
    this.#go(batch)
  }

  /** Takes in a batch; `#go` sends what of it may go. */
  #start(work: Work, listener: BatchListener): Batch {
    const batch = new Batch(work, this.#context, listener, this.durability.issue(work.read))
    this.queue.enqueue(this.gate.admit(batch))
    return batch
  }

  #go(batch: Batch): void {
    this.queue.pump()
    if (batch.endEmpty()) queueMicrotask(() => batch.tell())
  }

  /** Notes that some requests of a batch are to be withdrawn: before anything is sent, or when the caller has returned. */
  #leave(batch: Batch, owners: Iterable<number>, signal: AbortSignal): void {
    if (this.#leaving.size === 0) queueMicrotask(this.#withdraw)
    const error = new AbortError(signal.reason)
    const leaving = this.#leaving.get(batch) ?? new Map<number, AbortError>()
    for (const owner of owners) leaving.set(owner, error)
    this.#leaving.set(batch, leaving)
  }
}

/** `null`: none has a signal. */
function ownersBySignal(callers: readonly Caller[]): Map<AbortSignal, number[]> | null {
  let found: Map<AbortSignal, number[]> | null = null
  for (let owner = 0; owner < callers.length; owner++) {
    const { signal } = callers[owner]!
    if (signal === undefined) continue
    found ??= new Map()
    const owners = found.get(signal)
    if (owners === undefined) found.set(signal, [owner])
    else owners.push(owner)
  }
  return found
}

function lengthOf(data: Uint8Array | readonly Uint8Array[]): number {
  if (isUint8Array(data)) return data.length
  let length = 0
  for (const piece of data) length += piece.length
  return length
}

function allOf(work: Work): number[] {
  return Array.from({ length: work.count }, (_, owner) => owner)
}
