// A process that opens a device, keeps it busy, and comes to its end in the way that it is told to, in the middle of things.

import { setFlagsFromString } from 'node:v8'
import { Worker } from 'node:worker_threads'
import { type OpenOptions, open } from 'multiwrite'
import { keepBusy } from './busy.ts'
import type { WorkerPlan } from './busy-worker.ts'

export interface Plan {
  path: string
  options: OpenOptions
  end: 'natural' | 'exit' | 'throw' | 'reject' | 'abandon' | NodeJS.Signals
  /** Whether a worker is busy on the same file, too. */
  worker: boolean
  /** Steps of the load until the end. */
  steps: number
}

// A worker that ends may wait for its own code to be compiled, in the background, by a job that waits for the worker to collect
// garbage: for ever. Node has this from V8; without the background there is none of it.
setFlagsFromString('--no-concurrent-recompilation')

const { path, options, end, worker, steps } = JSON.parse(process.env.PLAN ?? '') as Plan
if (worker) {
  const workerData: WorkerPlan = {
    path,
    options,
    end: end === 'natural' || end === 'abandon' ? 'natural' : 'terminate',
    devices: 1,
    value: 2,
    steps: 200,
  }
  const other = new Worker(new URL('./busy-worker.js', import.meta.url), { workerData, execArgv: [] })
  await new Promise<void>((resolve) => {
    other.on('message', (message) => {
      if (message === 'busy') resolve()
    })
  })
}
const disk = await open(path, options)
let left = steps
keepBusy(disk, 1, () => {
  if (left-- > 0) return true
  if (end === 'exit') process.exit(5)
  if (end === 'throw') {
    setImmediate(() => {
      throw new Error('the end')
    })
  } else if (end === 'reject') {
    void Promise.reject(new Error('the end'))
  } else if (end !== 'natural' && end !== 'abandon') {
    process.kill(process.pid, end)
  }
  return end !== 'natural' && end !== 'abandon'
})
if (end === 'abandon') process.on('exit', () => keepBusy(disk, 1, () => false))
