// Reading an image's header: every field is checked before it is used, and every size is bounded before memory is taken for it.
// What this file returns can be believed in so far as it is no lie about the header itself; tables are checked where they are
// used.

import type { FormatHost } from '../driver.ts'
import {
  BACKING_NAME_MAX,
  BITMAP_DIRECTORY_BYTES_MAX,
  BITMAPS_MAX,
  CLUSTER_BITS_MAX,
  CLUSTER_BITS_MIN,
  EXTENSION,
  FIELD,
  HEADER_LENGTH_V2,
  HEADER_LENGTH_V3,
  INCOMPATIBLE,
  invalid,
  L1_BYTES_MAX,
  MAGIC,
  REFCOUNT_ORDER_MAX,
  REFCOUNT_TABLE_BYTES_MAX,
  readU64,
  SNAPSHOTS_MAX,
  unsupported,
} from './layout.ts'

/** A header that was read. Offsets and sizes in bytes. */
export interface Header {
  readonly version: 2 | 3
  readonly clusterBits: number
  readonly clusterSize: number
  size: number
  l1Offset: number
  /** Entries. */
  l1Size: number
  refcountOffset: number
  refcountClusters: number
  readonly refcountOrder: number
  readonly snapshotCount: number
  readonly snapshotOffset: number
  /** The lower halves; nothing is known of the upper ones but whether any bit is set. */
  incompatible: number
  readonly compatible: number
  /** Whether any autoclear bit is set. */
  hasAutoclear: boolean
  readonly compression: 'deflate' | 'zstd'
  readonly backingName: string | null
  readonly backingFormat: string | null
  /** The directory of the bitmaps that are kept up, and how many there are. */
  bitmaps: { readonly offset: number; readonly length: number; readonly count: number } | null
}

/** Enough for every header of version 3 and its extensions, in the smallest clusters and the largest. */
export async function readHeader(host: FormatHost): Promise<Header> {
  const { path } = host
  if (host.size < HEADER_LENGTH_V2) throw invalid(path, `it has ${host.size} bytes`)
  const start = Buffer.alloc(HEADER_LENGTH_V3)
  await host.read(0, start.subarray(0, Math.min(host.size, start.length)))
  if (start.readUInt32BE(FIELD.magic) !== MAGIC) throw invalid(path, 'it does not begin with QFI\\xfb')
  const version = start.readUInt32BE(FIELD.version)
  if (version !== 2 && version !== 3) throw unsupported(path, `version ${version} is not known`)
  if (version === 3 && host.size < HEADER_LENGTH_V3) throw invalid(path, `it has ${host.size} bytes`)
  const clusterBits = start.readUInt32BE(FIELD.clusterBits)
  if (clusterBits < CLUSTER_BITS_MIN || clusterBits > CLUSTER_BITS_MAX) {
    throw unsupported(
      path,
      `clusters of 2^${clusterBits} bytes; 2^${CLUSTER_BITS_MIN} to 2^${CLUSTER_BITS_MAX} are possible`,
    )
  }
  const clusterSize = 2 ** clusterBits
  const bytes = Buffer.alloc(clusterSize)
  await host.read(0, bytes.subarray(0, Math.min(host.size, clusterSize)))
  return parse(path, host.size, bytes, version, clusterBits)
}

function parse(path: string, hostSize: number, bytes: Buffer, version: 2 | 3, clusterBits: number): Header {
  const clusterSize = bytes.length
  const u32 = (at: number): number => bytes.readUInt32BE(at)
  const isV3 = version === 3
  const headerLength = isV3 ? u32(FIELD.headerLength) : HEADER_LENGTH_V2
  if (
    headerLength < (isV3 ? HEADER_LENGTH_V3 : HEADER_LENGTH_V2) ||
    headerLength > clusterSize ||
    headerLength % 8 > 0
  ) {
    throw invalid(path, `the header has ${headerLength} bytes`)
  }
  const backingOffset = readU64(bytes, FIELD.backingOffset)
  const backingLength = u32(FIELD.backingLength)
  if (backingOffset !== 0) {
    if (backingLength > BACKING_NAME_MAX) throw invalid(path, `the name of its backing file has ${backingLength} bytes`)
    if (backingOffset < headerLength || backingOffset + backingLength > clusterSize) {
      throw invalid(path, 'the name of its backing file lies outside of the first cluster')
    }
  }
  const extensionsEnd = backingOffset === 0 ? clusterSize : backingOffset
  const extensions = readExtensions(path, bytes, headerLength, extensionsEnd)
  const incompatible = isV3 ? u32(FIELD.incompatible + 4) : 0
  checkIncompatible(path, incompatible, isV3 ? u32(FIELD.incompatible) : 0, extensions)
  if (u32(FIELD.cryptMethod) !== 0 || extensions.has(EXTENSION.encryption)) throw unsupported(path, 'encryption')
  const refcountOrder = isV3 ? u32(FIELD.refcountOrder) : 4
  if (refcountOrder > REFCOUNT_ORDER_MAX) throw unsupported(path, `reference counts of 2^${refcountOrder} bits`)
  const size = readU64(bytes, FIELD.size)
  if (!Number.isSafeInteger(size)) throw unsupported(path, `a size of ${size} bytes`)
  const header: Header = {
    version,
    clusterBits,
    clusterSize,
    size,
    l1Offset: readU64(bytes, FIELD.l1Offset),
    l1Size: u32(FIELD.l1Size),
    refcountOffset: readU64(bytes, FIELD.refcountOffset),
    refcountClusters: u32(FIELD.refcountClusters),
    refcountOrder,
    snapshotCount: u32(FIELD.snapshotCount),
    snapshotOffset: readU64(bytes, FIELD.snapshotOffset),
    incompatible,
    compatible: isV3 ? u32(FIELD.compatible + 4) : 0,
    hasAutoclear: isV3 && (u32(FIELD.autoclear) !== 0 || u32(FIELD.autoclear + 4) !== 0),
    compression: compressionOf(path, bytes, headerLength, incompatible),
    backingName: backingOffset === 0 ? null : bytes.toString('utf8', backingOffset, backingOffset + backingLength),
    backingFormat: extensions.get(EXTENSION.backingFormat)?.toString('latin1') ?? null,
    bitmaps:
      isV3 && (u32(FIELD.autoclear + 4) & 1) !== 0
        ? bitmapsOf(path, extensions.get(EXTENSION.bitmaps), clusterSize, hostSize)
        : null,
  }
  checkTables(path, header, hostSize)
  return header
}

/** Extensions by their type; of two of one type the last. Unknown ones stay in the file as they are. */
function readExtensions(path: string, bytes: Buffer, from: number, end: number): Map<number, Buffer> {
  const found = new Map<number, Buffer>()
  for (let at = from; at + 8 <= end; ) {
    const type = bytes.readUInt32BE(at)
    const length = bytes.readUInt32BE(at + 4)
    if (type === EXTENSION.end) break
    if (length > end - at - 8)
      throw invalid(path, `a header extension has ${length} bytes, more than there is room for`)
    found.set(type, bytes.subarray(at + 8, at + 8 + length))
    at += 8 + Math.ceil(length / 8) * 8
  }
  return found
}

function checkIncompatible(path: string, low: number, high: number, extensions: Map<number, Buffer>): void {
  if ((low & INCOMPATIBLE.dataFile) !== 0 || extensions.has(EXTENSION.dataFile)) {
    throw unsupported(path, 'an external data file')
  }
  if ((low & INCOMPATIBLE.extendedL2) !== 0) throw unsupported(path, 'extended L2 entries (subclusters)')
  const known = INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt | INCOMPATIBLE.compression
  const unknown: number[] = []
  for (let bit = 0; bit < 64; bit++) {
    const isSet = bit < 32 ? ((low & ~known) >>> bit) & 1 : (high >>> (bit - 32)) & 1
    if (isSet === 1) unknown.push(bit)
  }
  if (unknown.length === 0) return
  const names = unknown.map((bit) => nameOfFeature(extensions.get(EXTENSION.featureNames), bit) ?? `bit ${bit}`)
  throw unsupported(path, `unknown incompatible features: ${names.join(', ')}`)
}

/** What the image itself calls an incompatible feature. */
function nameOfFeature(table: Buffer | undefined, bit: number): string | null {
  for (let at = 0; table !== undefined && at + 48 <= table.length; at += 48) {
    if (table[at] !== 0 || table[at + 1] !== bit) continue
    const name = table.toString('latin1', at + 2, at + 48)
    return JSON.stringify(name.slice(0, name.includes('\0') ? name.indexOf('\0') : name.length))
  }
  return null
}

function compressionOf(path: string, bytes: Buffer, headerLength: number, incompatible: number): 'deflate' | 'zstd' {
  const type = headerLength > FIELD.compression ? bytes[FIELD.compression]! : 0
  const hasBit = (incompatible & INCOMPATIBLE.compression) !== 0
  if (hasBit !== (type !== 0)) throw invalid(path, 'the type of its compression contradicts its feature bit')
  if (type > 1) throw unsupported(path, `compression of type ${type}`)
  return type === 0 ? 'deflate' : 'zstd'
}

function bitmapsOf(path: string, data: Buffer | undefined, clusterSize: number, hostSize: number): Header['bitmaps'] {
  if (data === undefined) return null
  if (data.length !== 24) throw invalid(path, `the extension for bitmaps has ${data.length} bytes`)
  const [count, length, offset] = [data.readUInt32BE(0), readU64(data, 8), readU64(data, 16)]
  if (count === 0 || count > BITMAPS_MAX || length > BITMAP_DIRECTORY_BYTES_MAX) {
    throw invalid(path, `a directory of ${count} bitmaps in ${length} bytes`)
  }
  if (offset === 0 || offset % clusterSize !== 0 || offset + length > hostSize) {
    throw invalid(path, 'the directory of its bitmaps does not lie where it could')
  }
  return { offset, length, count }
}

function checkTables(path: string, header: Header, hostSize: number): void {
  const { clusterSize, size, l1Offset, l1Size, refcountOffset, refcountClusters } = header
  const isPlace = (offset: number): boolean => offset % clusterSize === 0 && offset > 0 && offset < hostSize
  if (l1Size * 8 > L1_BYTES_MAX) throw invalid(path, `an L1 table of ${l1Size} entries`)
  if (l1Size < Math.ceil(size / ((clusterSize / 8) * clusterSize))) {
    throw invalid(path, `an L1 table of ${l1Size} entries for ${size} bytes`)
  }
  if (l1Size > 0 && !isPlace(l1Offset)) throw invalid(path, `an L1 table at ${l1Offset}`)
  if (refcountClusters === 0 || refcountClusters * clusterSize > REFCOUNT_TABLE_BYTES_MAX) {
    throw invalid(path, `a refcount table of ${refcountClusters} clusters`)
  }
  if (!isPlace(refcountOffset)) throw invalid(path, `a refcount table at ${refcountOffset}`)
  if (header.snapshotCount > SNAPSHOTS_MAX) throw invalid(path, `${header.snapshotCount} snapshots`)
  if (header.snapshotCount > 0 && !isPlace(header.snapshotOffset)) {
    throw invalid(path, `a table of snapshots at ${header.snapshotOffset}`)
  }
}
