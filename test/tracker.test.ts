// Who waits for whom, against the rule itself: a hold may go when no earlier one that it conflicts with is left. The rule is
// carried out here as it stands, by looking at all holds each time; the tracker must come to the same, with little work.
// What goes by way of the device is in order.test.ts.

import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { Apart } from '../lib/apart.ts'
import { Hold, Tracker } from '../lib/tracker.ts'
import { patience } from './support/targets.ts'

interface Range {
  start: number
  end: number
  read: boolean
}

/** For what is asked millions of times: `expect` takes longer than the tracker. */
function must(holds: boolean, what: string): void {
  if (!holds) expect.fail(what)
}

const conflict = (a: Range, b: Range): boolean => a.start < b.end && b.start < a.end && !(a.read && b.read)

/** The rule, at the cost of looking at everything: the holds that are left, in the order in which they came. */
class Naive {
  readonly left: Range[] = []

  add(range: Range): void {
    this.left.push(range)
  }

  remove(range: Range): void {
    this.left.splice(this.left.indexOf(range), 1)
  }

  mayGo(range: Range): boolean {
    for (const other of this.left) {
      if (other === range) return true
      if (conflict(other, range)) return false
    }
    throw new Error('the range is not there')
  }

  conflicts(range: Range): boolean {
    return this.left.some((other) => conflict(other, range))
  }

  isApart({ start, end }: Range, reach: number): boolean {
    return this.left.every((other) => other.end <= start - reach || other.start >= end + reach)
  }
}

/** A tracker and the rule side by side. */
class Both {
  readonly tracker = new Tracker<Range>()
  readonly naive = new Naive()
  readonly waiting = new Set<Hold<Range>>()
  readonly going: Hold<Range>[] = []
  /** Those that wait without being in anybody's way, and for whom. */
  readonly watching = new Map<Hold<Range>, Set<Range>>()

  add(range: Range): Hold<Range> {
    const conflicts = this.tracker.conflicts(range.start, range.end, range.read)
    must(conflicts === this.naive.conflicts(range), `conflicts is ${conflicts}`)
    const hold = new Hold(range.start, range.end, range.read, range)
    // Both ways lead to the same where there is nobody near.
    const reach = range.end % 3
    const apart = this.naive.isApart(range, reach)
    if (range.start % 2 === 0)
      must(this.tracker.addApart(hold, reach) === apart, `${apart ? 'nobody' : 'somebody'} is near`)
    if (range.start % 2 === 1 || !apart) this.tracker.enter(hold)
    this.naive.add(range)
    must(hold.blockers > 0 === conflicts, 'waits for nobody, or for nothing')
    if (hold.blockers === 0) this.going.push(hold)
    else this.waiting.add(hold)
    this.check()
    return hold
  }

  watch(range: Range): Hold<Range> {
    const hold = new Hold(range.start, range.end, range.read, range)
    this.tracker.wait(hold)
    const whom = new Set(this.naive.left.filter((other) => conflict(other, range)))
    must(hold.blockers > 0 === whom.size > 0, 'waits for nobody, or for nothing')
    if (whom.size > 0) this.watching.set(hold, whom)
    return hold
  }

  /** Ends the operation of one of those that go. */
  remove(hold: Hold<Range>): void {
    this.going.splice(this.going.indexOf(hold), 1)
    const released: Hold<Range>[] = []
    this.tracker.remove(hold, released)
    this.naive.remove(hold.tag)
    for (const whom of this.watching.values()) whom.delete(hold.tag)
    for (const one of released) {
      if (this.watching.has(one)) {
        must(this.watching.get(one)!.size === 0, 'a watcher was released too early')
        this.watching.delete(one)
        continue
      }
      must(this.waiting.delete(one), 'released twice, or without having waited')
      this.going.push(one)
    }
    this.check()
  }

  private check(): void {
    for (const hold of this.going) must(this.naive.mayGo(hold.tag), 'released too early')
    for (const hold of this.waiting) must(!this.naive.mayGo(hold.tag), 'not released')
    for (const whom of this.watching.values()) must(whom.size > 0, 'a watcher was not released')
    must(this.tracker.empty === (this.naive.left.length === 0), 'empty says the wrong thing')
  }
}

describe('a hold is released exactly when all earlier holds that it conflicts with are gone', () => {
  const range = (places: number): fc.Arbitrary<Range> =>
    fc
      .record({
        start: fc.nat(places - 1),
        length: fc.oneof({ weight: 4, arbitrary: fc.integer({ min: 1, max: 6 }) }, fc.integer({ min: 1, max: places })),
        read: fc.boolean(),
      })
      .map(({ start, length, read }) => ({ start, end: Math.min(places, start + length), read }))

  /** Adds a range, lets one wait only, or ends one of those that go: which one, as a fraction of them. */
  const step = (places: number, ends: number): fc.Arbitrary<Range | { watch: Range } | number> =>
    fc.oneof(
      { weight: 5, arbitrary: range(places) },
      { weight: 1, arbitrary: range(places).map((watch) => ({ watch })) },
      { weight: ends, arbitrary: fc.double({ min: 0, max: 0.999, noNaN: true }) },
    )

  test.each([
    ['in a few places', 8, 40, 4, 300],
    ['in many places', 200, 120, 4, 300],
    ['far beyond 2^32', 48, 60, 4, 300],
    ['more of them than one leaf takes', 60, 300, 2, 60],
    ['that come in faster than they end', 2000, 500, 1, 15],
  ] as const)('%s', (name, places, steps, ends, runs) => {
    const base = name === 'far beyond 2^32' ? 2 ** 52 : 0
    fc.assert(
      fc.property(fc.array(step(places, ends), { minLength: 1, maxLength: steps, size: 'max' }), (history) => {
        const both = new Both()
        const end = (fraction: number): void => {
          const hold = both.going[Math.floor(fraction * both.going.length)]
          if (hold !== undefined) both.remove(hold)
        }
        for (const one of history) {
          if (typeof one === 'number') end(one)
          else if ('watch' in one)
            both.watch({ ...one.watch, start: base + one.watch.start, end: base + one.watch.end })
          else both.add({ start: base + one.start, end: base + one.end, read: one.read })
        }
        while (both.going.length > 0) end(0.5)
        expect(both.waiting.size).toBe(0)
        expect(both.watching.size).toBe(0)
        expect(both.tracker.empty).toBe(true)
      }),
      { numRuns: runs * patience },
    )
  })

  test('with thousands of intervals, so that the list of them is split and joined', () => {
    const shape = fc.record({
      stride: fc.integer({ min: 2, max: 5 }),
      count: fc.integer({ min: 600, max: 1500 }),
      large: fc.array(range(3000), { minLength: 1, maxLength: 6 }),
      seed: fc.nat(),
      order: fc.constantFrom('scattered', 'ascending', 'descending'),
    })
    fc.assert(
      fc.property(shape, ({ stride, count, large, seed, order }) => {
        const step = { scattered: 611, ascending: 1, descending: count - 1 }[order]
        const tracker = new Tracker<Range>()
        const naive = new Naive()
        const going = new Set<Hold<Range>>()
        const waiting = new Set<Hold<Range>>()
        const add = (one: Range): void => {
          const hold = new Hold(one.start, one.end, one.read, one)
          tracker.enter(hold)
          naive.add(one)
          const set = hold.blockers === 0 ? going : waiting
          set.add(hold)
        }
        for (let at = 0; at < count; at++) {
          const place = ((at * step) % count) * stride
          add({ start: place, end: place + 1, read: (at + seed) % 3 === 0 })
        }
        for (const one of large) add(one)
        let round = seed
        while (going.size > 0) {
          // In an order that has nothing to do with the one in which they came.
          const holds = [...going]
          const ending = holds.filter((_, at) => (at + round) % 3 !== 0 || holds.length === 1)
          round++
          const released: Hold<Range>[] = []
          for (const hold of ending) {
            tracker.remove(hold, released)
            going.delete(hold)
            naive.remove(hold.tag)
          }
          for (const hold of released) {
            must(waiting.delete(hold), 'released twice, or without having waited')
            going.add(hold)
          }
          for (const hold of waiting) must(!naive.mayGo(hold.tag), 'not released')
          for (const { tag } of [...going].slice(0, 50)) must(naive.mayGo(tag), 'released too early')
        }
        expect(waiting.size).toBe(0)
        expect(tracker.empty).toBe(true)
      }),
      { numRuns: 15 * patience },
    )
  })
})

test('the list of those that overlap nobody stays in order, however it is cut into chunks', () => {
  // Places come in streams, which fill chunks at their ends, or by chance, which cuts them in half.
  const stream = fc
    .record({ from: fc.nat(5000), step: fc.constantFrom(-3, -1, 1, 3, 1021), count: fc.integer({ min: 1, max: 200 }) })
    .map(({ from, step, count }) =>
      Array.from({ length: count }, (_, at) => (((from + at * step) % 5003) + 5003) % 5003),
    )
  const history = fc.array(fc.record({ places: stream, drops: fc.nat(200), seed: fc.nat() }), {
    minLength: 1,
    maxLength: 8,
  })
  fc.assert(
    fc.property(history, (steps) => {
      const list = new Apart<null>()
      const held = new Map<number, Hold<null>>()
      const check = (): void => {
        const found: Hold<null>[] = []
        for (let hold = list.find(-1); hold !== null; hold = list.next()) found.push(hold)
        expect(found).toEqual([...held.values()].sort((a, b) => a.start - b.start))
        expect(list.count).toBe(held.size)
      }
      for (const { places, drops, seed } of steps) {
        for (const place of places) {
          if (held.has(place)) continue
          const hold = new Hold(place * 2, place * 2 + 1 + (place % 2), false, null)
          const next = list.find(hold.start)
          must(next === null || next.start >= hold.end, 'somebody was found who is not there')
          list.insert(hold)
          held.set(place, hold)
        }
        check()
        const kept = [...held.keys()]
        for (let drop = 0; drop < drops && kept.length > 0; drop++) {
          const [place] = kept.splice((seed + drop * 7919) % kept.length, 1)
          must(list.find(place! * 2) === held.get(place!), 'another one was found')
          list.drop()
          held.delete(place!)
        }
        check()
      }
    }),
    { numRuns: 100 * patience },
  )
})

describe('by example', () => {
  const write = (start: number, end: number): Range => ({ start, end, read: false })
  const read = (start: number, end: number): Range => ({ start, end, read: true })

  test('what only touches does not wait', () => {
    const both = new Both()
    both.add(write(10, 20))
    expect(both.add(write(0, 10)).blockers).toBe(0)
    expect(both.add(write(20, 30)).blockers).toBe(0)
  })

  test('reads go together, a write waits for all of them, and a read for the write', () => {
    const both = new Both()
    const readers = [both.add(read(0, 10)), both.add(read(5, 15)), both.add(read(0, 15))]
    const writer = both.add(write(8, 12))
    const late = both.add(read(9, 10))
    expect(both.waiting).toEqual(new Set([writer, late]))
    for (const reader of readers) both.remove(reader)
    expect(both.going).toEqual([writer])
    both.remove(writer)
    expect(both.going).toEqual([late])
  })

  test('a read does not wait for another read that waits, only for what that waits for', () => {
    const both = new Both()
    const writer = both.add(write(0, 4))
    both.add(read(0, 8))
    const second = both.add(read(4, 8))
    expect(second.blockers).toBe(0)
    both.remove(writer)
    expect(both.waiting.size).toBe(0)
  })

  test('of a write that was covered in part the rest is still held', () => {
    const both = new Both()
    const first = both.add(write(0, 30))
    both.add(write(10, 20))
    expect(both.add(write(0, 10)).blockers).toBe(1)
    expect(both.add(write(25, 40)).blockers).toBe(1)
    both.remove(first)
    expect(both.waiting.size).toBe(0)
  })

  test('a hold that waits for nobody is waited for like any other', () => {
    const tracker = new Tracker<string>()
    const [a, b, c] = [new Hold(0, 10, false, 'a'), new Hold(5, 15, false, 'b'), new Hold(8, 9, false, 'c')]
    tracker.add(a)
    tracker.add(b)
    tracker.enter(c)
    expect([a.blockers, b.blockers]).toEqual([0, 0])
    const released: Hold<string>[] = []
    tracker.remove(b, released)
    expect(released).toEqual([])
    tracker.remove(a, released)
    expect(released).toEqual([c])
  })

  test('holds on everything there is, and on more than the first few of them', () => {
    const both = new Both()
    for (let count = 0; count < 40; count++) both.add({ start: 0, end: 2 ** 53, read: count % 8 !== 7 })
    for (let at = 0; at < 40; at++) both.add({ start: at * 3, end: at * 3 + 4, read: at % 2 === 0 })
    both.add({ start: 1, end: Number.MAX_SAFE_INTEGER, read: false })
    while (both.going.length > 0) both.remove(both.going[0]!)
    expect(both.waiting.size).toBe(0)
    expect(both.tracker.empty).toBe(true)
  })

  test('a hold around those that are all there is', () => {
    const both = new Both()
    for (let count = 0; count < 40; count++) both.add(count % 5 === 0 ? write(1024, 2048) : read(1024, 2048))
    const around = [both.add(write(0, 2048)), both.add(read(0, 2048)), both.add(write(0, 8192))]
    expect(both.waiting).toContain(around[0])
    while (both.going.length > 0) both.remove(both.going[0]!)
    expect(both.waiting.size).toBe(0)
  })

  test('holds that come from further and further away', () => {
    // The tree begins with what there is, and grows; those who are in it already are found from above, too.
    const both = new Both()
    const middle = 2 ** 40 + 12_345
    for (let at = 0; at < 40; at++) both.add({ start: middle + at, end: middle + at + 2, read: at % 3 === 0 })
    for (let power = 6; power < 52; power += 3) {
      const width = 2 ** power
      both.add({ start: Math.max(0, middle - width), end: middle, read: true })
      both.add({ start: middle + 20, end: middle + width, read: power % 2 === 0 })
      for (let ended = 0; ended < 2 && both.going.length > 0; ended++) both.remove(both.going[0]!)
    }
    while (both.going.length > 0) both.remove(both.going[0]!)
    expect(both.waiting.size).toBe(0)
  })

  test('dependents are told once, by the last that they waited for', () => {
    const tracker = new Tracker<string>()
    const [a, b, c] = [new Hold(0, 10, false, 'a'), new Hold(10, 20, false, 'b'), new Hold(5, 15, false, 'c')]
    for (const hold of [a, b, c]) tracker.enter(hold)
    const released: Hold<string>[] = []
    tracker.remove(b, released)
    expect(released).toEqual([])
    tracker.remove(a, released)
    expect(released).toEqual([c])
    tracker.remove(c, released)
    expect(released).toEqual([c])
    expect(tracker.empty).toBe(true)
  })
})

describe('what it costs', () => {
  /** Numbers that count how often they are compared: the tracker's work, whatever the machine. */
  function countingPlaces(): { place(value: number): number; compared: () => number } {
    let compared = 0
    const place = (value: number): number => {
      const counting = {
        valueOf(): number {
          compared++
          return value
        },
      }
      return counting as unknown as number
    }
    return { place, compared: () => compared }
  }

  /** What becomes of ranges that all come before the first of them ends: how many comparisons and links it takes. */
  function work(ranges: readonly Range[], whichEnds: (going: number) => number): number {
    const { place, compared } = countingPlaces()
    const tracker = new Tracker<null>()
    const going: Hold<null>[] = []
    let links = 0
    for (const { start, end, read } of ranges) {
      const hold = new Hold(place(start), place(end), read, null)
      tracker.enter(hold)
      links += hold.blockers
      if (hold.blockers === 0) going.push(hold)
    }
    let left = ranges.length
    for (; going.length > 0; left--) {
      const [hold] = going.splice(whichEnds(going.length), 1)
      tracker.remove(hold!, going)
    }
    must(left === 0 && tracker.empty, 'not all of them had their turn')
    return compared() + links
  }

  const first = (): number => 0
  const last = (going: number): number => going - 1
  const scattered = (going: number): number => (going * 7919 + 13) % going

  /** Places are a few bytes apart: about as many as there are ranges. */
  const shapes: Record<string, (at: number, count: number) => Range> = {
    'reads inside each other': (at, count) => ({ start: at, end: 2 * count - at, read: true }),
    'writes inside each other': (at, count) => ({ start: at, end: 2 * count - at, read: false }),
    'reads around each other, then writes inside each other': (at, count) =>
      at < count / 2
        ? { start: count - at, end: count + at + 1, read: true }
        : { start: at, end: 2 * count - at + 1, read: false },
    'writes to one place': () => ({ start: 4096, end: 8192, read: false }),
    'reads and writes of one place in turns': (at) => ({ start: 4096, end: 8192, read: at % 2 === 0 }),
    'reads of one place, then writes to it': (at, count) => ({ start: 4096, end: 8192, read: at < count / 2 }),
    'reads of everything, then writes side by side': (at, count) =>
      at < count / 2 ? { start: 0, end: 8 * count, read: true } : { start: at * 8, end: at * 8 + 8, read: false },
    'writes side by side, then reads of everything': (at, count) =>
      at < count / 2 ? { start: at * 8, end: at * 8 + 8, read: false } : { start: 0, end: 8 * count, read: true },
    'reads of everything and writes side by side in turns': (at, count) =>
      at % 2 === 0 ? { start: 0, end: 8 * count, read: true } : { start: at * 8, end: at * 8 + 8, read: false },
    'writes to everything and reads side by side in turns': (at, count) =>
      at % 2 === 0 ? { start: 0, end: 8 * count, read: false } : { start: at * 8, end: at * 8 + 8, read: true },
    'a staircase of reads, then one of writes': (at, count) => {
      const step = at % (count / 2)
      return { start: step, end: step + count / 2, read: at < count / 2 }
    },
    'two staircases that cross': (at, count) =>
      at % 2 === 0
        ? { start: at, end: at + count / 4, read: true }
        : { start: count - at, end: count - at + count / 4, read: false },
    'beginnings that are read, then ends that are written': (at, count) =>
      at < count / 2 ? { start: 0, end: at + 1, read: true } : { start: at - count / 2, end: count, read: false },
    'one read of everything, then writes that halve what is left of it': (at, count) => {
      if (at === 0) return { start: 0, end: 2 ** 40, read: true }
      const start = bitsReversed(at % count) * 256
      return { start, end: start + 256, read: false }
    },
    'reads over many places, then writes between them': (at, count) => {
      const start = bitsReversed(at % (count / 2)) * 256
      return at < count / 2
        ? { start, end: start + (count / 8) * 2 ** 12, read: true }
        : { start: start + 128, end: start + 384, read: false }
    },
    'close together at the far end': (at, count) => ({
      start: 2 ** 52 + ((at * 3) % count),
      end: 2 ** 52 + ((at * 3) % count) + 5,
      read: at % 3 !== 0,
    }),
    'in two clusters at both ends, with ranges over both': (at, count) =>
      at % 4 === 0
        ? { start: at, end: 2 ** 52 + at, read: at % 8 === 0 }
        : { start: (at % 2) * 2 ** 52 + at, end: (at % 2) * 2 ** 52 + at + count / 8, read: at % 3 === 0 },
    'powers of two, and truncations': (at) => ({
      start: 2 ** (at % 48) + (at % 7),
      end: at % 5 === 0 ? Number.MAX_SAFE_INTEGER : 2 ** (at % 48) + 64,
      read: at % 2 === 0 && at % 5 !== 0,
    }),
  }

  /** Numbers below 2^32 in an order in which each falls between all before it. */
  function bitsReversed(value: number): number {
    let reversed = 0
    for (let bit = 0; bit < 32; bit++) reversed = reversed * 2 + (Math.floor(value / 2 ** bit) % 2)
    return reversed
  }

  test.each(Object.entries(shapes))('twice as many ranges, little more than twice the work: %s', (_, shape) => {
    for (const whichEnds of [first, last, scattered]) {
      const [some, twice] = [2000, 4000].map((count) =>
        work(
          Array.from({ length: count }, (__, at) => shape(at, count)),
          whichEnds,
        ),
      ) as [number, number]
      // n log n grows by 2.2 here, the square by 4. What is still in one leaf at first makes more of the step.
      expect(twice / some).toBeLessThan(2.6)
      expect(twice / 4000).toBeLessThan(WORK_MAX)
    }
  })

  /**
   * Comparisons and links for one range, however many others there are. By the count in overlaps.ts a range is at less than four
   * nodes a level, coming and once more when leaves are split, with six comparisons each, and makes up to 700 links.
   */
  const WORK_MAX = 54 * 4 * 6 * 2 + 700

  test('no shape that chance finds takes more work than that', () => {
    // A shape is how starts, lengths and kinds follow from a range's number; chance takes the worst on and changes it.
    const terms = fc.record({
      step: fc.integer({ min: 0, max: 4095 }),
      round: fc.integer({ min: 1, max: 4096 }),
      length: fc.integer({ min: 1, max: 4096 }),
      growth: fc.integer({ min: -3, max: 3 }),
      scale: fc.integer({ min: 0, max: 38 }),
      kinds: fc.integer({ min: 1, max: 7 }),
      readsFirst: fc.boolean(),
      ends: fc.constantFrom(first, last, scattered),
    })
    fc.assert(
      fc.property(fc.array(terms, { minLength: 1, maxLength: 3 }), (mixed) => {
        const count = 1200
        const ranges = Array.from({ length: count }, (_, at) => {
          const { step, round, length, growth, scale, kinds, readsFirst } = mixed[at % mixed.length]!
          const start = ((at * step) % round) * 2 ** scale
          const end = start + Math.max(1, length + growth * at) * 2 ** scale
          return { start, end, read: readsFirst ? at < count / 2 : at % kinds === 0 }
        })
        const each = work(ranges, mixed[0]!.ends) / count
        if (each > WORK_MAX) throw new Error(`${each} comparisons and links a range`)
      }),
      { numRuns: 40 * patience },
    )
  })

  test('what came and went costs nothing later: neither time, when nothing of it is left', () => {
    const { place, compared } = countingPlaces()
    const tracker = new Tracker<null>()
    const costs = [2 ** 40, 2 ** 41, 2 ** 40].map((base) => {
      const before = compared()
      const holds = Array.from({ length: 100 }, (_, at) => new Hold(place(base + at), place(base + at + 9), true, null))
      for (const hold of holds) tracker.enter(hold)
      for (const hold of holds) tracker.remove(hold, [])
      return compared() - before
    })
    expect(costs[2]).toBe(costs[0])
    // Those in one place have to do with the few levels that tell them apart, wherever it is: here seven.
    expect(costs[0]! / 100).toBeLessThan(200)
  })

  test('... nor memory, while something else stays', () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    const used = (): number => {
      collect()
      return process.memoryUsage().heapUsed
    }
    const tracker = new Tracker<null>()
    for (let at = 0; at < 100; at++) tracker.enter(new Hold(at, 2 ** 52 + at, true, null))
    const round = (at: number): void => {
      const base = ((at * 611) % 4001) * 2 ** 40
      const holds = Array.from({ length: 40 }, (_, index) => new Hold(base + index, base + index + 9, true, null))
      for (const hold of holds) tracker.enter(hold)
      for (const hold of holds) tracker.remove(hold, [])
    }
    for (let at = 0; at < 100; at++) round(at)
    const before = used()
    for (let at = 0; at < 4000; at++) round(at)
    // Some forty nodes of each of 4000 rounds, of 100 bytes and more, would be left.
    expect(used() - before).toBeLessThan(4 << 20)
  })

  test.each(['ascending', 'descending', 'scattered'] as const)(
    'a hundred thousand disjoint holds, %s: a few dozen comparisons each',
    (order) => {
      const { place, compared } = countingPlaces()
      const tracker = new Tracker<null>()
      const count = 100_000
      const at = (index: number): number => {
        if (order === 'ascending') return index
        return order === 'descending' ? count - 1 - index : (index * 61_803) % count
      }
      const holds = Array.from({ length: count }, (_, index) => {
        const hold = new Hold(place(at(index) * 512), place(at(index) * 512 + 256), false, null)
        must(!tracker.conflicts(hold.start, hold.end, false), 'a hold is in the way of another')
        tracker.add(hold)
        return hold
      })
      const released: Hold<null>[] = []
      for (const hold of holds) tracker.remove(hold, released)
      expect(released).toEqual([])
      expect(tracker.empty).toBe(true)
      // Finding a place is two binary searches of two numbers each, a handful of times per hold.
      expect(compared() / count).toBeLessThan(8 * 2 * Math.log2(count))
    },
  )

  test.each([true, false])(
    'one range may lie over more intervals than a call has room for arguments: read %s',
    (read) => {
      const tracker = new Tracker<null>()
      const count = 150_000
      const released: Hold<null>[] = []
      const holds = Array.from({ length: count }, (_, at) => new Hold(at * 2, at * 2 + 1, false, null))
      for (const hold of holds) tracker.add(hold)
      const over = new Hold(0, count * 2, read, null)
      tracker.enter(over)
      expect(over.blockers).toBeGreaterThan(0)
      for (const hold of holds) tracker.remove(hold, released)
      expect(released).toEqual([over])
      tracker.remove(over, released)
      expect(tracker.empty).toBe(true)
    },
  )
})
