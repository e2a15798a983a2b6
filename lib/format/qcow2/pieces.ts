// The memory of a run, handed out from its start on, and the outcome of several operations as one.

import { constants } from 'node:os'
import { BlockError } from '../../errors.ts'

/** Made before anything is awaited: what follows memory that is taken away later must not move up into its place. */
export class Pieces {
  readonly length: number
  readonly #pieces: readonly Uint8Array[]
  readonly #lengths: readonly number[]
  #index = 0
  #used = 0

  constructor(pieces: readonly Uint8Array[]) {
    this.#pieces = pieces
    this.#lengths = pieces.map(({ length }) => length)
    this.length = lengthOf(pieces)
  }

  /** The next `length` bytes. Throws if their memory was taken away meanwhile. */
  take(length: number): Uint8Array[] {
    const taken: Uint8Array[] = []
    let rest = length
    while (rest > 0) {
      const piece = this.#pieces[this.#index]!
      if (piece.length !== this.#lengths[this.#index]) {
        // The device above says whose memory it was, and where.
        throw new BlockError(constants.errno.EFAULT, { syscall: 'qcow2', path: '' })
      }
      const there = piece.length - this.#used
      if (there <= rest) {
        if (there > 0) taken.push(this.#used === 0 ? piece : piece.subarray(this.#used))
        this.#index++
        this.#used = 0
        rest -= there
      } else {
        taken.push(piece.subarray(this.#used, this.#used + rest))
        this.#used += rest
        rest = 0
      }
    }
    return taken
  }
}

export function lengthOf(pieces: readonly Uint8Array[]): number {
  let length = 0
  for (const piece of pieces) length += piece.length
  return length
}

export function fillZeros(pieces: readonly Uint8Array[]): void {
  for (const piece of pieces) piece.fill(0)
}

/** Operations that are under way together. Their failures are never unhandled, however late somebody asks. */
export class Together {
  #open = 1
  #error: unknown = null
  #resolve: (() => void) | null = null
  readonly #done = (): void => {
    if (--this.#open === 0) this.#resolve?.()
  }
  readonly #failed = (error: unknown): void => {
    this.#error ??= error ?? new Error('failed')
    this.#done()
  }

  add(operation: Promise<unknown>): void {
    this.#open++
    operation.then(this.#done, this.#failed)
  }

  /** Resolves when all of them have ended, well or not; then rejects with the first failure. */
  async all(): Promise<void> {
    await this.settled()
    if (this.#error !== null) throw this.#error
  }

  /** Resolves when all of them have ended, well or not. Nothing may be added afterwards. */
  settled(): Promise<void> {
    if (this.#open <= 1) return Promise.resolve()
    return new Promise((resolve) => {
      this.#resolve = resolve
      this.#done()
    })
  }
}
