// The reference counts as they lie on the disk: the refcount table, and the blocks that it refers to, as many as fit into memory.
// Who gets a cluster is decided elsewhere (refcounts.ts); here is only what the counts say, and where they are.

import type { FormatHost } from '../driver.ts'
import { readCount, writeCount } from './counts.ts'
import type { Header } from './header.ts'
import { readU64, writeU64 } from './layout.ts'
import type { Metadata } from './metadata.ts'
import { Table, TableCache } from './table.ts'

const BLOCK_CACHE_BYTES = 8 << 20
const BLOCKS_MIN = 16
const BLOCKS_MAX = 8192

export class RefcountBlocks {
  readonly #metadata: Metadata
  readonly #host: FormatHost
  readonly #header: Header
  readonly #clusterSize: number
  readonly #order: number
  /** Counts per block. */
  readonly perBlock: number
  /** Offsets of the blocks; 0: none. */
  table: Float64Array
  readonly cache: TableCache
  readonly #loading = new Map<number, Promise<Table>>()

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
    this.cache = new TableCache(Math.min(BLOCKS_MAX, Math.max(BLOCKS_MIN, max)))
  }

  /** The largest count that fits. */
  get max(): number {
    return 2 ** (2 ** this.#order) - 1
  }

  get(block: Table, i: number): number {
    return readCount(block, this.#order, i)
  }

  set(block: Table, i: number, value: number): void {
    this.cache.soil(block)
    writeCount(block, this.#order, i, value)
  }

  /** The block of an index that the table has. */
  async load(index: number): Promise<Table> {
    const there = this.cache.get(index)
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
    this.cache.add(block)
    return block
  }

  /** The count of a cluster, if its block is in memory. */
  knownCountOf(cluster: number): number | undefined {
    const block = this.cache.get(Math.floor(cluster / this.perBlock))
    return block === undefined ? undefined : this.get(block, cluster % this.perBlock)
  }

  /** The count of a cluster. */
  async countOf(cluster: number): Promise<number> {
    const index = Math.floor(cluster / this.perBlock)
    if (index >= this.table.length || this.table[index]! === 0) return 0
    return this.get(await this.load(index), cluster % this.perBlock)
  }

  /** A new block in a cluster that was taken for it; nothing on the disk refers to it yet. */
  make(index: number, cluster: number, virgin: boolean): Table {
    const offset = cluster * this.#clusterSize
    if (this.#metadata.claim(offset, this.#clusterSize)) {
      throw this.#metadata.fail(`cluster ${cluster} holds a table and counts as free`)
    }
    const block = new Table(index, offset, this.#metadata.memory(this.#clusterSize), false)
    if (!virgin) block.mark(0, this.#clusterSize)
    this.cache.soil(block)
    this.cache.add(block)
    this.table[index] = offset
    return block
  }

  /** Whether a block was made ahead for what the host could not grow to yet: it is in memory only, and describes nothing. */
  isAhead(index: number): boolean {
    return this.table[index]! >= this.#host.size && this.cache.get(index)?.linked === false
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
      if (offset === 0 || this.isAhead(index)) continue
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
