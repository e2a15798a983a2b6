// A new image: what is made, what is never overwritten unasked, and what a failed attempt leaves behind.

import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { BlockError, create, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { runChild } from './support/child.ts'
import { failure } from './support/failure.ts'
import { difference, Model, pattern } from './support/model.ts'
import { noStrace, runInjected } from './support/strace.ts'
import { bufferedEngines, directFile, loop512, loop4096, temporaryDirectory, withTarget } from './support/targets.ts'

const size = 1 << 20

async function inDirectory(work: (directory: string) => Promise<void>, parent?: string): Promise<void> {
  const directory = temporaryDirectory(parent)
  try {
    await work(directory.path)
  } finally {
    directory.cleanup()
  }
}

describe.each(bufferedEngines)('%s: create', (engine) => {
  test('makes a file of the given size that reads as zeros, and opens it', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      const disk = await create(file, { format: 'raw', size, engine })
      expect(disk).toMatchObject({ path: file, format: 'raw', size, readOnly: false, direct: false })
      const into = Buffer.alloc(size, 1)
      await disk.read(0, into)
      expect(difference(into, Buffer.alloc(size))).toBeNull()
      await disk.multiwrite([{ offset: 1000, data: pattern(1, 5000) }])
      await disk.close()
      const expected = Buffer.alloc(size)
      expected.set(pattern(1, 5000), 1000)
      expect(difference(fs.readFileSync(file), expected)).toBeNull()
      const again = await open(file, { engine })
      expect(again.size).toBe(size)
      await again.close()
    })
  })

  test('makes a sparse file', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      const disk = await create(file, { format: 'raw', size: 2 ** 40, engine })
      expect(disk.size).toBe(2 ** 40)
      await disk.write(2 ** 40 - 100, pattern(1, 100))
      await disk.close()
      const { size, blocks } = fs.statSync(file)
      expect(size).toBe(2 ** 40)
      expect(blocks * 512).toBeLessThan(1 << 20)
    })
  })

  test.each([0, 1, 511, 12_345])('takes a size of %d bytes', async (bytes) => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      const disk = await create(file, { format: 'raw', size: bytes, engine })
      expect(disk.size).toBe(bytes)
      if (bytes > 0) await disk.write(bytes - 1, Buffer.from([7]))
      await expect(disk.write(bytes, Buffer.from([7]))).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
      await disk.close()
      const content = fs.readFileSync(file)
      expect(content.length).toBe(bytes)
      if (bytes > 0) expect(content[bytes - 1]).toBe(7)
    })
  })

  test('takes a URL', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'an image with 50% #')
      const disk = await create(pathToFileURL(file), { format: 'raw', size, engine })
      await disk.close()
      expect(fs.statSync(file).size).toBe(size)
    })
  })

  test.skipIf(!directFile.available)(
    `takes the options of open${directFile.reason && ` (${directFile.reason})`}`,
    async () => {
      const parent = new URL('../.cache/tests', import.meta.url).pathname
      await inDirectory(async (directory) => {
        const file = path.join(directory, 'image')
        const disk = await create(file, { format: 'raw', size, engine, direct: true, queueDepth: 2 })
        expect(disk.direct).toBe(true)
        await disk.write(4096, pattern(1, 4096))
        await disk.close()
        expect(difference(fs.readFileSync(file).subarray(4096, 8192), pattern(1, 4096))).toBeNull()
      }, parent)
    },
  )

  test('refuses a file that is there, and leaves it as it is', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      fs.writeFileSync(file, 'precious')
      for (const overwrite of [undefined, false]) {
        const options = { format: 'raw', size, engine, ...(overwrite === undefined ? {} : { overwrite }) } as const
        const error = await failure(create(file, options))
        expect(error).toBeInstanceOf(BlockError)
        expect(error).toMatchObject({ code: 'EEXIST', path: file })
        expect((error as Error).message).toContain(file)
      }
      expect(fs.readFileSync(file, 'utf8')).toBe('precious')
    })
  })

  // The file was emptied first and the options were looked at together afterwards.
  test('options that do not go together cost a file nothing, with overwrite too', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      fs.writeFileSync(file, 'precious')
      const error = await failure(create(file, { size, engine: 'aio', overwrite: true }))
      expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_VALUE' })
      expect((error as Error).message).toContain('options.engine')
      expect(fs.readFileSync(file, 'utf8')).toBe('precious')
    })
  })

  test('a format that can only be opened costs a file nothing, with overwrite too', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      fs.writeFileSync(file, 'precious')
      const format = { name: 'read-only', open: () => Promise.reject(new Error('not reached')) }
      const error = await failure(create(file, { format, size, engine, overwrite: true }))
      expect(error).toMatchObject({ code: 'EOPNOTSUPP' })
      expect(fs.readFileSync(file, 'utf8')).toBe('precious')
    })
  })

  // The file was emptied before its new size was asked for.
  test('a size that the system refuses costs a file nothing, with overwrite too', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      fs.writeFileSync(file, 'precious')
      const script = `
        import { create } from 'multiwrite'
        const options = { size: ${size}, overwrite: true, engine: '${engine}' }
        console.log(await create(process.env.TARGET, options).catch(({ code }) => code))
      `
      const child = await runChild(script, { env: { TARGET: file }, wrapper: ['prlimit', `--fsize=${size / 2}`] })
      expect(child).toEqual({ code: 0, signal: null, stdout: 'EFBIG\n', stderr: '' })
      expect(fs.readFileSync(file, 'utf8')).toBe('precious')
    })
  })

  // It was taken for a file that is not there, and what was found in its place removed with the failed attempt.
  test.skipIf(noStrace !== '')(
    `a file that can't be looked at is there all the same, with overwrite too${noStrace && ` (${noStrace})`}`,
    async () => {
      await inDirectory(async (directory) => {
        const file = path.join(directory, 'image')
        fs.writeFileSync(file, 'precious')
        // More than any file system takes.
        const script = `
          import { create } from 'multiwrite'
          const options = { size: ${2 ** 52}, overwrite: true, engine: '${engine}' }
          console.log(await create(process.env.TARGET, options).catch(({ name, code }) => name + ' ' + code))
        `
        const child = await runInjected(script, ['statx:error=ENOMEM:when=1'], { TARGET: file }, file)
        expect(child).toMatchObject({ code: 0, stdout: 'BlockError ENOMEM\n', stderr: '' })
        expect(fs.readFileSync(file, 'utf8')).toBe('precious')
      })
    },
  )

  test('what is neither a file nor a device is not even opened, with overwrite too', async () => {
    for (const overwrite of [false, true]) {
      const error = await failure(create('/dev/null', { size, engine, overwrite }))
      expect(error).toBeInstanceOf(BlockError)
      expect(error).toMatchObject({ code: overwrite ? 'EINVAL' : 'EEXIST', path: '/dev/null' })
      expect((error as Error).message).toMatch(overwrite ? /neither a block device nor a regular file/ : /exists/)
    }
  })

  test('refuses a symbolic link, wherever it leads', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      const link = path.join(directory, 'link')
      const dangling = path.join(directory, 'dangling')
      fs.writeFileSync(file, 'precious')
      fs.symlinkSync('image', link)
      fs.symlinkSync('nowhere', dangling)
      expect(await failure(create(link, { format: 'raw', size, engine }))).toMatchObject({ code: 'EEXIST' })
      expect(await failure(create(dangling, { format: 'raw', size, engine }))).toMatchObject({ code: 'EEXIST' })
      expect(fs.readFileSync(file, 'utf8')).toBe('precious')
      expect(fs.readdirSync(directory).sort()).toEqual(['dangling', 'image', 'link'])
    })
  })

  test.each([
    ['longer', 2 * size],
    ['shorter', 100],
  ])('overwrites when told to: the old file was %s, nothing of it is left', async (_, old) => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      fs.writeFileSync(file, Buffer.alloc(old, 0xaa))
      const disk = await create(file, { format: 'raw', size, engine, overwrite: true })
      expect(disk.size).toBe(size)
      await disk.close()
      expect(difference(fs.readFileSync(file), Buffer.alloc(size))).toBeNull()
    })
  })

  test('overwrite of a file that is not there makes it', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      const disk = await create(file, { format: 'raw', size, engine, overwrite: true })
      await disk.close()
      expect(fs.statSync(file).size).toBe(size)
    })
  })

  test('two at once: one makes the file, the other is refused', async () => {
    await inDirectory(async (directory) => {
      const file = path.join(directory, 'image')
      const attempts = await Promise.allSettled([1, 2].map(() => create(file, { format: 'raw', size, engine })))
      const made = attempts.filter((attempt) => attempt.status === 'fulfilled')
      const refused = attempts.filter((attempt) => attempt.status === 'rejected')
      for (const { value } of made) await value.close()
      expect(made).toHaveLength(1)
      expect(refused[0]?.reason).toMatchObject({ code: 'EEXIST' })
    })
  })

  test.each([
    ['a directory that is not there', 'ENOENT', 'missing/image'],
    ['a path through a file', 'ENOTDIR', 'file/image'],
  ])('%s: a BlockError', async (_, code, name) => {
    await inDirectory(async (directory) => {
      fs.writeFileSync(path.join(directory, 'file'), '')
      const error = await failure(create(path.join(directory, name), { format: 'raw', size, engine }))
      expect(error).toBeInstanceOf(BlockError)
      expect(error).toMatchObject({ code })
      expect(fs.readdirSync(directory)).toEqual(['file'])
    })
  })

  test('a directory is refused, with overwrite too', async () => {
    await inDirectory(async (directory) => {
      expect(await failure(create(directory, { format: 'raw', size, engine }))).toMatchObject({ code: 'EEXIST' })
      const error = await failure(create(directory, { format: 'raw', size, engine, overwrite: true }))
      expect(error).toBeInstanceOf(BlockError)
      expect(error).toMatchObject({ code: 'EISDIR' })
    })
  })

  test('a size that the file system refuses leaves no file behind', async () => {
    await inDirectory(async (directory) => {
      const error = await failure(
        create(path.join(directory, 'image'), { format: 'raw', size: Number.MAX_SAFE_INTEGER, engine }),
      )
      expect(error).toBeInstanceOf(BlockError)
      expect(error).toMatchObject({ code: 'EFBIG' })
      expect(fs.readdirSync(directory)).toEqual([])
    })
  })

  for (const target of [loop512, loop4096]) {
    const reason = target.available ? '' : ` (${target.reason})`
    describe.skipIf(!target.available)(`${target.name}${reason}`, () => {
      test('is refused without overwrite, and untouched', async () => {
        await withTarget(target, size, async (made) => {
          const error = await failure(create(made.path, { format: 'raw', size, engine }))
          expect(error).toBeInstanceOf(BlockError)
          expect(error).toMatchObject({ code: 'EEXIST' })
          expect(difference(made.readBack(), new Model(size).bytes)).toBeNull()
        })
      })

      test('is opened with overwrite, and stays the device that it is', async () => {
        await withTarget(target, size, async (made) => {
          const before = fs.statSync(made.path)
          const disk = await create(made.path, { format: 'raw', size, engine, overwrite: true })
          expect(disk.size).toBe(size)
          expect(disk.direct).toBe(true)
          await disk.write(8192, pattern(1, 4096))
          await disk.close()
          const after = fs.statSync(made.path)
          expect(after.isBlockDevice()).toBe(true)
          expect(after.rdev).toBe(before.rdev)
          expect(after.ino).toBe(before.ino)
          const content = made.readBack()
          expect(difference(content.subarray(8192, 12_288), pattern(1, 4096))).toBeNull()
        })
      })

      test('is refused when it is smaller than the size asked for, and untouched', async () => {
        await withTarget(target, size, async (made) => {
          const error = await failure(create(made.path, { format: 'raw', size: size + 4096, engine, overwrite: true }))
          expect(error).toBeInstanceOf(Error)
          expect((error as Error).message).toMatch(/size/)
          expect(fs.statSync(made.path).isBlockDevice()).toBe(true)
          expect(difference(made.readBack(), new Model(size).bytes)).toBeNull()
        })
      })
    })
  }
})
