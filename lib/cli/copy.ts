// Carries an image to a device, and proves afterwards that it is there.
//
//     source ──► lane: read a chunk, find its zeros, digest it, write it ──► device     (LANES of them at once)
//     device ──► lane: read a chunk back, digest it, compare ──► first bad offset
//
// Each lane has a chunk of the device's own memory, so that nothing is copied on the way, and works on one chunk at a time; so
// memory and the queue are bounded by the lanes. Nothing here opens, flushes or closes. A failure, or an interruption, ends it
// when nothing is in flight any more.

import { createHash } from 'node:crypto'
import type { BlockDevice } from '../index.ts'
import { EXIT, Stop } from './command.ts'
import type { Source } from './source.ts'

const LANES = 8
const CHUNK_BYTES = 1 << 20
/** Zeros are looked for by it: the cluster of a qcow2 image, and more than the block of any file system. */
const PIECE_BYTES = 64 * 1024
/** Zeroing less than this costs more than writing the zeros. */
const ZEROING_MIN_BYTES = 256 * 1024
/** By how much a file grows whose size nobody knows yet. */
const GROWTH_BYTES = 64 * CHUNK_BYTES
const DIGEST = 'sha256'
const DIGEST_BYTES = 32

const ZEROS = Buffer.alloc(CHUNK_BYTES)

/**
 * What becomes of zeros in the image: `zero`: the device zeroes the range, by discarding it if it can; `known`: nothing, since
 * the target reads as zeros; `skip`: nothing, whatever is there, and they are not compared; `write`: they are written.
 */
export type ZeroMode = 'zero' | 'known' | 'skip' | 'write'

export interface CopyOptions {
  readonly zeroes: ZeroMode
  /** Keeps what `verify` needs. */
  readonly digests: boolean
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
  readonly digests: Digests | null
}

/** Digests by chunk; and of chunks that were not written as a whole, which ranges were. */
export class Digests {
  #bytes: Buffer = Buffer.alloc(1024 * DIGEST_BYTES)
  readonly #parts = new Map<number, readonly Run[]>()

  set(chunk: number, digest: Buffer, parts: readonly Run[] | null): void {
    while ((chunk + 1) * DIGEST_BYTES > this.#bytes.length)
      this.#bytes = Buffer.concat([this.#bytes, Buffer.alloc(this.#bytes.length)])
    digest.copy(this.#bytes, chunk * DIGEST_BYTES)
    if (parts !== null) this.#parts.set(chunk, parts)
  }

  partsOf(chunk: number): readonly Run[] | null {
    return this.#parts.get(chunk) ?? null
  }

  matches(chunk: number, digest: Buffer): boolean {
    return this.#bytes.compare(digest, 0, DIGEST_BYTES, chunk * DIGEST_BYTES, (chunk + 1) * DIGEST_BYTES) === 0
  }
}

interface Run {
  readonly start: number
  readonly end: number
  readonly zero: boolean
}

/** @throws whatever failed first, when nothing is in flight any more; `copied` tells how far it went */
export async function copy(source: Source, disk: BlockDevice, options: CopyOptions, copied: Copied): Promise<void> {
  const { signal } = options
  const stopped = new Promise<null>((resolve) => {
    if (signal.aborted) resolve(null)
    signal.addEventListener('abort', () => resolve(null))
  })
  let failure: unknown = null
  const lane = async (): Promise<void> => {
    const memory = disk.alloc(CHUNK_BYTES)
    while (failure === null && !signal.aborted) {
      try {
        // Standard input may have nothing for ever; who interrupts does not want to wait for it.
        const chunk = await Promise.race([source.next(memory), stopped])
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
  await Promise.all(Array.from({ length: LANES }, lane))
  if (failure !== null) {
    copied.whole = false
    throw failure
  }
}

export function nothingCopied(digests: boolean): Copied {
  const counts = { bytes: 0, writtenBytes: 0, zeroedBytes: 0, skippedBytes: 0 }
  return { ...counts, whole: false, held: null, digests: digests ? new Digests() : null }
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
  if (copied.digests !== null) {
    const parts = zeroes === 'skip' && runs.some(({ zero }) => zero) ? runs.filter(({ zero }) => !zero) : null
    copied.digests.set(offset / CHUNK_BYTES, digestOf(bytes, parts), parts)
  }
  const work: Promise<unknown>[] = []
  const requests: { offset: number; data: Buffer }[] = []
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
  if (requests.length > 0) work.push(disk.multiwrite(requests))
  // All of them, also if one fails: the memory is used again.
  const results = await Promise.allSettled(work)
  for (const result of results) if (result.status === 'rejected') throw firstOf(result.reason)
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

function digestOf(bytes: Buffer, parts: readonly Run[] | null): Buffer {
  if (parts === null && bytes.length === CHUNK_BYTES && isZero(bytes, 0, bytes.length)) return zeroDigest()
  const hash = createHash(DIGEST)
  for (const { start, end } of parts ?? [{ start: 0, end: bytes.length }]) hash.update(bytes.subarray(start, end))
  return hash.digest()
}

let digestOfZeros: Buffer | null = null
/** Of a chunk of zeros: images are full of them. */
function zeroDigest(): Buffer {
  digestOfZeros ??= createHash(DIGEST).update(ZEROS).digest()
  return digestOfZeros
}

/** Where the target is not what the image was. */
export interface Difference {
  /** The first byte that differs; where the image can't be read again, the first of the chunk. */
  offset: number
  /** What differs: 1 byte, or a chunk. */
  length: number
  expected: number | null
  found: number | null
}

/**
 * Reads back what was carried and compares digests, chunk by chunk.
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
  const digests = copied.digests!
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
        const chunk = offset / CHUNK_BYTES
        if (!digests.matches(chunk, digestOf(bytes, digests.partsOf(chunk)))) bad = Math.min(bad, offset)
        onProgress(length)
      } catch (error) {
        failure ??= error
      }
    }
  }
  await Promise.all(Array.from({ length: LANES }, lane))
  if (failure !== null) throw failure
  return bad === Number.POSITIVE_INFINITY ? null : locate(disk, copied, source, bad)
}

/** The very byte, if the image can be read again. */
async function locate(disk: BlockDevice, copied: Copied, source: Source, offset: number): Promise<Difference> {
  const length = Math.min(CHUNK_BYTES, copied.bytes - offset)
  const chunk = { offset, length, expected: null, found: null }
  if (source.again === null) return chunk
  const [expected, found] = [Buffer.alloc(length), Buffer.alloc(length)]
  await source.again(offset, expected)
  await disk.read(offset, found)
  const parts = copied.digests!.partsOf(offset / CHUNK_BYTES) ?? [{ start: 0, end: length }]
  for (const { start, end } of parts) {
    for (let at = start; at < end; at++) {
      if (expected[at] !== found[at]) {
        return { offset: offset + at, length: 1, expected: expected[at]!, found: found[at]! }
      }
    }
  }
  // It reads right now: the device gave other bytes before.
  return chunk
}
