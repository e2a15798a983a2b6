// Histories of all operations, made from seeds, on every engine and target: whatever is merged, held back, rewritten, withdrawn
// or fails, what is read and what is left is what carrying the calls out one after another gives. See support/history.ts.
//
// A failure names its seed: `MULTIWRITE_SEED=4711 npx vitest run test/history.test.ts` runs that one again, on all of them.
// `MULTIWRITE_LONG=1` runs thousands.

import fs from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type BadDisk, badDisk, noBadDisk } from './support/bad-sectors.ts'
import { everywhere } from './support/everywhere.ts'
import { forever, type Rule, withFaults } from './support/faults.ts'
import { Possible, randomNumbers, runHistory } from './support/history.ts'
import {
  background,
  bufferedFile,
  directFile,
  engineNames,
  loop512,
  loop4096,
  loopOnFile,
  tmpfsFile,
  withTarget,
} from './support/targets.ts'

const long = process.env.MULTIWRITE_LONG !== undefined
const one = process.env.MULTIWRITE_SEED

/** Seeds to run: so many, or the one that was asked for. */
function seeds(short: number, many: number): number[] {
  if (one !== undefined) return [Number(one)]
  return Array.from({ length: long ? many : short }, (_, seed) => seed)
}

const timeout = long ? 3_600_000 : 120_000
const SIZE = 192 << 10

everywhere([bufferedFile, directFile, tmpfsFile, loop512, loop4096, loopOnFile], (target, engine) => {
  test('random histories', { timeout }, async () => {
    await withTarget(target, SIZE, async (made) => {
      for (const seed of seeds(25, 300)) {
        made.reset()
        let size = SIZE
        if (!target.block) {
          const random = randomNumbers(~seed)
          size = 1 + Math.floor(random() * SIZE)
          if (random() < 0.3) size -= size % 4096
          fs.truncateSync(made.path, size)
        }
        const content = Buffer.alloc(size, background)
        const options = { ...made.options, engine }
        await runHistory({ ...made, seed, options, content, block: target.block })
      }
    })
  })
})

everywhere([{ ...tmpfsFile, name: 'direct tmpfs file', direct: true }], (target, engine) => {
  test('random histories', { timeout }, async () => {
    await withTarget(target, SIZE, async (made) => {
      for (const seed of seeds(10, 150)) {
        made.reset()
        const size = SIZE - (seed % 2) * 777
        fs.truncateSync(made.path, size)
        const content = Buffer.alloc(size, background)
        await runHistory({ ...made, seed, options: { direct: true, engine }, content, block: false })
      }
    })
  })
})

/** What the kernel may do with what it is asked: answers late, short, in another order, not now, or an error. */
function disturbances(random: () => number, errors: boolean): Rule[] {
  const below = (count: number): number => Math.floor(random() * count)
  const kinds: (() => Rule)[] = [
    () => ({ on: ['read', 'write', 'fdatasync'], does: 'hold', times: 1 + below(20) }),
    () => ({ on: ['read', 'write'], does: 'reverse', value: 2 + below(6), times: forever }),
    () => ({
      on: random() < 0.5 ? 'read' : 'write',
      does: 'shorten',
      value: 4096 * (1 + below(4)),
      times: 1 + below(4),
    }),
    () => ({ on: ['read', 'write'], does: 'replace', value: -11, times: 1 + below(3) }),
    () => ({ on: 'fdatasync', does: 'replace', value: -4, times: 1 + below(3) }),
    () => ({ on: random() < 0.3 ? 'read' : 'write', does: 'replace', value: errors ? -5 : -4, times: 1 + below(2) }),
  ]
  return Array.from({ length: 1 + below(6) }, () => ({ ...kinds[below(kinds.length)]!(), after: below(25) }))
}

describe('where the kernel answers late, short or in another order', () => {
  everywhere([bufferedFile, directFile, loop512, loop4096], (target, engine) => {
    // Behind a page cache an error may stand for more than its request: that is a test of its own.
    test.each(target.direct ? [false, true] : [false])(
      'random histories, with errors: %s',
      { timeout },
      async (errors) => {
        await withTarget(target, SIZE, async (made) => {
          for (const seed of seeds(12, 150)) {
            made.reset()
            // A file of whole blocks keeps out of the page cache.
            const how = { block: target.block, mayFail: errors, fixedSize: errors || target.block }
            const setup = { ...made, ...how, seed, options: { ...made.options, engine } }
            const rules = disturbances(randomNumbers(~seed), errors)
            await withFaults(rules, () => runHistory({ ...setup, content: Buffer.alloc(SIZE, background) }))
          }
        })
      },
    )
  })
})

describe.each([512, 4096] as const)(
  `on bad sectors, below blocks of %i bytes${noBadDisk && ` (${noBadDisk})`}`,
  (sectorSize) => {
    const writes = [37, 38, 150, 301, 480]
    const reads = [90, 150, 222, 403]
    let device: BadDisk
    beforeAll(async () => {
      if (noBadDisk === '') device = await badDisk({ size: SIZE * 2, sectorSize, writes, reads })
    })
    afterAll(() => device?.cleanup())

    test.skipIf(noBadDisk !== '').each(engineNames)('%s: random histories', { timeout }, async (engine) => {
      const bad = { writes: new Set(writes), reads: new Set(reads) }
      for (const seed of seeds(12, 100)) {
        device.fill()
        const content = Buffer.alloc(device.size, background)
        await runHistory({ ...device, seed, options: { engine }, content, block: true, bad })
      }
    })
  },
)

describe('the judge of histories', () => {
  test('takes what is certain, and each of the possibilities of what is not', () => {
    const memory = new Possible(Buffer.alloc(8))
    memory.set(0, Buffer.from([1, 1, 1, 1]))
    memory.maybe(2, Buffer.from([2, 2, 2, 2]))
    memory.maybe(3, Buffer.from([3, 3]))
    memory.set(5, Buffer.from([4]))
    expect(memory.find(0, Buffer.from([1, 1, 2, 3, 2, 4]))).toBeNull()
    // Now it is settled.
    expect(memory.find(3, Buffer.from([2]))).toBe('byte 3 is 2 instead of 3')
    expect(memory.find(3, Buffer.from([3]))).toBeNull()
    memory.maybe(0, Buffer.from([9, 9, 9, 9, 9, 9]))
    memory.set(2, Buffer.from([5]))
    expect(memory.find(2, Buffer.from([9]))).toBe('byte 2 is 9 instead of 5')
    expect(memory.find(3, Buffer.from([9, 2, 4]))).toBeNull()
    memory.resize(3)
    memory.resize(8)
    expect(memory.find(0, Buffer.from([9, 1, 5, 0, 0, 0, 0, 0]))).toBeNull()
    expect(memory.find(0, Buffer.from([9, 1, 5, 0, 0, 0, 0, 0, 0]))).toBe('9 bytes at 0 of 8')
  })
})
