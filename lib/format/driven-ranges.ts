// What is done to ranges of a driven device besides reading and writing: each operation waits for its turn in the order of calls,
// then for allocations in its clusters, keeps both away while the driver works, and passes its turn on.

import { constants } from 'node:os'
import type { RangeOperations } from '../backend.ts'
import type { Blocks } from '../blocks.ts'
import type { Dispatch } from '../dispatch.ts'
import { BlockError, reasonOf } from '../errors.ts'
import { ZEROS_AT_ONCE, zerosWork } from '../ranges.ts'
import type { Counters } from '../stats.ts'
import { errnoOf } from './driven-queue.ts'
import type { CheckResult, FormatImage } from './driver.ts'
import type { Stage } from './stage.ts'

const { EOPNOTSUPP } = constants.errno

/** A hold to the end of everything. */
const END: number = Number.MAX_SAFE_INTEGER

/** What the operations need of their device. */
export interface DrivenRangeContext {
  readonly path: string
  readonly engine: string
  readonly format: string
  readonly image: FormatImage
  readonly stage: Stage
  readonly blocks: Blocks
  readonly dispatch: Dispatch
  readonly counters: Counters
}

export class DrivenRanges implements RangeOperations {
  readonly #context: DrivenRangeContext

  constructor(context: DrivenRangeContext) {
    this.#context = context
  }

  discard(offset: number, length: number): Promise<void> {
    const { image, counters } = this.#context
    if (length === 0) return Promise.resolve()
    if (image.discard === undefined) return Promise.reject(this.#unsupported('discard'))
    counters.discards++
    return this.#hold('discard', offset, offset + length, () => image.discard!(offset, length))
  }

  writeZeroes(offset: number, length: number, _size: number, unmap: boolean, fua: boolean): Promise<void> {
    const { image, counters, dispatch } = this.#context
    if (length > 0) counters.zeroes++
    return this.#hold('write', offset, offset + length, async () => {
      if (length === 0) return
      if (image.writeZeroes === undefined) await this.#writeZeros(offset, offset + length)
      else await image.writeZeroes(offset, length, { unmap })
      const error = fua ? await dispatch.sync() : null
      if (error !== null) throw error
    })
  }

  async #writeZeros(start: number, end: number): Promise<void> {
    const { path } = this.#context
    for (let place = start; place < end; place += ZEROS_AT_ONCE) {
      const error = await this.#context.dispatch.writeInside(
        zerosWork(place, Math.min(end, place + ZEROS_AT_ONCE), path),
      )
      if (error !== null) throw error
    }
  }

  truncate(from: number, to: number, settled: (error: BlockError | null) => Promise<void>): Promise<void> {
    const { image, blocks } = this.#context
    return this.#hold('ftruncate', Math.min(from, to), END, async () => {
      try {
        await image.truncate!(to)
      } catch (error) {
        await settled(this.#failed(error, 'ftruncate'))
        throw error
      }
      blocks.size = image.size
      await settled(null)
    })
  }

  async check(repair: boolean): Promise<CheckResult> {
    const { image } = this.#context
    if (image.check === undefined) throw this.#unsupported('check')
    let result: CheckResult | undefined
    await this.#hold('check', 0, END, async () => {
      result = await image.check!({ repair })
    })
    return result!
  }

  #unsupported(syscall: string): BlockError {
    const { path, format } = this.#context
    return new BlockError(EOPNOTSUPP, {
      syscall,
      path,
      reason: `the format ${format} has no ${syscall}: do without it`,
    })
  }

  #failed(error: unknown, syscall: string, offset?: number, length?: number): BlockError {
    const { path, engine } = this.#context
    return new BlockError(errnoOf(error), {
      syscall,
      path,
      engine,
      offset,
      length,
      reason: reasonOf(error),
      cause: error,
    })
  }

  #hold(syscall: string, start: number, end: number, run: () => Promise<void>): Promise<void> {
    const { stage } = this.#context
    const { gate, queue, durability } = this.#context.dispatch
    if (start === end) return run()
    const ticket = durability.issue(false)
    return new Promise((resolve, reject) => {
      const begin = (): void => {
        const lock = stage.lock(start, end, () =>
          queueMicrotask(() => {
            void settledOf(run).then((error) => {
              queue.enqueue(stage.unlock(lock))
              queue.enqueue(gate.leave(hold))
              queue.pump()
              durability.end(ticket)
              if (error === null) resolve()
              else reject(end === END ? this.#failed(error, syscall) : this.#failed(error, syscall, start, end - start))
            })
          }),
        )
      }
      const hold = gate.enter(start, end, () => queueMicrotask(begin))
    })
  }
}

/** What it rejects with, or `null`. */
async function settledOf(run: () => Promise<void>): Promise<unknown> {
  try {
    await run()
    return null
  } catch (error) {
    return error ?? new Error('the format driver failed')
  }
}
