// How long the host is, and from where on nothing was ever allocated. A file is made longer ahead of what is written there: each
// growth is a system call that writes beyond it have to wait for. A block device can't grow.

import type { FormatHost } from '../driver.ts'
import { ceilTo } from './layout.ts'
import type { Metadata } from './metadata.ts'

/** A file grows by so much at once, in bytes. */
const GROWTH_BYTES = 64 << 20

export class HostEnd {
  readonly #metadata: Metadata
  readonly #host: FormatHost
  readonly #clusterSize: number
  /** Clusters from this one on were never allocated, nor written: they read as zeros where the host is a file. */
  cluster: number
  /** Whether the host is a file; known before the first change. */
  growable = false
  #growth = GROWTH_BYTES
  #growing: Promise<void> = Promise.resolve()

  constructor(metadata: Metadata, clusterSize: number) {
    this.#metadata = metadata
    this.#host = metadata.host
    this.#clusterSize = clusterSize
    this.cluster = Math.ceil(metadata.host.size / clusterSize)
  }

  /** Makes the host long enough for all clusters before this one. What is written there waits for it, and fails if it does. */
  cover(cluster: number): void {
    const bytes = cluster * this.#clusterSize
    if (bytes <= this.#host.size) return
    if (!this.growable) throw this.#metadata.noSpace()
    const enough = Math.max(bytes, Math.min(ceilTo(bytes, this.#growth), bytes * 2))
    this.#growing = this.#host.truncate(enough).then(
      () => undefined,
      () => {
        // It may have been too much at once.
        this.#growth = 1
      },
    )
  }

  /** Whether the host has all clusters before this one; makes it longer if need be. */
  async covers(cluster: number): Promise<boolean> {
    this.cover(cluster)
    await this.#growing
    return cluster * this.#clusterSize <= this.#host.size
  }

  /** Makes the host long enough for everything that was taken, if it can be now. */
  async coverAll(): Promise<void> {
    if (this.growable) await this.covers(this.cluster).catch(() => false)
  }
}
