// What came out of a load: per direction the three latencies and the amounts, what the process spent, and how deep the queue
// was. Each thread makes a `Measured`; several are added up into one.

import { Histogram, type HistogramData } from './histogram.ts'
import type { Job } from './job.ts'
import type { Mismatch } from './pattern.ts'
import { Series, type SeriesData } from './series.ts'
import type { Submissions } from './target.ts'

export const DIRECTIONS = ['read', 'write'] as const
export type Direction = (typeof DIRECTIONS)[number]

/** Latencies of one direction in nanoseconds. */
export interface DirectionData {
  bytes: number
  slat: HistogramData
  clat: HistogramData
  lat: HistogramData
}

/** What the process has spent, its threads and the kernel's workers for it included. */
export interface Spent {
  /** Microseconds of CPU time. */
  user_us: number
  system_us: number
  contextSwitches: number
  majorFaults: number
  minorFaults: number
}

export interface Failed {
  message: string
  code: string
}

/** What one thread has measured, as it is sent to the main one. */
export interface Measured {
  read: DirectionData
  write: DirectionData
  /** Flushes. */
  sync: HistogramData
  /** With a fixed rate: from the intended start to the call. */
  wait: HistogramData
  series: SeriesData
  elapsed_ms: number
  spent: Spent
  /** Index: requests in flight after a call, requests of a call, requests answered by one wake-up; value: how often. */
  depths: Float64Array
  submits: Float64Array
  completes: Float64Array
  submissions: Submissions | null
  /** With a fixed rate: requests that were due when the time was over, and never started. */
  unstarted: number
  failed: Failed | null
  verified: Verified | null
}

/** What comparing the contents has come to. */
export interface Verified {
  bytes: number
  mismatch: Mismatch | null
}

/** Results of one direction. */
export interface DirectionResult {
  requests: number
  bytes: number
  slat: Histogram
  clat: Histogram
  lat: Histogram
}

/** What the target is, and how it was driven. */
export interface Setting {
  /** Bytes used. */
  size: number
  blockDevice: boolean
  direct: boolean
  engine: { name: string; reason: string }
}

/** What the kernel counted for the disk, from its /sys/block/NAME/stat. */
export interface DiskUse {
  name: string
  read: { requests: number; merges: number; sectors: number; ticks_ms: number }
  write: { requests: number; merges: number; sectors: number; ticks_ms: number }
  queue_ms: number
  /** Per cent of the time in which it had something to do. */
  util: number
}

/** A load and all that came out of it. */
export interface Result {
  job: Job
  setting: Setting
  /** Wall clock, ms. */
  started: number
  /** ms. */
  elapsed: number
  read: DirectionResult
  write: DirectionResult
  sync: Histogram
  wait: Histogram
  series: Series
  spent: Spent
  depths: Float64Array
  submits: Float64Array
  completes: Float64Array
  submissions: Submissions | null
  unstarted: number
  failed: Failed | null
  verified: Verified | null
  disk: DiskUse | null
  /** Ended before its time. */
  interrupted: boolean
}

/** Adds up what threads have measured at the same time. */
export function sumOf(
  measured: readonly Measured[],
): Omit<Result, 'job' | 'setting' | 'started' | 'disk' | 'interrupted'> {
  const series = new Series()
  for (const each of measured) series.add(new Series(each.series))
  const submissions = measured.map((each) => each.submissions).filter((each) => each !== null)
  return {
    elapsed: Math.max(...measured.map((each) => each.elapsed_ms)),
    read: directionOf(measured.map((each) => each.read)),
    write: directionOf(measured.map((each) => each.write)),
    sync: histogramOf(measured.map((each) => each.sync)),
    wait: histogramOf(measured.map((each) => each.wait)),
    series,
    // Each thread has asked for the whole process.
    spent: measured[0]!.spent,
    depths: countsOf(measured.map((each) => each.depths)),
    submits: countsOf(measured.map((each) => each.submits)),
    completes: countsOf(measured.map((each) => each.completes)),
    submissions: submissions.length === 0 ? null : submissions.reduce(addSubmissions),
    unstarted: measured.reduce((sum, each) => sum + each.unstarted, 0),
    failed: measured.find((each) => each.failed !== null)?.failed ?? null,
    verified: measured.map((each) => each.verified).reduce(addVerified, null),
  }
}

function directionOf(data: readonly DirectionData[]): DirectionResult {
  const [slat, clat, lat] = (['slat', 'clat', 'lat'] as const).map((name) =>
    histogramOf(data.map((each) => each[name])),
  )
  return {
    requests: lat!.count,
    bytes: data.reduce((sum, each) => sum + each.bytes, 0),
    slat: slat!,
    clat: clat!,
    lat: lat!,
  }
}

export function histogramOf(data: readonly HistogramData[]): Histogram {
  const [first, ...others] = data
  const sum = new Histogram(first)
  for (const each of others) sum.add(new Histogram(each))
  return sum
}

function countsOf(counts: readonly Float64Array[]): Float64Array {
  const sum = new Float64Array(Math.max(...counts.map((each) => each.length)))
  for (const each of counts) for (const [index, count] of each.entries()) sum[index]! += count
  return sum
}

export function addSubmissions(a: Submissions, b: Submissions): Submissions {
  return combine(a, b, (x, y) => x + y)
}

export function lessSubmissions(a: Submissions, b: Submissions): Submissions {
  return combine(a, b, (x, y) => x - y)
}

function combine(a: Submissions, b: Submissions, how: (x: number, y: number) => number): Submissions {
  return {
    readSubmissions: how(a.readSubmissions, b.readSubmissions),
    writeSubmissions: how(a.writeSubmissions, b.writeSubmissions),
    flushes: how(a.flushes, b.flushes),
    bounced: how(a.bounced, b.bounced),
    rmw: how(a.rmw, b.rmw),
    resubmitted: how(a.resubmitted, b.resubmitted),
  }
}

function addVerified(a: Verified | null, b: Verified | null): Verified | null {
  if (a === null || b === null) return a ?? b
  const first = [a.mismatch, b.mismatch].filter((each) => each !== null).sort((x, y) => x.offset - y.offset)[0]
  return { bytes: a.bytes + b.bytes, mismatch: first ?? null }
}

/** Requests a second. */
export function iopsOf({ requests }: { requests: number }, elapsed: number): number {
  return elapsed === 0 ? 0 : (requests / elapsed) * 1e3
}

/** Bytes a second. */
export function bandwidthOf({ bytes }: { bytes: number }, elapsed: number): number {
  return elapsed === 0 ? 0 : (bytes / elapsed) * 1e3
}

/** Reads and writes together. */
export function totalOf({ read, write }: Result): DirectionResult {
  const both = (name: 'slat' | 'clat' | 'lat'): Histogram => {
    const sum = new Histogram()
    sum.add(read[name])
    sum.add(write[name])
    return sum
  }
  return {
    requests: read.requests + write.requests,
    bytes: read.bytes + write.bytes,
    slat: both('slat'),
    clat: both('clat'),
    lat: both('lat'),
  }
}

/** What one of them did in one round. */
export interface Round {
  iops: number
  bytesPerSecond: number
  mean_ns: number
  p50_ns: number
  p99_ns: number
  /** CPU time per request in microseconds. */
  user_us: number
  system_us: number
}
