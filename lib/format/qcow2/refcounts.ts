// Which clusters of the host are in use, and by how many: the refcount table, the blocks that it refers to, and the search for
// free clusters.
//
// A count is raised in memory when a cluster is allocated and lowered when nothing on the disk refers to it any more; what is
// in memory is written by the commit. Allocating waits for nothing as long as the blocks that it meets are in memory. The block
// for the next stretch of the host is made ahead of need, in the stretch before: it gets linked by a commit that happens
// anyway.
//
// Clusters past the former end of a file have never been written: they read as zeros, and need no padding.

import { BlockError } from '../../errors.ts'
import type { FormatHost } from '../driver.ts'
import { readCount, writeCount } from './counts.ts'
import type { Header } from './header.ts'
import { ceilTo, FIELD, REFCOUNT_TABLE_BYTES_MAX, readU64, writeU64 } from './layout.ts'
import type { Metadata } from './metadata.ts'
import { Table, TableCache } from './table.ts'

/** Clusters that follow each other. */
export interface Extent {
  /** Number of the first one. */
  readonly first: number
  readonly count: number
  /** Whether they read as zeros, and always have. */
  readonly virgin: boolean
}

const BLOCK_CACHE_BYTES = 8 << 20
const BLOCKS_MIN = 16
const BLOCKS_MAX = 8192
/** So much of the host is to be covered by blocks that are made ahead, by no more than so many of them. */
const AHEAD_BYTES = 8 << 20
const AHEAD_BLOCKS_MAX = 16
/** A file grows by so much at once, in bytes: each growth is a system call that writes beyond it have to wait for. */
const GROWTH_BYTES = 64 << 20

export class Refcounts {
  readonly #metadata: Metadata
  readonly #host: FormatHost
  readonly #header: Header
  readonly #clusterSize: number
  readonly #order: number
  /** Counts per block. */
  readonly perBlock: number
  /** Offsets of the blocks; 0: none. */
  table: Float64Array
  readonly blocks: TableCache
  /** No free cluster lies before this one. */
  #cursor = 0
  /** Nothing was ever allocated from this one on. */
  #end: number
  /** Whether the host is a file; known before the first change. */
  growable = false
  #growth = GROWTH_BYTES
  #growing: Promise<void> = Promise.resolve()
  readonly #ahead: number
  #slow: Promise<void> = Promise.resolve()
  readonly #loading = new Map<number, Promise<Table>>()
  /** Runs something when everything in memory is durable and linked, and nothing is committed meanwhile; set by the image. */
  withoutCommits: (run: () => Promise<void>) => Promise<void> = (run) => run()

  /** Makes free what was given up; returns whether that was anything. Set by the image. */
  freeMore: () => Promise<boolean> = async () => false

  /** @param table the refcount table as it is on the disk */
  constructor(metadata: Metadata, header: Header, table: Buffer) {
    this.#metadata = metadata
    this.#host = metadata.host
    this.#header = header
    this.#clusterSize = header.clusterSize
    this.#order = header.refcountOrder
    this.perBlock = (header.clusterSize * 8) / 2 ** header.refcountOrder
    this.table = new Float64Array(table.length / 8)
    for (let i = 0; i < this.table.length; i++) this.table[i] = readU64(table, i * 8)
    const max = Math.floor(BLOCK_CACHE_BYTES / header.clusterSize)
    this.blocks = new TableCache(Math.min(BLOCKS_MAX, Math.max(BLOCKS_MIN, max)))
    this.#end = Math.ceil(this.#host.size / header.clusterSize)
    const coverage = this.perBlock * header.clusterSize
    this.#ahead = Math.min(AHEAD_BLOCKS_MAX, Math.ceil(AHEAD_BYTES / coverage))
  }

  /** Clusters from this one on were never allocated. */
  get end(): number {
    return this.#end
  }

  /** The largest count that fits. */
  get max(): number {
    return 2 ** (2 ** this.#order) - 1
  }

  get(block: Table, i: number): number {
    return readCount(block, this.#order, i)
  }

  set(block: Table, i: number, value: number): void {
    this.blocks.soil(block)
    writeCount(block, this.#order, i, value)
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
      const index = Math.floor(this.#cursor / this.perBlock)
      const block = this.blocks.get(index)
      if (block === undefined) return null
      const base = index * this.perBlock
      const start = this.#skipUsed(block, this.#cursor - base)
      this.#cursor = base + start
      if (start === this.perBlock) continue
      return this.#takeIn(block, start, count)
    }
  }

  #skipUsed(block: Table, from: number): number {
    let i = from
    while (i < this.perBlock && this.get(block, i) !== 0) i++
    return i
  }

  #takeIn(block: Table, start: number, count: number): Extent {
    const base = block.index * this.perBlock
    const first = base + start
    const virgin = first >= this.#end
    // One extent is either wholly virgin or not at all.
    const stop = Math.min(this.perBlock, start + count, virgin ? this.perBlock : this.#end - base)
    let i = start
    while (i < stop && this.get(block, i) === 0) {
      // Offset 0 means "none" wherever an offset stands, and a table that counts as free is about to be lost.
      if (this.#metadata.isTable(base + i)) {
        if (i > start) break
        throw this.#metadata.fail(`cluster ${base + i} holds a table and counts as free`)
      }
      i++
    }
    this.#cover(base + i)
    for (let n = start; n < i; n++) this.set(block, n, 1)
    block.needed = true
    this.#cursor = base + i
    this.#end = Math.max(this.#end, base + i)
    if (this.#ahead > 1 || i > this.perBlock / 2) this.#makeAhead(block)
    return { first, count: i - start, virgin }
  }

  /** Makes the host long enough for everything that was taken, if it can be now. */
  async coverAll(): Promise<void> {
    if (this.growable) await this.covers(this.#end).catch(() => false)
  }

  /** Makes the host long enough for all clusters before this one. What is written there waits for it, and fails if it does. */
  #cover(cluster: number): void {
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
    this.#cover(cluster)
    await this.#growing
    return cluster * this.#clusterSize <= this.#host.size
  }

  async #takeSlowly(count: number): Promise<Extent> {
    return this.#alone(async () => {
      for (;;) {
        const extent = this.#take(count)
        if (extent !== null) return extent
        await this.#provide(Math.floor(this.#cursor / this.perBlock))
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
    if (index >= this.table.length) {
      await this.#growTable(index + 1)
    } else if (this.table[index]! !== 0) {
      await this.load(index)
    } else {
      // It lies in the stretch that it describes, as there is no other place known to be free.
      const cluster = Math.max(this.#cursor, index * this.perBlock, index === 0 ? 1 : 0)
      if (!(await this.covers(cluster + 1))) throw this.#metadata.noSpace()
      // Clusters that were given back meanwhile let others allocate, who make blocks ahead of need: maybe this one.
      if (this.table[index]! !== 0) return
      const virgin = cluster >= this.#end
      this.#end = Math.max(this.#end, cluster + 1)
      const block = this.#make(index, cluster, virgin)
      this.set(block, cluster - index * this.perBlock, 1)
    }
  }

  #make(index: number, cluster: number, virgin: boolean): Table {
    const offset = cluster * this.#clusterSize
    if (this.#metadata.claim(offset, this.#clusterSize)) {
      throw this.#metadata.fail(`cluster ${cluster} holds a table and counts as free`)
    }
    const block = new Table(index, offset, this.#metadata.memory(this.#clusterSize), false)
    if (!virgin) block.mark(0, this.#clusterSize)
    this.blocks.soil(block)
    this.blocks.add(block)
    this.table[index] = offset
    return block
  }

  /** Makes the blocks that follow this one, as far as there is room for them in its stretch. */
  #makeAhead(block: Table): void {
    const last = Math.min(this.table.length - 1, block.index + this.#ahead)
    for (let index = block.index + 1; index <= last; index++) {
      if (this.table[index]! !== 0) continue
      const base = block.index * this.perBlock
      const i = this.#skipUsed(block, this.#cursor - base)
      const cluster = base + i
      if (i === this.perBlock || this.#metadata.isTable(cluster)) break
      if (!this.growable && (cluster + 1) * this.#clusterSize > this.#host.size) break
      this.#cover(cluster + 1)
      const virgin = cluster >= this.#end
      this.set(block, i, 1)
      block.needed = true
      this.#cursor = cluster + 1
      this.#end = Math.max(this.#end, cluster + 1)
      this.#make(index, cluster, virgin)
    }
  }

  /** The block of an index that the table has. */
  async load(index: number): Promise<Table> {
    const there = this.blocks.get(index)
    if (there !== undefined) return there
    const under = this.#loading.get(index)
    if (under !== undefined) return under
    const loading = this.#load(index).finally(() => this.#loading.delete(index))
    this.#loading.set(index, loading)
    return loading
  }

  async #load(index: number): Promise<Table> {
    const offset = this.table[index]!
    if (offset === 0 || offset % this.#clusterSize !== 0 || offset >= this.#host.size) {
      throw this.#metadata.fail(`refcount block ${index} at ${offset}`)
    }
    const block = new Table(index, offset, await this.#metadata.read(offset, this.#clusterSize), true)
    block.needed = true
    this.blocks.add(block)
    return block
  }

  /** The count of a cluster, if its block is in memory. */
  knownCountOf(cluster: number): number | undefined {
    const block = this.blocks.get(Math.floor(cluster / this.perBlock))
    return block === undefined ? undefined : this.get(block, cluster % this.perBlock)
  }

  /** The count of a cluster. */
  async countOf(cluster: number): Promise<number> {
    const index = Math.floor(cluster / this.perBlock)
    if (index >= this.table.length || this.table[index]! === 0) return 0
    return this.get(await this.load(index), cluster % this.perBlock)
  }

  /** Lowers the counts of clusters: nothing on the disk refers to them any more, or ever did. */
  async release(clusters: readonly number[]): Promise<void> {
    for (const cluster of clusters) {
      if (this.#metadata.isTable(cluster)) {
        this.#metadata.fail(`cluster ${cluster} holds a table and was the guest's`)
        continue
      }
      const index = Math.floor(cluster / this.perBlock)
      if (index >= this.table.length || this.table[index]! === 0) {
        this.#metadata.fail(`cluster ${cluster} is in use and counts as free`)
        continue
      }
      let block = this.blocks.get(index)
      // Asked again: among many that arrive together, the cache may have dropped it before we got our hands on it.
      while (block === undefined) {
        await this.load(index)
        block = this.blocks.get(index)
      }
      const count = this.get(block, cluster % this.perBlock)
      if (count === 0) {
        this.#metadata.fail(`cluster ${cluster} is in use and counts as free`)
        continue
      }
      this.set(block, cluster % this.perBlock, count - 1)
      if (count === 1 && cluster < this.#cursor) this.#cursor = cluster
    }
  }

  /** Takes clusters that follow each other, behind everything else. */
  allocateAtEnd(count: number): Promise<Extent> {
    return this.#alone(async () => {
      await this.#coverTable(this.#end + count)
      const { first, blocks } = await this.#takeAtEnd(count)
      for (const block of blocks) block.pins--
      return { first, count, virgin: this.growable }
    })
  }

  /** Makes the blocks that describe these clusters, where there are none. For repairs: nothing else is under way. */
  makeBlocksFor(clusters: Iterable<number>): Promise<void> {
    return this.#alone(async () => {
      const missing = new Set<number>()
      for (const cluster of clusters) {
        const index = Math.floor(cluster / this.perBlock)
        if (index >= this.table.length || this.table[index]! === 0) missing.add(index)
      }
      if (missing.size > 0) await this.#coverTable(this.#end + missing.size)
      for (const index of missing) {
        if (this.table[index]! !== 0) continue
        const { first, blocks } = await this.#takeAtEnd(1)
        for (const block of blocks) block.pins--
        this.#make(index, first, this.growable)
      }
      this.#cursor = 0
    })
  }

  /** Makes the table long enough for a cluster and what may have to be made beside it. */
  async #coverTable(cluster: number): Promise<void> {
    const blocks = Math.ceil(cluster / this.perBlock)
    const needed = Math.ceil((cluster + blocks) / this.perBlock) + 1
    if (needed > this.table.length) await this.#growTable(needed)
  }

  /** Takes clusters at the end, and as many behind them as new blocks need. Returns the blocks that describe them, pinned. */
  async #takeAtEnd(count: number): Promise<{ first: number; blocks: Set<Table> }> {
    for (;;) {
      const first = this.#end
      const missing: number[] = []
      const there: number[] = []
      for (
        let index = Math.floor(first / this.perBlock);
        index * this.perBlock < first + count + missing.length;
        index++
      ) {
        if (index >= this.table.length) throw this.#metadata.noSpace()
        if (this.table[index]! === 0) missing.push(index)
        else there.push(index)
      }
      const absent = there.find((index) => this.blocks.get(index) === undefined)
      if (absent !== undefined) {
        // Others may allocate meanwhile: then the end is elsewhere.
        await this.load(absent)
        continue
      }
      const end = first + count + missing.length
      if (end * this.#clusterSize > this.#host.size) {
        if (!(await this.covers(end))) throw this.#metadata.noSpace()
        continue
      }
      missing.forEach((index, n) => {
        this.#make(index, first + count + n, this.growable)
      })
      this.#end = end
      return { first, blocks: this.#countOnce(first, end) }
    }
  }

  /** Sets the counts of clusters whose blocks are in memory to 1. Returns these blocks, pinned. */
  #countOnce(first: number, end: number): Set<Table> {
    const blocks = new Set<Table>()
    for (let cluster = first; cluster < end; cluster++) {
      const block = this.blocks.get(Math.floor(cluster / this.perBlock))!
      this.set(block, cluster % this.perBlock, 1)
      block.needed = true
      if (blocks.has(block)) continue
      block.pins++
      blocks.add(block)
    }
    return blocks
  }

  /**
   * A longer refcount table: it and the blocks that describe it lie behind everything else. One write of the header switches to
   * it. Rare enough to flush on its own.
   */
  #growTable(entries: number): Promise<void> {
    return this.withoutCommits(async () => {
      const size = this.#clusterSize
      // Room for itself, the blocks that it needs, and as much again.
      const wanted = Math.ceil((Math.max(entries, this.table.length) * 2 + 64) / (size / 8))
      const clusters = Math.min(wanted, REFCOUNT_TABLE_BYTES_MAX / size)
      const old = { table: this.table, offset: this.#header.refcountOffset, clusters: this.#header.refcountClusters }
      if ((clusters * size) / 8 < entries) throw this.#metadata.noSpace()
      const table = new Float64Array((clusters * size) / 8)
      table.set(old.table)
      this.table = table
      const { first, blocks } = await this.#takeAtEnd(clusters).catch((error: unknown) => {
        this.table = old.table
        throw error
      })
      const offset = first * size
      for (const block of blocks) if (!block.linked) block.mark(0, size)
      // Blocks that were made meanwhile by others are linked by a commit, as ever.
      const known = table.map((place, index) => {
        const block = this.blocks.get(index)
        return block === undefined || block.linked || blocks.has(block) ? place : 0
      })
      try {
        await Promise.all([
          this.#metadata.write(offset, tableBytes(known)),
          ...[...blocks].map((block) => this.#metadata.write(block.offset, Buffer.from(block.bytes))),
        ])
        await this.#metadata.flush()
      } catch (error) {
        // Others may have allocated in the new blocks already, which the present table has no room for.
        throw this.#metadata.giveUp(
          'a longer refcount table could not be written: open the image again to see which one it refers to',
          error,
        )
      }
      const fields = Buffer.alloc(12)
      writeU64(fields, offset, 0)
      fields.writeUInt32BE(clusters, 8)
      await this.#metadata.switchHeader(FIELD.refcountOffset, fields)
      for (const block of blocks) {
        block.linked = true
        block.pins--
      }
      this.#metadata.claim(offset, clusters * size)
      this.#metadata.disclaim(old.offset, old.clusters * size)
      this.#header.refcountOffset = offset
      this.#header.refcountClusters = clusters
      await this.release(Array.from({ length: old.clusters }, (_, n) => old.offset / size + n))
    })
  }

  /** Enters where the table and its blocks lie. Returns what is wrong with them, if anything. */
  claimTables(): string | null {
    const size = this.#clusterSize
    let wrong: string | null = null
    if (this.#metadata.claim(this.#header.refcountOffset, this.#header.refcountClusters * size)) {
      wrong = 'its refcount table lies in another table'
    }
    for (let index = 0; index < this.table.length; index++) {
      const offset = this.table[index]!
      if (offset === 0) continue
      if (offset % size !== 0 || offset >= this.#host.size) {
        wrong ??= `refcount block ${index} at ${offset}`
      } else if (this.#metadata.claim(offset, size)) {
        wrong ??= `refcount block ${index} lies in another table`
      }
    }
    return wrong
  }
}

export function tableBytes(table: Float64Array): Buffer {
  const bytes = Buffer.alloc(table.length * 8)
  for (let i = 0; i < table.length; i++) if (table[i]! !== 0) writeU64(bytes, table[i]!, i * 8)
  return bytes
}
