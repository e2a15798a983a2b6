// Results for people, in fio's own style: a line per direction with IOPS and bandwidth, latencies and their percentiles below.

import {
  binsByLimit,
  LATENCY_MS,
  LATENCY_US,
  type Limits,
  PERCENTILES,
  shareOf,
  totalPerJob,
  windowsOf,
} from './buckets.ts'
import type { Histogram } from './histogram.ts'
import {
  bandwidthOf,
  DIRECTIONS,
  type Direction,
  type DirectionResult,
  iopsOf,
  type Result,
  totalOf,
} from './results.ts'
import { binaryWord, countWord, decimalWord, sizeWord } from './units.ts'

type Unit = 'nsec' | 'usec' | 'msec'
const NS_PER: Record<Unit, number> = { nsec: 1, usec: 1e3, msec: 1e6 }

export function formatResult(result: Result): string {
  const { job, setting, failed } = result
  const state = failed === null ? '' : `: ${failed.message}`
  const lines = [
    `${job.name}: rw=${job.rw}, bs=${sizeWord(job.bs)}, iodepth=${job.iodepth}, batch=${job.batch}, jobs=${job.numjobs}, ` +
      `size=${binaryWord(setting.size)}, direct=${setting.direct ? 1 : 0}, merge=${job.merge}` +
      `${job.rateIops === null ? '' : `, rate-iops=${job.rateIops}`}`,
    `engine ${setting.engine.name}: ${setting.engine.reason}`,
    '',
    `${job.name}: (jobs=${job.numjobs}): err=${failed === null ? ' 0' : ` ${failed.code || 1}${state}`}: ${new Date(result.started).toISOString()}`,
  ]
  for (const direction of DIRECTIONS) {
    if (result[direction].requests > 0) lines.push(...formatDirection(result, direction))
  }
  if (result.sync.count > 0) {
    lines.push('  fdatasync:', `    sync (${summary(result.sync, unitOf(result.sync))}`)
    lines.push(...formatPercentiles('sync', result.sync))
  }
  lines.push(...formatCommon(result), '', 'Run status:')
  for (const direction of DIRECTIONS) {
    const of = result[direction]
    if (of.requests === 0) continue
    const run = Math.round(result.elapsed)
    const name = direction.toUpperCase().padStart(7)
    lines.push(`${name}: bw=${bandwidth(of, result.elapsed)}, io=${amount(of.bytes)}, run=${run}-${run}msec`)
  }
  if (result.disk !== null) lines.push('', 'Disk stats (read/write):', formatDisk(result.disk))
  lines.push(...formatNotes(result))
  return lines.join('\n')
}

function formatDirection(result: Result, direction: Direction): string[] {
  const of = result[direction]
  const { elapsed } = result
  const run = `${Math.round(elapsed)}msec`
  const lines = [
    `  ${direction}: IOPS=${countWord(iopsOf(of, elapsed))}, BW=${bandwidth(of, elapsed)}(${binaryWord(of.bytes)}/${run})`,
  ]
  for (const name of ['slat', 'clat', 'lat'] as const) {
    lines.push(`    ${name.padStart(4)} (${summary(of[name], unitOf(of[name]))}`)
  }
  lines.push(...formatPercentiles('clat', of.clat))
  // With a fixed rate the total is not the sum of the two: it counts from when a request was due.
  if (result.job.rateIops !== null) lines.push(...formatPercentiles('lat', of.lat))
  const { bw, iops } = windowsOf(result, direction)
  // A run of less than a window has no samples.
  if (bw.samples === 0) return lines
  const share = totalPerJob(result, direction)
  lines.push(
    `   bw (  KiB/s): ${sampled(bw, 0)}, per=${share.toFixed(2)}%, avg=${bw.mean.toFixed(2)}, stdev=${bw.stddev.toFixed(2)}, samples=${bw.samples}`,
    `   iops        : ${sampled(iops, 0)}, avg=${iops.mean.toFixed(2)}, stdev=${iops.stddev.toFixed(2)}, samples=${iops.samples}`,
  )
  return lines
}

function sampled({ min, max }: { min: number; max: number }, digits: number): string {
  return `min=${min.toFixed(digits)}, max=${max.toFixed(digits)}`
}

/** `1184MiB/s (1242MB/s)`. */
function bandwidth(of: DirectionResult, elapsed: number): string {
  const perSecond = bandwidthOf(of, elapsed)
  return `${binaryWord(perSecond)}/s (${decimalWord(perSecond)}/s)`
}

function amount(bytes: number): string {
  return `${binaryWord(bytes)} (${decimalWord(bytes)})`
}

/** The unit in which the latencies are readable: fio's rule, by the smallest and the mean. */
function unitOf(latency: Histogram): Unit {
  if (latency.min > 2e6 && latency.mean > 1e7) return 'msec'
  return latency.min > 2e3 && latency.mean > 1e4 ? 'usec' : 'nsec'
}

function summary(latency: Histogram, unit: Unit): string {
  const per = NS_PER[unit]
  const whole = (ns: number): string => (ns / per).toFixed(0)
  const fine = (ns: number): string => (ns / per).toFixed(2)
  return `${unit}): min=${whole(latency.min)}, max=${whole(latency.max)}, avg=${fine(latency.mean)}, stdev=${fine(latency.stddev)}`
}

/** Four to a line, as fio does, but with three digits and not only the whole ones. */
function formatPercentiles(name: string, latency: Histogram): string[] {
  const unit = unitOf(latency)
  const cells = PERCENTILES.map((percent) => {
    const value = latency.percentile(percent) / NS_PER[unit]
    const digits = unit === 'nsec' || value >= 1000 ? 0 : value >= 100 ? 1 : 2
    return `${percent.toFixed(2).padStart(5)}th=[${value.toFixed(digits).padStart(6)}]`
  })
  const lines = [`    ${name} percentiles (${unit}):`]
  for (let at = 0; at < cells.length; at += 4) {
    const last = at + 4 >= cells.length
    lines.push(`     | ${cells.slice(at, at + 4).join(', ')}${last ? '' : ','}`)
  }
  return lines
}

function formatCommon(result: Result): string[] {
  const total = totalOf(result)
  const lines: string[] = []
  for (const [unit, limits] of [
    ['usec', LATENCY_US],
    ['msec', LATENCY_MS],
  ] as const) {
    const cells = Object.entries(binsByLimit(total.lat, limits))
      .filter(([, percent]) => percent > 0)
      .map(([limit, percent]) => `${limit}=${Math.max(0.01, percent).toFixed(2)}%`)
    if (cells.length > 0) lines.push(`  lat (${unit})   : ${cells.join(', ')}`)
  }
  const { spent, elapsed } = result
  const cpu = (us: number): string => ((us / 1e3 / Math.max(elapsed, 1)) * 100).toFixed(2)
  lines.push(
    `  cpu          : usr=${cpu(spent.user_us)}%, sys=${cpu(spent.system_us)}%, ctx=${spent.contextSwitches}, majf=${spent.majorFaults}, minf=${spent.minorFaults}`,
    `  IO depths    : ${shares(shareOf(result.depths, 1))}`,
    `     submit    : ${shares(shareOf(result.submits, 0))}`,
    `     complete  : ${shares(shareOf(result.completes, 0))}`,
    `     issued rwts: total=${result.read.requests},${result.write.requests},0,${result.sync.count} short=0,0,0,0 dropped=0,0,0,0`,
  )
  return lines
}

function shares(limits: Limits): string {
  return Object.entries(limits)
    .map(([limit, percent]) => `${limit}=${percent.toFixed(1)}%`)
    .join(', ')
}

function formatDisk({ name, read, write, queue_ms, util }: NonNullable<Result['disk']>): string {
  const both = (of: (direction: typeof read) => number): string => `${of(read)}/${of(write)}`
  return `  ${name}: ios=${both((of) => of.requests)}, merge=${both((of) => of.merges)}, ticks=${both((of) => of.ticks_ms)}, in_queue=${queue_ms}, util=${util.toFixed(2)}%`
}

/** What fio has no words for. */
function formatNotes({
  submissions,
  read,
  write,
  unstarted,
  verified,
  interrupted,
  failed,
  wait,
  job,
}: Result): string[] {
  const lines: string[] = []
  if (submissions !== null) {
    const { readSubmissions, writeSubmissions, flushes, bounced, rmw, resubmitted } = submissions
    const merged = (requests: number, made: number): string =>
      `${requests} requests in ${made} submissions${made > 0 ? ` (${(requests / made).toFixed(2)} each)` : ''}`
    if (read.requests > 0) lines.push(`  reads        : ${merged(read.requests, readSubmissions)}`)
    if (write.requests > 0) lines.push(`  writes       : ${merged(write.requests, writeSubmissions)}`)
    const more = Object.entries({ flushes, bounced, 'read-modify-writes': rmw, resubmitted }).filter(([, n]) => n > 0)
    if (more.length > 0) lines.push(`  besides      : ${more.map(([name, n]) => `${name}=${n}`).join(', ')}`)
  }
  if (job.rateIops !== null) {
    lines.push(`  wait (${summary(wait, unitOf(wait))} from the intended start to the call`)
    if (unstarted > 0) {
      lines.push(
        `  ${unstarted} requests were due and never started: the target can't keep this rate at this depth, and the`,
        '  latencies would be longer still if the run were',
      )
    }
  }
  if (verified !== null) {
    const { bytes, mismatch } = verified
    if (mismatch === null) lines.push(`  verified     : ${binaryWord(bytes)}, every byte is right`)
    else {
      const hex = (byte: number): string => `0x${byte.toString(16).padStart(2, '0')}`
      lines.push(
        `  verified     : first wrong offset ${mismatch.offset}: found ${hex(mismatch.found)} where ${hex(mismatch.expected)} was written`,
      )
    }
  }
  if (failed !== null) lines.push(`  ended by an error: ${failed.message}`)
  if (interrupted) lines.push('  ended early, by a signal')
  return lines.length === 0 ? [] : ['', 'multiwrite:', ...lines]
}
