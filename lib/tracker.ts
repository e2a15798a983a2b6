// Order across calls: which ranges of the device are spoken for, and who must wait for whom.
//
// The device is cut into disjoint intervals. Each remembers the last write that was let in on it and the reads since: its
// frontier. A newcomer waits for the frontier of every interval that it overlaps and then is the frontier itself, so a chain of
// a thousand writes to one block is a thousand links, not half a million. What nobody holds is not in the list.
//
// A hold is one range of one operation. It is entered in the order of calls, counts those that it waits for (`blockers`), and
// on removal reports which of its dependents have nothing left to wait for. Nothing here knows requests, plans or the kernel.
//
// Reads that have ended stay in the lists of their intervals, as dead entries, until most of a list is dead: to look for each
// one in each list would cost, where thousands of reads overlap each other, the third power of their number.
//
// The intervals lie in sorted chunks of bounded size: finding a place is two binary searches, inserting moves one chunk.

/** A claim on a range. `tag` is its owner's. */
export class Hold<T> {
  readonly start: number
  readonly end: number
  readonly read: boolean
  readonly tag: T
  /** Earlier holds that must be removed before this one may go. */
  blockers = 0
  dependents: Hold<T>[] | null = null
  /** The last newcomer that saw this hold: so that it counts once, however many intervals they share. */
  seenBy: Hold<T> | null = null
  /** Its number in the order of entry. */
  order = 0
  isRemoved = false

  constructor(start: number, end: number, read: boolean, tag: T) {
    this.start = start
    this.end = end
    this.read = read
    this.tag = tag
  }
}

interface Interval<T> {
  start: number
  end: number
  writer: Hold<T> | null
  /** Reads let in since, and how many of them have not ended; `null` if none. */
  readers: Hold<T>[] | null
  live: number
  /** Readers are those of a higher order; what was here before the last write is in its list of blockers. */
  since: number
}

/** Longer chunks are halved. Taking an interval out moves half a chunk, finding one halves the list of chunks: 64 did best. */
const CHUNK_MAX = 64

export class Tracker<T> {
  #chunks: Interval<T>[][] = []
  #order = 0

  get empty(): boolean {
    return this.#chunks.length === 0
  }

  /** Whether an operation on the range would have to wait for one that is held now. */
  conflicts(start: number, end: number, read: boolean): boolean {
    for (let at = this.#find(start); at !== null; at = this.#after(at)) {
      const interval = this.#chunks[at.chunk]![at.index]!
      if (interval.start >= end) return false
      if (!read || interval.writer !== null) return true
    }
    return false
  }

  /** The holds that a newcomer on the range would wait for, each once. */
  frontier(newcomer: Hold<T>): Hold<T>[] {
    const found: Hold<T>[] = []
    for (let at = this.#find(newcomer.start); at !== null; at = this.#after(at)) {
      const interval = this.#chunks[at.chunk]![at.index]!
      if (interval.start >= newcomer.end) break
      if (!newcomer.read && interval.readers !== null) {
        for (const reader of interval.readers) if (!reader.isRemoved) note(reader, newcomer, found)
      } else if (interval.writer !== null) {
        note(interval.writer, newcomer, found)
      }
    }
    return found
  }

  /** Enters a hold behind those in `blockers`. */
  add(hold: Hold<T>, blockers: readonly Hold<T>[]): void {
    for (const blocker of blockers) {
      blocker.dependents ??= []
      blocker.dependents.push(hold)
    }
    hold.blockers = blockers.length
    hold.order = ++this.#order
    const at = this.#find(hold.start)
    if (at === null || this.#chunks[at.chunk]![at.index]!.start >= hold.end) {
      this.#insertAlone(hold, at)
    } else if (hold.read) {
      this.#addReader(hold)
    } else {
      const covered = this.#cut(hold.start, hold.end)
      this.#replace(covered, [newInterval(hold, hold.start, hold.end)])
    }
  }

  /** Removes a hold whose operation has ended; dependents that may go now are appended to `released`. */
  remove(hold: Hold<T>, released: Hold<T>[]): void {
    hold.isRemoved = true
    let at = this.#find(hold.start)
    while (at !== null) {
      const interval = this.#chunks[at.chunk]![at.index]!
      if (interval.start >= hold.end) break
      if (interval.writer === hold) interval.writer = null
      if (hold.read && hold.order > interval.since) dropReader(interval)
      if (interval.writer === null && interval.readers === null) {
        at = this.#drop(at)
      } else {
        at = this.#after(at)
      }
    }
    if (hold.dependents === null) return
    for (const dependent of hold.dependents) {
      dependent.blockers--
      if (dependent.blockers === 0) released.push(dependent)
    }
    hold.dependents = null
  }

  /** Enters a hold that meets no other, before the interval at `at`. */
  #insertAlone(hold: Hold<T>, at: Place | null): void {
    const interval = newInterval(hold, hold.start, hold.end)
    if (this.#chunks.length === 0) {
      this.#chunks.push([interval])
      return
    }
    const chunk = at === null ? this.#chunks.length - 1 : at.chunk
    if (at === null) this.#chunks[chunk]!.push(interval)
    else this.#chunks[chunk]!.splice(at.index, 0, interval)
    this.#split(chunk)
  }

  #addReader(hold: Hold<T>): void {
    const covered = this.#cut(hold.start, hold.end)
    const intervals: Interval<T>[] = []
    let place = hold.start
    let at: Place | null = covered
    for (let i = 0; i < covered.count && at !== null; i++, at = this.#after(at)) {
      const interval = this.#chunks[at.chunk]![at.index]!
      if (interval.start > place) intervals.push(newInterval(hold, place, interval.start))
      if (interval.readers === null) {
        interval.readers = [hold]
      } else {
        interval.readers.push(hold)
      }
      interval.live++
      intervals.push(interval)
      place = interval.end
    }
    if (place < hold.end) intervals.push(newInterval(hold, place, hold.end))
    this.#replace(covered, intervals)
  }

  /** Cuts intervals at `start` and `end`, and returns those that lie between: where they begin and how many they are. */
  #cut(start: number, end: number): Place & { count: number } {
    this.#cutAt(start)
    this.#cutAt(end)
    const first = this.#find(start)
    let count = 0
    for (let at = first; at !== null && this.#chunks[at.chunk]![at.index]!.start < end; at = this.#after(at)) count++
    // Not a spread of `first`: with a property added to it, that is the slow way to make an object.
    if (first !== null) return { chunk: first.chunk, index: first.index, count }
    const last = this.#chunks.length - 1
    return last < 0 ? { chunk: 0, index: 0, count } : { chunk: last, index: this.#chunks[last]!.length, count }
  }

  #cutAt(place: number): void {
    const at = this.#find(place)
    if (at === null) return
    const chunk = this.#chunks[at.chunk]!
    const interval = chunk[at.index]!
    if (interval.start >= place) return
    const readers = interval.readers === null ? null : [...interval.readers]
    const { end, writer, live, since } = interval
    chunk.splice(at.index + 1, 0, { start: place, end, writer, readers, live, since })
    interval.end = place
    this.#split(at.chunk)
  }

  /** Puts `intervals` in the place of those in `covered`. */
  #replace(covered: Place & { count: number }, intervals: Interval<T>[]): void {
    let { chunk, index, count } = covered
    if (this.#chunks.length === 0) this.#chunks.push([])
    const first = this.#chunks[chunk]!
    const here = Math.min(count, first.length - index)
    // Not by splice(..., ...intervals): a call has room for some 100,000 arguments only.
    this.#chunks[chunk] = first.slice(0, index).concat(intervals, first.slice(index + here))
    count -= here
    // What is left of the covered ones begins the chunks that follow.
    while (count > 0) {
      const next = this.#chunks[chunk + 1]!
      if (next.length > count) {
        next.splice(0, count)
        break
      }
      count -= next.length
      this.#chunks.splice(chunk + 1, 1)
    }
    this.#split(chunk)
  }

  #split(chunk: number): void {
    let intervals = this.#chunks[chunk]!
    if (intervals.length <= CHUNK_MAX) return
    const parts: Interval<T>[][] = []
    while (intervals.length > CHUNK_MAX) {
      parts.push(intervals.slice(0, CHUNK_MAX / 2))
      intervals = intervals.slice(CHUNK_MAX / 2)
    }
    parts.push(intervals)
    this.#chunks.splice(chunk, 1, ...parts)
  }

  /** The first interval that ends after `place`. */
  #find(place: number): Place | null {
    const chunks = this.#chunks
    let low = 0
    let high = chunks.length
    while (low < high) {
      const middle = (low + high) >>> 1
      const chunk = chunks[middle]!
      if (chunk[chunk.length - 1]!.end > place) high = middle
      else low = middle + 1
    }
    if (low === chunks.length) return null
    const chunk = chunks[low]!
    let first = 0
    let last = chunk.length - 1
    while (first < last) {
      const middle = (first + last) >>> 1
      if (chunk[middle]!.end > place) last = middle
      else first = middle + 1
    }
    return { chunk: low, index: first }
  }

  #after(at: Place): Place | null {
    if (at.index + 1 < this.#chunks[at.chunk]!.length) return { chunk: at.chunk, index: at.index + 1 }
    return at.chunk + 1 < this.#chunks.length ? { chunk: at.chunk + 1, index: 0 } : null
  }

  /** Takes an interval out; returns the place of the one after it. */
  #drop(at: Place): Place | null {
    const chunk = this.#chunks[at.chunk]!
    chunk.splice(at.index, 1)
    if (chunk.length === 0) this.#chunks.splice(at.chunk, 1)
    else if (at.index < chunk.length) return at
    else return at.chunk + 1 < this.#chunks.length ? { chunk: at.chunk + 1, index: 0 } : null
    return at.chunk < this.#chunks.length ? { chunk: at.chunk, index: 0 } : null
  }
}

interface Place {
  chunk: number
  index: number
}

/** A part of a hold where nobody else is. */
function newInterval<T>(hold: Hold<T>, start: number, end: number): Interval<T> {
  if (!hold.read) return { start, end, writer: hold, readers: null, live: 0, since: hold.order }
  return { start, end, writer: null, readers: [hold], live: 1, since: hold.order - 1 }
}

/** Takes in that a reader of an interval has ended. */
function dropReader<T>(interval: Interval<T>): void {
  interval.live--
  if (interval.live === 0) interval.readers = null
  else if (interval.readers!.length > 2 * interval.live) {
    interval.readers = interval.readers!.filter((reader) => !reader.isRemoved)
  }
}

function note<T>(hold: Hold<T>, newcomer: Hold<T>, found: Hold<T>[]): void {
  if (hold.seenBy === newcomer) return
  hold.seenBy = newcomer
  found.push(hold)
}
