// Reads a caller's array of requests, once and whole, before anything is done with it: types, offsets, ranges, buffers. What
// comes out is flat: ranges in typed arrays and the pieces of memory as units of the planner. An error names the argument as
// the caller would write it, such as `requests[1].offset`, and leaves nothing behind.

import type { BlockError } from './errors.ts'
import { invalidType, invalidValue, outOfRange } from './errors-argument.ts'
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
  callback?(error: BlockError | Error | null, request: this): void
}

/** A read. It may carry more properties; the callback gets the same object. */
export interface ReadRequest {
  /** Bytes from the start of the device: a safe integer, or a `bigint` that is one. */
  readonly offset: number | bigint
  /** Memory to fill, wholly. Nothing else may use it until the request is answered. */
  readonly into: Data
  /** Called once, when the memory is filled or the request has failed; a request with a callback owns its error. */
  callback?(error: BlockError | Error | null, request: this): void
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

/**
 * @param name how the caller wrote the argument
 * @param size of the device, in bytes
 */
export function readRequests(requests: unknown, name: string, size: number, read: boolean): Work {
  if (!Array.isArray(requests)) throw invalidType(name, 'Array', requests)
  const list = [...(requests as unknown[])]
  const collector = new Collector(list.length, read)
  const property = read ? 'into' : 'data'
  for (let i = 0; i < list.length; i++) {
    const request = list[i]
    const at = `${name}[${i}]`
    if (typeof request !== 'object' || request === null) throw invalidType(at, 'object', request)
    const { offset, callback, [property]: data } = request as Record<string, unknown>
    const where = readOffset(offset, at)
    collector.add(where, readData(data, at, property), at, size)
    if (callback !== undefined) {
      if (typeof callback !== 'function') throw invalidType(`${at}.callback`, 'function', callback)
      collector.setCallback(callback as Callback)
    }
    if (read) continue
    const { fua, noMerge } = request as Record<string, unknown>
    if (readFlag(fua, at, 'fua')) collector.setFua()
    if (readFlag(noMerge, at, 'noMerge')) collector.setNoMerge()
  }
  return collector.finish(list as object[])
}

/** The work of single calls: their ranges and memory are checked by `readOffset` and `readData`. */
export class Collector {
  readonly #read: boolean
  #offset: Float64Array
  #length: Float64Array
  readonly #data: (Uint8Array | readonly Uint8Array[])[] = []
  #callbacks: (Callback | undefined)[] | null = null
  #fua: Uint8Array | null = null
  #noMerge: Uint8Array | null = null
  #pieces = 0
  #single = true

  /** @param capacity how many requests are expected */
  constructor(capacity: number, read: boolean) {
    this.#read = read
    this.#offset = new Float64Array(capacity)
    this.#length = new Float64Array(capacity)
  }

  get count(): number {
    return this.#data.length
  }

  /** Adds a request; throws if it goes past `size`. */
  add(offset: number, data: Uint8Array | readonly Uint8Array[], at: string, size: number): number {
    const index = this.#data.length
    let length = 0
    if (data instanceof Uint8Array) {
      length = data.length
      this.#pieces++
    } else {
      for (const piece of data) length += piece.length
      this.#pieces += data.length
      this.#single = false
    }
    if (length > size - offset) {
      const prefix = at === '' ? '' : `${at}.`
      throw outOfRange(`${prefix}offset`, `<= ${size} - ${length} (device size - length of the request)`, offset)
    }
    if (index === this.#offset.length) this.#grow()
    this.#offset[index] = offset
    this.#length[index] = length
    this.#data.push(data)
    return length
  }

  #grow(): void {
    const capacity = Math.max(16, this.#offset.length * 2)
    this.#offset = copyInto(new Float64Array(capacity), this.#offset)
    this.#length = copyInto(new Float64Array(capacity), this.#length)
    if (this.#fua !== null) this.#fua = copyInto(new Uint8Array(capacity), this.#fua)
  }

  /** These three are of the request that was added last. */
  setCallback(callback: Callback): void {
    this.#callbacks ??= []
    this.#callbacks[this.#data.length - 1] = callback
  }

  setFua(): void {
    this.#fua ??= new Uint8Array(this.#offset.length)
    this.#fua[this.#data.length - 1] = 1
  }

  setNoMerge(): void {
    this.#noMerge ??= new Uint8Array(this.#offset.length)
    this.#noMerge[this.#data.length - 1] = 1
  }

  finish(requests: readonly object[]): Work {
    const units = { count: this.#data.length, offset: this.#offset, length: this.#length, fua: this.#fua }
    if (this.#single) return this.#work(requests, units, this.#data as Uint8Array[], null)
    const count = this.#data.length
    const pieces = this.#pieces
    const divided: Units = {
      count: 0,
      offset: new Float64Array(pieces),
      length: new Float64Array(pieces),
      fua: this.#fua === null ? null : new Uint8Array(pieces),
    }
    const views: Uint8Array[] = []
    const owner = new Int32Array(pieces)
    for (let i = 0; i < count; i++) {
      const data = this.#data[i]!
      let place = this.#offset[i]!
      for (const piece of data instanceof Uint8Array ? [data] : data) {
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
      count: this.#data.length,
      offset: this.#offset,
      length: this.#length,
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

/** An offset as a number of bytes. @param at what stands before `.offset` in its name; may be empty */
export function readOffset(offset: unknown, at: string): number {
  const name = at === '' ? 'offset' : `${at}.offset`
  if (typeof offset === 'number') {
    if (!Number.isSafeInteger(offset) || offset < 0) {
      throw outOfRange(name, `a whole number >= 0 and <= ${Number.MAX_SAFE_INTEGER}`, offset)
    }
    return offset === 0 ? 0 : offset
  }
  if (typeof offset === 'bigint') {
    if (offset < 0n || offset > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw outOfRange(name, `>= 0 and <= ${Number.MAX_SAFE_INTEGER}`, offset)
    }
    return Number(offset)
  }
  throw invalidType(name, ['number', 'bigint'], offset)
}

/** Memory as one piece, or as a copy of the array of pieces. */
export function readData(data: unknown, at: string, property: string): Uint8Array | readonly Uint8Array[] {
  const name = at === '' ? property : `${at}.${property}`
  if (data instanceof Uint8Array) {
    checkAttached(data, name)
    return data
  }
  if (!Array.isArray(data)) throw invalidType(name, ['Buffer', 'Uint8Array', 'an array of these'], data)
  const pieces = [...(data as unknown[])]
  for (let i = 0; i < pieces.length; i++) {
    const piece = pieces[i]
    if (!(piece instanceof Uint8Array)) throw invalidType(`${name}[${i}]`, ['Buffer', 'Uint8Array'], piece)
    checkAttached(piece, `${name}[${i}]`)
  }
  return pieces as Uint8Array[]
}

export function readFlag(value: unknown, at: string, property: string): boolean {
  if (value === undefined) return false
  if (typeof value !== 'boolean') throw invalidType(at === '' ? property : `${at}.${property}`, 'boolean', value)
  return value
}

/** A detached view has length 0, like an empty one; only making a view of its buffer tells them apart. */
function checkAttached(view: Uint8Array, name: string): void {
  if (view.length > 0) return
  try {
    new Uint8Array(view.buffer, 0, 0)
  } catch {
    throw invalidValue(name, view, 'is detached')
  }
}
