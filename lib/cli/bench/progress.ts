// How a load goes on: a line on standard error, rewritten twice a second, from the numbers that its threads keep. Nothing at all
// where that is no terminal: what must not be disturbed is being measured.

import type { Job } from './job.ts'
import { LIVE } from './loop.ts'
import { binaryWord, countWord } from './units.ts'

const INTERVAL_MS = 500

export class Progress {
  readonly #stream: NodeJS.WriteStream
  /** What is going on, where there are several loads. */
  label = ''

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream
  }

  /** Says what is being done, until the next line or `clear`. */
  say(text: string): void {
    if (this.#stream.isTTY) this.#draw(text)
  }

  /** Follows a load by the numbers that its workers keep. */
  watch(job: Job, live: Float64Array): { end(): void } {
    if (!this.#stream.isTTY) return { end: () => {} }
    const started_ms = performance.now()
    let before = { at_ms: started_ms, requests: 0, bytes: 0 }
    const timer = setInterval(() => {
      let requests = 0
      let bytes = 0
      for (let at = 0; at < live.length; at += LIVE.length) {
        requests += live[at + LIVE.reads]! + live[at + LIVE.writes]!
        bytes += live[at + LIVE.bytes]!
      }
      const at_ms = performance.now()
      const seconds = (at_ms - before.at_ms) / 1e3
      const speed = `${countWord((requests - before.requests) / seconds)} IOPS, ${binaryWord((bytes - before.bytes) / seconds)}/s`
      before = { at_ms, requests, bytes }
      this.#draw(`${this.label}${job.rw} ${phase(job, at_ms - started_ms)} ${speed}`)
    }, INTERVAL_MS)
    return {
      end: () => {
        clearInterval(timer)
        this.clear()
      },
    }
  }

  clear(): void {
    if (this.#stream.isTTY) this.#stream.write('\r\x1b[K')
  }

  #draw(text: string): void {
    this.#stream.write(`\r\x1b[K${text.slice(0, Math.max(20, (this.#stream.columns || 80) - 1))}`)
  }
}

function phase({ ramp, runtime }: Job, elapsed_ms: number): string {
  if (elapsed_ms < ramp) return '(ramp)'
  if (runtime === null) return `[${((elapsed_ms - ramp) / 1e3).toFixed(0)} s]`
  const done = elapsed_ms - ramp
  const left_s = Math.max(0, Math.ceil((runtime - done) / 1e3))
  return `[${Math.min(100, Math.floor((100 * done) / runtime))} %, ${left_s} s left]`
}
