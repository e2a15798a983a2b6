// What the kernel is really asked to do, by its own count and not by ours: block requests in /sys, system calls under strace.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import type { BlockDevice } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { runChild } from './support/child.ts'
import { difference, Model, memory, pattern, shuffled } from './support/model.ts'
import {
  bufferedFile,
  directFile,
  eachTarget,
  engines,
  loop512,
  loop4096,
  loopBuffered,
  loopOnFile,
  temporaryDirectory,
  withDisk,
  withTarget,
} from './support/targets.ts'
import { noTrace, traced } from './support/trace.ts'

const page = 4096
const size = 1 << 22

const sysfs = (device: string, name: string): string =>
  fs.readFileSync(path.join('/sys/block', path.basename(device), name), 'utf8').trim()

/** Write requests that the block device has been given so far, and bytes of them. */
function blockWrites(device: string): { requests: number; bytes: number } {
  const fields = sysfs(device, 'stat').split(/\s+/).map(Number)
  return { requests: fields[4] as number, bytes: (fields[6] as number) * 512 }
}

eachTarget([loop512, loop4096, loopOnFile], (target, engine) => {
  const counted = async (
    options: { mode: 'full' | 'sort' | 'off' },
    work: (disk: BlockDevice, model: Model) => Promise<unknown>,
  ): Promise<{ requests: number; bytes: number }> =>
    withTarget(target, size, async (made) => {
      const model = new Model(size)
      const result = await withDisk(made, { engine, merge: options }, async (disk) => {
        const before = blockWrites(made.path)
        await work(disk, model)
        const after = blockWrites(made.path)
        return { requests: after.requests - before.requests, bytes: after.bytes - before.bytes }
      })
      expect(difference(made.readBack(), model.bytes)).toBeNull()
      return result
    })

  test('64 adjacent requests of 4 KiB, shuffled, are one block request', async () => {
    const count = await counted({ mode: 'full' }, (disk, model) =>
      disk.multiwrite(
        shuffled(64).map((at) => {
          model.write(at * page, pattern(at, page))
          const data = disk.alloc(page)
          data.set(pattern(at, page))
          return { offset: at * page, data }
        }),
      ),
    )
    expect(count).toEqual({ requests: 1, bytes: 64 * page })
  })

  test('64 adjacent requests from memory at odd addresses are one block request', async () => {
    const count = await counted({ mode: 'full' }, (disk, model) =>
      disk.multiwrite(
        shuffled(64, 3).map((at) => {
          model.write(at * page, pattern(at, page))
          return { offset: at * page, data: memory('buffer', pattern(at, page), 1 + (at % 7)) }
        }),
      ),
    )
    expect(count).toEqual({ requests: 1, bytes: 64 * page })
  })

  test('64 single writes of one turn are one block request', async () => {
    const count = await counted({ mode: 'full' }, (disk, model) =>
      Promise.all(
        shuffled(64, 2).map((at) => {
          model.write(at * page, pattern(at, page))
          return disk.write(at * page, pattern(at, page))
        }),
      ),
    )
    expect(count).toEqual({ requests: 1, bytes: 64 * page })
  })

  test('overlapping requests are written once', async () => {
    const count = await counted({ mode: 'full' }, (disk, model) =>
      disk.multiwrite(
        Array.from({ length: 40 }, (_, index) => {
          model.write(index * page, pattern(index, 4 * page))
          return { offset: index * page, data: pattern(index, 4 * page) }
        }),
      ),
    )
    expect(count).toEqual({ requests: 1, bytes: 43 * page })
  })

  test('the count is to be trusted: 64 writes that are each awaited are 64 block requests', async () => {
    const count = await counted({ mode: 'full' }, async (disk, model) => {
      for (let at = 0; at < 64; at++) {
        model.write(at * page, pattern(at, page))
        await disk.write(at * page, pattern(at, page))
      }
    })
    expect(count).toEqual({ requests: 64, bytes: 64 * page })
  })

  test.skipIf(noTrace !== '')(
    `the ranges of a batch reach the device as planned${noTrace && ` (${noTrace})`}`,
    async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          const requests = [9, 2, 0, 30, 1, 31, 8, 100].map((at) => ({ offset: at * page, data: pattern(at, page) }))
          const { writes } = await traced(made.path, () => disk.multiwrite(requests))
          expect(writes).toEqual([
            [0, 3 * page],
            [8 * page, 2 * page],
            [30 * page, 2 * page],
            [100 * page, page],
          ])
        })
      })
    },
  )

  test.skipIf(noTrace !== '').each([
    ['many small pieces', (sector: number) => sector],
    ['pages', () => page],
    ['large buffers', () => 1 << 20],
    ['one buffer', () => 2 << 20],
  ])(`by default the kernel splits no submission: %s${noTrace && ` (${noTrace})`}`, async (_, lengthOf) => {
    await withTarget(target, size, async (made) => {
      await withDisk(made, { engine }, async (disk) => {
        const length = lengthOf(made.sectorSize)
        const requests = shuffled((2 << 20) / length, 5).map((at) => ({
          offset: at * length,
          data: memory('buffer', pattern(at, length), 5),
        }))
        const { writes, splits } = await traced(made.path, () => disk.multiwrite(requests))
        expect(splits).toBe(0)
        // One submission is one request to the block layer, and far fewer than what was asked for.
        expect(writes).toHaveLength(disk.stats.write.submissions)
        const least = Math.ceil((2 << 20) / disk.limits.maxBytes)
        expect(writes.length).toBeLessThanOrEqual(Math.max(least, requests.length / 16))
        expect(writes.reduce((sum, [, bytes]) => sum + bytes, 0)).toBe(2 << 20)
      })
    })
  })
})

describe.each(engines)('%s: limits', (engine) => {
  test.each([loop512, loop4096, loopBuffered].map((target) => ({ target, name: target.name })))(
    'are what the kernel states: $name',
    async ({ target }) => {
      if (!target.available || (engine === 'aio' && !target.direct)) return
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, (disk) => {
          const stated = (name: string): number => Number(sysfs(made.path, `queue/${name}`))
          expect(disk.size).toBe(size)
          expect(disk.direct).toBe(target.direct)
          expect(disk.engine.name).toBe(engine)
          expect(disk.engine.reason).not.toBe('')
          expect(disk.limits).toMatchObject({
            logicalBlockSize: stated('logical_block_size'),
            physicalBlockSize: stated('physical_block_size'),
            optimalIoSize: stated('optimal_io_size'),
            discardGranularity: stated('discard_granularity'),
          })
          expect(Number(disk.limits.rotational)).toBe(stated('rotational'))
          if (target.direct) expect(disk.limits.alignment).toBe(made.sectorSize)
          else expect(disk.limits.alignment).toBe(1)
          expect(disk.limits.maxSegments).toBeGreaterThanOrEqual(1)
          expect(disk.limits.maxSegments).toBeLessThanOrEqual(1024)
          expect(disk.limits.maxBytes).toBeGreaterThanOrEqual(page)
          expect(disk.limits.maxBytes).toBeLessThanOrEqual(0x7ffff000)
          if (target.direct) {
            expect(disk.limits.maxSegments).toBeLessThanOrEqual(Math.min(stated('max_segments'), 256))
            expect(disk.limits.maxBytes).toBeLessThanOrEqual(Math.min(stated('max_sectors_kb') * 1024, 1 << 20))
          }
        })
      })
    },
  )
})

const noStrace = ((): string => {
  try {
    execFileSync('strace', ['-e', 'trace=none', 'true'], { stdio: 'pipe' })
    return ''
  } catch (error) {
    return ` (skipped: needs strace: ${String(error).trim()})`
  }
})()

/** What strace tells of `calls` while `batch` was written. */
async function straced(engine: string, target: typeof bufferedFile, batch: string, calls: string): Promise<string> {
  return withTarget(target, size, async (made) => {
    const directory = temporaryDirectory()
    try {
      const log = path.join(directory.path, 'log')
      const script = `
        import fs from 'node:fs'
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET, { engine: '${engine}', direct: ${target.direct}, queueDepth: 64 })
        const data = disk.alloc(4096)
        const requests = ${batch}
        fs.existsSync('/the batch begins')
        await disk.multiwrite(requests)
        fs.existsSync('/the batch ends')
        await disk.close()
      `
      const trace = `trace=${calls},access,faccessat,faccessat2,stat,statx,newfstatat`
      const wrapper = ['strace', '-f', '-qq', '-o', log, '-e', trace]
      const child = await runChild(script, { env: { TARGET: made.path }, wrapper })
      expect(child.stderr).toBe('')
      expect(child.code).toBe(0)
      const text = fs.readFileSync(log, 'utf8')
      const begin = text.indexOf('/the batch begins')
      const end = text.indexOf('/the batch ends')
      expect(begin).toBeGreaterThan(0)
      expect(end).toBeGreaterThan(begin)
      return text.slice(begin, end)
    } finally {
      directory.cleanup()
    }
  })
}

// For the kernel each vector is a search for pages of its own. Only the calls of the thread engine show their vectors.
describe.skipIf(noStrace !== '')(`memory that goes on where the last piece ended${noStrace}`, () => {
  const kinds = [
    ['allocated in a row', 'disk.alloc(4096)', 'pwrite64'],
    ['with gaps', 'disk.alloc(4095)', 'pwritev'],
  ] as const
  test.each(kinds)('%s: %s takes one %s', async (_, piece, call) => {
    const batch = `Array.from({ length: 32 }, () => ({ data: ${piece} })).map(({ data }, at) => ({ offset: at * data.length, data }))`
    const text = await straced('threads', bufferedFile, batch, 'pwrite64,pwritev,pwritev2')
    const writes = [...text.matchAll(/(pwrite\w+)\(\d+, /g)].map((match) => match[1])
    expect(writes).toEqual([call])
  })
})

// What was asked to be durable must not be hidden by bytes that are not.
describe.skipIf(noStrace !== '')(`requests that cover one with FUA, but are not merged with it${noStrace}`, () => {
  test.each([
    ['noMerge', ', noMerge: true', [true, true, false]],
    ['merged', '', [true, false]],
  ] as const)('%s', async (_, more, wanted) => {
    const batch = `[
      { offset: 0, data, fua: true${more} },
      { offset: 2048, data: data.subarray(100, 2148)${more} },
      { offset: 8192, data${more} },
    ]`
    const text = await straced('threads', bufferedFile, batch, 'pwrite64,pwritev,pwritev2')
    const writes = [...text.matchAll(/pwrite\w+\(\d+, .*/g)].map(([line]) => line.includes('RWF_DSYNC'))
    expect(writes.sort()).toEqual([...wanted].sort())
  })
})

describe.each(engines.filter((engine) => engine === 'io_uring'))(`%s: system calls${noStrace}`, (engine) => {
  /** How many entries each io_uring_enter that submits anything has submitted, while `batch` was written. */
  const submitted = async (target: typeof bufferedFile, batch: string): Promise<number[]> => {
    const text = await straced(engine, target, batch, 'io_uring_enter')
    const calls = text.matchAll(/io_uring_enter\(\d+, (\d+),/g)
    return [...calls].map((call) => Number(call[1])).filter((entries) => entries > 0)
  }

  const cases = [bufferedFile, directFile].map((target) => ({ target, name: target.name }))
  describe.skipIf(noStrace !== '').each(cases)('$name', ({ target }) => {
    const off = !target.available

    test.skipIf(off)('64 adjacent requests: one call submits one entry', async () => {
      const batch = `Array.from({ length: 64 }, (_, at) => ({ offset: (63 - at) * 4096, data }))`
      expect(await submitted(target, batch)).toEqual([1])
    })

    // The kernel holds back what one call submits until the call ends: the device would stand idle meanwhile.
    test.skipIf(off)('32 scattered requests: calls of eight entries', async () => {
      const batch = `Array.from({ length: 32 }, (_, at) => ({ offset: at * 8192, data }))`
      expect(await submitted(target, batch)).toEqual([8, 8, 8, 8])
    })

    test.skipIf(off)(
      'neighbours that were not to be merged stay in one call, where the kernel may merge them',
      async () => {
        const batch = `Array.from({ length: 32 }, (_, at) => ({ offset: at * 4096, data, noMerge: true }))`
        expect(await submitted(target, batch)).toEqual([32])
      },
    )
  })
})
