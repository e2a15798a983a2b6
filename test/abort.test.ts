// Taking requests back: what has not been submitted is withdrawn and leaves no trace, what has been is told as it came out, and
// everybody is answered once.

import { getEventListeners } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { AbortError, type BlockDevice, BlockError, type OpenOptions } from 'multiwrite'
import { expect, test } from 'vitest'
import { everywhere } from './support/everywhere.ts'
import { forever, withFaults } from './support/faults.ts'
import { difference, Model, pattern } from './support/model.ts'
import {
  background,
  bufferedFile,
  directFile,
  loop4096,
  type MadeTarget,
  withDisk,
  withTarget,
} from './support/targets.ts'

const page = 4096
const size = 64 * page
const [EIO, EAGAIN] = [-5, -11]

/** What a promise came to: its value, or its error. */
const outcome = (promise: Promise<unknown>): Promise<unknown> => promise.catch((error: unknown) => error)

everywhere([bufferedFile, directFile, loop4096], (target, engine) => {
  const onDisk = (
    work: (disk: BlockDevice, made: MadeTarget) => Promise<void>,
    options: OpenOptions = {},
  ): Promise<void> =>
    withTarget(target, size, (made) => withDisk(made, { engine, ...options }, (disk) => work(disk, made)))

  /** Each request is a submission, and one is in flight: the others are still there to be withdrawn. */
  const single: OpenOptions = { queueDepth: 1, merge: { mode: 'off' } }

  /** Requests for a page each, and what their callbacks hear. */
  const batch = (places: readonly number[], seed = 0) => {
    const heard: [index: number, error: unknown][] = []
    const requests = places.map((at, index) => ({
      offset: at * page,
      data: pattern(seed + at, page),
      callback: (error: unknown) => void heard.push([index, error]),
    }))
    return { requests, heard }
  }
  const pageOf = (content: Buffer, at: number): Buffer => content.subarray(at * page, (at + 1) * page)
  const isUntouched = (content: Buffer, at: number): boolean => pageOf(content, at).every((byte) => byte === background)

  const expectAborted = (error: unknown, reason: unknown): void => {
    expect(error).toBeInstanceOf(AbortError)
    expect(error).toBeInstanceOf(Error)
    expect(error).toMatchObject({ name: 'AbortError', code: 'ABORT_ERR' })
    expect((error as AbortError).cause).toBe(reason)
  }

  test('a signal that was raised beforehand: rejected, nothing done, no callback', async () => {
    await onDisk(async (disk, made) => {
      const reason = new Error('no more')
      const signal = AbortSignal.abort(reason)
      const { requests, heard } = batch([0, 1, 9])
      const into = Buffer.alloc(page, 1)
      const read = { offset: 0, into, callback: (error: unknown) => void heard.push([0, error]) }
      expectAborted(await outcome(disk.multiwrite(requests, { signal })), reason)
      expectAborted(await outcome(disk.multiread([read], { signal })), reason)
      expectAborted(await outcome(disk.write(0, pattern(1, page), { signal })), reason)
      expectAborted(await outcome(disk.read(0, into, { signal })), reason)
      for (let at = 0; at < 3; at++) await turn()
      expect(heard).toEqual([])
      expect(disk.stats.write).toMatchObject({ requests: 0, submissions: 0 })
      expect(disk.stats.read).toMatchObject({ requests: 0, submissions: 0 })
      expect(into.every((byte) => byte === 1)).toBe(true)
      expect(isUntouched(made.readBack(), 0)).toBe(true)
    })
  })

  test('the reason is the signal’s own: the default, a timeout, one of several', async () => {
    await onDisk(async (disk) => {
      const controller = new AbortController()
      const reasons = [
        AbortSignal.abort(),
        AbortSignal.timeout(0),
        AbortSignal.any([controller.signal, AbortSignal.abort('text')]),
      ]
      await new Promise((resolve) => setTimeout(resolve, 20))
      for (const signal of reasons) {
        expect(signal.aborted).toBe(true)
        expectAborted(await outcome(disk.write(0, pattern(1, page), { signal })), signal.reason)
      }
    })
  })

  test.each([
    ['an object', {}],
    ['null', null],
    ['a controller', new AbortController()],
    ['true', true],
  ])('%s is no signal: an argument error that names it', async (_, signal) => {
    await onDisk(async (disk) => {
      const options = { signal: signal as AbortSignal }
      const calls = [
        disk.multiwrite([], options),
        disk.multiread([], options),
        disk.write(0, pattern(1, page), options),
        disk.read(0, Buffer.alloc(page), options),
      ]
      for (const call of calls) {
        const error = await outcome(call)
        expect(error).toBeInstanceOf(TypeError)
        expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_TYPE' })
        expect((error as Error).message).toContain('signal')
      }
    })
  })

  test('what waits is withdrawn, what was submitted is carried out; the promise tells how many', async () => {
    await onDisk(async (disk, made) => {
      const controller = new AbortController()
      const { requests, heard } = batch([0, 2, 4, 6, 8])
      const done = disk.multiwrite(requests, { signal: controller.signal })
      const reason = new Error('enough')
      controller.abort(reason)
      // Not inside the call that raised the signal.
      expect(heard).toEqual([])
      const error = await outcome(done)
      expectAborted(error, reason)
      expect(error).toMatchObject({ completed: 1, failed: [], errors: [] })
      expect(heard).toHaveLength(5)
      const answers = new Map(heard)
      expect(answers.get(0)).toBeNull()
      for (const index of [1, 2, 3, 4]) expectAborted(answers.get(index), reason)
      expect(disk.stats.write).toMatchObject({ requests: 5, submissions: 1 })
      const content = made.readBack()
      expect(difference(pageOf(content, 0), pattern(0, page))).toBeNull()
      for (const at of [2, 4, 6, 8]) expect(isUntouched(content, at)).toBe(true)
    }, single)
  })

  test('reads that wait are withdrawn too, and their memory stays as it was', async () => {
    await onDisk(async (disk) => {
      const controller = new AbortController()
      const buffers = [0, 2, 4].map(() => Buffer.alloc(page, 7))
      const heard: unknown[] = []
      const done = disk.multiread(
        buffers.map((into, index) => ({
          offset: index * 2 * page,
          into,
          callback(error: unknown): void {
            heard[index] = error
          },
        })),
        { signal: controller.signal },
      )
      controller.abort()
      expect(await outcome(done)).toMatchObject({ code: 'ABORT_ERR', completed: 1 })
      expect(heard[0]).toBeNull()
      expect(buffers[0]?.every((byte) => byte === background)).toBe(true)
      for (const index of [1, 2]) {
        expect(heard[index]).toBeInstanceOf(AbortError)
        expect(buffers[index]?.every((byte) => byte === 7)).toBe(true)
      }
    }, single)
  })

  test('where everything was submitted already, everything is carried out, and the promise resolves', async () => {
    await onDisk(async (disk, made) => {
      const controller = new AbortController()
      const { requests, heard } = batch([0, 1, 2, 10, 11])
      const done = disk.multiwrite(requests, { signal: controller.signal })
      controller.abort()
      await expect(done).resolves.toEqual({ requests: 5, failed: 0 })
      expect(heard.map(([, error]) => error)).toEqual([null, null, null, null, null])
      expect(difference(pageOf(made.readBack(), 11), pattern(11, page))).toBeNull()
    })
  })

  test('the promise settles when the kernel has let go of all memory, not before', async () => {
    await onDisk(async (disk) => {
      const controller = new AbortController()
      const { requests, heard } = batch([0, 2, 4])
      await withFaults([{ on: 'write', does: 'hold', times: forever }], async () => {
        let settled = false
        const done = outcome(disk.multiwrite(requests, { signal: controller.signal })).then((error) => {
          settled = true
          return error
        })
        controller.abort()
        // The answer of the first is held back for milliseconds; the withdrawn ones need not wait for it.
        await turn()
        await turn()
        const early = [...heard]
        if (settled) expect(early).toHaveLength(3)
        expectAborted(await done, controller.signal.reason)
        expect(new Map(heard).get(0)).toBeNull()
      })
    }, single)
  })

  test('what failed otherwise is told beside: to its callback, or with its index', async () => {
    await onDisk(
      async (disk) => {
        const controller = new AbortController()
        const heard: unknown[] = []
        const rules = [{ on: 'write', does: 'replace', value: EIO, times: 2 }] as const
        const error = await withFaults(rules, () => {
          const done = disk.multiwrite(
            [
              { offset: 0, data: pattern(0, page), callback: (own: unknown) => void heard.push(own) },
              { offset: 2 * page, data: pattern(2, page) },
              { offset: 4 * page, data: pattern(4, page) },
              { offset: 6 * page, data: pattern(6, page) },
              { offset: 8 * page, data: Buffer.alloc(0) },
            ],
            { signal: controller.signal },
          )
          controller.abort()
          return outcome(done)
        })
        expect(heard).toHaveLength(1)
        expect(heard[0]).toMatchObject({ code: 'EIO', offset: 0 })
        // Two were submitted and failed, two were withdrawn, and the empty one has nothing to withdraw.
        expect(error).toBeInstanceOf(AbortError)
        const { completed, failed, errors } = error as AbortError
        expect({ completed, failed }).toEqual({ completed: 1, failed: [1] })
        expect(errors).toHaveLength(1)
        expect(errors[0]).toBeInstanceOf(BlockError)
        expect(errors[0]).toMatchObject({ code: 'EIO', offset: 2 * page, length: page })
      },
      { ...single, queueDepth: 2 },
    )
  })

  test('requests without bytes are done, not withdrawn', async () => {
    await onDisk(async (disk) => {
      const controller = new AbortController()
      const heard: unknown[] = []
      const empty = { offset: 0, data: Buffer.alloc(0), callback: (error: unknown) => void heard.push(error) }
      const done = disk.multiwrite([empty, empty], { signal: controller.signal })
      controller.abort()
      await expect(done).resolves.toEqual({ requests: 2, failed: 0 })
      expect(heard).toEqual([null, null])
    })
  })

  test('a request that is carried out in parts ends with the part that was under way', async () => {
    await onDisk(
      async (disk, made) => {
        const controller = new AbortController()
        const before = disk.write(60 * page, pattern(9, page))
        const heard: unknown[] = []
        const done = disk.multiwrite(
          [{ offset: 0, data: pattern(5, 16 * page), callback: (error: unknown) => void heard.push(error) }],
          { signal: controller.signal },
        )
        await before
        controller.abort()
        const error = await outcome(done)
        expect(heard).toHaveLength(1)
        if (error instanceof AbortError) {
          expect(error.completed).toBe(0)
          expectAborted(heard[0], controller.signal.reason)
        } else {
          expect(heard).toEqual([null])
        }
        // Each page is wholly old or wholly new, in order from the first.
        const content = made.readBack()
        let old = false
        for (let at = 0; at < 16; at++) {
          old ||= isUntouched(content, at)
          if (old) expect(isUntouched(content, at)).toBe(true)
          else
            expect(
              difference(pageOf(content, at), pattern(5, 16 * page).subarray(at * page, (at + 1) * page)),
            ).toBeNull()
        }
      },
      { queueDepth: 1, merge: { maxBytes: page } },
    )
  })

  test('a callback may raise its own signal: who is not under way yet is withdrawn', async () => {
    await onDisk(async (disk) => {
      const controller = new AbortController()
      const heard: string[] = []
      const error = await outcome(
        disk.multiwrite(
          [0, 2, 4, 6, 8, 10].map((at, index) => ({
            offset: at * page,
            data: pattern(at, page),
            callback(error: unknown): void {
              heard.push(`${index} ${error instanceof AbortError ? 'aborted' : error}`)
              if (index === 2) controller.abort(new Error('from inside'))
            },
          })),
          { signal: controller.signal },
        ),
      )
      expectAborted(error, controller.signal.reason)
      expect(heard).toHaveLength(6)
      expect(new Set(heard.map((line) => line[0])).size).toBe(6)
      expect(heard.slice(0, 3)).toEqual(['0 null', '1 null', '2 null'])
      const carriedOut = heard.filter((line) => line.endsWith('null')).length
      expect(error).toMatchObject({ completed: carriedOut, failed: [] })
      // At most the one that left when the third came back.
      expect(carriedOut).toBeLessThanOrEqual(4)
      await disk.flush()
    }, single)
  })

  test('a callback that is told of its withdrawal may submit again', async () => {
    await onDisk(async (disk, made) => {
      const controller = new AbortController()
      const again: Promise<unknown>[] = []
      const done = disk.multiwrite(
        [0, 2, 4].map((at) => ({
          offset: at * page,
          data: pattern(at, page),
          callback(error: unknown): void {
            if (error instanceof AbortError) again.push(disk.write(at * page, pattern(at + 100, page)))
          },
        })),
        { signal: controller.signal },
      )
      controller.abort()
      await outcome(done)
      expect(again).toHaveLength(2)
      await Promise.all(again)
      const content = made.readBack()
      expect(difference(pageOf(content, 2), pattern(102, page))).toBeNull()
      expect(difference(pageOf(content, 4), pattern(104, page))).toBeNull()
    }, single)
  })

  test('raised after everything is done, or twice, it does nothing', async () => {
    await onDisk(async (disk) => {
      const controller = new AbortController()
      const { requests, heard } = batch([0, 1, 2])
      await expect(disk.multiwrite(requests, { signal: controller.signal })).resolves.toMatchObject({ failed: 0 })
      await disk.write(0, pattern(1, page), { signal: controller.signal })
      controller.abort()
      controller.abort()
      for (let at = 0; at < 3; at++) await turn()
      expect(heard).toHaveLength(3)
      await disk.write(0, pattern(2, page))
    })
  })

  test('one batch’s signal is no other’s', async () => {
    await onDisk(async (disk) => {
      const controllers = [new AbortController(), new AbortController(), new AbortController()]
      const batches = [
        [0, 2],
        [4, 6],
        [8, 10],
      ].map((places) => batch(places))
      const done = batches.map(({ requests }, index) =>
        outcome(disk.multiwrite(requests, { signal: controllers[index]!.signal })),
      )
      controllers[1]?.abort()
      const [first, second, third] = await Promise.all(done)
      expect(first).toEqual({ requests: 2, failed: 0 })
      expectAborted(second, controllers[1]?.signal.reason)
      expect(third).toEqual({ requests: 2, failed: 0 })
    }, single)
  })

  test('single calls of one turn: each has its own signal, and the others go on', async () => {
    await onDisk(async (disk, made) => {
      const controller = new AbortController()
      const kept = disk.write(0, pattern(1, page))
      const left = disk.write(page, pattern(2, page), { signal: controller.signal })
      const also = disk.write(2 * page, pattern(3, page), { signal: new AbortController().signal })
      const into = Buffer.alloc(page, 7)
      const read = disk.read(10 * page, into, { signal: controller.signal })
      controller.abort()
      expectAborted(await outcome(left), controller.signal.reason)
      expectAborted(await outcome(read), controller.signal.reason)
      expect(await outcome(kept)).toBeUndefined()
      expect(await outcome(also)).toBeUndefined()
      const content = made.readBack()
      expect(difference(pageOf(content, 0), pattern(1, page))).toBeNull()
      expect(isUntouched(content, 1)).toBe(true)
      expect(difference(pageOf(content, 2), pattern(3, page))).toBeNull()
      expect(into.every((byte) => byte === 7)).toBe(true)
      expect(disk.stats.read.submissions).toBe(0)
    })
  })

  test('of several owners of one submission that is under way, one that leaves is told its true outcome', async () => {
    await onDisk(async (disk, made) => {
      const controller = new AbortController()
      const writes = [0, 1, 2].map((at) =>
        outcome(disk.write(at * page, pattern(at, page), at === 1 ? { signal: controller.signal } : {})),
      )
      // A flush sends what was gathered.
      const flushed = disk.flush()
      controller.abort()
      expect(await Promise.all(writes)).toEqual([undefined, undefined, undefined])
      await flushed
      expect(disk.stats.write.submissions).toBe(1)
      expect(difference(pageOf(made.readBack(), 1), pattern(1, page))).toBeNull()
    })
  })

  test('what is being tried again is under way: one of its owners that leaves is told its true outcome', async () => {
    await onDisk(async (disk, made) => {
      const controller = new AbortController()
      const rules = [{ on: 'write', does: 'replace', value: EAGAIN, times: 20 }] as const
      await withFaults(rules, async () => {
        const kept = outcome(disk.write(0, pattern(0, page)))
        const left = outcome(disk.write(page, pattern(1, page), { signal: controller.signal }))
        // Some milliseconds of trying lie before it, and some behind it.
        await new Promise((resolve) => setTimeout(resolve, 5))
        controller.abort()
        expect(await Promise.all([kept, left])).toEqual([undefined, undefined])
      })
      const content = made.readBack()
      expect(difference(pageOf(content, 1), pattern(1, page))).toBeNull()
    })
  })

  test('a later write that is withdrawn hides nothing of an earlier one', async () => {
    await onDisk(
      async (disk, made) => {
        const model = new Model(size)
        // Withdrawn while it was gathered, and while it waited behind the depth limit.
        for (const sent of [false, true]) {
          const [base, seed] = sent ? [8 * page, 10] : [0, 0]
          const controller = new AbortController()
          const busy = sent ? disk.multiwrite([{ offset: 40 * page, data: pattern(77, page) }]) : Promise.resolve()
          const under = disk.write(base, pattern(seed, 3 * page))
          const over = disk.write(base + page, pattern(seed + 1, page), { signal: controller.signal })
          const whole = disk.write(base + 4 * page, pattern(seed + 2, page))
          const cover = disk.write(base + 3 * page, pattern(seed + 3, 3 * page), { signal: controller.signal })
          // A flush sends what was gathered, if there is room for it.
          const flushed = sent ? disk.flush() : Promise.resolve()
          controller.abort()
          expectAborted(await outcome(over), controller.signal.reason)
          expectAborted(await outcome(cover), controller.signal.reason)
          await Promise.all([busy, under, whole, flushed])
          model.write(base, pattern(seed, 3 * page))
          model.write(base + 4 * page, pattern(seed + 2, page))
          if (sent) model.write(40 * page, pattern(77, page))
          expect(difference(made.readBack(), model.bytes)).toBeNull()
        }
      },
      { queueDepth: 1 },
    )
  })

  test('a request that is withdrawn while it waits for its turn leaves those behind it in their order', async () => {
    await onDisk(async (disk, made) => {
      const model = new Model(size)
      const events: string[] = []
      const note = (name: string) => (): void => void events.push(name)
      await withFaults([{ on: ['write', 'read'], does: 'hold', times: forever }], async () => {
        const controller = new AbortController()
        const first = disk.multiwrite([{ offset: 0, data: pattern(1, 4 * page) }]).then(note('first'))
        // Waits for the first, and reaches further.
        const gone = outcome(
          disk.multiwrite([{ offset: 2 * page, data: pattern(2, 6 * page) }], { signal: controller.signal }),
        )
        // Waits for the one that goes away; of the first it meets nothing, or something.
        const apart = disk.multiwrite([{ offset: 6 * page, data: pattern(3, 4 * page) }]).then(note('apart'))
        const across = disk.multiwrite([{ offset: 3 * page, data: pattern(4, 2 * page) }]).then(note('across'))
        const into = Buffer.alloc(10 * page)
        const read = disk.read(0, into).then(note('read'))
        controller.abort()
        expectAborted(await gone, controller.signal.reason)
        await Promise.all([first, apart, across, read])
        model.write(0, pattern(1, 4 * page))
        model.write(6 * page, pattern(3, 4 * page))
        model.write(3 * page, pattern(4, 2 * page))
        expect(difference(into, model.read(0, 10 * page))).toBeNull()
      })
      expect(difference(made.readBack(), model.bytes)).toBeNull()
      expect(events.indexOf('first')).toBeLessThan(events.indexOf('across'))
      expect(events.indexOf('across')).toBeLessThan(events.indexOf('read'))
    })
  })

  test('flush and close go on after a withdrawal, and wait for what was under way', async () => {
    await onDisk(async (disk) => {
      const controller = new AbortController()
      const { requests, heard } = batch([0, 2, 4, 6])
      const done = outcome(disk.multiwrite(requests, { signal: controller.signal }))
      const flushed = disk.flush().then(() => heard.length)
      controller.abort()
      const closed = disk.close().then(() => heard.length)
      expect(await done).toBeInstanceOf(AbortError)
      expect(await flushed).toBe(4)
      expect(await closed).toBe(4)
    }, single)
  })

  test('one signal serves a thousand requests without a warning, and nothing stays on it', async () => {
    await onDisk(async (disk) => {
      const warnings: string[] = []
      const warned = (warning: Error): void => void warnings.push(String(warning))
      process.on('warning', warned)
      try {
        const controller = new AbortController()
        const { signal } = controller
        const listeners = (): number => getEventListeners(signal, 'abort').length
        const calls: Promise<unknown>[] = []
        for (let at = 0; at < 1000; at++) {
          calls.push(disk.write((at % 64) * page, pattern(at, 512), { signal }))
          if (at % 10 === 0) calls.push(disk.multiwrite([{ offset: 0, data: pattern(at, 512) }], { signal }))
          if (at % 100 === 0) calls.push(disk.read(0, Buffer.alloc(512), { signal }))
          expect(listeners()).toBeLessThanOrEqual(1)
        }
        await Promise.all(calls)
        await turn()
        expect(listeners()).toBe(0)
        // It still works.
        const { requests } = batch([0])
        const last = outcome(disk.write(0, pattern(1, page), { signal }))
        const more = outcome(disk.multiwrite(requests, { signal }))
        controller.abort()
        // The first had left when the second call came, which waits for it.
        expect(await last).toBeUndefined()
        expect(await more).toBeInstanceOf(AbortError)
        expect(listeners()).toBe(0)
        expect(warnings).toEqual([])
      } finally {
        process.removeListener('warning', warned)
      }
    })
  })
})

// Each withdrawal once looked through all that waited: with so many calls, minutes in which nothing else ran.
test.each([
  ['by one signal', false],
  ['by a signal each', true],
])('a hundred thousand calls are withdrawn together, %s', async (_, each) => {
  await withTarget(bufferedFile, 1 << 20, (made) =>
    withDisk(made, { queueDepth: 1, merge: { mode: 'off' } }, async (disk) => {
      const controllers = [new AbortController()]
      const next = (): AbortSignal => {
        if (each) controllers.push(new AbortController())
        return controllers.at(-1)!.signal
      }
      const byte = pattern(1, 1)
      const calls: Promise<unknown>[] = []
      for (let at = 0; at < 100_000; at += 2) {
        calls.push(outcome(disk.multiwrite([{ offset: 4 * at, data: byte }], { signal: next() })))
        calls.push(outcome(disk.write(4 * at + 4, byte, { signal: next() })))
      }
      for (const controller of controllers) controller.abort()
      const errors = await Promise.all(calls)
      const withdrawn = errors.filter((error) => error instanceof AbortError)
      expect(withdrawn).toHaveLength(100_000 - 1)
      expect(disk.stats.write).toMatchObject({ requests: 100_000, submissions: 1 })
    }),
  )
})
