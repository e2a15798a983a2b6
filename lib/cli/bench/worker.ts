// One thread of a load: opens the target, says that it is ready, runs the loop when it is told to, and sends what it has
// measured. A thread of its own even for a single load, so that neither progress nor a signal gets in the loop's way.

import { parentPort, workerData } from 'node:worker_threads'
import { type Load, Loop } from './loop.ts'
import { openTarget } from './open-target.ts'
import type { Failed, Measured } from './results.ts'
import type { Kind, TargetOptions } from './target.ts'
import { verifyWritten } from './verify.ts'
import { warmUp } from './warm-up.ts'

/** What a worker is to do. */
export interface Assignment {
  kind: Kind
  target: TargetOptions
  load: Load
  /** One number: not 0 ends the run. */
  stop: Int32Array
  /** See `LIVE`. */
  live: Float64Array
}

export type FromWorker = { is: 'ready' } | { is: 'measured'; measured: Measured } | { is: 'failed'; failed: Failed }

const port = parentPort!
const { kind, target: options, load, stop, live } = workerData as Assignment

function send(message: FromWorker): void {
  port.postMessage(message)
}

async function work(): Promise<void> {
  const target = await openTarget(kind, options)
  const loop = new Loop(target, load, stop, live)
  await warmUp(kind, options, load, stop)
  send({ is: 'ready' })
  await new Promise((resolve) => port.once('message', resolve))
  await loop.run()
  const { measured } = loop
  await target.close().catch((error: Error) => {
    measured.failed ??= failureOf(error)
  })
  const { generations } = loop
  if (generations !== null && measured.failed === null && loop.mismatch === null) {
    const written = await verifyWritten(options, load, generations)
    written.bytes += measured.verified?.bytes ?? 0
    measured.verified = written
  }
  send({ is: 'measured', measured })
}

function failureOf(error: Error): Failed {
  return { message: error.message, code: (error as NodeJS.ErrnoException).code ?? '' }
}

work().catch((error: Error) => send({ is: 'failed', failed: failureOf(error) }))
