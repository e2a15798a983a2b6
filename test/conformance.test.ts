// Every shape that ever went wrong in a merging writer, through real devices: the bytes that result, how many submissions
// carried them, how many bytes those had, and on a loop device which ranges the kernel was given.

import fs from 'node:fs'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { difference, Model } from './support/model.ts'
import {
  bufferedFile,
  eachTarget,
  loop512,
  loop4096,
  loopBuffered,
  type MadeTarget,
  withDisk,
} from './support/targets.ts'
import { noTrace, traced } from './support/trace.ts'

type Triple = [offset: number, length: number, byte: number]

interface Case {
  id: string
  title: string
  requests: Triple[]
  content: Triple[]
  submissions?: [offset: number, length: number][]
  submissionsAtMost?: number
  limits?: { maxBytes?: number; maxSegments?: number }
  planOnly?: boolean
  fillGaps?: boolean
}

const file = new URL('./conformance/multiwrite-cases.json', import.meta.url)
const all = (JSON.parse(fs.readFileSync(file, 'utf8')) as { cases: Case[] }).cases
// Raw never fills a gap, and what lies a tebibyte apart is a matter for the planner.
const cases = all.filter((entry) => !entry.planOnly && !entry.fillGaps)

const unlimited = { maxBytes: 0x7ffff000, maxSegments: 1024 }

function scaled(entry: Case, by: number): Case {
  const triple = ([offset, length, byte]: Triple): Triple => [offset * by, length * by, byte]
  const result: Case = { ...entry, requests: entry.requests.map(triple), content: entry.content.map(triple) }
  if (entry.submissions) result.submissions = entry.submissions.map(([offset, length]) => [offset * by, length * by])
  if (entry.limits?.maxBytes) result.limits = { ...entry.limits, maxBytes: entry.limits.maxBytes * by }
  return result
}

const sum = (ranges: readonly (readonly number[])[]): number =>
  ranges.reduce((total, [, length = 0]) => total + length, 0)

test('the cases are all there', () => {
  expect(cases.length).toBeGreaterThanOrEqual(26)
  expect(new Set(cases.map(({ id }) => id)).size).toBe(cases.length)
})

eachTarget([bufferedFile, loop512, loopBuffered, loop4096], (target, engine) => {
  const by = target === loop4096 ? 8 : 1
  const size = by * (1 << 20)
  let made: MadeTarget

  beforeAll(() => {
    made = target.make(size)
  })
  beforeEach(() => made.reset())
  afterAll(() => made?.cleanup())

  describe.each(cases.map((entry) => scaled(entry, by)))('$id $title', (entry) => {
    const requests = (): { offset: number; data: Uint8Array }[] =>
      entry.requests.map(([offset, length, byte]) => ({ offset, data: Buffer.alloc(length, byte) }))
    const expected = new Model(size)
    for (const [offset, length, byte] of entry.content) expected.write(offset, Buffer.alloc(length, byte))
    const limits = { ...unlimited, ...entry.limits }

    test('merged: the right bytes in the right number of submissions', async () => {
      const stats = await withDisk(made, { engine, merge: { mode: 'full', ...limits } }, async (disk) => {
        await expect(disk.multiwrite(requests())).resolves.toEqual({ requests: entry.requests.length, failed: 0 })
        return disk.stats.write
      })
      expect(difference(made.readBack(), expected.bytes)).toBeNull()
      expect(stats.requests).toBe(entry.requests.length)
      expect(stats.bytes).toBe(sum(entry.content))
      expect(stats.overlapBytes).toBe(sum(entry.requests) - sum(entry.content))
      expect(stats.gapBytes).toBe(0)
      if (entry.submissions) expect(stats.submissions).toBe(entry.submissions.length)
      else {
        expect(stats.submissions).toBeLessThanOrEqual(entry.submissionsAtMost as number)
        expect(stats.submissions).toBeGreaterThanOrEqual(Math.ceil(sum(entry.content) / limits.maxBytes))
      }
    })

    test.each(['sort', 'off'] as const)('mode %s: the same bytes, one submission for each request', async (mode) => {
      const stats = await withDisk(made, { engine, merge: { mode, ...limits } }, async (disk) => {
        await disk.multiwrite(requests())
        return disk.stats.write
      })
      expect(difference(made.readBack(), expected.bytes)).toBeNull()
      expect(stats.submissions).toBe(entry.requests.filter(([, length]) => length > 0).length)
      expect(stats.bytes).toBe(sum(entry.requests))
    })

    // A bio holds 256 vectors: what has more reaches the block layer in pieces.
    if (!(target.block && target.direct) || !entry.submissions || entry.requests.length > 256) return
    const title = `merged: the kernel is given these ranges and no others${noTrace && ` (${noTrace})`}`
    test.skipIf(noTrace !== '')(title, async () => {
      const { writes } = await withDisk(made, { engine, merge: { mode: 'full', ...limits } }, (disk) =>
        traced(made.path, () => disk.multiwrite(requests())),
      )
      expect(writes).toEqual(entry.submissions)
    })
  })
})
