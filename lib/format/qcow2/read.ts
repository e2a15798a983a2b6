// Reading the guest's bytes, wherever they are: in a cluster of the image, compressed, in what lies below, or nowhere.

import type { FormatBacking } from '../driver.ts'
import type { Decompressor } from './compressed.ts'
import { Kind, type Mapping } from './mapping.ts'
import type { Metadata } from './metadata.ts'
import { fillZeros, lengthOf, Pieces, Together } from './pieces.ts'
import type { Readers } from './readers.ts'
import type { Table } from './table.ts'

export class Reading {
  readonly #metadata: Metadata
  readonly #mapping: Mapping
  readonly #decompressor: Decompressor
  readonly #backing: FormatBacking | null
  /** Whether the image names something that lies below it. */
  readonly #names: boolean
  readonly #readers: Readers
  readonly #clusterSize: number

  constructor(
    metadata: Metadata,
    mapping: Mapping,
    decompressor: Decompressor,
    backing: FormatBacking | null,
    names: boolean,
    readers: Readers,
  ) {
    this.#metadata = metadata
    this.#mapping = mapping
    this.#decompressor = decompressor
    this.#backing = backing
    this.#names = names
    this.#readers = readers
    this.#clusterSize = mapping.clusterSize
  }

  /** Whether something below the image has bytes from this place on. */
  isBacked(offset: number): boolean {
    return this.#backing !== null && offset < this.#backing.size
  }

  /** The same, and also where the image names something below it that the caller has left out: it shows to others. */
  mayBeBacked(offset: number): boolean {
    return this.isBacked(offset) || (this.#backing === null && this.#names)
  }

  /** Whether a cluster reads as zeros without anything being read; `place` is where it begins. */
  readsZeros(table: Table, i: number, place: number): boolean {
    const kind = this.#mapping.kindOf(table, i)
    return kind === Kind.zero || (kind === Kind.none && !this.isBacked(place))
  }

  async read(offset: number, into: readonly Uint8Array[]): Promise<void> {
    const generation = this.#readers.enter()
    const together = new Together()
    try {
      await this.#readAll(offset, into, together)
    } finally {
      await together.settled()
      this.#readers.leave(generation)
    }
    await together.all()
  }

  async #readAll(offset: number, into: readonly Uint8Array[], together: Together): Promise<void> {
    const { coverage } = this.#mapping
    const pieces = new Pieces(into)
    const end = offset + pieces.length
    let place = offset
    while (place < end) {
      const l1Index = Math.floor(place / coverage)
      const stop = Math.min(end, (l1Index + 1) * coverage)
      if (this.#mapping.tableOffset(l1Index) === 0) {
        this.#readBelow(place, pieces.take(stop - place), together)
        place = stop
      } else {
        const table = this.#mapping.tables.get(l1Index) ?? (await this.#mapping.load(l1Index))
        place = this.#readTable(table, place, stop, pieces, together)
      }
    }
  }

  #readTable(table: Table, from: number, stop: number, pieces: Pieces, together: Together): number {
    const size = this.#clusterSize
    let place = from
    while (place < stop) {
      const i = Math.floor((place % this.#mapping.coverage) / size)
      const kind = this.#mapping.kindOf(table, i)
      const within = place % size
      let end = place - within + size
      if (kind === Kind.compressed) {
        end = Math.min(end, stop)
        const compressed = this.#mapping.compressedAt(table, i)
        const taken = pieces.take(end - place)
        together.add(this.#decompressor.read(compressed).then((bytes) => copy(bytes.subarray(within), taken)))
      } else {
        const host = this.#mapping.hostOf(table, i)
        let next = i + 1
        // As far as it goes on in the same way.
        while (end < stop && this.#goesOn(table, next, kind, host + (next - i) * size)) {
          end += size
          next++
        }
        end = Math.min(end, stop)
        const taken = pieces.take(end - place)
        if (kind === Kind.normal) this.#readHost(host + within, end - place, taken, together)
        else if (kind === Kind.none) this.#readBelow(place, taken, together)
        else fillZeros(taken)
      }
      place = end
    }
    return place
  }

  #goesOn(table: Table, i: number, kind: Kind, host: number): boolean {
    if (this.#mapping.kindOf(table, i) !== kind) return false
    return kind !== Kind.normal || this.#mapping.hostOf(table, i) === host
  }

  /** What lies past the end of the host is zeros. */
  #readHost(offset: number, length: number, into: readonly Uint8Array[], together: Together): void {
    const { host } = this.#metadata
    const there = Math.min(length, Math.max(0, host.size - offset))
    if (there === length) {
      together.add(host.read(offset, into))
      return
    }
    const pieces = new Pieces(into)
    if (there > 0) together.add(host.read(offset, pieces.take(there)))
    fillZeros(pieces.take(length - there))
  }

  #readBelow(offset: number, into: readonly Uint8Array[], together: Together): void {
    const length = lengthOf(into)
    const there = this.#backing === null ? 0 : Math.min(length, Math.max(0, this.#backing.size - offset))
    const pieces = new Pieces(into)
    if (there > 0) together.add(this.#backing!.read(offset, pieces.take(there)))
    if (there < length) fillZeros(pieces.take(length - there))
  }
}

function copy(bytes: Uint8Array, into: readonly Uint8Array[]): void {
  let at = 0
  for (const piece of into) {
    // Memory that was taken away meanwhile takes nothing; the request fails for that by itself.
    if (piece.length > 0) piece.set(bytes.subarray(at, at + piece.length))
    at += piece.length
  }
}
