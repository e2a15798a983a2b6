// A worker that opens devices, keeps them busy, and comes to its end: by having nothing left to do, by process.exit, by an
// exception, or by its parent's hand. It never closes anything.

import { parentPort, workerData } from 'node:worker_threads'
import { type OpenOptions, open } from 'multiwrite'
import { keepBusy } from './busy.ts'

export interface WorkerPlan {
  path: string
  options: OpenOptions
  end: 'natural' | 'exit' | 'throw' | 'terminate'
  devices: number
  value: number
  /** Steps of the load until the worker ends by itself. */
  steps: number
}

const { path, options, end, devices, value, steps } = workerData as WorkerPlan
parentPort?.postMessage('opening')
const disks = await Promise.all(Array.from({ length: devices }, () => open(path, options)))
let left = steps
const goOn = (): boolean => {
  if (left-- === steps) parentPort?.postMessage('busy')
  if (left > 0 || end === 'terminate') return true
  if (end === 'exit') process.exit(3)
  if (end === 'throw') {
    setImmediate(() => {
      throw new Error('the end')
    })
  }
  return false
}
for (const disk of disks) keepBusy(disk, value, goOn)
