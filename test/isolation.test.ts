// Merging is invisible in failure: when a merged run fails, exactly those of its requests fail that would have failed alone, and
// the bytes are those of carrying the requests out one after another. Here a device with bad sectors fails; what no device does
// on command is in isolation-faults.test.ts.

import fc from 'fast-check'
import { MultiwriteError, type OpenOptions, open } from 'multiwrite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Answers, needs, using } from './support/answers.ts'
import { type BadDisk, badDisk, noBadDisk, sector } from './support/bad-sectors.ts'
import { badSectors, drawings, placeOf, ranges, width } from './support/drawings.ts'
import { forever, type Rule, withFaults } from './support/faults.ts'
import { difference, pattern, shuffled } from './support/model.ts'
import { background, engineNames, patience } from './support/targets.ts'
import { noTrace, traced } from './support/trace.ts'

const long = process.env.MULTIWRITE_LONG !== undefined
const page = 4096
const EIO = -5

// ---------------------------------------------------------------------------------------------------------------------
// One bad sector, anywhere in a run

describe(`a bad sector in a merged run${needs(noBadDisk)}`, () => {
  const bad = 1024
  let device: BadDisk
  beforeAll(async () => {
    if (noBadDisk !== '') return
    device = await badDisk({ size: 4096 * sector, writes: [bad], reads: [2 * bad] })
  })
  afterAll(() => device?.cleanup())

  const everyPlace = long ? [...Array.from({ length: 15 }, (_, at) => at + 2), 31, 32, 33, 64, 127, 128] : [2, 3, 4, 8]
  const somePlaces = long ? Array.from({ length: 127 }, (_, at) => at + 2) : [16, 32, 33, 64, 127, 128]
  const runs = [...everyPlace, ...somePlaces.filter((count) => !everyPlace.includes(count))].flatMap((count) => {
    const places = [0, 1, count >> 1, count - 2, count - 1].filter((place) => place >= 0)
    const chosen = everyPlace.includes(count) ? Array.from({ length: count }, (_, at) => at) : places
    return [...new Set(chosen)].map((place) => ({ count, place }))
  })

  describe.skipIf(noBadDisk !== '').each(engineNames)('%s', (engine) => {
    test('of a write fails exactly its owner, and its neighbours are on the device', { timeout: 600_000 }, async () => {
      for (const { count, place } of runs) {
        device.fill()
        const disk = await open(device.path, { engine })
        try {
          const first = bad - place
          const answers = new Answers()
          const requests = shuffled(count, count + place).map((at) => {
            const data = at % 2 === 0 ? disk.alloc(sector) : Buffer.alloc(sector)
            data.set(pattern(at, sector))
            return { offset: (first + at) * sector, data, callback: answers.callback(at) }
          })
          await expect(disk.multiwrite(requests)).resolves.toEqual({ requests: count, failed: 1 })
          const what = `${place} of ${count}`
          expect(answers.order.toSorted((a, b) => a - b)).toEqual(requests.map((_, at) => at))
          for (let at = 0; at < count; at++) {
            if (at !== place) expect(answers.of[at], what).toBeNull()
          }
          expect(answers.of[place], what).toMatchObject({
            code: 'EIO',
            errno: EIO,
            syscall: 'write',
            path: device.path,
            offset: bad * sector,
            length: sector,
            engine,
          })
          const expected = Buffer.alloc(device.size, background)
          for (let at = 0; at < count; at++) if (at !== place) expected.set(pattern(at, sector), (first + at) * sector)
          expect(difference(device.readBack(), expected), what).toBeNull()
          expect(disk.stats.write.submissions).toBe(1)
          expect(disk.stats.isolated).toBe(count)
        } finally {
          await disk.close()
        }
      }
    })

    test('of a read fails exactly its owner, and its neighbours are filled', { timeout: 600_000 }, async () => {
      const content = pattern(9, device.size)
      device.fill(content)
      for (const { count, place } of runs) {
        const disk = await open(device.path, { engine, readOnly: true })
        try {
          const first = 2 * bad - place
          const answers = new Answers()
          const requests = shuffled(count, count + place).map((at) => ({
            offset: (first + at) * sector,
            into: at % 2 === 0 ? disk.alloc(sector) : Buffer.alloc(sector),
            at,
            callback: answers.callback(at),
          }))
          await expect(disk.multiread(requests)).resolves.toEqual({ requests: count, failed: 1 })
          const what = `${place} of ${count}`
          for (const { at, into, offset } of requests) {
            if (at === place) {
              expect(answers.of[at]).toMatchObject({ code: 'EIO', syscall: 'read', offset, length: sector, engine })
            } else {
              expect(answers.of[at], what).toBeNull()
              expect(difference(into, content.subarray(offset, offset + sector)), what).toBeNull()
            }
          }
          expect(disk.stats.read.submissions).toBe(1)
          expect(disk.stats.isolated).toBe(count)
        } finally {
          await disk.close()
        }
      }
    })

    test('single calls that were gathered hear of it each by themselves', async () => {
      device.fill()
      await using(await open(device.path, { engine }), async (disk) => {
        const writes = [-1, 0, 1].map((at) => disk.write((bad + at) * sector, pattern(at + 5, sector)))
        const results = await Promise.allSettled(writes)
        expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
        expect(disk.stats.write.submissions).toBe(1)
        const into = [-1, 0, 1].map(() => Buffer.alloc(sector))
        const reads = await Promise.allSettled(into.map((one, at) => disk.read((2 * bad + at - 1) * sector, one)))
        expect(reads.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
      })
    })

    test('requests without callbacks fail in the error of the batch, by their numbers', async () => {
      device.fill()
      await using(await open(device.path, { engine }), async (disk) => {
        const error = await disk
          .multiwrite([1, 0, -1].map((at) => ({ offset: (bad + at) * sector, data: pattern(1, sector) })))
          .catch((reason: unknown) => reason)
        expect(error).toBeInstanceOf(MultiwriteError)
        expect(error).toMatchObject({ failed: [1], errors: [{ code: 'EIO', offset: bad * sector, length: sector }] })
      })
    })

    test('does not pass on to what is not merged, nor to the next batch', async () => {
      device.fill()
      for (const mode of ['sort', 'off'] as const) {
        await using(await open(device.path, { engine, merge: { mode } }), async (disk) => {
          const answers = new Answers()
          await disk.multiwrite(
            [-1, 0, 1].map((at, index) => ({
              offset: (bad + at) * sector,
              data: pattern(index, sector),
              callback: answers.callback(index),
            })),
          )
          expect(answers.codes(3)).toEqual([null, 'EIO', null])
          expect(disk.stats.isolated).toBe(0)
          await disk.write((bad + 1) * sector, pattern(7, sector))
        })
      }
    })
  })
})

// ---------------------------------------------------------------------------------------------------------------------
// Worked out by hand: see support/drawings.ts

describe(`by hand${needs(noBadDisk)}`, () => {
  let device: BadDisk
  beforeAll(async () => {
    if (noBadDisk !== '') return
    const size = placeOf(drawings.length) * sector
    device = await badDisk({ size, writes: badSectors, reads: badSectors })
  })
  afterAll(() => device?.cleanup())

  /** The requests of a drawing, some of several pieces. */
  const requestsOf = (
    lines: readonly string[],
    index: number,
    answers: Answers,
    inPieces: boolean,
  ): { offset: number; data: Uint8Array[]; callback(error: unknown): void }[] =>
    lines.map((line, request) => {
      const [start, length] = ranges(line)[0] ?? [3, 0]
      const bytes = pattern(index * 16 + request, length * sector)
      const data = inPieces && request % 2 === 1 ? [bytes.subarray(0, 100), bytes.subarray(100)] : [bytes]
      return { offset: (placeOf(index) + start) * sector, data, callback: answers.callback(request) }
    })

  const lettersOf = (answers: Answers, count: number): string =>
    answers
      .codes(count)
      .flatMap((code, request) => (code === null ? [] : [String.fromCharCode('A'.charCodeAt(0) + request)]))
      .join('')

  describe.skipIf(noBadDisk !== '').each(engineNames)('%s', (engine) => {
    test.each(drawings.map((drawing, index) => ({ ...drawing, index })))(
      'writes: $name',
      async ({ index, requests: lines, fails, content, calls, again = [], isolated, options }) => {
        device.fill()
        const answers = new Answers()
        await using(await open(device.path, { engine, ...options }), async (disk) => {
          const requests = requestsOf(lines, index, answers, options === undefined)
          let writes: [number, number][] | null = null
          if (noTrace === '') ({ writes } = await traced(device.path, () => disk.multiwrite(requests)))
          else await disk.multiwrite(requests)
          expect(lettersOf(answers, lines.length)).toBe(fails)
          for (const [request, error] of answers.of.entries()) {
            if (error === null) continue
            const [start, length] = ranges(lines[request]!)[0]!
            expect(error).toMatchObject({
              code: 'EIO',
              offset: (placeOf(index) + start) * sector,
              length: length * sector,
            })
          }
          expect(disk.stats.isolated).toBe(isolated)
          if (writes !== null) {
            const asked = writes.map(([offset, length]) => [offset / sector - placeOf(index), length / sector])
            const byPlace = (a: number[], b: number[]): number => a[0]! - b[0]! || a[1]! - b[1]!
            // One thread's call is not merged with another's.
            const expected = engine === 'threads' ? calls : [...calls, ...again]
            expect(asked.sort(byPlace)).toEqual(expected.flatMap(ranges).sort(byPlace))
          }
        })
        const found = device.readBack()
        for (let at = 0; at < width; at++) {
          const from = (placeOf(index) + at) * sector
          const of = (request: number): Uint8Array => {
            const [start, length] = ranges(lines[request]!)[0]!
            return pattern(index * 16 + request, length * sector).subarray(
              (at - start) * sector,
              (at - start + 1) * sector,
            )
          }
          // What carrying the requests out in order can have left: a failed one may have left its bytes or not.
          let possible: Uint8Array[] = [Buffer.alloc(sector, background)]
          for (const [request, line] of lines.entries()) {
            if (line[at] === '.') continue
            const failed = fails.includes(line[at]!)
            possible = failed ? [...possible, of(request)] : [of(request)]
          }
          const drawn = content[at]!
          if (drawn === '.') possible = [Buffer.alloc(sector, background)]
          else if (drawn !== '?') possible = [of(drawn.charCodeAt(0) - 'A'.charCodeAt(0))]
          const sectorFound = found.subarray(from, from + sector)
          expect(
            possible.some((one) => difference(sectorFound, one) === null),
            `sector ${at} of ${content}`,
          ).toBe(true)
        }
        // Nothing outside of the drawing was touched.
        found.fill(background, placeOf(index) * sector, (placeOf(index) + width) * sector)
        expect(difference(found, Buffer.alloc(device.size, background))).toBeNull()
      },
    )

    test.each(drawings.map((drawing, index) => ({ ...drawing, index })))(
      'reads: $name',
      async ({ index, disk: marks, requests: lines, options }) => {
        const content = pattern(index, device.size)
        device.fill(content)
        const answers = new Answers()
        await using(await open(device.path, { engine, ...options }), async (disk) => {
          const requests = requestsOf(lines, index, answers, true).map(({ offset, data, callback }, request) => {
            const memory = (bytes: number): Buffer => (request % 3 === 0 ? disk.alloc(bytes) : Buffer.alloc(bytes))
            return { offset, into: data.map((piece) => memory(piece.length)), callback }
          })
          await disk.multiread(requests)
          // Reads hide nothing from each other: who touches a bad sector fails.
          const bad = lines.flatMap((line, request) =>
            [...line].some((mark, at) => mark !== '.' && marks[at] === 'x') ? [String.fromCharCode(65 + request)] : [],
          )
          expect(lettersOf(answers, lines.length)).toBe(bad.join(''))
          for (const [request, { offset, into }] of requests.entries()) {
            if (answers.of[request] !== null) continue
            const read = Buffer.concat(into)
            expect(difference(read, content.subarray(offset, offset + read.length)), `request ${request}`).toBeNull()
          }
        })
      },
    )

    test('random batches over many bad sectors', { timeout: 600_000 }, async () => {
      const shape = fc.record({
        start: fc.integer({ min: 0, max: 60 }),
        length: fc.integer({ min: 0, max: 9 }),
        fua: fc.oneof({ weight: 6, arbitrary: fc.constant(false) }, fc.constant(true)),
        noMerge: fc.oneof({ weight: 9, arbitrary: fc.constant(false) }, fc.constant(true)),
      })
      const setups = fc.record({
        shapes: fc.array(shape, { minLength: 1, maxLength: 24 }),
        // Somewhere among the drawings, that is among their bad sectors.
        base: fc.integer({ min: 64, max: placeOf(drawings.length) - 80 }),
        merge: fc.constantFrom({}, {}, { maxSegments: 3 }, { maxBytes: 4 * sector }, { mode: 'sort' as const }),
        queueDepth: fc.constantFrom(1, 4, 128),
      })
      const property = fc.asyncProperty(setups, async ({ shapes, base, merge, queueDepth }) => {
        device.fill()
        const answers = new Answers()
        const bad = new Set(badSectors)
        const ours = Buffer.alloc(device.size, background)
        const open_ = new Uint8Array(device.size)
        const expected = shapes.map(({ start, length }) =>
          Array.from({ length }, (_, at) => base + start + at).some((at) => bad.has(at)) ? 'EIO' : null,
        )
        await using(await open(device.path, { engine, merge, queueDepth }), async (disk) => {
          await disk.multiwrite(
            shapes.map(({ start, length, fua, noMerge }, request) => {
              const offset = (base + start) * sector
              const data = pattern(request, length * sector)
              if (expected[request] === null) {
                ours.set(data, offset)
                open_.fill(0, offset, offset + data.length)
              } else {
                open_.fill(1, offset, offset + data.length)
              }
              return { offset, data, fua, noMerge, callback: answers.callback(request) }
            }),
          )
        })
        expect(answers.codes(shapes.length)).toEqual(expected)
        const found = device.readBack()
        for (let at = 0; at < found.length; at++) if (open_[at] === 1) found[at] = ours[at]!
        expect(difference(found, ours)).toBeNull()
      })
      await fc.assert(property, { numRuns: 60 * patience })
    })
  })
})

// ---------------------------------------------------------------------------------------------------------------------
// Blocks larger than sectors: one bad sector takes its whole block with it

describe(`bad sectors in blocks of 4096 bytes${needs(noBadDisk)}`, () => {
  let device: BadDisk
  beforeAll(async () => {
    if (noBadDisk !== '') return
    // In the third block, and in the twentieth.
    device = await badDisk({ size: 64 * page, sectorSize: 4096, writes: [2 * 8 + 3], reads: [19 * 8] })
  })
  afterAll(() => device?.cleanup())

  test.skipIf(noBadDisk !== '').each(engineNames)(
    '%s: of a run of odd pieces fail those in the bad block, the others are there to the byte',
    async (engine) => {
      device.fill()
      const spans: [number, number][] = [
        [page + 10, 100],
        [page + 110, 2 * page - 110 - 10 - page],
        [2 * page - 10, 20],
        [2 * page + 10, 90],
        [2 * page + 100, page],
        [3 * page + 100, 4000],
        [4 * page + 4, 1],
      ]
      const answers = new Answers()
      await using(await open(device.path, { engine }), async (disk) => {
        expect(disk.limits.alignment).toBe(page)
        await disk.multiwrite(
          spans.map(([offset, length], at) => ({
            offset,
            data: pattern(at, length),
            callback: answers.callback(at),
          })),
        )
      })
      const inBad = ([offset, length]: [number, number]): boolean => offset < 3 * page && offset + length > 2 * page
      expect(answers.codes(spans.length)).toEqual(spans.map((span) => (inBad(span) ? 'EIO' : null)))
      const found = device.readBack()
      const expected = Buffer.alloc(device.size, background)
      for (const [at, [offset, length]] of spans.entries()) {
        if (inBad(spans[at]!)) expected.set(found.subarray(offset, offset + length), offset)
        else expected.set(pattern(at, length), offset)
      }
      expect(difference(found, expected)).toBeNull()
      // From the bad sector on, the block takes nothing.
      const refused = [2 * page + 3 * sector, 3 * page] as const
      expect(difference(found.subarray(...refused), Buffer.alloc(page - 3 * sector, background))).toBeNull()
    },
  )

  /** Ranges behind the bad block. */
  const shared: [string, [offset: number, length: number][]][] = [
    [
      'requests that share a block',
      [
        [0, 1000],
        [1000, 2000],
        [2500, 3000],
        [5500, 500],
        [6000, 2000],
      ],
    ],
    [
      'a hole within a block',
      [
        [0, 3 * page],
        [page + 100, 100],
      ],
    ],
    [
      'many holes within a block',
      [
        [100, page],
        [200, 10],
        [400, 10],
        [page - 10, 20],
        [page + 50, 20],
      ],
    ],
    [
      'a hole across two blocks',
      [
        [10, 3 * page],
        [2 * page - 10, 20],
        [page + 20, 10],
      ],
    ],
    [
      'a gap within a block',
      [
        [100, 100],
        [300, 100],
        [1000, page],
      ],
    ],
  ]

  describe.skipIf(noBadDisk !== '').each(engineNames)('%s: requests that share blocks with each other', (engine) => {
    test.each(shared)('%s: all that they wrote is there', async (_, spans) => {
      for (const disturbed of ['nothing', 'hold', 'reverse'] as const) {
        device.fill()
        const answers = new Answers()
        const expected = Buffer.alloc(device.size, background)
        const rules: Rule[] = disturbed === 'nothing' ? [] : [{ on: 'read', does: disturbed, value: 2, times: forever }]
        const requests = spans.map(([offset, length], at) => {
          expected.set(pattern(at, length), 3 * page + offset)
          return { offset: 3 * page + offset, data: pattern(at, length), callback: answers.callback(at) }
        })
        // It touches the first of them, and fails.
        const bad = {
          offset: 2 * page,
          data: Buffer.alloc(page + spans[0]![0]),
          callback: answers.callback(spans.length),
        }
        await using(await open(device.path, { engine }), async (disk) => {
          await withFaults(rules, () => disk.multiwrite([...requests, bad]))
          expect(disk.stats).toMatchObject({ isolated: spans.length + 1, write: { submissions: 1 } })
        })
        expect(answers.codes(spans.length + 1)).toEqual([...spans.map(() => null), 'EIO'])
        const found = device.readBack()
        // What the failed one may have left.
        expected.set(found.subarray(2 * page, 3 * page + spans[0]![0]), 2 * page)
        expect(difference(found, expected), disturbed).toBeNull()
      }
    })
  })

  test.skipIf(noBadDisk !== '').each(engineNames)(
    '%s: a block that cannot be read fails who would have to read it, and who writes it whole does not',
    async (engine) => {
      device.fill()
      const answers = new Answers()
      await using(await open(device.path, { engine }), async (disk) => {
        await disk.multiwrite([
          { offset: 18 * page, data: pattern(0, page), callback: answers.callback(0) },
          { offset: 19 * page + 1, data: pattern(1, 100), callback: answers.callback(1) },
          { offset: 20 * page, data: pattern(2, page), callback: answers.callback(2) },
        ])
        await disk.multiwrite([
          { offset: 18 * page + 8, data: pattern(3, page - 8), callback: answers.callback(3) },
          { offset: 19 * page, data: pattern(4, page), callback: answers.callback(4) },
        ])
      })
      expect(answers.codes(5)).toEqual([null, 'EIO', null, null, null])
      const found = device.readBack()
      expect(difference(found.subarray(18 * page, 18 * page + 8), pattern(0, 8))).toBeNull()
      expect(difference(found.subarray(18 * page + 8, 19 * page), pattern(3, page - 8))).toBeNull()
      expect(difference(found.subarray(19 * page, 20 * page), pattern(4, page))).toBeNull()
      expect(difference(found.subarray(20 * page, 21 * page), pattern(2, page))).toBeNull()
    },
  )
})

// ---------------------------------------------------------------------------------------------------------------------
// The kernel merges too

describe.each([512, 4096] as const)(
  `neighbours that go out one by one and that the kernel merges, blocks of %i bytes${needs(noBadDisk)}`,
  (block) => {
    // In block 9 of those that are written, and of those that are read.
    const [toWrite, toRead] = [0, 64].map((first) => Array.from({ length: 16 }, (_, at) => first + at)) as [
      number[],
      number[],
    ]
    const badIn = (blocks: readonly number[]): number => (blocks[9]! * block) / sector
    let device: BadDisk
    beforeAll(async () => {
      if (noBadDisk !== '') return
      const [writes, reads] = [[badIn(toWrite)], [badIn(toRead)]]
      device = await badDisk({ size: 96 * block, sectorSize: block, writes, reads, kernelMerges: true })
    })
    afterAll(() => device?.cleanup())

    const ways: [string, OpenOptions, boolean][] = [
      ['as it comes', {}, false],
      ['mode sort', { merge: { mode: 'sort' } }, false],
      ['mode off', { merge: { mode: 'off' } }, false],
      ['noMerge', {}, true],
      ['runs that a limit cuts', { merge: { maxSegments: 1 } }, false],
    ]
    const shapes: [string, start: number, length: number][] = [
      ['whole blocks', 0, block],
      // They do not touch; the blocks that they are written with do.
      ['parts of blocks', 12, block - 100],
    ]

    describe.skipIf(noBadDisk !== '').each(engineNames)('%s', (engine) => {
      describe.each(shapes)('%s', (_, start, length) => {
        test.each(ways)('%s: only the owner of the bad sector fails', async (_, options, noMerge) => {
          device.fill()
          const answers = new Answers()
          const reads = new Answers()
          await using(await open(device.path, { engine, ...options }), async (disk) => {
            const requests = toWrite.map((at, index) => ({
              offset: at * block + start,
              data: disk.alloc(length).fill(at + 1),
              noMerge,
              callback: answers.callback(index),
            }))
            await disk.multiwrite(requests)
            const into = toRead.map((at, index) => ({
              offset: at * block + start,
              into: disk.alloc(length),
              callback: reads.callback(index),
            }))
            await disk.multiread(into)
          })
          const expected = toWrite.map((_, index) => (index === 9 ? 'EIO' : null))
          expect(answers.codes(16)).toEqual(expected)
          expect(reads.codes(16)).toEqual(expected)
        })
      })
    })
  },
)
