// qcow2 as a device like any other: on every engine, on files with and without the page cache, on block devices; requests and
// memory are treated as those of raw devices are.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { create, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { everywhere } from './support/everywhere.ts'
import { failure } from './support/failure.ts'
import { difference, Model, pattern } from './support/model.ts'
import { imageIn, inDirectory, noQemu, qemuCheck, qemuContent, Recorder, randomOf } from './support/qcow2.ts'
import { bufferedFile, directFile, loop512, loop4096, loopOnFile, withTarget } from './support/targets.ts'

everywhere([bufferedFile, directFile, loop512, loop4096, loopOnFile], (target, engine) => {
  test.each([512, 4096, 65536])('clusters of %d bytes', async (clusterSize) => {
    await withTarget(target, 4 << 20, async (made) => {
      const size = 2 << 20
      const options = { ...made.options, engine, format: 'qcow2' } as const
      const disk = await create(made.path, { ...options, size, clusterSize, overwrite: true })
      expect(disk).toMatchObject({ format: 'qcow2', size, direct: target.direct, engine: { name: engine } })
      const model = new Model(size)
      model.bytes.fill(0)
      const random = randomOf(clusterSize)
      for (let turn = 0; turn < 12; turn++) {
        const requests = Array.from({ length: 8 }, (_, n) => {
          const length = 1 + Math.floor(random() * 20_000)
          return { offset: Math.floor(random() * (size - length)), data: pattern(turn * 8 + n, length), fua: n === 3 }
        })
        for (const { offset, data } of requests) model.write(offset, data)
        await disk.multiwrite(requests)
        const offset = Math.floor(random() * (size - 100_000))
        await disk.writeZeroes(offset, 100_000, { unmap: turn % 2 === 0 })
        model.write(offset, new Uint8Array(100_000))
      }
      const into = Buffer.alloc(size)
      await disk.read(0, into)
      expect(difference(into, model.bytes)).toBeNull()
      expect(await disk.check()).toMatchObject({ leaks: 0, corruptions: 0, checkErrors: 0 })
      await disk.close()
      if (noQemu === '') expect(qemuCheck(made.path)).toMatchObject({ status: 0 })
      const again = await open(made.path, { ...options, readOnly: true })
      await again.read(0, into)
      expect(difference(into, model.bytes)).toBeNull()
      expect(await failure(again.write(0, Buffer.alloc(1)))).toMatchObject({ code: 'EROFS' })
      await again.close()
    })
  })

  test.skipIf(!target.block)('clusters of a block device that are taken ahead do not show what it held', async () => {
    await withTarget(target, 4 << 20, async (made) => {
      const raw = await open(made.path, { ...made.options, engine })
      await raw.write(0, Buffer.alloc(4 << 20, 0xee))
      await raw.close()
      const options = { ...made.options, engine, format: 'qcow2', overwrite: true, preallocation: 'metadata' } as const
      const disk = await create(made.path, { ...options, size: 2 << 20 })
      const expected = Buffer.alloc(2 << 20)
      const into = Buffer.alloc(2 << 20, 9)
      await disk.read(0, into)
      expect(difference(into, expected)).toBeNull()
      await disk.write(1000, Buffer.alloc(10, 1))
      await disk.read(0, into)
      expect(difference(into, expected.fill(1, 1000, 1010))).toBeNull()
      expect(await disk.check()).toMatchObject({ allocatedClusters: 32, leaks: 0, corruptions: 0 })
      await disk.close()
      if (noQemu === '') expect(qemuCheck(made.path)).toMatchObject({ status: 0 })
    })
  })

  test.skipIf(!target.block)('a block device that is full says so, and the image stays in order', async () => {
    await withTarget(target, 1 << 20, async (made) => {
      const options = { ...made.options, engine, format: 'qcow2' } as const
      expect(await failure(create(made.path, { ...options, size: 64 << 20 }))).toMatchObject({ code: 'EEXIST' })
      const disk = await create(made.path, { ...options, size: 64 << 20, clusterSize: 4096, overwrite: true })
      let refused: unknown = null
      let at = 0
      for (; refused === null; at += 65536) {
        refused = await disk.write(at, Buffer.alloc(65536, 1)).then(
          () => null,
          (error: unknown) => error,
        )
      }
      expect(refused).toMatchObject({ code: 'ENOSPC', offset: at - 65536, length: 65536 })
      expect(at).toBeGreaterThan(900_000)
      // What is given back can be used.
      await disk.discard(0, 128 << 10)
      await disk.flush()
      await disk.write(at, Buffer.alloc(65536, 2))
      await disk.write(at + 65536, Buffer.alloc(65536, 3))
      // Also before anybody flushes.
      await disk.discard(256 << 10, 128 << 10)
      await disk.write(at + (128 << 10), Buffer.alloc(65536, 4))
      expect(await disk.check()).toMatchObject({ corruptions: 0, checkErrors: 0, leaks: 0 })
      await disk.close()
    })
  })
})

describe('requests', () => {
  test('memory that is taken away fails its own request only', async () => {
    await inDirectory(async (directory) => {
      const disk = await create(imageIn(directory), { format: 'qcow2', size: 1 << 20, clusterSize: 4096 })
      const lost = new Uint8Array(4096).fill(7)
      const results = [0, 4096, 8192].map((offset) =>
        disk.write(offset, offset === 4096 ? lost : Buffer.alloc(4096, 1)).then(
          () => 'done',
          (error: { code: string }) => error.code,
        ),
      )
      structuredClone(lost.buffer, { transfer: [lost.buffer] })
      expect(await Promise.all(results)).toEqual(['done', 'EFAULT', 'done'])
      const into = Buffer.alloc(12288, 9)
      await disk.read(0, into)
      const expected = Buffer.alloc(12288, 1)
      expected.fill(0, 4096, 8192)
      expect(difference(into, expected)).toBeNull()
      await disk.close()
    })
  })

  test('what follows memory that is taken away does not move up into its place, whenever that is', async () => {
    await inDirectory(async (directory) => {
      const below = `${directory}/below`
      fs.writeFileSync(below, Buffer.alloc(1 << 20, 3))
      for (let jobs = 0; jobs < 24; jobs++) {
        const disk = await create(imageIn(directory), {
          format: 'qcow2',
          size: 1 << 20,
          backing: { path: below, format: 'raw' },
          overwrite: true,
        })
        // One run into a new cluster: the first write of an image tells so in the header before.
        const [lost, kept] = [new Uint8Array(3000).fill(1), new Uint8Array(3000).fill(2)]
        const codes: string[] = []
        const heard = (error: { code?: string } | null): number => codes.push(error?.code ?? 'done')
        const written = disk.multiwrite([
          { offset: 100, data: lost, fua: true, callback: heard },
          { offset: 3100, data: kept, callback: heard },
        ])
        for (let n = 0; n < jobs; n++) await null
        structuredClone(lost.buffer, { transfer: [lost.buffer] })
        await written
        const now = Buffer.alloc(7000)
        await disk.read(0, now)
        const expected = Buffer.alloc(7000, 3)
        expected.fill(2, 3100, 6100)
        // Of the request that failed either content may be there.
        expect([1, 3]).toContain(now[100])
        expected.fill(now[100]!, 100, 3100)
        expect({ jobs, codes, wrong: difference(now, expected) }).toEqual({
          jobs,
          codes: ['EFAULT', 'done'],
          wrong: null,
        })
        // Nothing that had been written was lost.
        await disk.flush()
        const [gone, into] = [new Uint8Array(3000), new Uint8Array(3000)]
        const read = disk.multiread([
          { offset: 100, into: gone, callback: heard },
          { offset: 3100, into, callback: heard },
        ])
        for (let n = 0; n < jobs; n++) await null
        const early = gone.every((byte) => byte === 0)
        structuredClone(gone.buffer, { transfer: [gone.buffer] })
        await read
        if (early) expect(codes[2]).toBe('EFAULT')
        expect(codes[3]).toBe('done')
        expect(Buffer.from(into).equals(Buffer.alloc(3000, 2))).toBe(true)
        await disk.close()
      }
    })
  })

  test('what is left of a run that was cut by a withdrawal shares its new cluster, and loses nothing in it', async () => {
    // Its two ends were sent at once, each with a cluster of its own, and the second took the first one's place.
    await inDirectory(async (directory) => {
      const below = `${directory}/below`
      fs.writeFileSync(below, Buffer.alloc(1 << 20, 3))
      const image = imageIn(directory)
      const made = await create(image, {
        format: 'qcow2',
        size: 1 << 20,
        clusterSize: 65536,
        backing: { path: below, format: 'raw' },
      })
      await made.write(512 << 10, Buffer.alloc(65536, 9))
      await made.close()
      const recorder = new Recorder()
      const disk = await open(image, {
        format: recorder.driver(),
        queueDepth: 2,
        backing: { path: below, format: 'raw' },
      })
      let goOn = (): void => undefined
      let held: Promise<void> | null = new Promise((resolve) => {
        goOn = resolve
      })
      const run = recorder.run.bind(recorder)
      recorder.run = async (kind, act, bytes) => {
        if (kind === 'write') await held
        return run(kind, act, bytes)
      }
      const before = [0, 8192].map((at) => disk.multiwrite([{ offset: (512 << 10) + at, data: Buffer.alloc(4096, 9) }]))
      await new Promise((resolve) => setImmediate(resolve))
      const controller = new AbortController()
      const { signal } = controller
      const head = disk.write(0, Buffer.alloc(4096, 1))
      const middle = disk.write(4096, Buffer.alloc(8192, 2), { signal }).catch((error: Error) => error.name)
      const tail = disk.write(12288, Buffer.alloc(4096, 4))
      await new Promise((resolve) => setImmediate(resolve))
      controller.abort()
      await new Promise((resolve) => setImmediate(resolve))
      held = null
      goOn()
      await Promise.all([...before, head, tail])
      expect(await middle).toBe('AbortError')
      const into = Buffer.alloc(65536)
      await disk.read(0, into)
      const expected = Buffer.alloc(65536, 3).fill(1, 0, 4096).fill(4, 12288, 16384)
      expect(difference(into, expected)).toBeNull()
      expect(await disk.check()).toMatchObject({ corruptions: 0, leaks: 0 })
      await disk.close()
    })
  })

  test('a failed write into new clusters leaves zeros, not what the host held; the others are carried out', async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const made = await create(image, { format: 'qcow2', size: 1 << 20, clusterSize: 65536 })
      await made.write(0, Buffer.alloc(512 << 10, 0xee))
      await made.flush()
      await made.discard(0, 512 << 10)
      await made.close()
      const recorder = new Recorder()
      const disk = await open(image, { format: recorder.driver() })
      await disk.read(0, Buffer.alloc(10))
      const bad = Buffer.alloc(3000, 0x66)
      // Any write that carries the bad bytes fails, after half of it.
      const write = recorder.run.bind(recorder)
      recorder.run = async (kind, act) => {
        const before = recorder.steps.length
        await write(kind, act)
        const step = recorder.steps[before]
        if (kind === 'write' && step?.kind === 'write' && step.bytes.includes(bad)) {
          throw Object.assign(new Error('bad'), { code: 'EIO' })
        }
      }
      const heard: [number, string][] = []
      const result = await disk.multiwrite(
        [
          { offset: 1000, data: Buffer.alloc(3000, 1) },
          { offset: 8000, data: bad },
          { offset: 20_000, data: Buffer.alloc(3000, 3) },
        ].map((request) => ({
          ...request,
          callback(error: Error | null) {
            heard.push([request.offset, error === null ? 'done' : (error as { code?: string }).code!])
          },
        })),
      )
      expect(result).toEqual({ requests: 3, failed: 1 })
      expect(heard.sort((a, b) => a[0] - b[0])).toEqual([
        [1000, 'done'],
        [8000, 'EIO'],
        [20_000, 'done'],
      ])
      const into = Buffer.alloc(65536, 9)
      await disk.read(0, into)
      const expected = Buffer.alloc(65536)
      expected.fill(1, 1000, 4000)
      expected.fill(3, 20_000, 23_000)
      // What the failed one has left is its own business, in its own range.
      into.fill(0, 8000, 11_000)
      expect(difference(into, expected)).toBeNull()
      recorder.run = write
      expect(await disk.check()).toMatchObject({ corruptions: 0, leaks: 0 })
      await disk.close()
    })
  })

  test.each([512, 65536])(
    'a host that can not grow refuses writes, not flushes: clusters of %d bytes',
    async (clusterSize) => {
      await inDirectory(async (directory) => {
        const image = imageIn(directory)
        const made = await create(image, { format: 'qcow2', size: 32 << 20, clusterSize })
        await made.close()
        const recorder = new Recorder()
        const disk = await open(image, { format: recorder.driver() })
        let max = Number.POSITIVE_INFINITY
        const run = recorder.run.bind(recorder)
        recorder.run = (kind, act) => {
          if (kind === 'truncate' && fs.statSync(image).size >= max) {
            return Promise.reject(Object.assign(new Error('no'), { code: 'EFBIG' }))
          }
          return run(kind, act)
        }
        const model = Buffer.alloc(32 << 20)
        const fill = async (from: number, to: number): Promise<number> => {
          let refused = 0
          for (let at = from; at < to; at += 65536) {
            const data = Buffer.alloc(65536, 1 + ((at / 65536) % 251))
            const done = await disk.write(at, data).then(
              () => true,
              () => false,
            )
            if (done) model.set(data, at)
            else refused++
            if (at % (256 << 10) === 0) await disk.flush()
          }
          return refused
        }
        expect(await fill(0, 1 << 20)).toBe(0)
        max = 0
        expect(await fill(1 << 20, 8 << 20)).toBeGreaterThan(50)
        await disk.flush()
        if (noQemu === '') expect([0, 3]).toContain(qemuCheck(image).status)
        // Blocks of counts were made ahead for what the host has no room for: that is no damage.
        expect(await disk.check()).toMatchObject({ corruptions: 0, checkErrors: 0 })
        await disk.write(0, Buffer.alloc(4096, 1))
        await disk.flush()
        max = Number.POSITIVE_INFINITY
        expect(await fill(8 << 20, 12 << 20)).toBe(0)
        const into = Buffer.alloc(12 << 20)
        await disk.read(0, into)
        expect(difference(into, model.subarray(0, 12 << 20))).toBeNull()
        expect(await disk.check()).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 })
        await disk.close()
        if (noQemu === '') expect(qemuCheck(image)).toMatchObject({ status: 0 })
      })
    },
  )

  test('one flush of many callers; a flush that failed stays failed, and plain writes go on', async () => {
    await inDirectory(async (directory) => {
      const recorder = new Recorder()
      const made = await create(imageIn(directory), { format: 'qcow2', size: 1 << 20 })
      await made.close()
      const disk = await open(imageIn(directory), { format: recorder.driver() })
      await disk.write(0, Buffer.alloc(4096, 1))
      const before = disk.stats.flushes
      await Promise.all([disk.flush(), disk.flush(), disk.flush()])
      // Two of the first one, and one that the others share: there is nothing but the guest's data left for it.
      expect(disk.stats.flushes - before).toBe(3)
      await disk.write(65536, Buffer.alloc(4096, 1))
      recorder.fails = (_, kind) => (kind === 'flush' ? 'before' : null)
      expect(await failure(disk.flush())).toMatchObject({ code: 'EIO' })
      // What an fdatasync has lost, nobody can tell: that a later one succeeds means nothing.
      recorder.fails = null
      expect(await failure(disk.flush())).toMatchObject({ code: 'EIO' })
      await disk.write(65536, Buffer.alloc(4096, 2))
      expect(await failure(disk.write(0, Buffer.alloc(4096, 2), { fua: true }))).toMatchObject({ code: 'EIO' })
      expect(await failure(disk.close())).toMatchObject({ code: 'EIO' })
      const again = await open(imageIn(directory), { format: 'qcow2', readOnly: true })
      expect(await again.check()).toMatchObject({ corruptions: 0, allocatedClusters: 1 })
      await again.close()
    })
  })

  test('options of create are checked, and leave nothing behind', async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const wrong: [object, string][] = [
        [{ size: 1000 }, 'options.size'],
        [{ clusterSize: 3000 }, 'options.clusterSize'],
        [{ clusterSize: 256 }, 'options.clusterSize'],
        [{ clusterSize: 4 << 20 }, 'options.clusterSize'],
        [{ refcountBits: 3 }, 'options.refcountBits'],
        [{ lazyRefcounts: 1 }, 'options.lazyRefcounts'],
        [{ preallocation: 'full' }, 'options.preallocation'],
        [{ size: 2 ** 52 }, 'options.size'],
        [{ format: 'raw', clusterSize: 4096 }, 'options.clusterSize'],
        [{ backing: 'below' }, 'options.backing'],
        [{ backing: { path: 'below' } }, 'options.backing.format'],
        [{ backing: { path: 'below', format: 'raw', more: 1 } }, 'options.backing.more'],
      ]
      for (const [options, name] of wrong) {
        const error = await failure(create(image, { format: 'qcow2', size: 1 << 20, ...options } as never))
        expect((error as Error).message).toContain(name)
        expect(fs.existsSync(image)).toBe(false)
      }
    })
  })

  test('an image below an image below an image', async () => {
    await inDirectory(async (directory) => {
      const size = 1 << 20
      const content = Buffer.alloc(size)
      let backing: object | undefined
      for (let level = 0; level < 4; level++) {
        const file = `${directory}/${level}`
        const disk = await create(file, {
          format: 'qcow2',
          size,
          clusterSize: 4096,
          ...(backing ? { backing } : {}),
        } as never)
        const data = Buffer.alloc(300_000, level + 1)
        await disk.write(level * 200_000, data)
        content.set(data, level * 200_000)
        const into = Buffer.alloc(size)
        await disk.read(0, into)
        expect(difference(into, content)).toBeNull()
        await disk.close()
        backing = { path: file, format: 'qcow2', ...(backing ? { backing } : {}) }
      }
      if (noQemu === '') execFileSync('qemu-img', ['check', `${directory}/3`])
      // The chain is as long as the caller says, and no longer.
      const short = open(`${directory}/3`, { format: 'qcow2', backing: { path: `${directory}/2`, format: 'qcow2' } })
      expect(await failure(short)).toMatchObject({ code: 'EOPNOTSUPP' })
    })
  })
})

test('the name of what lies below leads others to the same file', async () => {
  // They look for it from the directory of the image, and may find another file there; a colon ends the name of a protocol.
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const inside = `${directory}/inside`
    fs.mkdirSync(inside)
    const nameOf = async (below: string): Promise<string> => {
      fs.writeFileSync(below, Buffer.alloc(1 << 20, 3))
      const backing = { path: below, format: 'raw' } as const
      await (await create(image, { format: 'qcow2', size: 1 << 20, backing, overwrite: true })).close()
      const refused = (await failure(open(image, { format: 'qcow2' }))) as Error
      return refused.message.split('"')[1]!
    }
    const before = process.cwd()
    try {
      process.chdir(inside)
      expect(await nameOf('base')).toBe(path.resolve('base'))
      expect(await nameOf('../base')).toBe(path.resolve('../base'))
      process.chdir(directory)
      expect(await nameOf('base')).toBe('base')
      expect(await nameOf('nbd:base')).toBe(path.resolve('nbd:base'))
      if (noQemu === '') expect(difference(qemuContent(image), Buffer.alloc(1 << 20, 3))).toBeNull()
    } finally {
      process.chdir(before)
    }
  })
})

describe('an image below itself', () => {
  const size = 1 << 20
  const data = Buffer.alloc(5000, 7)

  async function withImages(work: (image: string, other: string) => Promise<void>): Promise<void> {
    await inDirectory(async (directory) => {
      const [image, other] = [`${directory}/image`, `${directory}/other`]
      const made = await create(image, { format: 'qcow2', size })
      await made.write(0, data)
      await made.close()
      await (await create(other, { format: 'qcow2', size, backing: { path: image, format: 'qcow2' } })).close()
      await work(image, other)
    })
  }

  test('is refused, whatever it is called, and the option is named', async () => {
    await withImages(async (image, other) => {
      fs.symlinkSync(image, `${image}.soft`)
      fs.linkSync(image, `${image}.hard`)
      for (const path of [image, `${image}.soft`, `${image}.hard`, new URL(`file://${image}`)]) {
        for (const format of ['qcow2', 'raw'] as const) {
          const error = await failure(open(image, { format: 'qcow2', backing: { path, format } }))
          expect(error).toMatchObject({
            code: 'ERR_INVALID_ARG_VALUE',
            message: expect.stringContaining(`'options.backing' is ${image}, which can not lie below itself`),
          })
        }
      }
      const deep = { path: other, format: 'qcow2', backing: { path: `${image}.soft`, format: 'qcow2' } } as const
      expect(await failure(open(image, { format: 'qcow2', backing: deep }))).toMatchObject({
        code: 'ERR_INVALID_ARG_VALUE',
        message: expect.stringContaining(`'options.backing.backing' is ${image}`),
      })
      // Where it begins further below, that is where it is named.
      const below = { path: image, format: 'qcow2', backing: { path: image, format: 'raw' } } as const
      expect(await failure(open(other, { format: 'qcow2', backing: below }))).toMatchObject({
        message: expect.stringContaining("'options.backing.backing' is"),
      })
    })
  })

  test('is refused as an open device, too, and as one that lies above it', async () => {
    await withImages(async (image, other) => {
      const raw = await open(`${image}`, { readOnly: true })
      const upper = await open(other, { format: 'qcow2', backing: raw, readOnly: true })
      expect(await failure(open(image, { format: 'qcow2', backing: raw }))).toMatchObject({
        message: expect.stringContaining(`'options.backing' is ${image}`),
      })
      expect(await failure(open(image, { format: 'qcow2', backing: upper }))).toMatchObject({
        message: expect.stringContaining(`'options.backing' lies above ${image}`),
      })
      // What it really lies above is no reason to refuse anything.
      await (await open(other, { format: 'qcow2', backing: raw })).close()
      await upper.close()
      await raw.close()
    })
  })

  test('is not created over what it would need, which keeps its content', async () => {
    await withImages(async (image, other) => {
      const before = fs.readFileSync(image)
      const own = { path: image, format: 'qcow2' } as const
      for (const backing of [own, { path: other, format: 'qcow2', backing: own } as const]) {
        const error = await failure(create(image, { format: 'qcow2', size, overwrite: true, backing }))
        expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_VALUE' })
        expect(fs.readFileSync(image).equals(before)).toBe(true)
      }
    })
  })

  test.skipIf(!loop512.available)('is found out on a block device by any of its names', async () => {
    await withTarget(loop512, 8 << 20, async (made) => {
      await (await create(made.path, { ...made.options, format: 'qcow2', size, overwrite: true })).close()
      await inDirectory(async (directory) => {
        fs.symlinkSync(made.path, `${directory}/link`)
        const backing = { path: `${directory}/link`, format: 'qcow2' } as const
        expect(await failure(open(made.path, { ...made.options, format: 'qcow2', backing }))).toMatchObject({
          code: 'ERR_INVALID_ARG_VALUE',
        })
      })
    })
  })
})

test('to open and close an image changes nothing, not even when it was changed', async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const made = await create(image, { format: 'qcow2', size: 1 << 20, lazyRefcounts: true })
    await made.write(0, Buffer.alloc(4096, 1))
    await made.close()
    fs.utimesSync(image, 1000, 1000)
    const before = fs.readFileSync(image)
    const disk = await open(image, { format: 'qcow2' })
    await disk.read(0, Buffer.alloc(8192))
    await disk.check()
    await disk.flush()
    await disk.close()
    expect(fs.readFileSync(image).equals(before)).toBe(true)
    expect(fs.statSync(image).mtimeMs).toBe(1_000_000)
  })
})

test('a file that ends inside of its last cluster is written to there', async () => {
  // Its end was taken for that of a device, and the write refused.
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const made = await create(image, { format: 'qcow2', size: 1 << 20 })
    await made.write(0, Buffer.alloc(4096, 5))
    await made.close()
    fs.truncateSync(image, fs.statSync(image).size - 65536 + 4096)
    const disk = await open(image, { format: 'qcow2' })
    await disk.write(60_000, Buffer.alloc(1000, 7))
    const into = Buffer.alloc(65536)
    await disk.read(0, into)
    expect(difference(into, Buffer.alloc(65536).fill(5, 0, 4096).fill(7, 60_000, 61_000))).toBeNull()
    await disk.close()
    if (noQemu === '') expect(qemuCheck(image)).toMatchObject({ status: 0 })
  })
})

test('an image of no bytes, and one that grows from there', async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const disk = await create(image, { format: 'qcow2', size: 0, clusterSize: 512 })
    expect(disk.size).toBe(0)
    expect(await disk.check()).toMatchObject({ leaks: 0, corruptions: 0 })
    await disk.truncate(1 << 20)
    await disk.write((1 << 20) - 5000, Buffer.alloc(5000, 1))
    expect(await disk.check()).toMatchObject({ leaks: 0, corruptions: 0 })
    await disk.close()
    if (noQemu === '') expect(qemuCheck(image)).toMatchObject({ status: 0 })
  })
})

test('options that can not be do not cost an existing file its content', async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    fs.writeFileSync(image, 'precious')
    const options = { format: 'qcow2', size: 1000, overwrite: true } as const
    expect(await failure(create(image, options))).toBeInstanceOf(RangeError)
    expect(fs.readFileSync(image, 'utf8')).toBe('precious')
  })
})

test('more tables than are kept in memory, all wanted at once: no change of one is lost', async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const clusterSize = 2 << 20
    const coverage = (clusterSize / 8) * clusterSize
    // Of tables as large as these 16 are kept.
    const count = 40
    const made = await create(image, { format: 'qcow2', size: count * coverage, clusterSize })
    const write = (disk: typeof made, cluster: number): Promise<unknown> => {
      const offsets = Array.from({ length: count }, (_, n) => n * coverage + cluster * clusterSize)
      return Promise.all(offsets.map((offset, n) => disk.write(offset, Buffer.alloc(512, n + 1))))
    }
    await write(made, 0)
    await made.close()
    const disk = await open(image, { format: 'qcow2', queueDepth: 64 })
    await write(disk, 1)
    await write(disk, 2)
    const wrong: string[] = []
    for (let cluster = 0; cluster < 3; cluster++) {
      for (let n = 0; n < count; n++) {
        const now = Buffer.alloc(512)
        await disk.read(n * coverage + cluster * clusterSize, now)
        if (!now.equals(Buffer.alloc(512, n + 1))) wrong.push(`cluster ${cluster} of table ${n}`)
      }
    }
    expect(wrong).toEqual([])
    expect(await disk.check()).toMatchObject({ leaks: 0, corruptions: 0, allocatedClusters: count * 3 })
    await disk.close()
  })
})

// The block was made twice, and what the first one said of itself was lost.
test('a repair that makes a block for the stretch that the file ends in leaves nothing to repair', async () => {
  await inDirectory(async (directory) => {
    const [image, copy] = [imageIn(directory), `${directory}/copy`]
    const options = { clusterSize: 512, refcountBits: 32, lazyRefcounts: true }
    for (const clusters of [100, 140, 200, 240, 300]) {
      const disk = await create(image, { format: 'qcow2', size: 1 << 20, overwrite: true, ...options })
      await disk.write(0, Buffer.alloc(clusters * 512, 5))
      await disk.flush()
      fs.copyFileSync(image, copy)
      await disk.close()
      const torn = await open(copy, { format: 'qcow2', readOnly: true })
      const { imageEndOffset } = await torn.check()
      await torn.close()
      fs.truncateSync(copy, Math.max(imageEndOffset, fs.readFileSync(copy).findLastIndex((byte) => byte !== 0) + 1))
      const mended = await open(copy, { format: 'qcow2' })
      expect(await mended.check({ repair: true })).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 })
      await mended.write(0, Buffer.alloc(512, 6))
      await mended.close()
      if (noQemu === '') expect(qemuCheck(copy)).toMatchObject({ status: 0 })
    }
  })
})

test('what an image can not do is said once, in words', async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const disk = await create(image, { format: 'qcow2', size: 1 << 20 })
    const error = await disk.truncate(512).catch((refused: unknown) => refused)
    const message = `EOPNOTSUPP: a qcow2 image can only be made larger: make a small one and copy, ftruncate '${image}'`
    expect(error).toMatchObject({ code: 'EOPNOTSUPP', message })
    await disk.close()
  })
})

// The shape of QEMU's test 177: zeroes and discards that begin and end at odd places of a disk whose size is odd as well.
test('zeroes and discards of odd places on a large disk', async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const size = (128 << 20) + 512
    const disk = await create(image, { format: 'qcow2', size, clusterSize: 1 << 20 })
    const model = Buffer.alloc(size)
    const write = async (offset: number, length: number, value: number): Promise<void> => {
      model.fill(value, offset, offset + length)
      await disk.write(offset, Buffer.alloc(length, value))
    }
    const zero = async (offset: number, length: number, unmap: boolean): Promise<void> => {
      model.fill(0, offset, offset + length)
      await disk.writeZeroes(offset, length, { unmap })
    }
    await write(0, 128 << 20, 11)
    await write(size - 512, 512, 12)
    await write(64 << 20, 1000, 22)
    await zero(80_000_001, 32 << 20, false)
    await zero((8 << 20) - 777, (16 << 20) + 1555, true)
    await zero(size - 300, 300, false)
    // Whole clusters inside of it read as zeros; heads and tails stay.
    const [from, to] = [33_000_001, 33_000_001 + (9 << 20)]
    await disk.discard(from, to - from)
    const inner = [Math.ceil(from / 2 ** 20) * 2 ** 20, Math.floor(to / 2 ** 20) * 2 ** 20] as const
    model.fill(0, ...inner)
    const into = Buffer.alloc(size)
    await disk.read(0, into)
    expect(difference(into, model)).toBeNull()
    await disk.close()
    if (noQemu !== '') return
    expect(qemuCheck(image)).toMatchObject({ status: 0 })
    expect(difference(qemuContent(image), model)).toBeNull()
  })
})
