// The whole life of a thread that uses the addon, while one of the things that it asks the system for is refused: the first,
// the second, and so on until a life has nothing left that could be refused. Each life is a worker: it loads the addon, does
// everything (scenario.ts), and does it once more when nothing is refused any more, which must go as if nothing had been.
// When it has ended, this process must hold exactly what it held before.
//
// Runs in a process of its own. Prints a line of JSON per life.

import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { Worker } from 'node:worker_threads'
import type { FaultyAddon } from '../support/faults.ts'
import type { Report } from './life-worker.ts'
import type { Setup } from './scenario.ts'

export interface Plan extends Setup {
  /** The library's module that loads the addon. */
  native: string
  /** A rule of the shim, as numbers. */
  rule: number[]
  /** How much later it strikes from life to life; the first strikes at once. */
  step: number
}

/** Where a rule says how many to let pass. */
const AFTER = 1

/** What came of one life. */
export interface Life extends Report {
  after: number
  /** What it asked the system for, and how much of that was refused. */
  asked: number
  refused: number
  /** What is amiss in this process. */
  amiss: string[]
}

// As in test/life/workers.ts: a worker may wait for ever for its own compilation.
setFlagsFromString('--no-concurrent-recompilation')

const { native, rule, step, ...setup } = JSON.parse(process.env.PLAN ?? '') as Plan
const { addon } = (await import(native)) as { addon: () => FaultyAddon }
const faulty = addon()

const count = (folder: string): number => fs.readdirSync(folder).length
/** What the process holds; kernel objects that are mapped have names of their own. */
function held(): Record<string, number> {
  const maps = fs.readFileSync('/proc/self/maps', 'utf8').split('\n')
  return {
    pieces: faulty.usage().pieces,
    descriptors: count('/proc/self/fd'),
    threads: count('/proc/self/task'),
    rings: maps.filter((line) => line.includes('[io_uring]')).length,
    contexts: maps.filter((line) => line.includes('[aio]')).length,
  }
}

async function compare(before: Record<string, number>): Promise<string[]> {
  // The kernel and Node let go of some things a moment after they have said so.
  for (let turn = 0; turn < 50 && JSON.stringify(held()) !== JSON.stringify(before); turn++) await sleep(10)
  const after = held()
  return Object.keys(before)
    .filter((name) => before[name] !== after[name])
    .map((name) => `${name}: ${before[name]} before, ${after[name]} after`)
}

async function live(rules: readonly number[]): Promise<Report & { asked: number; refused: number }> {
  const before = faulty.usage()
  let now = before
  faulty.setFaults(Float64Array.from(rules))
  const worker = new Worker(new URL('./life-worker.js', import.meta.url), {
    workerData: { ...setup, native },
    execArgv: [],
  })
  const report = await new Promise<Report>((resolve) => {
    let told: Report | undefined
    const broken: string[] = []
    worker.on('message', (message: Report | 'enough') => {
      if (message !== 'enough') {
        told = message
        return
      }
      now = faulty.usage()
      faulty.setFaults(new Float64Array(0))
      worker.postMessage('go on')
    })
    worker.on('error', (error) => broken.push(`the worker failed: ${error.stack}`))
    worker.on('exit', (code) => {
      if (code !== 0 || told === undefined) broken.push(`the worker ended with ${code}`)
      resolve(
        told === undefined
          ? { wrong: broken, during: null, afterwards: null }
          : { ...told, wrong: [...told.wrong, ...broken] },
      )
    })
  })
  return { ...report, asked: now.asked - before.asked, refused: now.refused - before.refused }
}

// What Node sets up at the first use stays: threads, and what it compiles.
await live([])
for (let after = 0; ; after += step) {
  const rules = [...rule]
  rules[AFTER] = after
  const before = held()
  const lived = await live(rules)
  const line: Life = { after, ...lived, amiss: await compare(before) }
  fs.writeSync(1, `${JSON.stringify(line)}\n`)
  if (line.refused === 0) break
}
