// Who hears of a failure, and what it says. Failures of open come from the file system; failures of I/O from a full tmpfs (root)
// or from a limit on file size in a process of its own. A loop device will not do: it hides what its file cannot take.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { getSystemErrorName } from 'node:util'
import { type BlockDevice, BlockError, MultiwriteError, open } from 'multiwrite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { runChild } from './support/child.ts'
import { difference, pattern } from './support/model.ts'
import { bufferedEngines, bufferedFile, temporaryDirectory, withTarget } from './support/targets.ts'

const page = 4096
const notRoot = process.getuid?.() === 0 ? '' : ' (skipped: needs root)'

async function rejection(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    (value) => {
      throw new Error(`resolved with ${JSON.stringify(value)}`)
    },
    (error: unknown) => error,
  )
}

/** A file of `pages` pages on a file system that has room for the first `room` of them only, and is full. */
function fullFileSystem(room: number, pages: number): { file: string; unmount(): void } {
  const directory = temporaryDirectory()
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${room * page}`, 'tmpfs', directory.path])
  const unmount = (): void => {
    execFileSync('umount', [directory.path])
    directory.cleanup()
  }
  try {
    const file = path.join(directory.path, 'image')
    fs.writeFileSync(file, Buffer.alloc(room * page, 1))
    fs.truncateSync(file, pages * page)
    return { file, unmount }
  } catch (error) {
    unmount()
    throw error
  }
}

describe.each(bufferedEngines)('%s: open', (engine) => {
  test.each([
    ['a file that is not there', 'ENOENT', (directory: string) => path.join(directory, 'missing')],
    ['a path through a file', 'ENOTDIR', (directory: string) => path.join(directory, 'file', 'below')],
    ['a directory', 'EISDIR', (directory: string) => directory],
    ['a symbolic link that leads in a circle', 'ELOOP', (directory: string) => path.join(directory, 'circle')],
  ])('%s: a BlockError that names its system call', async (_, code, name) => {
    const directory = temporaryDirectory()
    try {
      fs.writeFileSync(path.join(directory.path, 'file'), 'x')
      fs.symlinkSync('circle', path.join(directory.path, 'circle'))
      const file = name(directory.path)
      const error = await rejection(open(file, { engine }))
      expect(error).toBeInstanceOf(BlockError)
      expect(error).toMatchObject({ name: 'BlockError', code, path: file })
      const { errno, syscall, message } = error as BlockError
      expect(getSystemErrorName(errno)).toBe(code)
      expect(syscall).toMatch(/^open/)
      expect(message).toContain(code)
      expect(message).toContain(file)
    } finally {
      directory.cleanup()
    }
  })

  test.each(['/dev/zero', '/dev/null'])('%s is neither a block device nor a file, and is refused', async (device) => {
    expect(await rejection(open(device, { engine }))).toBeInstanceOf(BlockError)
    expect(await rejection(open(device, { engine, readOnly: true }))).toBeInstanceOf(BlockError)
  })

  test('a pipe without a writer is refused, not waited for', async () => {
    const directory = temporaryDirectory()
    try {
      const pipe = path.join(directory.path, 'pipe')
      execFileSync('mkfifo', [pipe])
      expect(await rejection(open(pipe, { engine, readOnly: true }))).toBeInstanceOf(BlockError)
      expect(await rejection(open(pipe, { engine }))).toBeInstanceOf(BlockError)
    } finally {
      directory.cleanup()
    }
  })
})

describe.each(bufferedEngines)(`%s: a full file system${notRoot}`, (engine) => {
  describe.skipIf(notRoot !== '')('writes beyond its room', () => {
    const room = 8
    let full: { file: string; unmount(): void }
    let disk: BlockDevice

    beforeAll(async () => {
      full = fullFileSystem(room, 64)
      try {
        disk = await open(full.file, { engine })
      } catch (error) {
        full.unmount()
        throw error
      }
    })
    afterAll(async () => {
      await disk?.close()
      full?.unmount()
    })

    const expectNoSpace = (error: unknown, offset: number, length: number): void => {
      expect(error).toBeInstanceOf(BlockError)
      expect(error).toBeInstanceOf(Error)
      expect(error).toMatchObject({ name: 'BlockError', code: 'ENOSPC', path: full.file, offset, length, engine })
      expect(getSystemErrorName((error as BlockError).errno)).toBe('ENOSPC')
      expect((error as BlockError).syscall).toMatch(/write/)
      expect((error as BlockError).message).toContain('ENOSPC')
    }

    test('write rejects with the BlockError itself', async () => {
      expectNoSpace(await rejection(disk.write(20 * page, pattern(1, page))), 20 * page, page)
    })

    test('writes gathered into one submission each reject with their own offset and length', async () => {
      const errors = await Promise.all([
        rejection(disk.write(20 * page, pattern(1, page))),
        rejection(disk.write(21 * page, pattern(2, 2 * page))),
        rejection(disk.write(23 * page + 10, pattern(3, 100))),
      ])
      expectNoSpace(errors[0], 20 * page, page)
      expectNoSpace(errors[1], 21 * page, 2 * page)
      expectNoSpace(errors[2], 23 * page + 10, 100)
    })

    test('requests without a callback reject the promise, with the indices of those that failed', async () => {
      const error = await rejection(
        disk.multiwrite([
          { offset: 20 * page, data: pattern(1, page) },
          { offset: 0, data: pattern(2, page) },
          { offset: 30 * page, data: [pattern(3, 10), pattern(4, 20)] },
        ]),
      )
      expect(error).toBeInstanceOf(MultiwriteError)
      expect(error).toBeInstanceOf(AggregateError)
      const { errors, failed, name } = error as MultiwriteError
      expect(name).toBe('MultiwriteError')
      expect(failed).toEqual([0, 2])
      expect(errors).toHaveLength(2)
      expectNoSpace(errors[0], 20 * page, page)
      expectNoSpace(errors[1], 30 * page, 30)
    })

    test('a request with a callback owns its error: the promise resolves and counts it', async () => {
      const heard: [string, unknown][] = []
      const request = (name: string, at: number) => ({
        offset: at * page,
        data: pattern(at, page),
        callback: (error: unknown) => void heard.push([name, error]),
      })
      const result = await disk.multiwrite([request('a', 40), request('b', 1), request('c', 50)])
      expect(result).toEqual({ requests: 3, failed: 2 })
      expect(heard.map(([name]) => name).sort()).toEqual(['a', 'b', 'c'])
      const errors = new Map(heard)
      expectNoSpace(errors.get('a'), 40 * page, page)
      expect(errors.get('b')).toBeNull()
      expectNoSpace(errors.get('c'), 50 * page, page)
    })

    test('an error goes to the callback or to the promise, never to both', async () => {
      const heard: unknown[] = []
      const error = await rejection(
        disk.multiwrite([
          { offset: 40 * page, data: pattern(1, page), callback: (error) => void heard.push(error) },
          { offset: 50 * page, data: pattern(2, page) },
          { offset: 2 * page, data: pattern(3, page) },
        ]),
      )
      expect(heard).toHaveLength(1)
      expectNoSpace(heard[0], 40 * page, page)
      expect((error as MultiwriteError).failed).toEqual([1])
      expect((error as MultiwriteError).errors).toHaveLength(1)
      expectNoSpace((error as MultiwriteError).errors[0], 50 * page, page)
    })

    test('when every request of a merged run fails, each hears with its own offset and length', async () => {
      const heard = new Map<number, unknown>()
      const places = [22, 20, 21, 23]
      const result = await disk.multiwrite(
        places.map((at) => ({
          offset: at * page,
          data: pattern(at, page),
          callback: (error: unknown) => void heard.set(at, error),
        })),
      )
      expect(result).toEqual({ requests: 4, failed: 4 })
      for (const at of places) expectNoSpace(heard.get(at), at * page, page)
    })

    test('what is answered without an error is in the file, and what succeeds elsewhere goes on succeeding', async () => {
      // Runs from pages that exist into pages that cannot: a short write, then a refusal.
      const answers = new Map<number, unknown>()
      const places = [4, 5, 6, 7, 8, 9, 10]
      const { failed } = await disk.multiwrite(
        places.map((at) => ({
          offset: at * page,
          data: pattern(at, page),
          callback: (error: unknown) => void answers.set(at, error),
        })),
      )
      expect(answers.size).toBe(places.length)
      expect([...answers.values()].filter((error) => error !== null)).toHaveLength(failed)
      const content = fs.readFileSync(full.file)
      for (const [at, error] of answers) {
        if (error === null)
          expect(difference(content.subarray(at * page, (at + 1) * page), pattern(at, page))).toBeNull()
        else expectNoSpace(error, at * page, page)
      }
      for (const at of [8, 9, 10]) expectNoSpace(answers.get(at), at * page, page)
      await expect(disk.write(page, pattern(77, page))).resolves.toBeUndefined()
      expect(difference(fs.readFileSync(full.file).subarray(page, 2 * page), pattern(77, page))).toBeNull()
    })

    test('an overlap that fails is told to all it belongs to, and to each once', async () => {
      const heard: string[] = []
      const request = (name: string, at: number, length: number) => ({
        offset: at,
        data: pattern(1, length),
        callback: (error: BlockError | Error | null) =>
          void heard.push(`${name} ${(error as BlockError | null)?.code}`),
      })
      const result = await disk.multiwrite([
        request('under', 40 * page + 100, 100),
        request('over', 40 * page, page),
        request('beside', 41 * page, page),
      ])
      expect(result).toEqual({ requests: 3, failed: 3 })
      expect(heard.sort()).toEqual(['beside ENOSPC', 'over ENOSPC', 'under ENOSPC'])
    })
  })
})

describe.each(bufferedEngines)('%s: a limit on file size', (engine) => {
  test('is heard as EFBIG by the requests beyond it, and by no other', async () => {
    await withTarget(bufferedFile, 64 * page, async (made) => {
      const script = `
        import { open, BlockError, MultiwriteError } from 'multiwrite'
        const disk = await open(process.env.TARGET, { engine: '${engine}' })
        const heard = []
        const request = (at) => ({
          offset: at * 4096,
          data: Buffer.alloc(4096, at + 1),
          callback: (error) => heard.push([at, error && { code: error.code, offset: error.offset, length: error.length, own: error instanceof BlockError }]),
        })
        const result = await disk.multiwrite([request(20), request(2), request(0), request(40)])
        const rejected = await disk.multiwrite([{ offset: 30 * 4096, data: Buffer.alloc(10) }]).catch((error) => error)
        await disk.close()
        heard.sort(([a], [b]) => a - b)
        console.log(JSON.stringify({ heard, result, own: rejected instanceof MultiwriteError, failed: rejected.failed, code: rejected.errors?.[0]?.code }))
      `
      const wrapper = ['prlimit', `--fsize=${16 * page}`]
      const child = await runChild(script, { env: { TARGET: made.path }, wrapper })
      expect(child.stderr).toBe('')
      const refused = (at: number): unknown => [at, { code: 'EFBIG', offset: at * page, length: page, own: true }]
      expect(JSON.parse(child.stdout)).toEqual({
        heard: [[0, null], [2, null], refused(20), refused(40)],
        result: { requests: 4, failed: 2 },
        own: true,
        failed: [0],
        code: 'EFBIG',
      })
      const content = made.readBack()
      expect([0, 2, 20, 40].map((at) => content[at * page])).toEqual([1, 3, 0xee, 0xee])
    })
  })
})
