// What whoever watches the process can hear of: `node:diagnostics_channel`, for tracing and metrics without a hand in the code
// that uses the library. Called by the dispatch once per batch and by the queue once per submission.
//
// It must cost nothing when nobody listens: then a batch is asked about once, nothing is made for it and nothing is wrapped.

import { channel, tracingChannel } from 'node:diagnostics_channel'
import type { Work } from './requests.ts'
import type { Counters } from './stats.ts'
import type { Submission } from './submission.ts'

/**
 * What the channels `tracing:multiwrite.batch:*` tell of a batch. Single calls of one turn are one batch. Node adds `result` or
 * `error` when it has ended.
 */
export interface BatchMessage {
  /** As it was given to `open`. */
  readonly path: string
  readonly engine: string
  readonly operation: 'write' | 'read'
  readonly requests: number
  /** Of all requests. */
  readonly bytes: number
}

/** What the channel `multiwrite:submission` tells when a merged run is handed to the kernel: as often as `stats` counts one. */
export interface SubmissionMessage {
  readonly path: string
  readonly engine: string
  readonly operation: 'write' | 'read'
  /** Bytes from the start of the device. */
  readonly offset: number
  /** Bytes. */
  readonly length: number
  /** Requests that have bytes in it. */
  readonly requests: number
}

interface Device {
  readonly path: string
  readonly engine: string
}

const batches = tracingChannel<BatchMessage>('multiwrite.batch')
const submissions = channel('multiwrite:submission')
/** Devices by their counters: what submits knows those, and need not know more for the sake of whoever listens. */
const devices = new WeakMap<Counters, Device>()

export function introduce(counters: Counters, device: Device): void {
  devices.set(counters, device)
}

/** Whether somebody wants to hear of batches. */
export function batchesAreWatched(): boolean {
  return batches.hasSubscribers
}

/** Starts a batch, and tells of its start, its end and what came of it. */
export function watchBatch<T>(
  counters: Counters,
  { read, count, length }: Pick<Work, 'read' | 'count' | 'length'>,
  start: () => Promise<T>,
): Promise<T> {
  let bytes = 0
  for (let request = 0; request < count; request++) bytes += length[request]!
  const message = { ...devices.get(counters)!, operation: read ? 'read' : 'write', requests: count, bytes } as const
  return batches.tracePromise(start, message)
}

/** Tells of a merged run that goes to the kernel. */
export function tellSubmission(counters: Counters, submission: Submission): void {
  if (!submissions.hasSubscribers) return
  const { read, offset, length, membersFrom, membersTo } = submission
  const operation = read ? 'read' : 'write'
  submissions.publish({ ...devices.get(counters)!, operation, offset, length, requests: membersTo - membersFrom })
}
