// Carries an image to a device, and proves afterwards that it is there.
//
//     source ──► lane: read a chunk, find its zeros, sum it up, write it ──► device     (some of them at once)
//     device ──► lane: read a chunk back, sum it up, compare ──► first bad offset
//
// Each lane has a chunk of the device's own memory, so that nothing is copied on the way, and works on one chunk at a time; so
// memory and the queue are bounded by LANES chunks. Nothing here opens, flushes or closes. A failure, or an interruption,
// ends it when nothing is in flight any more.

import { crc32 } from 'node:zlib'
import type { BlockDevice } from '../index.ts'
import { EXIT, Stop } from './command.ts'
import { CHUNK_BYTES, type Source } from './source.ts'

/** Chunks on their way at any time: while one is being read and one written, the next is there when either has ended. */
const LANES = 3
/** Zeros are looked for and checksums are kept by it: the cluster of a qcow2 image, and more than the block of any file system. */
const PIECE_BYTES = 64 * 1024
/** So near an error names the place. */
const ERROR_BYTES = 1 << 20
/** Zeroing less than this costs more than writing the zeros. */
const ZEROING_MIN_BYTES = 256 * 1024
/** By how much a file grows whose size nobody knows yet. */
const GROWTH_BYTES = 64 << 20

const ZEROS = Buffer.alloc(PIECE_BYTES)

/**
 * What becomes of zeros in the image: `zero`: the device zeroes the range, by discarding it if it can; `known`: nothing, since
 * the target reads as zeros; `skip`: nothing, whatever is there, and they are not compared; `write`: they are written.
 */
export type ZeroMode = 'zero' | 'known' | 'skip' | 'write'

export interface CopyOptions {
  readonly zeroes: ZeroMode
  /** The first bytes of the image are not written but handed back. */
  readonly heldBytes: number
  /** The target is a file that grows with the image. */
  readonly grows: boolean
  /** Raised to stop. */
  readonly signal: AbortSignal
  onProgress(bytes: number): void
}

/** What was carried, as far as it went. */
export interface Copied {
  /** Of the image, all of it if `whole`. */
  bytes: number
  /** The end of the image was reached. */
  whole: boolean
  writtenBytes: number
  zeroedBytes: number
  skippedBytes: number
  /** The first bytes, which somebody has to write yet. */
  held: Buffer | null
  /** What `verify` needs; `null` if nobody will ask. */
  readonly checksums: Checksums | null
}

/**
 * Checksums of the image by piece: CRC-32, which finds every burst of up to 32 bits, and all else but once in four thousand
 * million times. Nobody is expected to forge a disk while it is written; and no other digest that Node has keeps up with a disk.
 */
export class Checksums {
  #sums = new Uint32Array(1024)
  /** 1 where there is one. */
  #known = new Uint8Array(1024)

  set(piece: number, sum: number): void {
    if (piece >= this.#sums.length) {
      const [sums, known] = [this.#sums, this.#known]
      const size = Math.max(piece + 1, sums.length * 2)
      this.#sums = new Uint32Array(size)
      this.#known = new Uint8Array(size)
      this.#sums.set(sums)
      this.#known.set(known)
    }
    this.#sums[piece] = sum
    this.#known[piece] = 1
  }

  /** Whether a piece is right; those that were left out on purpose are. */
  matches(piece: number, bytes: Buffer): boolean {
    return this.#known[piece] !== 1 || this.#sums[piece] === crc32(bytes)
  }
}

/** `null` if the signal is raised first. Not a race with one promise for all: that would keep every loser until the end. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T | null> {
  return new Promise((resolve, reject) => {
    const stop = (): void => resolve(null)
    signal.addEventListener('abort', stop, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop))
  })
}

interface Data {
  readonly offset: number
  readonly data: Buffer
}

interface Run {
  readonly start: number
  readonly end: number
  readonly zero: boolean
}

/** @throws whatever failed first, when nothing is in flight any more; `copied` tells how far it went */
export async function copy(source: Source, disk: BlockDevice, options: CopyOptions, copied: Copied): Promise<void> {
  const { signal } = options
  let failure: unknown = null
  const lane = async (): Promise<void> => {
    const memory = disk.alloc(source.chunkBytes)
    while (failure === null && !signal.aborted) {
      try {
        // Standard input may have nothing for ever; who interrupts does not want to wait for it.
        const chunk = await unlessAborted(source.next(memory), signal)
        if (signal.aborted) return
        if (chunk === null) {
          copied.whole = true
          return
        }
        await carry(memory.subarray(0, chunk.length), chunk.offset, disk, options, copied)
        copied.bytes += chunk.length
        options.onProgress(chunk.length)
      } catch (error) {
        failure ??= error
      }
    }
  }
  await inLanes(lane)
  if (failure !== null) {
    copied.whole = false
    throw failure
  }
}

function inLanes(lane: () => Promise<void>): Promise<unknown> {
  return Promise.all(Array.from({ length: LANES }, lane))
}

export function nothingCopied(verified: boolean): Copied {
  const counts = { bytes: 0, writtenBytes: 0, zeroedBytes: 0, skippedBytes: 0 }
  return { ...counts, whole: false, held: null, checksums: verified ? new Checksums() : null }
}

async function carry(
  bytes: Buffer,
  offset: number,
  disk: BlockDevice,
  options: CopyOptions,
  copied: Copied,
): Promise<void> {
  const { zeroes, grows, heldBytes } = options
  const end = offset + bytes.length
  if (end > disk.size) {
    if (!grows) {
      throw new Stop(
        EXIT.failed,
        `the image does not fit: it goes on after ${disk.size} bytes, where the target ends. Take a larger target`,
      )
    }
    // The size counts at once, so the next lane sees it. Should it fail, so does the write behind it.
    disk.truncate(Math.ceil(end / GROWTH_BYTES) * GROWTH_BYTES).catch(() => undefined)
  }
  const runs = zeroes === 'write' ? [{ start: 0, end: bytes.length, zero: false }] : runsOf(bytes, zeroes)
  if (copied.checksums !== null) {
    for (const { start, end } of zeroes === 'skip' ? runs.filter(({ zero }) => !zero) : runs) {
      for (let at = start; at < end; at += PIECE_BYTES) {
        copied.checksums.set((offset + at) / PIECE_BYTES, crc32(bytes.subarray(at, Math.min(at + PIECE_BYTES, end))))
      }
    }
  }
  const work: Promise<unknown>[] = []
  const requests: Data[] = []
  for (const run of runs) {
    let { start } = run
    if (offset + start < heldBytes && !run.zero) {
      const heldEnd = Math.min(run.end, heldBytes - offset)
      copied.held ??= Buffer.alloc(Math.min(heldBytes, bytes.length))
      bytes.copy(copied.held, offset + start, start, heldEnd)
      start = heldEnd
    }
    const length = run.end - start
    if (length === 0) continue
    if (!run.zero) {
      requests.push({ offset: offset + start, data: bytes.subarray(start, run.end) })
      copied.writtenBytes += length
    } else if (zeroes === 'zero') {
      work.push(disk.writeZeroes(offset + start, length, { unmap: true }))
      copied.zeroedBytes += length
    } else copied.skippedBytes += length
  }
  if (requests.length > 0) work.push(writeRuns(disk, requests))
  // All of them, also if one fails: the memory is used again.
  const results = await Promise.allSettled(work)
  for (const result of results) if (result.status === 'rejected') throw firstOf(result.reason)
}

/** Each request costs, so a run is one; if that fails, the same again in pieces, so that the error names the place. */
async function writeRuns(disk: BlockDevice, runs: readonly Data[]): Promise<void> {
  try {
    await disk.multiwrite(runs)
  } catch {
    await disk.multiwrite(runs.flatMap(inPieces))
  }
}

function inPieces({ offset, data }: Data): Data[] {
  const pieces: Data[] = []
  for (let at = 0; at < data.length; at += ERROR_BYTES) {
    pieces.push({ offset: offset + at, data: data.subarray(at, at + ERROR_BYTES) })
  }
  return pieces
}

/** Of a batch that failed, what its first request says: it knows the offset. */
function firstOf(error: unknown): unknown {
  return error instanceof AggregateError ? (error.errors[0] ?? error) : error
}

/** Data and zeros in turn. */
function runsOf(bytes: Buffer, zeroes: ZeroMode): Run[] {
  const runs: { start: number; end: number; zero: boolean }[] = []
  const add = (start: number, end: number, zero: boolean): void => {
    const last = runs.at(-1)
    if (last?.zero === zero) last.end = end
    else runs.push({ start, end, zero })
  }
  for (let start = 0; start < bytes.length; start += PIECE_BYTES) {
    const end = Math.min(start + PIECE_BYTES, bytes.length)
    add(start, end, isZero(bytes, start, end))
  }
  if (zeroes !== 'zero' || runs.length === 1) return runs
  const merged = runs.splice(0)
  for (const { start, end, zero } of merged) add(start, end, zero && end - start >= ZEROING_MIN_BYTES)
  return runs
}

function isZero(bytes: Buffer, start: number, end: number): boolean {
  // Most data shows it at once; the comparison proper costs a call.
  return bytes[start] === 0 && bytes.compare(ZEROS, 0, end - start, start, end) === 0
}

/** Where the target is not what the image was. */
export interface Difference {
  /** The first byte that differs; where the image can't be read again, the first of the piece. */
  offset: number
  /** What differs: 1 byte, or a piece. */
  length: number
  expected: number | null
  found: number | null
}

/**
 * Reads back what was carried and compares checksums, piece by piece.
 *
 * @returns the first difference, or `null`
 * @throws whatever a read failed with
 */
export async function verify(
  disk: BlockDevice,
  copied: Copied,
  source: Source,
  { signal, onProgress }: Pick<CopyOptions, 'signal' | 'onProgress'>,
): Promise<Difference | null> {
  const checksums = copied.checksums!
  let next = 0
  let bad = Number.POSITIVE_INFINITY
  let failure: unknown = null
  const lane = async (): Promise<void> => {
    const memory = disk.alloc(CHUNK_BYTES)
    // A bad chunk does not end the lanes before it: theirs may be worse.
    while (failure === null && !signal.aborted && next < Math.min(copied.bytes, bad)) {
      const offset = next
      const length = Math.min(CHUNK_BYTES, copied.bytes - offset)
      next += length
      const bytes = memory.subarray(0, length)
      try {
        await disk.read(offset, bytes)
        for (let at = 0; at < length; at += PIECE_BYTES) {
          if (checksums.matches((offset + at) / PIECE_BYTES, bytes.subarray(at, at + PIECE_BYTES))) continue
          bad = Math.min(bad, offset + at)
          break
        }
        onProgress(length)
      } catch (error) {
        failure ??= error
      }
    }
  }
  await inLanes(lane)
  if (failure !== null) throw failure
  return bad === Number.POSITIVE_INFINITY ? null : locate(disk, copied, source, bad)
}

/** The very byte, if the image can be read again. */
async function locate(disk: BlockDevice, copied: Copied, source: Source, offset: number): Promise<Difference> {
  const length = Math.min(PIECE_BYTES, copied.bytes - offset)
  const piece = { offset, length, expected: null, found: null }
  if (source.again === null) return piece
  const [expected, found] = [Buffer.alloc(length), Buffer.alloc(length)]
  await source.again(offset, expected)
  await disk.read(offset, found)
  const at = expected.findIndex((byte, index) => byte !== found[index])
  // It reads right now: the device gave other bytes before.
  return at < 0 ? piece : { offset: offset + at, length: 1, expected: expected[at]!, found: found[at]! }
}
