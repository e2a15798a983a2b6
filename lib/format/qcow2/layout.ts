// Numbers of the qcow2 format (QEMU, docs/interop/qcow2.txt), and the bounds that we keep to. All fields are big-endian.

import { constants } from 'node:os'
import { BlockError } from '../../errors.ts'

/** "QFI\xfb". */
export const MAGIC = 0x514649fb

export const CLUSTER_BITS_MIN = 9
export const CLUSTER_BITS_MAX = 21

/** Where fields of the header lie. */
export const FIELD = {
  magic: 0,
  version: 4,
  backingOffset: 8,
  backingLength: 16,
  clusterBits: 20,
  size: 24,
  cryptMethod: 32,
  l1Size: 36,
  l1Offset: 40,
  refcountOffset: 48,
  refcountClusters: 56,
  snapshotCount: 60,
  snapshotOffset: 64,
  incompatible: 72,
  compatible: 80,
  autoclear: 88,
  refcountOrder: 96,
  headerLength: 100,
  compression: 104,
} as const

export const HEADER_LENGTH_V2 = 72
export const HEADER_LENGTH_V3 = 104
/** What we write: with the type of compression. */
export const HEADER_LENGTH = 112

export const INCOMPATIBLE = { dirty: 1, corrupt: 2, dataFile: 4, compression: 8, extendedL2: 16 } as const
export const COMPATIBLE = { lazyRefcounts: 1 } as const

/** Header extensions. */
export const EXTENSION = {
  end: 0,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  encryption: 0x0537be77,
  dataFile: 0x44415441,
} as const

/** Bounds of QEMU's (block/qcow2.h), which refuses what lies beyond. */
export const L1_BYTES_MAX: number = 32 << 20
export const REFCOUNT_TABLE_BYTES_MAX: number = 8 << 20
export const SNAPSHOTS_MAX = 65536
export const SNAPSHOT_TABLE_BYTES_MAX: number = 64 << 20
export const SNAPSHOT_EXTRA_MAX = 1024
export const BITMAPS_MAX = 65535
export const BITMAP_DIRECTORY_BYTES_MAX: number = 64 << 20
export const BACKING_NAME_MAX = 1023
export const REFCOUNT_ORDER_MAX = 6

/** Bits of an entry of an L1 or L2 table: the upper and the lower half of its 64. */
export const COPIED_HIGH = 0x80000000
export const COMPRESSED_HIGH = 0x40000000
export const ZERO_LOW = 1
const OFFSET_HIGH = 0x00ffffff
const OFFSET_LOW = 0xfffffe00
/** Bits that must be 0 in an L1 entry and in an L2 entry that is not compressed; bit 0 of the latter is the zero flag. */
export const RESERVED_HIGH = 0x7f000000
export const RESERVED_HIGH_L2 = 0x3f000000
export const RESERVED_LOW = 0x000001ff
export const RESERVED_LOW_L2 = 0x000001fe

const WORD = 2 ** 32

/** The offset in an entry. Beyond 2^53 it is not exact, but no host is as long. */
export function offsetOf(high: number, low: number): number {
  return (high & OFFSET_HIGH) * WORD + ((low & OFFSET_LOW) >>> 0)
}

export function highOf(offset: number): number {
  return Math.floor(offset / WORD)
}

export function lowOf(offset: number): number {
  return offset % WORD
}

/** A 64-bit field. Beyond 2^53 it is not exact: compared with bounds only. */
export function readU64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * WORD + bytes.readUInt32BE(at + 4)
}

export function writeU64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32BE(highOf(value), at)
  bytes.writeUInt32BE(lowOf(value), at + 4)
}

/** Rounds up. */
export function ceilTo(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit
}

const WHOLE = 'check that it is one, and that it was copied whole'
const CONVERT = '"qemu-img convert" makes an image of it that has none of this'

/** An image that contradicts the format, or itself. */
export function invalid(path: string, what: string): BlockError {
  return new BlockError(constants.errno.EINVAL, {
    syscall: 'open',
    path,
    reason: `no valid qcow2 image: ${what}`,
    advice: WHOLE,
  })
}

/** An image that we can't treat. `advice` says what to do if it is not to convert it. */
export function unsupported(path: string, what: string, advice: string = CONVERT): BlockError {
  return new BlockError(constants.errno.EOPNOTSUPP, { syscall: 'open', path, reason: `qcow2: ${what}`, advice })
}

/** Tables that contradict each other, met while the image was in use. */
export function corrupt(path: string, what: string): BlockError {
  // The words reach the requests by way of the reason, so the advice is part of it.
  const reason = `the qcow2 image is corrupt: ${what}: close it, and have check({ repair: true }) mend a copy`
  return new BlockError(constants.errno.EIO, { syscall: 'qcow2', path, reason })
}
