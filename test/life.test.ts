// How devices live and end: with the process, with a worker, by close. What is idle keeps nobody alive, what is in flight does;
// the end of a worker waits until the kernel has let go; and however a process ends, it does not crash and does not hang.

import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { type BlockDevice, BlockError, type OpenOptions, open } from 'multiwrite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { strayPage } from './life/busy.ts'
import type { Plan as Ending } from './life/ending.ts'
import { noSlowDisk, slowDisk } from './life/slow-disk.ts'
import { eachWay, type Way, ways } from './life/ways.ts'
import type { Report, Plan as Workers } from './life/workers.ts'
import { type ChildResult, runChild } from './support/child.ts'
import { compiled } from './support/compile.ts'
import { descriptorsOf } from './support/descriptors.ts'
import { difference } from './support/model.ts'
import { noStrace, runInjected } from './support/strace.ts'
import { background, bufferedFile, temporaryDirectory, withTarget } from './support/targets.ts'

const page = 4096
const size = 4 << 20
const long = process.env.MULTIWRITE_LONG !== undefined
const minutes = 60_000
/** Milliseconds without a sign of life after which a process counts as hanging. */
const silence = 60_000

let workers: { path: string; cleanup(): void }
let ending: { path: string; cleanup(): void }
beforeAll(() => {
  workers = compiled('life/workers.ts')
  ending = compiled('life/ending.ts')
})
afterAll(() => {
  workers?.cleanup()
  ending?.cleanup()
})

/** Runs a compiled program in a process of its own. */
function run(program: { path: string }, plan: object): Promise<ChildResult> {
  return runChild(`await import(${JSON.stringify(program.path)})`, { env: { PLAN: JSON.stringify(plan) }, silence })
}

describe('the process', () => {
  eachWay(({ engine, target }) => {
    const script = (body: string): string => `
      import fs from 'node:fs'
      import { open } from 'multiwrite'
      const print = (text) => fs.writeSync(1, text + '\\n')
      ${body}
    `
    const child = (body: string): Promise<ChildResult> =>
      withTarget(target, size, (made) => {
        const text = body.replaceAll(
          'OPEN',
          `open(${JSON.stringify(made.path)}, ${JSON.stringify({ ...made.options, engine })})`,
        )
        return runChild(script(text), { silence })
      })

    test('is not kept alive by an open device that has nothing to do', async () => {
      const used = await child(`
        const disk = await OPEN
        await disk.write(0, Buffer.alloc(4096))
        await disk.read(0, disk.alloc(4096))
        await disk.flush()
        const other = await OPEN
        print('idle')
      `)
      expect(used).toEqual({ code: 0, signal: null, stdout: 'idle\n', stderr: '' })
      // A wait that nothing can end: Node tells by code 13 that it had to leave.
      const waiting = await child(`await OPEN; print('idle'); await new Promise(() => {})`)
      expect([waiting.code, waiting.stdout]).toEqual([13, 'idle\n'])
    })

    test.each([
      ['a batch', `disk.multiwrite([{ offset: 0, data: page, callback: () => print('done') }])`],
      ['a batch of reads', `disk.multiread([{ offset: 0, into: page, callback: () => print('done') }])`],
      ['a write', `disk.write(0, page).then(() => print('done'))`],
      ['an unaligned write', `disk.write(1, page).then(() => print('done'))`],
      ['a read', `disk.read(0, page).then(() => print('done'))`],
      ['a flush', `disk.flush().then(() => print('done'))`],
      [
        'discard',
        `disk.discard(0, 4096).then(() => print('done'), (error) => print(error.code === 'EOPNOTSUPP' ? 'done' : error))`,
      ],
      ['writeZeroes', `disk.writeZeroes(0, 4096).then(() => print('done'))`],
      ['close', `disk.close().then(() => print('done'))`],
      [
        'more writes than fit at once',
        `Promise.all(Array.from({ length: 5000 }, (_, at) => disk.write((at % 500) * 8192, page))).then(() => print('done'))`,
      ],
      ['open', `OPEN.then(() => print('done'))`],
    ])('does not end before %s is answered', async (_, call) => {
      const result = await child(`const disk = await OPEN; const page = Buffer.alloc(4096); ${call}`)
      expect(result).toEqual({ code: 0, signal: null, stdout: 'done\n', stderr: '' })
    })
  })
})

describe('workers', () => {
  const expectSound = async (
    { engine, target }: Way,
    plan: Omit<Workers, 'path' | 'options'>,
    more: OpenOptions = {},
  ): Promise<void> => {
    await withTarget(target, size, async (made) => {
      const child = await run(workers, { path: made.path, options: { ...made.options, engine, ...more }, ...plan })
      expect(child.stderr).toBe('')
      const [dots, report] = child.stdout.split('\n') as [string, string]
      expect(dots).toBe('.'.repeat(plan.workers))
      expect((JSON.parse(report) as Report).wrong).toEqual([])
      expect([child.code, child.signal]).toEqual([0, null])
    })
  }

  eachWay((way) => {
    const count = long ? 1000 : 40
    test(
      `${count} that are terminated with requests in flight leave no descriptor and no wrong byte`,
      () => expectSound(way, { ends: ['terminate', 'early'], workers: count, atOnce: 1, devices: 1 }),
      20 * minutes,
    )
    test(
      'that end by themselves, by process.exit or by an exception do not either',
      () => expectSound(way, { ends: ['natural', 'exit', 'throw'], workers: long ? 150 : 12, atOnce: 1, devices: 1 }),
      20 * minutes,
    )
    test(
      'several at a time, with several devices each, that look for completions before they sleep',
      () =>
        expectSound(
          way,
          {
            ends: ['terminate', 'natural', 'exit', 'early', 'throw'],
            workers: long ? 200 : 15,
            atOnce: 5,
            devices: 3,
          },
          { busyPollUs: 20 },
        ),
      20 * minutes,
    )
  })

  test('load the addon, end, and load it again; then the main thread does', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const script = `
        import { Worker } from 'node:worker_threads'
        const code = \`
          import { open } from 'multiwrite'
          const disk = await open(process.env.TARGET)
          await disk.write(0, Buffer.alloc(100, 1))
          await disk.close()
        \`
        for (let i = 0; i < 5; i++) {
          await new Promise((resolve, reject) => {
            const worker = new Worker(code, { eval: true, execArgv: ['--input-type=module'] })
            worker.on('error', reject)
            worker.on('exit', resolve)
          })
        }
        const { open } = await import('multiwrite')
        const disk = await open(process.env.TARGET)
        const into = Buffer.alloc(100)
        await disk.read(0, into)
        await disk.close()
        console.log(into[99])
      `
      const child = await runChild(script, { env: { TARGET: made.path }, silence })
      expect(child).toEqual({ code: 0, signal: null, stdout: '1\n', stderr: '' })
    })
  })

  describe.skipIf(noSlowDisk !== '')(`with a slow device${noSlowDisk && ` (${noSlowDisk})`}`, () => {
    test.each(ways.filter(({ target }) => target.direct).map(({ engine }) => engine))(
      '%s: when the exit is reported, the kernel has let go of everything',
      async (engine) => {
        const disk = await slowDisk(1 << 20, 200)
        try {
          // Each request lasts 200 ms. On a machine that is so busy that they are over before the worker is terminated, once more.
          let seen = 0
          for (let attempt = 0; seen === 0; attempt++) {
            const code = `
              import { parentPort } from 'node:worker_threads'
              import { open } from 'multiwrite'
              const disk = await open(${JSON.stringify(disk.path)}, { engine: '${engine}' })
              const memory = disk.alloc(65536).fill(${attempt + 1})
              for (let at = 0; at < 8; at++) void disk.write(at * 8192, memory.subarray(0, 4096), { fua: at === 7 })
              for (let at = 0; at < 4; at++) void disk.read(at * 8192 + 524288, memory.subarray(32768 + at * 4096, 36864 + at * 4096))
              // Read-modify-write: there is more to do when the kernel has answered.
              void disk.write(200_000, Buffer.alloc(100, ${attempt + 1}))
              setImmediate(() => parentPort.postMessage('sent'))
            `
            const worker = new Worker(code, { eval: true, execArgv: ['--input-type=module'] })
            await new Promise((resolve, reject) => {
              worker.on('message', resolve)
              worker.on('error', reject)
            })
            seen = disk.inFlight()
            const after = await new Promise<[inFlight: number, open: number]>((resolve) => {
              worker.on('exit', () => resolve([disk.inFlight(), descriptorsOf(disk.path)]))
              void worker.terminate()
            })
            expect(after).toEqual([0, 0])
            expect(strayPage(disk.readBack(), new Set([attempt, attempt + 1]))).toBeNull()
          }
          // Exclusive: nothing of the workers holds it any more.
          const again = await open(disk.path, { engine, exclusive: true })
          await again.close()
        } finally {
          await disk.cleanup()
        }
      },
      2 * minutes,
    )

    test.each(ways.filter(({ target }) => target.direct).map(({ engine }) => engine))(
      '%s: a process that has everything in flight ends at once, or as soon as the kernel lets it',
      async (engine) => {
        const disk = await slowDisk(1 << 20, 200)
        try {
          for (const [end, expected] of [
            ['process.exit(5)', [5, null]],
            [`process.kill(process.pid, 'SIGTERM')`, [null, 'SIGTERM']],
            [`setImmediate(() => { throw new Error('the end') })`, [1, null]],
          ] as const) {
            const script = `
              import { open } from 'multiwrite'
              // The kernel may hold the device for as long as its answers take, after the process has gone.
              const disk = await open(${JSON.stringify(disk.path)}, { engine: '${engine}', exclusive: false })
              const memory = disk.alloc(4096).fill(1)
              for (let at = 0; at < 20; at++) void disk.write(at * 8192, memory)
              for (let at = 0; at < 4; at++) void disk.read(at * 8192 + 4096, memory)
              setImmediate(() => { ${end} })
            `
            const child = await runChild(script, { silence })
            expect([child.code, child.signal]).toEqual(expected)
          }
        } finally {
          await disk.cleanup()
        }
      },
      2 * minutes,
    )
  })
})

describe('many devices', () => {
  eachWay(({ engine, target }) => {
    test("64 at once do not get into each other's way, and leave no descriptor", async () => {
      await withTarget(target, 64 * 4 * page, async (made) => {
        const options = { ...made.options, engine }
        const disks = await Promise.all(Array.from({ length: 64 }, () => open(made.path, options)))
        await Promise.all(
          disks.map((disk, at) =>
            disk.multiwrite(
              [0, 1, 2, 3].map((part) => ({ offset: (at * 4 + part) * page, data: disk.alloc(page).fill(at + 1) })),
            ),
          ),
        )
        const read = await Promise.all(
          disks.map(async (disk, at) => {
            const into = disk.alloc(page)
            await disk.read(((at * 4 + 128) % 256) * page, into)
            return into[page - 1]
          }),
        )
        expect(read).toEqual(disks.map((_, at) => ((at + 32) % 64) + 1))
        await Promise.all(disks.map((disk) => disk.close()))
        expect(descriptorsOf(made.path)).toBe(0)
        const content = made.readBack()
        for (let at = 0; at < 64; at++) {
          const part = content.subarray(at * 4 * page, (at + 1) * 4 * page)
          expect(difference(part, Buffer.alloc(4 * page, at + 1))).toBeNull()
        }
      })
    })
  })

  // Whatever a device with a long queue gave back it took again, and another one waited until that queue was empty.
  eachWay(({ engine, target }) => {
    test.each([
      ['operations in flight', 32, page, true],
      ['memory for copies', 5, 16 * page, false],
    ] as const)(
      'one that waits for %s gets its share beside others with long queues',
      async (_, devices, length, own) => {
        await withTarget(target, size, async (made) => {
          // As many as it takes to fill all room of the thread, each with many times what it may have in flight.
          const options = { ...made.options, engine, queueDepth: 128, merge: { mode: 'off' } } as const
          const [other, ...busy] = await Promise.all(
            Array.from({ length: devices + 1 }, () => open(made.path, options)),
          )
          let done = 0
          // How many of the others' reads were answered before its own was sent; when it is answered is up to the kernel.
          let before = Number.POSITIVE_INFINITY
          const answered = (): void => {
            done++
            if (before > done && other!.stats.read.submissions > 0) before = done
          }
          const all = busy.flatMap((disk) => {
            const into = own ? disk.alloc(length) : Buffer.alloc(length)
            return Array.from({ length: 1000 }, () => disk.read(0, into).then(answered))
          })
          // The end of the turn that gathers.
          await new Promise(setImmediate)
          await other!.read(page, own ? other!.alloc(length) : Buffer.alloc(length))
          expect(before).toBeLessThan(0.5 * all.length)
          await Promise.all(all)
          await Promise.all([other!, ...busy].map((disk) => disk.close()))
        })
      },
    )
  })

  test('open that fails leaves no descriptor', async () => {
    const directory = temporaryDirectory()
    try {
      const before = fs.readdirSync('/proc/self/fd').length
      for (let i = 0; i < 50; i++) {
        await expect(open(directory.path)).rejects.toMatchObject({ code: 'EISDIR' })
        await expect(open('/dev/null')).rejects.toBeInstanceOf(BlockError)
        await expect(open(path.join(directory.path, 'missing'))).rejects.toMatchObject({ code: 'ENOENT' })
      }
      // The engine of the thread itself, if this was the first open.
      expect(fs.readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(before + 4)
    } finally {
      directory.cleanup()
    }
  })

  test.skipIf(noStrace !== '')(
    `open that fails when the file is open already leaves no descriptor${noStrace && ` (${noStrace})`}`,
    async () => {
      await withTarget(bufferedFile, size, async (made) => {
        const script = `
          import fs from 'node:fs'
          import { open } from 'multiwrite'
          const count = () => fs.readdirSync('/proc/self/fd').length
          await (await open(${JSON.stringify(process.execPath)}, { readOnly: true })).close()
          const before = count()
          const codes = []
          for (let i = 0; i < 5; i++) await open(process.env.TARGET).catch((error) => codes.push(error.code + ' ' + error.syscall))
          console.log(JSON.stringify({ codes, left: count() - before }))
        `
        // The first is JavaScript's, before anything is opened; the second asks the open file. strace counts per thread.
        const env = { TARGET: made.path, UV_THREADPOOL_SIZE: '1' }
        const child = await runInjected(script, ['statx:error=EIO:when=2+2'], env, made.path)
        expect(child).toMatchObject({ code: 0, stderr: '' })
        expect(JSON.parse(child.stdout)).toEqual({ codes: Array.from({ length: 5 }, () => 'EIO statx'), left: 0 })
      })
    },
  )

  test('open works again when descriptors that had run out are closed', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const script = `
        import { open } from 'multiwrite'
        const disks = []
        let error
        while (error === undefined) await open(process.env.TARGET).then((disk) => disks.push(disk), (failure) => { error = failure })
        const count = disks.length
        await Promise.all(disks.splice(0).map((disk) => disk.close()))
        for (let i = 0; i < count; i++) disks.push(await open(process.env.TARGET))
        await disks.at(-1).write(0, Buffer.alloc(100, 1))
        await Promise.all(disks.map((disk) => disk.close()))
        console.log(error.name, error.code, count > 10)
      `
      const child = await runChild(script, { env: { TARGET: made.path }, wrapper: ['prlimit', '--nofile=64'], silence })
      expect(child).toEqual({ code: 0, signal: null, stdout: 'BlockError EMFILE true\n', stderr: '' })
      expect(made.readBack()[99]).toBe(1)
    })
  })

  test.each([
    ['two copies of the package', ''],
    ['two copies that share one addon', fileURLToPath(new URL('../build/Release/multiwrite.node', import.meta.url))],
  ])('of %s in one thread work side by side', async (_, addon) => {
    const directory = temporaryDirectory()
    const root = fileURLToPath(new URL('../', import.meta.url))
    try {
      for (const part of ['dist', 'package.json', 'build/Release/multiwrite.node']) {
        fs.cpSync(path.join(root, part), path.join(directory.path, part), { recursive: true })
      }
      await withTarget(bufferedFile, size, async (made) => {
        const script = `
          import * as one from 'multiwrite'
          import * as two from ${JSON.stringify(path.join(directory.path, 'dist/index.js'))}
          const [a, b] = [await one.open(process.env.TARGET), await two.open(process.env.TARGET)]
          if (a.constructor === b.constructor) throw new Error('one module, not two')
          for (let round = 0; round < 50; round++) {
            await Promise.all([a, b].flatMap((disk, at) => Array.from({ length: 20 }, (_, i) =>
              disk.write((i * 2 + at) * 4096, i % 2 ? disk.alloc(4096).fill(round + at) : Buffer.alloc(4096, round + at)))))
          }
          // Each other's memory, too.
          await Promise.all([a.write(40 * 4096, b.alloc(4096).fill(7)), b.write(41 * 4096, a.alloc(4096).fill(8))])
          await a.close()
          await b.write(42 * 4096, Buffer.alloc(4096, 9))
          console.log('done')
        `
        const child = await runChild(script, { env: { TARGET: made.path, MULTIWRITE_ADDON: addon }, silence })
        expect(child).toEqual({ code: 0, signal: null, stdout: 'done\n', stderr: '' })
        const content = made.readBack()
        for (let at = 0; at < 43; at++) {
          const value = at < 40 ? 49 + (at % 2) : at - 33
          expect(difference(content.subarray(at * page, (at + 1) * page), Buffer.alloc(page, value))).toBeNull()
        }
      })
    } finally {
      directory.cleanup()
    }
  })
})

describe('a process with a busy device', () => {
  const ends: [Ending['end'], [code: number | null, signal: NodeJS.Signals | null]][] = [
    ['natural', [0, null]],
    ['abandon', [0, null]],
    ['exit', [5, null]],
    ['throw', [1, null]],
    ['reject', [1, null]],
    ['SIGTERM', [null, 'SIGTERM']],
    ['SIGINT', [null, 'SIGINT']],
    ['SIGKILL', [null, 'SIGKILL']],
  ]
  eachWay(({ engine, target }) => {
    test.each(ends)(
      'ends as it should: %s',
      async (end, expected) => {
        await withTarget(target, size, async (made) => {
          for (let time = 0; time < (long ? 20 : 2); time++) {
            const plan: Ending = {
              path: made.path,
              options: { ...made.options, engine },
              end,
              worker: time % 2 === 1,
              steps: 10 + ((time * 17) % 60),
            }
            const child = await run(ending, plan)
            expect([child.code, child.signal]).toEqual(expected)
            if (end !== 'throw' && end !== 'reject') expect(child.stderr).toBe('')
            else expect(child.stderr).toContain('Error: the end')
            expect(strayPage(made.readBack(), new Set([background, 1, 2]))).toBeNull()
          }
        })
      },
      10 * minutes,
    )
  })
})

describe('close', () => {
  eachWay(({ engine, target }) => {
    const operations: [string, (disk: BlockDevice) => Promise<unknown>][] = [
      ['multiwrite', (disk) => disk.multiwrite([{ offset: 0, data: Buffer.alloc(page, 1) }])],
      ['multiread', (disk) => disk.multiread([{ offset: 0, into: Buffer.alloc(page) }])],
      ['write', (disk) => disk.write(0, disk.alloc(page).fill(1))],
      ['an unaligned write', (disk) => disk.write(100, Buffer.alloc(page, 1))],
      ['a write with fua', (disk) => disk.write(0, Buffer.alloc(page, 1), { fua: true })],
      ['read', (disk) => disk.read(0, Buffer.alloc(page))],
      ['flush', (disk) => disk.flush()],
      ['writeZeroes', (disk) => disk.writeZeroes(0, page)],
      ['truncate', (disk) => disk.truncate(size - page)],
      ['refresh', (disk) => disk.refresh()],
      ['another close', (disk) => disk.close()],
    ]
    test.each(operations)('while %s is under way lets it end well', async (_, operate) => {
      await withTarget(target, size, async (made) => {
        const before = descriptorsOf(made.path)
        for (const depth of [1, 128]) {
          const disk = await open(made.path, { ...made.options, engine, queueDepth: depth })
          const calls = Array.from({ length: 20 }, () => operate(disk))
          const closed = disk.close()
          expect(disk.close()).toBe(closed)
          await expect(disk.write(0, Buffer.alloc(page))).rejects.toMatchObject({ code: 'EBADF' })
          await expect(disk.flush()).rejects.toMatchObject({ code: 'EBADF' })
          await Promise.all(calls)
          await closed
          expect(descriptorsOf(made.path)).toBe(before)
        }
      })
    })

    test('while everything is under way at once lets all of it end well', async () => {
      await withTarget(target, size, async (made) => {
        const disk = await open(made.path, { ...made.options, engine, queueDepth: 2 })
        const calls = operations.slice(0, -1).flatMap(([, operate]) => [operate(disk), operate(disk)])
        const closed = disk.close()
        await Promise.all(calls)
        await closed
        expect(descriptorsOf(made.path)).toBe(0)
      })
    })

    test('in a callback lets the other requests of the batch end well', async () => {
      await withTarget(target, size, async (made) => {
        const disk = await open(made.path, { ...made.options, engine, queueDepth: 2 })
        let closed: Promise<void> | undefined
        const errors: unknown[] = []
        const result = await disk.multiwrite(
          Array.from({ length: 50 }, (_, at) => ({
            offset: at * 2 * page,
            data: Buffer.alloc(page, at + 1),
            callback(error: Error | null) {
              if (error !== null) errors.push(error)
              closed ??= disk.close()
            },
          })),
        )
        expect(result).toEqual({ requests: 50, failed: 0 })
        expect(errors).toEqual([])
        await closed
        expect(descriptorsOf(made.path)).toBe(0)
        const content = made.readBack()
        for (let at = 0; at < 50; at++) expect(content[at * 2 * page]).toBe(at + 1)
      })
    })

    test('after a callback has thrown works as ever', async () => {
      await withTarget(target, size, async (made) => {
        const script = `
          import { open } from 'multiwrite'
          const caught = []
          process.on('uncaughtException', (error) => caught.push(error.message))
          const disk = await open(process.env.TARGET, ${JSON.stringify({ ...made.options, engine })})
          let called = 0
          const result = await disk.multiwrite(Array.from({ length: 30 }, (_, at) => ({
            offset: at * 8192,
            data: Buffer.alloc(4096, at + 1),
            callback() {
              called++
              if (at % 10 === 3) throw new Error('callback ' + at)
            },
          })))
          await disk.close()
          console.log(JSON.stringify({ result, called, caught: caught.sort() }))
        `
        const child = await runChild(script, { env: { TARGET: made.path }, silence })
        expect(child).toMatchObject({ code: 0, signal: null, stderr: '' })
        expect(JSON.parse(child.stdout)).toEqual({
          result: { requests: 30, failed: 0 },
          called: 30,
          caught: ['callback 13', 'callback 23', 'callback 3'],
        })
        const content = made.readBack()
        for (let at = 0; at < 30; at++) expect(content[at * 8192]).toBe(at + 1)
      })
    })
  })
})
