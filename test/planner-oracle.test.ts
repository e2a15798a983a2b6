// The planner against an oracle that carries the requests out one after another, byte by byte: random batches, with flags,
// gaps, blocks, and offsets beyond 2^31 sectors. MULTIWRITE_LONG=1 runs more of them.

import fc from 'fast-check'
import { plan } from 'multiwrite/planner'
import { describe, expect, test } from 'vitest'
import { planMerged } from '../lib/planner/merge.ts'
import { planSeparately } from '../lib/planner/separate.ts'
import { sortOrder } from '../lib/planner/sort.ts'
import type { Limits, MayFill, Plan, Units } from '../lib/planner/units.ts'

const LONG = process.env.MULTIWRITE_LONG === '1'
const RUNS = LONG ? 40_000 : 4_000

interface Request {
  offset: number
  length: number
  fua?: boolean
}

interface Submission {
  offset: number
  length: number
  fua: boolean
  segments: { request: number | null; start: number; length: number }[]
}

/** The plan as a slow and simple program makes it: every stretch between two edges by itself, then joined one by one. */
function reference(requests: readonly Request[], limits: Limits, mayFill: MayFill | null): Submission[] {
  const edges = [...new Set(requests.flatMap(({ offset, length }) => [offset, offset + length]))].sort((a, b) => a - b)
  const pieces: { offset: number; length: number; request: number; fua: boolean }[] = []
  for (const [i, start] of edges.slice(0, -1).entries()) {
    const end = edges[i + 1]!
    const covering = requests.flatMap((r, index) => (r.offset <= start && r.offset + r.length >= end ? [index] : []))
    const request = covering.at(-1)
    if (request === undefined) continue
    const fua = covering.some((index) => requests[index]!.fua === true)
    const last = pieces.at(-1)
    if (last?.request === request && last.fua === fua) last.length += end - start
    else pieces.push({ offset: start, length: end - start, request, fua })
  }
  const submissions: Submission[] = []
  for (const piece of pieces) {
    const { request, fua } = piece
    const run = submissions.at(-1)
    const place = piece.offset - requests[request]!.offset
    if (run !== undefined && run.fua === fua) {
      const gap = piece.offset - run.offset - run.length
      const length = run.length + gap + piece.length
      const segments = run.segments.length + (gap > 0 ? 2 : 1)
      if (length <= limits.maxBytes && segments <= limits.maxSegments) {
        const { offset } = run
        if (gap === 0 || mayFill?.({ offset, length: run.length }, { offset: piece.offset, length: piece.length })) {
          if (gap > 0) run.segments.push({ request: null, start: 0, length: gap })
          run.segments.push({ request, start: place, length: piece.length })
          run.length = length
          continue
        }
      }
    }
    for (let done = 0; done < piece.length; done += limits.maxBytes) {
      const length = Math.min(limits.maxBytes, piece.length - done)
      const segments = [{ request, start: place + done, length }]
      submissions.push({ offset: piece.offset + done, length, fua, segments })
    }
  }
  return submissions
}

function withoutFlags(submissions: readonly Submission[]): Omit<Submission, 'fua'>[] {
  return submissions.map(({ offset, length, segments }) => ({ offset, length, segments }))
}

function same(a: readonly Omit<Submission, 'fua'>[], b: readonly Submission[]): boolean {
  return JSON.stringify(a) === JSON.stringify(withoutFlags(b))
}

function toUnits(requests: readonly Request[]): Units {
  return {
    count: requests.length,
    offset: Float64Array.from(requests, ({ offset }) => offset),
    length: Float64Array.from(requests, ({ length }) => length),
    fua: requests.some(({ fua }) => fua) ? Uint8Array.from(requests, ({ fua }) => (fua ? 1 : 0)) : null,
  }
}

function fromPlan(planned: Plan): Submission[] {
  return Array.from({ length: planned.count }, (_, at) => ({
    offset: planned.offset[at]!,
    length: planned.length[at]!,
    fua: planned.fua[at] === 1,
    segments: Array.from({ length: planned.firstSegment[at + 1]! - planned.firstSegment[at]! }, (_, i) => {
      const segment = planned.firstSegment[at]! + i
      const unit = planned.segmentUnit[segment]!
      return {
        request: unit < 0 ? null : unit,
        start: planned.segmentStart[segment]!,
        length: planned.segmentLength[segment]!,
      }
    }),
  }))
}

/** Who wrote each byte, and with which byte of its data, after one request after another. */
function carryOut(requests: readonly Request[]): Map<number, string> {
  const bytes = new Map<number, string>()
  for (const [index, { offset, length }] of requests.entries()) {
    for (let i = 0; i < length; i++) bytes.set(offset + i, `${index}:${i}`)
  }
  return bytes
}

/** The same for submissions, which are to write every byte once and between requests nothing but zeros. */
function submit(submissions: readonly Submission[]): { bytes: Map<number, string>; zeros: Set<number> } {
  const bytes = new Map<number, string>()
  const zeros = new Set<number>()
  for (const { offset, segments } of submissions) {
    let place = offset
    for (const { request, start, length } of segments) {
      for (let i = 0; i < length; i++, place++) {
        if (bytes.has(place) || zeros.has(place)) throw new Error(`byte ${place} is written twice`)
        if (request === null) zeros.add(place)
        else bytes.set(place, `${request}:${start + i}`)
      }
    }
  }
  return { bytes, zeros }
}

const SECTOR = 512
/** Starts of the neighbourhoods in which requests meet: 2^31 sectors apart, one sector off, and near the last byte of all. */
const NEIGHBOURHOODS = [0, 2 ** 31 * SECTOR, (2 ** 31 + 1) * SECTOR, 2 ** 32 * SECTOR, 2 ** 33 * SECTOR, 2 ** 53 - 200]

const request = (cells: number): fc.Arbitrary<Request> =>
  fc.record({
    offset: fc
      .tuple(fc.constantFrom(...NEIGHBOURHOODS), fc.nat(cells))
      .map(([neighbourhood, cell]) => neighbourhood + cell),
    length: fc.oneof({ weight: 5, arbitrary: fc.nat(8) }, { weight: 1, arbitrary: fc.nat(60) }),
    fua: fc.oneof({ weight: 3, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.boolean() }),
  })

const limit = (max: number): fc.Arbitrary<number> => fc.oneof(fc.integer({ min: 1, max }), fc.constant(Infinity))

const situation: fc.Arbitrary<{ requests: Request[]; limits: Limits; consent: number }> = fc.record({
  requests: fc.oneof(fc.array(request(20), { maxLength: 12 }), fc.array(request(120), { maxLength: 80 })),
  limits: fc.record({ maxBytes: limit(80), maxSegments: limit(12) }),
  consent: fc.nat(10),
})

/** Agrees to some gaps within a neighbourhood, and to the same ones whenever it is asked. */
function choosy(consent: number): MayFill {
  return (run, next) => {
    if (next.offset - run.offset > 1000) return false
    return ((run.offset % 97) + (run.length % 89) * 3 + (next.offset % 83) * 7 + next.length) % 10 < consent
  }
}

test('the exported function plans every batch of up to two requests in eight bytes as the slow and simple program does', () => {
  const ranges: Request[] = []
  for (let offset = 0; offset <= 8; offset++) {
    for (let length = 0; offset + length <= 8; length++) ranges.push({ offset, length })
  }
  const limitsAll: Limits[] = []
  for (let maxBytes = 1; maxBytes <= 8; maxBytes++) {
    for (let maxSegments = 1; maxSegments <= 3; maxSegments++) limitsAll.push({ maxBytes, maxSegments })
  }
  for (const a of ranges) {
    for (const b of [null, ...ranges]) {
      const requests = [a, b].filter((one) => one !== null)
      for (const limits of limitsAll) {
        const wanted = reference(requests, limits, null)
        const { submissions } = plan(requests, limits)
        if (!same(submissions, wanted)) expect(submissions).toEqual(withoutFlags(wanted))
      }
    }
  }
})

describe('random batches', { timeout: 600_000 }, () => {
  const options = { numRuns: RUNS }

  test('come out as the slow and simple program plans them', () => {
    fc.assert(
      fc.property(situation, ({ requests, limits, consent }) => {
        const mayFill = consent === 0 ? null : choosy(consent)
        expect(fromPlan(planMerged(toUnits(requests), limits, mayFill))).toEqual(reference(requests, limits, mayFill))
      }),
      options,
    )
  })

  test('write the bytes of one request after another, each once, ascending and within the limits', () => {
    fc.assert(
      fc.property(situation, ({ requests, limits, consent }) => {
        const submissions = fromPlan(planMerged(toUnits(requests), limits, choosy(consent)))
        const { bytes, zeros } = submit(submissions)
        expect(bytes).toEqual(new Map([...carryOut(requests)].sort(([a], [b]) => a - b)))
        if (consent === 0) expect(zeros.size).toBe(0)
        let end = 0
        for (const submission of submissions) {
          expect(submission.offset).toBeGreaterThanOrEqual(end)
          end = submission.offset + submission.length
          expect(submission.length).toBe(submission.segments.reduce((sum, segment) => sum + segment.length, 0))
          expect(submission.length).toBeLessThanOrEqual(limits.maxBytes)
          expect(submission.segments.length).toBeLessThanOrEqual(limits.maxSegments)
          expect(submission.segments[0]?.request).not.toBeNull()
          expect(submission.segments.at(-1)?.request).not.toBeNull()
        }
      }),
      options,
    )
  })

  test('leave no two neighbours apart that the limits would let join', () => {
    fc.assert(
      fc.property(situation, ({ requests, limits, consent }) => {
        const fillAll = consent >= 5
        const submissions = fromPlan(planMerged(toUnits(requests), limits, () => fillAll))
        for (const [i, next] of submissions.entries()) {
          const before = submissions[i - 1]
          if (before === undefined || before.fua !== next.fua) continue
          const gap = next.offset - before.offset - before.length
          if (gap > 0 && !fillAll) continue
          const length = before.length + gap + next.length
          const segments = before.segments.length + (gap > 0 ? 1 : 0) + next.segments.length
          expect(length > limits.maxBytes || segments > limits.maxSegments).toBe(true)
        }
      }),
      options,
    )
  })

  test('are asked about gaps only: never about ranges that touch or overlap, nor where the limits forbid the join', () => {
    fc.assert(
      fc.property(situation, ({ requests, limits, consent }) => {
        const agrees = choosy(consent)
        let endOfLastQuestion = 0
        planMerged(toUnits(requests), limits, (run, next) => {
          expect(next.offset).toBeGreaterThan(run.offset + run.length)
          expect(next.offset + next.length - run.offset).toBeLessThanOrEqual(limits.maxBytes)
          expect(next.offset).toBeGreaterThanOrEqual(endOfLastQuestion)
          const touched = requests.some(
            ({ offset, length }) => length > 0 && offset < next.offset && offset + length > run.offset + run.length,
          )
          expect(touched).toBe(false)
          endOfLastQuestion = next.offset
          return agrees(run, next)
        })
      }),
      options,
    )
  })

  test('have each byte written with FUA if and only if a request that covers it asked for it', () => {
    fc.assert(
      fc.property(situation, ({ requests, limits, consent }) => {
        const durable = new Set<number>()
        for (const { offset, length, fua } of requests) {
          if (fua) for (let i = 0; i < length; i++) durable.add(offset + i)
        }
        for (const { offset, fua, segments } of fromPlan(planMerged(toUnits(requests), limits, choosy(consent)))) {
          let place = offset
          for (const segment of segments) {
            for (let i = 0; i < segment.length; i++, place++) {
              if (segment.request !== null) expect(durable.has(place)).toBe(fua)
            }
          }
        }
      }),
      options,
    )
  })
})

// Batches without overlaps have a short way of their own. A request without bytes, which has no part in a plan, bars it.
test('batches of which no request is divided or hidden come out as by the general way', { timeout: 600_000 }, () => {
  const step = fc.record({
    gap: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(12) }),
    length: fc.oneof(
      { weight: 4, arbitrary: fc.constant(4) },
      { weight: 1, arbitrary: fc.integer({ min: 1, max: 12 }) },
    ),
    fua: fc.boolean(),
    place: fc.nat(),
  })
  const laidOut = fc.record({
    steps: fc.array(step, { minLength: 2, maxLength: 40 }),
    shuffled: fc.boolean(),
    flags: fc.constantFrom('none', 'all', 'some'),
    alignment: fc.constantFrom(1, 4, 8, 5),
    blocks: fc.integer({ min: 1, max: 12 }),
    maxSegments: limit(12),
    tail: fc.option(fc.nat(200), { nil: undefined }),
    fills: fc.constantFrom(
      null,
      () => true,
      () => false,
    ),
  })
  const ways = { short: 0, inOrder: 0, general: 0 }
  fc.assert(
    fc.property(laidOut, ({ steps, shuffled, flags, alignment, blocks, maxSegments, tail, fills }) => {
      let place = 0
      const requests = steps.map(({ gap, length, fua }) => {
        const offset = place + gap
        place = offset + length
        return { offset, length, fua: flags === 'all' || (flags === 'some' && fua) }
      })
      if (shuffled)
        requests.sort((a, b) => steps[a.offset % steps.length]!.place - steps[b.offset % steps.length]!.place)
      const limits = { maxBytes: blocks * alignment, maxSegments, alignment, ...(tail === undefined ? {} : { tail }) }
      const planned = planMerged(toUnits(requests), limits, fills)
      const general = planMerged(toUnits([...requests, { offset: place, length: 0 }]), limits, fills)
      expect(general.whole).toBe(false)
      expect(fromPlan(planned)).toEqual(fromPlan(general))
      if (planned.inOrder) ways.inOrder++
      else if (planned.whole) ways.short++
      else ways.general++
    }),
    { numRuns: RUNS },
  )
  expect(Math.min(...Object.values(ways))).toBeGreaterThan(RUNS / 100)
})

// Direct I/O can stop at whole blocks only: a block that two submissions wrote in would be read, changed and written by both.
describe('batches for a device that writes whole blocks', { timeout: 600_000 }, () => {
  const aligned = fc.record({
    requests: fc.array(request(60), { maxLength: 60 }),
    alignment: fc.constantFrom(1, 2, 4, 8, 5),
    blocks: fc.integer({ min: 1, max: 10 }),
    maxSegments: limit(12),
    tail: fc.option(fc.nat(60), { nil: undefined }),
  })

  test('are cut between blocks, within the limits, and no more often than these ask for', () => {
    fc.assert(
      fc.property(aligned, ({ requests, alignment, blocks, maxSegments, tail = Number.POSITIVE_INFINITY }) => {
        const maxBytes = blocks * alignment
        const submissions = fromPlan(planMerged(toUnits(requests), { maxBytes, maxSegments, alignment, tail }))
        expect(submit(submissions).bytes).toEqual(carryOut(requests))
        const blockOf = (place: number): number => Math.floor(place / alignment)
        for (const [i, { offset, length, fua, segments }] of submissions.entries()) {
          const end = offset + length
          const isBelow = offset < tail
          expect(isBelow && end > tail).toBe(false)
          /** Bytes from the start of the first block to `to`. */
          const inBlocks = (to: number): number => to - offset + (isBelow ? offset % alignment : 0)
          expect(inBlocks(end)).toBeLessThanOrEqual(maxBytes)
          // What meets the limit inside of a block goes on to its end.
          expect(segments.length).toBeLessThanOrEqual(maxSegments + (isBelow ? alignment - 1 : 0))
          let place = offset
          for (const segment of segments) {
            place += segment.length
            // What no request writes is left as it is, which only a block can hold that is written for other bytes of it.
            if (segment.request !== null) continue
            expect(isBelow).toBe(true)
            expect(blockOf(place)).toBe(blockOf(place - segment.length - 1))
          }
          const next = submissions[i + 1]
          if (next === undefined || next.offset === tail) continue
          if (isBelow && next.offset < tail) expect(blockOf(next.offset)).not.toBe(blockOf(end - 1))
          // A flag may be raised by what comes into the last block: then these two could not be joined when they were cut.
          if (next.offset !== end || requests.some((one) => one.fua)) continue
          expect(fua).toBe(next.fua)
          const divided = next.segments[0]!.request === segments.at(-1)!.request ? 1 : 0
          const isTooLong = inBlocks(next.offset + next.length) > maxBytes
          expect(isTooLong || segments.length + next.segments.length - divided > maxSegments).toBe(true)
        }
      }),
      { numRuns: RUNS },
    )
  })

  test('have each byte written with FUA that a request with FUA covers', () => {
    fc.assert(
      fc.property(aligned, ({ requests, alignment, blocks, maxSegments, tail = Number.POSITIVE_INFINITY }) => {
        const limits = { maxBytes: blocks * alignment, maxSegments, alignment, tail }
        const durable = new Set<number>()
        for (const { offset, fua, length } of fromPlan(planMerged(toUnits(requests), limits))) {
          if (fua) for (let i = 0; i < length; i++) durable.add(offset + i)
        }
        for (const { offset, length, fua } of requests) {
          if (!fua) continue
          for (let i = 0; i < length; i++) if (!durable.has(offset + i)) expect(durable).toContain(offset + i)
        }
      }),
      { numRuns: RUNS },
    )
  })

  test('take the rest of a request that begins in the last block, at the limit of segments too', () => {
    const requests = [
      { offset: 0, length: 2 },
      { offset: 2, length: 12 },
    ]
    const limits = { maxBytes: 16, maxSegments: 2, alignment: 4 }
    expect(fromPlan(planMerged(toUnits(requests), limits)).map(({ length }) => length)).toEqual([14])
    // The gap within the block is a segment as well: now there is one too many.
    const apart = [requests[0]!, { offset: 3, length: 11 }]
    expect(fromPlan(planMerged(toUnits(apart), limits)).map(({ length }) => length)).toEqual([4, 10])
    expect(fromPlan(planMerged(toUnits(apart), { ...limits, maxSegments: 3 })).map(({ length }) => length)).toEqual([
      14,
    ])
  })

  test('count a single request from the start of its block as well', () => {
    const single = (offset: number, length: number): unknown =>
      fromPlan(planMerged(toUnits([{ offset, length }]), { maxBytes: 8, maxSegments: 4, alignment: 4 })).map((made) => [
        made.offset,
        made.length,
      ])
    expect(single(4, 8)).toEqual([[4, 8]])
    expect(single(6, 6)).toEqual([[6, 6]])
    expect(single(6, 8)).toEqual([
      [6, 6],
      [12, 2],
    ])
  })
})

describe('the order of a batch', { timeout: 600_000 }, () => {
  test('is ascending and stable, and nothing is made where it stands so already', () => {
    // Bits beyond the 32nd decide in some, and lengths around those at which runs are made longer occur.
    const starts = fc.array(
      fc.oneof(
        fc.nat(30),
        fc.nat(3).map((n) => n * 2 ** 40),
      ),
      { maxLength: 300, size: 'max' },
    )
    fc.assert(
      fc.property(starts, fc.boolean(), fc.boolean(), (values, backwards, inParts) => {
        if (backwards) values.sort((a, b) => b - a)
        if (inParts) values.splice(0, values.length >> 1, ...values.slice(0, values.length >> 1).sort((a, b) => a - b))
        const indices = values.map((_, index) => index)
        const wanted = indices.toSorted((a, b) => values[a]! - values[b]! || a - b)
        const order = sortOrder(Float64Array.from(values), values.length)
        expect(order === null ? indices : [...order]).toEqual(wanted)
        expect(order === null).toBe(wanted.every((index, place) => index === place))
      }),
      { numRuns: RUNS },
    )
  })

  test('is so in batches of thousands, with few and with many equal starts', () => {
    let state = 1
    const random = (below: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      return Math.floor((state / 2 ** 32) * below)
    }
    for (const count of [17, 100, 1_000, 5_000]) {
      for (const places of [2, 10, count, 1_000_000]) {
        // Neighbouring places lie 1 TiB and a little apart: what 32 bits make of the difference has the wrong sign.
        const values = Array.from({ length: count }, () => random(places) * (2 ** 40 + 2 ** 31))
        const wanted = values.map((_, index) => index).sort((a, b) => values[a]! - values[b]! || a - b)
        expect([...sortOrder(Float64Array.from(values), count)!]).toEqual(wanted)
      }
    }
  })

  test('takes only the entries that count', () => {
    expect(sortOrder(Float64Array.of(1, 2, 0), 2)).toBeNull()
    expect([...sortOrder(Float64Array.of(2, 1, 0), 2)!]).toEqual([1, 0])
  })
})

describe('requests that are not to be merged', { timeout: 600_000 }, () => {
  /** Requests of several buffers each: their units and owners. */
  const owners = fc.array(fc.tuple(request(40), fc.array(fc.nat(9), { minLength: 1, maxLength: 4 })), { maxLength: 20 })

  function split(given: readonly (readonly [Request, readonly number[]])[]): { units: Units; owner: Int32Array } {
    const pieces: Request[] = []
    const owner: number[] = []
    for (const [index, [{ offset, fua }, lengths]] of given.entries()) {
      let place = offset
      for (const length of lengths) {
        pieces.push({ offset: place, length, fua: fua === true })
        owner.push(index)
        place += length
      }
    }
    return { units: toUnits(pieces), owner: Int32Array.from(owner) }
  }

  test('go out whole and untrimmed, each by itself, as given or ascending', () => {
    fc.assert(
      fc.property(owners, limit(20), limit(4), fc.boolean(), (given, maxBytes, maxSegments, sorted) => {
        const { units, owner } = split(given)
        const limits = { maxBytes, maxSegments }
        const order = given.map((_, index) => index)
        if (sorted) order.sort((a, b) => given[a]![0].offset - given[b]![0].offset || a - b)
        const wanted = order.flatMap((index) => {
          const [{ offset, fua }, lengths] = given[index]!
          let place = offset
          const alone = lengths.map((length) => {
            place += length
            return { offset: place - length, length, fua: fua === true }
          })
          const firstUnit = owner.indexOf(index)
          return reference(alone, limits, null).map((submission) => ({
            ...submission,
            segments: submission.segments.map((segment) => ({ ...segment, request: firstUnit + segment.request! })),
          }))
        })
        expect(fromPlan(planSeparately(units, owner, limits, sorted))).toEqual(wanted)
      }),
      { numRuns: RUNS },
    )
  })

  test('need no owners where each has one buffer', () => {
    const units = toUnits([
      { offset: 8, length: 8 },
      { offset: 0, length: 8, fua: true },
      { offset: 4, length: 0 },
      { offset: 4, length: 8 },
    ])
    const limits = { maxBytes: 1024, maxSegments: 8 }
    const ranges = (sorted: boolean): unknown =>
      fromPlan(planSeparately(units, null, limits, sorted)).map(({ offset, length, fua }) => [offset, length, fua])
    const first = [0, 8, true]
    const middle = [4, 8, false]
    const last = [8, 8, false]
    expect(ranges(false)).toEqual([last, first, middle])
    expect(ranges(true)).toEqual([first, middle, last])
  })
})
