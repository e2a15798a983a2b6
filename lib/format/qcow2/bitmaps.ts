// Persistent bitmaps: which parts of the guest have changed since some moment, kept up by others for their backups. We do not keep
// them up, so before the first write the header says that they are void, and then nothing refers to their clusters: they are
// given back, or `qemu-img check` would call them leaks.
//
// The directory names bitmaps, a bitmap has a table, and the table names clusters. Nothing of it is believed: what is to be
// given back is looked at as a whole before, and left alone as a whole if anything is odd. Then it is lost space, no danger.

import type { Header } from './header.ts'
import { offsetOf, RESERVED_LOW, readU64 } from './layout.ts'
import type { Metadata } from './metadata.ts'
import type { RefcountBlocks } from './refcount-blocks.ts'

const ENTRY_BYTES = 24
const READ_BYTES = 1 << 20
/** Entries of all tables together: of what QEMU takes for a bitmap (512 MiB) in the smallest clusters. */
const ENTRIES_MAX = 1 << 20
/** Of an entry of a bitmap's table; its lowest bit says that a part without a cluster is all ones. */
const RESERVED_HIGH = 0xff000000

type Directory = NonNullable<Header['bitmaps']>

/** Where the table of a bitmap lies, and how many entries it has. */
export interface BitmapTable {
  readonly offset: number
  readonly entries: number
}

/** The tables of all bitmaps that the directory names; `isWhole`: it holds as many as the header says. */
export async function readBitmaps(
  metadata: Metadata,
  { offset, length, count }: Directory,
): Promise<{ tables: BitmapTable[]; isWhole: boolean }> {
  const directory = await metadata.read(offset, length)
  const tables: BitmapTable[] = []
  let at = 0
  while (tables.length < count && at + ENTRY_BYTES <= directory.length) {
    tables.push({ offset: readU64(directory, at), entries: directory.readUInt32BE(at + 8) })
    const names = directory.readUInt16BE(at + 18) + directory.readUInt32BE(at + 20)
    at += Math.ceil((ENTRY_BYTES + names) / 8) * 8
  }
  return { tables, isWhole: tables.length === count && at === directory.length }
}

/** The entries of a table, piece by piece; nothing past the end of the host. */
export async function* entriesOf(metadata: Metadata, { offset, entries }: BitmapTable): AsyncGenerator<Buffer> {
  for (let from = 0; from < entries && offset + from * 8 < metadata.host.size; from += READ_BYTES / 8) {
    yield await metadata.read(offset + from * 8, Math.min(READ_BYTES / 8, entries - from) * 8)
  }
}

/** All clusters of the bitmaps, by number; none if anything about them is odd. */
export async function clustersOfBitmaps(
  metadata: Metadata,
  counts: RefcountBlocks,
  directory: Directory,
): Promise<number[]> {
  const { clusterSize } = metadata
  const found = new Set<number>()
  /** Whether these bytes may be given back. Those of the directory are known as those of a table. */
  const take = (offset: number, length: number, isKnown: boolean): boolean => {
    if (offset % clusterSize !== 0 || offset === 0 || offset + length > metadata.host.size) return false
    for (let cluster = offset / clusterSize; cluster * clusterSize < offset + length; cluster++) {
      if (found.has(cluster) || metadata.isTable(cluster) !== isKnown) return false
      found.add(cluster)
    }
    return true
  }
  if (!take(directory.offset, directory.length, true)) return []
  const { tables, isWhole } = await readBitmaps(metadata, directory)
  const entries = tables.reduce((sum, table) => sum + table.entries, 0)
  if (!isWhole || entries > ENTRIES_MAX) return []
  for (const table of tables) {
    if (table.entries > 0 && !take(table.offset, table.entries * 8, false)) return []
    for await (const bytes of entriesOf(metadata, table)) {
      for (let at = 0; at < bytes.length; at += 8) {
        const [high, low] = [bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4)]
        const offset = offsetOf(high, low)
        if (((high & RESERVED_HIGH) | (low & RESERVED_LOW & ~1)) !== 0) return []
        if (offset !== 0 && !take(offset, clusterSize, false)) return []
      }
    }
  }
  const clusters = [...found].sort((a, b) => a - b)
  for (const cluster of clusters) if ((await counts.countOf(cluster)) !== 1) return []
  return clusters
}
