// Memory that the kernel may be shown: `alloc` for users, and a bounded staging pool for what must be copied.
//
// Both lie on SharedArrayBuffers, which can be neither detached nor shrunk, and are registered with the addon as regions, so
// that a vector is three numbers. No byte is ever handed out twice: the memory goes back to the system when the last view of
// a SharedArrayBuffer is gone, in whichever thread that is. The collector is told of the size, since shared memory alone puts
// no pressure on it.
//
// Small pieces are cut from one SharedArrayBuffer, one after another: what is allocated in a row lies in a row, and what is
// written in a row from there goes to the kernel as one vector.

import { constants } from 'node:buffer'
import { constants as system } from 'node:os'
import { BlockError } from './errors.ts'
import { addon } from './native.ts'

/** Page size of every architecture that we run on, or a divisor of it; memory aligned to it is one segment per page. */
export const PAGE_SIZE = 4096

/** A SharedArrayBuffer of ours. */
export interface Region {
  /** Its number in the addon. */
  readonly id: number
  /** Its size in bytes. */
  readonly bytes: number
  /** Where in it an address lies that is a multiple of all alignments in use. */
  readonly boundary: number
}

const regions = new WeakMap<ArrayBufferLike, Region>()
const collected = new FinalizationRegistry<Region>((region) => {
  addon().removeRegion(region.id)
  addon().adjustExternalMemory(-region.bytes)
})

/** The region that a buffer is; `undefined` for memory that is not ours. */
export function regionOf(buffer: ArrayBufferLike): Region | undefined {
  return regions.get(buffer)
}

/** Gives the object back that it is given, so that a class may add its private fields to it. */
class Same {
  constructor(view: Uint8Array) {
    // biome-ignore lint/correctness/noConstructorReturn: that is what it is for
    return view
  }
}

/** Where a view lies. */
export interface Place {
  readonly region: Region
  /** The view's `byteOffset`. */
  readonly start: number
}

/**
 * A view as `alloc` hands it out bears its place in a private field, which nobody else can set or see. To ask a view for its
 * buffer and offset costs more than all else that is done for a piece of a batch: ten times as much as this.
 */
class Marked extends Same {
  readonly #place: Place

  private constructor(view: Uint8Array, place: Place) {
    super(view)
    this.#place = place
  }

  static mark(view: Buffer, region: Region): Buffer {
    new Marked(view, { region, start: view.byteOffset })
    return view
  }

  static placeOf(view: object): Place | undefined {
    return #place in view ? view.#place : undefined
  }
}

/** The place of a view that `alloc` has handed out; `undefined` for any other, also if it lies in one. */
export const placeOf: (view: Uint8Array) => Place | undefined = Marked.placeOf

/** The most that `alignedBuffer` can make. */
export const ALLOC_MAX: number = constants.MAX_LENGTH - PAGE_SIZE

/**
 * Small pieces are cut from slabs. A run of pieces that begins in one and ends in the next is two vectors in two registered
 * buffers, which no fixed operation can name: so whoever wants many pieces gets longer slabs, but none so long that one piece
 * that stays keeps much.
 */
const SLAB_BYTES = { first: 1 << 20, most: 4 << 20 }
const SLAB_PIECE_MAX = 32 << 10

let slab: Buffer | undefined
let slabUsed = 0

/**
 * Zeroed memory of `size` bytes, aligned to `alignment` (a power of two).
 *
 * @param path whom it is for
 * @throws a `BlockError` with `ENOMEM`
 */
export function alignedBuffer(size: number, alignment: number, path: string): Buffer {
  if (size > SLAB_PIECE_MAX || alignment > PAGE_SIZE) return ownBuffer(size, alignment, path)
  if (slab === undefined || slabUsed + size > slab.length) {
    const bytes = slab === undefined ? SLAB_BYTES.first : Math.min(2 * slab.length, SLAB_BYTES.most)
    slab = ownBuffer(bytes, PAGE_SIZE, path)
    slabUsed = 0
  }
  const piece = Marked.mark(slab.subarray(slabUsed, slabUsed + size), placeOf(slab)!.region)
  slabUsed += Math.ceil(size / PAGE_SIZE) * PAGE_SIZE
  return piece
}

/** The same on a SharedArrayBuffer of its own. */
function ownBuffer(size: number, alignment: number, path: string): Buffer {
  const native = addon()
  const bytes = size + alignment
  const shared = sharedMemory(bytes, path)
  const whole = new Uint8Array(shared)
  const boundary = alignment - (native.address(whole) % alignment)
  const id = native.addRegion(whole)
  if (id < 0) throw noMemory(bytes, path)
  const region = { id, bytes, boundary }
  native.adjustExternalMemory(bytes)
  regions.set(shared, region)
  collected.register(shared, region)
  return Marked.mark(Buffer.from(shared, boundary, size), region)
}

/** Zeroed memory that can be neither detached nor shrunk. */
export function sharedMemory(bytes: number, path: string): SharedArrayBuffer {
  try {
    return new SharedArrayBuffer(bytes)
  } catch (cause) {
    throw noMemory(bytes, path, cause)
  }
}

function noMemory(bytes: number, path: string, cause?: unknown): BlockError {
  return new BlockError(system.errno.ENOMEM, { syscall: 'alloc', path, reason: `no memory for ${bytes} bytes`, cause })
}

/** The smallest piece of the staging pool, and the largest. */
const PIECE_MIN = PAGE_SIZE
export const PIECE_MAX: number = 1 << 20
const ORDERS = Math.log2(PIECE_MAX / PIECE_MIN) + 1

/** All staging memory of a thread. The system provides it page by page as it is first used. */
const STAGING_BYTES = 32 << 20

/**
 * The staging pool: memory for a while, from 4 KiB to 1 MiB, in powers of two (a buddy allocator). Bounded: who gets none
 * waits for something in flight to end.
 */
export class Staging {
  readonly bytes: Buffer
  /** The addon's number of the memory. */
  readonly region: number
  /** Per order, units where a free piece may start; an entry counts only while `#state` agrees. */
  readonly #free: number[][] = Array.from({ length: ORDERS }, () => [])
  /** Per 4 KiB unit: order + 1 of the free piece that starts here, or 0. */
  readonly #state = new Uint8Array(STAGING_BYTES / PIECE_MIN)

  /** @param path whom it is for first */
  constructor(path: string) {
    this.bytes = alignedBuffer(STAGING_BYTES, PAGE_SIZE, path)
    this.region = placeOf(this.bytes)!.region.id
    for (let unit = this.#state.length - PIECE_MAX / PIECE_MIN; unit >= 0; unit -= PIECE_MAX / PIECE_MIN) {
      this.#put(unit, ORDERS - 1)
    }
  }

  /** Where `size` bytes (at most 1 MiB) may be staged, from the start of `bytes`; -1 if there is no room now. */
  take(size: number): number {
    const wanted = orderOf(size)
    for (let order = wanted; order < ORDERS; order++) {
      const free = this.#free[order]!
      while (free.length > 0) {
        const unit = free.pop()!
        if (this.#state[unit] !== order + 1) continue
        this.#state[unit] = 0
        for (let half = order - 1; half >= wanted; half--) this.#put(unit + (1 << half), half)
        return unit * PIECE_MIN
      }
    }
    return -1
  }

  /** Gives back what `take(size)` returned. */
  give(start: number, size: number): void {
    let unit = start / PIECE_MIN
    let order = orderOf(size)
    while (order < ORDERS - 1) {
      const buddy = unit ^ (1 << order)
      if (this.#state[buddy] !== order + 1) break
      this.#state[buddy] = 0
      unit = Math.min(unit, buddy)
      order++
    }
    this.#put(unit, order)
  }

  #put(unit: number, order: number): void {
    this.#state[unit] = order + 1
    this.#free[order]!.push(unit)
  }
}

function orderOf(size: number): number {
  return size <= PIECE_MIN ? 0 : 32 - Math.clz32((size - 1) / PIECE_MIN)
}

let staging: Staging | undefined

/**
 * The staging pool of this thread.
 *
 * @param path whom it is for, should it have to be made
 * @throws a `BlockError` if there is no memory for it; the next call tries again
 */
export function threadStaging(path: string): Staging {
  staging ??= new Staging(path)
  return staging
}
