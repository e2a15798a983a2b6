// What a device has done so far, as plain numbers.

/** A snapshot of a device's counters since it was opened. Bytes are those submitted, gaps included. */
export interface Stats {
  write: {
    /** Requests accepted. */
    requests: number
    /** Merged runs handed to the engine, each counted once. */
    submissions: number
    bytes: number
    /** Zeros between requests of one run. A format driver need not write them where it knows them to be there. */
    gapBytes: number
    /** Bytes of requests that were not written because a later request of the batch covers them. */
    overlapBytes: number
  }
  read: { requests: number; submissions: number; bytes: number }
  /** A format driver's own reads and writes. */
  metadata: { submissions: number; bytes: number }
  /** fdatasyncs made, not those asked for. */
  flushes: number
  discards: number
  /** Also those whose zeros had to be written: no writes are counted for them. */
  zeroes: number
  /** Submissions that went through a copy, since their memory could not be shown to the kernel as it was. */
  bounced: number
  /** Read-modify-writes of partial blocks. */
  rmw: number
  /** Short results carried on, and attempts that the kernel asked to repeat. */
  resubmitted: number
  /** Requests carried out singly after a merged submission had failed. */
  isolated: number
}

/** The counters themselves; everything that does I/O for the device adds to them. */
export type Counters = Stats

export function newCounters(): Counters {
  return {
    write: { requests: 0, submissions: 0, bytes: 0, gapBytes: 0, overlapBytes: 0 },
    read: { requests: 0, submissions: 0, bytes: 0 },
    metadata: { submissions: 0, bytes: 0 },
    flushes: 0,
    discards: 0,
    zeroes: 0,
    bounced: 0,
    rmw: 0,
    resubmitted: 0,
    isolated: 0,
  }
}

export function snapshot(counters: Counters): Stats {
  return {
    ...counters,
    write: { ...counters.write },
    read: { ...counters.read },
    metadata: { ...counters.metadata },
  }
}
