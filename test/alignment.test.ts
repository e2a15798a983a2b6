// Any offset, any length, any address, around the page cache too: what is not a whole block is read, changed and written, and
// nothing else that goes through the same device is lost by it. Much of this is what QEMU's own tests of its block layer (the
// "iotests", named by number) found worth trying, with their numbers; the outcome is always that of one write after another.

import fs from 'node:fs'
import { type BlockDevice, BlockError, type OpenOptions, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { everywhere } from './support/everywhere.ts'
import { forever, type Rule, withFaults } from './support/faults.ts'
import {
  apply,
  cluster,
  clusters,
  expectedOf,
  filled,
  iotest046,
  iotest077,
  type Write,
  ways,
} from './support/iotests.ts'
import { difference, pattern, shuffled } from './support/model.ts'
import {
  background,
  directFile,
  loop512,
  loop4096,
  type MadeTarget,
  type Target,
  tmpfsFile,
  withDisk,
  withTarget,
} from './support/targets.ts'

const page = 4096
const long = process.env.MULTIWRITE_LONG !== undefined

/** What the shim does to the reads and writes of a read-modify-write meanwhile. */
const disturbances: Record<string, Rule[]> = {
  undisturbed: [],
  'the first read is held back': [{ on: 'read', does: 'hold', times: 1 }],
  'all reads are held back': [{ on: 'read', does: 'hold', times: forever }],
  'the first write is held back': [{ on: 'write', does: 'hold', times: 1 }],
  'answers come in reverse': [{ on: ['read', 'write'], does: 'reverse', value: 3, times: forever }],
}

async function fillDisk(made: MadeTarget, content: Buffer): Promise<void> {
  const file = await fs.promises.open(made.path, 'r+')
  try {
    await file.write(content, 0, content.length, 0)
    await file.sync()
  } finally {
    await file.close()
  }
}

const blocks: readonly Target[] = [loop4096, loop512, directFile]

everywhere(blocks, (target, engine) => {
  describe.each([
    ['iotest 077', iotest077, 0x14000],
    ['iotest 046', iotest046, 0x120000],
  ] as const)('%s', (name, groups, size) => {
    const before = name === 'iotest 046' ? clusters(size) : Buffer.alloc(size, background)

    test.each(Object.keys(ways))('%s', async (way) => {
      await withTarget(target, size, async (made) => {
        for (const [disturbance, rules] of Object.entries(disturbances)) {
          await fillDisk(made, before)
          const expected = Buffer.from(before)
          await withDisk(made, { engine }, async (disk) => {
            for (const group of groups) {
              await withFaults(rules, () => ways[way]!(disk, group.writes))
              // By hand, and by carrying the writes out: the same.
              const byHand = expectedOf(group, expected)
              apply(expected, group.writes)
              expect(difference(byHand, expected), `the table: ${group.name}`).toBeNull()
              const first = Math.min(...group.writes.map(([offset]) => offset))
              const from = first - (first % page)
              const into = Buffer.alloc(Math.min(size - from, 4 * cluster))
              await disk.read(from, into)
              const wanted = expected.subarray(from, from + into.length)
              expect(difference(into, wanted), `${group.name}, ${disturbance}`).toBeNull()
            }
          })
          expect(difference(made.readBack(), expected), disturbance).toBeNull()
        }
      })
    })

    test('all groups at once', async () => {
      await withTarget(target, size, async (made) => {
        await fillDisk(made, before)
        const expected = Buffer.from(before)
        for (const group of groups) apply(expected, group.writes)
        await withDisk(made, { engine, queueDepth: 4 }, async (disk) => {
          await withFaults(disturbances['answers come in reverse']!, () =>
            Promise.all(groups.map((group, at) => Object.values(ways)[at % 5]!(disk, group.writes))),
          )
        })
        expect(difference(made.readBack(), expected)).toBeNull()
      })
    })
  })

  test('iotest 033: zeroes in the middle of what was written, with odd ends', async () => {
    const size = 0x40000
    await withTarget(target, size, async (made) => {
      for (const together of [false, true]) {
        made.reset()
        const expected = Buffer.alloc(size, background)
        await withDisk(made, { engine }, async (disk) => {
          const pending: Promise<unknown>[] = []
          const step = async (promise: Promise<unknown>): Promise<void> => {
            pending.push(promise)
            if (!together) await promise
          }
          const write = (one: Write): Promise<void> => {
            apply(expected, [one])
            return step(disk.write(one[0], filled(one)))
          }
          const zero = (offset: number, length: number): Promise<void> => {
            expected.fill(0, offset, offset + length)
            return step(disk.writeZeroes(offset, length))
          }
          await write([0x200, 0x400, 0xa])
          await write([0x20000, 0x600, 0xa])
          await zero(0x400, 0x20000)
          await write([0x30000, 0x1000, 0xb])
          await zero(0x30200, 0x200)
          await write([0x31000, 0x1000, 0xb])
          await zero(0x31000, 0x1000)
          await write([0x31001, 1, 0xc])
          await Promise.all(pending)
        })
        const found = made.readBack()
        expect(difference(found, expected)).toBeNull()
        for (const [from, to, byte] of [
          [0, 0x200, background],
          [0x200, 0x400, 0xa],
          [0x400, 0x20400, 0],
          [0x20400, 0x20600, 0xa],
          [0x30000, 0x30200, 0xb],
          [0x30200, 0x30400, 0],
          [0x30400, 0x31000, 0xb],
        ] as const) {
          expect(difference(found.subarray(from, to), Buffer.alloc(to - from, byte)), from.toString(16)).toBeNull()
        }
      }
    })
  })

  test('iotest 177: one long write at an odd place, in parts of 64 KiB', async () => {
    const size = 0x40000
    await withTarget(target, size, async (made) => {
      await fillDisk(made, Buffer.alloc(size, 22))
      await withDisk(made, { engine, merge: { maxBytes: 0x10000 } }, async (disk) => {
        await disk.write(1000, Buffer.alloc(0x20000, 33))
        expect(disk.stats.write).toMatchObject({ requests: 1, submissions: 3, bytes: 0x20000 })
        const into = Buffer.alloc(0x20000)
        await disk.read(1000, into)
        expect(difference(into, Buffer.alloc(0x20000, 33))).toBeNull()
      })
      const expected = Buffer.alloc(size, 22).fill(33, 1000, 132_072)
      expect(difference(made.readBack(), expected)).toBeNull()
    })
  })

  test('iovecs that need padding: 1024 of them, around an odd place', async () => {
    const size = 0x100000
    for (const [last, offset] of [
      [512, 512],
      [512, 4096],
      [4096, 512],
      [4096, 4096],
    ] as const) {
      await withTarget(target, size, async (made) => {
        await fillDisk(made, Buffer.alloc(size, 1))
        const length = 1023 * 512 + last
        await withDisk(made, { engine }, async (disk) => {
          for (const make of [(bytes: number) => Buffer.alloc(bytes), (bytes: number) => disk.alloc(bytes)]) {
            const data = Array.from({ length: 1024 }, (_, at) => make(at < 1023 ? 512 : last).fill(2))
            await disk.write(offset, data)
            const into = Array.from({ length: 1024 }, (_, at) => make(at < 1023 ? 512 : last))
            await disk.read(offset, into)
            expect(difference(Buffer.concat(into), Buffer.alloc(length, 2))).toBeNull()
          }
        })
        expect(difference(made.readBack(), Buffer.alloc(size, 1).fill(2, offset, offset + length))).toBeNull()
      })
    }
  })

  describe('what a read-modify-write costs', () => {
    const size = 64 * page
    const onDisk = (
      work: (disk: BlockDevice, made: MadeTarget) => Promise<void>,
      options: OpenOptions = {},
    ): Promise<void> =>
      withTarget(target, size, (made) => withDisk(made, { engine, ...options }, (disk) => work(disk, made)))
    const bytes = (length: number): Buffer => Buffer.alloc(length, 7)

    test('whole blocks: nothing', async () => {
      await onDisk(async (disk) => {
        const { alignment } = disk.limits
        await disk.write(alignment, disk.alloc(3 * alignment))
        await disk.write(8 * alignment, bytes(alignment))
        expect(disk.stats).toMatchObject({ rmw: 0, bounced: 1 })
      })
    })

    test('one per run, however many odd ends and requests are in it', async () => {
      await onDisk(async (disk) => {
        const { alignment } = disk.limits
        await disk.write(1, bytes(10))
        expect(disk.stats.rmw).toBe(1)
        // A head and a tail.
        await disk.write(alignment + 1, bytes(3 * alignment))
        expect(disk.stats.rmw).toBe(2)
        // Neighbours, one block and then the next.
        await disk.multiwrite([
          { offset: 9 * alignment + 100, data: bytes(alignment) },
          { offset: 10 * alignment + 100, data: bytes(alignment) },
        ])
        expect(disk.stats.rmw).toBe(3)
        // Two in one block that do not touch.
        await disk.multiwrite([
          { offset: 20 * alignment + 10, data: bytes(10) },
          { offset: 20 * alignment + 100, data: bytes(10) },
        ])
        expect(disk.stats).toMatchObject({ rmw: 4, write: { submissions: 4 } })
        // Two blocks apart.
        await disk.multiwrite([
          { offset: 30 * alignment + 10, data: bytes(10) },
          { offset: 32 * alignment + 10, data: bytes(10) },
        ])
        expect(disk.stats).toMatchObject({ rmw: 6, write: { submissions: 6 } })
        // Together they are a whole block.
        await disk.multiwrite([
          { offset: 40 * alignment, data: bytes(100) },
          { offset: 40 * alignment + 100, data: bytes(alignment - 100) },
        ])
        expect(disk.stats).toMatchObject({ rmw: 6, write: { submissions: 7 } })
      })
    })

    test('reads: none, whatever their ends', async () => {
      await onDisk(async (disk) => {
        const content = pattern(3, size)
        await disk.write(0, content)
        for (const [offset, length] of [
          [1, 1],
          [511, 2],
          [4095, 4098],
          [size - 1, 1],
          [0, size],
          [3, size - 5],
        ] as const) {
          const into = Buffer.alloc(length)
          await disk.read(offset, into)
          expect(difference(into, content.subarray(offset, offset + length))).toBeNull()
        }
        expect(disk.stats.rmw).toBe(0)
      })
    })

    test('a run that is larger than the limit: one for its head, one for its tail', async () => {
      await onDisk(
        async (disk, made) => {
          const data = pattern(5, 40 * page)
          await disk.write(page + 5, data)
          expect(disk.stats.rmw).toBe(2)
          await disk.flush()
          const expected = Buffer.alloc(size, background)
          expected.set(data, page + 5)
          expect(difference(made.readBack(), expected)).toBeNull()
        },
        { merge: { maxBytes: 8 * page } },
      )
    })

    test('writes to one block go one after another: each finds what the one before has left', async () => {
      const count = long ? 1000 : 100
      await onDisk(async (disk, made) => {
        const expected = Buffer.alloc(size, background)
        const order = shuffled(count, 5)
        const write = (at: number): Promise<unknown> => {
          const data = pattern(at, 13)
          const offset = page + ((at * 7) % 480)
          expected.set(data, offset)
          return disk.multiwrite([{ offset, data }])
        }
        await withFaults([{ on: 'read', does: 'reverse', value: 2, times: forever }], () =>
          Promise.all(order.map(write)),
        )
        await disk.flush()
        expect(difference(made.readBack(), expected)).toBeNull()
      })
    })

    test('and reads of one block see the writes before them', async () => {
      await onDisk(async (disk) => {
        const pending: Promise<void>[] = []
        const expected = Buffer.alloc(page, background)
        for (let at = 0; at < 60; at++) {
          const data = pattern(at, 100)
          const offset = (at * 37) % (page - 100)
          expected.set(data, offset)
          pending.push(disk.write(page + offset, data))
          const into = Buffer.alloc(300)
          const from = (at * 91) % (page - 300)
          const wanted = Buffer.from(expected.subarray(from, from + 300))
          pending.push(
            disk.read(page + from, into).then(() => expect(difference(into, wanted), `read ${at}`).toBeNull()),
          )
        }
        await Promise.all(pending)
      })
    })

    test('without order of overlapping calls the locks of blocks stay', async () => {
      await onDisk(
        async (disk, made) => {
          const expected = Buffer.alloc(size, background)
          const writes = Array.from({ length: 64 }, (_, at) => ({ offset: page + at * 64, data: pattern(at, 64) }))
          for (const { offset, data } of writes) expected.set(data, offset)
          await withFaults([{ on: 'read', does: 'reverse', value: 3, times: forever }], () =>
            Promise.all(shuffled(64, 9).map((at) => disk.multiwrite([writes[at]!]))),
          )
          await disk.flush()
          expect(difference(made.readBack(), expected)).toBeNull()
        },
        { ordered: false },
      )
    })
  })
})

// ---------------------------------------------------------------------------------------------------------------------

everywhere([loop4096, directFile], (target, engine) => {
  test('iotest 177: zeroes and discards of odd places on a large disk', { timeout: 120_000 }, async () => {
    const size = 128 << 20
    await withTarget(target, size, async (made) => {
      const expected = Buffer.alloc(size, background)
      let discarded = true
      await withDisk(made, { engine, merge: { maxBytes: 0x10000 } }, async (disk) => {
        const zero = (offset: number, length: number, unmap: boolean): Promise<void> => {
          expected.fill(0, offset, offset + length)
          return disk.writeZeroes(offset, length, { unmap })
        }
        await Promise.all([zero(8_003_584, 2_093_056, false), zero((32 << 20) + 1, 32 << 20, true)])
        await disk.discard(80_000_001, 30 << 20).catch((error: unknown) => {
          if (!(error instanceof BlockError) || error.code !== 'EOPNOTSUPP') throw error
          discarded = false
        })
      })
      const found = made.readBack()
      // Whole blocks of what was discarded read as zeros from a file, and from a loop device over one; its ends stay.
      const grain = 4096
      const [from, to] = [80_000_001, 80_000_001 + (30 << 20)]
      if (discarded) expected.fill(0, Math.ceil(from / grain) * grain, Math.floor(to / grain) * grain)
      expect(difference(found, expected)).toBeNull()
    })
  })
})

// ---------------------------------------------------------------------------------------------------------------------

everywhere([directFile], (target, engine) => {
  describe('a file whose size is no multiple of the block', () => {
    const few = [1, 511, 513, 4097, 5 * page + 1234]
    const sizes = long ? [...few, 100, 512, 4095, 4096, 5 * page + 1, 5 * page + 511] : few

    const withTail = (
      size: number,
      work: (disk: BlockDevice, expected: Buffer, made: MadeTarget) => Promise<void>,
      options: OpenOptions = {},
    ): Promise<void> =>
      withTarget(target, Math.ceil(size / page) * page, async (made) => {
        fs.truncateSync(made.path, size)
        const expected = Buffer.alloc(size, background)
        await withDisk(made, { engine, ...options }, (disk) => work(disk, expected, made))
        const found = fs.readFileSync(made.path)
        expect(difference(found, expected), `size ${size}`).toBeNull()
      })

    /** Ranges around every place that could matter. */
    const spans = (size: number): [number, number][] => {
      const places = [0, 1, 511, 512, 513, page, size - 513, size - 512, size - 511, size - 1, size]
        .concat([Math.floor(size / 512) * 512, Math.floor(size / page) * page])
        .filter((place) => place >= 0 && place <= size)
      return [...new Set(places)].flatMap((from) =>
        [...new Set(places)].filter((to) => to > from).map((to): [number, number] => [from, to - from]),
      )
    }

    test('takes writes anywhere, one by one, and stays as long as it is', async () => {
      for (const size of sizes) {
        await withTail(size, async (disk, expected) => {
          expect(disk.size).toBe(size)
          for (const [at, [offset, length]] of spans(size).entries()) {
            const data = pattern(at, length)
            expected.set(data, offset)
            await disk.write(offset, data, { fua: at % 7 === 0 })
          }
          await disk.refresh()
          expect(disk.size).toBe(size)
        })
      }
    })

    test('takes writes anywhere, all at once and in batches', async () => {
      for (const size of sizes) {
        await withTail(size, async (disk, expected) => {
          const all = spans(size)
          const pending: Promise<unknown>[] = []
          for (let at = 0; at < all.length; at += 4) {
            const requests = all.slice(at, at + 4).map(([offset, length], index) => {
              const data = pattern(at + index, length)
              expected.set(data, offset)
              return { offset, data, noMerge: (at + index) % 5 === 0 }
            })
            pending.push(disk.multiwrite(requests))
          }
          await withFaults([{ on: ['read', 'write'], does: 'reverse', value: 2, times: forever }], () =>
            Promise.all(pending),
          )
        })
      }
    })

    test('is read anywhere', async () => {
      for (const size of sizes) {
        await withTail(size, async (disk, expected) => {
          const content = pattern(1, size)
          expected.set(content)
          await disk.write(0, content)
          for (const [offset, length] of spans(size)) {
            const into = Buffer.alloc(length)
            await disk.read(offset, into)
            expect(difference(into, content.subarray(offset, offset + length)), `${offset}+${length}`).toBeNull()
          }
          const requests = spans(size).map(([offset, length]) => ({ offset, into: Buffer.alloc(length) }))
          await disk.multiread(requests)
          for (const { offset, into } of requests) {
            expect(difference(into, content.subarray(offset, offset + into.length))).toBeNull()
          }
        })
      }
    })

    test('takes zeroes at its end', async () => {
      for (const size of sizes) {
        await withTail(size, async (disk, expected) => {
          for (const [at, [offset, length]] of spans(size).entries()) {
            if (at % 3 !== 0) continue
            const data = pattern(at, size)
            expected.set(data)
            expected.fill(0, offset, offset + length)
            await Promise.all([disk.write(0, data), disk.writeZeroes(offset, length, { unmap: at % 2 === 0 })])
          }
        })
      }
    })

    test('keeps its tail while it is cut and grows', async () => {
      await withTail(5 * page + 1234, async (disk, expected, made) => {
        const later = Buffer.from(expected)
        let content = later
        const cut = async (size: number): Promise<void> => {
          const next = Buffer.alloc(size)
          next.set(content.subarray(0, size))
          content = next
          await disk.truncate(size)
          expect(disk.size).toBe(size)
        }
        const write = async (offset: number, length: number): Promise<void> => {
          const data = pattern(offset + length, length)
          content.set(data, offset)
          await disk.write(offset, data)
        }
        for (const size of [5 * page + 1, 4 * page, 4 * page + 700, 9 * page + 3, 100, 3000]) {
          await cut(size)
          await write(Math.max(0, size - 90), Math.min(size, 90))
          await write(0, Math.min(size, 50))
          const into = Buffer.alloc(size)
          await disk.read(0, into)
          expect(difference(into, content), `size ${size}`).toBeNull()
        }
        await disk.flush()
        expect(difference(fs.readFileSync(made.path), content)).toBeNull()
        // For the comparison at the end.
        await cut(5 * page + 1234)
        await disk.write(0, expected)
      })
    })

    test('has a tail in the page cache: a FUA write of it that fails latches', async () => {
      const size = 5 * page + 1234
      await withTarget(target, 6 * page, async (made) => {
        fs.truncateSync(made.path, size)
        const disk = await open(made.path, { ...made.options, engine })
        try {
          const write = withFaults([{ on: 'write', does: 'replace', value: -5 }], () =>
            disk.write(size - 10, pattern(1, 10), { fua: true }),
          )
          await expect(write).rejects.toMatchObject({ code: 'EIO', offset: size - 10, length: 10 })
          await expect(disk.flush()).rejects.toMatchObject({ code: 'EIO' })
          await expect(disk.write(0, pattern(1, page), { fua: true })).rejects.toMatchObject({ code: 'EIO' })
          await disk.write(size - 10, pattern(2, 10))
        } finally {
          await expect(disk.close()).rejects.toMatchObject({ code: 'EIO' })
        }
      })
    })

    test('is refused nothing by what its run is cut to', async () => {
      await withTail(
        5 * page + 1234,
        async (disk, expected) => {
          const data = pattern(2, expected.length - 3)
          expected.set(data, 3)
          await disk.write(3, [data.subarray(0, 1000), data.subarray(1000, 1001), data.subarray(1001)])
        },
        { merge: { maxBytes: 1000, maxSegments: 2 } },
      )
    })
  })
})

everywhere([{ ...tmpfsFile, name: 'direct tmpfs file', direct: true }], (target, engine) => {
  test('a file on tmpfs that is opened with direct: true takes any place, length and address', async () => {
    const size = 40 * page + 77
    await withTarget(target, 41 * page, async (made) => {
      fs.truncateSync(made.path, size)
      const expected = Buffer.alloc(size, background)
      const disk = await open(made.path, { engine, direct: true })
      try {
        expect(disk.direct).toBe(true)
        const pending: Promise<unknown>[] = []
        for (const at of shuffled(120, 3)) {
          const offset = (at * 1361) % (size - 5000)
          const length = 1 + ((at * 733) % 5000)
          const data = at % 2 === 0 ? Buffer.from(pattern(at, length)) : disk.alloc(length)
          data.set(pattern(at, length))
          expected.set(data, offset)
          pending.push(at % 3 === 0 ? disk.multiwrite([{ offset, data }]) : disk.write(offset, data))
        }
        const tail = pattern(200, 100)
        expected.set(tail, size - 100)
        pending.push(disk.write(size - 100, tail))
        const into = Buffer.alloc(size)
        pending.push(disk.read(0, into))
        await Promise.all(pending)
        expect(difference(into, expected)).toBeNull()
        await disk.refresh()
        expect(disk.size).toBe(size)
      } finally {
        await disk.close()
      }
      expect(difference(fs.readFileSync(made.path), expected)).toBeNull()
    })
  })
})
