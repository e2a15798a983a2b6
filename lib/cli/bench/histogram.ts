// Latencies, counted in buckets whose width grows with the value: no value is kept, and every percentile is right to three
// digits, however long the run.
//
// Values below 2048 ns have a bucket each. Above, every power of two is divided into 1024 buckets, so a bucket is at most
// 1/1024 of its values wide, and the middle of it, which is told, is within 1/2048 of them. This is the division of
// HdrHistogram for three digits.

const EXACT_BITS = 11
const PER_OCTAVE = 2 ** (EXACT_BITS - 1)
/** Values from 2 ** 43 ns on, over two hours, share the last bucket. */
const TOP_BITS = 43
const TOP = 2 ** TOP_BITS
const BUCKETS = (TOP_BITS - EXACT_BITS + 2) * PER_OCTAVE
/** Up to here a value fits into the integers that bit operations take. */
const SMALL_BITS = 31
const SMALL = 2 ** SMALL_BITS

/** The bucket of a value. The integers of an octave are divided by a power of two, which leaves `PER_OCTAVE` of them. */
export function bucketOf(ns: number): number {
  if (ns < SMALL) {
    const whole = ns < 0 ? 0 : ns | 0
    const shift = Math.max(0, 32 - EXACT_BITS - Math.clz32(whole))
    return shift * PER_OCTAVE + (whole >> shift)
  }
  if (ns >= TOP) return BUCKETS - 1
  const above = SMALL_BITS - Math.clz32(ns / SMALL)
  const shift = SMALL_BITS - EXACT_BITS + 1 + above
  return shift * PER_OCTAVE + Math.floor(ns / 2 ** shift)
}

/** The smallest value of a bucket, and how many whole values it holds. */
export function rangeOf(bucket: number): { start: number; width: number } {
  if (bucket < 2 * PER_OCTAVE) return { start: bucket, width: 1 }
  const shift = Math.floor(bucket / PER_OCTAVE) - 1
  const width = 2 ** shift
  return { start: (bucket - shift * PER_OCTAVE) * width, width }
}

/** A histogram as it is sent to another thread. */
export interface HistogramData {
  counts: Float64Array
  sum: number
  sumOfSquares: number
  min: number
  max: number
}

/** A bucket that holds something. */
export interface Bin {
  /** ns; the middle of the bucket. */
  value: number
  start: number
  width: number
  count: number
}

/** Latencies in nanoseconds. */
export class Histogram {
  readonly #counts: Float64Array
  #sum: number
  #sumOfSquares: number
  #min: number
  #max: number
  #count: number

  constructor(data?: HistogramData) {
    this.#counts = data?.counts ?? new Float64Array(BUCKETS)
    this.#sum = data?.sum ?? 0
    this.#sumOfSquares = data?.sumOfSquares ?? 0
    this.#min = data?.min ?? Number.POSITIVE_INFINITY
    this.#max = data?.max ?? 0
    this.#count = this.#counts.reduce((sum, count) => sum + count, 0)
  }

  record(ns: number): void {
    this.#counts[bucketOf(ns)]!++
    this.#count++
    this.#sum += ns
    this.#sumOfSquares += ns * ns
    if (ns < this.#min) this.#min = ns
    if (ns > this.#max) this.#max = ns
  }

  add(other: Histogram): void {
    for (let bucket = 0; bucket < BUCKETS; bucket++) this.#counts[bucket]! += other.#counts[bucket]!
    this.#count += other.#count
    this.#sum += other.#sum
    this.#sumOfSquares += other.#sumOfSquares
    this.#min = Math.min(this.#min, other.#min)
    this.#max = Math.max(this.#max, other.#max)
  }

  get data(): HistogramData {
    return {
      counts: this.#counts,
      sum: this.#sum,
      sumOfSquares: this.#sumOfSquares,
      min: this.#min,
      max: this.#max,
    }
  }

  get count(): number {
    return this.#count
  }

  /** 0 where nothing was recorded, as the others are. */
  get min(): number {
    return this.#count === 0 ? 0 : this.#min
  }

  get max(): number {
    return this.#max
  }

  get mean(): number {
    return this.#count === 0 ? 0 : this.#sum / this.#count
  }

  get stddev(): number {
    if (this.#count === 0) return 0
    return Math.sqrt(Math.max(0, this.#sumOfSquares / this.#count - this.mean ** 2))
  }

  /** The value that `percent` per cent of all are not above; 0 where nothing was recorded. */
  percentile(percent: number): number {
    // 99.9 is no double: without the small part, the 999th of 1000 would be the 1000th.
    const rank = Math.max(1, Math.ceil((percent * this.#count) / 100 - 1e-6))
    let seen = 0
    for (const bin of this.bins()) {
      seen += bin.count
      if (seen >= rank) return Math.min(this.#max, Math.max(this.#min, bin.value))
    }
    return this.#max
  }

  /** The buckets that hold something, in order. */
  bins(): Bin[] {
    const bins: Bin[] = []
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      const count = this.#counts[bucket]!
      if (count === 0) continue
      const { start, width } = rangeOf(bucket)
      bins.push({ value: start + (width - 1) / 2, start, width, count })
    }
    return bins
  }
}
