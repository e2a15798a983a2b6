// The plan of requests that are not to be merged: each is carried out as it was asked for, whole, in submissions of its own.
//
// This serves `merge.mode` `'sort'` (ascending by offset) and `'off'` (as given) and requests that ask not to be merged. Nothing
// is trimmed where requests overlap, so submissions of such a plan may overlap each other: whoever carries it out must
// start an overlapping one only when those of the earlier requests have ended.

import { float64s, int32s } from './arrays.ts'
import { sortOrder } from './sort.ts'
import { Submissions } from './submissions.ts'
import type { Limits, Plan, Units } from './units.ts'

/**
 * Plans each request by itself.
 *
 * @param units the units of a request stand next to each other and follow each other on the device
 * @param owner the request of each unit, or `null` where each unit is a request
 * @param limits what one submission may carry; a request above them becomes several submissions, one after another
 * @param sorted requests ascending by offset, those of equal offset in their order; otherwise all in their order
 */
export function planSeparately(units: Units, owner: Int32Array | null, limits: Limits, sorted: boolean): Plan {
  const { offset, length } = units
  const out = new Submissions(limits, null, units.count, false)
  const first = owner === null ? null : firstUnits(owner, units.count)
  const requests = first === null ? units.count : first.length - 1
  const order = sorted ? sortOrder(first === null ? offset : offsetsOf(first, offset), requests) : null
  for (let place = 0; place < requests; place++) {
    const request = order === null ? place : order[place]!
    const start = first === null ? request : first[request]!
    const end = first === null ? request + 1 : first[request + 1]!
    const fua = fuaOf(units, start, end)
    out.close()
    for (let unit = start; unit < end; unit++) {
      if (length[unit]! > 0) out.add(unit, 0, offset[unit]!, length[unit]!, fua)
    }
  }
  return out.finish()
}

/** Where the units of each request start, and the number of units at the end. */
function firstUnits(owner: Int32Array, count: number): Int32Array {
  const first = int32s(count + 1)
  let requests = 0
  for (let unit = 0; unit < count; unit++) {
    if (unit === 0 || owner[unit] !== owner[unit - 1]) first[requests++] = unit
  }
  first[requests] = count
  return first.subarray(0, requests + 1)
}

function offsetsOf(first: Int32Array, offset: Float64Array): Float64Array {
  const offsets = float64s(first.length - 1)
  for (let request = 0; request < offsets.length; request++) offsets[request] = offset[first[request]!]!
  return offsets
}

/** Whether a request asks for FUA: if one of its units does. */
function fuaOf(units: Units, start: number, end: number): number {
  if (units.fua === null) return 0
  for (let unit = start; unit < end; unit++) if (units.fua[unit] === 1) return 1
  return 0
}
