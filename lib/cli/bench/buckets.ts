// The tables that fio divides its results into, for people and for JSON alike.

import type { Histogram } from './histogram.ts'
import { type Direction, type Result, totalOf } from './results.ts'

/** fio's list of percentiles. */
export const PERCENTILES = [1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99] as const

/** Percentages by limit, in order. */
export type Limits = Record<string, number>

interface Table {
  /** ns of one unit of the limits. */
  unit: number
  limits: readonly number[]
  /** ns; what lies below belongs to another table. */
  from: number
  /** Whether the last field takes all that is longer. */
  open: boolean
}

const STEPS = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000] as const
export const LATENCY_NS: Table = { unit: 1, limits: STEPS, from: 0, open: false }
export const LATENCY_US: Table = { unit: 1e3, limits: STEPS, from: 1e3, open: false }
export const LATENCY_MS: Table = { unit: 1e6, limits: [...STEPS, 2000], from: 1e6, open: true }

/** How many per cent of the latencies lie below each limit and not below the one before. */
export function binsByLimit(latency: Histogram, { unit, limits, from, open }: Table): Limits {
  const counts = new Array<number>(limits.length + 1).fill(0)
  for (const { value, count } of latency.bins()) {
    if (value < from) continue
    const index = limits.findIndex((limit) => value < limit * unit)
    counts[index < 0 ? limits.length : index]! += count
  }
  const names = limits.map(String)
  if (open) names.push(`>=${limits.at(-1)}`)
  return Object.fromEntries(names.map((name, i) => [name, percentOf(counts[i]!, latency.count)]))
}

/** Depths and batch sizes: per cent by powers of two. `least` 1 for depths (1, 2, 4 ...), 0 for sizes (0, 4, 8 ...). */
export function shareOf(counts: Float64Array, least: 0 | 1): Limits {
  const limits = least === 1 ? [1, 2, 4, 8, 16, 32] : [0, 4, 8, 16, 32, 64]
  const sums = new Array<number>(limits.length + 1).fill(0)
  let total = 0
  for (const [size, count] of counts.entries()) {
    total += count
    if (least === 1) {
      // A depth belongs to the power of two that it reaches.
      const index = limits.findLastIndex((limit) => size >= limit)
      sums[size >= 64 ? limits.length : Math.max(0, index)]! += count
    } else {
      const index = limits.findIndex((limit) => size <= limit)
      sums[index < 0 ? limits.length : index]! += count
    }
  }
  const names = [...limits.map(String), '>=64']
  return Object.fromEntries(names.map((name, i) => [name, percentOf(sums[i]!, total)]))
}

function percentOf(part: number, all: number): number {
  return all === 0 ? 0 : (100 * part) / all
}

export interface Sampled {
  min: number
  max: number
  mean: number
  stddev: number
  samples: number
}

/** fio's averaging window. */
const WINDOW_MS = 500

/** Bandwidth in KiB/s and requests per second, over windows of half a second. */
export function windowsOf({ series, elapsed }: Result, direction: Direction): { bw: Sampled; iops: Sampled } {
  const { window_ms, sums } = series.windows(WINDOW_MS, elapsed)
  const read = direction === 'read'
  const bytes = sums.map((sum) => (read ? sum.readBytes : sum.writtenBytes))
  const requests = sums.map((sum) => (read ? sum.reads : sum.writes))
  return {
    bw: sampledOf(bytes.map((each) => ((each / 1024) * 1e3) / window_ms)),
    iops: sampledOf(requests.map((each) => (each * 1e3) / window_ms)),
  }
}

function sampledOf(values: readonly number[]): Sampled {
  if (values.length === 0) return { min: 0, max: 0, mean: 0, stddev: 0, samples: 0 }
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length
  return {
    min: Math.min(...values),
    max: Math.max(...values),
    mean,
    stddev: Math.sqrt(variance),
    samples: values.length,
  }
}

/** A direction's share of all bytes, in per cent. */
export function totalPerJob(result: Result, direction: Direction): number {
  return percentOf(result[direction].bytes, totalOf(result).bytes)
}
