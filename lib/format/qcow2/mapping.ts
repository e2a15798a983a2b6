// Where the bytes of the guest lie: the L1 table, and the L2 tables that it refers to, as many as fit into memory. What a cluster's
// entry means is decided here and nowhere else.

import type { Header } from './header.ts'
import {
  COMPRESSED_HIGH,
  COPIED_HIGH,
  highOf,
  lowOf,
  offsetOf,
  RESERVED_HIGH,
  RESERVED_HIGH_L2,
  RESERVED_LOW,
  RESERVED_LOW_L2,
  ZERO_LOW,
} from './layout.ts'
import type { Metadata } from './metadata.ts'
import type { Refcounts } from './refcounts.ts'
import { Table, TableCache } from './table.ts'

const L2_CACHE_BYTES = 32 << 20
const L2_TABLES_MIN = 16
const L2_TABLES_MAX = 8192

/** What an L2 entry says. */
export const Kind = { none: 0, zero: 1, normal: 2, compressed: 3 } as const
export type Kind = (typeof Kind)[keyof typeof Kind]

/** The compressed bytes of a cluster on the host. */
export interface Compressed {
  readonly offset: number
  /** No more than so many bytes. */
  readonly length: number
}

export class Mapping {
  readonly #metadata: Metadata
  readonly #refcounts: Refcounts
  readonly #header: Header
  readonly clusterSize: number
  /** Entries of an L2 table. */
  readonly perTable: number
  /** Guest bytes that an L2 table covers. */
  readonly coverage: number
  /** The L1 table, as it is on the disk when everything is committed. */
  l1: DataView
  readonly tables: TableCache
  /** L1 entries that the disk does not have yet. */
  readonly dirtyL1: Set<number> = new Set()
  readonly #loading = new Map<number, Promise<Table>>()
  readonly #making = new Map<number, Promise<Table>>()
  /** Clusters that nothing refers to when what is in memory is on the disk: others were written instead of them. */
  replaced: number[] = []
  /** The same; the guest has given them up. */
  unmapped: number[] = []

  constructor(metadata: Metadata, refcounts: Refcounts, header: Header, l1: Buffer) {
    this.#metadata = metadata
    this.#refcounts = refcounts
    this.#header = header
    this.clusterSize = header.clusterSize
    this.perTable = header.clusterSize / 8
    this.coverage = this.perTable * header.clusterSize
    this.l1 = new DataView(l1.buffer, l1.byteOffset, l1.length)
    const max = Math.floor(L2_CACHE_BYTES / header.clusterSize)
    this.tables = new TableCache(Math.min(L2_TABLES_MAX, Math.max(L2_TABLES_MIN, max)))
  }

  /** Where the L2 table of an L1 entry lies; 0: there is none. Throws if it lies where none can lie. */
  tableOffset(l1Index: number): number {
    const high = this.l1.getUint32(l1Index * 8)
    const low = this.l1.getUint32(l1Index * 8 + 4)
    if (high === 0 && low === 0) return 0
    const offset = offsetOf(high, low)
    const reserved = (high & RESERVED_HIGH) !== 0 || (low & RESERVED_LOW) !== 0
    if (reserved || offset === 0 || offset % this.clusterSize !== 0 || offset >= this.#metadata.host.size) {
      throw this.#metadata.fail(`entry ${l1Index} of the L1 table is ${hex(high, low)}`)
    }
    return offset
  }

  /** Whether the L2 table of an L1 entry is this image's state's alone. */
  isOwn(l1Index: number): boolean {
    return (this.l1.getUint32(l1Index * 8) & COPIED_HIGH) !== 0
  }

  /** The L2 table of an L1 entry, which must have one. */
  load(l1Index: number): Promise<Table> {
    const under = this.#loading.get(l1Index)
    if (under !== undefined) return under
    const loading = this.#load(l1Index).finally(() => this.#loading.delete(l1Index))
    this.#loading.set(l1Index, loading)
    return loading
  }

  async #load(l1Index: number): Promise<Table> {
    for (;;) {
      const offset = this.tableOffset(l1Index)
      const bytes = await this.#metadata.read(offset, this.clusterSize)
      const there = this.tables.get(l1Index)
      if (there !== undefined) return there
      // It may have been replaced by a copy that was written and dropped meanwhile.
      if (this.tableOffset(l1Index) !== offset) continue
      const table = new Table(l1Index, offset, bytes, true)
      this.tables.add(table)
      return table
    }
  }

  /** An L2 table that may be changed: made if there is none, copied if a snapshot has it too. */
  forWriting(l1Index: number): Table | Promise<Table> {
    if (this.isOwn(l1Index)) return this.tables.get(l1Index) ?? this.load(l1Index)
    const under = this.#making.get(l1Index)
    if (under !== undefined) return under
    const making = this.#makeOwn(l1Index).finally(() => this.#making.delete(l1Index))
    this.#making.set(l1Index, making)
    return making
  }

  async #makeOwn(l1Index: number): Promise<Table> {
    const old = this.tableOffset(l1Index)
    const source = old === 0 ? null : (this.tables.get(l1Index) ?? (await this.load(l1Index)))
    if (source !== null) source.pins++
    try {
      const { first, virgin } = await this.#refcounts.allocate(1)
      if (!(await this.#refcounts.end.covers(first + 1))) {
        await this.#refcounts.release([first])
        throw this.#metadata.noSpace()
      }
      const offset = first * this.clusterSize
      const table = new Table(l1Index, offset, this.#metadata.memory(this.clusterSize), false)
      if (source !== null) table.bytes.set(source.bytes)
      // A cluster that was never written is a table of zeros already.
      if (!virgin || source !== null) table.mark(0, this.clusterSize)
      this.tables.add(table)
      this.tables.soil(table)
      this.#metadata.claim(offset, this.clusterSize)
      this.l1.setUint32(l1Index * 8, (highOf(offset) | COPIED_HIGH) >>> 0)
      this.l1.setUint32(l1Index * 8 + 4, lowOf(offset))
      this.dirtyL1.add(l1Index)
      if (old !== 0) {
        this.replaced.push(old / this.clusterSize)
        this.#metadata.disclaim(old, this.clusterSize)
      }
      return table
    } finally {
      if (source !== null) source.pins--
    }
  }

  /** What an entry says. Throws if it says what can't be. */
  kindOf(table: Table, i: number): Kind {
    const high = table.high(i)
    const low = table.low(i)
    if (high === 0 && low === 0) return Kind.none
    if ((high & COMPRESSED_HIGH) !== 0) return Kind.compressed
    const isZero = (low & ZERO_LOW) !== 0
    const offset = offsetOf(high, low)
    if (
      (high & RESERVED_HIGH_L2) !== 0 ||
      (low & RESERVED_LOW_L2) !== 0 ||
      offset % this.clusterSize !== 0 ||
      (isZero && this.#header.version === 2)
    ) {
      throw this.#metadata.fail(`entry ${i} of L2 table ${table.index} is ${hex(high, low)}`)
    }
    if (isZero) return Kind.zero
    return offset === 0 ? Kind.none : Kind.normal
  }

  /** Where the cluster of an entry that is not compressed lies; 0: nowhere. */
  hostOf(table: Table, i: number): number {
    return offsetOf(table.high(i), table.low(i))
  }

  /** Where a cluster lies that may be written in place; -1: it must be allocated, or its entry changed. */
  inPlace(table: Table, i: number): number {
    const high = table.high(i)
    // The common case first: a cluster of our own with nothing else said of it.
    if ((high & COPIED_HIGH) === 0 || !this.isOwn(table.index)) {
      this.kindOf(table, i)
      return -1
    }
    if (this.kindOf(table, i) !== Kind.normal) return -1
    const offset = offsetOf(high, table.low(i))
    if (offset >= this.#metadata.host.size || this.#metadata.isTable(offset / this.clusterSize)) {
      throw this.#metadata.fail(`a cluster of the guest lies at ${offset}, where a table or nothing is`)
    }
    return offset
  }

  /** Where a cluster lies that reads as zeros, is allocated, and may be written without being allocated anew; -1: none. */
  reusable(table: Table, i: number): number {
    if ((table.high(i) & COPIED_HIGH) === 0 || !this.isOwn(table.index)) return -1
    if (this.kindOf(table, i) !== Kind.zero) return -1
    const offset = this.hostOf(table, i)
    if (offset === 0) return -1
    if (offset >= this.#metadata.host.size || this.#metadata.isTable(offset / this.clusterSize)) {
      throw this.#metadata.fail(`a cluster of the guest lies at ${offset}, where a table or nothing is`)
    }
    return offset
  }

  compressedAt(table: Table, i: number): Compressed {
    const { clusterBits } = this.#header
    const offsetBits = 62 - (clusterBits - 8)
    const high = table.high(i) & 0x3fffffff
    const highBits = offsetBits - 32
    const offset = (high & (2 ** highBits - 1)) * 2 ** 32 + table.low(i)
    const sectors = (high >>> highBits) + 1
    return { offset, length: sectors * 512 - (offset % 512) }
  }

  /** Points an entry at a cluster of our own. What it referred to before is free when that is on the disk. */
  map(table: Table, i: number, offset: number): void {
    for (const cluster of this.clustersOf(table, i)) {
      if (cluster * this.clusterSize !== offset) this.replaced.push(cluster)
    }
    table.set(i, (highOf(offset) | COPIED_HIGH) >>> 0, lowOf(offset))
    this.tables.soil(table)
  }

  /** Makes an entry say "zeros", or, without `flag`, nothing. */
  unmap(table: Table, i: number, flag: boolean): void {
    for (const cluster of this.clustersOf(table, i)) this.unmapped.push(cluster)
    table.set(i, 0, flag ? ZERO_LOW : 0)
    this.tables.soil(table)
  }

  /** Makes an entry say "zeros", and keeps its cluster. */
  hide(table: Table, i: number): void {
    table.set(i, table.high(i), (table.low(i) | ZERO_LOW) >>> 0)
    this.tables.soil(table)
  }

  /** The clusters of the host that an entry refers to, by number. */
  clustersOf(table: Table, i: number): number[] {
    if ((table.high(i) & COMPRESSED_HIGH) === 0) {
      const offset = this.hostOf(table, i)
      return offset === 0 ? [] : [offset / this.clusterSize]
    }
    const { offset, length } = this.compressedAt(table, i)
    const clusters: number[] = []
    // What is read stops at a sector; the cluster of its last byte is counted as well.
    for (let c = Math.floor(offset / this.clusterSize); c * this.clusterSize < offset + length; c++) clusters.push(c)
    return clusters
  }

  /** Enters where the tables lie. Returns what is wrong with them, if anything. */
  claimTables(): string | null {
    const { l1Offset, l1Size } = this.#header
    let wrong: string | null = null
    if (l1Size > 0 && this.#metadata.claim(l1Offset, l1Size * 8)) wrong = 'its L1 table lies in another table'
    for (let l1Index = 0; l1Index < l1Size; l1Index++) {
      const offset = offsetOf(this.l1.getUint32(l1Index * 8), this.l1.getUint32(l1Index * 8 + 4))
      if (offset === 0) continue
      if (offset % this.clusterSize !== 0 || offset >= this.#metadata.host.size) {
        wrong ??= `L2 table ${l1Index} at ${offset}`
      } else if (this.#metadata.claim(offset, this.clusterSize)) {
        wrong ??= `L2 table ${l1Index} lies in another table`
      }
    }
    return wrong
  }
}

function hex(high: number, low: number): string {
  return `0x${high.toString(16).padStart(8, '0')}${low.toString(16).padStart(8, '0')}`
}
