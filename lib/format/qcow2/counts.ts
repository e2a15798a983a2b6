// Reference counts in a block, of 1 to 64 bits each. Those of a byte and more are big-endian; of smaller ones the first in a byte
// are its lowest bits.

import { readU64, writeU64 } from './layout.ts'
import type { Table } from './table.ts'

/** @param order a count has 2^order bits */
export function readCount({ bytes, view }: Table, order: number, i: number): number {
  switch (order) {
    case 3:
      return bytes[i]!
    case 4:
      return view.getUint16(i * 2)
    case 5:
      return view.getUint32(i * 4)
    case 6:
      return readU64(bytes, i * 8)
    default: {
      const bits = 2 ** order
      const perByte = 8 / bits
      return (bytes[Math.floor(i / perByte)]! >> ((i % perByte) * bits)) & (2 ** bits - 1)
    }
  }
}

/** @param order a count has 2^order bits */
export function writeCount(block: Table, order: number, i: number, value: number): void {
  const { bytes, view } = block
  switch (order) {
    case 3:
      bytes[i] = value
      block.mark(i, i + 1)
      break
    case 4:
      view.setUint16(i * 2, value)
      block.mark(i * 2, i * 2 + 2)
      break
    case 5:
      view.setUint32(i * 4, value)
      block.mark(i * 4, i * 4 + 4)
      break
    case 6:
      writeU64(bytes, value, i * 8)
      block.mark(i * 8, i * 8 + 8)
      break
    default: {
      const bits = 2 ** order
      const perByte = 8 / bits
      const at = Math.floor(i / perByte)
      const shift = (i % perByte) * bits
      bytes[at] = (bytes[at]! & ~((2 ** bits - 1) << shift)) | (value << shift)
      block.mark(at, at + 1)
    }
  }
}
