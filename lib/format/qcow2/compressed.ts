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
      throw unsupported(metadata.host.path, 'zstd compression needs Node 22.15 or later')
    }
  }

  /** The bytes of a cluster. */
  read({ offset, length }: Compressed): Promise<Buffer> {
    if (this.#last?.offset !== offset) this.#last = { offset, bytes: this.#read(offset, length) }
    return this.#last.bytes
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
      this.#last = null
      const why = error instanceof Error ? error.message : String(error)
      throw corrupt(host.path, `compressed bytes at ${offset} do not give a cluster: ${why}`)
    }
  }

  #unzstd(stored: Buffer): Buffer {
    const { clusterSize } = this.#metadata
    // The stored bytes end anywhere in their last sector: what follows the frame is not ours.
    return zstd()!(stored, { maxOutputLength: clusterSize })
  }
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
