// An open qcow2 image, as the device above sees it: puts the parts together and answers what it is asked. Where bytes lie is
// mapping.ts; who has which cluster refcounts.ts; the order on the disk commit.ts; what becomes of clusters that are given up
// freeing.ts.

import { constants } from 'node:os'
import { BlockError } from '../../errors.ts'
import type { CheckResult, FormatBacking, FormatHost, FormatImage, FormatOptions, Range } from '../driver.ts'
import { clustersOfBitmaps } from './bitmaps.ts'
import { checkImage } from './check.ts'
import { claimTables } from './claims.ts'
import { Committer } from './commit.ts'
import { Decompressor } from './compressed.ts'
import { Emptying } from './empty.ts'
import { Freeing } from './freeing.ts'
import { type Header, readHeader } from './header.ts'
import { COMPATIBLE, FIELD, INCOMPATIBLE, L1_BYTES_MAX, unsupported, writeU64 } from './layout.ts'
import { Mapping } from './mapping.ts'
import { Metadata } from './metadata.ts'
import { Pieces } from './pieces.ts'
import { Reading } from './read.ts'
import { Readers } from './readers.ts'
import { Refcounts } from './refcounts.ts'
import { Writing } from './write.ts'

const { EOPNOTSUPP, EROFS } = constants.errno

/** The longest gap that is filled. Longer ones cost more than a submission. */
const GAP_MAX = 64 << 10

/** Reads what must be known of an image. */
export async function openImage(host: FormatHost, options: FormatOptions): Promise<Qcow2Image> {
  const header = await readHeader(host)
  const { path } = host
  if (header.backingName !== null && options.backing === undefined) {
    const what = `it names a backing file, ${JSON.stringify(header.backingName)}, which is not followed: say with the option \`backing\` what lies below it, or null`
    throw unsupported(path, what, '')
  }
  if (!options.readOnly && (header.incompatible & INCOMPATIBLE.corrupt) !== 0) {
    throw unsupported(path, 'the image is marked as corrupt; it can be opened with readOnly: true', '')
  }
  const metadata = new Metadata(host, header.clusterSize)
  const l1 = await metadata.read(header.l1Offset, header.l1Size * 8)
  const table = await metadata.read(header.refcountOffset, header.refcountClusters * header.clusterSize)
  const refcounts = new Refcounts(metadata, header, table)
  const image = new Qcow2Image(metadata, header, refcounts, l1, options)
  if (!options.readOnly) await image.claimTables()
  return image
}

/** Whether the host is a file: setting it to the size that it has changes nothing. */
async function isGrowable(host: FormatHost): Promise<boolean> {
  try {
    await host.truncate(host.size)
    return true
  } catch (error) {
    if (error instanceof BlockError && error.code === 'EOPNOTSUPP') return false
    throw error
  }
}

export class Qcow2Image implements FormatImage {
  readonly clusterSize: number
  readonly metadata: Metadata
  readonly #host: FormatHost
  readonly #header: Header
  readonly #refcounts: Refcounts
  readonly #mapping: Mapping
  readonly #reading: Reading
  readonly #writing: Writing
  readonly #emptying: Emptying
  readonly #committer: Committer
  readonly #freeing: Freeing
  readonly #backing: FormatBacking | null
  readonly #readOnly: boolean
  /** Whether the header tells that we write; a promise while it is being told. */
  #begun: boolean | Promise<void> = false
  /** Whether the disk may have another size of the guest: a write of it has failed. */
  #sizeIsUncertain = false
  /** The size of the host when it was opened: what we made longer we make shorter again. */
  readonly #hostSize: number

  constructor(metadata: Metadata, header: Header, refcounts: Refcounts, l1: Buffer, options: FormatOptions) {
    this.metadata = metadata
    this.clusterSize = header.clusterSize
    this.#host = metadata.host
    this.#hostSize = metadata.host.size
    this.#header = header
    this.#refcounts = refcounts
    this.#readOnly = options.readOnly
    this.#backing = options.backing ?? null
    const readers = new Readers()
    this.#mapping = new Mapping(metadata, refcounts, header, l1)
    const decompressor = new Decompressor(metadata, header)
    this.#reading = new Reading(
      metadata,
      this.#mapping,
      decompressor,
      this.#backing,
      header.backingName !== null,
      readers,
    )
    this.#freeing = new Freeing(metadata, refcounts, readers)
    this.#committer = new Committer(metadata, refcounts, this.#mapping, header, this.#freeing)
    this.#writing = new Writing(metadata, this.#mapping, refcounts, this.#reading, this.#committer)
    this.#emptying = new Emptying(header, this.#mapping, this.#reading, this.#writing)
  }

  get size(): number {
    return this.#header.size
  }

  /** Enters where all tables lie. If they overlap nothing is written any more. Returns whether they do. */
  async claimTables(): Promise<boolean> {
    const wrong = await claimTables(this.metadata, this.#header, this.#refcounts.blocks, this.#mapping)
    if (wrong !== null && !this.#readOnly) this.metadata.fail(wrong)
    return wrong !== null
  }

  prepare(ranges: readonly Range[]): Promise<void> | undefined {
    const { coverage, tables } = this.#mapping
    let loading: Promise<unknown>[] | null = null
    for (const { offset, length } of ranges) {
      if (length === 0) continue
      const last = Math.floor((offset + length - 1) / coverage)
      for (let l1Index = Math.floor(offset / coverage); l1Index <= last; l1Index++) {
        if (tables.get(l1Index) !== undefined) continue
        try {
          if (this.#mapping.tableOffset(l1Index) === 0) continue
        } catch {
          // The run meets it again, and fails.
          continue
        }
        loading ??= []
        // More would push each other out again; the runs load them when their turn comes.
        if (loading.length === tables.max) return Promise.all(loading).then(() => undefined)
        loading.push(this.#mapping.load(l1Index))
      }
    }
    return loading === null ? undefined : Promise.all(loading).then(() => undefined)
  }

  allocates({ offset, length }: Range): Range | null {
    const { coverage } = this.#mapping
    const size = this.clusterSize
    let first = -1
    let last = -1
    for (let place = offset - (offset % size); place < offset + length; place += size) {
      if (this.#isOwn(Math.floor(place / coverage), Math.floor((place % coverage) / size))) continue
      if (first < 0) first = place
      last = place
    }
    return first < 0 ? null : { offset: first, length: last + size - first }
  }

  /** Whether a cluster may be written in place, as far as can be told without waiting. */
  #isOwn(l1Index: number, i: number): boolean {
    const table = this.#mapping.tables.get(l1Index)
    if (table === undefined) return false
    try {
      return this.#mapping.inPlace(table, i) >= 0
    } catch {
      return false
    }
  }

  /** Only inside of one cluster: between two of them nothing would have to be written. */
  mergeRequests(run: Range, next: Range): boolean {
    const { coverage } = this.#mapping
    const size = this.clusterSize
    const end = run.offset + run.length
    const place = next.offset - (next.offset % size)
    if (place >= end || next.offset - end > GAP_MAX) return false
    const l1Index = Math.floor(place / coverage)
    const table = this.#mapping.tables.get(l1Index)
    try {
      if (table === undefined) return this.#mapping.tableOffset(l1Index) === 0 && !this.#reading.isBacked(place)
      return this.#writing.mayFill(table, Math.floor((place % coverage) / size), place)
    } catch {
      return false
    }
  }

  read(offset: number, into: readonly Uint8Array[]): Promise<void> {
    return this.#reading.read(offset, into)
  }

  async write(
    offset: number,
    data: readonly Uint8Array[],
    { fua }: { readonly fua: boolean },
    gaps: readonly Range[],
  ): Promise<void> {
    const pieces = new Pieces(data)
    if (this.#begun !== true) await this.#begin()
    await this.#writing.write(offset, pieces, gaps)
    if (fua) await this.#committer.commit()
  }

  async flush(): Promise<void> {
    await this.#committer.commit()
  }

  get mayFlushAgain(): boolean {
    return !this.metadata.hasLost
  }

  async discard(offset: number, length: number): Promise<void> {
    await this.#begin()
    await this.#emptying.discard(offset, length)
  }

  async writeZeroes(offset: number, length: number, { unmap }: { readonly unmap: boolean }): Promise<void> {
    await this.#begin()
    await this.#emptying.writeZeroes(offset, length, unmap)
  }

  async truncate(size: number): Promise<void> {
    await this.#begin()
    const before = this.#header.size
    if (size < before)
      throw this.#refuse(EOPNOTSUPP, 'ftruncate', 'a qcow2 image can only be made larger: make a small one and copy')
    if (this.#header.version === 2 && this.#header.snapshotCount > 0) {
      throw this.#refuse(
        EOPNOTSUPP,
        'ftruncate',
        'snapshots of a version 2 image do not know their size, so it can not change: delete them first (qemu-img snapshot -d)',
      )
    }
    if (size % 512 !== 0)
      throw this.#refuse(EOPNOTSUPP, 'ftruncate', 'the size of a qcow2 image is a multiple of 512: round it up')
    const entries = Math.ceil(size / this.#mapping.coverage)
    if (entries * 8 > L1_BYTES_MAX)
      throw this.#refuse(
        EOPNOTSUPP,
        'ftruncate',
        'too large for clusters of this size: make an image with a larger clusterSize and copy',
      )
    if (entries > this.#header.l1Size) await this.#growL1(entries)
    const { clusterSize } = this
    // What lies below, and what an old cluster holds behind the former end, must not show.
    this.#header.size = size
    const end = Math.ceil(before / clusterSize) * clusterSize
    const below = Math.min(size, Math.max(end, this.#backing?.size ?? 0))
    try {
      if (below > before) await this.#emptying.writeZeroes(before, Math.min(below, size) - before, false)
      await this.#committer.commit()
      await this.#writeSize()
    } catch (error) {
      this.#header.size = before
      throw error
    }
  }

  async #writeSize(): Promise<void> {
    const field = Buffer.alloc(8)
    writeU64(field, this.#header.size, 0)
    this.#sizeIsUncertain = true
    await this.metadata.write(FIELD.size, field)
    await this.metadata.flush()
    this.#sizeIsUncertain = false
  }

  /** A longer L1 table, elsewhere; one write of the header switches to it. */
  async #growL1(entries: number): Promise<void> {
    const { l1Offset, l1Size } = this.#header
    const clusters = Math.ceil((entries * 8) / this.clusterSize)
    const first = await this.#refcounts.allocateAtEnd(clusters)
    const offset = first * this.clusterSize
    const taken = Array.from({ length: clusters }, (_, n) => first + n)
    try {
      // The counts are on the disk when this runs, and every entry of the table is.
      await this.#refcounts.withoutCommits(async () => {
        const l1 = this.#host.alloc(clusters * this.clusterSize)
        const old = this.#mapping.l1
        l1.set(new Uint8Array(old.buffer, old.byteOffset, old.byteLength))
        const written = Buffer.from(l1)
        this.#mapping.l1 = new DataView(l1.buffer, l1.byteOffset, entries * 8)
        await this.metadata.write(offset, written)
        await this.metadata.flush()
        const fields = Buffer.alloc(12)
        fields.writeUInt32BE(entries, 0)
        writeU64(fields, offset, 4)
        await this.metadata.switchHeader(FIELD.l1Size, fields)
        this.#header.l1Offset = offset
        this.#header.l1Size = entries
      })
    } catch (error) {
      if (this.metadata.failure === null) await this.#refcounts.release(taken).catch(() => undefined)
      // What the guest has changed meanwhile is in the new one; it is as long as the old one again.
      const { buffer, byteOffset } = this.#mapping.l1
      this.#mapping.l1 = new DataView(buffer, byteOffset, l1Size * 8)
      throw error
    }
    this.metadata.claim(offset, clusters * this.clusterSize)
    this.metadata.disclaim(l1Offset, l1Size * 8)
    const freed = Math.ceil((l1Size * 8) / this.clusterSize)
    await this.#refcounts.release(Array.from({ length: freed }, (_, n) => l1Offset / this.clusterSize + n))
  }

  async check({ repair }: { readonly repair: boolean }): Promise<CheckResult> {
    if (!this.#readOnly && this.#begun === true) await this.#committer.finish()
    if (repair) this.#refcounts.end.growable = await isGrowable(this.#host)
    const mend = repair ? (): Promise<void> => this.#committer.finish() : null
    // That tables lie in each other no count tells: it may say "two".
    const overlap = await this.claimTables().catch(() => false)
    const found = await checkImage(this.metadata, this.#header, this.#mapping, this.#refcounts, mend)
    const result = overlap ? { ...found, corruptions: found.corruptions + 1 } : found
    if (!repair || result.leaks + result.corruptions + result.checkErrors > 0) return result
    if ((this.#header.incompatible & INCOMPATIBLE.dirty) !== 0) await this.#setIncompatible(0)
    this.metadata.heal()
    return result
  }

  async close(): Promise<void> {
    if (this.#readOnly || this.#begun === false) return
    this.metadata.assertSound()
    await this.#committer.finish()
    if (this.#sizeIsUncertain) await this.#writeSize()
    if ((this.#header.incompatible & INCOMPATIBLE.dirty) !== 0) await this.#setIncompatible(0)
    const end = Math.max(this.#hostSize, this.#refcounts.end.cluster * this.clusterSize)
    if (this.#host.size > end) await this.#host.truncate(end)
  }

  /** Before the first change: the header must not promise what we don't keep, and must tell what we put off. */
  async #begin(): Promise<void> {
    if (this.#begun === true) return
    this.metadata.assertSound()
    if ((this.#header.incompatible & INCOMPATIBLE.dirty) !== 0) {
      const reason =
        'the image was not closed and its reference counts may be wrong (dirty): check({ repair: true }) sets them right'
      throw this.#refuse(EROFS, 'write', reason)
    }
    if (this.#begun === false) {
      this.#begun = this.#tellBegin().then(
        () => {
          this.#begun = true
        },
        (error: unknown) => {
          this.#begun = false
          throw error
        },
      )
    }
    await this.#begun
  }

  async #tellBegin(): Promise<void> {
    // Not when it is opened: setting even the same size changes when a file was last changed.
    this.#refcounts.end.growable = await isGrowable(this.#host)
    // A file may end inside of its last cluster, whose rest reads as zeros: written to, it must be whole.
    await this.#refcounts.end.coverAll()
    const isLazy = (this.#header.compatible & COMPATIBLE.lazyRefcounts) !== 0
    // Features that are cleared by whoever does not know them: nothing in this image is kept up for them.
    if (this.#header.hasAutoclear) await this.#clearFeatures()
    if (isLazy) await this.#setIncompatible(INCOMPATIBLE.dirty)
    this.#committer.lazy = isLazy
  }

  async #clearFeatures(): Promise<void> {
    const { bitmaps } = this.#header
    // Who can't read them can't give them back: their space is lost then, and nothing else.
    const clusters =
      bitmaps === null ? [] : await clustersOfBitmaps(this.metadata, this.#refcounts.blocks, bitmaps).catch(() => [])
    await this.metadata.write(FIELD.autoclear, Buffer.alloc(8))
    await this.metadata.flush()
    this.#header.hasAutoclear = false
    this.#header.bitmaps = null
    if (bitmaps === null) return
    this.metadata.disclaim(bitmaps.offset, bitmaps.length)
    this.#freeing.free([], clusters)
  }

  async #setIncompatible(dirty: number): Promise<void> {
    const bits = (this.#header.incompatible & ~INCOMPATIBLE.dirty) | dirty
    const field = Buffer.alloc(8)
    field.writeUInt32BE(bits, 4)
    await this.metadata.write(FIELD.incompatible, field)
    await this.metadata.flush()
    this.#header.incompatible = bits
  }

  #refuse(errno: number, syscall: string, reason: string): BlockError {
    return new BlockError(errno, { syscall, path: this.#host.path, reason })
  }
}
