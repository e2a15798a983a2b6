// What is done to a range besides reading and writing it: discard, write zeroes, truncate. Each holds its range in the order of
// calls like a write, and then asks the kernel by a call that may block, on Node's worker threads. Where the kernel has no
// short way to make zeros, they are written.

import { constants } from 'node:os'
import type { RangeOperations } from './backend.ts'
import type { Blocks } from './blocks.ts'
import type { Dispatch } from './dispatch.ts'
import { BlockError } from './errors.ts'
import type { CheckResult } from './format/driver.ts'
import { alignedBuffer, PAGE_SIZE } from './memory.ts'
import { blocking, RANGE_OP } from './native.ts'
import { Collector, NO_INDEX, type Work } from './requests.ts'
import type { Counters } from './stats.ts'

const { EOPNOTSUPP, ENOTTY, EINVAL } = constants.errno

/** Zeros are written from one shared piece of memory, and so many of them at once. */
const ZEROS_BYTES = 64 << 10
export const ZEROS_AT_ONCE: number = 256 << 20
/** A hold to the end of everything. */
const END: number = Number.MAX_SAFE_INTEGER

/** What the operations need of their device. */
export interface RangeContext {
  readonly file: number
  readonly path: string
  readonly engine: string
  readonly blockDevice: boolean
  /** Units of the kernel's calls on ranges, in bytes. */
  readonly granularity: number
  readonly blocks: Blocks
  readonly dispatch: Dispatch
  readonly counters: Counters
}

export class Ranges implements RangeOperations {
  readonly #context: RangeContext

  constructor(context: RangeContext) {
    this.#context = context
  }

  /** Whole blocks inside the range are discarded; heads and tails stay as they are. */
  discard(offset: number, length: number, size: number): Promise<void> {
    const { start, end } = this.#inner(offset, length, size)
    if (start >= end) return Promise.resolve()
    this.#context.counters.discards++
    return this.#hold(offset, offset + length, () => this.#change(RANGE_OP.discard, start, end - start))
  }

  /** The range reads as zeros: whole blocks by the kernel's call for it, heads and tails by writing. */
  writeZeroes(offset: number, length: number, size: number, unmap: boolean, fua: boolean): Promise<void> {
    if (length === 0) return Promise.resolve()
    this.#context.counters.zeroes++
    return this.#hold(offset, offset + length, async () => {
      const error = await this.#zero(offset, offset + length, size, unmap)
      return error === null && fua ? this.#context.dispatch.sync() : error
    })
  }

  /** @param settled called with the outcome while the range is still held */
  truncate(from: number, to: number, settled: (error: BlockError | null) => Promise<void>): Promise<void> {
    const start = Math.min(from, to)
    return this.#hold(start, END, async () => {
      const error = await this.#change(RANGE_OP.truncate, to, 0)
      await settled(error)
      return error
    })
  }

  check(): Promise<CheckResult> {
    const { path } = this.#context
    const reason = 'a raw image has nothing that could be checked: pass the format that it has'
    return Promise.reject(new BlockError(EOPNOTSUPP, { syscall: 'check', path, reason }))
  }

  async #zero(start: number, end: number, size: number, unmap: boolean): Promise<BlockError | null> {
    const inner = this.#inner(start, end - start, size)
    if (inner.start >= inner.end) return this.#writeZeros(start, end)
    const head = await this.#writeZeros(start, inner.start)
    if (head !== null) return head
    let error = await this.#change(unmap ? RANGE_OP.zeroUnmap : RANGE_OP.zero, inner.start, inner.end - inner.start)
    if (error !== null && unmap && isUnsupported(error)) {
      error = await this.#change(RANGE_OP.zero, inner.start, inner.end - inner.start)
    }
    if (error !== null && isUnsupported(error)) error = await this.#writeZeros(inner.start, inner.end)
    return error ?? (await this.#writeZeros(inner.end, end))
  }

  async #writeZeros(start: number, end: number): Promise<BlockError | null> {
    const { path } = this.#context
    for (let place = start; place < end; place += ZEROS_AT_ONCE) {
      const error = await this.#context.dispatch.writeInside(
        zerosWork(place, Math.min(end, place + ZEROS_AT_ONCE), path),
      )
      if (error !== null) return error
    }
    return null
  }

  /** The whole blocks inside a range. The last block of a file may be a partial one. */
  #inner(offset: number, length: number, size: number): { start: number; end: number } {
    const { granularity, blockDevice } = this.#context
    const end = offset + length
    const start = offset + ((granularity - (offset % granularity)) % granularity)
    return { start, end: end === size && !blockDevice ? end : end - (end % granularity) }
  }

  async #change(op: number, offset: number, length: number): Promise<BlockError | null> {
    const { file, path, engine } = this.#context
    const { errno, syscall } = await blocking.changeRange(file, op, offset, length)
    if (errno === 0) return null
    // "Not a typewriter": a device that has no such call.
    return new BlockError(errno === ENOTTY ? EOPNOTSUPP : errno, { syscall, path, engine, offset, length })
  }

  /** Does something when nothing earlier is in its way, with everything later kept out until it is done. */
  #hold(start: number, end: number, run: () => Promise<BlockError | null>): Promise<void> {
    const { gate, queue, durability } = this.#context.dispatch
    const span = this.#context.blocks.aroundForKernel(start, end)
    const ticket = durability.issue(false)
    return new Promise((resolve, reject) => {
      const finish = (error: unknown): void => {
        queue.enqueue(gate.leave(hold))
        queue.pump()
        durability.end(ticket)
        if (error === null) resolve()
        else reject(error)
      }
      // There may be no memory for zeros.
      const begin = (): void => void run().then(finish, finish)
      const hold = gate.enter(span.start, span.end, () => queueMicrotask(begin))
    })
  }
}

let zeros: Buffer | undefined

/**
 * Zeros as one request of a batch.
 *
 * @throws a `BlockError` of `path` if there is no memory for them
 */
export function zerosWork(start: number, end: number, path: string): Work {
  zeros ??= alignedBuffer(ZEROS_BYTES, PAGE_SIZE, path)
  const pieces: Uint8Array[] = []
  for (let place = start; place < end; place += ZEROS_BYTES) {
    pieces.push(end - place < ZEROS_BYTES ? zeros.subarray(0, end - place) : zeros)
  }
  const collector = new Collector(1, false)
  collector.add(start, pieces, NO_INDEX, end)
  return collector.finish([])
}

function isUnsupported(error: BlockError): boolean {
  return error.errno === -EOPNOTSUPP || error.errno === -EINVAL
}
