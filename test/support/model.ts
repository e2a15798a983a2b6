// What a disk must contain: the requests carried out one after another on plain memory. Contents depend on the request and on
// the place in it, so that a piece taken from the wrong request or from the wrong place in the right one shows.

import { background } from './targets.ts'

export type Memory = 'buffer' | 'bytes' | 'shared'

/** The bytes of request number `index`. */
export function pattern(index: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  for (let at = 0; at < length; at++) bytes[at] = (index * 61 + at * 7 + (at >> 8) * 31 + 13) & 0xff
  return bytes
}

/** A copy of `bytes` in memory of the given kind, `skew` bytes from its start. */
export function memory(kind: Memory, bytes: Uint8Array, skew = 0): Uint8Array {
  const size = skew + bytes.length + 3
  const store = kind === 'shared' ? new SharedArrayBuffer(size) : new ArrayBuffer(size)
  const view = kind === 'buffer' ? Buffer.from(store, skew, bytes.length) : new Uint8Array(store, skew, bytes.length)
  view.set(bytes)
  return view
}

/** `bytes` in pieces, cut at the given places (any order, repeated cuts give empty pieces). */
export function pieces(kind: Memory, bytes: Uint8Array, cuts: readonly number[], skew = 0): Uint8Array[] {
  const places = [0, ...cuts.map((cut) => Math.min(cut, bytes.length)).sort((a, b) => a - b), bytes.length]
  return places.slice(1).map((end, at) => memory(kind, bytes.subarray(places[at], end), (skew + at) % 64))
}

export class Model {
  readonly bytes: Buffer

  constructor(size: number) {
    this.bytes = Buffer.alloc(size, background)
  }

  write(offset: number, data: Uint8Array): void {
    this.bytes.set(data, offset)
  }

  read(offset: number, length: number): Buffer {
    return Buffer.from(this.bytes.subarray(offset, offset + length))
  }
}

/** Where two contents differ first, in words; `null` where they are equal. Cheaper to print than the contents. */
export function difference(actual: Uint8Array, expected: Uint8Array): string | null {
  if (actual.length !== expected.length) return `length ${actual.length} instead of ${expected.length}`
  if (Buffer.compare(actual, expected) === 0) return null
  const at = actual.findIndex((byte, index) => byte !== expected[index])
  return `byte ${at} is ${actual[at]} instead of ${expected[at]}`
}

/** The numbers from 0 to `count - 1` in an order that depends on the seed alone. */
export function shuffled(count: number, seed = 1): number[] {
  const order = Array.from({ length: count }, (_, index) => index)
  let state = seed >>> 0
  for (let at = count - 1; at > 0; at--) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    const other = Math.floor((state / 2 ** 32) * (at + 1))
    const kept = order[at] as number
    order[at] = order[other] as number
    order[other] = kept
  }
  return order
}
