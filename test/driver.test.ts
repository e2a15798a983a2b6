// A format driver of a user's own: what it is asked, in which order, and that its requests are checked, merged, ordered and
// answered as those of a raw device are.

import fs from 'node:fs'
import path from 'node:path'
import { BlockError, create, type FormatDriver, type FormatHost, type FormatImage, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
// @ts-expect-error: an example in plain JavaScript, without types.
import { windowOf as untypedWindowOf } from '../examples/window.mjs'
import { failure } from './support/failure.ts'
import { difference, pattern } from './support/model.ts'
import { background, temporaryDirectory } from './support/targets.ts'

const windowOf = untypedWindowOf as (start: number, length: number) => FormatDriver

async function inDirectory(work: (directory: string) => Promise<void>): Promise<void> {
  const directory = temporaryDirectory()
  try {
    await work(directory.path)
  } finally {
    directory.cleanup()
  }
}

describe('the example: a window into a disk', () => {
  test('reads and writes inside of its window, and nowhere else', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'disk')
      fs.writeFileSync(file, Buffer.alloc(64 << 10, background))
      const disk = await open(file, { format: windowOf(4096, 32 << 10) })
      expect(disk).toMatchObject({ format: 'window', size: 32 << 10, path: file, readOnly: false })
      await disk.multiwrite([
        { offset: 8192, data: pattern(1, 4096) },
        { offset: 12288, data: pattern(2, 4096) },
        { offset: 0, data: [pattern(3, 100), pattern(4, 50)] },
        { offset: 90, data: pattern(5, 20) },
      ])
      await disk.writeZeroes(20_000, 3000)
      const expected = Buffer.alloc(64 << 10, background)
      expected.set(pattern(1, 4096), 4096 + 8192)
      expected.set(pattern(2, 4096), 4096 + 12288)
      expected.set(pattern(3, 100), 4096)
      expected.set(pattern(4, 50), 4096 + 100)
      expected.set(pattern(5, 20), 4096 + 90)
      expected.fill(0, 4096 + 20_000, 4096 + 23_000)
      const into = Buffer.alloc(disk.size)
      await disk.read(0, into)
      expect(difference(into, expected.subarray(4096, 4096 + disk.size))).toBeNull()
      expect(disk.stats).toMatchObject({ write: { requests: 4, submissions: 2, overlapBytes: 20 }, zeroes: 1 })
      await disk.flush()
      expect(disk.stats.flushes).toBe(1)
      await disk.close()
      expect(difference(fs.readFileSync(file), expected)).toBeNull()
    })
  })

  test('refuses what lies past its end, and what it does not offer', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'disk')
      fs.writeFileSync(file, Buffer.alloc(64 << 10))
      const disk = await open(file, { format: windowOf(4096, 8192) })
      expect(await failure(disk.write(8000, pattern(1, 193)))).toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
      expect(await failure(disk.truncate(4096))).toMatchObject({ code: 'EOPNOTSUPP' })
      expect(await failure(disk.check())).toMatchObject({ code: 'EOPNOTSUPP' })
      await disk.close()
      expect(await failure(disk.read(0, Buffer.alloc(1)))).toMatchObject({ code: 'EBADF' })
      const refused = await failure(open(file, { format: windowOf(65_000, 8192) }))
      expect(refused).toBeInstanceOf(RangeError)
      expect(await failure(create(`${file}2`, { format: windowOf(0, 0), size: 0 }))).toMatchObject({
        code: 'EOPNOTSUPP',
      })
      expect(fs.existsSync(`${file}2`)).toBe(false)
    })
  })
})

test('a raw device has nothing to check', async () => {
  await inDirectory(async (directory) => {
    const disk = await create(path.join(directory, 'disk'), { size: 4096 })
    expect(await failure(disk.check())).toMatchObject({ code: 'EOPNOTSUPP' })
    await disk.close()
  })
})

const CLUSTER = 4096

/** Allocates clusters in the order of writing; each write can be held back, and fails when told to. */
class Sparse implements FormatImage {
  readonly size = 64 * CLUSTER
  readonly clusterSize = CLUSTER
  readonly map = new Map<number, number>()
  readonly writes: string[] = []
  readonly asked: string[] = []
  readonly host: FormatHost
  prepared = 0
  loading = false
  fails: ((offset: number, length: number) => boolean) | null = null
  hold: Promise<void> | null = null
  #next = 0

  constructor(host: FormatHost) {
    this.host = host
  }

  prepare(): Promise<void> | undefined {
    this.prepared++
    return this.loading ? new Promise((resolve) => setTimeout(resolve, 1)) : undefined
  }

  allocates({ offset, length }: { offset: number; length: number }): { offset: number; length: number } | null {
    let from = -1
    let to = -1
    for (let c = Math.floor(offset / CLUSTER); c * CLUSTER < offset + length; c++) {
      if (this.map.has(c)) continue
      if (from < 0) from = c
      to = c + 1
    }
    return from < 0 ? null : { offset: from * CLUSTER, length: (to - from) * CLUSTER }
  }

  mergeRequests(run: { offset: number; length: number }, next: { offset: number; length: number }): boolean {
    this.asked.push(`${run.offset}+${run.length} ${next.offset}+${next.length}`)
    const cluster = Math.floor((run.offset + run.length - 1) / CLUSTER)
    return cluster === Math.floor(next.offset / CLUSTER) && !this.map.has(cluster)
  }

  async read(offset: number, into: readonly Uint8Array[]): Promise<void> {
    let place = offset
    for (const piece of into) {
      for (let done = 0; done < piece.length; ) {
        const cluster = Math.floor(place / CLUSTER)
        const length = Math.min(piece.length - done, CLUSTER - (place % CLUSTER))
        const host = this.map.get(cluster)
        const part = piece.subarray(done, done + length)
        if (host === undefined) part.fill(0)
        else await this.host.read(host + (place % CLUSTER), part)
        done += length
        place += length
      }
    }
  }

  async write(offset: number, data: readonly Uint8Array[]): Promise<void> {
    const bytes = Buffer.concat(data)
    this.writes.push(`${offset}+${bytes.length}`)
    const taken = new Map<number, number>()
    for (let c = Math.floor(offset / CLUSTER); c * CLUSTER < offset + bytes.length; c++) {
      if (!this.map.has(c)) taken.set(c, this.#next++ * CLUSTER)
    }
    if (this.hold !== null) await this.hold
    if (this.fails?.(offset, bytes.length)) throw new BlockError(5, { syscall: 'write', path: 'x', reason: 'no luck' })
    for (let done = 0; done < bytes.length; ) {
      const place = offset + done
      const length = Math.min(bytes.length - done, CLUSTER - (place % CLUSTER))
      const cluster = Math.floor(place / CLUSTER)
      const host = this.map.get(cluster) ?? taken.get(cluster)!
      await this.host.write(host + (place % CLUSTER), bytes.subarray(done, done + length))
      done += length
    }
    for (const [cluster, host] of taken) {
      // Two that allocate the same cluster would lose what one of them wrote.
      if (this.map.has(cluster)) throw new Error(`cluster ${cluster} was allocated twice`)
      this.map.set(cluster, host)
    }
  }

  async flush(): Promise<void> {
    await this.host.flush()
  }

  async discard(offset: number, length: number): Promise<void> {
    this.writes.push(`discard ${offset}+${length}`)
    for (let c = Math.ceil(offset / CLUSTER); (c + 1) * CLUSTER <= offset + length; c++) this.map.delete(c)
  }

  async close(): Promise<void> {}
}

async function withSparse(
  work: (disk: Awaited<ReturnType<typeof open>>, image: Sparse) => Promise<void>,
  options = {},
): Promise<void> {
  await inDirectory(async (directory) => {
    const file = path.join(directory, 'disk')
    fs.writeFileSync(file, Buffer.alloc(256 * CLUSTER, 0))
    let image: Sparse | undefined
    const format: FormatDriver = {
      name: 'sparse',
      open: async (host) => {
        image = new Sparse(host)
        return image
      },
    }
    const disk = await open(file, { ...options, format })
    try {
      await work(disk, image!)
    } finally {
      await disk.close()
    }
  })
}

const tick = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5))

describe('a driver that allocates', () => {
  test('is asked for gaps only, and what it agrees to is one run', async () => {
    await withSparse(async (disk, image) => {
      await disk.multiwrite([
        { offset: 3000, data: pattern(1, 100) },
        { offset: 0, data: pattern(2, 1000) },
        { offset: 1000, data: pattern(3, 1000) },
        { offset: 1500, data: pattern(4, 1000) },
        { offset: CLUSTER + 500, data: pattern(5, 100) },
      ])
      expect(image.writes).toEqual(['0+3100', `${CLUSTER + 500}+100`])
      expect(image.asked).toEqual(['0+2500 3000+100', `0+3100 ${CLUSTER + 500}+100`])
      expect(disk.stats.write).toMatchObject({ submissions: 2, gapBytes: 500, overlapBytes: 500, bytes: 3200 })
      const expected = Buffer.alloc(2 * CLUSTER)
      for (const [index, offset, length] of [
        [1, 3000, 100],
        [2, 0, 1000],
        [3, 1000, 1000],
        [4, 1500, 1000],
        [5, CLUSTER + 500, 100],
      ] as const) {
        expected.set(pattern(index, length), offset)
      }
      const into = Buffer.alloc(2 * CLUSTER, 1)
      await disk.read(0, into)
      expect(difference(into, expected)).toBeNull()
      // Allocated now: the gap is not the driver's any more.
      await disk.multiwrite([
        { offset: 100, data: pattern(6, 10) },
        { offset: 200, data: pattern(7, 10) },
      ])
      expect(image.writes.slice(2)).toEqual(['100+10', '200+10'])
    })
  })

  test('writes into a cluster under allocation wait, and are merged with each other while they do', async () => {
    await withSparse(async (disk, image) => {
      let go = (): void => undefined
      image.hold = new Promise((resolve) => {
        go = resolve
      })
      const first = disk.write(0, pattern(1, 512))
      await tick()
      const others = disk.multiwrite([
        { offset: 1024, data: pattern(3, 512) },
        { offset: 512, data: pattern(2, 512) },
        { offset: CLUSTER, data: pattern(4, 512) },
      ])
      await tick()
      // What touches only other clusters does not wait.
      expect(image.writes).toEqual(['0+512', `${CLUSTER}+512`])
      image.hold = null
      go()
      await Promise.all([first, others])
      expect(image.writes).toEqual(['0+512', `${CLUSTER}+512`, '512+1024'])
    })
  })

  test('a discard waits for an allocation in its cluster, and keeps others out', async () => {
    await withSparse(async (disk, image) => {
      let go = (): void => undefined
      image.hold = new Promise((resolve) => {
        go = resolve
      })
      const first = disk.write(100, pattern(1, 100))
      await tick()
      const discarded = disk.discard(200, 2 * CLUSTER - 200)
      await tick()
      expect(image.writes).toEqual(['100+100'])
      image.hold = null
      go()
      await Promise.all([first, discarded])
      expect(image.writes).toEqual(['100+100', `discard 200+${2 * CLUSTER - 200}`])
    })
  })

  test('requests that wait for tables, or for an allocation, can be withdrawn', async () => {
    await withSparse(async (disk, image) => {
      let go = (): void => undefined
      image.hold = new Promise((resolve) => {
        go = resolve
      })
      image.loading = true
      const first = disk.write(0, pattern(1, 512))
      await tick()
      const controller = new AbortController()
      const waits = disk.write(1024, pattern(2, 512), { signal: controller.signal })
      const behind = disk.write(1024, pattern(3, 512))
      await tick()
      controller.abort()
      expect(await failure(waits)).toMatchObject({ code: 'ABORT_ERR' })
      const loads = new AbortController()
      const early = disk.write(CLUSTER, pattern(4, 512), { signal: loads.signal })
      const stays = disk.write(2 * CLUSTER, pattern(5, 512))
      await Promise.resolve()
      loads.abort()
      expect(await failure(early)).toMatchObject({ code: 'ABORT_ERR' })
      image.hold = null
      go()
      await Promise.all([first, behind, stays])
      const into = Buffer.alloc(512)
      await disk.read(1024, into)
      expect(difference(into, pattern(3, 512))).toBeNull()
      await disk.read(CLUSTER, into)
      expect(difference(into, Buffer.alloc(512))).toBeNull()
    })
  })

  test('what was merged and fails is carried out one by one; the driver says why', async () => {
    await withSparse(async (disk, image) => {
      image.fails = (offset, length) => offset <= 700 && 700 < offset + length
      const heard: unknown[] = []
      const result = await disk.multiwrite(
        [0, 512, 1024, 2048].map((offset) => ({
          offset,
          data: pattern(offset, 512),
          callback(error: Error | null) {
            heard.push(error === null ? offset : error)
          },
        })),
      )
      expect(result).toEqual({ requests: 4, failed: 1 })
      expect(heard.filter((one) => typeof one === 'number').sort()).toEqual([0, 1024, 2048])
      const error = heard.find((one) => one instanceof BlockError) as BlockError
      expect(error).toMatchObject({ code: 'EIO', offset: 512, length: 512 })
      expect(error.message).toContain('no luck')
      expect(disk.stats.isolated).toBe(4)
      const into = Buffer.alloc(CLUSTER, 1)
      await disk.read(0, into)
      const expected = Buffer.alloc(CLUSTER)
      for (const offset of [0, 1024, 2048]) expected.set(pattern(offset, 512), offset)
      expect(difference(into, expected)).toBeNull()
    })
  })

  test.each(['full', 'sort', 'off'] as const)(
    'mode %s: runs that share a new cluster follow each other',
    async (mode) => {
      await withSparse(
        async (disk, image) => {
          const expected = Buffer.alloc(8 * CLUSTER)
          const requests = Array.from({ length: 64 }, (_, i) => ({ offset: i * 512, data: pattern(i, 300) }))
          for (const { offset, data } of requests) expected.set(data, offset)
          await Promise.all([
            disk.multiwrite(requests.filter((_, i) => i % 3 === 0)),
            disk.multiwrite(requests.filter((_, i) => i % 3 === 1).reverse()),
            ...requests.filter((_, i) => i % 3 === 2).map(({ offset, data }) => disk.write(offset, data)),
          ])
          const into = Buffer.alloc(8 * CLUSTER, 1)
          await disk.read(0, into)
          expect(difference(into, expected)).toBeNull()
          expect(image.map.size).toBe(8)
        },
        { merge: { mode } },
      )
    },
  )

  test('a batch of reads gets what several ask for, wherever it lies', async () => {
    await withSparse(async (disk) => {
      await disk.write(1000, pattern(1, 6000))
      const expected = Buffer.alloc(3 * CLUSTER)
      expected.set(pattern(1, 6000), 1000)
      const reads = [
        [0, 3000],
        [2000, 5000],
        [2500, 100],
        [6000, 4000],
      ].map(([offset, length]) => ({ offset: offset as number, into: Buffer.alloc(length as number, 9) }))
      await disk.multiread(reads)
      for (const { offset, into } of reads) {
        expect(difference(into, expected.subarray(offset, offset + into.length))).toBeNull()
      }
      expect(disk.stats.read.submissions).toBe(1)
    })
  })
})

test('runs that were withdrawn while they waited for a run of their batch keep their place', async () => {
  await withSparse(
    async (disk, image) => {
      let go = (): void => undefined
      image.hold = new Promise((resolve) => {
        go = resolve
      })
      const controller = new AbortController()
      // Three runs in one cluster, one behind the other, of which the first has begun.
      const batch = disk.multiwrite(
        [0, 1000, 2000].map((offset) => ({ offset, data: pattern(offset, 100) })),
        { signal: controller.signal },
      )
      await tick()
      controller.abort()
      await tick()
      const later = disk.write(3000, pattern(4, 100))
      await tick()
      // The first one still allocates the cluster.
      expect(image.writes).toEqual(['0+100'])
      image.hold = null
      go()
      expect(await failure(batch)).toMatchObject({ code: 'ABORT_ERR', completed: 1 })
      await later
      expect(image.writes).toEqual(['0+100', '3000+100'])
    },
    { merge: { mode: 'off' } },
  )
})
