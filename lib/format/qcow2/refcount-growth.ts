// What is taken behind everything else: tables of many clusters, and the blocks that describe them. The refcount table itself grows
// here: it is written anew at the end, with its blocks, and one write of the header switches to it.
//
// Nothing here runs beside itself: the refcounts call one after the other.

import type { FormatHost } from '../driver.ts'
import type { Header } from './header.ts'
import type { HostEnd } from './host-end.ts'
import { FIELD, REFCOUNT_TABLE_BYTES_MAX, writeU64 } from './layout.ts'
import type { Metadata } from './metadata.ts'
import { type RefcountBlocks, tableBytes } from './refcount-blocks.ts'
import type { Table } from './table.ts'

/** What growing needs of those who count. */
interface Owner {
  /** Runs something when everything in memory is durable and linked, and nothing is committed meanwhile. */
  readonly withoutCommits: (run: () => Promise<void>) => Promise<void>
  release(clusters: readonly number[]): Promise<void>
}

export class RefcountGrowth {
  readonly #metadata: Metadata
  readonly #host: FormatHost
  readonly #header: Header
  readonly #clusterSize: number
  readonly #blocks: RefcountBlocks
  readonly #end: HostEnd
  readonly #owner: Owner

  constructor(metadata: Metadata, header: Header, blocks: RefcountBlocks, end: HostEnd, owner: Owner) {
    this.#metadata = metadata
    this.#host = metadata.host
    this.#header = header
    this.#clusterSize = header.clusterSize
    this.#blocks = blocks
    this.#end = end
    this.#owner = owner
  }

  /** Takes clusters that follow each other, behind everything else; returns the first. */
  async takeAtEnd(count: number): Promise<number> {
    await this.#coverTable(this.#end.cluster + count)
    const { first, blocks } = await this.#takeAtEnd(count)
    for (const block of blocks) block.pins--
    return first
  }

  /** Makes the blocks that describe these clusters, where there are none. For repairs: nothing else is under way. */
  async makeBlocksFor(clusters: Iterable<number>): Promise<void> {
    const { table, perBlock } = this.#blocks
    const missing = new Set<number>()
    for (const cluster of clusters) {
      const index = Math.floor(cluster / perBlock)
      if (index >= table.length || table[index]! === 0) missing.add(index)
    }
    if (missing.size > 0) await this.#coverTable(this.#end.cluster + missing.size)
    for (const index of missing) {
      // The table may be another one meanwhile.
      if (this.#blocks.table[index]! !== 0) continue
      const { first, blocks } = await this.#takeAtEnd(1)
      for (const block of blocks) block.pins--
      // Where the host ends in this stretch it has got its block by that already.
      if (this.#blocks.table[index]! !== 0) await this.#owner.release([first])
      else this.#blocks.make(index, first, this.#end.growable)
    }
  }

  /** Makes the table long enough for a cluster and what may have to be made beside it. */
  async #coverTable(cluster: number): Promise<void> {
    const blocks = Math.ceil(cluster / this.#blocks.perBlock)
    const needed = Math.ceil((cluster + blocks) / this.#blocks.perBlock) + 1
    if (needed > this.#blocks.table.length) await this.growTable(needed)
  }

  /** Takes clusters at the end, and as many behind them as new blocks need. Returns the blocks that describe them, pinned. */
  async #takeAtEnd(count: number): Promise<{ first: number; blocks: Set<Table> }> {
    for (;;) {
      const first = this.#end.cluster
      const missing: number[] = []
      const there: number[] = []
      for (
        let index = Math.floor(first / this.#blocks.perBlock);
        index * this.#blocks.perBlock < first + count + missing.length;
        index++
      ) {
        if (index >= this.#blocks.table.length) throw this.#metadata.noSpace()
        if (this.#blocks.table[index]! === 0) missing.push(index)
        else there.push(index)
      }
      const absent = there.find((index) => this.#blocks.cache.get(index) === undefined)
      if (absent !== undefined) {
        // Others may allocate meanwhile: then the end is elsewhere.
        await this.#blocks.load(absent)
        continue
      }
      const end = first + count + missing.length
      if (end * this.#clusterSize > this.#host.size) {
        if (!(await this.#end.covers(end))) throw this.#metadata.noSpace()
        continue
      }
      missing.forEach((index, n) => {
        this.#blocks.make(index, first + count + n, this.#end.growable)
      })
      this.#end.cluster = end
      return { first, blocks: this.#countOnce(first, end) }
    }
  }

  /** Sets the counts of clusters whose blocks are in memory to 1. Returns these blocks, pinned. */
  #countOnce(first: number, end: number): Set<Table> {
    const blocks = new Set<Table>()
    for (let cluster = first; cluster < end; cluster++) {
      const block = this.#blocks.cache.get(Math.floor(cluster / this.#blocks.perBlock))!
      this.#blocks.set(block, cluster % this.#blocks.perBlock, 1)
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
  growTable(entries: number): Promise<void> {
    return this.#owner.withoutCommits(async () => {
      const size = this.#clusterSize
      // Room for itself, the blocks that it needs, and as much again.
      const wanted = Math.ceil((Math.max(entries, this.#blocks.table.length) * 2 + 64) / (size / 8))
      const clusters = Math.min(wanted, REFCOUNT_TABLE_BYTES_MAX / size)
      const old = {
        table: this.#blocks.table,
        offset: this.#header.refcountOffset,
        clusters: this.#header.refcountClusters,
      }
      if ((clusters * size) / 8 < entries) throw this.#metadata.noSpace()
      const table = new Float64Array((clusters * size) / 8)
      table.set(old.table)
      this.#blocks.table = table
      const { first, blocks } = await this.#takeAtEnd(clusters).catch((error: unknown) => {
        this.#blocks.table = old.table
        throw error
      })
      const offset = first * size
      for (const block of blocks) if (!block.linked) block.mark(0, size)
      // Blocks that were made meanwhile by others are linked by a commit, as ever.
      const known = table.map((place, index) => {
        const block = this.#blocks.cache.get(index)
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
      await this.#owner.release(Array.from({ length: old.clusters }, (_, n) => old.offset / size + n))
    })
  }
}
