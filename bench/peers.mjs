// What else there is: Node's own file system calls, and fio as the measure of what the kernel gives a C program.
//
// The callers of node:fs get the same buffers and offsets as our own contenders. They run on Node's thread pool, whose size is
// the user's choice (`UV_THREADPOOL_SIZE`, 4 by default).

import { execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import { timed, timedSingly } from './measure.mjs'
import { atTheLatestAtExit } from './targets.mjs'

/** @typedef {import('./measure.mjs').Contender} Contender */
/** @typedef {import('./measure.mjs').Sample} Sample */
/** @typedef {import('./workload.mjs').Workload} Workload */

/** fio's version, or `null` where it isn't installed. */
export function fioVersion() {
  try {
    return execFileSync('fio', ['--version'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
  } catch {
    return null
  }
}

/**
 * One `fs.write` per request, all of a batch at once, with callbacks.
 * @param {number} descriptor
 * @param {Workload} workload
 * @returns {Contender}
 */
export function fsWriteFanOut(descriptor, workload) {
  /** @param {number} lane */
  const step = (lane) =>
    new Promise((resolve, reject) => {
      const { count, buffers, offsets } = workload.next(lane)
      let left = count
      for (let i = 0; i < count; i++) {
        const buffer = buffers[i]
        fs.write(descriptor, buffer, 0, buffer.length, offsets[i], (error, written) => {
          if (error) reject(error)
          else if (written !== buffer.length) reject(new Error(`fs.write wrote ${written} bytes`))
          else if (--left === 0) resolve(undefined)
        })
      }
    })
  return {
    name: 'fs.write, one per request',
    run: (duration_ms) => timed(duration_ms, workload.lanes, workload.count, step),
  }
}

/**
 * One `FileHandle.write` per request, all of a batch at once, with promises.
 * @param {fs.promises.FileHandle} handle
 * @param {Workload} workload
 * @returns {Contender}
 */
export function promisesFanOut(handle, workload) {
  /** @param {number} lane */
  const step = (lane) => {
    const { count, buffers, offsets } = workload.next(lane)
    const writes = []
    for (let i = 0; i < count; i++) writes.push(handle.write(buffers[i], 0, buffers[i].length, offsets[i]))
    return Promise.all(writes)
  }
  return {
    name: 'fs/promises write, one per request',
    run: (duration_ms) => timed(duration_ms, workload.lanes, workload.count, step),
  }
}

/**
 * One `fs.writev` per batch: what a caller does who knows that all its requests touch, in order.
 * @param {number} descriptor
 * @param {Workload} workload adjacent and ascending
 * @returns {Contender}
 */
export function writevByHand(descriptor, workload) {
  /** @param {number} lane */
  const step = (lane) =>
    new Promise((resolve, reject) => {
      const { buffers, offsets, count, length } = workload.next(lane)
      fs.writev(descriptor, buffers, offsets[0], (error, written) => {
        if (error) reject(error)
        else if (written !== count * length) reject(new Error(`fs.writev wrote ${written} bytes`))
        else resolve(undefined)
      })
    })
  return {
    name: 'fs.writev, merged by hand',
    run: (duration_ms) => timed(duration_ms, workload.lanes, workload.count, step),
  }
}

/**
 * One `fs.write` at a time, with callbacks; for latency.
 * @param {number} descriptor
 * @param {Workload} workload one request per batch
 * @returns {Contender}
 */
export function fsWriteSingly(descriptor, workload) {
  const step = () =>
    new Promise((resolve, reject) => {
      const { buffers, offsets } = workload.next(0)
      fs.write(descriptor, buffers[0], 0, buffers[0].length, offsets[0], (error) =>
        error ? reject(error) : resolve(undefined),
      )
    })
  return { name: 'fs.write', run: (duration_ms) => timedSingly(duration_ms, step) }
}

/**
 * @typedef {object} FioJob
 * @property {string} path
 * @property {number} size
 * @property {boolean} direct
 * @property {'io_uring' | 'libaio' | 'psync'} engine
 * @property {'write' | 'randwrite'} rw
 * @property {number} blockSize bytes
 * @property {number} [blockAlign] bytes; random offsets are multiples of it
 * @property {number} depth
 * @property {number} [batchSubmit] requests handed over in one system call
 * @property {number} [batchComplete] completions to wait for
 */

/**
 * Its CPU time is that of its job's own thread: io_uring's workers, which carry out its buffered writes and its blocks beyond
 * the kernel's limits, are in nobody's account. Its clock is read twice a request, which costs it nothing to speak of here.
 *
 * @param {string} name
 * @param {FioJob} job
 * @param {number} [requestsPerBlock] how many of our requests one of its blocks is worth
 * @returns {Contender}
 */
export function fio(name, job, requestsPerBlock = 1) {
  return {
    name,
    ready: true,
    run: async (duration_ms) => {
      const report = JSON.parse(await runFio(fioArguments(job, duration_ms)))
      return readFio(report, requestsPerBlock)
    },
  }
}

/** @param {FioJob} job @param {number} duration_ms */
function fioArguments(job, duration_ms) {
  return [
    '--name=peer',
    `--filename=${job.path}`,
    `--size=${job.size}`,
    `--direct=${job.direct ? 1 : 0}`,
    `--ioengine=${job.engine}`,
    `--rw=${job.rw}`,
    `--bs=${job.blockSize}`,
    ...(job.blockAlign === undefined ? [] : [`--blockalign=${job.blockAlign}`]),
    `--iodepth=${job.depth}`,
    ...(job.batchSubmit === undefined ? [] : [`--iodepth_batch_submit=${job.batchSubmit}`]),
    ...(job.batchComplete === undefined
      ? []
      : [`--iodepth_batch_complete_min=${job.batchComplete}`, `--iodepth_batch_complete_max=${job.batchComplete}`]),
    // It need not remember which blocks it has written, nor sync, nor throw away the page cache that others fill, nor change
    // its buffers before each write: ours stay as they are, too.
    '--norandommap',
    '--invalidate=0',
    '--randrepeat=0',
    '--scramble_buffers=0',
    '--time_based',
    `--runtime=${duration_ms}ms`,
    '--lat_percentiles=1',
    '--percentile_list=50:99',
    '--output-format=json',
  ]
}

/** @param {string[]} args @returns {Promise<string>} */
function runFio(args) {
  return new Promise((resolve, reject) => {
    const child = spawn('fio', args, { stdio: ['ignore', 'pipe', 'pipe'] })
    const stop = atTheLatestAtExit(() => child.exitCode === null && child.kill('SIGKILL'))
    let output = ''
    let complaint = ''
    child.stdout.setEncoding('utf8').on('data', (text) => (output += text))
    child.stderr.setEncoding('utf8').on('data', (text) => (complaint += text))
    child.once('error', reject)
    child.once('close', (code) => {
      stop()
      if (code === 0) resolve(output.slice(output.indexOf('{')))
      else reject(new Error(`fio ${args.join(' ')} ended with ${code}: ${complaint || output}`))
    })
  })
}

/**
 * @param {{ jobs: any[] }} report
 * @param {number} requestsPerBlock
 * @returns {Sample}
 */
function readFio({ jobs: [job] }, requestsPerBlock) {
  const { total_ios, runtime, lat_ns } = job.write
  // It tells CPU time in percent of the job's run time, and both times in whole milliseconds.
  const elapsed_us = job.job_runtime * 1e3
  return {
    requests: total_ios * requestsPerBlock,
    elapsed_ns: runtime * 1e6,
    user_us: (job.usr_cpu / 100) * elapsed_us,
    system_us: (job.sys_cpu / 100) * elapsed_us,
    p50_ns: lat_ns.percentile['50.000000'],
    p99_ns: lat_ns.percentile['99.000000'],
  }
}
