// Single writes and reads that are issued before JavaScript returns to the event loop go out as one batch.

import type { BlockDevice } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { difference, Model, pattern } from './support/model.ts'
import { bufferedFile, eachTarget, loop512, withDisk, withTarget } from './support/targets.ts'

const size = 1 << 20
const page = 4096

eachTarget([bufferedFile, loop512], (target, engine) => {
  /** Runs `work` on a disk and gives how many submissions of how many writes came of it; the content must be the model's. */
  const submissions = async (
    work: (disk: BlockDevice, model: Model) => Promise<unknown>,
  ): Promise<{ requests: number; submissions: number }> =>
    withTarget(target, size, async (made) => {
      const model = new Model(size)
      const merge = { mode: 'full', maxBytes: 1 << 20, maxSegments: 1024 } as const
      const stats = await withDisk(made, { engine, merge }, async (disk) => {
        await work(disk, model)
        return disk.stats.write
      })
      expect(difference(made.readBack(), model.bytes)).toBeNull()
      return { requests: stats.requests, submissions: stats.submissions }
    })

  const writer =
    (disk: BlockDevice, model: Model) =>
    (at: number, index = at): Promise<void> => {
      model.write(at * page, pattern(index, page))
      return disk.write(at * page, pattern(index, page))
    }

  test('adjacent writes of one turn are one submission', async () => {
    const count = await submissions((disk, model) => {
      const write = writer(disk, model)
      return Promise.all([3, 1, 0, 2, 5, 4].map((at) => write(at)))
    })
    expect(count).toEqual({ requests: 6, submissions: 1 })
  })

  test('overlapping writes of one turn: the later wins, still one submission', async () => {
    const count = await submissions((disk, model) => {
      const write = writer(disk, model)
      return Promise.all([write(1, 10), write(0, 11), write(1, 12), write(0, 13)])
    })
    expect(count).toEqual({ requests: 4, submissions: 1 })
  })

  test('lanes of unequal promise depth are one submission', async () => {
    const lanes = 32
    const count = await submissions((disk, model) => {
      const write = writer(disk, model)
      const lane = async (depth: number): Promise<void> => {
        for (let step = 0; step < depth; step++) await undefined
        await write(depth)
      }
      return Promise.all(Array.from({ length: lanes }, (_, depth) => lane(depth)))
    })
    expect(count).toEqual({ requests: lanes, submissions: 1 })
  })

  test('lanes in lockstep stay together, turn after turn', async () => {
    const lanes = 8
    const rounds = 10
    const count = await submissions((disk, model) => {
      const write = writer(disk, model)
      const lane = async (number: number): Promise<void> => {
        for (let round = 0; round < rounds; round++) {
          await write(round * lanes + number)
          for (let step = 0; step < number; step++) await undefined
        }
      }
      return Promise.all(Array.from({ length: lanes }, (_, number) => lane(number)))
    })
    expect(count).toEqual({ requests: lanes * rounds, submissions: rounds })
  })

  test('write, await, write within a plain callback are one submission', async () => {
    const count = await submissions(
      (disk, model) =>
        new Promise<void>((resolve, reject) => {
          const write = writer(disk, model)
          setImmediate(() => {
            const first = write(0)
            const second = Promise.resolve().then(() => write(1))
            const third = Promise.resolve()
              .then(() => undefined)
              .then(() => undefined)
              .then(() => write(2))
            Promise.all([first, second, third]).then(() => resolve(), reject)
          })
        }),
    )
    expect(count).toEqual({ requests: 3, submissions: 1 })
  })

  test('a loop that awaits each write makes batches of one', async () => {
    const count = await submissions(async (disk, model) => {
      const write = writer(disk, model)
      for (let at = 0; at < 10; at++) await write(at)
    })
    expect(count).toEqual({ requests: 10, submissions: 10 })
  })

  test('writes of different turns are different batches', async () => {
    const count = await submissions(async (disk, model) => {
      const write = writer(disk, model)
      const first = write(0)
      await new Promise(setImmediate)
      await Promise.all([first, write(1)])
    })
    expect(count).toEqual({ requests: 2, submissions: 2 })
  })

  test('what is gathered goes out before the next callback of the event loop runs', async () => {
    const count = await submissions(
      (disk, model) =>
        new Promise<void>((resolve, reject) => {
          const write = writer(disk, model)
          const writes: Promise<void>[] = []
          // Both run in one round of the loop, and JavaScript returns to it between them.
          setImmediate(() => writes.push(write(0)))
          setImmediate(() => {
            writes.push(write(1))
            Promise.all(writes).then(() => resolve(), reject)
          })
        }),
    )
    expect(count).toEqual({ requests: 2, submissions: 2 })
  })

  test('a flush sends what was gathered before it', async () => {
    const count = await submissions((disk, model) => {
      const write = writer(disk, model)
      return Promise.all([write(0), write(1), disk.flush(), write(2), write(3)])
    })
    expect(count).toEqual({ requests: 4, submissions: 2 })
  })

  test('a batch sends what was gathered before it', async () => {
    const count = await submissions((disk, model) => {
      const write = writer(disk, model)
      const first = write(0)
      model.write(8 * page, pattern(8, page))
      const batch = disk.multiwrite([{ offset: 8 * page, data: pattern(8, page) }])
      // Adjacent to the first, but called after the batch.
      return Promise.all([first, batch, write(1)])
    })
    expect(count).toEqual({ requests: 3, submissions: 3 })
  })

  test('a batch over a gathered write wins, since it was called later', async () => {
    await submissions((disk, model) => {
      const first = writer(disk, model)(0, 1)
      model.write(0, pattern(2, page))
      return Promise.all([first, disk.multiwrite([{ offset: 0, data: pattern(2, page) }])])
    })
  })

  test('close sends what was gathered before it', async () => {
    const count = await submissions((disk, model) => {
      const write = writer(disk, model)
      return Promise.all([write(0), write(1), disk.close()])
    })
    expect(count).toEqual({ requests: 2, submissions: 1 })
  })

  test('reads and writes of one turn go out as one batch of each kind, in call order', async () => {
    await withTarget(target, size, async (made) => {
      const model = new Model(size)
      await withDisk(made, { engine }, async (disk) => {
        const write = writer(disk, model)
        const before = Buffer.alloc(page)
        const between = Buffer.alloc(page)
        const after = Buffer.alloc(2 * page)
        await Promise.all([
          disk.read(0, before),
          write(0, 1),
          disk.read(0, between),
          write(0, 2),
          write(1, 3),
          disk.read(0, after),
        ])
        expect(difference(before, Buffer.alloc(page, 0xee))).toBeNull()
        expect(difference(between, pattern(1, page))).toBeNull()
        expect(difference(after, Buffer.concat([pattern(2, page), pattern(3, page)]))).toBeNull()
      })
      expect(difference(made.readBack(), model.bytes)).toBeNull()
    })
  })

  test('more writes in one turn than any bound are all carried out', async () => {
    const length = target.direct ? 512 : 10
    await withTarget(target, 64 * size, async (made) => {
      const count = 50_000
      const content = Buffer.concat(Array.from({ length: count }, (_, index) => pattern(index, length)))
      await withDisk(made, { engine }, async (disk) => {
        const writes: Promise<void>[] = []
        for (let at = 0; at < content.length; at += length)
          writes.push(disk.write(at, content.subarray(at, at + length)))
        await Promise.all(writes)
        expect(disk.stats.write.requests).toBe(count)
        expect(disk.stats.write.submissions).toBeLessThan(count)
      })
      expect(difference(made.readBack().subarray(0, content.length), content)).toBeNull()
    })
  })
})

describe('stats', () => {
  test('are a snapshot, and reading them sends nothing', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      await withDisk(made, {}, async (disk) => {
        const first = disk.write(0, pattern(0, page))
        const snapshot = disk.stats
        const second = disk.write(page, pattern(1, page))
        await Promise.all([first, second])
        expect(snapshot.write.submissions).toBe(0)
        expect(disk.stats.write.submissions).toBe(1)
        expect(disk.stats).not.toBe(disk.stats)
      })
    })
  })
})
