// Carries out one load: a worker per job, started together, and their results added up.

import { setFlagsFromString } from 'node:v8'
import { Worker } from 'node:worker_threads'
import { EXIT, Stop } from '../command.ts'
import { diskSnapshot, diskUse } from './disk-use.ts'
import { isMixed, isRandom, type Job, writes } from './job.ts'
import { LIVE, type Load } from './loop.ts'
import { BLOCKS_MAX } from './offsets.ts'
import type { Progress } from './progress.ts'
import { type Measured, type Result, type Setting, sumOf } from './results.ts'
import type { Kind, TargetOptions } from './target.ts'
import type { Assignment, FromWorker } from './worker.ts'

/**
 * The young generation of the threads that measure. A request leaves some kilobytes of garbage in the library; with V8's
 * default of 16 MiB the collector would run some forty times a second and stand still for half a millisecond each time, which
 * would be what the 99th percentile tells at small depths. A flag of V8 concerns the threads that are made after it.
 */
const YOUNG_GENERATION_MIB = 64

/** Every block has four bytes of memory while its content is verified. */
const VERIFIED_BLOCKS_MAX = 2 ** 28

/**
 * @param stop one number: not 0 ends the run; what is in flight is finished and counted
 * @returns rejects with a `Stop` if the load could not be carried out at all; failed I/O is part of the result
 */
export async function runLoad(
  job: Job,
  setting: Setting,
  stop: Int32Array,
  progress: Progress,
  kind: Kind = 'multiwrite',
): Promise<Result> {
  const live = new Float64Array(new SharedArrayBuffer(job.numjobs * LIVE.length * 8))
  const target: TargetOptions = {
    path: job.filename,
    readOnly: !writes(job.rw),
    direct: setting.direct,
    engine: job.engine,
    merge: job.merge,
    queueDepth: job.iodepth,
    busyPollUs: job.busyPollUs,
  }
  setFlagsFromString(`--min-semi-space-size=${YOUNG_GENERATION_MIB}`)
  // Next to nothing survives, so threads that help the collector would only be waited for.
  setFlagsFromString('--no-parallel-scavenge')
  setFlagsFromString(`--max-semi-space-size=${YOUNG_GENERATION_MIB}`)
  const workers = Array.from({ length: job.numjobs }, (_, index) => {
    const mine = live.subarray(index * LIVE.length, (index + 1) * LIVE.length)
    return new LoadWorker({ kind, target, load: loadOf(job, setting, index), stop, live: mine })
  })
  try {
    await Promise.all(workers.map((worker) => worker.ready))
    const before = await diskSnapshot(job.filename)
    const started = Date.now()
    const watch = progress.watch(job, live)
    for (const worker of workers) worker.start()
    let measured: Measured[]
    try {
      measured = await Promise.all(workers.map((worker) => worker.measured))
    } finally {
      watch.end()
    }
    const disk = diskUse(before, await diskSnapshot(job.filename))
    return { ...sumOf(measured), job, setting, started, disk, interrupted: stop[0] !== 0 }
  } finally {
    await Promise.all(workers.map((worker) => worker.end()))
  }
}

function loadOf(job: Job, setting: Setting, index: number): Load {
  const blocks = Math.floor(setting.size / job.bs)
  if (blocks === 0)
    throw new Stop(
      EXIT.usage,
      `a request of ${job.bs} bytes does not fit into ${setting.size}: take a smaller --bs or a larger --size`,
    )
  const blocksMax = job.verify ? VERIFIED_BLOCKS_MAX : BLOCKS_MAX
  if (blocks > blocksMax) throw new Stop(EXIT.usage, `more than ${blocksMax} blocks; take a smaller --size`)
  return {
    bs: job.bs,
    blocks,
    random: isRandom(job.rw),
    readPercent: isMixed(job.rw) ? job.rwmixread : writes(job.rw) ? 0 : 100,
    depth: job.iodepth,
    batch: job.batch,
    batchComplete: job.batchComplete,
    requests: job.runtime === null ? blocks : Number.POSITIVE_INFINITY,
    runtime_ns: job.runtime === null ? Number.POSITIVE_INFINITY : job.runtime * 1e6,
    ramp_ns: job.ramp * 1e6,
    rate: job.rateIops,
    flushEvery: job.fdatasync,
    // Jobs beside each other go their own ways.
    seed: (job.seed + index * 0x9e3779b9) >>> 0,
    verifySeed: job.verify ? job.seed : null,
  }
}

/** A worker and what it has to say, as promises. */
class LoadWorker {
  readonly ready: Promise<void>
  readonly measured: Promise<Measured>
  readonly #worker: Worker
  readonly #exited: Promise<void>

  constructor(assignment: Assignment) {
    this.#worker = new Worker(new URL('./worker.js', import.meta.url), { workerData: assignment })
    this.#exited = new Promise((resolve) => this.#worker.once('exit', () => resolve()))
    const ready = deferred<void>()
    const measured = deferred<Measured>()
    this.ready = ready.promise
    this.measured = measured.promise
    const fail = (error: Error): void => {
      ready.reject(error)
      measured.reject(error)
    }
    this.#worker.on('message', (message: FromWorker) => {
      if (message.is === 'ready') ready.resolve()
      else if (message.is === 'measured') measured.resolve(message.measured)
      else fail(new Stop(EXIT.failed, `${message.failed.message}`))
    })
    this.#worker.once('error', fail)
    this.#worker.once('exit', () =>
      fail(
        new Stop(EXIT.failed, 'a worker has ended without a result: this is a mistake of multiwrite, please report it'),
      ),
    )
  }

  start(): void {
    this.#worker.postMessage('start')
  }

  /** It ends by itself once it has answered; else its end waits for what is in flight. */
  async end(): Promise<void> {
    await this.#worker.terminate()
    await this.#exited
  }
}

interface Deferred<T> {
  promise: Promise<T>
  resolve: (value: T) => void
  reject: (error: Error) => void
}

function deferred<T>(): Deferred<T> {
  let resolve!: (value: T) => void
  let reject!: (error: Error) => void
  const promise = new Promise<T>((onValue, onError) => {
    resolve = onValue
    reject = onError
  })
  // Whoever waits for the other one hears of it.
  promise.catch(() => {})
  return { promise, resolve, reject }
}
