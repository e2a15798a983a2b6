// Reads a caller's array of requests, once and whole, before anything is done with it: types, offsets, ranges, buffers. What
// comes out is flat: ranges in typed arrays and the pieces of memory as units of the planner. An error names the argument as
// the caller would write it, such as `requests[1].offset`, and leaves nothing behind.

import { types } from 'node:util'
import type { AbortError, BlockError } from './errors.ts'
import { invalidType, invalidValue, outOfRange } from './errors-argument.ts'
import { float64s, int32s, uint8s } from './planner/arrays.ts'
import type { Units } from './planner/units.ts'

/** Bytes to be written: one piece of memory or several that follow each other, of any length and at any address. */
export type Data = Uint8Array | readonly Uint8Array[]

/** A write. It may carry more properties; the callback gets the same object. */
export interface WriteRequest {
  /** Bytes from the start of the device: a safe integer, or a `bigint` that is one. */
  readonly offset: number | bigint
  /** What to write. The contents must not change until the request is answered. */
  readonly data: Data
  /** On stable storage when it is answered. */
  readonly fua?: boolean | undefined
  /** Goes out as a submission of its own. */
  readonly noMerge?: boolean | undefined
  /** Called once, when the request is done or has failed; a request with a callback owns its error. */
  callback?(error: BlockError | AbortError | null, request: this): void
}

/** A read. It may carry more properties; the callback gets the same object. */
export interface ReadRequest {
  /** Bytes from the start of the device: a safe integer, or a `bigint` that is one. */
  readonly offset: number | bigint
  /** Memory to fill, wholly. Nothing else may use it until the request is answered. */
  readonly into: Data
  /** Called once, when the memory is filled or the request has failed; a request with a callback owns its error. */
  callback?(error: BlockError | AbortError | null, request: this): void
}

/** Asks to hear of a request. */
export type Callback = (this: unknown, error: Error | null, request: unknown) => void

/** Requests as the rest of the library sees them. */
export interface Work {
  readonly read: boolean
  /** The caller's objects, given back to their callbacks. */
  readonly requests: readonly object[]
  readonly count: number
  /** Bytes; per request. */
  readonly offset: Float64Array
  readonly length: Float64Array
  /** Whether requests of no bytes are among them. */
  readonly hasEmpty: boolean
  readonly callbacks: (Callback | undefined)[] | null
  /** 1 where the request must not be merged; `null` where all may. */
  readonly noMerge: Uint8Array | null
  /** 1 where the request asks for FUA; `null` where none does. */
  readonly fua: Uint8Array | null
  readonly units: Units
  /** Per unit: its memory. */
  readonly views: readonly Uint8Array[]
  /** Per unit: its request; `null` where they are the same. */
  readonly owner: Int32Array | null
}

/** By what it is, not by its prototype: another realm has a prototype of its own, and any object can be given ours. */
export const isUint8Array: (value: unknown) => value is Uint8Array = types.isUint8Array

/** Whose arguments are looked at: this element of `requests`, or those of a call for one. */
export const NO_INDEX = -1

/** An argument as the caller would write it. Made for errors only: making it for each request would be felt. */
function nameOf(index: number, property: string): string {
  return index === NO_INDEX ? property : `requests[${index}].${property}`
}

/** @param size of the device, in bytes */
export function readRequests(requests: unknown, size: number, read: boolean): Work {
  if (!Array.isArray(requests)) throw invalidType('requests', 'Array', requests)
  const list = [...(requests as unknown[])]
  const collector = new Collector(list.length, read)
  const property = read ? 'into' : 'data'
  for (let i = 0; i < list.length; i++) {
    const request = list[i]
    if (typeof request !== 'object' || request === null) throw invalidType(`requests[${i}]`, 'object', request)
    const { offset, callback, [property]: data } = request as Record<string, unknown>
    const where = readOffset(offset, i)
    collector.add(where, readData(data, i, property), i, size)
    if (callback !== undefined) {
      if (typeof callback !== 'function') throw invalidType(nameOf(i, 'callback'), 'function', callback)
      collector.setCallback(callback as Callback)
    }
    if (read) continue
    const { fua, noMerge } = request as Record<string, unknown>
    if (readFlag(fua, i, 'fua')) collector.setFua()
    if (readFlag(noMerge, i, 'noMerge')) collector.setNoMerge()
  }
  return collector.finish(list as object[])
}

/** The work of single calls: their ranges and memory are checked by `readOffset` and `readData`. */
export class Collector {
  readonly #read: boolean
  #offset: Float64Array
  #length: Float64Array
  readonly #data: (Uint8Array | readonly Uint8Array[])[]
  #count = 0
  #callbacks: (Callback | undefined)[] | null = null
  #fua: Uint8Array | null = null
  #noMerge: Uint8Array | null = null
  #pieces = 0
  #single = true
  #hasEmpty = false

  /** @param capacity how many requests are expected */
  constructor(capacity: number, read: boolean) {
    this.#read = read
    this.#offset = float64s(capacity)
    this.#length = float64s(capacity)
    this.#data = new Array(capacity)
  }

  get count(): number {
    return this.#count
  }

  /** Adds a request; throws if it goes past `size`. */
  add(offset: number, data: Uint8Array | readonly Uint8Array[], at: number, size: number): number {
    const index = this.#count
    let length = 0
    if (isUint8Array(data)) {
      length = data.length
      this.#pieces++
    } else {
      for (const piece of data) length += piece.length
      this.#pieces += data.length
      this.#single = false
    }
    if (length > size - offset) {
      throw outOfRange(nameOf(at, 'offset'), `<= ${size} - ${length} (device size - length of the request)`, offset)
    }
    if (length === 0) this.#hasEmpty = true
    if (index === this.#offset.length) this.#grow()
    this.#offset[index] = offset
    this.#length[index] = length
    this.#data[index] = data
    this.#count++
    return length
  }

  #grow(): void {
    const capacity = Math.max(16, this.#offset.length * 2)
    this.#offset = copyInto(float64s(capacity), this.#offset)
    this.#length = copyInto(float64s(capacity), this.#length)
    if (this.#fua !== null) this.#fua = copyInto(uint8s(capacity), this.#fua)
  }

  /** These three are of the request that was added last. */
  setCallback(callback: Callback): void {
    this.#callbacks ??= []
    this.#callbacks[this.#count - 1] = callback
  }

  setFua(): void {
    this.#fua ??= uint8s(this.#offset.length)
    this.#fua[this.#count - 1] = 1
  }

  setNoMerge(): void {
    this.#noMerge ??= uint8s(this.#offset.length)
    this.#noMerge[this.#count - 1] = 1
  }

  finish(requests: readonly object[]): Work {
    if (this.#data.length > this.#count) this.#data.length = this.#count
    const units = { count: this.#count, offset: this.#offset, length: this.#length, fua: this.#fua }
    if (this.#single) return this.#work(requests, units, this.#data as Uint8Array[], null)
    const count = this.#count
    const pieces = this.#pieces
    const divided: Units = {
      count: 0,
      offset: float64s(pieces),
      length: float64s(pieces),
      fua: this.#fua === null ? null : uint8s(pieces),
    }
    const views: Uint8Array[] = []
    const owner = int32s(pieces)
    for (let i = 0; i < count; i++) {
      const data = this.#data[i]!
      let place = this.#offset[i]!
      for (const piece of isUint8Array(data) ? [data] : data) {
        if (piece.length === 0) continue
        const unit = divided.count++
        divided.offset[unit] = place
        divided.length[unit] = piece.length
        if (divided.fua !== null) divided.fua[unit] = this.#fua![i]!
        owner[unit] = i
        views.push(piece)
        place += piece.length
      }
    }
    return this.#work(requests, divided, views, owner)
  }

  #work(requests: readonly object[], units: Units, views: readonly Uint8Array[], owner: Int32Array | null): Work {
    return {
      read: this.#read,
      requests,
      count: this.#count,
      offset: this.#offset,
      length: this.#length,
      hasEmpty: this.#hasEmpty,
      callbacks: this.#callbacks,
      noMerge: this.#noMerge,
      fua: this.#fua,
      units,
      views,
      owner,
    }
  }
}

function copyInto<A extends Float64Array | Uint8Array>(to: A, from: A): A {
  to.set(from)
  return to
}

/** An offset as a number of bytes. */
export function readOffset(offset: unknown, index: number): number {
  if (typeof offset === 'number') {
    if (!Number.isSafeInteger(offset) || offset < 0) {
      throw outOfRange(nameOf(index, 'offset'), `a whole number >= 0 and <= ${Number.MAX_SAFE_INTEGER}`, offset)
    }
    return offset === 0 ? 0 : offset
  }
  if (typeof offset === 'bigint') {
    if (offset < 0n || offset > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw outOfRange(nameOf(index, 'offset'), `>= 0 and <= ${Number.MAX_SAFE_INTEGER}`, offset)
    }
    return Number(offset)
  }
  throw invalidType(nameOf(index, 'offset'), ['number', 'bigint'], offset)
}

/** Memory as one piece, or as a copy of the array of pieces. */
export function readData(data: unknown, index: number, property: string): Uint8Array | readonly Uint8Array[] {
  if (isUint8Array(data)) {
    if (data.length === 0) checkAttached(data, nameOf(index, property))
    return data
  }
  if (!Array.isArray(data)) {
    throw invalidType(nameOf(index, property), ['Buffer', 'Uint8Array', 'an array of these'], data)
  }
  const pieces = [...(data as unknown[])]
  for (let i = 0; i < pieces.length; i++) {
    const piece = pieces[i]
    if (!isUint8Array(piece)) {
      throw invalidType(`${nameOf(index, property)}[${i}]`, ['Buffer', 'Uint8Array'], piece)
    }
    if (piece.length === 0) checkAttached(piece, `${nameOf(index, property)}[${i}]`)
  }
  return pieces as Uint8Array[]
}

function readFlag(value: unknown, index: number, property: string): boolean {
  if (value === undefined) return false
  if (typeof value !== 'boolean') throw invalidType(nameOf(index, property), 'boolean', value)
  return value
}

/**
 * A view of memory that was detached, or of a part that a resizable buffer has shrunk away, has length 0 like an empty one.
 * Methods tell them apart: they refuse to work on it.
 */
function checkAttached(view: Uint8Array, name: string): void {
  try {
    Uint8Array.prototype.at.call(view, 0)
  } catch {
    throw invalidValue(name, view, 'is detached, or outside of its buffer: pass memory that is there')
  }
}
