// What is done to a range besides reading and writing: discard, writeZeroes, truncate, and the size that refresh reads anew. On
// every engine and kind of target, aligned and not, beside other traffic, and where the kernel has no call for it.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { type BlockDevice, BlockError, create, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { everywhere } from './support/everywhere.ts'
import { difference, Model, pattern } from './support/model.ts'
import { noStrace, runInjected } from './support/strace.ts'
import {
  background,
  bufferedFile,
  directFile,
  loop512,
  loop4096,
  loopBuffered,
  loopOnFile,
  noLoop,
  patience,
  type Target,
  targets,
  temporaryDirectory,
  tmpfsFile,
  withDisk,
  withTarget,
} from './support/targets.ts'

const size = 1 << 20
const files: readonly Target[] = [bufferedFile, directFile, tmpfsFile]
const devices: readonly Target[] = [loop512, loop4096, loopOnFile, loopBuffered]

/** Whole and broken blocks, at the start, in the middle and at the end, large and tiny. */
const spans: readonly (readonly [offset: number, length: number])[] = [
  [0, 4096],
  [8192, 65_536],
  [12_288 + 512, 1024],
  [40_960, 512],
  [100_001, 1],
  [131_073, 70_000],
  [300_000, 4095],
  [400_000, 200_000],
  [size - 4096, 4096],
  [size - 100, 100],
  [size - 70_000, 70_000],
  [700_000, 0],
]

function numbers(seed: number): (below: number) => number {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

async function contentOf(disk: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(disk.size)
  await disk.read(0, content)
  return content
}

describe('writeZeroes', () => {
  everywhere(targets, (target, engine) => {
    test.each([{}, { unmap: true }, { fua: true }, { unmap: true, fua: true }])(
      'with %o makes any range zeros and nothing else',
      async (options) => {
        await withTarget(target, size, async (made) => {
          const model = new Model(size)
          await withDisk(made, { engine }, async (disk) => {
            for (const [offset, length] of spans) {
              await disk.writeZeroes(offset, length, options)
              model.bytes.fill(0, offset, offset + length)
              expect(difference(await contentOf(disk), model.bytes), `${offset} + ${length}`).toBeNull()
            }
            expect(disk.size).toBe(size)
            expect(disk.stats.zeroes).toBe(spans.filter(([, length]) => length > 0).length)
          })
          expect(difference(made.readBack(), model.bytes)).toBeNull()
        })
      },
    )

    test('keeps its place among overlapping writes and reads that are under way', async () => {
      await withTarget(target, size, async (made) => {
        const model = new Model(size)
        await withDisk(made, { engine }, async (disk) => {
          const random = numbers(5)
          const work: Promise<unknown>[] = []
          for (let round = 0; round < 60 * patience; round++) {
            // A narrow piece of the disk, so that nearly everything overlaps.
            const offset = 60_000 + random(40_000)
            const length = 1 + random(20_000)
            const dice = random(3)
            if (dice === 0) {
              work.push(disk.writeZeroes(offset, length, { unmap: random(2) === 0 }))
              model.bytes.fill(0, offset, offset + length)
            } else if (dice === 1) {
              work.push(disk.write(offset, pattern(round, length)))
              model.write(offset, pattern(round, length))
            } else {
              const into = Buffer.alloc(length)
              const expected = model.read(offset, length)
              work.push(disk.read(offset, into).then(() => expect(difference(into, expected)).toBeNull()))
            }
            if (work.length >= 24) await Promise.all(work.splice(0))
          }
          await Promise.all(work)
        })
        expect(difference(made.readBack(), model.bytes)).toBeNull()
      })
    })
  })

  everywhere([bufferedFile, directFile, tmpfsFile], (target, engine) => {
    test('takes a range of a gigabyte and a half, and does not fill the disk with unmap', async () => {
      const directory = temporaryDirectory(path.dirname(path.dirname(makeAndForget(target))))
      try {
        const huge = 1536 << 20
        const file = path.join(directory.path, 'image')
        const disk = await create(file, { format: 'raw', size: huge, engine, direct: target.direct })
        await disk.write(0, pattern(1, 10_000))
        await disk.write(huge - 10_000, pattern(2, 10_000))
        await disk.writeZeroes(100, huge - 200, { unmap: true })
        const ends = [Buffer.alloc(4096), Buffer.alloc(4096)] as const
        await disk.read(0, ends[0])
        await disk.read(huge - 4096, ends[1])
        expect(difference(ends[0].subarray(0, 100), pattern(1, 100))).toBeNull()
        expect(ends[0].subarray(100).every((byte) => byte === 0)).toBe(true)
        expect(ends[1].subarray(0, 3996).every((byte) => byte === 0)).toBe(true)
        expect(difference(ends[1].subarray(3996), pattern(2, 10_000).subarray(9900))).toBeNull()
        await disk.close()
        expect(fs.statSync(file).blocks * 512).toBeLessThan(1 << 20)
      } finally {
        directory.cleanup()
      }
    })
  })

  test.skipIf(!tmpfsFile.available)('writes zeros where the kernel has no call for it', async () => {
    await withTarget(tmpfsFile, 8 << 20, async (made) => {
      await withDisk(made, {}, async (disk) => {
        await disk.writeZeroes(1000, (8 << 20) - 2000)
        expect(fs.statSync(made.path).blocks * 512).toBe(8 << 20)
        const content = await contentOf(disk)
        expect(content.subarray(1000, -1000).every((byte) => byte === 0)).toBe(true)
        expect(content.subarray(0, 1000).every((byte) => byte === background)).toBe(true)
        expect(content.subarray(-1000).every((byte) => byte === background)).toBe(true)
      })
    })
  })

  test.skipIf(noStrace !== '').each(['EOPNOTSUPP', 'EINVAL'])('writes zeros where the kernel says %s', async (code) => {
    await withTarget(bufferedFile, size, async (made) => {
      const script = `
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET)
        await disk.writeZeroes(1000, 500_000)
        await disk.writeZeroes(600_001, 100_000, { unmap: true, fua: true })
        const { write, zeroes } = disk.stats
        await disk.close()
        console.log(JSON.stringify({ write, zeroes }))`
      const { stdout, stderr, injected } = await runInjected(script, [`fallocate:error=${code}`], { TARGET: made.path })
      // No write was asked for: what the zeros took is not counted among those that were.
      const write = { requests: 0, submissions: 0, bytes: 0, gapBytes: 0, overlapBytes: 0 }
      expect(JSON.parse(stdout), stderr).toEqual({ write, zeroes: 2 })
      // The unmapping way, then the other.
      expect(injected).toHaveLength(3)
      const expected = Buffer.alloc(size, background).fill(0, 1000, 501_000).fill(0, 600_001, 700_001)
      expect(difference(made.readBack(), expected)).toBeNull()
    })
  })

  test.skipIf(noStrace !== '')('fails with what the kernel says otherwise, and names the range', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const script = `
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET)
        const tell = ({ name, code, syscall, path }) => console.log(name, code, syscall, path === process.env.TARGET)
        await disk.writeZeroes(8192, 8192).catch(tell)
        await disk.discard(8192, 8192).catch(tell)
        await disk.write(8192, Buffer.alloc(8192, 1))
        await disk.close()`
      const { stdout, stderr } = await runInjected(script, ['fallocate:error=EIO'], { TARGET: made.path })
      expect(stdout, stderr).toBe('BlockError EIO fallocate true\nBlockError EIO fallocate true\n')
      expect(difference(made.readBack().subarray(8192, 16_384), Buffer.alloc(8192, 1))).toBeNull()
    })
  })
})

/** A path that `target` would use; nothing is left there. */
function makeAndForget(target: Target): string {
  const made = target.make(4096)
  made.cleanup()
  return made.path
}

describe('discard', () => {
  everywhere(files, (target, engine) => {
    test('makes the whole blocks of a file zeros, keeps the rest, and keeps the size', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          const block = disk.limits.discardGranularity
          const model = new Model(size)
          let discards = 0
          for (const [offset, length] of spans) {
            await disk.discard(offset, length)
            const start = Math.ceil(offset / block) * block
            const end = offset + length === size ? size : Math.floor((offset + length) / block) * block
            if (end > start) {
              model.bytes.fill(0, start, end)
              discards++
            }
            expect(difference(await contentOf(disk), model.bytes), `${offset} + ${length}`).toBeNull()
          }
          expect(disk.stats.discards).toBe(discards)
          expect(disk.size).toBe(size)
        })
        expect(fs.statSync(made.path).size).toBe(size)
      })
    })

    test.each(['discard', 'writeZeroes'] as const)('gives the space back (%s)', async (way) => {
      await withTarget(target, 4 << 20, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          await disk.write(0, Buffer.alloc(4 << 20, 1))
          await disk.flush()
          const before = fs.statSync(made.path).blocks
          expect(before * 512).toBeGreaterThanOrEqual(4 << 20)
          if (way === 'discard') await disk.discard(1 << 20, 2 << 20)
          else await disk.writeZeroes(1 << 20, 2 << 20, { unmap: true })
          expect((before - fs.statSync(made.path).blocks) * 512).toBeGreaterThanOrEqual(2 << 20)
        })
      })
    })
  })

  everywhere(devices, (target, engine) => {
    test('leaves everything outside its range as it is', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          const unknown = Buffer.alloc(size)
          for (const [offset, length] of spans) {
            await disk.discard(offset, length)
            unknown.fill(1, offset, offset + length)
          }
          const content = await contentOf(disk)
          const wrong = content.findIndex((byte, at) => unknown[at] === 0 && byte !== background)
          expect(wrong).toBe(-1)
        })
      })
    })
  })

  everywhere([bufferedFile, directFile, loop512], (target, engine) => {
    test('keeps its place among overlapping writes', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          for (let round = 0; round < 10 * patience; round++) {
            const before = disk.write(65_536, pattern(round, 65_536))
            const middle = disk.discard(65_536, 65_536)
            const after = disk.write(65_536 + 4096, pattern(round + 1, 8192))
            const into = Buffer.alloc(8192)
            const read = disk.read(65_536 + 4096, into)
            await Promise.all([before, middle, after, read])
            expect(difference(into, pattern(round + 1, 8192))).toBeNull()
          }
        })
      })
    })
  })

  test.skipIf(noStrace !== '')('is refused where there is none, and writeZeroes with unmap is not', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const script = `
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET)
        await disk.discard(0, 65_536).catch(({ name, code, syscall }) => console.log(name, code, syscall))
        await disk.writeZeroes(65_536, 65_536, { unmap: true })
        await disk.close()`
      const { stdout, stderr } = await runInjected(script, ['fallocate:error=EOPNOTSUPP'], { TARGET: made.path })
      expect(stdout, stderr).toBe('BlockError EOPNOTSUPP fallocate\n')
      expect(difference(made.readBack(), Buffer.alloc(size, background).fill(0, 65_536, 131_072))).toBeNull()
    })
  })
})

describe('truncate', () => {
  everywhere(files, (target, engine) => {
    test.each([0, 1, 511, 4096, 12_345, size - 1, size, size + 1, size + 100_000, 2 ** 33])(
      'makes a file of %d bytes, zeros where it grew',
      async (bytes) => {
        await withTarget(target, size, async (made) => {
          await withDisk(made, { engine }, async (disk) => {
            await disk.truncate(bytes)
            expect(disk.size).toBe(bytes)
            expect(fs.statSync(made.path).size).toBe(bytes)
            const end = Math.min(bytes, size + 200_000)
            const content = Buffer.alloc(end, 9)
            await disk.read(0, content)
            const expected = Buffer.alloc(end)
            expected.fill(background, 0, Math.min(end, size))
            expect(difference(content, expected)).toBeNull()
            await expect(disk.write(bytes, Buffer.alloc(1))).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
            if (bytes === 0) return
            await disk.write(bytes - 1, Buffer.from([7]))
            const last = Buffer.alloc(1)
            await disk.read(bytes - 1, last)
            expect(last[0]).toBe(7)
            expect(fs.statSync(made.path).size).toBe(bytes)
          })
        })
      },
    )

    test('never shows again what it once cut off', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          const all = Promise.all([disk.truncate(10_001), disk.truncate(size)])
          const content = await contentOf(disk)
          await all
          expect(difference(content, Buffer.alloc(size).fill(background, 0, 10_001))).toBeNull()
        })
      })
    })

    test('counts for the checks of what is called later, before it has taken effect', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          const inside = disk.write(size - 4096, pattern(1, 4096))
          const shrunk = disk.truncate(size / 2)
          expect(disk.size).toBe(size / 2)
          const late = disk.write(size - 4096, pattern(2, 4096)).then(
            () => null,
            (error: unknown) => error,
          )
          const lateZeroes = disk.writeZeroes(size / 2 - 1, 2).then(
            () => null,
            (error: unknown) => error,
          )
          const batch = disk.multiwrite([
            { offset: 0, data: pattern(3, 1) },
            { offset: size / 2, data: pattern(3, 1) },
          ])
          await expect(batch).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
          expect(await late).toMatchObject({ name: 'RangeError', code: 'ERR_OUT_OF_RANGE' })
          expect(await lateZeroes).toMatchObject({ name: 'RangeError', code: 'ERR_OUT_OF_RANGE' })
          const grown = disk.truncate(2 * size)
          const beyond = disk.write(2 * size - 5000, pattern(4, 5000))
          await Promise.all([inside, shrunk, grown, beyond])
          expect(disk.size).toBe(2 * size)
          const expected = Buffer.alloc(2 * size)
          expected.fill(background, 0, size / 2)
          expected.set(pattern(4, 5000), 2 * size - 5000)
          expect(difference(await contentOf(disk), expected)).toBeNull()
        })
        expect(fs.statSync(made.path).size).toBe(2 * size)
      })
    })

    test('keeps its place among writes, reads, zeroes and discards under way', async () => {
      await withTarget(target, size, async (made) => {
        let model = Buffer.alloc(size, background)
        await withDisk(made, { engine }, async (disk) => {
          const random = numbers(11)
          const work: Promise<unknown>[] = []
          for (let round = 0; round < 80 * patience; round++) {
            if (random(4) === 0) {
              const bytes = 100_000 + random(60_000)
              work.push(disk.truncate(bytes))
              const next = Buffer.alloc(bytes)
              model.copy(next)
              model = next
              continue
            }
            const length = 1 + random(9000)
            const offset = 80_000 + random(model.length - length - 80_000)
            const dice = random(3)
            if (dice === 0) {
              work.push(disk.writeZeroes(offset, length, { unmap: random(2) === 0 }))
              model.fill(0, offset, offset + length)
            } else if (dice === 1) {
              work.push(disk.write(offset, pattern(round, length)))
              model.set(pattern(round, length), offset)
            } else {
              const into = Buffer.alloc(length)
              const expected = Buffer.from(model.subarray(offset, offset + length))
              work.push(disk.read(offset, into).then(() => expect(difference(into, expected)).toBeNull()))
            }
            if (work.length >= 24) await Promise.all(work.splice(0))
          }
          await Promise.all(work)
          expect(disk.size).toBe(model.length)
        })
        expect(difference(fs.readFileSync(made.path), model)).toBeNull()
      })
    })

    test('that fails leaves the size that it was', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          const error = await disk.truncate(Number.MAX_SAFE_INTEGER).then(
            () => null,
            (error: unknown) => error,
          )
          // Some file systems take any size there is.
          if (error === null) return
          expect(error).toBeInstanceOf(BlockError)
          expect(error).toMatchObject({ code: 'EFBIG', syscall: 'ftruncate', path: made.path })
          expect(disk.size).toBe(size)
          await expect(disk.write(size, Buffer.alloc(1))).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
          await disk.write(size - 1, Buffer.alloc(1))
          expect(fs.statSync(made.path).size).toBe(size)
        })
      })
    })

    test('that fails lets nothing be written past the end that is left', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          const truncated = disk.truncate(Number.MAX_SAFE_INTEGER)
          const beyond = disk.write(4 * size, pattern(1, 4096))
          const durable = disk.write(5 * size, pattern(1, 4096), { fua: true })
          const read = disk.read(4 * size, Buffer.alloc(4096))
          const results = await Promise.allSettled([truncated, beyond, durable, read])
          if (results[0].status === 'fulfilled') return
          expect(fs.statSync(made.path).size).toBe(size)
          const [, ...codes] = results.map((result) =>
            result.status === 'rejected' ? (result.reason as BlockError).code : 'ok',
          )
          expect(codes).toEqual(['ENOSPC', 'ENOSPC', 'EIO'])
          // The kernel was not asked, so nothing that it has to say of lost data was missed.
          await disk.flush()
        })
      })
    })
  })

  everywhere(devices, (target, engine) => {
    test('is refused for a block device', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          for (const bytes of [0, size, 2 * size]) {
            await expect(disk.truncate(bytes)).rejects.toMatchObject({
              name: 'BlockError',
              code: 'EOPNOTSUPP',
              syscall: 'ftruncate',
            })
          }
          expect(disk.size).toBe(size)
        })
      })
    })
  })
})

describe('refresh', () => {
  everywhere(files, (target, engine) => {
    test('reads the size of a file that others have changed', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          fs.truncateSync(made.path, 3 * size + 77)
          expect(disk.size).toBe(size)
          await expect(disk.write(size, pattern(1, 5000))).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
          await disk.refresh()
          expect(disk.size).toBe(3 * size + 77)
          await disk.write(3 * size + 77 - 5000, pattern(1, 5000))
          const into = Buffer.alloc(5000)
          await disk.read(3 * size + 77 - 5000, into)
          expect(difference(into, pattern(1, 5000))).toBeNull()
          fs.truncateSync(made.path, 4096)
          await disk.refresh()
          expect(disk.size).toBe(4096)
          await expect(disk.read(4096, into)).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
        })
        expect(fs.statSync(made.path).size).toBe(4096)
      })
    })

    test('beside truncations leaves the size that the last one set', async () => {
      await withTarget(target, size, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          for (let round = 0; round < 10; round++) {
            const bytes = size + round * 4096
            await Promise.all([disk.truncate(size / 2), disk.refresh(), disk.truncate(bytes), disk.refresh()])
            expect(disk.size).toBe(bytes)
            await disk.refresh()
            expect(disk.size).toBe(bytes)
          }
        })
      })
    })
  })

  test.skipIf(noLoop !== '')(`reads the size of a device that was resized${noLoop && ` (${noLoop})`}`, async () => {
    const directory = temporaryDirectory()
    const image = path.join(directory.path, 'image')
    fs.writeFileSync(image, Buffer.alloc(size))
    const device = execFileSync('losetup', ['--find', '--show', image], { encoding: 'utf8' }).trim()
    try {
      const disk = await open(device)
      fs.truncateSync(image, 2 * size)
      execFileSync('losetup', ['--set-capacity', device])
      await disk.refresh()
      expect(disk.size).toBe(2 * size)
      await disk.write(2 * size - 4096, pattern(1, 4096))
      fs.truncateSync(image, size / 2)
      execFileSync('losetup', ['--set-capacity', device])
      // Not told yet: the device itself refuses.
      await expect(disk.write(size, pattern(1, 4096))).rejects.toMatchObject({ name: 'BlockError' })
      await disk.refresh()
      expect(disk.size).toBe(size / 2)
      await expect(disk.write(size / 2, pattern(1, 512))).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
      await disk.write(size / 2 - 512, pattern(1, 512))
      await disk.close()
    } finally {
      execFileSync('losetup', ['--detach', device])
      directory.cleanup()
    }
  })
})

describe('arguments', () => {
  async function onFile(work: (disk: BlockDevice, path: string) => Promise<void>, readOnly = false): Promise<void> {
    await withTarget(bufferedFile, size, (made) => withDisk(made, { readOnly }, (disk) => work(disk, made.path)))
  }
  const range = ['discard', 'writeZeroes'] as const

  test.each(range)('%s refuses what is no range of the device', async (call) => {
    await onFile(async (disk) => {
      for (const [offset, length] of [
        [-1, 1],
        [0, -1],
        [0.5, 1],
        [0, 1.5],
        [Number.NaN, 1],
        [0, Number.NaN],
        [0, size + 1],
        [size, 1],
        [size + 1, 0],
        [2 ** 53, 1],
        [1, 2 ** 53],
        [0n, -1n],
      ] as const) {
        const error = await disk[call](offset, length).then(
          () => null,
          (error: unknown) => error,
        )
        expect(error, `${offset} + ${length}`).toBeInstanceOf(RangeError)
        expect(error).toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
        expect((error as Error).message).toMatch(/"(offset|length)"/)
      }
      for (const [offset, length] of [
        ['0', 1],
        [0, '1'],
        [null, 1],
        [0, undefined],
        [{}, 1],
      ]) {
        const error = await disk[call](offset as number, length as number).then(
          () => null,
          (error: unknown) => error,
        )
        expect(error).toBeInstanceOf(TypeError)
        expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_TYPE' })
      }
      await disk[call](0n, BigInt(size))
      await disk[call](size, 0)
    })
  })

  test('truncate refuses what is no size', async () => {
    await onFile(async (disk, path) => {
      for (const bytes of [-1, 0.5, Number.NaN, 2 ** 53, -1n, 2n ** 60n]) {
        await expect(disk.truncate(bytes)).rejects.toMatchObject({ name: 'RangeError', code: 'ERR_OUT_OF_RANGE' })
      }
      for (const bytes of ['1', null, undefined, {}]) {
        await expect(disk.truncate(bytes as unknown as number)).rejects.toMatchObject({
          name: 'TypeError',
          code: 'ERR_INVALID_ARG_TYPE',
        })
      }
      expect(fs.statSync(path).size).toBe(size)
      await disk.truncate(8192n)
      expect(disk.size).toBe(8192)
    })
  })

  test('an option that writeZeroes does not know, or of a wrong type, is refused', async () => {
    await onFile(async (disk) => {
      const wrong = [{ umap: true }, { unmap: 1 }, { fua: 'yes' }, 7] as unknown as { unmap: boolean }[]
      for (const options of wrong) {
        await expect(disk.writeZeroes(0, 4096, options)).rejects.toBeInstanceOf(TypeError)
      }
      expect((await contentOf(disk)).every((byte) => byte === background)).toBe(true)
    })
  })

  test('a read-only device refuses all that changes it, and refreshes', async () => {
    await onFile(async (disk) => {
      const eroFs = { name: 'BlockError', code: 'EROFS' }
      await expect(disk.discard(0, 4096)).rejects.toMatchObject(eroFs)
      await expect(disk.writeZeroes(0, 4096)).rejects.toMatchObject(eroFs)
      await expect(disk.truncate(0)).rejects.toMatchObject(eroFs)
      await disk.refresh()
      expect(disk.size).toBe(size)
    }, true)
  })

  test('a range of no bytes is left alone, also with fua', async () => {
    await onFile(async (disk) => {
      await disk.writeZeroes(size, 0, { fua: true })
      await disk.discard(0, 0)
      expect(disk.stats).toMatchObject({ zeroes: 0, discards: 0, flushes: 0 })
    })
  })

  test('a closed device refuses all of it', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const disk = await open(made.path)
      const before = disk.writeZeroes(0, 8192, { fua: true })
      const shrunk = disk.truncate(size / 2)
      await disk.close()
      await Promise.all([before, shrunk])
      for (const call of [
        () => disk.discard(0, 4096),
        () => disk.writeZeroes(0, 4096),
        () => disk.truncate(0),
        () => disk.refresh(),
      ]) {
        await expect(call()).rejects.toMatchObject({ name: 'BlockError', code: 'EBADF' })
        await expect(call()).rejects.toThrow(/closed/)
      }
      expect(fs.statSync(made.path).size).toBe(size / 2)
    })
  })
})
