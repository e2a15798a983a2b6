// What a device can do, in numbers: asked of the kernel, never guessed.
//
// Block limits stand in sysfs under the whole disk; a partition has none of its own. A regular file has those of the disk that
// holds its file system, where there is one. From them follow the limits of merging: a submission that the block layer would
// split again saves nothing and costs a hop to a worker thread, because io_uring first issues without waiting and such a
// request may not be split.

import { readFile, realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { PAGE_SIZE } from './memory.ts'
import { type Geometry, MAX_VECTORS } from './native.ts'

/** Limits of an open device. Sizes in bytes; 0 where the device does not say. */
export interface DeviceLimits {
  /** Offsets and lengths that are multiples of it cost nothing extra; 1 for buffered I/O. */
  readonly alignment: number
  /** Addresses that are multiples of it need no copy; 1 for buffered I/O. `alloc` keeps to it. */
  readonly memoryAlignment: number
  /** The smallest unit that the device addresses (`BLKSSZGET`; for a file, of the disk below it). */
  readonly logicalBlockSize: number
  /** The smallest unit that the device writes without reading (`BLKPBSZGET`). */
  readonly physicalBlockSize: number
  /** The device's preferred size of a streaming request (`BLKIOOPT`). */
  readonly optimalIoSize: number
  /** The most that one merged submission carries. */
  readonly maxBytes: number
  /** The most vectors of one merged submission. */
  readonly maxSegments: number
  /** Unit of discarding; for a file, of punching holes. */
  readonly discardGranularity: number
  /** 1 if the device is made of turning disks, else 0. */
  readonly rotational: number
}

/** One bio carries 256 vectors at the most (BIO_MAX_VECS), which is 1 MiB of scattered pages. */
const BIO_VECTORS_MAX = 256
const BIO_BYTES_MAX = 1 << 20
/** Where neither statx nor the device tells how direct I/O must be aligned. */
const ALIGNMENT_UNKNOWN = 4096

/** What sysfs answers of what it does not tell: no such file, none for us, or a device that has no answer. */
const NOT_TOLD = new Set(['ENOENT', 'ENOTDIR', 'EACCES', 'EPERM', 'EINVAL', 'ENODEV', 'ENXIO', 'EOPNOTSUPP', 'ENOTSUP'])

/** Asks sysfs. `null` is no answer; anything else that is in the way, such as a want of descriptors, is an error. */
async function ask<T>(question: () => Promise<T>): Promise<T | null> {
  try {
    return await question()
  } catch (error) {
    if (NOT_TOLD.has((error as NodeJS.ErrnoException).code ?? '')) return null
    throw error
  }
}

/** The whole disk's folder in sysfs, or `null` where the device number has none (tmpfs, btrfs, network file systems). */
async function diskFolder(major: number, minor: number): Promise<string | null> {
  const folder = await ask(() => realpath(`/sys/dev/block/${major}:${minor}`))
  if (folder === null) return null
  const isPartition = (await readNumber(join(folder, 'partition'))) !== null
  return isPartition ? join(folder, '..') : folder
}

/**
 * @param direct whether the device was opened with O_DIRECT
 * @returns rejects with the system's error if it can't be asked now: a default instead could be wrong, and a wrong alignment
 *   or number of segments harms
 */
export async function readLimits(geometry: Geometry, direct: boolean): Promise<DeviceLimits> {
  const folder = await diskFolder(geometry.major, geometry.minor)
  const limit = async (name: string): Promise<number> =>
    folder === null ? 0 : ((await readNumber(join(folder, 'queue', name))) ?? 0)
  const logicalBlockSize = geometry.logicalBlockSize || (await limit('logical_block_size')) || 512
  const maxSectorsKb = await limit('max_sectors_kb')
  const maxSegments = await limit('max_segments')
  const [alignment, memoryStated] = direct ? directAlignment(geometry, logicalBlockSize) : [1, 1]
  // A disk that has pages for blocks may take memory for pages, too, whatever it states: zram states 512 and moves, of memory
  // that starts inside a page, what lies before it.
  const memoryAlignment = direct && logicalBlockSize >= PAGE_SIZE ? Math.max(memoryStated, PAGE_SIZE) : memoryStated
  const segmentsMax = Math.min(maxSegments || BIO_VECTORS_MAX, BIO_VECTORS_MAX)
  // A segment is physically contiguous, and of memory that is not, each page is one: however few vectors there are, more
  // bytes than this may be more segments than the device takes.
  const maxBytes = Math.min(maxSectorsKb * 1024 || BIO_BYTES_MAX, BIO_BYTES_MAX, segmentsMax * PAGE_SIZE)
  return {
    alignment,
    memoryAlignment,
    logicalBlockSize,
    physicalBlockSize: geometry.physicalBlockSize || (await limit('physical_block_size')) || logicalBlockSize,
    optimalIoSize: geometry.optimalIoSize || (await limit('optimal_io_size')),
    // The page cache takes vectors of any number, and splits nothing.
    maxBytes: direct ? Math.max(alignment, maxBytes - (maxBytes % alignment)) : BIO_BYTES_MAX,
    maxSegments: direct ? segmentsMax : MAX_VECTORS,
    discardGranularity: geometry.blockDevice ? await limit('discard_granularity') : geometry.fileBlockSize,
    rotational: await limit('rotational'),
  }
}

/** Alignment of offsets and lengths, and of memory, as stated. statx tells both (6.1); else the device's block serves for both. */
function directAlignment(geometry: Geometry, logicalBlockSize: number): [number, number] {
  if (geometry.directAlignmentKnown && geometry.directOffsetAlignment > 0) {
    return [geometry.directOffsetAlignment, Math.max(geometry.directMemoryAlignment, 1)]
  }
  const alignment = geometry.blockDevice ? logicalBlockSize : Math.max(ALIGNMENT_UNKNOWN, logicalBlockSize)
  return [alignment, Math.min(alignment, PAGE_SIZE)]
}

async function readNumber(path: string): Promise<number | null> {
  const text = await ask(() => readFile(path, 'latin1'))
  if (text === null) return null
  const value = Number(text.trim())
  return Number.isSafeInteger(value) ? value : null
}
