// Replays a trace on an open device, batch by batch, and measures it.
//
//     trace batch ── cut at reads and flushes ──→ multiwrite ─┐
//                                              └→ reads ──────┼→ window: the oldest is awaited when it is full
//                                              └→ flush: awaited before anything else goes on
//
// Consecutive writes and zeroings of a trace batch are one batch here; discards are left out. Batches are not awaited one by
// one: up to `BATCHES_IN_FLIGHT` of them run, as long as their content fits into the ring, one piece of the device's own memory
// from which every batch takes its part and to which it gives it back when it is the oldest and done. Reads are compared with
// what the model holds at the time of their call, since the device promises that order. Nothing here opens or closes.

import { createHistogram, performance, type RecordableHistogram } from 'node:perf_hooks'
import type { BlockDevice } from '../index.ts'
import { type Difference, fillContent, type Model } from './content.ts'
import type { Trace, TraceRequest } from './trace.ts'

export interface ReplayOptions {
  /** Added to the line number of a request to give its position: lets a second replay on one model write other content. */
  positionBase?: number
  /** Called after each batch of the trace with the number of requests behind it. */
  onProgress?: (requests: number) => void
}

/** Times of single requests, from the call to their own callback, in nanoseconds. */
export interface Latency {
  p50: number
  p99: number
  p999: number
  max: number
}

export interface ReplayResult {
  /** Writes and zeroings asked for. */
  requests: number
  /** Merged runs that the device made of them. */
  submissions: number
  /** Bytes asked for. */
  bytes: number
  /** Bytes submitted: less than `bytes` where requests of a batch overlapped. */
  submittedBytes: number
  /** Reads whose bytes were compared with the model. */
  reads: number
  /** Flushes of the trace, and the one at the end. */
  flushes: number
  /** From the first call to the end of a last flush. */
  seconds: number
  /** The part of `seconds` in which this thread made contents. */
  contentSeconds: number
  requestsPerSecond: number
  bytesPerSecond: number
  latency: Latency
}

/** A read of the trace that did not see what had been written. */
export class StaleReadError extends Error {
  override name = 'StaleReadError'
  readonly difference: Difference
  constructor(request: TraceRequest, difference: Difference) {
    super(`the read in line ${request.line} of the trace saw a wrong byte`)
    this.difference = difference
  }
}

const BATCHES_IN_FLIGHT = 16
/** Enough for sixteen batches of a busy guest; a larger single batch makes the ring larger. */
const RING_BYTES_MIN = 32 * 1024 * 1024
const ZERO_BYTES = 1024 * 1024
const LATENCY_NS_MAX = 3600 * 1e9

type Part = { kind: 'write' | 'read'; requests: TraceRequest[] } | { kind: 'flush' }

/**
 * Replays `trace` on `disk` and tells `model` of every write.
 *
 * @throws whatever the first failed request failed with, when nothing is in flight any more; `StaleReadError` if a read saw
 *   anything but what was written before it.
 */
export async function replay(
  disk: BlockDevice,
  trace: Trace,
  model: Model,
  options: ReplayOptions = {},
): Promise<ReplayResult> {
  return await new Replay(disk, trace, model, options.positionBase ?? 0).run(options.onProgress)
}

class Replay {
  readonly #disk: BlockDevice
  readonly #batches: Part[][]
  readonly #model: Model
  readonly #positionBase: number
  readonly #align: number
  readonly #window: Window
  readonly #zeros: Buffer
  readonly #latency: RecordableHistogram = createHistogram({ lowest: 1, highest: LATENCY_NS_MAX, figures: 3 })
  #error: unknown = null
  #requests = 0
  #bytes = 0
  #reads = 0
  #flushes = 0
  #contentMs = 0

  constructor(disk: BlockDevice, trace: Trace, model: Model, positionBase: number) {
    this.#disk = disk
    this.#batches = trace.batches.map(partsOf)
    this.#model = model
    this.#positionBase = positionBase
    this.#align = Math.max(disk.limits.memoryAlignment, 4)
    const largest = this.#batches.flat().reduce((most, part) => Math.max(most, this.#memoryOf(part)), 0)
    this.#window = new Window(disk.alloc(Math.max(RING_BYTES_MIN, largest)))
    this.#zeros = disk.alloc(ZERO_BYTES)
  }

  async run(onProgress?: (requests: number) => void): Promise<ReplayResult> {
    const before = this.#disk.stats.write
    const startMs = performance.now()
    let done = 0
    for (const parts of this.#batches) {
      for (const part of parts) {
        if (part.kind === 'write') await this.#write(part.requests)
        else if (part.kind === 'read') await this.#read(part.requests)
        else await this.#flush()
        done += part.kind === 'flush' ? 1 : part.requests.length
      }
      // One turn of the event loop: completions that have arrived are answered before the next batch is made, as they would be
      // in a program that gets its requests from outside.
      await new Promise(setImmediate)
      if (this.#error !== null) break
      onProgress?.(done)
    }
    await this.#window.drain()
    if (this.#error === null) await this.#flush()
    if (this.#error !== null) throw this.#error
    const seconds = (performance.now() - startMs) / 1000
    const after = this.#disk.stats.write
    return {
      requests: this.#requests,
      submissions: after.submissions - before.submissions,
      bytes: this.#bytes,
      submittedBytes: after.bytes - before.bytes,
      reads: this.#reads,
      flushes: this.#flushes,
      seconds,
      contentSeconds: this.#contentMs / 1000,
      requestsPerSecond: this.#requests / seconds,
      bytesPerSecond: this.#bytes / seconds,
      latency: latencyOf(this.#latency),
    }
  }

  async #write(requests: TraceRequest[]): Promise<void> {
    const memory = await this.#window.room(this.#memoryOf({ kind: 'write', requests }))
    const fillMs = performance.now()
    let at = 0
    const batch = requests.map((request) => {
      if (request.op === 'Z') return { offset: request.offset, data: this.#zeroes(request.length), callback: answered }
      const data = memory.subarray(at, at + request.length)
      at += this.#aligned(request.length)
      const words = new Uint32Array(data.buffer, data.byteOffset, data.length / 4)
      fillContent(words, request.offset / 512, this.#positionBase + request.line, this.#model.seed)
      return { offset: request.offset, data, callback: answered }
    })
    const issuedMs = performance.now()
    this.#contentMs += issuedMs - fillMs
    for (const request of requests) {
      this.#bytes += request.length
      if (request.op === 'Z') this.#model.zeroed(request.offset, request.length)
      else this.#model.wrote(request.offset, request.length, this.#positionBase + request.line)
    }
    this.#requests += requests.length

    const latency = this.#latency
    const fail = (error: unknown): void => {
      this.#error ??= error
    }
    function answered(error: Error | null): void {
      if (error !== null) fail(error)
      else latency.record(Math.max(1, Math.round((performance.now() - issuedMs) * 1e6)))
    }
    this.#window.push(this.#disk.multiwrite(batch).then(() => {}, fail))
  }

  async #read(requests: TraceRequest[]): Promise<void> {
    const memory = await this.#window.room(this.#memoryOf({ kind: 'read', requests }))
    let at = 0
    const reads = requests.map(async (request) => {
      const into = memory.subarray(at, at + request.length)
      at += this.#aligned(request.length)
      const marks = this.#model.marks(request.offset, request.length)
      await this.#disk.read(request.offset, into)
      const difference = this.#model.compare(into, request.offset, marks)
      if (difference !== null) throw new StaleReadError(request, difference)
      this.#reads++
    })
    this.#window.push(
      Promise.allSettled(reads).then((outcomes) => {
        for (const outcome of outcomes) if (outcome.status === 'rejected') this.#error ??= outcome.reason
      }),
    )
  }

  async #flush(): Promise<void> {
    try {
      await this.#disk.flush()
      this.#flushes++
    } catch (error) {
      this.#error ??= error
    }
  }

  /** Zeros of any length without the memory for them. */
  #zeroes(length: number): Buffer | Buffer[] {
    if (length <= ZERO_BYTES) return this.#zeros.subarray(0, length)
    const data = new Array<Buffer>(Math.floor(length / ZERO_BYTES)).fill(this.#zeros)
    if (length % ZERO_BYTES !== 0) data.push(this.#zeros.subarray(0, length % ZERO_BYTES))
    return data
  }

  #memoryOf(part: Part): number {
    if (part.kind === 'flush') return 0
    return part.requests.reduce((sum, { op, length }) => sum + (op === 'Z' ? 0 : this.#aligned(length)), 0)
  }

  #aligned(length: number): number {
    return Math.ceil(length / this.#align) * this.#align
  }
}

/** What is in flight, oldest first, and the ring of memory that it takes its parts from. */
class Window {
  readonly #ring: Buffer
  readonly #entries: { bytes: number; done: Promise<void> }[] = []
  #head = 0
  #used = 0
  #taken = 0

  constructor(ring: Buffer) {
    this.#ring = ring
  }

  /** Waits for room; what comes back is the caller's until the promise that it pushes next has settled. */
  async room(bytes: number): Promise<Buffer> {
    for (;;) {
      if (this.#entries.length === 0) this.#head = this.#used = 0
      const wraps = this.#head + bytes > this.#ring.length
      const skipped = wraps ? this.#ring.length - this.#head : 0
      const fits = this.#used + skipped + bytes <= this.#ring.length
      if (fits && this.#entries.length < BATCHES_IN_FLIGHT) {
        const start = wraps ? 0 : this.#head
        this.#head = start + bytes
        this.#taken = skipped + bytes
        this.#used += this.#taken
        return this.#ring.subarray(start, start + bytes)
      }
      await this.#retire()
    }
  }

  /** `done` must not reject. */
  push(done: Promise<void>): void {
    this.#entries.push({ bytes: this.#taken, done })
    this.#taken = 0
  }

  async drain(): Promise<void> {
    while (this.#entries.length > 0) await this.#retire()
  }

  async #retire(): Promise<void> {
    const oldest = this.#entries[0]!
    await oldest.done
    this.#entries.shift()
    this.#used -= oldest.bytes
  }
}

function partsOf(batch: TraceRequest[]): Part[] {
  const parts: Part[] = []
  for (const request of batch) {
    if (request.op === 'D') continue
    if (request.op === 'F') {
      parts.push({ kind: 'flush' })
      continue
    }
    const kind = request.op === 'R' ? 'read' : 'write'
    const last = parts.at(-1)
    if (last !== undefined && last.kind === kind) last.requests.push(request)
    else parts.push({ kind, requests: [request] })
  }
  return parts
}

function latencyOf(histogram: RecordableHistogram): Latency {
  return {
    p50: histogram.percentile(50),
    p99: histogram.percentile(99),
    p999: histogram.percentile(99.9),
    max: histogram.max,
  }
}
