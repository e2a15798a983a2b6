// fio as a peer: the same load in its words, and its answer in ours. It runs as a program of its own.

import { execFileSync, spawn } from 'node:child_process'
import { EXIT, Stop } from '../command.ts'
import { type Job, writes } from './job.ts'
import type { Round, Setting } from './results.ts'

/** fio's version, or `null` where it isn't installed. */
export function fioVersion(): string | null {
  try {
    return execFileSync('fio', ['--version'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
  } catch {
    return null
  }
}

/** The same load: what fio would do by itself and this library does not is switched off. */
export function fioArguments(job: Job, setting: Setting): string[] {
  const engine = { io_uring: 'io_uring', aio: 'libaio', threads: 'psync' }[setting.engine.name] ?? 'io_uring'
  // Its synchronous engines have one request in flight per thread.
  const threads = engine === 'psync' ? job.numjobs * job.iodepth : job.numjobs
  return [
    '--name=peer',
    `--filename=${job.filename}`,
    `--size=${setting.size}`,
    `--direct=${setting.direct ? 1 : 0}`,
    `--ioengine=${engine}`,
    `--rw=${job.rw}`,
    `--rwmixread=${job.rwmixread}`,
    `--bs=${job.bs}`,
    `--iodepth=${engine === 'psync' ? 1 : job.iodepth}`,
    ...(job.batch > 1 ? [`--iodepth_batch_submit=${job.batch}`, `--iodepth_batch_complete_max=${job.batch}`] : []),
    ...(job.batchComplete > 1 ? [`--iodepth_batch_complete_min=${job.batchComplete}`] : []),
    ...(job.rateIops === null ? [] : [`--rate_iops=${job.rateIops}`]),
    ...(job.fdatasync === 0 ? [] : [`--fdatasync=${job.fdatasync}`]),
    ...(job.runtime === null ? [] : ['--time_based', `--runtime=${job.runtime}ms`]),
    ...(job.ramp === 0 ? [] : [`--ramp_time=${job.ramp}ms`]),
    `--numjobs=${threads}`,
    '--group_reporting',
    // Threads, as ours.
    '--thread',
    `--randseed=${job.seed}`,
    // No bitmap of visited blocks, and the page cache stays.
    '--norandommap',
    '--invalidate=0',
    '--lat_percentiles=1',
    '--output-format=json',
    ...(writes(job.rw) ? [] : ['--readonly']),
  ]
}

interface FioLatency {
  mean: number
  percentile?: Record<string, number>
}
interface FioDirection {
  total_ios: number
  iops: number
  bw_bytes: number
  lat_ns: FioLatency
}
interface FioReport {
  jobs: { read: FioDirection; write: FioDirection; usr_cpu: number; sys_cpu: number; job_runtime: number }[]
}

/** @param stop not 0 ends it early */
export async function runFio(job: Job, setting: Setting, stop: Int32Array): Promise<Round> {
  const output = await run(fioArguments(job, setting), stop)
  const report = JSON.parse(output.slice(output.indexOf('{'))) as FioReport
  const { read, write, usr_cpu, sys_cpu, job_runtime } = report.jobs[0]!
  const requests = read.total_ios + write.total_ios
  // Percentiles of a mixed load can't be had from those of its halves; those of the larger half stand for it.
  const larger = read.total_ios > write.total_ios ? read : write
  const percentile = (percent: number): number => larger.lat_ns.percentile?.[percent.toFixed(6)] ?? 0
  const cpu_us = (percent: number): number => ((percent / 100) * job_runtime * 1e3) / Math.max(1, requests)
  return {
    iops: read.iops + write.iops,
    bytesPerSecond: read.bw_bytes + write.bw_bytes,
    mean_ns: larger.lat_ns.mean,
    p50_ns: percentile(50),
    p99_ns: percentile(99),
    user_us: cpu_us(usr_cpu),
    system_us: cpu_us(sys_cpu),
  }
}

const STOP_CHECK_MS = 100

function run(args: readonly string[], stop: Int32Array): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn('fio', args, { stdio: ['ignore', 'pipe', 'pipe'] })
    const watch = setInterval(() => stop[0] !== 0 && child.kill('SIGINT'), STOP_CHECK_MS)
    let output = ''
    let complaint = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      complaint += text
    })
    child.once('error', reject)
    child.once('close', (code) => {
      clearInterval(watch)
      if (code === 0 || (stop[0] !== 0 && output.includes('{'))) resolve(output)
      else reject(new Stop(EXIT.failed, `fio ended with ${code}: ${complaint.trim() || output.trim()}`))
    })
  })
}
