// Workers with busy devices come and go, several at a time. When the exit of one is reported, none of its descriptors may be
// left; in the end each page of the file must hold what one of them wrote, or what was there before. The addon is not loaded
// here, so it is loaded and left with each worker that is alone.
//
// Runs in a process of its own, whose crash or hang is a failure too. Prints a dot per worker, then one line of JSON.

import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { Worker } from 'node:worker_threads'
import type { OpenOptions } from 'multiwrite'
import { descriptorsOf } from '../support/descriptors.ts'
import { strayPage } from './busy.ts'
import type { WorkerPlan } from './busy-worker.ts'

export interface Plan {
  path: string
  options: OpenOptions
  /** How the workers end, in turns; `early` is a termination while the worker starts or opens. */
  ends: readonly (WorkerPlan['end'] | 'early')[]
  workers: number
  /** At the same time. */
  atOnce: number
  /** Each worker's. */
  devices: number
}

export interface Report {
  wrong: string[]
}

// A worker that ends may wait for its own code to be compiled, in the background, by a job that waits for the worker to collect
// garbage: for ever. Node has this from V8; without the background there is none of it.
setFlagsFromString('--no-concurrent-recompilation')

const { path, options, ends, workers, atOnce, devices } = JSON.parse(process.env.PLAN ?? '') as Plan
const wrong: string[] = []
const values = new Set([fs.readFileSync(path)[0] as number])
const codes = { natural: 0, exit: 3, throw: 1, terminate: 1, early: 1 } as const

async function one(number: number): Promise<void> {
  const end = ends[number % ends.length] as Plan['ends'][number]
  const value = 1 + (number % 200)
  values.add(value)
  const plan: WorkerPlan = {
    path,
    options,
    end: end === 'early' ? 'terminate' : end,
    devices,
    value,
    steps: 50 + ((number * 7) % 50),
  }
  const worker = new Worker(new URL('./busy-worker.js', import.meta.url), { workerData: plan, execArgv: [] })
  const ended = new Promise<number>((resolve) => {
    worker.on('exit', (code) => {
      // Others that run at the same time have some open.
      if (atOnce === 1 && descriptorsOf(path) > 0)
        wrong.push(`worker ${number} (${end}): a descriptor is left at its exit`)
      resolve(code)
    })
  })
  worker.on('error', (error) => {
    if (!(end === 'throw' && error.message === 'the end')) wrong.push(`worker ${number} (${end}): ${error}`)
  })
  if (end === 'early' || end === 'terminate') {
    const awaited = end === 'early' ? 'opening' : 'busy'
    // A third of the early ones do not even get to say that they open.
    const said = new Promise<void>((resolve) => {
      worker.on('message', (message) => {
        if (message === awaited) resolve()
      })
      worker.on('exit', () => resolve())
    })
    if (end === 'early' && number % 3 === 0) await sleep(number % 31)
    else await said
    if (number % 2 === 0) await sleep(number % 11)
    void worker.terminate()
  }
  const code = await ended
  // One that had not begun at all ends with 0.
  if (code !== codes[end] && !(end === 'early' && code === 0))
    wrong.push(`worker ${number} (${end}): exit code ${code}`)
  fs.writeSync(1, '.')
}

let next = 0
async function lane(): Promise<void> {
  while (next < workers) await one(next++)
}
await Promise.all(Array.from({ length: atOnce }, lane))
if (descriptorsOf(path) > 0) wrong.push('descriptors are left in the end')
const stray = strayPage(fs.readFileSync(path), values)
if (stray !== null) wrong.push(stray)
fs.writeSync(1, `\n${JSON.stringify({ wrong: wrong.slice(0, 20) })}`)
