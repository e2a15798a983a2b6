// What happened when: counts and latencies per interval of the run. The intervals are short at first; when they get too many,
// two become one, so a run of any length takes the same memory.
//
// Their latencies are coarse (a sixteenth of an octave), as they are only drawn; what is told in figures comes from the whole
// run's histograms.

const PER_OCTAVE = 16
const OCTAVES = 43
const BUCKETS = PER_OCTAVE * OCTAVES
const FIRST_INTERVAL_MS = 50
const INTERVALS_MAX = 480

/** An interval, as it is sent to another thread. */
export interface Interval {
  reads: number
  writes: number
  readBytes: number
  writtenBytes: number
  max: number
  counts: Uint32Array
}

export interface SeriesData {
  interval_ms: number
  intervals: Interval[]
}

function newInterval(): Interval {
  return { reads: 0, writes: 0, readBytes: 0, writtenBytes: 0, max: 0, counts: new Uint32Array(BUCKETS) }
}

function addTo(sum: Interval, other: Interval): void {
  sum.reads += other.reads
  sum.writes += other.writes
  sum.readBytes += other.readBytes
  sum.writtenBytes += other.writtenBytes
  sum.max = Math.max(sum.max, other.max)
  for (let bucket = 0; bucket < BUCKETS; bucket++) sum.counts[bucket]! += other.counts[bucket]!
}

export class Series {
  #interval_ms: number
  #intervals: Interval[]

  constructor(data?: SeriesData) {
    this.#interval_ms = data?.interval_ms ?? FIRST_INTERVAL_MS
    this.#intervals = data?.intervals ?? []
  }

  get data(): SeriesData {
    return { interval_ms: this.#interval_ms, intervals: this.#intervals }
  }

  /** @param at_ms since the start of what counts */
  record(at_ms: number, read: boolean, bytes: number, latency_ns: number): void {
    let index = Math.floor(at_ms / this.#interval_ms)
    while (index >= INTERVALS_MAX) {
      this.#coarsen()
      index = Math.floor(at_ms / this.#interval_ms)
    }
    while (this.#intervals.length <= index) this.#intervals.push(newInterval())
    const interval = this.#intervals[index]!
    if (read) {
      interval.reads++
      interval.readBytes += bytes
    } else {
      interval.writes++
      interval.writtenBytes += bytes
    }
    if (latency_ns > interval.max) interval.max = latency_ns
    const bucket = latency_ns < 1 ? 0 : Math.floor(Math.log2(latency_ns) * PER_OCTAVE)
    interval.counts[bucket < BUCKETS ? bucket : BUCKETS - 1]!++
  }

  /** Adds what another thread did at the same time. */
  add(other: Series): void {
    while (this.#interval_ms < other.#interval_ms) this.#coarsen()
    while (other.#interval_ms < this.#interval_ms) other.#coarsen()
    for (const [index, interval] of other.#intervals.entries()) {
      if (index >= this.#intervals.length) this.#intervals.push(newInterval())
      addTo(this.#intervals[index]!, interval)
    }
  }

  #coarsen(): void {
    const pairs: Interval[] = []
    for (const [index, interval] of this.#intervals.entries()) {
      if (index % 2 === 0) pairs.push(interval)
      else addTo(pairs[index >> 1]!, interval)
    }
    this.#intervals = pairs
    this.#interval_ms *= 2
  }

  /** Sums over windows of at least so many milliseconds; a last one that is not whole is left out. */
  windows(length_ms: number, elapsed_ms: number): { window_ms: number; sums: Interval[] } {
    const each = Math.max(1, Math.round(length_ms / this.#interval_ms))
    const window_ms = each * this.#interval_ms
    const sums: Interval[] = []
    for (let first = 0; (first / each + 1) * window_ms <= elapsed_ms; first += each) {
      const sum = newInterval()
      for (const interval of this.#intervals.slice(first, first + each)) addTo(sum, interval)
      sums.push(sum)
    }
    return { window_ms, sums }
  }
}

/** A percentile of an interval's latencies in nanoseconds; 0 where there were none. */
export function percentileOf({ counts, max }: Interval, percent: number): number {
  let total = 0
  for (const count of counts) total += count
  const rank = Math.max(1, Math.ceil((percent / 100) * total))
  let seen = 0
  for (let bucket = 0; bucket < BUCKETS; bucket++) {
    seen += counts[bucket]!
    if (total > 0 && seen >= rank) return Math.min(max, 2 ** ((bucket + 0.5) / PER_OCTAVE))
  }
  return 0
}
