// How far a command has come: on a terminal one line that is rewritten four times a second, elsewhere a line when a phase begins
// and then one every ten seconds, and for other programs a line of JSON four times a second on a descriptor of their choice. SIGUSR1
// asks for a line at once, as it does of dd.
//
// Everything goes to standard error or that descriptor, never to standard output. Counted is what has been completed, not what
// has been started. The speed is that of the last two seconds, the remaining time follows from the whole phase.

import { writeSync } from 'node:fs'
import { EXIT, Stop } from './command.ts'
import { formatBytes, formatCount } from './report.ts'

/** What is counted, and for want of a total how much of it is done. */
export interface Measure {
  readonly of?: 'bytes' | 'requests'
  /** 0 to 1. */
  readonly fraction?: (() => number) | null
}

const INTERVAL_MS = 250
const LINE_INTERVAL_MS = 10_000
const WINDOW_MS = 2000
/** Width of the terminal where it does not say. */
const COLUMNS_DEFAULT = 80

export class Progress {
  readonly #stream: NodeJS.WriteStream
  readonly #descriptor: number | null
  readonly #timer: NodeJS.Timeout
  #phase: string | null = null
  #of: 'bytes' | 'requests' = 'bytes'
  #done = 0
  #total: number | null = null
  #fraction: (() => number) | null = null
  #beganMs = 0
  #saidMs = 0
  #drawn = false
  /** Points of the last two seconds, oldest first. */
  #window: { ms: number; done: number }[] = []

  /** @param descriptor where programs read it, `null` for nowhere */
  constructor(stream: NodeJS.WriteStream, descriptor: number | null) {
    this.#stream = stream
    this.#descriptor = descriptor
    this.#timer = setInterval(() => this.#tick(), INTERVAL_MS)
    this.#timer.unref()
    process.on('SIGUSR1', this.#asked)
  }

  /**
   * A phase begins.
   *
   * @param total of what is counted; `null` where nobody knows
   */
  phase(phase: string, total: number | null, { of = 'bytes', fraction = null }: Measure = {}): void {
    this.#phase = phase
    this.#done = 0
    this.#total = total
    this.#of = of
    this.#fraction = fraction
    this.#beganMs = performance.now()
    this.#saidMs = this.#beganMs
    this.#window = [{ ms: this.#beganMs, done: 0 }]
    if (this.#stream.isTTY) this.#tick()
    else {
      this.#stream.write(`${phase}\n`)
      this.#tell()
    }
  }

  /** So many more are done. */
  add(count: number): void {
    this.#done += count
  }

  /** So many are done. */
  readonly at = (count: number): void => {
    this.#done = count
  }

  /** Removes the line, so that something else can be written. */
  clear(): void {
    if (this.#drawn) this.#stream.write('\r\x1b[K')
    this.#drawn = false
  }

  /** Ends it; the descriptor hears of the last state. */
  end(): void {
    clearInterval(this.#timer)
    process.off('SIGUSR1', this.#asked)
    this.clear()
    this.#tell()
    this.#phase = null
  }

  readonly #asked = (): void => {
    if (this.#phase === null) return
    this.clear()
    this.#stream.write(`${this.#line()}\n`)
  }

  #tick(): void {
    if (this.#phase === null) return
    const nowMs = performance.now()
    this.#window.push({ ms: nowMs, done: this.#done })
    while (this.#window.length > 2 && this.#window[1]!.ms < nowMs - WINDOW_MS) this.#window.shift()
    this.#tell()
    if (this.#stream.isTTY) {
      const width = (this.#stream.columns || COLUMNS_DEFAULT) - 1
      this.#stream.write(`\r\x1b[K${this.#line().slice(0, width)}`)
      this.#drawn = true
    } else if (nowMs - this.#saidMs >= LINE_INTERVAL_MS) {
      this.#saidMs = nowMs
      this.#stream.write(`${this.#line()}\n`)
    }
  }

  /** Of the phase, 0 to 1; `null` where nobody knows. */
  #part(): number | null {
    if (this.#total !== null) return this.#total === 0 ? 1 : Math.min(1, this.#done / this.#total)
    return this.#fraction === null ? null : Math.min(1, this.#fraction())
  }

  /** Bytes a second. */
  #speed(): number {
    const [first, last] = [this.#window[0]!, this.#window.at(-1)!]
    return last.ms > first.ms ? ((last.done - first.done) / (last.ms - first.ms)) * 1000 : 0
  }

  #remainingSeconds(): number | null {
    const part = this.#part()
    const seconds = (performance.now() - this.#beganMs) / 1000
    return part === null || part === 0 ? null : (seconds * (1 - part)) / part
  }

  #line(): string {
    const count = (value: number): string => (this.#of === 'bytes' ? formatBytes(value) : formatCount(value))
    const part = this.#part()
    const speed = this.#speed()
    const remaining = this.#remainingSeconds()
    const total = this.#total === null ? '' : ` of ${count(this.#total)}`
    return [
      this.#phase!.padEnd(9),
      `${count(this.#done)}${total}${this.#of === 'bytes' ? '' : ` ${this.#of}`}`,
      ...(part === null ? [] : [`${Math.floor(100 * part)} %`]),
      ...(speed > 0 ? [`${count(Math.round(speed))}/s`] : []),
      ...(speed > 0 && remaining !== null && part !== 1 ? [`${formatTime(remaining)} left`] : []),
    ].join('  ')
  }

  #tell(): void {
    if (this.#descriptor === null || this.#phase === null) return
    const remaining = this.#remainingSeconds()
    const state = {
      phase: this.#phase,
      unit: this.#of,
      done: this.#done,
      total: this.#total,
      fraction: this.#part(),
      perSecond: Math.round(this.#speed()),
      remainingSeconds: remaining === null ? null : Math.round(remaining),
    }
    try {
      writeSync(this.#descriptor, `${JSON.stringify(state)}\n`)
    } catch {
      // Whoever asked has gone, or reads too slowly: what is being done goes on.
    }
  }
}

/** `1.2 GiB/s`. */
export function formatSpeed(bytesPerSecond: number): string {
  return `${formatBytes(Math.round(bytesPerSecond))}/s`
}

/** `0:07`, `12:30`, `1:02:03`. */
export function formatTime(seconds: number): string {
  const whole = Math.round(seconds)
  const two = (value: number): string => String(value).padStart(2, '0')
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60]
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`
}

/** The descriptor that `--progress` names. */
export function progressDescriptor(value: string | undefined): number | null {
  if (value === undefined) return null
  const descriptor = /^\d{1,5}$/.test(value) ? Number(value) : Number.NaN
  try {
    writeSync(descriptor, '')
  } catch (error) {
    const why = Number.isNaN(descriptor) ? 'not a number' : (error as Error).message
    throw new Stop(EXIT.usage, `--progress wants an open descriptor, as in --progress=3 3>file; ${value} is ${why}`)
  }
  return descriptor
}
