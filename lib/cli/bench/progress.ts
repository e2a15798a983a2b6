// How a load goes on: a line on standard error, rewritten twice a second, from the numbers that its threads keep; and a line of
// JSON for the program that asked for it. Nothing at all where that is no terminal and nobody asked: what must not be disturbed
// is being measured.

import { writeSync } from 'node:fs'
import type { Job } from './job.ts'
import { LIVE } from './loop.ts'
import { binaryWord, countWord } from './units.ts'

const INTERVAL_MS = 500

/** What has come out so far. */
interface Count {
  at_ms: number
  requests: number
  bytes: number
}

export class Progress {
  readonly #stream: NodeJS.WriteStream
  readonly #descriptor: number | null
  /** What is going on, where there are several loads. */
  label = ''

  /** @param descriptor for programs; `null`: nobody asked */
  constructor(stream: NodeJS.WriteStream, descriptor: number | null) {
    this.#stream = stream
    this.#descriptor = descriptor
  }

  /** Says what is being done, until the next line or `clear`. */
  say(text: string): void {
    if (this.#stream.isTTY) this.#draw(text)
  }

  /** Follows a load by the numbers that its workers keep. */
  watch(job: Job, live: Float64Array): { end(): void } {
    if (!this.#stream.isTTY && this.#descriptor === null) return { end: () => {} }
    const started_ms = performance.now()
    let before: Count = { at_ms: started_ms, requests: 0, bytes: 0 }
    const timer = setInterval(() => {
      const now = countOf(live)
      const elapsed_ms = now.at_ms - started_ms
      const seconds = (now.at_ms - before.at_ms) / 1e3
      const iops = (now.requests - before.requests) / seconds
      const bytesPerSecond = (now.bytes - before.bytes) / seconds
      before = now
      const speed = `${countWord(iops)} IOPS, ${binaryWord(bytesPerSecond)}/s`
      this.say(`${this.label}${job.rw} ${phase(job, elapsed_ms)} ${speed}`)
      this.#tell({
        phase: elapsed_ms < job.ramp ? 'ramp' : 'measuring',
        load: `${this.label}${job.rw}`,
        unit: 'requests',
        done: now.requests,
        perSecond: Math.round(iops),
        bytesPerSecond: Math.round(bytesPerSecond),
        remainingSeconds: remaining_s(job, elapsed_ms),
      })
    }, INTERVAL_MS)
    return {
      end: () => {
        clearInterval(timer)
        this.clear()
      },
    }
  }

  #tell(state: object): void {
    if (this.#descriptor === null) return
    try {
      writeSync(this.#descriptor, `${JSON.stringify(state)}\n`)
    } catch {
      // Whoever asked has gone, or reads too slowly: what is being measured goes on.
    }
  }

  clear(): void {
    if (this.#stream.isTTY) this.#stream.write('\r\x1b[K')
  }

  #draw(text: string): void {
    this.#stream.write(`\r\x1b[K${text.slice(0, Math.max(20, (this.#stream.columns || 80) - 1))}`)
  }
}

function countOf(live: Float64Array): Count {
  const count = { at_ms: performance.now(), requests: 0, bytes: 0 }
  for (let at = 0; at < live.length; at += LIVE.length) {
    count.requests += live[at + LIVE.reads]! + live[at + LIVE.writes]!
    count.bytes += live[at + LIVE.bytes]!
  }
  return count
}

/** `null` where nobody knows: a number of requests ends the load, not a time. */
function remaining_s({ ramp, runtime }: Job, elapsed_ms: number): number | null {
  return runtime === null ? null : Math.max(0, Math.ceil((ramp + runtime - elapsed_ms) / 1e3))
}

function phase(job: Job, elapsed_ms: number): string {
  const { ramp, runtime } = job
  if (elapsed_ms < ramp) return '(ramp)'
  const done = elapsed_ms - ramp
  if (runtime === null) return `[${(done / 1e3).toFixed(0)} s]`
  return `[${Math.min(100, Math.floor((100 * done) / runtime))} %, ${remaining_s(job, elapsed_ms)} s left]`
}
