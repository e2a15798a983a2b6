// Single calls of one turn of JavaScript go out as one batch per kind.
//
// Writes and reads of a turn are gathered apart, as long as they stay out of each other's way: where one kind may overlap the
// other, what was gathered first goes first.
//
// The turn ends when the promise jobs and ticks that it has queued are done, without waiting for the event loop: a promise
// job alone would split callers whose promises are chained to different depths, a tick alone would split a caller that writes,
// awaits and writes again inside one callback; a tick queued by a promise job gathers both.

import { nextTick } from 'node:process'
import type { CheckedCallOptions } from './options.ts'
import { Collector, NO_INDEX } from './requests.ts'

/** Requests and bytes that are sent without waiting for the end of the turn. */
const GATHERED_REQUESTS_MAX = 4096
const GATHERED_BYTES_MAX = 16 << 20

/** A promise job of it is cheaper than `queueMicrotask`, which makes an async resource. */
const RESOLVED = Promise.resolve()

/** A gathered call's promise. */
export interface Caller {
  resolve: () => void
  reject: (error: Error) => void
  signal: AbortSignal | undefined
}

/** What was gathered. */
export interface Gathered {
  collector: Collector
  callers: Caller[]
  bytes: number
  /** All its ranges lie between these. */
  start: number
  end: number
}

function newGathered(read: boolean, expected: number): Gathered {
  return { collector: new Collector(expected, read), callers: [], bytes: 0, start: Number.MAX_SAFE_INTEGER, end: 0 }
}

export class Gather {
  readonly #read: boolean
  readonly #sendOne: (gathered: Gathered) => void
  #current: Gathered | null = null
  #scheduled = false
  /** As many as last time. */
  #expected = 1
  readonly #endOfTurn = (): void => {
    this.#scheduled = false
    this.send()
  }
  readonly #tick = (): void => nextTick(this.#endOfTurn)

  /** @param send called with what was gathered, at the end of the turn or when a bound is reached */
  constructor(read: boolean, send: (gathered: Gathered) => void) {
    this.#read = read
    this.#sendOne = send
  }

  /** Adds a call; throws, and adds nothing, if its range goes past `size`. */
  add(
    offset: number,
    data: Uint8Array | readonly Uint8Array[],
    size: number,
    options: CheckedCallOptions,
  ): Promise<void> {
    this.#current ??= newGathered(this.#read, this.#expected)
    const gathered = this.#current
    const length = gathered.collector.add(offset, data, NO_INDEX, size)
    gathered.bytes += length
    if (length > 0) {
      gathered.start = Math.min(gathered.start, offset)
      gathered.end = Math.max(gathered.end, offset + length)
    }
    if (options.fua) gathered.collector.setFua()
    const promise = new Promise<void>((resolve, reject) => {
      gathered.callers.push({ resolve, reject, signal: options.signal })
    })
    if (gathered.callers.length >= GATHERED_REQUESTS_MAX || gathered.bytes >= GATHERED_BYTES_MAX) {
      this.send()
    } else if (!this.#scheduled) {
      this.#scheduled = true
      RESOLVED.then(this.#tick)
    }
    return promise
  }

  /** Whether the range may overlap something gathered. */
  mayOverlap(offset: number, length: number): boolean {
    const gathered = this.#current
    return gathered !== null && offset < gathered.end && offset + length > gathered.start
  }

  /** Sends what was gathered. */
  send(): void {
    const gathered = this.#current
    if (gathered === null || gathered.callers.length === 0) return
    this.#current = null
    this.#expected = gathered.callers.length
    this.#sendOne(gathered)
  }
}
