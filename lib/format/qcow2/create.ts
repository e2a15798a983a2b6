// Writing an empty image: header, refcount table and blocks, L1 table, and with preallocation all L2 tables, one behind the other,
// and the clusters of the guest behind them. The header comes last: until it is there, there is no image.

import { constants } from 'node:os'
import path from 'node:path'
import { BlockError } from '../../errors.ts'
import { invalidValue, outOfRange } from '../../errors-argument.ts'
import type { FormatCreateOptions, FormatHost } from '../driver.ts'
import {
  BACKING_NAME_MAX,
  COMPATIBLE,
  COPIED_HIGH,
  EXTENSION,
  FIELD,
  HEADER_LENGTH,
  highOf,
  L1_BYTES_MAX,
  lowOf,
  MAGIC,
  REFCOUNT_TABLE_BYTES_MAX,
  writeU64,
  ZERO_LOW,
} from './layout.ts'

const CLUSTER_SIZE = 64 << 10
const REFCOUNT_BITS = 16
const WRITE_BYTES = 1 << 20

/** Where everything lies, in clusters. */
interface Plan {
  readonly clusterSize: number
  readonly refcountOrder: number
  readonly l1Size: number
  readonly tableAt: number
  readonly table: number
  readonly blocksAt: number
  readonly blocks: number
  readonly l1At: number
  readonly l1: number
  readonly l2At: number
  readonly l2: number
  readonly dataAt: number
  /** All clusters in use. */
  readonly end: number
}

/** What an image is made by, besides what lies below it. */
type Shape = Omit<FormatCreateOptions, 'backing' | 'readOnly'>

/** Throws for a size that can't be. */
export function checkCreate(options: Shape): void {
  if (options.size % 512 !== 0) throw outOfRange('options.size', 'a multiple of 512', options.size)
  planImage(options)
}

export async function createImage(host: FormatHost, options: FormatCreateOptions): Promise<void> {
  checkCreate(options)
  const { backing } = options
  if (backing != null && options.preallocation === 'metadata') {
    throw invalidValue(
      'options.preallocation',
      'metadata',
      'would hide what lies below: it goes without `backing` only',
    )
  }
  const plan = planImage(options)
  const { clusterSize } = plan
  const header = headerOf(plan, options, host.path)
  const bytes = plan.end * clusterSize
  // A file has no bytes yet. What a block device holds must not show in clusters that nobody has written.
  const readsZeros = host.size === 0
  if (bytes > host.size) {
    try {
      await host.truncate(bytes)
    } catch (error) {
      if (!(error instanceof BlockError) || error.code !== 'EOPNOTSUPP') throw error
      const reason = `an image of this size needs ${bytes} bytes and there are ${host.size}: take a larger device or a smaller size`
      throw new BlockError(constants.errno.ENOSPC, { syscall: 'open', path: host.path, reason })
    }
  }
  await writeAll(host, plan, readsZeros)
  await host.flush()
  await host.write(0, header)
  await host.flush()
}

function planImage(options: Shape): Plan {
  const { size, preallocation } = options
  const clusterSize = options.clusterSize ?? CLUSTER_SIZE
  const refcountOrder = Math.log2(options.refcountBits ?? REFCOUNT_BITS)
  const perTable = clusterSize / 8
  const l1Size = Math.ceil(size / (perTable * clusterSize))
  if (l1Size * 8 > L1_BYTES_MAX) {
    const max = (L1_BYTES_MAX / 8) * perTable * clusterSize
    throw outOfRange('options.size', `<= ${max} with clusters of ${clusterSize} bytes`, size)
  }
  const isFull = preallocation === 'metadata'
  const l1 = Math.ceil((l1Size * 8) / clusterSize)
  const l2 = isFull ? l1Size : 0
  const data = isFull ? Math.ceil(size / clusterSize) : 0
  const perBlock = (clusterSize * 8) / 2 ** refcountOrder
  let blocks = 1
  let table = 1
  for (;;) {
    const end = 1 + table + blocks + l1 + l2 + data
    const needed = Math.ceil(end / perBlock)
    const tableNeeded = Math.ceil((needed * 8) / clusterSize)
    if (needed <= blocks && tableNeeded <= table) break
    blocks = Math.max(blocks, needed)
    table = Math.max(table, tableNeeded)
  }
  if (table * clusterSize > REFCOUNT_TABLE_BYTES_MAX) {
    throw outOfRange('options.size', `less with clusters of ${clusterSize} bytes`, size)
  }
  const end = 1 + table + blocks + l1 + l2 + data
  return {
    clusterSize,
    refcountOrder,
    l1Size,
    tableAt: 1,
    table,
    blocksAt: 1 + table,
    blocks,
    l1At: 1 + table + blocks,
    l1,
    l2At: 1 + table + blocks + l1,
    l2,
    dataAt: 1 + table + blocks + l1 + l2,
    end,
  }
}

function headerOf(plan: Plan, { size, backing, lazyRefcounts }: FormatCreateOptions, image: string): Buffer {
  const { clusterSize, refcountOrder, l1Size, l1At, tableAt, table } = plan
  const bytes = Buffer.alloc(clusterSize)
  bytes.writeUInt32BE(MAGIC, FIELD.magic)
  bytes.writeUInt32BE(3, FIELD.version)
  bytes.writeUInt32BE(Math.log2(clusterSize), FIELD.clusterBits)
  writeU64(bytes, size, FIELD.size)
  bytes.writeUInt32BE(l1Size, FIELD.l1Size)
  writeU64(bytes, l1Size === 0 ? 0 : l1At * clusterSize, FIELD.l1Offset)
  writeU64(bytes, tableAt * clusterSize, FIELD.refcountOffset)
  bytes.writeUInt32BE(table, FIELD.refcountClusters)
  bytes.writeUInt32BE(lazyRefcounts === true ? COMPATIBLE.lazyRefcounts : 0, FIELD.compatible + 4)
  bytes.writeUInt32BE(refcountOrder, FIELD.refcountOrder)
  bytes.writeUInt32BE(HEADER_LENGTH, FIELD.headerLength)
  if (backing == null) return bytes
  const name = Buffer.from(nameFrom(image, backing.path))
  const format = Buffer.from(backing.format, 'latin1')
  const nameAt = HEADER_LENGTH + 8 + Math.ceil(format.length / 8) * 8 + 8
  if (name.length > BACKING_NAME_MAX || nameAt + name.length > clusterSize) {
    throw invalidValue('options.backing', backing.path, 'has a path that is too long for the header of an image')
  }
  bytes.writeUInt32BE(EXTENSION.backingFormat, HEADER_LENGTH)
  bytes.writeUInt32BE(format.length, HEADER_LENGTH + 4)
  format.copy(bytes, HEADER_LENGTH + 8)
  writeU64(bytes, nameAt, FIELD.backingOffset)
  bytes.writeUInt32BE(name.length, FIELD.backingLength)
  name.copy(bytes, nameAt)
  return bytes
}

/**
 * What an image calls the file below it. Those who follow the name look for it from the directory of the image, not from ours, and
 * take what stands before a colon for a protocol: where they would not find the same file by it, it is made absolute.
 */
function nameFrom(image: string, below: string): string {
  const absolute = path.resolve(below)
  const isSame = path.resolve(path.dirname(image), below) === absolute && !below.split('/')[0]!.includes(':')
  return isSame ? below : absolute
}

/** @param readsZeros whether clusters that were never written do; else their entries say so */
async function writeAll(host: FormatHost, plan: Plan, readsZeros: boolean): Promise<void> {
  const { clusterSize, refcountOrder, tableAt, table, blocksAt, blocks, l1At, l1, l2At, l2, dataAt, l1Size, end } = plan
  const entry = (bytes: Buffer, at: number, cluster: number, flags: number): void => {
    const offset = cluster * clusterSize
    bytes.writeUInt32BE((highOf(offset) | COPIED_HIGH) >>> 0, at)
    bytes.writeUInt32BE(lowOf(offset) + flags, at + 4)
  }
  await writePieces(host, tableAt * clusterSize, table * clusterSize, (bytes, from) => {
    for (let i = 0; i < bytes.length; i += 8) {
      const index = (from + i) / 8
      if (index < blocks) writeU64(bytes, (blocksAt + index) * clusterSize, i)
    }
  })
  const bits = 2 ** refcountOrder
  await writePieces(host, blocksAt * clusterSize, blocks * clusterSize, (bytes, from) => {
    if (bits >= 8) {
      const width = bits / 8
      for (let i = 0; i < bytes.length; i += width) if ((from + i) / width < end) bytes[i + width - 1] = 1
      return
    }
    const perByte = 8 / bits
    for (let i = 0; i < bytes.length; i++) {
      for (let n = 0; n < perByte; n++) if ((from + i) * perByte + n < end) bytes[i]! |= 1 << (n * bits)
    }
  })
  await writePieces(host, l1At * clusterSize, l1 * clusterSize, (bytes, from) => {
    for (let i = 0; i < bytes.length && l2 > 0; i += 8) {
      const index = (from + i) / 8
      if (index < l1Size) entry(bytes, i, l2At + index, 0)
    }
  })
  await writePieces(host, l2At * clusterSize, l2 * clusterSize, (bytes, from) => {
    for (let i = 0; i < bytes.length; i += 8) {
      const cluster = dataAt + (from + i) / 8
      if (cluster < end) entry(bytes, i, cluster, readsZeros ? 0 : ZERO_LOW)
    }
  })
}

async function writePieces(
  host: FormatHost,
  offset: number,
  length: number,
  fill: (bytes: Buffer, from: number) => void,
): Promise<void> {
  for (let from = 0; from < length; from += WRITE_BYTES) {
    const bytes = host.alloc(Math.min(WRITE_BYTES, length - from))
    fill(bytes, from)
    await host.write(offset + from, bytes)
  }
}
