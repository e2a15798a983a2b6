// One test for each defect of QEMU's bdrv_aio_multiwrite (2009 to 2016) that lay in its planning. Numbers in sectors of 512
// bytes where the defect was found in sectors. The commits named are QEMU's.

import { plan } from 'multiwrite/planner'
import { expect, test } from 'vitest'
import { ascending, noFlags, zeros } from '../lib/planner/arrays.ts'
import { planMerged } from '../lib/planner/merge.ts'
import type { Units } from '../lib/planner/units.ts'

const SECTOR = 512
const NO_LIMITS = { maxBytes: Number.POSITIVE_INFINITY, maxSegments: Number.POSITIVE_INFINITY }

/** The plan of `[start, length]` in sectors, as `[start, length, [request, start in it, length], ...]` in sectors. */
function planSectors(requests: [number, number][], limits = NO_LIMITS, mayFill?: () => boolean): unknown[] {
  const inBytes = requests.map(([start, length]) => ({ offset: start * SECTOR, length: length * SECTOR }))
  return plan(inBytes, limits, mayFill).submissions.map(({ offset, length, segments }) => [
    offset / SECTOR,
    length / SECTOR,
    ...segments.map((segment) => [segment.request, segment.start / SECTOR, segment.length / SECTOR]),
  ])
}

function unitsOf(count: number, offset: (index: number) => number, length: (index: number) => number): Units {
  return {
    count,
    offset: Float64Array.from({ length: count }, (_, index) => offset(index)),
    length: Float64Array.from({ length: count }, (_, index) => length(index)),
    fua: null,
  }
}

// 77be4366ba: the comparator returned the difference of two 64-bit sectors as an int. From 2^31 sectors (1 TiB) on its sign
// was wrong, multiples of 2^32 compared equal: data landed behind the wrong request and file systems were destroyed.
test.each([2 ** 31 - 1, 2 ** 31, 2 ** 31 + 1, 2 ** 32, 2 ** 32 + 8, 2 ** 33 - 1, 3 * 2 ** 32])(
  'requests %d sectors apart are sorted by where they are, and not merged',
  (far) => {
    const wanted = (near: number): unknown[] => [
      [0, 8, [near, 0, 8]],
      [far, 8, [1 - near, 0, 8]],
    ]
    expect(
      planSectors([
        [0, 8],
        [far, 8],
      ]),
    ).toEqual(wanted(0))
    expect(
      planSectors([
        [far, 8],
        [0, 8],
      ]),
    ).toEqual(wanted(1))
  },
)

// The same with more than two: a comparator that is wrong for some pairs gives an order that depends on the algorithm.
test('three requests 2^31 sectors apart each are sorted, in whatever order they came', () => {
  const places = [0, 2 ** 31, 2 ** 32]
  for (const [a, b, c] of [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
  ] as const) {
    const planned = planSectors([
      [places[a]!, 1],
      [places[b]!, 1],
      [places[c]!, 1],
    ])
    expect(planned.map((submission) => (submission as number[])[0])).toEqual(places)
  }
})

// cbf1dff2f1: of two requests that overlap, the merged length was the sum of both. The rest came from beyond the vectors:
// uninitialised memory was written over the sectors behind the range.
test('the length of an overlap is that of the union, not the sum', () => {
  expect(
    planSectors([
      [0, 8],
      [4, 8],
    ]),
  ).toEqual([[0, 12, [0, 0, 4], [1, 0, 8]]])
})

// Never fixed by name: that wrong length fed the next test for adjacency, so that a third request, which touched nothing, was
// glued on and written four sectors too low.
test('an overlap does not make a later request look adjacent', () => {
  expect(
    planSectors([
      [0, 8],
      [2, 4],
      [10, 4],
    ]),
  ).toEqual([
    [0, 8, [0, 0, 2], [1, 0, 4], [0, 6, 2]],
    [10, 4, [2, 0, 4]],
  ])
})

// The counterpart: of a filled gap the length was forgotten, so the next gap came out too long and the data behind it too high.
test('a filled gap counts in the length, and the next gap starts where the run ends', () => {
  expect(
    planSectors(
      [
        [0, 4],
        [8, 4],
        [13, 2],
      ],
      NO_LIMITS,
      () => true,
    ),
  ).toEqual([[0, 15, [0, 0, 4], [null, 0, 4], [1, 0, 4], [null, 0, 1], [2, 0, 2]]])
})

// 391827eb10: of a request that contains another, what lies behind the inner one was dropped: lost data for five years.
test.each<[string, [number, number]]>([
  ['in the middle', [2, 2]],
  ['at the same start', [0, 4]],
])('the tail of a request that contains another is written: %s', (_, inner) => {
  const [submission] = planSectors([[0, 16], inner]) as [[number, number, ...[number, number, number][]]]
  expect(submission.slice(0, 2)).toEqual([0, 16])
  const end = inner[0] + inner[1]
  expect(submission.at(-1)).toEqual([0, end, 16 - end])
})

// The tail must also reach what touches it.
test('a request that follows the tail of a containing one is merged with it', () => {
  expect(
    planSectors([
      [0, 16],
      [2, 2],
      [16, 4],
    ]),
  ).toEqual([[0, 20, [0, 0, 2], [1, 0, 2], [0, 4, 12], [2, 0, 4]]])
})

// 0076bc0c1d, e2a305fb13: without a limit on vectors, 1025 small writes became one that the kernel refused with EINVAL, and
// the guest saw I/O errors. Later the limit refused too early: 1000 and 24 vectors were not joined to 1024.
test('a run has as many segments as the limit says, and not one more', () => {
  const limits = { maxBytes: 2 ** 30, maxSegments: 1024 }
  const counts = (requests: number): number[] =>
    plan(
      Array.from({ length: requests }, (_, index) => ({ offset: index * SECTOR, length: SECTOR })),
      limits,
    ).submissions.map(({ segments }) => segments.length)
  expect(counts(1024)).toEqual([1024])
  expect(counts(1025)).toEqual([1024, 1])
  expect(counts(2048)).toEqual([1024, 1024])
})

// 6c5a42ac34: without a limit on bytes, servers refused the merged write. The limit that came compared the sum of the lengths.
test('a run has as many bytes as the limit says, counted as the union', () => {
  const limits = { maxBytes: 12 * SECTOR, maxSegments: 1024 }
  expect(
    planSectors(
      [
        [0, 8],
        [4, 8],
      ],
      limits,
    ).length,
  ).toBe(1)
  expect(
    planSectors(
      [
        [0, 8],
        [8, 4],
      ],
      limits,
    ).length,
  ).toBe(1)
  expect(
    planSectors(
      [
        [0, 8],
        [8, 5],
      ],
      limits,
    ),
  ).toEqual([
    [0, 8, [0, 0, 8]],
    [8, 5, [1, 0, 5]],
  ])
})

// A filled gap is written as well: it counts in both limits.
test('a gap counts in the limits', () => {
  const requests: [number, number][] = [
    [0, 4],
    [8, 4],
  ]
  const submissions = (maxBytes: number, maxSegments: number): number =>
    planSectors(requests, { maxBytes: maxBytes * SECTOR, maxSegments }, () => true).length
  expect(submissions(12, 3)).toBe(1)
  expect(submissions(11, 3)).toBe(2)
  expect(submissions(12, 2)).toBe(2)
})

// Never fixed: overlapping requests that a limit refused to merge were sent at the same time, and the last to arrive won. And
// the next was compared with the inner, shorter one only, so that a third overlap was not even seen.
test.each([1, 2, 3, 5, 9, 10, 11])(
  'overlaps under a limit of %i sectors never become submissions that overlap',
  (sectors) => {
    const limits = { maxBytes: sectors * SECTOR, maxSegments: 2 }
    const planned = planSectors(
      [
        [0, 10],
        [2, 2],
        [6, 2],
      ],
      limits,
    ) as [number, number, ...[number, number, number][]][]
    const winners = new Array<number>(10)
    let end = 0
    for (const [start, length, ...segments] of planned) {
      expect(start).toBe(end)
      expect(length).toBeLessThanOrEqual(sectors)
      for (const [request, , segmentLength] of segments) {
        winners.fill(request, end, end + segmentLength)
        end += segmentLength
      }
    }
    expect(winners).toEqual([0, 0, 1, 1, 0, 0, 2, 2, 0, 0])
  },
)

// Never fixed: the sort by start alone was not stable, so of equal starts the library's qsort chose the winner.
test('of requests with equal starts the later one wins, whatever their lengths', () => {
  expect(
    planSectors([
      [0, 8],
      [0, 8],
    ]),
  ).toEqual([[0, 8, [1, 0, 8]]])
  expect(
    planSectors([
      [0, 4],
      [0, 8],
    ]),
  ).toEqual([[0, 8, [1, 0, 8]]])
  expect(
    planSectors([
      [0, 8],
      [0, 4],
    ]),
  ).toEqual([[0, 8, [1, 0, 4], [0, 4, 4]]])
  // Enough of them that a sort would leave its special case for short arrays.
  const many = Array.from({ length: 1000 }, (): [number, number] => [5, 1])
  expect(planSectors(many)).toEqual([[5, 1, [999, 0, 1]]])
  expect(planSectors([[9, 1], ...many, [0, 1]])).toEqual([
    [0, 1, [1001, 0, 1]],
    [5, 1, [1000, 0, 1]],
    [9, 1, [0, 0, 1]],
  ])
})

// Never fixed: after sorting, the request with the higher start won, although the one with the lower start had come later.
test('the later request wins, not the one that starts higher', () => {
  expect(
    planSectors([
      [2, 4],
      [0, 8],
    ]),
  ).toEqual([[0, 8, [1, 0, 8]]])
  expect(
    planSectors([
      [4, 4],
      [0, 8],
    ]),
  ).toEqual([[0, 8, [1, 0, 8]]])
  expect(
    planSectors([
      [6, 4],
      [4, 4],
      [2, 4],
      [0, 4],
    ]),
  ).toEqual([[0, 10, [3, 0, 4], [2, 2, 2], [1, 2, 2], [0, 2, 2]]])
})

// d20d9b7c67, never fixed: requests got flags, and a merge kept those of the first request for all, or moved them to a
// neighbour. A write that asked for stable storage would not have got it.
test('no request loses its flag in a merge, and none gives it to a neighbour', () => {
  const flagsOf = (ranges: [number, number][], fua: number[]): unknown[] => {
    const units = unitsOf(
      ranges.length,
      (index) => ranges[index]![0],
      (index) => ranges[index]![1],
    )
    const planned = planMerged({ ...units, fua: Uint8Array.from(fua) }, NO_LIMITS)
    return Array.from({ length: planned.count }, (_, i) => [planned.offset[i], planned.length[i], planned.fua[i]])
  }
  expect(
    flagsOf(
      [
        [0, 4],
        [4, 4],
        [8, 4],
      ],
      [0, 1, 0],
    ),
  ).toEqual([
    [0, 4, 0],
    [4, 4, 1],
    [8, 4, 0],
  ])
  expect(
    flagsOf(
      [
        [4, 4],
        [0, 4],
      ],
      [1, 1],
    ),
  ).toEqual([[0, 8, 1]])
  // A hidden request that asked for FUA is answered by the bytes that hide it: these go out with FUA, and only these.
  expect(
    flagsOf(
      [
        [4, 4],
        [0, 12],
      ],
      [1, 0],
    ),
  ).toEqual([
    [0, 4, 0],
    [4, 4, 1],
    [8, 4, 0],
  ])
  // The flag of a batch of one.
  expect(flagsOf([[0, 4]], [1])).toEqual([[0, 4, 1]])
})

// Never fixed: each merge step built a new vector and copied all earlier entries. Here every vector is built once; that it
// cannot be quadratic is seen from the number of pieces, which grows as the number of requests whatever their shape.
test.each<[string, (count: number) => Units, number]>([
  [
    'side by side',
    (n) =>
      unitsOf(
        n,
        (i) => i,
        () => 1,
      ),
    1,
  ],
  [
    'side by side, backwards',
    (n) =>
      unitsOf(
        n,
        (i) => n - i,
        () => 1,
      ),
    1,
  ],
  [
    'each over half of the one before',
    (n) =>
      unitsOf(
        n,
        (i) => i,
        () => 2,
      ),
    1,
  ],
  [
    'each under half of the one before',
    (n) =>
      unitsOf(
        n,
        (i) => n - i,
        () => 2,
      ),
    1,
  ],
  [
    'one within the other, the inner ones later',
    (n) =>
      unitsOf(
        n,
        (i) => i,
        (i) => 2 * (n - i),
      ),
    2,
  ],
  [
    'one within the other, the outer ones later',
    (n) =>
      unitsOf(
        n,
        (i) => n - i,
        (i) => 2 * i + 1,
      ),
    0,
  ],
  [
    'all in one, which came first',
    (n) =>
      unitsOf(
        n,
        (i) => (i === 0 ? 0 : 2 * i),
        (i) => (i === 0 ? 3 * n : 1),
      ),
    2,
  ],
  [
    'each over all that follow, by turns',
    (n) =>
      unitsOf(
        n,
        (i) => (i * 7919) % n,
        (i) => 1 + ((i * 104729) % n),
      ),
    2,
  ],
])('the pieces of a plan are in proportion to its requests: %s', (_, make, perRequest) => {
  for (const count of [10, 1_000, 100_000]) {
    const planned = planMerged(make(count), NO_LIMITS)
    expect(planned.count).toBe(1)
    const segments = planned.firstSegment[planned.count]!
    expect(segments).toBeGreaterThan(0)
    expect(segments).toBeLessThanOrEqual(count * perRequest + 1)
    // Room is made in proportion as well.
    expect(planned.segmentUnit.length).toBeLessThanOrEqual(4 * count)
    // A list that all plans share is none that was made for this one.
    const { offset, length, fua, firstSegment, segmentUnit, segmentStart, segmentLength } = planned
    const shared = [ascending(count), zeros(count), noFlags(count)]
    for (const list of [offset, length, fua, firstSegment, segmentUnit, segmentStart, segmentLength]) {
      if (!shared.includes(list)) expect(list.length).toBeLessThanOrEqual(4 * count)
    }
  }
})

// Never fixed: the sum of two lengths was an int, and on 32-bit hosts the size in bytes was cut as well.
test('lengths beyond 32 bits are not cut', () => {
  const half = 2 ** 40
  expect(
    planSectors([
      [0, half],
      [half, half],
    ]),
  ).toEqual([[0, 2 * half, [0, 0, half], [1, 0, half]]])
})

// Empty requests took part in the merge (QEMU's own test counted merges of pairs of them).
test('empty requests have no part in the plan', () => {
  expect(
    planSectors([
      [8, 0],
      [0, 4],
      [2, 0],
      [4, 4],
      [8, 0],
    ]),
  ).toEqual([[0, 8, [1, 0, 4], [3, 0, 4]]])
  expect(
    planSectors([
      [8, 0],
      [8, 0],
    ]),
  ).toEqual([])
  expect(
    planSectors([
      [0, 4],
      [6, 0],
      [8, 4],
    ]),
  ).toEqual([
    [0, 4, [0, 0, 4]],
    [8, 4, [2, 0, 4]],
  ])
})
