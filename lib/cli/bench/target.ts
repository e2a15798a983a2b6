// What a load runs against: one table of operations, for a device of this library and for its peer in node:fs, so that both
// are driven by the same loop and timed by the same stamps.

import type { OpenOptions } from '../../index.ts'

/** A request as the loop makes it: a read and a write request at once, used again and again. */
export interface Request {
  /** Bytes. */
  offset: number
  /** The same memory, to be written and to be read into. */
  readonly data: Buffer
  readonly into: Buffer
  /** Called once for each time it was started, later. */
  callback(error: Error | null): void
}

/** Counters since the target was opened. */
export interface Submissions {
  readSubmissions: number
  writeSubmissions: number
  flushes: number
  /** What was not submitted as it came: through a copy, or with a read before the write. */
  bounced: number
  rmw: number
  resubmitted: number
}

export interface Target {
  /** Carries out requests; each one's callback tells how it ended. The array is read during the call. */
  write(requests: readonly Request[]): void
  read(requests: readonly Request[]): void
  /** Makes durable what was written before. */
  flush(): Promise<void>
  /** Memory for requests, aligned as the target needs it. */
  alloc(size: number): Buffer
  /** `null` where requests are never merged, so that one is one. */
  submissions(): Submissions | null
  close(): Promise<void>
}

export type Kind = 'multiwrite' | 'fs'

export interface TargetOptions {
  path: string
  readOnly: boolean
  direct: boolean
  engine: NonNullable<OpenOptions['engine']>
  merge: 'full' | 'sort' | 'off'
  queueDepth: number
  busyPollUs: number
}
