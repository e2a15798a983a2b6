// The conformance cases (the shapes of QEMU's own tests and of the defects found in its function), through the planner: the
// bytes that result, the ranges submitted, the limits. Each once more with everything eight times as large.

import fs from 'node:fs'
import { plan } from 'multiwrite/planner'
import { describe, expect, test } from 'vitest'

/** Offset, length, and the byte that is written. */
type Stretch = [number, number, number]

interface Case {
  id: string
  title: string
  requests: Stretch[]
  content: Stretch[]
  submissions?: [number, number][]
  submissionsAtMost?: number
  limits?: { maxBytes?: number; maxSegments?: number }
  /** What the driver answers when it is asked for a gap. */
  fillGaps?: boolean
}

const file = new URL('./conformance/multiwrite-cases.json', import.meta.url)
const { cases } = JSON.parse(fs.readFileSync(file, 'utf8')) as { cases: Case[] }

/** Stretches of equal bytes that touch, as one: the contents are the same. */
function joined(stretches: Stretch[]): Stretch[] {
  const result: Stretch[] = []
  for (const [offset, length, byte] of stretches) {
    const last = result.at(-1)
    if (last !== undefined && last[0] + last[1] === offset && last[2] === byte) last[1] += length
    else result.push([offset, length, byte])
  }
  return result
}

describe.each([1, 8])('scaled by %i', (scale) => {
  test.each(cases)('$id: $title', ({ requests, content, submissions, submissionsAtMost, limits, fillGaps }) => {
    const maxBytes = (limits?.maxBytes ?? Number.POSITIVE_INFINITY) * scale
    const maxSegments = limits?.maxSegments ?? Number.POSITIVE_INFINITY
    const planned = plan(
      requests.map(([offset, length]) => ({ offset: offset * scale, length: length * scale })),
      { maxBytes, maxSegments },
      fillGaps === undefined ? undefined : () => fillGaps,
    ).submissions

    const written: Stretch[] = []
    for (const { offset, length, segments } of planned) {
      let place = offset
      for (const segment of segments) {
        if (segment.request !== null) {
          expect(segment.start).toBe(place - requests[segment.request]![0] * scale)
          expect(segment.start + segment.length).toBeLessThanOrEqual(requests[segment.request]![1] * scale)
        }
        written.push([place, segment.length, segment.request === null ? 0 : requests[segment.request]![2]])
        place += segment.length
      }
      expect(place - offset).toBe(length)
      expect(length).toBeLessThanOrEqual(maxBytes)
      expect(segments.length).toBeLessThanOrEqual(maxSegments)
    }
    expect(joined(written)).toEqual(
      joined(content.map(([offset, length, byte]) => [offset * scale, length * scale, byte])),
    )

    const ranges = planned.map(({ offset, length }) => [offset, length])
    if (submissions !== undefined) {
      expect(ranges).toEqual(submissions.map(([offset, length]) => [offset * scale, length * scale]))
    }
    if (submissionsAtMost !== undefined) expect(ranges.length).toBeLessThanOrEqual(submissionsAtMost)
    expect(submissions ?? submissionsAtMost).toBeDefined()
  })
})

test('there are cases', () => {
  expect(cases.length).toBe(35)
})
