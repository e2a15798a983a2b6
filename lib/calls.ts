// What became of requests, told to those who asked for them: the callbacks and the promise of a batch, the promises of single
// calls. An object for a call instead of functions that remember it: a batch of one is mostly what is made for it.

import { AsyncResource } from 'node:async_hooks'
import type { BatchListener } from './batch.ts'
import type { BatchResult } from './dispatch.ts'
import { AbortError, MultiwriteError } from './errors.ts'
import type { Caller } from './gather.ts'
import type { Callback, Work } from './requests.ts'

/** A call of `multiwrite` or `multiread`. */
export class BatchCall implements BatchListener {
  readonly #work: Work
  readonly #resolve: (result: BatchResult) => void
  readonly #reject: (error: Error) => void
  readonly #signal: AbortSignal | undefined
  readonly #context: AsyncResource | null
  /** Failures that no callback was told of. */
  #unheard: Map<number, Error> | null = null
  #failed = 0
  #withdrawn = 0
  /** Called when all requests are answered. */
  stopListening: (() => void) | undefined

  constructor(
    work: Work,
    resolve: (result: BatchResult) => void,
    reject: (error: Error) => void,
    signal: AbortSignal | undefined,
  ) {
    this.#work = work
    this.#resolve = resolve
    this.#reject = reject
    this.#signal = signal
    this.#context = work.callbacks === null ? null : new AsyncResource('multiwrite')
  }

  answer(owner: number, error: Error | null): void {
    if (error instanceof AbortError) this.#withdrawn++
    else if (error !== null) this.#failed++
    const { callbacks, count, requests } = this.#work
    const callback = callbacks?.[owner]
    if (callback !== undefined) {
      callBack(this.#context!, count > 1, callback, requests[owner], error)
    } else if (error !== null && !(error instanceof AbortError)) {
      this.#unheard ??= new Map()
      this.#unheard.set(owner, error)
    }
  }

  finished(): void {
    this.stopListening?.()
    const { count } = this.#work
    if (this.#withdrawn === 0 && this.#unheard === null) {
      this.#resolve({ requests: count, failed: this.#failed })
      return
    }
    const failures = [...(this.#unheard ?? [])].sort(([a], [b]) => a - b)
    const owners = failures.map(([owner]) => owner)
    const errors = failures.map(([, error]) => error)
    if (this.#withdrawn > 0) {
      this.#reject(new AbortError(this.#signal?.reason, count - this.#withdrawn - this.#failed, owners, errors))
    } else {
      this.#reject(new MultiwriteError(errors, owners))
    }
  }
}

/** Single calls that were gathered. */
export class GatheredCalls implements BatchListener {
  readonly #callers: readonly Caller[]
  #failed = 0
  /** Called when all are answered. */
  over: ((result: BatchResult) => void) | null = null
  stopListening: (() => void)[] | null = null

  constructor(callers: readonly Caller[]) {
    this.#callers = callers
  }

  answer(owner: number, error: Error | null): void {
    const caller = this.#callers[owner]!
    if (error === null) {
      caller.resolve()
    } else {
      this.#failed++
      caller.reject(error)
    }
  }

  finished(): void {
    if (this.stopListening !== null) for (const stop of this.stopListening) stop()
    this.over?.({ requests: this.#callers.length, failed: this.#failed })
  }
}

/**
 * Calls a user's callback in the caller's context. One that throws starves no sibling: its error surfaces as an uncaught
 * exception of its own. Siblings have a scope each, made in the caller's: what one callback enters, the next does not see.
 */
function callBack(
  context: AsyncResource,
  hasSiblings: boolean,
  callback: Callback,
  request: unknown,
  error: Error | null,
): void {
  try {
    if (hasSiblings) context.runInAsyncScope(scoped, request, callback, error)
    else context.runInAsyncScope(callback, request, error, request)
  } catch (thrown) {
    process.nextTick(() => {
      throw thrown
    })
  }
}

function scoped(this: unknown, callback: Callback, error: Error | null): void {
  new AsyncResource('multiwrite').runInAsyncScope(callback, this, error, this)
}
