// What the author of a format driver writes, and what he gets. A driver maps the ranges of a guest to ranges of a host: the
// device above it checks, sorts, merges, orders and answers the requests, and the host below it is an open device whose calls of
// one turn of JavaScript go out merged by host offset. So a driver decides where bytes lie, and nothing else.
//
//   guest requests ─► order ─► prepare ─► mergeRequests ─► read / write of merged runs ─► host.read / host.write
//
// This file holds no code: it is all that a driver may import from here, besides the errors.

import type { DeviceLimits } from '../limits.ts'
import type { Range } from '../planner/units.ts'

export type { Range }

/** The device or file that holds an image: an open raw device, or what stands in for one. Offsets and lengths in bytes. */
export interface FormatHost {
  readonly path: string
  /** Bytes. A write past the end is refused; `truncate` makes a file longer, and takes effect for later calls at once. */
  readonly size: number
  readonly readOnly: boolean
  readonly limits: DeviceLimits
  /** Writes at any offset, length and address. Calls of one turn that touch become one submission. */
  write(offset: number, data: Uint8Array | readonly Uint8Array[], options?: { fua?: boolean }): Promise<void>
  read(offset: number, into: Uint8Array | readonly Uint8Array[]): Promise<void>
  /** Every write issued before is on stable storage. A failed flush latches until the device is opened again. */
  flush(): Promise<void>
  discard(offset: number, length: number): Promise<void>
  writeZeroes(offset: number, length: number, options?: { unmap?: boolean; fua?: boolean }): Promise<void>
  /** Rejects with `EOPNOTSUPP` for a block device. */
  truncate(size: number): Promise<void>
  /** Zeroed memory that needs no copy on its way to the host. */
  alloc(size: number): Buffer
}

/** What lies below an image: where nothing is stored, its bytes show. */
export interface FormatBacking {
  readonly path: string
  readonly format: string
  readonly size: number
  read(offset: number, into: Uint8Array | readonly Uint8Array[]): Promise<void>
}

/** The options of `open` that concern a driver. */
export interface FormatOptions {
  readonly readOnly: boolean
  /** What the caller says lies below; `null`: nothing, whatever the image says; `undefined`: the caller has not said. */
  readonly backing: FormatBacking | null | undefined
}

/** The options of `create` that concern a driver; sizes in bytes. */
export interface FormatCreateOptions extends FormatOptions {
  readonly size: number
  readonly clusterSize: number | undefined
  readonly refcountBits: number | undefined
  readonly lazyRefcounts: boolean | undefined
  readonly preallocation: 'off' | 'metadata' | undefined
}

/** A format. Passed to `open` and `create` as `format`. */
export interface FormatDriver {
  /** What `disk.format` says. */
  readonly name: string
  /**
   * Reads what it needs to know of an image. It must believe nothing: not the sizes, not the offsets, and no path. The host is
   * closed by the device above, also when this rejects.
   */
  open(host: FormatHost, options: FormatOptions): Promise<FormatImage>
  /** Throws for options that `create` could not serve: before a file is made, or loses what is in it. */
  checkCreate?(options: Omit<FormatCreateOptions, 'backing' | 'readOnly'>): void
  /** Writes an empty image into a host: a file of no bytes, or a block device. Without it `create` is refused. */
  create?(host: FormatHost, options: FormatCreateOptions): Promise<void>
}

/** What `qemu-img check` tells of an image. */
export interface CheckResult {
  /** Where the last byte in use ends, in bytes of the host. */
  readonly imageEndOffset: number
  /** Guest clusters. */
  readonly totalClusters: number
  /** Guest clusters that are stored in the image. */
  readonly allocatedClusters: number
  /** Those that do not follow their predecessor on the host. */
  readonly fragmentedClusters: number
  readonly compressedClusters: number
  /** Host clusters that are counted as used more often than they are. They are lost space, no danger. */
  readonly leaks: number
  /** What contradicts itself. */
  readonly corruptions: number
  /** What could not be looked at. */
  readonly checkErrors: number
  readonly leaksFixed: number
  readonly corruptionsFixed: number
}

/**
 * An open image. Ranges that the device above passes lie inside of `size`. It calls `write` only for what no earlier operation
 * that has not ended overlaps, and never reads what is being written. A rejection with a `BlockError` gives the guest's request
 * its code; anything else counts as `EIO`.
 */
export interface FormatImage {
  /** Bytes of the guest. */
  readonly size: number
  /** What is allocated as one, in bytes of the guest; 1 if there is no such thing. */
  readonly clusterSize?: number
  /** The driver's own reads and writes so far, for `stats.metadata`. */
  readonly metadata?: { readonly submissions: number; readonly bytes: number }

  /**
   * Loads what must be known before the ranges are planned. `undefined`: everything is there. Afterwards `allocates` and
   * `mergeRequests` are asked, which can't wait.
   */
  prepare?(ranges: readonly Range[], write: boolean): Promise<void> | undefined
  /**
   * The clusters that a write to the range would allocate: from the first byte of the first to the last byte of the last of
   * them. They are locked until the write has ended; other writes, discards and zeroes there wait. `null`: none.
   */
  allocates?(range: Range): Range | null
  /**
   * The hook of 2009: may the gap between `run`, what a write carries so far, and `next`, which lies behind it, be filled with
   * zeros? Asked for gaps only. What the write allocates is locked right afterwards, so the answer must hold until then only if
   * the gap lies in what `allocates` says of the whole; else it must hold for ever.
   */
  mergeRequests?(run: Range, next: Range): boolean

  /** Fills memory, wholly. */
  read(offset: number, into: readonly Uint8Array[]): Promise<void>
  /**
   * Writes one merged run. If it rejects, none of the gaps that were filled may show.
   *
   * Whose memory it is may take it away meanwhile, and a piece has no bytes then. Take the lengths before anything is awaited,
   * and reject when one has changed: the requests are carried out again one by one, and that one fails. The device sees to the
   * answers in any case, but bytes must not land where another request's belong.
   *
   * @param options `fua`: on stable storage, and found again, when the promise resolves
   * @param gaps the gaps that were filled, ascending. Their zeros are among the data, so this may be ignored; where a gap holds
   *   zeros already, they need not be written.
   */
  write(
    offset: number,
    data: readonly Uint8Array[],
    options: { readonly fua: boolean },
    gaps: readonly Range[],
  ): Promise<void>
  /** What has been written is on stable storage, and found again. */
  flush(): Promise<void>
  /**
   * Whether a flush that was refused may succeed later, and truly: no flush of the host has failed, only writes whose bytes are in
   * memory still. Without it a refused flush latches, as that of any device does: every later one is refused.
   */
  readonly mayFlushAgain?: boolean
  discard?(offset: number, length: number): Promise<void>
  /** Without it, zeros are written. */
  writeZeroes?(offset: number, length: number, options: { readonly unmap: boolean }): Promise<void>
  /** Sets `size`. Nothing beyond the smaller of both sizes is under way meanwhile. */
  truncate?(size: number): Promise<void>
  /** Looks at everything; nothing is under way meanwhile. */
  check?(options: { readonly repair: boolean }): Promise<CheckResult>
  /** Writes what is still to be written; the host is open, and closed by the caller afterwards. Called once. */
  close(): Promise<void>
}
