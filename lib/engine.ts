// One per thread: the tables shared with the addon, the in-flight slots, and the drain.
//
//   queue ──add──► request and vector tables ──commit: one native call──► kernel
//   settle ◄────── result table ◄──────────── drain: one callback ◄────── kernel
//
// An operation is anything with a `settle`: it is called once per `add`, with what the kernel answered, never inside `add` or
// `commit`. Retries, resumption and fan-out are its owner's business. After the settles of one drain come first those that
// send more, then those that call users back, so that the device works while JavaScript does.

import { constants } from 'node:os'
import { nextTick } from 'node:process'
import { BlockError } from './errors.ts'
import { withOne } from './fifo.ts'
import { sharedMemory } from './memory.ts'
import { addon, ENGINE_KIND, type Failure, LAYOUT_VERSION, MAX_VECTORS, REQUEST, RESULT, VECTOR } from './native.ts'

/** Operations in flight in one thread. The completion queue of the ring has as many entries, so it can't overflow. */
const SLOTS = 4096
/** Records per native call; a batch of more submissions takes another call. */
const REQUESTS_PER_CALL = 512
/** Vectors per native call: at least those of one longest operation. */
const VECTORS_PER_CALL = 16 * MAX_VECTORS

/**
 * What callbacks ask for, and whoever awaited, is handed over together, so many at most and no more than this part of what is in flight: a call of the
 * system for each costs as much as the requests, and meanwhile the device must not run dry.
 */
const HELD_MAX = 8
const HELD_PART = 1 / 4

/** Something in flight. */
export interface Operation {
  /** @param result bytes done, or a negative errno */
  settle(result: number): void
}

/** The engines, by the names that users give them. */
export type EngineName = keyof typeof ENGINE_KIND

/** A promise job of it is cheaper than `queueMicrotask`, which makes an async resource. */
const RESOLVED = Promise.resolve()

export class Engine {
  readonly #native = addon()
  readonly #requests: Float64Array
  readonly #vectors: Float64Array
  readonly #results: Float64Array
  readonly #owners: (Operation | null)[] = new Array<Operation | null>(SLOTS).fill(null)
  readonly #freeSlots: number[] = Array.from({ length: SLOTS }, (_, slot) => SLOTS - 1 - slot)
  #requestCount = 0
  #vectorCount = 0
  /** Vectors, and views passed along, of the operations that are complete. */
  #vectorMark = 0
  #viewMark = 0
  #views: Uint8Array[] = []
  /** Queues that found no free slot, or no pool memory; they go on after the next drain. */
  readonly #stalled = new Set<() => void>()
  #senders: (() => void)[] = []
  #tellers: (() => void)[] = []
  /** Whether users are being called back, or go on where they awaited. */
  #telling = false
  readonly #told = (): void => {
    this.#telling = false
    this.#handOver()
  }
  /** Who awaited goes on in promise jobs; a tick that one of them queues comes when there are none left. */
  readonly #tick = (): void => nextTick(this.#told)
  readonly #busyPolls = new Map<number, number>()
  #refused: { operation: Operation; result: number }[] = []

  /** @param path what it is made for, for the error */
  constructor(path: string) {
    this.#requests = sharedTable(REQUESTS_PER_CALL * REQUEST.stride, path)
    this.#vectors = sharedTable(VECTORS_PER_CALL * VECTOR.stride, path)
    this.#results = sharedTable(SLOTS * RESULT.stride, path)
    const drained = (count: number): void => this.#drained(count)
    const errno = this.#native.attach(this.#requests, this.#vectors, this.#results, drained, LAYOUT_VERSION)
    if (errno !== 0)
      throw new BlockError(errno, { syscall: 'open', path, reason: 'no memory for operations in flight' })
  }

  /** Asks for polling before sleeping, or (negative count) takes that back; the longest that is asked for holds. */
  busyPoll(microseconds: number, count: 1 | -1): void {
    if (microseconds === 0) return
    const asked = (this.#busyPolls.get(microseconds) ?? 0) + count
    if (asked === 0) this.#busyPolls.delete(microseconds)
    else this.#busyPolls.set(microseconds, asked)
    this.#native.setBusyPoll(Math.max(0, ...this.#busyPolls.keys()))
  }

  /** Makes the engine run; a failure tells why it can't. */
  start(name: EngineName): Failure | undefined {
    return this.#native.startEngine(ENGINE_KIND[name])
  }

  /** Whether another operation fits into the call that is being made up, after a `commit` if need be. */
  hasSlot(): boolean {
    return this.#freeSlots.length > 0
  }

  /** Starts the vectors of the next operation; hands over first if the tables have no room for a longest one. */
  begin(): void {
    if (this.#requestCount === REQUESTS_PER_CALL || this.#vectorCount + MAX_VECTORS > VECTORS_PER_CALL) this.#handOver()
    this.#vectorMark = this.#vectorCount
    this.#viewMark = this.#views.length
  }

  /** Takes back the vectors given since `begin`. */
  rewind(): void {
    this.#vectorCount = this.#vectorMark
    this.#views.length = this.#viewMark
  }

  /** Adds `length` bytes of `view`, which lies in foreign memory, from `start` on to the next operation. */
  vectorOf(view: Uint8Array, start: number, length: number): void {
    this.#views.push(view)
    this.vectorIn(-this.#views.length, start, length)
  }

  /** The same for registered memory, or for a view passed along (negative). */
  vectorIn(region: number, start: number, length: number): void {
    const vectors = this.#vectors
    const at = this.#vectorCount++ * VECTOR.stride
    vectors[at + VECTOR.region] = region
    vectors[at + VECTOR.start] = start
    vectors[at + VECTOR.length] = length
  }

  /** Adds the operation whose vectors were given since `begin`. There must be a free slot. */
  add(operation: Operation, op: number, file: number, offset: number, flags: number): void {
    const slot = this.#freeSlots.pop()!
    this.#owners[slot] = operation
    const at = this.#requestCount++ * REQUEST.stride
    const table = this.#requests
    table[at + REQUEST.op] = op
    table[at + REQUEST.flags] = flags
    table[at + REQUEST.file] = file
    table[at + REQUEST.slot] = slot
    table[at + REQUEST.firstVector] = this.#vectorMark
    table[at + REQUEST.vectorCount] = this.#vectorCount - this.#vectorMark
    table[at + REQUEST.offset] = offset
  }

  /** Hands over what was added since the last commit, in one native call; from those called back, when there is enough of it or all have gone on. */
  commit(): void {
    if (!this.#telling || !this.#mayHold(this.#requestCount)) this.#handOver()
  }

  #mayHold(count: number): boolean {
    return count < HELD_MAX && count < (SLOTS - this.#freeSlots.length) * HELD_PART
  }

  #handOver(): void {
    const count = this.#requestCount
    if (count === 0) return
    const views = this.#views
    this.#requestCount = 0
    this.#vectorCount = 0
    if (views.length > 0) this.#views = []
    const refused = this.#native.submit(count, views.length > 0 ? views : undefined)
    if (refused > 0) this.#keepRefused(refused)
  }

  /** Calls `pump` after the next drain, before those that send more. */
  stall(pump: () => void): void {
    this.#stalled.add(pump)
  }

  /**
   * Calls `send` when all results of the current drain are settled, then `tell` when all that wanted to send have sent. Only
   * for use inside `settle`.
   */
  afterDrain(send: () => void, tell: () => void): void {
    this.#senders = withOne(this.#senders, send)
    this.#tellers = withOne(this.#tellers, tell)
  }

  /** What was refused at once is reported like everything else: later, from the event loop. */
  #keepRefused(count: number): void {
    if (this.#refused.length === 0) {
      setImmediate(() => {
        const refused = this.#refused
        this.#refused = []
        for (const { operation, result } of refused) operation.settle(result)
        this.#finishDrain()
      })
    }
    for (let i = 0; i < count; i++) {
      const slot = this.#results[i * RESULT.stride + RESULT.slot]!
      const result = this.#results[i * RESULT.stride + RESULT.value]!
      this.#refused.push({ operation: this.#release(slot), result })
    }
  }

  #release(slot: number): Operation {
    const operation = this.#owners[slot]
    if (!operation) throw new Error(`multiwrite: slot ${slot} was reported twice`)
    this.#owners[slot] = null
    this.#freeSlots.push(slot)
    return operation
  }

  /** Called by the addon, once per wake-up, with the number of records in the result table. */
  #drained(count: number): void {
    // Slots are free before anything is settled, but nothing is submitted until all results are read: a submission that is
    // refused writes into the same table.
    for (let i = 0; i < count; i++) {
      const at = i * RESULT.stride
      this.#release(this.#results[at + RESULT.slot]!).settle(this.#results[at + RESULT.value]!)
    }
    this.#finishDrain()
  }

  #finishDrain(): void {
    // Who found no room before goes first, or a device with a long queue would take all that it gives back, for ever.
    if (this.#stalled.size > 0) {
      const stalled = [...this.#stalled]
      this.#stalled.clear()
      for (const pump of stalled) pump()
    }
    const senders = this.#senders
    if (senders.length > 0) this.#senders = []
    for (const send of senders) send()
    // Users' code runs from here on. It may submit, close and so on, but can't get back into the drain.
    const tellers = this.#tellers
    if (tellers.length > 0) this.#tellers = []
    this.#telling = true
    try {
      for (const tell of tellers) tell()
    } finally {
      RESOLVED.then(this.#tick)
    }
  }
}

/** Tables lie on shared memory, which can be neither detached nor shrunk: the addon keeps their addresses. */
function sharedTable(length: number, path: string): Float64Array {
  return new Float64Array(sharedMemory(length * Float64Array.BYTES_PER_ELEMENT, path))
}

let engine: Engine | undefined

/**
 * The engine of this thread, made at the first `open`: a ring keeps the credentials that it was made with.
 *
 * @param path what is to be opened
 * @throws a `BlockError` if there is no memory for it; the next call tries again
 */
export function threadEngine(path: string): Engine {
  if (engine !== undefined) return engine
  try {
    engine = new Engine(path)
    return engine
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code !== 'ENOMEM' || error instanceof BlockError) throw error
    throw new BlockError(constants.errno.ENOMEM, { syscall: 'open', path, reason: message, cause: error })
  }
}
