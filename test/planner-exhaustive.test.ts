// Every batch of up to four requests in eight bytes, under every limit that can make a difference, against an oracle that
// carries the requests out one after another, byte by byte, and one that tries all ways to cut.
//
// Thousands of batches are laid side by side, 16 bytes apart, and planned in one call: none touches another, so each is
// planned as if it were alone. What a batch comes to is held in a few integers: four bits per byte for the winner (0 for
// none, otherwise 1 + the request), and masks of the bytes where a segment or a submission starts.

import { describe, expect, test } from 'vitest'
import { planMerged } from '../lib/planner/merge.ts'
import type { Limits, Units } from '../lib/planner/units.ts'

const LONG = process.env.MULTIWRITE_LONG === '1'

const CELLS = 8
const STRIDE = 16
/** Beyond 2^31 sectors, so that every comparison is one that 32 bits cannot make. */
const BASE = 2 ** 44
const BATCHES_AT_ONCE = 4096
/** Four requests have at most seven winners side by side, and the gaps between eight bytes are not filled here. */
const SEGMENTS_MAX = 7

interface Interval {
  start: number
  length: number
}

function intervals(lengthMin: number): Interval[] {
  const all: Interval[] = []
  for (let start = 0; start < CELLS + 1 - lengthMin; start++) {
    for (let length = lengthMin; start + length <= CELLS; length++) all.push({ start, length })
  }
  return all
}

function everyLimit(): Limits[] {
  const all: Limits[] = []
  for (let maxBytes = 1; maxBytes <= CELLS; maxBytes++) {
    for (let maxSegments = 1; maxSegments <= SEGMENTS_MAX; maxSegments++) all.push({ maxBytes, maxSegments })
  }
  return all
}

/**
 * What the best cut looks like, found by trying all of them (by dynamic programming), for one set of limits: a mask of the
 * bytes where a segment starts (where the winner or the flag changes, and where a segment is too long), and from bit 8 on
 * the fewest submissions that can carry these segments.
 */
class BestCuts {
  private readonly limits: Limits
  private readonly plain = new Uint16Array(2 ** 16)
  private readonly flagged = new Map<number, number>()

  constructor(limits: Limits) {
    this.limits = limits
  }

  /** `key` is three masks of bytes: those where a piece starts, from bit 8 on those written, from bit 16 on with FUA. */
  of(key: number): number {
    if (key === 0) return 0
    let cut = (key < 2 ** 16 ? this.plain[key] : this.flagged.get(key)) ?? 0
    if (cut === 0) {
      cut = this.search((key >> 8) & 255, key & 255, key >> 16)
      if (key < 2 ** 16) this.plain[key] = cut
      else this.flagged.set(key, cut)
    }
    return cut
  }

  private search(covered: number, starts: number, fua: number): number {
    const pieces: { start: number; end: number; fua: number }[] = []
    for (let cell = 0; cell < CELLS; cell++) {
      if (((covered >> cell) & 1) === 0) continue
      const last = pieces.at(-1)
      const isStart = ((starts >> cell) & 1) === 1
      if (isStart || last === undefined || last.end - last.start === this.limits.maxBytes) {
        pieces.push({ start: cell, end: cell + 1, fua: (fua >> cell) & 1 })
      } else {
        last.end = cell + 1
      }
    }
    const fewest = [0]
    for (let end = 1; end <= pieces.length; end++) {
      let best = Number.POSITIVE_INFINITY
      for (let from = end - 1; from >= 0 && end - from <= this.limits.maxSegments; from--) {
        const group = pieces.slice(from, end)
        const isRun = group.every(
          (piece, i) => i === 0 || (group[i - 1]!.end === piece.start && group[0]!.fua === piece.fua),
        )
        if (isRun && group.at(-1)!.end - group[0]!.start <= this.limits.maxBytes)
          best = Math.min(best, fewest[from]! + 1)
      }
      fewest.push(best)
    }
    return pieces.reduce((mask, piece) => mask | (1 << piece.start), 0) | (fewest.at(-1)! << 8)
  }
}

interface Batches {
  size: number
  choices: Interval[]
  withFua: boolean
  /** The limits under which a pack of batches is planned. */
  limitsOf: (pack: number) => Limits[]
  /** The numbers of the batches to plan, if not all. */
  only?: readonly number[]
  /** Filled with one batch for each of the shapes that the limits see: what is written, and where the winner changes. */
  shapes?: Map<number, number>
}

/** Plans all batches of `size` requests out of `choices` (times all flags) under each of the limits; counts the plans. */
function exhaust({ size, choices, withFua, limitsOf, only, shapes }: Batches): number {
  const flagSets = withFua ? 2 ** size : 1
  const total = only?.length ?? choices.length ** size * flagSets
  const cuts = new Map<Limits, BestCuts>()
  const units: Units = {
    count: 0,
    offset: new Float64Array(BATCHES_AT_ONCE * size),
    length: new Float64Array(BATCHES_AT_ONCE * size),
    fua: withFua ? new Uint8Array(BATCHES_AT_ONCE * size) : null,
  }
  const winners = new Uint32Array(BATCHES_AT_ONCE)
  const durable = new Uint8Array(BATCHES_AT_ONCE)
  const keys = new Int32Array(BATCHES_AT_ONCE)
  let plans = 0
  for (let first = 0, pack = 0; first < total; first += BATCHES_AT_ONCE, pack++) {
    const batches = Math.min(BATCHES_AT_ONCE, total - first)
    units.count = batches * size
    for (let batch = 0; batch < batches; batch++) {
      const whole = only === undefined ? first + batch : only[first + batch]!
      let number = whole
      const flags = number % flagSets
      number = Math.floor(number / flagSets)
      let winner = 0
      let fua = 0
      for (let request = 0; request < size; request++) {
        const { start, length } = choices[number % choices.length]!
        number = Math.floor(number / choices.length)
        const at = batch * size + request
        units.offset[at] = BASE + batch * STRIDE + start
        units.length[at] = length
        if (units.fua !== null) units.fua[at] = (flags >> request) & 1
        for (let cell = start; cell < start + length; cell++) {
          winner = (winner & ~(15 << (4 * cell))) | ((request + 1) << (4 * cell))
          if (withFua && ((flags >> request) & 1) === 1) fua |= 1 << cell
        }
      }
      winners[batch] = winner >>> 0
      durable[batch] = fua
      keys[batch] = keyOf(winner >>> 0, fua)
      if (shapes !== undefined && !shapes.has(keys[batch]!)) shapes.set(keys[batch]!, whole)
    }
    for (const limits of limitsOf(pack)) {
      if (!cuts.has(limits)) cuts.set(limits, new BestCuts(limits))
      compare(units, size, batches, limits, winners, durable, keys, cuts.get(limits)!)
      plans += batches
    }
  }
  return plans
}

function keyOf(winner: number, fua: number): number {
  let key = fua << 16
  for (let cell = 0; cell < CELLS; cell++) {
    const here = (winner >>> (4 * cell)) & 15
    if (here === 0) continue
    key |= 1 << (cell + 8)
    const before = cell === 0 ? 0 : (winner >>> (4 * (cell - 1))) & 15
    if (here !== before || (((fua >> cell) ^ (fua >> (cell - 1))) & 1) === 1) key |= 1 << cell
  }
  return key
}

/** The four bits of each of the first n bytes. */
const NIBBLES = Int32Array.from({ length: CELLS + 1 }, (_, cells) => 2 ** (4 * cells) - 1)

const winnersSeen = new Uint32Array(BATCHES_AT_ONCE)
const startsSeen = new Uint8Array(BATCHES_AT_ONCE)
const submissionsSeen = new Uint8Array(BATCHES_AT_ONCE)

function compare(
  units: Units,
  size: number,
  batches: number,
  limits: Limits,
  winners: Uint32Array,
  durable: Uint8Array,
  keys: Int32Array,
  cuts: BestCuts,
): void {
  const planned = planMerged(units, limits)
  winnersSeen.fill(0)
  startsSeen.fill(0)
  submissionsSeen.fill(0)
  const fail = (batch: number, what: string): never => {
    const requests: string[] = []
    for (let at = batch * size; at < (batch + 1) * size; at++) {
      requests.push(`[${units.offset[at]! - BASE - batch * STRIDE}, ${units.length[at]}, ${units.fua?.[at] ?? 0}]`)
    }
    throw new Error(`${what}: ${requests.join(' ')} under ${limits.maxBytes} bytes, ${limits.maxSegments} segments`)
  }
  let endBefore = -1
  for (let submission = 0; submission < planned.count; submission++) {
    const place = planned.offset[submission]! - BASE
    const length = planned.length[submission]!
    const batch = Math.floor(place / STRIDE)
    const from = planned.firstSegment[submission]!
    const to = planned.firstSegment[submission + 1]!
    if (place < endBefore) fail(batch, 'not ascending and disjoint')
    if (length > limits.maxBytes || to - from > limits.maxSegments || from === to) fail(batch, 'beyond the limits')
    endBefore = place + length
    submissionsSeen[batch]!++
    let cell = place - batch * STRIDE
    for (let segment = from; segment < to; segment++) {
      const unit = planned.segmentUnit[segment]!
      const segmentLength = planned.segmentLength[segment]!
      if (planned.segmentStart[segment] !== BASE + batch * STRIDE + cell - units.offset[unit]!)
        fail(batch, 'wrong bytes')
      startsSeen[batch]! |= 1 << cell
      const bytes = ((1 << segmentLength) - 1) << cell
      if (segmentLength < 1 || cell + segmentLength > CELLS) fail(batch, 'outside of the batch')
      if ((durable[batch]! & bytes) !== (planned.fua[submission] === 1 ? bytes : 0)) fail(batch, 'wrong flag')
      const nibbles = NIBBLES[segmentLength]! << (4 * cell)
      if ((winnersSeen[batch]! & nibbles) !== 0) fail(batch, 'written twice')
      winnersSeen[batch]! |= Math.imul(unit - batch * size + 1, 0x11111111) & nibbles
      cell += segmentLength
    }
    if (BASE + batch * STRIDE + cell - planned.offset[submission]! !== length) fail(batch, 'length is not the sum')
  }
  for (let batch = 0; batch < batches; batch++) {
    if (winnersSeen[batch] !== winners[batch]) fail(batch, 'not the bytes of one request after another')
    const best = cuts.of(keys[batch]!)
    if (startsSeen[batch] !== (best & 255)) fail(batch, 'cut where no limit and no winner asks for it')
    if (submissionsSeen[batch] !== best >> 8) fail(batch, 'more submissions than needed')
  }
}

describe('every batch in eight bytes is planned as if done one by one, in the fewest submissions', {
  timeout: 3_600_000,
}, () => {
  const all = everyLimit()
  const empty = intervals(0)
  const nonEmpty = intervals(1)

  const always = (): Limits[] => all

  test('up to three requests, empty ones among them, under every limit', () => {
    let plans = 0
    for (const size of [1, 2, 3]) plans += exhaust({ size, choices: empty, withFua: false, limitsOf: always })
    expect(plans).toBe((45 + 45 ** 2 + 45 ** 3) * all.length)
  })

  test('up to three requests, with FUA on any of them, under every limit', () => {
    let plans = 0
    for (const size of [1, 2]) plans += exhaust({ size, choices: nonEmpty, withFua: true, limitsOf: always })
    const few = LONG ? all : all.filter(({ maxBytes, maxSegments }) => maxBytes % 3 === 2 && maxSegments % 2 === 1)
    plans += exhaust({ size: 3, choices: nonEmpty, withFua: true, limitsOf: () => few })
    expect(plans).toBe((36 * 2 + 36 ** 2 * 4) * all.length + 36 ** 3 * 8 * few.length)
  })

  // Four million batches under 56 limits take minutes. What limits can tell apart is only what is written and where its
  // winner changes: so each batch meets two limits, in turn, and each such shape meets all of them.
  test('four requests, empty ones among them', () => {
    const shapes = new Map<number, number>()
    const batches = { size: 4, choices: empty, withFua: false }
    const inTurn = (pack: number): Limits[] => [all[pack % all.length]!, all[(pack * 5 + 3) % all.length]!]
    expect(exhaust({ ...batches, limitsOf: inTurn, shapes })).toBe(45 ** 4 * 2)
    expect(shapes.size).toBeGreaterThan(1000)
    expect(exhaust({ ...batches, limitsOf: always, only: [...shapes.values()] })).toBe(shapes.size * all.length)
  })

  test.runIf(LONG)('four requests under every limit', () => {
    const plans = exhaust({ size: 4, choices: nonEmpty, withFua: false, limitsOf: always })
    expect(plans).toBe(36 ** 4 * all.length)
  })
})
