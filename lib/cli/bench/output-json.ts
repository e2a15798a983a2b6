// Results in fio's own JSON schema (that of `fio --output-format=json+`), so that what reads fio's results reads these. What
// fio has no field for stands under one key of our own, `multiwrite`, in each job and at the top.
//
// A job here is a group of jobs there (`--group_reporting`). `bins` are in nanoseconds, by the middle of a bucket, as there.

import { constants } from 'node:os'
import {
  binsByLimit,
  LATENCY_MS,
  LATENCY_NS,
  LATENCY_US,
  PERCENTILES,
  type Sampled,
  shareOf,
  totalPerJob,
  windowsOf,
} from './buckets.ts'
import type { Comparison } from './compare.ts'
import type { Histogram } from './histogram.ts'
import type { Job } from './job.ts'
import {
  bandwidthOf,
  type Direction,
  type DirectionResult,
  type DiskUse,
  iopsOf,
  type Result,
  totalOf,
} from './results.ts'

/** The release of fio whose schema this is; readers look for the number. */
const FIO_VERSION = 'fio-3.33'
/** fio's word for "unknown". */
const NO_ETA = 2147483647

/** @param given the options as they were written */
export function formatJson(
  results: readonly Result[],
  given: Record<string, string>,
  comparison: Comparison | null,
): string {
  const first = results[0]!
  const report = {
    'fio version': `${FIO_VERSION} (multiwrite)`,
    timestamp: Math.floor(Date.now() / 1e3),
    timestamp_ms: Date.now(),
    time: new Date().toString().replace(/ GMT.*/, ''),
    'global options': globalOptions(first),
    jobs: results.map((result) => jobJson(result)),
    disk_util: diskJson(results),
    multiwrite: {
      options: given,
      node: process.version,
      target: first.setting,
      clock: 'CLOCK_MONOTONIC by performance.now()',
      ...(comparison === null ? {} : { comparison }),
    },
  }
  return JSON.stringify(report, null, 2)
}

function globalOptions({ job, setting }: Result): Record<string, string> {
  return {
    filename: job.filename,
    direct: setting.direct ? '1' : '0',
    ioengine: setting.engine.name === 'aio' ? 'libaio' : setting.engine.name,
    group_reporting: '1',
  }
}

function jobOptions(job: Job): Record<string, string> {
  const options: Record<string, string | number | null> = {
    name: job.name,
    rw: job.rw,
    bs: job.bs,
    iodepth: job.iodepth,
    iodepth_batch_submit: job.batch,
    iodepth_batch_complete_min: job.batchComplete,
    size: job.size,
    runtime: job.runtime === null ? null : `${job.runtime}ms`,
    ramp_time: job.ramp === 0 ? null : `${job.ramp}ms`,
    rate_iops: job.rateIops,
    fdatasync: job.fdatasync === 0 ? null : job.fdatasync,
    numjobs: job.numjobs,
    randseed: job.seed,
  }
  const given = Object.entries(options).filter(([, value]) => value !== null)
  return Object.fromEntries(given.map(([name, value]) => [name, String(value)]))
}

function jobJson(result: Result): object {
  const { job, elapsed, spent, failed } = result
  const total = totalOf(result)
  const cpu = (us: number): number => round((us / 1e3 / Math.max(elapsed, 1) / job.numjobs) * 100)
  return {
    jobname: job.name,
    groupid: 0,
    error: failed === null ? 0 : errnoOf(failed.code),
    eta: NO_ETA,
    elapsed: Math.ceil(elapsed / 1e3),
    'job options': jobOptions(job),
    read: directionJson(result, 'read'),
    write: directionJson(result, 'write'),
    trim: directionJson(result, null),
    sync: { total_ios: result.sync.count, lat_ns: latencyJson(result.sync) },
    job_runtime: Math.round(elapsed * job.numjobs),
    usr_cpu: cpu(spent.user_us),
    sys_cpu: cpu(spent.system_us),
    ctx: spent.contextSwitches,
    majf: spent.majorFaults,
    minf: spent.minorFaults,
    iodepth_level: rounded(shareOf(result.depths, 1)),
    iodepth_submit: rounded(shareOf(result.submits, 0)),
    iodepth_complete: rounded(shareOf(result.completes, 0)),
    latency_ns: rounded(binsByLimit(total.lat, LATENCY_NS)),
    latency_us: rounded(binsByLimit(total.lat, LATENCY_US)),
    latency_ms: rounded(binsByLimit(total.lat, LATENCY_MS)),
    latency_depth: job.iodepth,
    latency_target: 0,
    latency_percentile: 100,
    latency_window: 0,
    multiwrite: {
      submissions: result.submissions,
      setting: result.setting,
      ...(job.rateIops === null ? {} : { rate: { wait_ns: latencyJson(result.wait), unstarted: result.unstarted } }),
      verified: result.verified,
      failed,
      interrupted: result.interrupted,
    },
  }
}

const NOTHING: Sampled = { min: 0, max: 0, mean: 0, stddev: 0, samples: 0 }

/** @param direction `null` for trims, of which there are none */
function directionJson(result: Result, direction: Direction | null): object {
  const none = direction === null
  const { elapsed } = result
  const of: DirectionResult | null = none ? null : result[direction]
  const { bw, iops } = none ? { bw: NOTHING, iops: NOTHING } : windowsOf(result, direction)
  const bandwidth = of === null ? 0 : bandwidthOf(of, elapsed)
  const bytes = of?.bytes ?? 0
  return {
    io_bytes: bytes,
    io_kbytes: Math.floor(bytes / 1024),
    bw_bytes: Math.floor(bandwidth),
    bw: Math.floor(bandwidth / 1024),
    iops: of === null ? 0 : round(iopsOf(of, elapsed)),
    runtime: of === null || of.requests === 0 ? 0 : Math.round(elapsed),
    total_ios: of?.requests ?? 0,
    short_ios: 0,
    drop_ios: 0,
    slat_ns: latencyJson(of?.slat),
    clat_ns: latencyJson(of?.clat),
    lat_ns: latencyJson(of?.lat),
    bw_min: Math.floor(bw.min),
    bw_max: Math.floor(bw.max),
    bw_agg: none ? 0 : round(totalPerJob(result, direction)),
    bw_mean: round(bw.mean),
    bw_dev: round(bw.stddev),
    bw_samples: bw.samples,
    iops_min: Math.floor(iops.min),
    iops_max: Math.floor(iops.max),
    iops_mean: round(iops.mean),
    iops_stddev: round(iops.stddev),
    iops_samples: iops.samples,
  }
}

function latencyJson(latency: Histogram | undefined): object {
  if (latency === undefined || latency.count === 0) return { min: 0, max: 0, mean: 0, stddev: 0, N: 0 }
  return {
    min: Math.floor(latency.min),
    max: Math.ceil(latency.max),
    mean: round(latency.mean),
    stddev: round(latency.stddev),
    N: latency.count,
    percentile: Object.fromEntries(
      PERCENTILES.map((percent) => [percent.toFixed(6), Math.round(latency.percentile(percent))]),
    ),
    bins: Object.fromEntries(latency.bins().map(({ value, count }) => [String(Math.floor(value)), count])),
  }
}

/** The disk below the loads, all of them taken together. */
function diskJson(results: readonly Result[]): object[] {
  const disks = results.map((result) => result.disk).filter((disk) => disk !== null)
  if (disks.length === 0) return []
  const sum = (of: (disk: DiskUse) => number): number => disks.reduce((total, disk) => total + of(disk), 0)
  return [
    {
      name: disks[0]!.name,
      read_ios: sum((disk) => disk.read.requests),
      write_ios: sum((disk) => disk.write.requests),
      read_merges: sum((disk) => disk.read.merges),
      write_merges: sum((disk) => disk.write.merges),
      read_ticks: sum((disk) => disk.read.ticks_ms),
      write_ticks: sum((disk) => disk.write.ticks_ms),
      in_queue: sum((disk) => disk.queue_ms),
      util: round(sum((disk) => disk.util) / disks.length),
    },
  ]
}

/** EIO where it has no number. */
function errnoOf(code: string): number {
  return constants.errno[code as keyof typeof constants.errno] ?? constants.errno.EIO
}

function round(value: number): number {
  return Math.round(value * 1e6) / 1e6
}

function rounded(limits: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(limits).map(([name, value]) => [name, round(value)]))
}
