// Holds that overlap nobody, in a sorted list: where a range would lie, whom it would meet there, in and out.
//
// The list is cut into chunks of bounded size. Finding a place is two binary searches; putting a hold in moves what lies behind
// it in one chunk. What is moved and searched are numbers in typed arrays: to move the holds themselves would cost the collector
// a note for each that is young, which most are.

import type { Hold } from './overlaps.ts'

const CHUNK_MAX = 64

const PLACES = Uint8Array.from({ length: CHUNK_MAX }, (_, place) => place)

class Chunk<T> {
  count = 0
  /** Where the holds end, ascending. */
  readonly ends = new Float64Array(CHUNK_MAX)
  /** Where in `holds` each of them lies; behind those that are in use, the places that are free. */
  readonly places = PLACES.slice()
  readonly holds = new Array<Hold<T> | null>(CHUNK_MAX).fill(null)

  at(index: number): Hold<T> {
    return this.holds[this.places[index]!]!
  }

  insert(index: number, hold: Hold<T>): void {
    const { ends, places, count } = this
    const place = places[count]!
    for (let i = count; i > index; i--) {
      ends[i] = ends[i - 1]!
      places[i] = places[i - 1]!
    }
    ends[index] = hold.end
    places[index] = place
    this.holds[place] = hold
    this.count = count + 1
  }

  drop(index: number): void {
    const { ends, places } = this
    const place = places[index]!
    const last = this.count - 1
    for (let i = index; i < last; i++) {
      ends[i] = ends[i + 1]!
      places[i] = places[i + 1]!
    }
    places[last] = place
    this.holds[place] = null
    this.count = last
  }

  /** Takes the upper half out. */
  halve(): Chunk<T> {
    const upper = new Chunk<T>()
    const half = this.count >> 1
    for (let i = half; i < this.count; i++) {
      upper.insert(i - half, this.at(i))
      this.holds[this.places[i]!] = null
    }
    this.count = half
    return upper
  }

  /** The first place whose hold ends after `place`; `count` if none does. */
  firstEndingAfter(place: number): number {
    const { ends } = this
    let low = 0
    let high = this.count
    while (low < high) {
      const middle = (low + high) >>> 1
      if (ends[middle]! > place) high = middle
      else low = middle + 1
    }
    return low
  }
}

export class Apart<T> {
  /** None of them is empty, unless it is the only one. */
  readonly #chunks: Chunk<T>[] = []
  #count = 0
  /** What `find` found: the place `#index` of the chunk `#chunk`. */
  #chunk = 0
  #index = 0

  get count(): number {
    return this.#count
  }

  /** The first hold that ends after `place`. */
  find(place: number): Hold<T> | null {
    if (this.#count === 0) return null
    const chunks = this.#chunks
    let low = 0
    let high = chunks.length - 1
    while (low < high) {
      const middle = (low + high) >>> 1
      const { ends, count } = chunks[middle]!
      if (ends[count - 1]! > place) high = middle
      else low = middle + 1
    }
    this.#chunk = low
    const chunk = chunks[low]!
    this.#index = chunk.firstEndingAfter(place)
    return this.#index === chunk.count ? null : chunk.at(this.#index)
  }

  /** The hold after the one that was found last. */
  next(): Hold<T> | null {
    this.#index++
    if (this.#index === this.#chunks[this.#chunk]!.count) {
      if (this.#chunk === this.#chunks.length - 1) return null
      this.#chunk++
      this.#index = 0
    }
    return this.#chunks[this.#chunk]!.at(this.#index)
  }

  /** Puts a hold where `find` has just looked for its start: before what was found, or behind all. */
  insert(hold: Hold<T>): void {
    const chunks = this.#chunks
    if (this.#count === 0) {
      if (chunks.length === 0) chunks.push(new Chunk())
      this.#chunk = 0
      this.#index = 0
    }
    this.#count++
    if (chunks[this.#chunk]!.count === CHUNK_MAX) this.#makeRoom()
    chunks[this.#chunk]!.insert(this.#index, hold)
  }

  /** Cuts the chunk in two that has no room for another hold: in half, or where all come in ascending order, behind its end. */
  #makeRoom(): void {
    const chunk = this.#chunks[this.#chunk]!
    const atEnd = this.#index === chunk.count
    const upper = atEnd ? new Chunk<T>() : chunk.halve()
    this.#chunks.splice(this.#chunk + 1, 0, upper)
    if (this.#index <= chunk.count && !atEnd) return
    this.#chunk++
    this.#index -= chunk.count
  }

  /** Takes out the hold that was found last. */
  drop(): void {
    const chunk = this.#chunks[this.#chunk]!
    chunk.drop(this.#index)
    this.#count--
    if (chunk.count === 0 && this.#chunks.length > 1) this.#chunks.splice(this.#chunk, 1)
  }
}
