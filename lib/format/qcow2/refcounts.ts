// Which clusters of the host are in use: the search for free clusters, and giving them back.
//
// A count is raised in memory when a cluster is allocated and lowered when nothing on the disk refers to it any more; what is
// in memory is written by the commit. Allocating waits for nothing as long as the blocks that it meets are in memory. The block
// for the next stretch of the host is made ahead of need, in the stretch before: it gets linked by a commit that happens
// anyway.
//
// Clusters past the former end of a file have never been written: they read as zeros, and need no padding.

import { BlockError } from '../../errors.ts'
import type { Header } from './header.ts'
import { HostEnd } from './host-end.ts'
import type { Metadata } from './metadata.ts'
import { RefcountBlocks } from './refcount-blocks.ts'
import { RefcountGrowth } from './refcount-growth.ts'
import type { Table } from './table.ts'

/** Clusters that follow each other. */
export interface Extent {
  /** Number of the first one. */
  readonly first: number
  readonly count: number
  /** Whether they read as zeros, and always have. */
  readonly virgin: boolean
}

/** So much of the host is to be covered by blocks that are made ahead, by no more than so many of them. */
const AHEAD_BYTES = 8 << 20
const AHEAD_BLOCKS_MAX = 16

export class Refcounts {
  readonly #metadata: Metadata
  readonly #clusterSize: number
  readonly blocks: RefcountBlocks
  readonly end: HostEnd
  readonly #growth: RefcountGrowth
  /** No free cluster lies before this one. */
  #cursor = 0
  readonly #ahead: number
  #slow: Promise<void> = Promise.resolve()
  /** Runs something when everything in memory is durable and linked, and nothing is committed meanwhile; set by the committer. */
  withoutCommits: (run: () => Promise<void>) => Promise<void> = (run) => run()
  /** Makes free what was given up; returns whether that was anything. Set by the committer. */
  freeMore: () => Promise<boolean> = async () => false

  /** @param table the refcount table as it is on the disk */
  constructor(metadata: Metadata, header: Header, table: Buffer) {
    this.#metadata = metadata
    this.#clusterSize = header.clusterSize
    this.blocks = new RefcountBlocks(metadata, header, table)
    this.end = new HostEnd(metadata, header.clusterSize)
    this.#growth = new RefcountGrowth(metadata, header, this.blocks, this.end, this)
    const coverage = this.blocks.perBlock * header.clusterSize
    this.#ahead = Math.min(AHEAD_BLOCKS_MAX, Math.ceil(AHEAD_BYTES / coverage))
  }

  /** Takes up to `count` free clusters that follow each other, at least one; their counts are 1 then. */
  allocate(count: number): Extent | Promise<Extent> {
    try {
      const extent = this.#take(count)
      if (extent !== null) return extent
    } catch (error) {
      return this.#takeFreed(count, error)
    }
    return this.#takeSlowly(count).catch((error: unknown) => this.#takeFreed(count, error))
  }

  /** Where there is no room, there may be some when what was given up is free. */
  async #takeFreed(count: number, error: unknown): Promise<Extent> {
    const isFull = error instanceof BlockError && error.code === 'ENOSPC'
    if (!isFull || !(await this.freeMore())) throw error
    return this.#take(count) ?? this.#takeSlowly(count)
  }

  /** `null`: a block is to be loaded or made first. */
  #take(count: number): Extent | null {
    this.#metadata.assertSound()
    for (;;) {
      const index = Math.floor(this.#cursor / this.blocks.perBlock)
      const block = this.blocks.cache.get(index)
      if (block === undefined) return null
      const base = index * this.blocks.perBlock
      const start = this.#skipUsed(block, this.#cursor - base)
      this.#cursor = base + start
      if (start === this.blocks.perBlock) continue
      return this.#takeIn(block, start, count)
    }
  }

  #skipUsed(block: Table, from: number): number {
    let i = from
    while (i < this.blocks.perBlock && this.blocks.get(block, i) !== 0) i++
    return i
  }

  #takeIn(block: Table, start: number, count: number): Extent {
    const base = block.index * this.blocks.perBlock
    const first = base + start
    const virgin = first >= this.end.cluster
    // One extent is either wholly virgin or not at all.
    const stop = Math.min(this.blocks.perBlock, start + count, virgin ? this.blocks.perBlock : this.end.cluster - base)
    let i = start
    while (i < stop && this.blocks.get(block, i) === 0) {
      // Offset 0 means "none" wherever an offset stands, and a table that counts as free is about to be lost.
      if (this.#metadata.isTable(base + i)) {
        if (i > start) break
        throw this.#metadata.fail(`cluster ${base + i} holds a table and counts as free`)
      }
      i++
    }
    this.end.cover(base + i)
    for (let n = start; n < i; n++) this.blocks.set(block, n, 1)
    block.needed = true
    this.#cursor = base + i
    this.end.cluster = Math.max(this.end.cluster, base + i)
    if (this.#ahead > 1 || i > this.blocks.perBlock / 2) this.#makeAhead(block)
    return { first, count: i - start, virgin }
  }

  async #takeSlowly(count: number): Promise<Extent> {
    return this.#alone(async () => {
      for (;;) {
        const extent = this.#take(count)
        if (extent !== null) return extent
        await this.#provide(Math.floor(this.#cursor / this.blocks.perBlock))
      }
    })
  }

  /** One after the other: whoever loads or makes blocks. */
  async #alone<T>(run: () => Promise<T>): Promise<T> {
    const before = this.#slow
    let done = (): void => undefined
    this.#slow = new Promise((resolve) => {
      done = resolve
    })
    await before
    try {
      return await run()
    } finally {
      done()
    }
  }

  async #provide(index: number): Promise<void> {
    if (index >= this.blocks.table.length) {
      await this.#growth.growTable(index + 1)
    } else if (this.blocks.table[index]! !== 0) {
      await this.blocks.load(index)
    } else {
      // It lies in the stretch that it describes, as there is no other place known to be free.
      const cluster = Math.max(this.#cursor, index * this.blocks.perBlock, index === 0 ? 1 : 0)
      if (!(await this.end.covers(cluster + 1))) throw this.#metadata.noSpace()
      // Clusters that were given back meanwhile let others allocate, who make blocks ahead of need: maybe this one.
      if (this.blocks.table[index]! !== 0) return
      const virgin = cluster >= this.end.cluster
      this.end.cluster = Math.max(this.end.cluster, cluster + 1)
      const block = this.blocks.make(index, cluster, virgin)
      this.blocks.set(block, cluster - index * this.blocks.perBlock, 1)
    }
  }

  /** Makes the blocks that follow this one, as far as there is room for them in its stretch. */
  #makeAhead(block: Table): void {
    const last = Math.min(this.blocks.table.length - 1, block.index + this.#ahead)
    for (let index = block.index + 1; index <= last; index++) {
      if (this.blocks.table[index]! !== 0) continue
      const base = block.index * this.blocks.perBlock
      const i = this.#skipUsed(block, this.#cursor - base)
      const cluster = base + i
      if (i === this.blocks.perBlock || this.#metadata.isTable(cluster)) break
      if (!this.end.growable && (cluster + 1) * this.#clusterSize > this.#metadata.host.size) break
      this.end.cover(cluster + 1)
      const virgin = cluster >= this.end.cluster
      this.blocks.set(block, i, 1)
      block.needed = true
      this.#cursor = cluster + 1
      this.end.cluster = Math.max(this.end.cluster, cluster + 1)
      this.blocks.make(index, cluster, virgin)
    }
  }

  /** Lowers the counts of clusters: nothing on the disk refers to them any more, or ever did. */
  async release(clusters: readonly number[]): Promise<void> {
    for (const cluster of clusters) {
      if (this.#metadata.isTable(cluster)) {
        this.#metadata.fail(`cluster ${cluster} holds a table and was the guest's`)
        continue
      }
      const index = Math.floor(cluster / this.blocks.perBlock)
      if (index >= this.blocks.table.length || this.blocks.table[index]! === 0) {
        this.#metadata.fail(`cluster ${cluster} is in use and counts as free`)
        continue
      }
      let block = this.blocks.cache.get(index)
      // Asked again: among many that arrive together, the cache may have dropped it before we got our hands on it.
      while (block === undefined) {
        await this.blocks.load(index)
        block = this.blocks.cache.get(index)
      }
      const count = this.blocks.get(block, cluster % this.blocks.perBlock)
      if (count === 0) {
        this.#metadata.fail(`cluster ${cluster} is in use and counts as free`)
        continue
      }
      // Counts of 64 bits may say what no number here can: they stay as they are.
      if (count > Number.MAX_SAFE_INTEGER) continue
      this.blocks.set(block, cluster % this.blocks.perBlock, count - 1)
      if (count === 1 && cluster < this.#cursor) this.#cursor = cluster
    }
  }

  /** Takes clusters that follow each other, behind everything else; returns the first. */
  allocateAtEnd(count: number): Promise<number> {
    return this.#alone(() => this.#growth.takeAtEnd(count))
  }

  /** Makes the blocks that describe these clusters, where there are none. For repairs: nothing else is under way. */
  makeBlocksFor(clusters: Iterable<number>): Promise<void> {
    return this.#alone(async () => {
      await this.#growth.makeBlocksFor(clusters)
      this.#cursor = 0
    })
  }
}
