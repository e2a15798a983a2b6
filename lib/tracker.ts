// Order across calls: which ranges of the device are spoken for, and who must wait for whom.
//
// A hold is one range of one operation. It is entered in the order of calls, waits for exactly those earlier ones that it
// conflicts with (they overlap, and one of them writes), and may go when the last of these has been removed. On removal a hold
// reports which others have nothing left to wait for. Nothing here knows requests, plans or the kernel.
//
// Most holds overlap nobody. They lie in one sorted list, in chunks of bounded size: finding a place is two binary searches,
// inserting moves one chunk. When a newcomer overlaps some of them, they go over to `overlaps.ts` with it, each once in its
// life, which is where waiting is done, at a logarithmic cost for a hold whatever the others are. So what is in the list
// overlaps nobody, neither there nor in the list, and has nobody waiting for it.

import { Hold, Overlaps } from './overlaps.ts'

export { Hold }

/** Longer chunks are halved. Taking a hold out moves half a chunk, finding one halves the list of chunks: 64 did best. */
const CHUNK_MAX = 64

export class Tracker<T> {
  #chunks: Hold<T>[][] = []
  readonly #overlaps = new Overlaps<T>()
  #order = 0
  /** What `#find` found: the hold is `#chunks[#chunk][#index]`. */
  #chunk = 0
  #index = 0

  get empty(): boolean {
    return this.#chunks.length === 0 && this.#overlaps.count === 0
  }

  /** Whether an operation on the range would have to wait for one that is held now. */
  conflicts(start: number, end: number, read: boolean): boolean {
    for (let hold = this.#find(start); hold !== null && hold.start < end; hold = this.#next()) {
      if (!read || !hold.read) return true
    }
    return this.#overlaps.conflicts(start, end, read)
  }

  /** All holds that meet a range, in no order. Looks at each one that overlaps any other. */
  overlapping(start: number, end: number): Hold<T>[] {
    const found = this.#overlaps.overlapping(start, end)
    for (let hold = this.#find(start); hold !== null && hold.start < end; hold = this.#next()) found.push(hold)
    return found
  }

  /** Enters a hold that waits for nobody, whomever it overlaps. */
  add(hold: Hold<T>): void {
    this.#add(hold, false)
  }

  /** Enters a hold behind all those that are in its way; it may go if then its `blockers` is 0. */
  enter(hold: Hold<T>): void {
    this.#add(hold, true)
  }

  /** Has a hold wait for those that are in its way now, without being in anybody's way itself. It is not to be removed. */
  wait(hold: Hold<T>): void {
    hold.order = ++this.#order
    this.#bringOver(hold.start, hold.end)
    this.#overlaps.wait(hold)
  }

  /** Removes a hold whose operation has ended; holds that may go now are appended to `released`. */
  remove(hold: Hold<T>, released: Hold<T>[]): void {
    if (hold.entry !== null) {
      this.#overlaps.remove(hold, released)
    } else {
      this.#find(hold.start)
      this.#drop()
    }
  }

  #add(hold: Hold<T>, waits: boolean): void {
    hold.order = ++this.#order
    const next = this.#find(hold.start)
    if (next !== null && next.start < hold.end) {
      this.#bringOver(hold.start, hold.end)
    } else if (!this.#overlaps.conflicts(hold.start, hold.end, false)) {
      this.#insert(hold)
      return
    }
    this.#overlaps.add(hold, waits)
  }

  /** Those of the list that a range meets are overlapped from now on. */
  #bringOver(start: number, end: number): void {
    for (let hold = this.#find(start); hold !== null && hold.start < end; hold = this.#find(start)) {
      this.#drop()
      this.#overlaps.add(hold, false)
    }
  }

  /** The first hold of the list that ends after `place`. */
  #find(place: number): Hold<T> | null {
    const chunks = this.#chunks
    let low = 0
    let high = chunks.length
    while (low < high) {
      const middle = (low + high) >>> 1
      const chunk = chunks[middle]!
      if (chunk[chunk.length - 1]!.end > place) high = middle
      else low = middle + 1
    }
    this.#chunk = low
    this.#index = 0
    if (low === chunks.length) return null
    const chunk = chunks[low]!
    let first = 0
    let last = chunk.length - 1
    while (first < last) {
      const middle = (first + last) >>> 1
      if (chunk[middle]!.end > place) last = middle
      else first = middle + 1
    }
    this.#index = first
    return chunk[first]!
  }

  /** The hold of the list after the one that was found last. */
  #next(): Hold<T> | null {
    this.#index++
    if (this.#index === this.#chunks[this.#chunk]!.length) {
      this.#chunk++
      this.#index = 0
    }
    return this.#chunk === this.#chunks.length ? null : this.#chunks[this.#chunk]![this.#index]!
  }

  /** Puts a hold before the one that was found last. */
  #insert(hold: Hold<T>): void {
    const chunks = this.#chunks
    if (chunks.length === 0) {
      chunks.push([hold])
      return
    }
    // Behind all others.
    if (this.#chunk === chunks.length) {
      this.#chunk--
      this.#index = chunks[this.#chunk]!.length
    }
    const chunk = chunks[this.#chunk]!
    // Not `splice`: for the few that are moved, its arrays cost more.
    chunk.push(hold)
    for (let i = chunk.length - 1; i > this.#index; i--) chunk[i] = chunk[i - 1]!
    chunk[this.#index] = hold
    if (chunk.length > CHUNK_MAX) chunks.splice(this.#chunk + 1, 0, chunk.splice(CHUNK_MAX / 2))
  }

  /** Takes out the hold that was found last. */
  #drop(): void {
    const chunk = this.#chunks[this.#chunk]!
    if (chunk.length === 1) {
      this.#chunks.splice(this.#chunk, 1)
      return
    }
    const last = chunk.length - 1
    for (let i = this.#index; i < last; i++) chunk[i] = chunk[i + 1]!
    chunk.pop()
  }
}
