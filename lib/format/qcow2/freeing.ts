// Clusters that nothing on the disk refers to any more. The committer hands them over; they are free when nobody reads them, and their
// lower counts go with the next commit. What the guest has given up goes back to the host besides: a file gets a hole there.
//
// That comes after the flush that made the references go, so no crash finds a hole where something is referred to, and before
// the count is lowered, so nobody has written there anew.

import { BlockError } from '../../errors.ts'
import type { Metadata } from './metadata.ts'
import type { Readers } from './readers.ts'
import type { Refcounts } from './refcounts.ts'

/** Pieces that the host is given back at once. */
const DISCARDS_AT_ONCE = 16

export class Freeing {
  readonly #metadata: Metadata
  readonly #refcounts: Refcounts
  readonly #readers: Readers
  #last: Promise<void> = Promise.resolve()
  #mayDiscard = true
  /** Clusters that wait to be free. */
  pending = 0

  constructor(metadata: Metadata, refcounts: Refcounts, readers: Readers) {
    this.#metadata = metadata
    this.#refcounts = refcounts
    this.#readers = readers
  }

  /** Resolves when everything handed over so far is free. */
  get done(): Promise<void> {
    return this.#last
  }

  /**
   * @param replaced clusters whose content lies elsewhere now: they are soon used again
   * @param unmapped those that the guest has given up
   */
  free(replaced: readonly number[], unmapped: readonly number[]): void {
    const count = replaced.length + unmapped.length
    if (count === 0) return
    this.pending += count
    const gone = new Promise<void>((resolve) => {
      this.#readers.whenGone(resolve)
    })
    const freed = Promise.all([this.#last, gone]).then(async () => {
      await this.#refcounts.release(replaced)
      await this.#discard(unmapped)
      await this.#refcounts.release(unmapped)
    })
    // What can't be freed leaks: nobody has asked.
    this.#last = freed.then(
      () => undefined,
      () => undefined,
    )
    void this.#last.then(() => {
      this.pending -= count
    })
  }

  /** Gives back to the host what nobody else refers to, in pieces as long as they come. */
  async #discard(clusters: readonly number[]): Promise<void> {
    if (!this.#mayDiscard || clusters.length === 0) return
    const { clusterSize, host } = this.#metadata
    const last = await this.#lastReferences(clusters)
    const under = new Set<Promise<void>>()
    for (let n = 0; n < last.length && this.#mayDiscard; ) {
      const first = last[n]!
      let count = 1
      while (last[n + count] === first + count) count++
      n += count
      const discarded: Promise<void> = host
        .discard(first * clusterSize, count * clusterSize)
        .catch((error: unknown) => {
          // It was a hint; but who can't do it once never can.
          if (error instanceof BlockError && error.code === 'EOPNOTSUPP') this.#mayDiscard = false
        })
        .finally(() => under.delete(discarded))
      under.add(discarded)
      if (under.size >= DISCARDS_AT_ONCE) await Promise.race(under)
    }
    await Promise.all(under)
  }

  /** Those that are referred to as often as they stand in the list, ascending, and hold no table. */
  async #lastReferences(clusters: readonly number[]): Promise<number[]> {
    const times = new Map<number, number>()
    for (const cluster of clusters) times.set(cluster, (times.get(cluster) ?? 0) + 1)
    const { blocks } = this.#refcounts
    const last: number[] = []
    for (const cluster of [...times.keys()].sort((a, b) => a - b)) {
      if (this.#metadata.isTable(cluster)) continue
      const known = blocks.knownCountOf(cluster)
      if ((known ?? (await blocks.countOf(cluster))) === times.get(cluster)) last.push(cluster)
    }
    return last
  }
}
