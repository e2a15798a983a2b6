// What the header of a qcow2 image says, for `info`: read with plain calls, and nothing of it is followed or believed. The layout
// is that of QEMU's docs/interop/qcow2.txt.

import { open } from 'node:fs/promises'

export interface Qcow2Header {
  readonly version: number
  /** What a guest sees, in bytes. */
  readonly virtualSize: number
  readonly clusterSize: number
  readonly refcountBits: number
  /** Of the image below; never opened here. */
  readonly backingFile: string | null
  readonly encrypted: boolean
  readonly snapshots: number
  /** Names of the features that a reader must know, or may want to. */
  readonly features: readonly string[]
}

const MAGIC = 0x514649fb
const HEADER_BYTES = 104
const BACKING_NAME_MAX = 1023
const REFCOUNT_BITS_V2 = 16

/** Bit and name, by kind. */
const INCOMPATIBLE = ['dirty', 'corrupt', 'external data file', 'compression type', 'extended L2 entries']
const COMPATIBLE = ['lazy refcounts']
const AUTOCLEAR = ['bitmaps', 'raw external data']

/** @returns `null` if the file is no qcow2 image */
export async function readQcow2Header(path: string): Promise<Qcow2Header | null> {
  const file = await open(path, 'r')
  try {
    const { buffer: header, bytesRead } = await file.read(Buffer.alloc(HEADER_BYTES), 0, HEADER_BYTES, 0)
    if (bytesRead < 72 || header.readUInt32BE(0) !== MAGIC) return null
    const version = header.readUInt32BE(4)
    const [nameOffset, nameLength] = [Number(header.readBigUInt64BE(8)), header.readUInt32BE(16)]
    let backingFile: string | null = null
    if (nameOffset > 0) {
      const name = Buffer.alloc(Math.min(nameLength, BACKING_NAME_MAX))
      await file.read(name, 0, name.length, nameOffset)
      backingFile = name.toString('utf8')
    }
    const isV3 = version >= 3 && bytesRead === HEADER_BYTES
    const bits = (at: number, names: readonly string[]): string[] =>
      isV3 ? names.filter((_, bit) => (header.readBigUInt64BE(at) >> BigInt(bit)) & 1n) : []
    return {
      version,
      virtualSize: Number(header.readBigUInt64BE(24)),
      clusterSize: 2 ** header.readUInt32BE(20),
      refcountBits: isV3 ? 2 ** header.readUInt32BE(96) : REFCOUNT_BITS_V2,
      backingFile,
      encrypted: header.readUInt32BE(32) !== 0,
      snapshots: header.readUInt32BE(60),
      features: [...bits(72, INCOMPATIBLE), ...bits(80, COMPATIBLE), ...bits(88, AUTOCLEAR)],
    }
  } finally {
    await file.close()
  }
}
