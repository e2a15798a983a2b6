// One life: see life.ts. Rules are set and taken back by the parent, since this thread's addon may be the first to be refused.

import { once } from 'node:events'
import { parentPort, workerData } from 'node:worker_threads'
import type { FaultyAddon } from '../support/faults.ts'
import { type Outcome, run, type Setup } from './scenario.ts'

export interface Report {
  /** What can't be explained, in words. */
  wrong: string[]
  /** While something was refused, and afterwards. */
  during: Outcome | null
  afterwards: Outcome | null
}

const { native, ...setup } = workerData as Setup & { native: string }
const wrong: string[] = []
process.on('unhandledRejection', (error) => wrong.push(`unhandled rejection: ${String(error)}`))

const during = await run(setup, 1)
parentPort?.postMessage('enough')
await once(parentPort!, 'message')
const afterwards = await run(setup, 2)

const { addon } = (await import(native)) as { addon: () => FaultyAddon }
const { slots, files } = addon().usage()
if (slots > 0) wrong.push(`${slots} slots are still in flight`)
if (files > 0) wrong.push(`${files} files are still open`)
parentPort?.postMessage({ wrong, during, afterwards } satisfies Report)
