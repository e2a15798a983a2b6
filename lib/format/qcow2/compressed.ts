// Clusters that are stored compressed. They are read whole, and the one that was read last is kept: a guest reads on.

import * as zlib from 'node:zlib'
import type { Header } from './header.ts'
import { corrupt, unsupported } from './layout.ts'
import type { Compressed } from './mapping.ts'
import type { Metadata } from './metadata.ts'

/** What Node has from 22.15 on. */
type Zstd = (data: Uint8Array, options: { maxOutputLength: number }) => Buffer

export class Decompressor {
  readonly #metadata: Metadata
  readonly #header: Header
  #last: { offset: number; bytes: Promise<Buffer> } | null = null

  constructor(metadata: Metadata, header: Header) {
    this.#metadata = metadata
    this.#header = header
    if (header.compression === 'zstd' && zstd() === undefined) {
      throw unsupported(metadata.host.path, 'zstd compression needs Node 22.15 or later', '')
    }
  }

  /** The bytes of a cluster. */
  read({ offset, length }: Compressed): Promise<Buffer> {
    if (this.#last?.offset === offset) return this.#last.bytes
    const last = { offset, bytes: this.#read(offset, length) }
    this.#last = last
    // What has failed is tried again by the next one who asks.
    last.bytes.catch(() => {
      if (this.#last === last) this.#last = null
    })
    return last.bytes
  }

  async #read(offset: number, length: number): Promise<Buffer> {
    const { host, clusterSize } = this.#metadata
    if (offset >= host.size) throw corrupt(host.path, `compressed bytes at ${offset}, past the end`)
    const stored = Buffer.alloc(Math.min(length, host.size - offset))
    await host.read(offset, stored)
    try {
      const bytes = await (this.#header.compression === 'zstd' ? this.#unzstd(stored) : inflate(stored, clusterSize))
      if (bytes.length !== clusterSize) throw new Error(`they are ${bytes.length} bytes`)
      return bytes
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      throw corrupt(host.path, `compressed bytes at ${offset} do not give a cluster: ${why}`)
    }
  }

  #unzstd(stored: Buffer): Buffer {
    return zstd()!(stored.subarray(0, frameLength(stored)), { maxOutputLength: this.#metadata.clusterSize })
  }
}

const ZSTD_MAGIC = 0xfd2fb528
const RLE_BLOCK = 1

/**
 * Where the zstd frame at the start of some bytes ends (RFC 8878, section 3.1.1). What follows it in its last sector are other
 * clusters' bytes, which Node's zstd would take for another frame.
 */
function frameLength(bytes: Buffer): number {
  if (bytes.readUInt32LE(0) !== ZSTD_MAGIC) throw new Error('they are no zstd frame')
  const descriptor = bytes.readUInt8(4)
  const isSingle = (descriptor >> 5) & 1
  const dictionary = [0, 1, 2, 4][descriptor & 3]!
  const contentSize = [isSingle, 2, 4, 8][descriptor >> 6]!
  let at = 5 + (1 - isSingle) + dictionary + contentSize
  for (;;) {
    // Past the end of the bytes this throws.
    const header = bytes.readUIntLE(at, 3)
    at += 3 + (((header >> 1) & 3) === RLE_BLOCK ? 1 : header >> 3)
    if ((header & 1) === 1) break
  }
  const end = at + ((descriptor >> 2) & 1) * 4
  if (end > bytes.length) throw new Error('they are cut off')
  return end
}

function zstd(): Zstd | undefined {
  return (zlib as unknown as { zstdDecompressSync?: Zstd }).zstdDecompressSync
}

/** What follows the stream, up to the end of a sector, is ignored. */
function inflate(stored: Buffer, clusterSize: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    zlib.inflateRaw(
      stored,
      { windowBits: 12, maxOutputLength: clusterSize, finishFlush: zlib.constants.Z_SYNC_FLUSH },
      (error, bytes) => (error === null ? resolve(bytes) : reject(error)),
    )
  })
}
