// What `qemu-img check` does: counts every reference to every cluster of the host, and compares with the counts that the image
// keeps. Reads everything from the disk, in pieces of bounded size, and believes nothing of it. Nothing else is under way.
//
// With `repair` the counts are made what they should be, and so are the flags that say whether a cluster is referred to once.

import type { CheckResult } from '../driver.ts'
import { entriesOf, readBitmaps } from './bitmaps.ts'
import type { Header } from './header.ts'
import {
  COMPRESSED_HIGH,
  COPIED_HIGH,
  offsetOf,
  RESERVED_HIGH,
  RESERVED_HIGH_L2,
  RESERVED_LOW,
  RESERVED_LOW_L2,
  ZERO_LOW,
} from './layout.ts'
import type { Mapping } from './mapping.ts'
import type { Metadata } from './metadata.ts'
import type { Refcounts } from './refcounts.ts'
import { References } from './references.ts'
import { readSnapshots } from './snapshots.ts'
import { Table } from './table.ts'

const READ_BYTES = 1 << 20
/** So far apart two tables are still read by one call. */
const NEAR_BYTES = 32 << 10
/** All tables of snapshots, and all of bitmaps, that are looked at: more than anybody has, and what a sparse file can pretend to have. */
const SNAPSHOT_BYTES_MAX = 2 ** 30
const BITMAP_BYTES_MAX = 2 ** 29

type Result = { -readonly [K in keyof CheckResult]: CheckResult[K] }

/** The whole of it; `commit` makes durable what a repair has changed. */
export async function checkImage(
  metadata: Metadata,
  header: Header,
  mapping: Mapping,
  refcounts: Refcounts,
  repair: (() => Promise<void>) | null,
): Promise<CheckResult> {
  const first = new Check(metadata, header, mapping, refcounts)
  const result = await first.run()
  if (repair === null || result.leaks + result.corruptions === 0) return result
  const { leaks, corruptions } = await first.repair()
  await repair()
  const second = await new Check(metadata, header, mapping, refcounts).run()
  return { ...second, leaksFixed: leaks, corruptionsFixed: corruptions }
}

class Check {
  readonly #metadata: Metadata
  readonly #header: Header
  readonly #mapping: Mapping
  readonly #refcounts: Refcounts
  readonly #clusterSize: number
  readonly #counts = new References()
  /** Counts that are not what they should be: what they should be. */
  readonly #wrong = new Map<number, number>()
  /** Entries whose flag is not what it should be. */
  readonly #wrongL1: number[] = []
  readonly #wrongL2 = new Map<number, number[]>()
  readonly #result: Result

  constructor(metadata: Metadata, header: Header, mapping: Mapping, refcounts: Refcounts) {
    this.#metadata = metadata
    this.#header = header
    this.#mapping = mapping
    this.#refcounts = refcounts
    this.#clusterSize = header.clusterSize
    this.#result = {
      imageEndOffset: 0,
      totalClusters: Math.ceil(header.size / header.clusterSize),
      allocatedClusters: 0,
      fragmentedClusters: 0,
      compressedClusters: 0,
      leaks: 0,
      corruptions: 0,
      checkErrors: 0,
      leaksFixed: 0,
      corruptionsFixed: 0,
    }
  }

  async run(): Promise<CheckResult> {
    const { l1Offset, l1Size, refcountOffset, refcountClusters } = this.#header
    this.#count(0, this.#clusterSize)
    this.#count(l1Offset, l1Size * 8)
    await this.#tryTo(() => this.#countL1(l1Offset, l1Size, true))
    await this.#tryTo(() => this.#countSnapshots())
    await this.#tryTo(() => this.#countBitmaps())
    this.#count(refcountOffset, refcountClusters * this.#clusterSize)
    const { blocks } = this.#refcounts
    for (const [index, offset] of blocks.table.entries()) {
      if (offset === 0 || blocks.isAhead(index)) continue
      if (offset % this.#clusterSize !== 0) this.#result.corruptions++
      else this.#count(offset, this.#clusterSize)
    }
    await this.#tryTo(() => this.#compare())
    await this.#tryTo(() => this.#checkFlags())
    return this.#result
  }

  async #tryTo(look: () => Promise<void>): Promise<void> {
    try {
      await look()
    } catch {
      this.#result.checkErrors++
    }
  }

  /** Counts a reference, or so many, to each cluster that has some of these bytes. */
  #count(offset: number, length: number, times = 1): void {
    if (length === 0) return
    const size = this.#clusterSize
    if (offset + length > Math.ceil(this.#metadata.host.size / size) * size) {
      this.#result.corruptions++
      return
    }
    for (let c = Math.floor(offset / size); c * size < offset + length; c++) this.#counts.add(c, times)
  }

  async #countL1(l1Offset: number, l1Size: number, isActive: boolean): Promise<void> {
    // A hostile image may name one table some million times: it is read once.
    const times = new Map<number, number>()
    for (let from = 0; from < l1Size; from += READ_BYTES / 8) {
      const entries = Math.min(READ_BYTES / 8, l1Size - from)
      const l1 = await this.#metadata.read(l1Offset + from * 8, entries * 8)
      for (let n = 0; n < entries; n++) {
        const [high, low] = [l1.readUInt32BE(n * 8), l1.readUInt32BE(n * 8 + 4)]
        const offset = offsetOf(high, low)
        if (high === 0 && low === 0) continue
        if (offset === 0 || (high & RESERVED_HIGH) !== 0 || (low & RESERVED_LOW) !== 0) this.#result.corruptions++
        if (offset === 0) continue
        if (offset % this.#clusterSize !== 0 || offset >= this.#metadata.host.size) {
          this.#result.corruptions++
          continue
        }
        times.set(offset, (times.get(offset) ?? 0) + 1)
      }
    }
    for await (const table of this.#tablesAt([...times.keys()])) {
      const count = times.get(table.offset)!
      this.#count(table.offset, this.#clusterSize, count)
      this.#countL2(table, isActive, count)
    }
  }

  /** The tables of one cluster at these offsets, in the order of the host: those that lie near each other are read together. */
  async *#tablesAt(offsets: number[]): AsyncGenerator<Table> {
    const size = this.#clusterSize
    const max = Math.max(size, READ_BYTES)
    offsets.sort((a, b) => a - b)
    for (let from = 0; from < offsets.length; ) {
      const start = offsets[from]!
      let to = from + 1
      while (to < offsets.length && offsets[to]! + size - start <= max && offsets[to]! - offsets[to - 1]! <= NEAR_BYTES)
        to++
      const bytes = await this.#metadata.read(start, offsets[to - 1]! + size - start)
      for (; from < to; from++) {
        const at = offsets[from]! - start
        yield new Table(0, offsets[from]!, bytes.subarray(at, at + size), true)
      }
    }
  }

  /** @param times how often the table is named */
  #countL2(table: Table, isActive: boolean, times: number): void {
    const result = this.#result
    const size = this.#clusterSize
    let next = 0
    for (let i = 0; i < this.#mapping.perTable; i++) {
      const [high, low] = [table.high(i), table.low(i)]
      if (high === 0 && low === 0) continue
      if ((high & COMPRESSED_HIGH) !== 0) {
        if ((high & COPIED_HIGH) !== 0) result.corruptions++
        const { offset, length } = this.#mapping.compressedAt(table, i)
        this.#count(offset, Math.max(1, length), times)
        if (!isActive) continue
        result.allocatedClusters += times
        result.compressedClusters += times
        // They lie anywhere inside of clusters.
        result.fragmentedClusters += times
        continue
      }
      const offset = offsetOf(high, low)
      if ((high & RESERVED_HIGH_L2) !== 0 || (low & RESERVED_LOW_L2) !== 0) result.corruptions++
      if ((low & ZERO_LOW) !== 0 && this.#header.version === 2) result.corruptions++
      if (offset === 0) continue
      if (offset % size !== 0) {
        result.corruptions++
        continue
      }
      // Whoever wrote there would write to the table.
      if (this.#metadata.isTable(offset / size)) result.corruptions++
      this.#count(offset, size, times)
      if (!isActive) continue
      result.allocatedClusters += times
      if (next !== 0 && offset !== next) result.fragmentedClusters += times
      next = offset + size
    }
  }

  async #countSnapshots(): Promise<void> {
    if (this.#header.snapshotCount === 0) return
    const { snapshots, length } = await readSnapshots(this.#metadata, this.#header)
    this.#count(this.#header.snapshotOffset, length)
    let bytes = 0
    for (const { l1Offset, l1Size } of snapshots) {
      bytes += l1Size * 8
      // Each has a table of its own; of those of a hostile image, which share one, there is no end.
      if (bytes > Math.min(this.#metadata.host.size, SNAPSHOT_BYTES_MAX)) {
        this.#result.corruptions++
        break
      }
      this.#count(l1Offset, l1Size * 8)
      await this.#countL1(l1Offset, l1Size, false)
    }
  }

  async #countBitmaps(): Promise<void> {
    const { bitmaps } = this.#header
    if (bitmaps === null) return
    this.#count(bitmaps.offset, bitmaps.length)
    const { tables, isWhole } = await readBitmaps(this.#metadata, bitmaps)
    if (!isWhole) this.#result.corruptions++
    let bytes = 0
    for (const table of tables) {
      bytes += table.entries * 8
      // Each has a table of its own; of those of a hostile image, which share one, there is no end.
      if (bytes > Math.min(this.#metadata.host.size, BITMAP_BYTES_MAX)) {
        this.#result.corruptions++
        break
      }
      this.#count(table.offset, table.entries * 8)
      for await (const entries of entriesOf(this.#metadata, table)) {
        for (let at = 0; at < entries.length; at += 8) {
          const cluster = offsetOf(entries.readUInt32BE(at), entries.readUInt32BE(at + 4))
          if (cluster !== 0) this.#count(cluster, this.#clusterSize)
        }
      }
    }
  }

  /** Compares with the counts of the image. */
  async #compare(): Promise<void> {
    const { table, perBlock } = this.#refcounts.blocks
    const clusters = Math.ceil(this.#metadata.host.size / this.#clusterSize)
    let end = 0
    const compare = (cluster: number, should: number, is: number): void => {
      if (should === 0 && is === 0) return
      if (cluster >= end) end = cluster + 1
      if (should === is) return
      if (is > should) this.#result.leaks++
      else this.#result.corruptions++
      this.#wrong.set(cluster, should)
    }
    for (let index = 0; index < table.length && index * perBlock < clusters; index++) {
      if (!this.#hasBlock(index)) continue
      const block = await this.#refcounts.blocks.load(index)
      const stop = Math.min(clusters, (index + 1) * perBlock)
      for (let cluster = index * perBlock; cluster < stop; cluster++) {
        compare(cluster, this.#counts.get(cluster), this.#refcounts.blocks.get(block, cluster % perBlock))
      }
    }
    // Of what no block describes there may be more than anybody could go through.
    for (const [cluster, should] of this.#counts.all()) {
      if (!this.#hasBlock(Math.floor(cluster / perBlock))) compare(cluster, should, 0)
    }
    this.#result.imageEndOffset = end * this.#clusterSize
  }

  #hasBlock(index: number): boolean {
    const offset = this.#refcounts.blocks.table[index] ?? 0
    return offset !== 0 && offset % this.#clusterSize === 0 && offset < this.#metadata.host.size
  }

  /** The active tables say of each cluster whether it is referred to once. */
  async #checkFlags(): Promise<void> {
    const { l1Size } = this.#header
    /** For each table the first entry that names it. */
    const seen = new Map<number, number>()
    for (let l1Index = 0; l1Index < l1Size; l1Index++) {
      const high = this.#mapping.l1.getUint32(l1Index * 8)
      const offset = offsetOf(high, this.#mapping.l1.getUint32(l1Index * 8 + 4))
      if (offset === 0 || offset % this.#clusterSize !== 0 || offset >= this.#metadata.host.size) continue
      if (this.#isWrong(high, offset)) {
        this.#result.corruptions++
        this.#wrongL1.push(l1Index)
      }
      if (!seen.has(offset)) seen.set(offset, l1Index)
    }
    for await (const table of this.#tablesAt([...seen.keys()])) {
      const l1Index = seen.get(table.offset)!
      for (let i = 0; i < this.#mapping.perTable; i++) {
        const entry = table.high(i)
        const host = (entry & COMPRESSED_HIGH) === 0 ? offsetOf(entry, table.low(i)) : 0
        if (host === 0 || host % this.#clusterSize !== 0 || !this.#isWrong(entry, host)) continue
        this.#result.corruptions++
        const list = this.#wrongL2.get(l1Index)
        if (list === undefined) this.#wrongL2.set(l1Index, [i])
        else list.push(i)
      }
    }
  }

  #isWrong(high: number, offset: number): boolean {
    const isCopied = (high & COPIED_HIGH) !== 0
    return isCopied !== (this.#counts.get(offset / this.#clusterSize) === 1)
  }

  /** Sets right what can be set right, in memory. Returns how much that was. */
  async repair(): Promise<{ leaks: number; corruptions: number }> {
    let leaks = 0
    let corruptions = 0
    const { perBlock, max } = this.#refcounts.blocks
    await this.#refcounts.makeBlocksFor(this.#wrong.keys())
    for (const [cluster, should] of this.#wrong) {
      const block = await this.#refcounts.blocks.load(Math.floor(cluster / perBlock))
      if (this.#refcounts.blocks.get(block, cluster % perBlock) > should) leaks++
      else corruptions++
      this.#refcounts.blocks.set(block, cluster % perBlock, Math.min(should, max))
    }
    for (const l1Index of this.#wrongL1) {
      const at = l1Index * 8
      this.#mapping.l1.setUint32(at, (this.#mapping.l1.getUint32(at) ^ COPIED_HIGH) >>> 0)
      this.#mapping.dirtyL1.add(l1Index)
      corruptions++
    }
    for (const [l1Index, entries] of this.#wrongL2) {
      const table = this.#mapping.tables.get(l1Index) ?? (await this.#mapping.load(l1Index))
      for (const i of entries) table.set(i, (table.high(i) ^ COPIED_HIGH) >>> 0, table.low(i))
      this.#mapping.tables.soil(table)
      corruptions += entries.length
    }
    return { leaks, corruptions }
  }
}
