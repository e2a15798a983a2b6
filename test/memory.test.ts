// Memory is never touched after it is given back, nor before: whatever JavaScript does with it while requests are on their way.
// And what the library itself holds is bounded.

import { BlockError, open } from 'multiwrite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Plan, Report } from './life/transfers.ts'
import { eachWay, type Way } from './life/ways.ts'
import { runChild } from './support/child.ts'
import { compiled } from './support/compile.ts'
import { difference, Model, pattern, shuffled } from './support/model.ts'
import { noStrace, runInjected } from './support/strace.ts'
import { background, bufferedFile, directFile, loop512, loop4096, withDisk, withTarget } from './support/targets.ts'

const page = 4096
const long = process.env.MULTIWRITE_LONG !== undefined
const minutes = 60_000

/** Makes `gc` in a script; flags of the command line are not for scripts on it. */
const exposeGc = `
  import { setFlagsFromString } from 'node:v8'
  import { runInNewContext } from 'node:vm'
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc')
`

/** The code of what a promise rejects with; `null` where it resolves. */
const codeOf = (promise: Promise<unknown>): Promise<string | null> =>
  promise.then(
    () => null,
    (error: unknown) => (error instanceof BlockError ? error.code : String(error)),
  )

/** Runs a command without the right to lock as much memory as it likes. */
const withoutLocking = ['setpriv', '--inh-caps=-ipc_lock', '--bounding-set=-ipc_lock']

type Resizable = ArrayBuffer & { resize(length: number): void }
const resizable = (length: number): Resizable =>
  new (ArrayBuffer as unknown as new (length: number, options: { maxByteLength: number }) => Resizable)(length, {
    maxByteLength: length * 2,
  })

/** Gives the memory to somebody else, who forgets it. */
function transfer(view: Uint8Array): void {
  structuredClone(view.buffer, { transfer: [view.buffer as ArrayBuffer] })
}

describe('memory that is taken away in flight', () => {
  let program: { path: string; cleanup(): void }
  beforeAll(() => {
    program = compiled('life/transfers.ts')
  })
  afterAll(() => program?.cleanup())

  const run = async ({ engine, target }: Way, count: number, pages: number, odd = false): Promise<void> => {
    await withTarget(target, 32 * pages * page, async (made) => {
      const plan: Plan = { path: made.path, options: { ...made.options, engine }, count, pages, odd }
      // Each buffer a mapping of its own: what is freed has gone from the address space, and is not just on some list.
      const env = { PLAN: JSON.stringify(plan), MALLOC_MMAP_THRESHOLD_: '4096' }
      const child = await runChild(`await import(${JSON.stringify(program.path)})`, { env })
      expect(child.stderr).toBe('')
      const { wrong, failed, done, untouched } = JSON.parse(child.stdout) as Report
      expect(wrong).toEqual([])
      expect(failed + done).toBeGreaterThanOrEqual(count)
      // The run has met what it is about.
      expect(failed).toBeGreaterThan(0)
      expect(untouched).toBeGreaterThan(0)
      expect([child.code, child.signal]).toEqual([0, null])
    })
  }

  eachWay((way) => {
    test(
      'short requests fail with EFAULT or are carried out, and nothing else changes, on disk or in memory',
      () => run(way, long ? 1000 : 60, 16),
      10 * minutes,
    )
    test('and so do such as are no multiples of a block', () => run(way, long ? 1000 : 60, 16, true), 10 * minutes)
    test('and so do long ones', () => run(way, long ? 1000 : 60, 256), 10 * minutes)
  })

  // The kernel finds nothing at the first address of a merged run. Its answer is the run's, but the fault is one request's.
  test.skipIf(noStrace !== '')(
    `a request whose memory has gone fails alone, whatever it was merged with${noStrace && ` (${noStrace})`}`,
    async () => {
      await withTarget(bufferedFile, 1 << 20, async (made) => {
        const script = `
        ${exposeGc}
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET, { engine: 'threads' })
        const answers = []
        const answer = (error) => answers.push(error?.code ?? 'done')
        const lost = Buffer.from(new ArrayBuffer(262144)).fill(1)
        const promise = disk.multiwrite([
          { offset: 0, data: lost, callback: answer },
          { offset: 262144, data: Buffer.alloc(4096, 2), callback: answer },
        ])
        structuredClone(lost.buffer, { transfer: [lost.buffer] })
        gc()
        gc()
        await promise
        await disk.close()
        console.log(answers.sort().join())
      `
        const env = { TARGET: made.path, MALLOC_MMAP_THRESHOLD_: '4096' }
        const child = await runInjected(script, ['pwritev:delay_enter=500000'], env, made.path)
        // Else the kernel was in time, and nothing is shown.
        expect(child.calls.some((call) => call.includes('EFAULT'))).toBe(true)
        expect(child).toMatchObject({ stderr: '', stdout: 'EFAULT,done\n', code: 0 })
        expect(difference(made.readBack().subarray(262144, 262144 + page), Buffer.alloc(page, 2))).toBeNull()
      })
    },
  )

  eachWay(({ engine, target }) => {
    test('memory detached while its write waits: the write fails with EFAULT, its range is untouched, others are done', async () => {
      await withTarget(target, 1 << 20, async (made) => {
        const model = new Model(1 << 20)
        await withDisk(made, { engine, queueDepth: 1 }, async (disk) => {
          const first = disk.alloc(64 * page).fill(1)
          const lost = [Buffer.from(new ArrayBuffer(page)).fill(2), new Uint8Array(resizable(page)).fill(3)] as const
          const calls = [
            disk.multiwrite([{ offset: 0, data: first }]),
            disk.multiwrite([{ offset: 80 * page, data: lost[0] }]),
            disk.multiwrite([{ offset: 82 * page, data: lost[1] }]),
            disk.multiwrite([{ offset: 84 * page, data: Buffer.alloc(page, 4) }]),
          ]
          transfer(lost[0])
          ;(lost[1].buffer as unknown as Resizable).resize(page / 2)
          const answers = await Promise.all(
            calls.map((call) =>
              call.then(
                () => null,
                (error: AggregateError) => (error.errors[0] as BlockError).code,
              ),
            ),
          )
          expect(answers).toEqual([null, 'EFAULT', 'EFAULT', null])
        })
        model.write(0, Buffer.alloc(64 * page, 1))
        model.write(84 * page, Buffer.alloc(page, 4))
        expect(difference(made.readBack(), model.bytes)).toBeNull()
      })
    })

    test('memory detached before the turn is over, while calls are gathered: EFAULT for that call only', async () => {
      await withTarget(target, 1 << 20, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          const data = [1, 2, 3].map((value) => Buffer.from(new ArrayBuffer(page)).fill(value))
          const into = [1, 2, 3].map(() => Buffer.from(new ArrayBuffer(page)))
          const writes = data.map((one, at) => codeOf(disk.write(at * page, one)))
          const reads = into.map((one, at) => codeOf(disk.read((10 + at) * page, one)))
          transfer(data[1] as Buffer)
          transfer(into[1] as Buffer)
          expect(await Promise.all(writes)).toEqual([null, 'EFAULT', null])
          expect(await Promise.all(reads)).toEqual([null, 'EFAULT', null])
          expect([into[0]?.[0], into[2]?.[0]]).toEqual([background, background])
        })
        const content = made.readBack()
        expect([0, 1, 2, 3].map((at) => content[at * page])).toEqual([1, background, 3, background])
      })
    })

    test('a resizable buffer that grows, or shrinks outside of the view, harms nothing', async () => {
      await withTarget(target, 1 << 20, async (made) => {
        await withDisk(made, { engine }, async (disk) => {
          const buffers = [resizable(4 * page), resizable(4 * page)] as const
          const views = buffers.map((buffer, at) => new Uint8Array(buffer, 0, page).fill(at + 1))
          const calls = views.map((view, at) => codeOf(disk.write(at * page, view)))
          buffers[0].resize(8 * page)
          buffers[1].resize(page)
          expect(await Promise.all(calls)).toEqual([null, null])
          const reads = views.map((view, at) => codeOf(disk.read((8 + at) * page, view)))
          buffers[0].resize(page)
          buffers[1].resize(8 * page)
          expect(await Promise.all(reads)).toEqual([null, null])
          expect(views.map((view) => view[page - 1])).toEqual([background, background])
        })
        expect([0, 1].map((at) => made.readBack()[at * page])).toEqual([1, 2])
      })
    })
  })
})

describe('alloc', () => {
  const available = [bufferedFile, directFile, loop512, loop4096].filter((target) => target.available)
  test.each(available.map((target) => [target.name, target] as const))(
    'on a %s: zeroed, of the size that was asked for, and so aligned that no copy is needed',
    async (_, target) => {
      await withTarget(target, 1 << 20, async (made) => {
        await withDisk(made, {}, async (disk) => {
          for (const size of [0, 1, 511, page, 5 * page, 1 << 18]) {
            const memory = disk.alloc(size)
            expect(Buffer.isBuffer(memory)).toBe(true)
            expect(memory.buffer).toBeInstanceOf(SharedArrayBuffer)
            expect(difference(memory, Buffer.alloc(size))).toBeNull()
            if (size % page === 0 && size > 0) {
              await disk.write(0, memory.fill(7))
              await disk.read(1 << 19, memory)
              expect(memory[size - 1]).toBe(background)
            }
          }
          expect(disk.stats.bounced).toBe(0)
        })
      })
    },
  )

  test('memory that was used and forgotten is zeroed when it comes again', async () => {
    await withTarget(bufferedFile, 1 << 20, async (made) => {
      const script = `
        ${exposeGc}
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET)
        const zeros = Buffer.alloc(100_000)
        for (let round = 0; round < 200; round++) {
          const memory = disk.alloc(100_000)
          if (memory.compare(zeros) !== 0) throw new Error('not zeroed in round ' + round)
          await disk.write(0, memory.fill(round + 1))
          if (round % 10 === 0) gc()
        }
        console.log('zeroed')
      `
      const child = await runChild(script, { env: { TARGET: made.path } })
      expect(child).toMatchObject({ stderr: '', stdout: 'zeroed\n', code: 0 })
    })
  })

  test.each([
    ['pieces of 1 MiB', 1 << 20],
    // Small ones are cut from what is larger.
    ['pages', 4096],
  ])('what is forgotten goes back to the system: %s', { timeout: 10 * minutes }, async (_, bytes) => {
    await withTarget(bufferedFile, 1 << 20, async (made) => {
      const count = (long ? 20_000 : 3000) * Math.min(32, (1 << 20) / bytes)
      const script = (turn: string): string => `
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET)
        for (let i = 0; i < ${count}; i++) {
          disk.alloc(${bytes}).fill(i)
          ${turn}
        }
        console.log(process.resourceUsage().maxRSS)
      `
      // A loop that never returns to the event loop gives no finaliser a chance to run; the memory must go all the same.
      for (const turn of ['', 'if (i % 50 === 49) await new Promise(setImmediate)']) {
        const child = await runChild(script(turn), { env: { TARGET: made.path } })
        expect(child).toMatchObject({ stderr: '', code: 0 })
        const resident_mib = Number(child.stdout) / 1024
        expect(resident_mib).toBeGreaterThan(1)
        expect(resident_mib).toBeLessThan(1024)
      }
    })
  })

  test('what is used again and again is known to the ring, and no longer than it lives', async () => {
    await withTarget(bufferedFile, 1 << 20, async (made) => {
      const script = `
        ${exposeGc}
        import fs from 'node:fs'
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET, { engine: 'io_uring' })
        const ring = fs.readdirSync('/proc/self/fd').find((fd) => {
          try { return fs.readlinkSync('/proc/self/fd/' + fd).includes('io_uring') } catch { return false }
        })
        const known = () => fs.readFileSync('/proc/self/fdinfo/' + ring, 'utf8').match(/ 0x[0-9a-f]+\\/\\d+/g)?.length ?? 0
        const content = (round) => Buffer.alloc(40_000, round % 251 + 1)
        for (let round = 0; round < 100; round++) {
          const memory = disk.alloc(40_000)
          memory.set(content(round))
          for (let i = 0; i < 120; i++) await disk.write(0, memory)
          if (round === 0) console.log('known', known())
          const back = disk.alloc(40_000)
          for (let i = 0; i < 120; i++) await disk.read(0, back)
          if (!back.equals(content(round))) throw new Error('read back wrongly in round ' + round)
        }
        for (let i = 0; i < 5; i++) {
          gc()
          await new Promise((resolve) => setTimeout(resolve, 20))
        }
        console.log('known', known() <= 2)
      `
      const env = { TARGET: made.path }
      const child = await runChild(script, { env })
      expect(child).toMatchObject({ stderr: '', stdout: 'known 1\nknown true\n', code: 0 })
      // A user without the right to lock memory has only so much of it for everything; none is taken then.
      const wrapper = ['prlimit', '--memlock=65536', ...(process.getuid!() === 0 ? withoutLocking : [])]
      const poor = await runChild(script, { env, wrapper })
      expect(poor).toMatchObject({ stderr: '', stdout: 'known 0\nknown true\n', code: 0 })
    })
  })

  test('pieces allocated in a row never share a byte, and lie in a row', async () => {
    await withTarget(bufferedFile, 1 << 20, (made) =>
      withDisk(made, {}, (disk) => {
        const sizes = [1, 4096, 0, 4095, 4097, 32768, 32769, 5, 1 << 20, 1]
        const pieces = Array.from({ length: 200 }, (_, i) => {
          const piece = disk.alloc(sizes[i % sizes.length]!)
          expect(piece.every((byte) => byte === 0)).toBe(true)
          return piece.fill(i + 1)
        })
        for (const [i, piece] of pieces.entries()) expect(piece.every((byte) => byte === ((i + 1) & 0xff))).toBe(true)
      }),
    )
  })

  // Where a run of pieces crosses from one slab to the next, it can be no operation on registered memory.
  test('who wants many pieces gets them from few slabs, of which none is so long that it keeps much', async () => {
    await withTarget(bufferedFile, 1 << 20, (made) =>
      withDisk(made, {}, (disk) => {
        const slabs = new Set(Array.from({ length: 5120 }, () => disk.alloc(page).buffer))
        expect(slabs.size).toBeLessThanOrEqual(8)
        for (const slab of slabs) expect(slab.byteLength).toBeLessThanOrEqual((4 << 20) + page)
      }),
    )
  })

  test('a subarray outlives the buffer that it was taken from, and the device', async () => {
    await withTarget(bufferedFile, 1 << 20, async (made) => {
      const script = `
        ${exposeGc}
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET)
        const kept = Array.from({ length: 50 }, (_, i) => disk.alloc(65536).fill(i).subarray(1000, 30_000))
        const churn = async () => {
          for (let i = 0; i < 50; i++) {
            disk.alloc(65536).fill(0xdd)
            gc()
            await new Promise(setImmediate)
          }
        }
        const check = (when) => kept.forEach((view, i) => {
          if (view.length !== 29_000 || view.compare(Buffer.alloc(29_000, i)) !== 0) throw new Error(when + ' ' + i)
        })
        await churn()
        check('open')
        await Promise.all(kept.map((view, i) => disk.write(i * 10_000, view.subarray(0, 10_000))))
        await disk.close()
        await churn()
        check('closed')
        console.log('intact')
      `
      const child = await runChild(script, { env: { TARGET: made.path } })
      expect(child).toMatchObject({ stderr: '', stdout: 'intact\n', code: 0 })
      const content = made.readBack()
      for (let at = 0; at < 50; at++) {
        expect(difference(content.subarray(at * 10_000, (at + 1) * 10_000), Buffer.alloc(10_000, at))).toBeNull()
      }
    })
  })

  test('memory is as good for another device, and after its own is closed', async () => {
    await withTarget(directFile.available ? directFile : bufferedFile, 1 << 20, async (made) => {
      const one = await open(made.path, made.options)
      const memory = one.alloc(4 * page)
      await one.close()
      await withDisk(made, {}, async (disk) => {
        await disk.write(0, memory.fill(9))
        await disk.read(page * 8, memory)
        expect(disk.stats.bounced).toBe(0)
      })
      expect(difference(memory, Buffer.alloc(4 * page, background))).toBeNull()
      expect(made.readBack()[4 * page - 1]).toBe(9)
    })
  })

  test('memory that was posted to a worker is valid there when it is forgotten here', async () => {
    await withTarget(bufferedFile, 1 << 20, async (made) => {
      const script = `
        ${exposeGc}
        import { Worker } from 'node:worker_threads'
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET)
        const worker = new Worker(\`
          import { parentPort, workerData } from 'node:worker_threads'
          import { open } from 'multiwrite'
          let memory
          parentPort.on('message', async (message) => {
            if (message !== 'write') {
              memory = message
              parentPort.postMessage('got it')
              return
            }
            const bytes = Buffer.from(memory.buffer, memory.byteOffset, memory.length)
            if (bytes.compare(Buffer.alloc(65536, 5)) !== 0) throw new Error('other bytes')
            const disk = await open(workerData)
            await disk.write(65536, bytes)
            await disk.close()
            parentPort.close()
          })
        \`, { eval: true, execArgv: ['--input-type=module'], workerData: process.env.TARGET })
        worker.on('error', (error) => { throw error })
        const said = new Promise((resolve) => worker.once('message', resolve))
        worker.postMessage(disk.alloc(65536).fill(5))
        await said
        for (let i = 0; i < 20; i++) {
          gc()
          disk.alloc(65536).fill(0xdd)
          await new Promise(setImmediate)
        }
        await disk.close()
        worker.postMessage('write')
        await new Promise((resolve) => worker.once('exit', resolve))
        console.log('done')
      `
      const child = await runChild(script, { env: { TARGET: made.path } })
      expect(child).toMatchObject({ stderr: '', stdout: 'done\n', code: 0 })
      expect(difference(made.readBack().subarray(65536, 131072), Buffer.alloc(65536, 5))).toBeNull()
    })
  })
})

describe('what is in flight is bounded', () => {
  eachWay(({ engine, target }) => {
    const count = long ? 1_000_000 : 50_000

    test(
      `${count} single writes at once: all are done, and memory of our own stays small`,
      async () => {
        await withTarget(target, 64 << 20, async (made) => {
          const script = `
          import { open } from 'multiwrite'
          const disk = await open(process.env.TARGET, ${JSON.stringify({ ...made.options, engine })})
          const page = Buffer.alloc(4096, 1)
          const pages = disk.size / 4096
          // The heap is the callers' promises; what lies beside it is ours. A heap that has shrunk still counts: its pages go back
          // to the system some time after it has said so.
          let heap = 0
          const beside = () => {
            const { rss, heapTotal } = process.memoryUsage()
            heap = Math.max(heap, heapTotal)
            return rss - heap
          }
          const before = beside()
          let [most, done] = [0, 0]
          const answered = () => { if (++done % 1000 === 0) most = Math.max(most, beside()) }
          for (let i = 0; i < ${count}; i++) disk.write(((i * 7919) % pages) * 4096, page).then(answered)
          most = Math.max(most, beside())
          await disk.flush()
          console.log(JSON.stringify({ done, grown_mib: (most - before) / 2 ** 20, submissions: disk.stats.write.submissions }))
          await disk.close()
        `
          const child = await runChild(script, { env: { TARGET: made.path } })
          expect(child).toMatchObject({ stderr: '', code: 0 })
          const { done, grown_mib, submissions } = JSON.parse(child.stdout) as Record<string, number>
          expect(done).toBe(count)
          expect(submissions).toBeLessThanOrEqual(count)
          expect(grown_mib).toBeLessThan(256)
          expect(difference(made.readBack(), Buffer.alloc(64 << 20, 1))).toBeNull()
        })
      },
      15 * minutes,
    )

    test.each([
      [8, 10_000],
      [1, 1000],
    ])('at a depth of %i, a batch of %i writes that cannot be merged is carried out', async (queueDepth, count) => {
      const size = (count * 2 + 1) * page
      await withTarget(target, size, async (made) => {
        const model = new Model(size)
        const answers: number[] = []
        await withDisk(made, { engine, queueDepth }, async (disk) => {
          const requests = shuffled(count).map((at) => {
            const data = pattern(at, page)
            model.write(at * 2 * page, data)
            return { offset: at * 2 * page, data, callback: () => void answers.push(at) }
          })
          expect(await disk.multiwrite(requests)).toEqual({ requests: count, failed: 0 })
          expect(disk.stats.write.submissions).toBe(count)
        })
        expect(new Set(answers).size).toBe(count)
        expect(answers).toHaveLength(count)
        expect(difference(made.readBack(), model.bytes)).toBeNull()
      })
    })

    test('at a depth of 1, single calls of many turns are carried out in their order', async () => {
      await withTarget(target, 1 << 20, async (made) => {
        await withDisk(made, { engine, queueDepth: 1 }, async (disk) => {
          const calls: Promise<void>[] = []
          for (let turn = 1; turn <= 100; turn++) {
            calls.push(
              disk.write(0, Buffer.alloc(page, turn)),
              disk.write((turn % 200) * page, disk.alloc(page).fill(turn)),
            )
            if (turn % 3 === 0) await null
          }
          await Promise.all(calls)
        })
        const content = made.readBack()
        expect([0, 1, 50, 100].map((at) => content[at * page])).toEqual([100, 1, 50, 100])
      })
    })
  })
})
