// What the planner is given and what it gives back, as flat arrays: one object per batch instead of one per request.
//
// A *unit* is one piece of memory that belongs at one range: a request with one buffer is one unit, a request with three
// buffers is three that follow each other. Units stand in the order of the batch, and a later unit wins where two overlap;
// units of one request never overlap. Nothing here does I/O or knows who owns a unit.

/** The most that one submission may carry. */
export interface Limits {
  /** Bytes of one submission, gaps included; a whole number of at least 1. */
  maxBytes: number
  /** Vectors of one submission; a whole number of at least 1. A filled gap counts as one. */
  maxSegments: number
  /**
   * Blocks of direct I/O, in bytes; 1 if not given, and a divisor of `maxBytes`. A run is cut between blocks only: one that
   * meets `maxSegments` elsewhere goes on to the end of its block, since vectors of such odd lengths have to be copied into one
   * anyway. Two units that have bytes in the same block are one run, whatever lies between them: it is to be kept as it is.
   */
  alignment?: number
  /** A place that no run crosses, and from which on there are no blocks; nowhere if not given. */
  tail?: number
}

/** A range of the device, in bytes. */
export interface Range {
  offset: number
  length: number
}

/**
 * May the gap between the run so far (`run`) and what comes next (`next`) be filled with zeros? Asked for gaps only, never
 * for ranges that touch or overlap, and only where the limits allow the join.
 */
export type MayFill = (run: Range, next: Range) => boolean

/** Units in the order of their batch. Only the first `count` entries of each array are used. */
export interface Units {
  count: number
  /** Bytes from the start of the device. */
  offset: Float64Array
  /** Bytes; zero-length units are ignored. */
  length: Float64Array
  /** 1 where the unit must be on stable storage when it is answered; `null` where no unit asks for it. */
  fua: Uint8Array | null
}

/**
 * Submissions, ascending by offset and disjoint (except those of `planSeparately`, which may overlap and stand in the
 * order that was asked for); the segments of submission `s` are `firstSegment[s]` to `firstSegment[s + 1] - 1`, in the
 * order of their place in it. The arrays may be longer than the counts say, and plans may share them: read, never write.
 */
export interface Plan {
  count: number
  offset: Float64Array
  length: Float64Array
  /** 1 where the submission goes out with FUA. */
  fua: Uint8Array
  /** `count + 1` entries. */
  firstSegment: Int32Array
  /** The unit that a segment's bytes come from; -1 for zeros, or for what a block held before. */
  segmentUnit: Int32Array
  /** Where in its unit the segment starts, in bytes. */
  segmentStart: Float64Array
  segmentLength: Float64Array
  /** Whether it is known that each unit is one segment, whole: nothing overlaps, nothing is filled, nothing is divided. */
  whole: boolean
  /** Whether it is known besides that the segments are the units in the order of their batch. */
  inOrder: boolean
}
