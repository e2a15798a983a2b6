// The blocks of a target and where they end: what direct I/O can move, what a write may have to rewrite around its bytes, and
// what must not happen beside it.

import { overBlock } from './planner/submissions.ts'

/** The largest piece of the page cache (a huge page). */
const FOLIO_MAX = 2 << 20

/** Where the piece of the page cache may begin that has a place in it. */
export function folioStart(place: number): number {
  return place - overBlock(place, FOLIO_MAX)
}

/** A range of the device, in bytes. */
export interface Span {
  start: number
  end: number
}

export class Blocks {
  /** Bytes; 1 for buffered I/O. */
  readonly alignment: number
  /** Whether the end may lie inside a block: a file opened with O_DIRECT, which has a second way to its last bytes. */
  readonly #mayEndInside: boolean
  /** The size that the target has now. */
  #size = 0
  /** Where the partial block at the end begins; Infinity if there is none. */
  #tail = Number.POSITIVE_INFINITY

  /** Whether a write past the end would make the target longer: a file. */
  readonly growsByWriting: boolean

  constructor(alignment: number, mayEndInside: boolean, growsByWriting: boolean) {
    this.alignment = alignment
    this.growsByWriting = growsByWriting
    this.#mayEndInside = mayEndInside
  }

  get size(): number {
    return this.#size
  }

  set size(size: number) {
    this.#size = size
    const over = overBlock(size, this.alignment)
    this.#tail = over === 0 || !this.#mayEndInside ? Number.POSITIVE_INFINITY : size - over
  }

  get tail(): number {
    return this.#tail
  }

  /** The whole blocks around a range: what a write may rewrite. */
  around(start: number, end: number): Span {
    const { alignment } = this
    if (alignment === 1) return { start, end }
    const over = overBlock(end, alignment)
    return { start: start - overBlock(start, alignment), end: over === 0 ? end : end - over + alignment }
  }

  /**
   * What an operation on a range keeps direct writes away from. At the end of a file it may dirty a folio of the page cache;
   * the kernel can't drop a dirty folio below a direct write, and reports that as lost data with the next flush.
   */
  aroundForKernel(start: number, end: number): Span {
    const wide = this.around(start, end)
    if (!this.#mayEndInside || end < this.#size) return wide
    return { start: folioStart(start), end: wide.end }
  }
}
