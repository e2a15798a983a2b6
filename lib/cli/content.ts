// What a replayed disk must contain, and the proof that it does.
//
// Recordings hold no contents, so contents are made: every word of a sector follows from the sector's number, the word's place
// in it, the position of the writing request and a seed. A write that is lost, torn, stale or misplaced therefore shows. The
// model is told of each write in the order of the trace and remembers, per sector, who wrote it last; it never sees the disk,
// the merging or the completions, so that it is independent of what it judges. What a disk held before is remembered as
// checksums: by the sector where the trace goes, by 64 KiB elsewhere. Marks exist only for the chunks that were written, so
// memory follows the trace (1/128 of what it touches) and not the size of the disk.

import { crc32 } from 'node:zlib'
import { SECTOR_BYTES, type Trace } from './trace.ts'

const CHUNK_BYTES = 1024 * 1024
const CHUNK_SECTORS = CHUNK_BYTES / SECTOR_BYTES
const SECTOR_WORDS = SECTOR_BYTES / 4
const COARSE_BYTES = 64 * 1024

/** Marks of the model: positive is the position of the last writer. */
const UNTOUCHED = 0
const ZEROED = -1

const ZEROS = Buffer.alloc(CHUNK_BYTES)

/** Reads `into` full, from `offset` on. */
export type ReadAt = (offset: number, into: Buffer) => Promise<void>

/** Where a disk first differs from the model. */
export interface Difference {
  /** Of the first wrong byte; where only a checksum was kept, of the piece that it covers. */
  offset: number
  /** 1 for a byte, else the length of the piece that the checksum covers. */
  length: number
  /** Of the request that should be seen there: 0 if none ever wrote there, -1 if the range was zeroed last. */
  position: number
  /** The byte that should be there, `null` where only a checksum was kept. */
  expected: number | null
  found: number
}

/** Checksums of a disk's former content by number of chunk: per 512 bytes or per 64 KiB. No entry: the chunk is zeros. */
export type Prior = Map<number, Uint32Array>

/**
 * Makes the content of whole sectors.
 *
 * @param words where it goes; a whole number of sectors.
 * @param sector the number of the first.
 * @param position which request writes it, from 1 on.
 */
export function fillContent(words: Uint32Array, sector: number, position: number, seed: number): void {
  const request = mix(seed ^ Math.imul(position, 0x9e3779b1))
  let at = 0
  for (let number = sector; at < words.length; number++) {
    let word = mix(request ^ (number | 0)) + Math.floor(number / 0x1_0000_0000)
    for (const end = at + SECTOR_WORDS; at < end; at++) {
      word = (word + 0x6d2b79f5) | 0
      words[at] = word ^ (word >>> 15)
    }
  }
}

/** MurmurHash3's finaliser: each bit of the input changes half of the output's. */
function mix(value: number): number {
  let hash = value ^ (value >>> 16)
  hash = Math.imul(hash, 0x85ebca6b)
  hash ^= hash >>> 13
  hash = Math.imul(hash, 0xc2b2ae35)
  return hash ^ (hash >>> 16)
}

/** Who wrote each sector last, if the requests are carried out one after another in the order of the trace. */
export class Model {
  readonly seed: number
  readonly #prior: Prior | null
  readonly #marks = new Map<number, Int32Array>()
  readonly #scratch = new Uint32Array(CHUNK_BYTES / 4)
  readonly #scratchBytes = Buffer.from(this.#scratch.buffer)

  /** @param prior what the disk holds beforehand; `null` for a new one, which holds zeros. */
  constructor(seed: number, prior: Prior | null = null) {
    this.seed = seed
    this.#prior = prior
  }

  /** `position` as given to `fillContent`. */
  wrote(offset: number, length: number, position: number): void {
    this.#mark(offset, length, position)
  }

  zeroed(offset: number, length: number): void {
    this.#mark(offset, length, ZEROED)
  }

  /** The marks of a range as they are now: what a read that is issued now must see, whatever is written until it ends. */
  marks(offset: number, length: number): Int32Array {
    const copy = new Int32Array(length / SECTOR_BYTES)
    forEachChunk(offset, length, (chunk, first, sectors, done) => {
      const marks = this.#marks.get(chunk)
      if (marks !== undefined) copy.set(marks.subarray(first, first + sectors), done)
    })
    return copy
  }

  /**
   * Compares bytes of the disk, every one of them, with what `marks` (of the same range) ask for.
   *
   * @param offset of the bytes on the disk; a multiple of 512.
   */
  compare(bytes: Buffer, offset: number, marks: Int32Array): Difference | null {
    for (let start = 0; start < bytes.length; ) {
      const mark = marks[start / SECTOR_BYTES]!
      let end = start + SECTOR_BYTES
      // Not beyond the chunk of the disk: checksums are looked up, and content is made, by the chunk.
      const limit = Math.min(bytes.length, start + CHUNK_BYTES - ((offset + start) % CHUNK_BYTES))
      while (end < limit && marks[end / SECTOR_BYTES] === mark) end += SECTOR_BYTES
      end = Math.min(end, limit)
      const difference = this.#compareRun(bytes, start, end, offset, mark)
      if (difference !== null) return difference
      start = end
    }
    return null
  }

  /** The same for a whole chunk, or the shorter last one, without a copy of the marks. */
  compareChunk(bytes: Buffer, offset: number): Difference | null {
    const marks = this.#marks.get(offset / CHUNK_BYTES)
    if (marks !== undefined) return this.compare(bytes, offset, marks)
    return this.#compareRun(bytes, 0, bytes.length, offset, UNTOUCHED)
  }

  #mark(offset: number, length: number, mark: number): void {
    forEachChunk(offset, length, (chunk, first, sectors) => {
      let marks = this.#marks.get(chunk)
      if (marks === undefined) {
        marks = new Int32Array(CHUNK_SECTORS)
        this.#marks.set(chunk, marks)
      }
      marks.fill(mark, first, first + sectors)
    })
  }

  #compareRun(bytes: Buffer, start: number, end: number, offset: number, mark: number): Difference | null {
    const at = offset + start
    let expected = ZEROS
    if (mark === UNTOUCHED) {
      const sums = this.#prior?.get(Math.floor(at / CHUNK_BYTES))
      if (sums !== undefined) return compareSums(bytes, start, end, offset, sums)
    } else if (mark !== ZEROED) {
      fillContent(this.#scratch.subarray(0, (end - start) / 4), at / SECTOR_BYTES, mark, this.seed)
      expected = this.#scratchBytes
    }
    if (bytes.compare(expected, 0, end - start, start, end) === 0) return null
    let wrong = start
    while (bytes[wrong] === expected[wrong - start]) wrong++
    return {
      offset: offset + wrong,
      length: 1,
      position: mark,
      expected: expected[wrong - start]!,
      found: bytes[wrong]!,
    }
  }
}

function compareSums(bytes: Buffer, start: number, end: number, offset: number, sums: Uint32Array): Difference | null {
  const grain = CHUNK_BYTES / sums.length
  // Reads and marks are whole sectors, and chunks that the trace goes to are summed by the sector: no piece is cut.
  for (let piece = start; piece < end; piece += grain) {
    const pieceEnd = Math.min(piece + grain, end)
    const at = offset + piece
    if (crc32(bytes.subarray(piece, pieceEnd)) === sums[(at % CHUNK_BYTES) / grain]) continue
    return { offset: at, length: pieceEnd - piece, position: UNTOUCHED, expected: null, found: bytes[piece]! }
  }
  return null
}

/** Calls back per chunk: its number, the first sector within it, how many, and how many sectors came before. */
function forEachChunk(
  offset: number,
  length: number,
  visit: (chunk: number, first: number, sectors: number, done: number) => void,
): void {
  for (let at = offset; at < offset + length; ) {
    const chunk = Math.floor(at / CHUNK_BYTES)
    const end = Math.min((chunk + 1) * CHUNK_BYTES, offset + length)
    visit(chunk, (at % CHUNK_BYTES) / SECTOR_BYTES, (end - at) / SECTOR_BYTES, (at - offset) / SECTOR_BYTES)
    at = end
  }
}

/** The disk chunk by chunk, the next one being read while the caller looks at this one. Buffers are reused. */
async function* chunks(readAt: ReadAt, size: number): AsyncGenerator<{ offset: number; bytes: Buffer }> {
  const buffers = [Buffer.allocUnsafeSlow(CHUNK_BYTES), Buffer.allocUnsafeSlow(CHUNK_BYTES)] as const
  const read = async (offset: number): Promise<Buffer> => {
    const bytes = buffers[(offset / CHUNK_BYTES) % 2 === 0 ? 0 : 1].subarray(0, Math.min(CHUNK_BYTES, size - offset))
    await readAt(offset, bytes)
    return bytes
  }
  let next: Promise<Buffer> | null = size > 0 ? read(0) : null
  try {
    for (let offset = 0; next !== null; offset += CHUNK_BYTES) {
      const bytes = await next
      next = offset + CHUNK_BYTES < size ? read(offset + CHUNK_BYTES) : null
      // A failure is reported when its turn comes; until then it is not an unhandled one.
      next?.catch(() => {})
      yield { offset, bytes }
    }
  } finally {
    await next?.catch(() => {})
  }
}

/**
 * Records what a disk holds before a trace is replayed on it.
 *
 * @param size of the disk in bytes, of which all are read.
 */
export async function survey(
  readAt: ReadAt,
  size: number,
  trace: Trace,
  onProgress?: (bytes: number) => void,
): Promise<Prior> {
  const visited = new Set<number>()
  for (const request of trace.batches.flat()) {
    if (request.op !== 'D') forEachChunk(request.offset, request.length, (chunk) => visited.add(chunk))
  }
  const prior: Prior = new Map()
  for await (const { offset, bytes } of chunks(readAt, size)) {
    if (bytes.compare(ZEROS, 0, bytes.length) !== 0) {
      const chunk = offset / CHUNK_BYTES
      const grain = visited.has(chunk) ? SECTOR_BYTES : COARSE_BYTES
      const sums = new Uint32Array(CHUNK_BYTES / grain)
      for (let at = 0; at < bytes.length; at += grain) sums[at / grain] = crc32(bytes.subarray(at, at + grain))
      prior.set(chunk, sums)
    }
    onProgress?.(offset + bytes.length)
  }
  return prior
}

/**
 * Compares every byte of a disk with the model.
 *
 * @returns where the first difference lies, or `null`.
 */
export async function verify(
  readAt: ReadAt,
  size: number,
  model: Model,
  onProgress?: (bytes: number) => void,
): Promise<Difference | null> {
  for await (const { offset, bytes } of chunks(readAt, size)) {
    const difference = model.compareChunk(bytes, offset)
    if (difference !== null) return difference
    onProgress?.(offset + bytes.length)
  }
  return null
}
