// Packed images: which packing it is by the first bytes, what size comes out at least, and the unpacking itself: by Node's own
// zlib where it can, else by the tool of that name (Node has no xz, and zstd only from 22.15 on).

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { type FileHandle, open as openFile } from 'node:fs/promises'
import { Readable, type Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import * as zlib from 'node:zlib'
import { EXIT, Stop } from './command.ts'

export const PACKINGS = ['gzip', 'xz', 'zstd'] as const
export type Packing = (typeof PACKINGS)[number]

const MAGIC: Record<Packing, readonly number[]> = {
  gzip: [0x1f, 0x8b],
  xz: [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00],
  zstd: [0x28, 0xb5, 0x2f, 0xfd],
}
/** So many bytes tell. */
export const HEAD_BYTES = 8
/** Of the pieces that come out. */
const PIECE_BYTES = 1 << 20

/** @param head the first bytes */
export function packingOf(head: Buffer): Packing | null {
  return PACKINGS.find((name) => MAGIC[name].every((byte, at) => head[at] === byte)) ?? null
}

/** The bytes that were packed. */
export function unpacked(packed: AsyncIterable<Buffer>, packing: Packing): AsyncIterable<Buffer> {
  const chunkSize = PIECE_BYTES
  if (packing === 'gzip') return byNode(packed, zlib.createGunzip({ chunkSize }))
  const { createZstdDecompress } = zlib as { createZstdDecompress?: (options: { chunkSize: number }) => Transform }
  if (packing === 'zstd' && createZstdDecompress !== undefined)
    return byNode(packed, createZstdDecompress({ chunkSize }))
  return byTool(packed, packing)
}

async function* byNode(packed: AsyncIterable<Buffer>, transform: Transform): AsyncGenerator<Buffer> {
  const done = pipeline(Readable.from(packed, { objectMode: false }), transform)
  // Heard of by whoever reads.
  done.catch(() => undefined)
  try {
    yield* transform as AsyncIterable<Buffer>
    await done
  } catch (error) {
    throw new Stop(EXIT.failed, cannotUnpack((error as Error).message))
  }
}

const cannotUnpack = (why: string): string =>
  `the image cannot be unpacked: ${why}. It is damaged or not whole: get it again`

async function* byTool(packed: AsyncIterable<Buffer>, tool: Packing): AsyncGenerator<Buffer> {
  const child = spawn(tool, ['--decompress', '--stdout'], { stdio: ['pipe', 'pipe', 'pipe'] })
  const ended = once(child, 'close') as Promise<[number | null]>
  ended.catch(() => undefined)
  let complaint = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint += text
  })
  pipeline(Readable.from(packed, { objectMode: false }), child.stdin).catch(() => undefined)
  try {
    yield* child.stdout as AsyncIterable<Buffer>
    const [status] = await ended
    if (status !== 0) throw new Stop(EXIT.failed, cannotUnpack(complaint.trim() || `${tool} failed`))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    const node = tool === 'zstd' ? ', or use Node 22.15 or later' : ''
    throw new Stop(EXIT.failed, `a ${tool} image needs the tool ${tool}, which is not there: install it${node}`)
  } finally {
    child.kill()
  }
}

/**
 * The least that a packed file unpacks to, by what it says itself: exact for xz, and for gzip and zstd as they are commonly
 * made. 0 where it says nothing.
 */
export async function unpackedSizeMin(path: string, packing: Packing): Promise<number> {
  if (packing === 'xz') return xzSize(path)
  const file = await openFile(path, 'r')
  try {
    return packing === 'gzip' ? await gzipSize(file) : await zstdSize(file)
  } finally {
    await file.close()
  }
}

/** RFC 1952: the last four bytes are the size modulo 2^32. */
async function gzipSize(file: FileHandle): Promise<number> {
  const { size } = await file.stat()
  const { buffer, bytesRead } = await file.read(Buffer.alloc(4), 0, 4, Math.max(0, size - 4))
  return bytesRead === 4 ? buffer.readUInt32LE(0) : 0
}

/** RFC 8878, 3.1.1.1: the frame header may tell the size of the content. */
async function zstdSize(file: FileHandle): Promise<number> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(18), 0, 18, 0)
  if (bytesRead < 18) return 0
  const descriptor = buffer[4]!
  const isSingleSegment = (descriptor & 0x20) !== 0
  const at = 5 + (isSingleSegment ? 0 : 1) + [0, 1, 2, 4][descriptor & 3]!
  switch (descriptor >> 6) {
    case 0:
      return isSingleSegment ? buffer[at]! : 0
    case 1:
      return buffer.readUInt16LE(at) + 256
    case 2:
      return buffer.readUInt32LE(at)
    default:
      return Number(buffer.readBigUInt64LE(at))
  }
}

async function xzSize(path: string): Promise<number> {
  const child = spawn('xz', ['--robot', '--list', '--', path], { stdio: ['ignore', 'pipe', 'ignore'] })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    text += piece
  })
  try {
    await once(child, 'close')
  } catch {
    // Without the tool nothing will be unpacked either; that is said then.
    return 0
  }
  return Number(/^totals(?:\t[^\t]+){3}\t(\d+)/m.exec(text)?.[1] ?? 0)
}
