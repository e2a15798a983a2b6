// Zeros and discards: whole clusters by their entries alone, the rest by writing zeros where there are none yet.

import type { Header } from './header.ts'
import { Kind, type Mapping } from './mapping.ts'
import type { Reading } from './read.ts'
import type { Table } from './table.ts'
import { type Writing, zeroPieces } from './write.ts'

/** Zeros that are written are written so many bytes at a time. */
const ZEROS_AT_ONCE = 16 << 20

export class Emptying {
  readonly #header: Header
  readonly #mapping: Mapping
  readonly #reading: Reading
  readonly #writing: Writing
  readonly #clusterSize: number

  constructor(header: Header, mapping: Mapping, reading: Reading, writing: Writing) {
    this.#header = header
    this.#mapping = mapping
    this.#reading = reading
    this.#writing = writing
    this.#clusterSize = mapping.clusterSize
  }

  /** The range reads as zeros. `unmap`: its clusters are given back; else those of our own are kept for later writes. */
  async writeZeroes(offset: number, length: number, unmap: boolean): Promise<void> {
    const size = this.#clusterSize
    const end = offset + length
    const start = Math.ceil(offset / size) * size
    // What lies behind the end of the guest belongs to its last cluster.
    const stop = end === this.#header.size ? Math.ceil(end / size) * size : end - (end % size)
    if (start >= stop) return this.#writeZeros(offset, end)
    await this.#writeZeros(offset, start)
    await this.#eachCluster(start, stop, false, (table, i, place) => this.#zero(table, i, place, unmap))
    await this.#writeZeros(Math.min(stop, end), end)
  }

  /** Whole clusters are forgotten; they read as zeros afterwards. */
  async discard(offset: number, length: number): Promise<void> {
    const size = this.#clusterSize
    const end = offset + length
    const start = Math.ceil(offset / size) * size
    const stop = end === this.#header.size ? Math.ceil(end / size) * size : end - (end % size)
    await this.#eachCluster(start, stop, true, (table, i, place) => {
      const kind = this.#mapping.kindOf(table, i)
      if (kind === Kind.none || (kind === Kind.zero && this.#mapping.hostOf(table, i) === 0)) return true
      if (!this.#reading.mayBeBacked(place)) this.#mapping.unmap(table, i, false)
      // Without the flag what lies below would show: version 2 keeps the cluster.
      else if (this.#header.version === 3) this.#mapping.unmap(table, i, true)
      return true
    })
  }

  /** Whether a cluster reads as zeros, also to those who follow what the image names below it. */
  #isZero(table: Table, i: number, place: number): boolean {
    const kind = this.#mapping.kindOf(table, i)
    return kind === Kind.zero || (kind === Kind.none && !this.#reading.mayBeBacked(place))
  }

  /** Returns whether the cluster reads as zeros now. */
  #zero(table: Table, i: number, place: number, unmap: boolean): boolean {
    const kind = this.#mapping.kindOf(table, i)
    const isAllocated = kind === Kind.compressed || this.#mapping.hostOf(table, i) !== 0
    const isBacked = this.#reading.mayBeBacked(place)
    if (this.#isZero(table, i, place) && !(unmap && isAllocated)) return true
    if (this.#header.version === 2) {
      if (isBacked) return false
      this.#mapping.unmap(table, i, false)
    } else if (!unmap && kind === Kind.normal && this.#mapping.inPlace(table, i) >= 0) {
      this.#mapping.hide(table, i)
    } else {
      this.#mapping.unmap(table, i, isBacked)
    }
    return true
  }

  /**
   * Asks for each cluster; where the answer is no, zeros are written.
   *
   * @param onlyStored leaves out what the image has no table for, whatever lies below
   */
  async #eachCluster(
    start: number,
    stop: number,
    onlyStored: boolean,
    empty: (table: Table, i: number, place: number) => boolean,
  ): Promise<void> {
    const { coverage } = this.#mapping
    const size = this.#clusterSize
    let place = start
    while (place < stop) {
      const l1Index = Math.floor(place / coverage)
      const next = Math.min(stop, (l1Index + 1) * coverage)
      // Where there is no table and nothing below, there is nothing to do.
      if (this.#mapping.tableOffset(l1Index) === 0 && (onlyStored || !this.#reading.mayBeBacked(place))) {
        place = next
        continue
      }
      const full = await this.#writing.relieve()
      if (full !== null) throw full
      let table = this.#mapping.forWriting(l1Index)
      // Asked again: among many that arrive together, the cache may have dropped it before we got our hands on it.
      while (table instanceof Promise) {
        await table
        table = this.#mapping.forWriting(l1Index)
      }
      table.pins++
      try {
        for (; place < next; place += size) {
          if (empty(table, Math.floor((place % coverage) / size), place)) continue
          const end = Math.min(place + size, this.#header.size)
          await this.#writing.write(place, zeroPieces(end - place))
        }
      } finally {
        table.pins--
      }
    }
  }

  /** Writes zeros to a part of the guest, but not where they are already. */
  async #writeZeros(start: number, end: number): Promise<void> {
    const { coverage } = this.#mapping
    const size = this.#clusterSize
    let from = start
    for (let place = start; place < end; ) {
      const next = Math.min(end, place - (place % size) + size)
      const l1Index = Math.floor(place / coverage)
      const cluster = place - (place % size)
      const isThere = this.#mapping.tableOffset(l1Index) !== 0
      const table = isThere ? (this.#mapping.tables.get(l1Index) ?? (await this.#mapping.load(l1Index))) : null
      const isZero =
        table === null
          ? !this.#reading.mayBeBacked(cluster)
          : this.#isZero(table, Math.floor((place % coverage) / size), cluster)
      if (isZero || next - from >= ZEROS_AT_ONCE) {
        const stop = isZero ? place : next
        if (stop > from) await this.#writing.write(from, zeroPieces(stop - from))
        from = next
      }
      place = next
    }
    if (end > from) await this.#writing.write(from, zeroPieces(end - from))
  }
}
