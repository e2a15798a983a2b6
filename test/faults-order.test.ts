// Answers that come late and in the wrong order, and queues that are full: nothing is lost, nothing is answered twice, and what
// overlaps keeps its order. The shim of the test build holds the kernel's answers back and turns them round.

import type { BlockDevice, OpenOptions } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { everywhere } from './support/everywhere.ts'
import { forever, type Rule, withFaults } from './support/faults.ts'
import { difference, Model, pattern, shuffled } from './support/model.ts'
import { bufferedFile, directFile, type MadeTarget, withDisk, withTarget } from './support/targets.ts'

const page = 4096
const size = 64 * page
/** Scattered writes of one batch. */
const count = 10_000

everywhere([bufferedFile, directFile], (target, engine) => {
  const onDisk = (
    work: (disk: BlockDevice, made: MadeTarget) => Promise<void>,
    options: OpenOptions = {},
  ): Promise<void> =>
    withTarget(target, size, (made) => withDisk(made, { engine, ...options }, (disk) => work(disk, made)))

  describe('answers that come late or in the wrong order', () => {
    const disturbed: [string, Rule[]][] = [
      ['held back', [{ on: ['write', 'read', 'fdatasync'], does: 'hold', times: forever }]],
      ['every third held back', [0, 3, 6, 9].map((after) => ({ on: ['write', 'read'], does: 'hold', after }) as const)],
      ['reversed', [{ on: ['write', 'read'], does: 'reverse', value: 8, times: forever }]],
      ['reversed in threes', [{ on: ['write', 'read'], does: 'reverse', value: 3, times: forever }]],
    ]

    test.each(disturbed)(
      '%s: each callback once, in array order within its run, and all before the promise',
      async (_, rules) => {
        await onDisk(async (disk, made) => {
          const model = new Model(size)
          const heard: number[] = []
          await withFaults(rules, async () => {
            const requests = shuffled(24, 3).map((at, index) => {
              // Runs of three, with a gap between them.
              const offset = (at + Math.floor(at / 3)) * page
              model.write(offset, pattern(at, page))
              return {
                offset,
                data: pattern(at, page),
                callback: () => void heard.push(index),
                run: Math.floor(at / 3),
              }
            })
            await disk.multiwrite(requests)
            expect([...heard].sort((a, b) => a - b)).toEqual(requests.map((_, index) => index))
            for (let run = 0; run < 8; run++) {
              const own = heard.filter((index) => requests[index]?.run === run)
              expect(own).toEqual([...own].sort((a, b) => a - b))
            }
          })
          expect(disk.stats.write.submissions).toBe(8)
          expect(difference(made.readBack(), model.bytes)).toBeNull()
        })
      },
    )

    test.each(disturbed)('%s: overlapping calls still take effect in the order of their calls', async (_, rules) => {
      await onDisk(
        async (disk, made) => {
          const model = new Model(size)
          await withFaults(rules, async () => {
            const pending: Promise<unknown>[] = []
            for (let index = 0; index < 40; index++) {
              const offset = ((index * 5) % 24) * page
              const length = (1 + (index % 4)) * page
              const data = pattern(index, length)
              if (index % 4 === 3) {
                const expected = model.read(offset, length)
                const into = Buffer.alloc(length)
                pending.push(
                  disk.read(offset, into).then(() => expect(difference(into, expected), `read ${index}`).toBeNull()),
                )
              } else {
                model.write(offset, data)
                pending.push(index % 2 === 0 ? disk.write(offset, data) : disk.multiwrite([{ offset, data }]))
              }
            }
            await Promise.all(pending)
          })
          expect(difference(made.readBack(), model.bytes)).toBeNull()
        },
        { queueDepth: 16 },
      )
    })

    test.each(disturbed)(
      '%s: a flush is answered after every write before it, and close after all',
      async (_, rules) => {
        await onDisk(async (disk) => {
          await withFaults(rules, async () => {
            const events: string[] = []
            const pending: Promise<unknown>[] = []
            for (let index = 0; index < 12; index++) {
              pending.push(
                disk
                  .multiwrite([{ offset: index * 2 * page, data: pattern(index, page) }])
                  .then(() => events.push('write')),
              )
            }
            pending.push(disk.flush().then(() => events.push('flush')))
            const later = disk.write(0, pattern(1, page)).then(() => events.push('later'))
            await disk.close()
            expect(events).toHaveLength(14)
            expect(events.indexOf('flush')).toBeGreaterThan(events.lastIndexOf('write'))
            await Promise.all([...pending, later])
          })
        })
      },
    )
  })

  describe('a full queue', () => {
    test.each([1, 2, 128, 4096])('of depth %i takes 10,000 scattered writes', async (queueDepth) => {
      const sector = target.direct ? 512 : 100
      await withTarget(target, 2 * count * sector, async (made) => {
        const model = new Model(2 * count * sector)
        await withDisk(made, { engine, queueDepth }, async (disk) => {
          const data = disk.alloc(sector)
          data.fill(0x5a)
          const answers = new Int32Array(count)
          const requests = shuffled(count, 7).map((at, index) => {
            model.write(2 * at * sector, data)
            return {
              offset: 2 * at * sector,
              data,
              callback(error: unknown): void {
                answers[index]! += error === null ? 1 : 100
              },
            }
          })
          await expect(disk.multiwrite(requests)).resolves.toEqual({ requests: count, failed: 0 })
          expect(answers.every((answer) => answer === 1)).toBe(true)
          expect(disk.stats.write.submissions).toBe(count)
        })
        expect(difference(made.readBack(), model.bytes)).toBeNull()
      })
    })
  })
})
