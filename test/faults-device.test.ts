// Targets that really fail: full, limited, shrunk, refusing, gone. What is answered must be true, and everything is answered.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { BlockError, type OpenOptions, open } from 'multiwrite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Line, Plan } from './faults/limit.ts'
import { runChild } from './support/child.ts'
import { compiled } from './support/compile.ts'
import { everywhere } from './support/everywhere.ts'
import { type FailingDisk, failingDisk, noFailingDisk } from './support/failing-disk.ts'
import { difference, pattern, shuffled } from './support/model.ts'
import {
  attachLoop,
  bufferedFile,
  directFile,
  engineNames,
  noLoop,
  temporaryDirectory,
  withTarget,
} from './support/targets.ts'

const page = 4096
const notRoot = process.getuid?.() === 0 ? '' : ' (skipped: needs root)'

/** The code of a promise's error, or `ok`. */
const answer = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'ok',
    (error: unknown) => (error instanceof BlockError ? error.code : error),
  )

/** What a bounded wait comes to: a hang is a failure of the test, not of the run. */
async function soon<T>(promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('not answered within 20 seconds')), 20_000)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

everywhere([bufferedFile, directFile], (target, engine) => {
  let program: ReturnType<typeof compiled>
  beforeAll(() => {
    program = compiled('faults/limit.ts')
  })
  afterAll(() => program.cleanup())

  test('a write beyond the limit on file size is done up to it, byte by byte, and then refused', async () => {
    const unit = target.direct ? page : 3
    const offset = target.direct ? page : 5
    const lengths = [3, 1, 5, 2, 4, 1].map((length) => length * unit)
    const total = 16 * unit
    const step = target.direct ? page : 1
    const limits = Array.from({ length: total / step + 2 }, (_, at) => offset + (at - 1) * step)
    await withTarget(target, 64 * page, async (made) => {
      const plan: Plan = { path: made.path, options: { ...made.options, engine }, offset, lengths, limits }
      const script = `await import(${JSON.stringify(program.path)})`
      const child = await runChild(script, { env: { PLAN: JSON.stringify(plan) }, silence: 10_000 })
      expect(child.stderr).toBe('')
      expect(child.code).toBe(0)
      const lines = child.stdout.trim().split('\n')
      expect(lines.map((line) => JSON.parse(line) as Line)).toEqual(
        limits.map((limit) => ({
          limit,
          code: limit < offset + total ? 'EFBIG' : 'ok',
          written: Math.max(0, Math.min(limit - offset, total)),
          untouched: true,
          resubmitted: limit > offset && limit < offset + total ? 1 : 0,
        })),
      )
    })
  })
})

describe.each(engineNames)(`%s: a full file system${notRoot}`, (engine) => {
  const pages = 8

  /** A file of `pages` pages that has the first `room` of them, on a file system without room for more. */
  const withRoom = async (room: number, work: (file: string) => Promise<void>): Promise<void> => {
    const directory = temporaryDirectory()
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${Math.max(room, 1) * page}`, 'tmpfs', directory.path])
    try {
      const file = path.join(directory.path, 'image')
      fs.writeFileSync(file, Buffer.alloc(room * page, 0xee))
      fs.truncateSync(file, pages * page)
      if (room === 0) fs.writeFileSync(path.join(directory.path, 'other'), Buffer.alloc(page))
      await work(file)
    } finally {
      execFileSync('umount', [directory.path])
      directory.cleanup()
    }
  }
  const options: OpenOptions = { engine, direct: engine === 'aio' }

  test.skipIf(notRoot !== '')('takes one write up to its last page, and refuses it', async () => {
    for (let room = 0; room <= pages; room++) {
      await withRoom(room, async (file) => {
        const disk = await open(file, options)
        try {
          const data = Array.from({ length: pages }, (_, at) => {
            const part = disk.alloc(page)
            part.set(pattern(at, page))
            return part
          })
          expect(await answer(disk.write(0, data))).toBe(room < pages ? 'ENOSPC' : 'ok')
          expect(disk.stats.resubmitted).toBe(room > 0 && room < pages ? 1 : 0)
          const expected = Buffer.concat([...data.slice(0, room), Buffer.alloc((pages - room) * page)])
          expect(difference(fs.readFileSync(file), expected)).toBeNull()
          expect(await answer(disk.flush())).toBe('ok')
        } finally {
          await disk.close()
        }
      })
    }
  })

  test.skipIf(notRoot !== '').each(['off', 'sort', 'full'] as const)(
    'and of a batch with mode %s each request that has room succeeds, and each other fails',
    async (mode) => {
      for (const room of [0, 1, 3, 7]) {
        await withRoom(room, async (file) => {
          const disk = await open(file, { ...options, merge: { mode } })
          try {
            const answers: unknown[] = []
            await disk.multiwrite(
              shuffled(pages, room + 1).map((at) => ({
                offset: at * page,
                data: pattern(at, page),
                callback(error: unknown): void {
                  answers[at] = error instanceof BlockError ? error.code : error
                },
              })),
            )
            const content = fs.readFileSync(file)
            for (let at = 0; at < pages; at++) {
              expect(answers[at]).toBe(at < room ? null : 'ENOSPC')
              const expected = at < room ? pattern(at, page) : Buffer.alloc(page)
              expect(difference(content.subarray(at * page, (at + 1) * page), expected)).toBeNull()
            }
          } finally {
            await disk.close()
          }
        })
      }
    },
  )
})

describe.each(engineNames)(`%s: a block device that shrinks${noLoop && ` (${noLoop})`}`, (engine) => {
  /** A loop device of 64 pages, and what gives it another size. */
  const withLoop = async (work: (device: string, resize: (pages: number) => void) => Promise<void>): Promise<void> => {
    const { path: device, cleanup } = attachLoop(64 * page, { sectorSize: 512, backing: '/dev/shm', directIo: false })
    try {
      const backing = fs.readFileSync(`/sys/block/${path.basename(device)}/loop/backing_file`, 'utf8').trim()
      await work(device, (pages) => {
        fs.truncateSync(backing, pages * page)
        execFileSync('losetup', ['--set-capacity', device])
      })
    } finally {
      cleanup()
    }
  }

  test.skipIf(noLoop !== '')('refuses what lies beyond its new end, and takes the rest', async () => {
    await withLoop(async (device, resize) => {
      const disk = await open(device, { engine })
      try {
        resize(32)
        const codes = await soon(
          Promise.all([
            answer(disk.write(31 * page, pattern(1, page))),
            answer(disk.write(32 * page, pattern(1, page), { fua: true })),
            answer(disk.write(60 * page, pattern(2, page), { fua: true })),
            answer(disk.read(60 * page, Buffer.alloc(page))),
            answer(disk.read(31 * page, Buffer.alloc(2 * page))),
            answer(disk.read(page, Buffer.alloc(page))),
          ]),
        )
        const [inside, behind, beyond, read, across, within] = codes
        expect([inside, within]).toEqual(['ok', 'ok'])
        for (const code of [behind, beyond, read, across]) expect(['ENOSPC', 'EIO']).toContain(code)
        // A merged run across the end: who would have failed alone fails, and nobody else.
        const answers: unknown[] = []
        await soon(
          disk.multiwrite(
            [30, 31, 32, 33].map((at, index) => ({
              offset: at * page,
              data: pattern(at, page),
              callback(error: unknown): void {
                answers[index] = error
              },
            })),
          ),
        )
        expect(answers.slice(0, 2)).toEqual([null, null])
        for (const error of answers.slice(2)) expect(error).toBeInstanceOf(BlockError)
        resize(64)
        const into = Buffer.alloc(page)
        for (const at of [30, 31]) {
          await disk.read(at * page, into)
          expect(difference(into, pattern(at, page))).toBeNull()
        }
        await disk.write(60 * page, pattern(3, page))
        await disk.read(60 * page, into)
        expect(difference(into, pattern(3, page))).toBeNull()
      } finally {
        await disk.close()
      }
    })
  })

  test.skipIf(noLoop !== '')('to nothing, as one that was taken away: nobody is asked for one by one', async () => {
    await withLoop(async (device, resize) => {
      const disk = await open(device, { engine })
      try {
        resize(0)
        const answers: unknown[] = []
        const writes = Array.from({ length: 64 }, (_, at) => ({
          offset: at * page,
          data: pattern(at, page),
          callback(error: unknown): void {
            answers[at] = answers[at] === undefined ? error : 'twice'
          },
        }))
        expect(await soon(disk.multiwrite(writes))).toEqual({ requests: 64, failed: 64 })
        for (const [at, error] of answers.entries()) {
          expect(error).toMatchObject({ name: 'BlockError', offset: at * page, length: page })
        }
        const reads = [0, 1, 2].map((at) => ({ offset: at * page, into: Buffer.alloc(page) }))
        await expect(soon(disk.multiread(reads))).rejects.toMatchObject({ failed: [0, 1, 2] })
        expect(disk.stats).toMatchObject({ isolated: 0, resubmitted: 0 })
        resize(64)
        await soon(disk.multiwrite(writes))
        const into = Buffer.alloc(page)
        await disk.read(63 * page, into)
        expect(difference(into, pattern(63, page))).toBeNull()
      } finally {
        await disk.close()
      }
    })
  })

  test.skipIf(noLoop !== '')('in the middle of a batch: each request is answered, and truly', async () => {
    await withLoop(async (device, resize) => {
      const disk = await open(device, { engine, queueDepth: 2, merge: { mode: 'off' } })
      try {
        const count = 512
        const answers: unknown[] = []
        await soon(
          disk.multiwrite(
            shuffled(count, 5).map((at, index) => ({
              offset: at * 512,
              data: pattern(at, 512),
              callback(error: unknown): void {
                expect(answers[at]).toBeUndefined()
                answers[at] = error instanceof BlockError ? error.code : error
                if (index === 100) resize(32)
              },
            })),
          ),
        )
        const content = Buffer.alloc(32 * page)
        await disk.read(0, content)
        for (let at = 0; at < count; at++) {
          if (at < 256) {
            expect(answers[at]).toBeNull()
            expect(difference(content.subarray(at * 512, (at + 1) * 512), pattern(at, 512))).toBeNull()
          } else {
            expect([null, 'ENOSPC', 'EIO']).toContain(answers[at])
          }
        }
        expect(answers.filter((one) => one !== null).length).toBeGreaterThan(0)
      } finally {
        await disk.close()
      }
    })
  })
})

describe.each(engineNames)(`%s: a block device that fails${noFailingDisk && ` (${noFailingDisk})`}`, (engine) => {
  const size = 4 << 20

  const withFailing = async (delayMs: number, work: (failing: FailingDisk) => Promise<void>): Promise<void> => {
    const failing = await failingDisk(size, delayMs)
    try {
      await work(failing)
    } finally {
      await failing.cleanup()
    }
  }
  const batch = (seed: number, answers: unknown[]) =>
    Array.from({ length: 24 }, (_, index) => ({
      offset: index * (index % 3 === 0 ? 5 : 4) * page,
      data: pattern(seed + index, page),
      callback(error: unknown): void {
        answers[index] = answers[index] === undefined ? (error instanceof BlockError ? error.code : error) : 'twice'
      },
    }))

  test.skipIf(noFailingDisk !== '')(
    'is heard while it fails, and takes writes again when it has recovered',
    async () => {
      await withFailing(1, async (failing) => {
        const disk = await open(failing.path, { engine })
        try {
          const expected = (value: unknown): unknown[] => Array.from({ length: 24 }, () => value)
          const [well, failed, again]: unknown[][] = [[], [], []]
          await soon(disk.multiwrite(batch(0, well!)))
          expect(well).toEqual(expected(null))
          failing.refuseWrites(true)
          expect(await soon(disk.multiwrite(batch(100, failed!)))).toEqual({ requests: 24, failed: 24 })
          expect(failed).toEqual(expected('EIO'))
          failing.refuseWrites(false)
          await soon(disk.multiwrite(batch(200, again!)))
          expect(again).toEqual(expected(null))
          const into = Buffer.alloc(page)
          await disk.read(4 * page, into)
          expect(difference(into, pattern(201, page))).toBeNull()
        } finally {
          await soon(disk.close())
        }
      })
    },
  )

  test.skipIf(noFailingDisk !== '')('that vanishes with writes in flight: all is answered, close too', async () => {
    await withFailing(200, async (failing) => {
      const disk = await open(failing.path, { engine, queueDepth: 8 })
      const answers: unknown[] = []
      const writing = disk.multiwrite(batch(0, answers))
      const flushing = answer(disk.flush())
      const single = answer(disk.write(500 * page, pattern(1, page)))
      const reading = answer(disk.read(0, Buffer.alloc(page)))
      setTimeout(() => failing.vanish(), 100)
      await soon(writing)
      expect(answers).toHaveLength(24)
      // Which error the kernel has for it differs; that there is one does not.
      const failed = expect.stringMatching(/^E[A-Z]+$/) as unknown
      expect(answers.filter((one) => one !== null).length).toBeGreaterThan(0)
      for (const one of answers) if (one !== null) expect(one).toEqual(failed)
      expect(await soon(single)).toEqual(failed)
      expect(await soon(reading)).toBeTypeOf('string')
      expect(await soon(flushing)).toEqual(failed)
      // What comes later fails as well, at once.
      expect(await soon(answer(disk.write(0, pattern(1, page))))).toEqual(failed)
      expect(await soon(answer(disk.read(1 << 20, Buffer.alloc(page))))).toEqual(failed)
      expect(await soon(answer(disk.close()))).toEqual(failed)
    })
  })
})
