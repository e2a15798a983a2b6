// The planner as it is exported: a pure function from requests to submissions, for whoever wants to see, test or reuse what
// `multiwrite` does with a batch. It checks its arguments, turns objects into the flat arrays that the planner proper works
// on, and the plan back into objects. It opens nothing and runs on every platform.

import { invalidType, outOfRange } from './errors-argument.ts'
import { planMerged } from './planner/merge.ts'
import type { MayFill, Plan, Range, Units } from './planner/units.ts'

export type { MayFill, Range }

/** A write of `length` bytes at `offset`. */
export interface PlanRequest {
  /** Bytes from the start of the device: a safe integer, or a `bigint` that is one. */
  readonly offset: number | bigint
  /** Bytes: a safe integer. A request of no bytes has no part in the plan. */
  readonly length: number
}

/** The most that one submission may carry; `Infinity` for no limit. */
export interface PlanLimits {
  /** Bytes of one submission, filled gaps included: a whole number of at least 1. */
  readonly maxBytes: number
  /** Segments of one submission, a filled gap counted as one: a whole number of at least 1. */
  readonly maxSegments: number
}

/** A piece of a submission that comes from one place. */
export interface PlannedSegment {
  /** Index of the request that the bytes come from, or `null` for zeros. */
  request: number | null
  /** Where in the data of the request the piece starts, in bytes. */
  start: number
  /** Bytes. */
  length: number
}

/** One write to the device: its segments, one after another, from `offset` on. */
export interface PlannedSubmission {
  /** Bytes from the start of the device. */
  offset: number
  /** Bytes: the sum of its segments. */
  length: number
  segments: PlannedSegment[]
}

/** What to submit: ascending by offset, and no two submissions overlap. */
export interface PlanResult {
  submissions: PlannedSubmission[]
}

/** Of a plan longer than this nothing useful could be done, and it would not fit into memory. */
const PIECES_MAX = 2 ** 26

/**
 * Plans a batch of writes as `BlockDevice.multiwrite` does: sorted, overlaps resolved so that the bytes are those of
 * carrying the requests out one after another, touching ranges merged, cut to the limits.
 *
 * A submission is cut at the edges of requests; a piece is divided only when it alone is more than `maxBytes`, and then
 * into pieces of `maxBytes` and a rest, which may be merged with what follows.
 *
 * @param requests in the order in which they would be carried out
 * @param limits what one submission may carry
 * @param mayFill may the gap between the run so far and the next piece be filled with zeros? Asked for gaps only, lowest
 *   first, and only where the limits allow the join. Only `true` is consent.
 * @throws TypeError `ERR_INVALID_ARG_TYPE`, RangeError `ERR_OUT_OF_RANGE`: the message names the argument, such as
 *   `requests[1].offset`. An error that `mayFill` throws is passed on.
 */
export function plan(requests: readonly PlanRequest[], limits: PlanLimits, mayFill?: MayFill): PlanResult {
  if (!Array.isArray(requests)) throw invalidType('requests', 'Array', requests)
  if (typeof limits !== 'object' || limits === null) throw invalidType('limits', 'object', limits)
  const maxBytes = checkLimit('limits.maxBytes', limits.maxBytes)
  const maxSegments = checkLimit('limits.maxSegments', limits.maxSegments)
  if (mayFill !== undefined && typeof mayFill !== 'function') throw invalidType('mayFill', 'function', mayFill)
  const units = unitsOf(requests)
  let pieces = 0
  for (let unit = 0; unit < units.count; unit++) pieces += Math.ceil(units.length[unit]! / maxBytes)
  if (pieces > PIECES_MAX) {
    throw outOfRange('limits.maxBytes', `enough for a plan of at most ${PIECES_MAX} pieces`, maxBytes)
  }
  return { submissions: describe(planMerged(units, { maxBytes, maxSegments }, mayFill ?? null)) }
}

/** Reads and checks every request once. */
function unitsOf(requests: readonly PlanRequest[]): Units {
  const count = requests.length
  const units = { count, offset: new Float64Array(count), length: new Float64Array(count), fua: null }
  for (let index = 0; index < count; index++) {
    const request: unknown = requests[index]
    const name = `requests[${index}]`
    if (typeof request !== 'object' || request === null) throw invalidType(name, 'object', request)
    const { offset, length } = request as { offset: unknown; length: unknown }
    if (typeof offset !== 'number' && typeof offset !== 'bigint') {
      throw invalidType(`${name}.offset`, ['number', 'bigint'], offset)
    }
    if (typeof length !== 'number') throw invalidType(`${name}.length`, 'number', length)
    units.offset[index] = checkSafe(`${name}.offset`, offset)
    units.length[index] = checkSafe(`${name}.length`, length)
    if (units.offset[index]! + units.length[index]! > Number.MAX_SAFE_INTEGER) {
      throw outOfRange(`${name}.offset + length`, `<= ${Number.MAX_SAFE_INTEGER}`, BigInt(offset) + BigInt(length))
    }
  }
  return units
}

function checkSafe(name: string, value: number | bigint): number {
  const number = Number(value)
  if (!Number.isInteger(number)) throw outOfRange(name, 'an integer', value)
  if (number < 0 || number > Number.MAX_SAFE_INTEGER) {
    throw outOfRange(name, `>= 0 and <= ${Number.MAX_SAFE_INTEGER}`, value)
  }
  // What is left of -0 would show in the plan.
  return number + 0
}

function checkLimit(name: string, value: unknown): number {
  if (typeof value !== 'number') throw invalidType(name, 'number', value)
  if (value !== Number.POSITIVE_INFINITY && !(Number.isSafeInteger(value) && value >= 1)) {
    throw outOfRange(name, 'a whole number >= 1, or Infinity', value)
  }
  return value
}

function describe(flat: Plan): PlannedSubmission[] {
  const submissions: PlannedSubmission[] = []
  for (let at = 0; at < flat.count; at++) {
    const segments: PlannedSegment[] = []
    for (let segment = flat.firstSegment[at]!; segment < flat.firstSegment[at + 1]!; segment++) {
      const unit = flat.segmentUnit[segment]!
      segments.push({
        request: unit < 0 ? null : unit,
        start: flat.segmentStart[segment]!,
        length: flat.segmentLength[segment]!,
      })
    }
    submissions.push({ offset: flat.offset[at]!, length: flat.length[at]!, segments })
  }
  return submissions
}
