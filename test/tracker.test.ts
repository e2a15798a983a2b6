// Who waits for whom, against the rule itself: a hold may go when no earlier one that it conflicts with is left. The rule is
// carried out here as it stands, by looking at all holds each time; the tracker must come to the same, with few links.
// What goes by way of the device is in order.test.ts.

import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
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
}

/** A tracker and the rule side by side. */
class Both {
  readonly tracker = new Tracker<Range>()
  readonly naive = new Naive()
  readonly waiting = new Set<Hold<Range>>()
  readonly going: Hold<Range>[] = []
  links = 0

  add(range: Range): Hold<Range> {
    const conflicts = this.tracker.conflicts(range.start, range.end, range.read)
    must(conflicts === this.naive.conflicts(range), `conflicts is ${conflicts}`)
    const hold = new Hold(range.start, range.end, range.read, range)
    const blockers = this.tracker.frontier(hold)
    must(new Set(blockers).size === blockers.length, 'the frontier names a hold twice')
    // Links may stand for others that they imply, but each must be true by itself.
    for (const blocker of blockers) {
      must(conflict(blocker.tag, range), "a blocker is in nobody's way")
      must(this.naive.left.includes(blocker.tag), 'a blocker is not there any more')
    }
    this.links += blockers.length
    this.tracker.add(hold, blockers)
    this.naive.add(range)
    must(hold.blockers === blockers.length, 'not every link counts')
    if (hold.blockers === 0) this.going.push(hold)
    else this.waiting.add(hold)
    this.check()
    return hold
  }

  /** Ends the operation of one of those that go. */
  remove(hold: Hold<Range>): void {
    this.going.splice(this.going.indexOf(hold), 1)
    const released: Hold<Range>[] = []
    this.tracker.remove(hold, released)
    this.naive.remove(hold.tag)
    for (const one of released) {
      must(this.waiting.delete(one), 'released twice, or without having waited')
      this.going.push(one)
    }
    this.check()
  }

  private check(): void {
    for (const hold of this.going) must(this.naive.mayGo(hold.tag), 'released too early')
    for (const hold of this.waiting) must(!this.naive.mayGo(hold.tag), 'not released')
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

  /** Adds a range, or ends one of those that go: which one, as a fraction of them. */
  const step = (places: number): fc.Arbitrary<Range | number> =>
    fc.oneof(
      { weight: 3, arbitrary: range(places) },
      { weight: 2, arbitrary: fc.double({ min: 0, max: 0.999, noNaN: true }) },
    )

  test.each([
    ['in a few places', 8, 40],
    ['in many places', 200, 120],
    ['far beyond 2^32', 48, 60],
  ] as const)('%s', (name, places, steps) => {
    const base = name === 'far beyond 2^32' ? 2 ** 52 : 0
    fc.assert(
      fc.property(fc.array(step(places), { minLength: 1, maxLength: steps, size: 'max' }), (history) => {
        const both = new Both()
        const end = (fraction: number): void => {
          const hold = both.going[Math.floor(fraction * both.going.length)]
          if (hold !== undefined) both.remove(hold)
        }
        for (const one of history) {
          if (typeof one === 'number') end(one)
          else both.add({ start: base + one.start, end: base + one.end, read: one.read })
        }
        while (both.going.length > 0) end(0.5)
        expect(both.waiting.size).toBe(0)
        expect(both.tracker.empty).toBe(true)
      }),
      { numRuns: 300 * patience },
    )
  })

  test('with thousands of intervals, so that the list of them is split and joined', () => {
    const shape = fc.record({
      stride: fc.integer({ min: 2, max: 5 }),
      count: fc.integer({ min: 600, max: 1500 }),
      large: fc.array(range(3000), { minLength: 1, maxLength: 6 }),
      seed: fc.nat(),
    })
    fc.assert(
      fc.property(shape, ({ stride, count, large, seed }) => {
        const tracker = new Tracker<Range>()
        const naive = new Naive()
        const going = new Set<Hold<Range>>()
        const waiting = new Set<Hold<Range>>()
        const add = (one: Range): void => {
          const hold = new Hold(one.start, one.end, one.read, one)
          tracker.add(hold, tracker.frontier(hold))
          naive.add(one)
          const set = hold.blockers === 0 ? going : waiting
          set.add(hold)
        }
        for (let at = 0; at < count; at++) {
          const place = ((at * 611) % count) * stride
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

describe('by example', () => {
  const write = (start: number, end: number): Range => ({ start, end, read: false })
  const read = (start: number, end: number): Range => ({ start, end, read: true })

  test('what only touches does not wait', () => {
    const both = new Both()
    both.add(write(10, 20))
    expect(both.add(write(0, 10)).blockers).toBe(0)
    expect(both.add(write(20, 30)).blockers).toBe(0)
    expect(both.links).toBe(0)
  })

  test('reads go together, a write waits for all of them, and a read for the write', () => {
    const both = new Both()
    const readers = [both.add(read(0, 10)), both.add(read(5, 15)), both.add(read(0, 15))]
    const writer = both.add(write(8, 12))
    const late = both.add(read(9, 10))
    expect(writer.blockers).toBe(3)
    expect(late.blockers).toBe(1)
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

  test('one that is in the way in many places counts once', () => {
    const both = new Both()
    both.add(write(0, 1000))
    for (let at = 0; at < 1000; at += 2) both.add(read(at, at + 1))
    expect(both.add(read(0, 1000)).blockers).toBe(1)
  })

  test('dependents are told once, by the last that they waited for', () => {
    const tracker = new Tracker<string>()
    const [a, b, c] = [new Hold(0, 10, false, 'a'), new Hold(10, 20, false, 'b'), new Hold(5, 15, false, 'c')]
    tracker.add(a, tracker.frontier(a))
    tracker.add(b, tracker.frontier(b))
    tracker.add(c, tracker.frontier(c))
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

  test('ten thousand writes to one block are a chain of as many links', () => {
    const tracker = new Tracker<number>()
    const count = 10_000
    let links = 0
    const holds = Array.from({ length: count }, (_, index) => {
      const hold = new Hold(4096, 8192, false, index)
      const blockers = tracker.frontier(hold)
      links += blockers.length
      tracker.add(hold, blockers)
      return hold
    })
    expect(links).toBe(count - 1)
    const ended: number[] = []
    let next: Hold<number> | undefined = holds[0]
    while (next !== undefined) {
      const released: Hold<number>[] = []
      tracker.remove(next, released)
      ended.push(next.tag)
      must(released.length <= 1, 'several were released by one')
      next = released[0]
    }
    expect(ended).toEqual(holds.map((_, index) => index))
    expect(tracker.empty).toBe(true)
  })

  test('a read after ten thousand writes to one block, and a write after as many reads, link to what is next to them', () => {
    const tracker = new Tracker<number>()
    const add = (read: boolean, tag: number): number => {
      const hold = new Hold(0, 4096, read, tag)
      const blockers = tracker.frontier(hold)
      tracker.add(hold, blockers)
      return blockers.length
    }
    for (let index = 0; index < 10_000; index++) add(false, index)
    expect(add(true, 0)).toBe(1)
    for (let index = 1; index < 10_000; index++)
      must(add(true, index) === 1, 'a read links to more than the last write')
    expect(add(false, 0)).toBe(10_000)
    expect(add(false, 0)).toBe(1)
  })

  test.each([
    ['of one range', 1000, () => 0],
    ['inside each other', 200, (index: number) => index],
  ] as const)('reads %s that end one after another: a few looks at each interval', (_, count, startOf) => {
    const tracker = new Tracker<null>()
    const holds = Array.from({ length: count }, (__, index) => new Hold(startOf(index), count, true, null))
    for (const hold of holds) tracker.add(hold, tracker.frontier(hold))
    const last = new Hold<null>(0, count, false, null)
    tracker.add(last, tracker.frontier(last))
    expect(last.blockers).toBe(count)
    const more = Array.from({ length: count }, (__, index) => new Hold(startOf(index), count, true, null))
    for (const hold of more) tracker.add(hold, tracker.frontier(hold))
    let looks = 0
    const { filter } = Array.prototype
    vi.spyOn(Array.prototype, 'filter').mockImplementation(function (this: unknown[], ...rest) {
      looks += this.length
      return filter.apply(this, rest)
    })
    const released: Hold<null>[] = []
    try {
      for (const hold of holds) tracker.remove(hold, released)
      expect(released).toEqual([last])
      tracker.remove(last, released)
      for (const hold of more) tracker.remove(hold, released)
    } finally {
      vi.restoreAllMocks()
    }
    expect(released).toEqual([last, ...more])
    expect(tracker.empty).toBe(true)
    const intervals = new Set(holds.map((hold) => hold.start)).size
    expect(looks).toBeLessThan(4 * count * intervals)
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
        const blockers = tracker.frontier(hold)
        must(blockers.length === 0, 'a hold is in the way of another')
        tracker.add(hold, blockers)
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
      for (const hold of holds) tracker.add(hold, [])
      const over = new Hold(0, count * 2, read, null)
      tracker.add(over, tracker.frontier(over))
      expect(over.blockers).toBe(count)
      for (const hold of holds) tracker.remove(hold, released)
      expect(released).toEqual([over])
      tracker.remove(over, released)
      expect(tracker.empty).toBe(true)
    },
  )
})
