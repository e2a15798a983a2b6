// Where an image comes from: a file by way of the library (raw or qcow2), or a stream (standard input, or what comes out of a
// packed file). Whoever reads asks for the next chunk into memory of theirs, from any number of lanes at once, and gets chunks
// in ascending order of offsets, each once. A stream is read by one lane at a time.

import { createReadStream } from 'node:fs'
import { open as openFile, stat } from 'node:fs/promises'
import { type OpenOptions, open } from '../index.ts'
import { EXIT, Stop } from './command.ts'
import { HEAD_BYTES, type Packing, packingOf, unpacked, unpackedSizeMin } from './unpack.ts'

export const FORMATS = ['raw', 'qcow2'] as const
export type Format = (typeof FORMATS)[number]

/**
 * What is carried at once. Much larger than what a disk needs to be fast: each chunk costs a few dozen calls of JavaScript, and a
 * quarter of a millisecond of them per MiB was a third of the time that a gigabyte took in memory.
 */
export const CHUNK_BYTES: number = 4 << 20
/**
 * How an image and its target are opened: a chunk goes to the kernel in one piece, which the kernel cuts as the device likes it.
 * The library's own limits are made for latency; here nobody waits for a single piece.
 */
export const WHOLE_CHUNKS: Pick<OpenOptions, 'merge'> = { merge: { maxBytes: CHUNK_BYTES } }

/** An image that can be read once, and perhaps again. */
export interface Source {
  /** In words. */
  readonly description: string
  /** Bytes of the whole image; `null` where nobody knows before its end. */
  readonly size: number | null
  /** The whole image has at least so many bytes. */
  readonly sizeMin: number
  /** For want of a size: how much of the image has been read, 0 to 1. */
  readonly fraction: (() => number) | null
  /** How much is asked for at once: a part of `CHUNK_BYTES`. */
  readonly chunkBytes: number
  /** Fills `into` as far as there is something; `null` at the end. Only the last chunk is shorter. */
  next(into: Buffer): Promise<{ offset: number; length: number } | null>
  /** Reads a range again; `null` where that can't be done. */
  readonly again: ((offset: number, into: Buffer) => Promise<void>) | null
  close(): Promise<void>
}

/** What lies below a qcow2 image. */
export interface Backing {
  readonly path: string
  readonly format: Format
}

/** How a qcow2 image begins: "QFI" and 0xfb. */
const QCOW2_MAGIC = Buffer.from([0x51, 0x46, 0x49, 0xfb])
const STREAM_PIECE_BYTES = 1 << 20

/**
 * Opens an image, `-` being standard input. Packed images are recognised by their first bytes.
 *
 * @param format `undefined` if nobody has said; then a qcow2 image is refused, since to take it for a raw one is a mistake,
 *   and to recognise it by its content would let whoever filled a raw disk decide what is read
 * @param backing what lies below a qcow2 image that names something
 */
export async function openSource(path: string, format: Format | undefined, backing?: Backing): Promise<Source> {
  if (path === '-') {
    if (format === 'qcow2') {
      throw new Stop(EXIT.usage, 'a qcow2 image cannot be read from standard input: name a file')
    }
    return inputSource(process.stdin, format)
  }
  if (format === 'qcow2') return diskSource(path, format, backing)
  const head = await headOf(path)
  const packing = packingOf(head)
  if (packing !== null) return packedSource(path, packing)
  if (format === undefined) refuseQcow2(head, path)
  refuseEmpty(head.length, path)
  return diskSource(path, 'raw')
}

async function headOf(path: string): Promise<Buffer> {
  const stats = await stat(path)
  if (!stats.isFile() && !stats.isBlockDevice())
    throw new Stop(EXIT.usage, `${path} is neither a file nor a block device: name an image`)
  const file = await openFile(path, 'r')
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}

/** A download that failed looks like this, and to write nothing would look like success. */
function refuseEmpty(bytes: number, what: string): void {
  if (bytes === 0)
    throw new Stop(EXIT.failed, `${what} is empty: nothing was written. Look at what should have made the image`)
}

function refuseQcow2(head: Buffer, what: string): void {
  if (!head.subarray(0, QCOW2_MAGIC.length).equals(QCOW2_MAGIC)) return
  throw new Stop(
    EXIT.refused,
    `refused: ${what} looks like a qcow2 image: say --format qcow2 to write what is in it, or --format raw to write it as it is`,
  )
}

async function diskSource(path: string, format: Format, backing?: Backing): Promise<Source> {
  const below = backing === undefined ? {} : { backing }
  // What is read from the page cache is copied, and threads copy beside each other; a ring copies in this one. A device is read
  // past the cache.
  const engine = format === 'raw' && (await stat(path)).isFile() ? 'threads' : 'auto'
  const disk = await open(path, { format, engine, readOnly: true, ...WHOLE_CHUNKS, ...below })
  let position = 0
  return {
    description: `${format} image`,
    size: disk.size,
    sizeMin: disk.size,
    fraction: null,
    chunkBytes: CHUNK_BYTES,
    next: async (into) => {
      const offset = position
      const length = Math.min(into.length, disk.size - offset)
      if (length <= 0) return null
      // Before anything is waited for: the next lane goes on from here.
      position += length
      await disk.read(offset, into.subarray(0, length)).catch(async (error: unknown) => {
        throw (await hasShrunk(path, disk.size)) ? shrunk(path) : error
      })
      return { offset, length }
    },
    again: (offset, into) => disk.read(offset, into),
    close: () => disk.close(),
  }
}

/** What is missing at the end of a file reads like a bad medium. */
async function hasShrunk(path: string, size: number): Promise<boolean> {
  const stats = await stat(path).catch(() => null)
  return stats?.isFile() === true && stats.size < size
}

function shrunk(path: string): Stop {
  return new Stop(EXIT.failed, `the image ${path} became shorter while it was read: see to it that nobody changes it`)
}

async function packedSource(path: string, packing: Packing): Promise<Source> {
  const { size } = await stat(path)
  const sizeMin = await unpackedSizeMin(path, packing)
  const file = createReadStream(path, { highWaterMark: STREAM_PIECE_BYTES })
  const fraction = (): number => file.bytesRead / Math.max(size, 1)
  return streamSource(new Pieces(unpacked(file, packing)), `raw image in ${packing}`, { sizeMin, fraction })
}

async function inputSource(input: AsyncIterable<Buffer>, format: Format | undefined): Promise<Source> {
  const pieces = new Pieces(input)
  const head = await pieces.peek(HEAD_BYTES)
  refuseEmpty(head.length, 'standard input')
  const packing = packingOf(head)
  if (packing !== null) {
    return streamSource(new Pieces(unpacked(pieces.rest(), packing)), `raw image in ${packing} from standard input`)
  }
  if (format === undefined) refuseQcow2(head, 'standard input')
  return streamSource(pieces, 'raw image from standard input')
}

function streamSource(
  pieces: Pieces,
  description: string,
  { sizeMin = 0, fraction = null }: { sizeMin?: number; fraction?: (() => number) | null } = {},
): Source {
  let offset = 0
  let turn: Promise<unknown> = Promise.resolve()
  return {
    description,
    size: null,
    sizeMin,
    fraction,
    // What has come goes on, also of a stream that is slow.
    chunkBytes: STREAM_PIECE_BYTES,
    next: (into) => {
      const mine = turn.then(async () => {
        const length = await pieces.fill(into)
        offset += length
        return length === 0 ? null : { offset: offset - length, length }
      })
      turn = mine.catch(() => undefined)
      return mine
    },
    again: null,
    close: () => pieces.stop(),
  }
}

/** Pieces of a stream, whatever their sizes, filled into buffers. */
class Pieces {
  readonly #pieces: AsyncIterator<Buffer>
  #rest: Buffer = Buffer.alloc(0)

  constructor(source: AsyncIterable<Buffer>) {
    this.#pieces = source[Symbol.asyncIterator]()
  }

  /** The first bytes, which stay to be read. */
  async peek(length: number): Promise<Buffer> {
    while (this.#rest.length < length && (await this.#more())) {}
    return this.#rest.subarray(0, length)
  }

  /** @returns how many bytes there were; fewer than asked for only at the end */
  async fill(into: Buffer): Promise<number> {
    let filled = 0
    while (filled < into.length) {
      if (this.#rest.length === 0 && !(await this.#more())) break
      const taken = this.#rest.copy(into, filled)
      this.#rest = this.#rest.subarray(taken)
      filled += taken
    }
    return filled
  }

  /** All that has not been read yet. */
  async *rest(): AsyncGenerator<Buffer> {
    while (this.#rest.length > 0 || (await this.#more())) {
      const piece = this.#rest
      this.#rest = Buffer.alloc(0)
      yield piece
    }
  }

  async stop(): Promise<void> {
    await this.#pieces.return?.()
  }

  async #more(): Promise<boolean> {
    const { value, done } = await this.#pieces.next()
    if (done === true) return false
    this.#rest = this.#rest.length === 0 ? value : Buffer.concat([this.#rest, value])
    return true
  }
}
