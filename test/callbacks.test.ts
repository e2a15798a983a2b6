// Each request is answered exactly once, never early, never inside the call; and a callback is user code: it may throw,
// submit, and close, in the context of its own call.

import { AsyncLocalStorage } from 'node:async_hooks'
import fs from 'node:fs'
import fc from 'fast-check'
import { type BlockDevice, BlockError } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { runChild } from './support/child.ts'
import { difference, Model, pattern } from './support/model.ts'
import {
  bufferedEngines,
  bufferedFile,
  eachTarget,
  loop512,
  patience,
  withDisk,
  withTarget,
} from './support/targets.ts'

const size = 1 << 18
const page = 4096

eachTarget([bufferedFile, loop512], (target, engine) => {
  const onDisk = (work: (disk: BlockDevice) => Promise<void>): Promise<void> =>
    withTarget(target, size, (made) => withDisk(made, { engine }, work))

  test('every callback runs once, after the call has returned and before the promise settles', async () => {
    await onDisk(async (disk) => {
      const events: string[] = []
      const requests = [3, 1, 2, 9, 0, 20].map((at) => ({
        offset: at * page,
        data: pattern(at, page),
        callback: (error: Error | null) => void events.push(`${at} ${error}`),
      }))
      const done = disk.multiwrite(requests)
      const settled = done.then(() => void events.push('settled'))
      events.push('returned')
      await settled
      // A late second answer would come within a turn or two.
      for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate)
      expect(events[0]).toBe('returned')
      expect(events.at(-1)).toBe('settled')
      expect(events.slice(1, -1).sort()).toEqual(['0 null', '1 null', '2 null', '20 null', '3 null', '9 null'])
    })
  })

  test('callbacks of one submission run in array order, whatever their offsets', async () => {
    await onDisk(async (disk) => {
      const order: number[] = []
      const places = [5, 2, 7, 0, 1, 6, 3, 4]
      await disk.multiwrite(
        places.map((place, index) => ({
          offset: place * page,
          data: pattern(place, page),
          callback: () => void order.push(index),
        })),
      )
      expect(disk.stats.write.submissions).toBe(1)
      expect(order).toEqual([0, 1, 2, 3, 4, 5, 6, 7])
    })
  })

  test('a request hidden by later ones is answered with those that hide it, in array order', async () => {
    await onDisk(async (disk) => {
      const order: string[] = []
      const request = (name: string, at: number, pages: number) => ({
        offset: at * page,
        data: pattern(at, pages * page),
        callback: (error: Error | null) => void order.push(`${name} ${error}`),
      })
      await disk.multiwrite([request('hidden', 1, 2), request('left', 0, 2), request('right', 2, 2)])
      expect(disk.stats.write.submissions).toBe(1)
      expect(order).toEqual(['hidden null', 'left null', 'right null'])
    })
  })

  test('requests without data are answered, later, without any I/O', async () => {
    await onDisk(async (disk) => {
      const events: string[] = []
      const done = disk.multiwrite([
        { offset: page, data: Buffer.alloc(0), callback: (error) => void events.push(`empty ${error}`) },
        { offset: 0, data: [], callback: (error) => void events.push(`none ${error}`) },
        { offset: 0, data: [Buffer.alloc(0), Buffer.alloc(0)], callback: (error) => void events.push(`two ${error}`) },
      ])
      events.push('returned')
      await expect(done).resolves.toEqual({ requests: 3, failed: 0 })
      expect(events).toEqual(['returned', 'empty null', 'none null', 'two null'])
      expect(disk.stats.write).toMatchObject({ requests: 3, submissions: 0, bytes: 0 })
    })
  })

  test('requests without data among others are answered too', async () => {
    await onDisk(async (disk) => {
      const heard: string[] = []
      await disk.multiwrite([
        { offset: 0, data: Buffer.alloc(0), callback: () => void heard.push('first') },
        { offset: 0, data: pattern(1, page), callback: () => void heard.push('second') },
        { offset: page, data: [], callback: () => void heard.push('third') },
      ])
      expect(heard.sort()).toEqual(['first', 'second', 'third'])
      expect(disk.stats.write.submissions).toBe(1)
    })
  })

  test('the callback is given the very object that was passed, with whatever else it carries', async () => {
    class Page {
      readonly data: Uint8Array
      readonly offset: number
      readonly label: string
      heard: unknown[] = []
      constructor(at: number) {
        this.offset = at * page
        this.data = pattern(at, page)
        this.label = `page ${at}`
      }
      callback(error: Error | null, request: this): void {
        this.heard.push([error, request, request.label])
      }
    }
    await onDisk(async (disk) => {
      const requests = [new Page(0), new Page(1), new Page(7)]
      await disk.multiwrite(requests)
      for (const request of requests) {
        expect(request.heard).toHaveLength(1)
        const [error, heard, label] = request.heard[0] as [unknown, unknown, unknown]
        expect(error).toBeNull()
        expect(heard).toBe(request)
        expect(label).toBe(request.label)
      }
    })
  })

  test('a callback may submit, and what it submits is answered later', async () => {
    await withTarget(target, size, async (made) => {
      const model = new Model(size)
      await withDisk(made, { engine }, async (disk) => {
        const events: string[] = []
        const inner: Promise<unknown>[] = []
        model.write(0, pattern(1, page))
        model.write(page, pattern(2, page))
        model.write(0, pattern(3, page))
        model.write(2 * page, pattern(4, page))
        await disk.multiwrite([
          {
            offset: 0,
            data: pattern(1, page),
            callback() {
              events.push('outer 1')
              const again = { offset: 0, data: pattern(3, page), callback: () => void events.push('inner') }
              inner.push(disk.multiwrite([again]), disk.write(2 * page, pattern(4, page)))
              events.push('outer 1 returns')
            },
          },
          { offset: page, data: pattern(2, page), callback: () => void events.push('outer 2') },
        ])
        await Promise.all(inner)
        expect(events).toHaveLength(4)
        expect(events.slice(0, 2)).toEqual(['outer 1', 'outer 1 returns'])
        expect(events.indexOf('inner')).toBeGreaterThan(1)
      })
      expect(difference(made.readBack(), model.bytes)).toBeNull()
    })
  })

  test('chains of batches, each submitted by a callback of the last', async () => {
    await onDisk(async (disk) => {
      const length = 2000
      let depth = 0
      let deepest = 0
      let done = 0
      await new Promise<void>((resolve) => {
        const next = (): void => {
          const callback = (): void => {
            depth++
            deepest = Math.max(deepest, depth)
            if (++done === length) resolve()
            else next()
            depth--
          }
          void disk.multiwrite([{ offset: (done % 8) * page, data: Buffer.alloc(page, done), callback }])
        }
        next()
      })
      expect(done).toBe(length)
      expect(deepest).toBe(1)
    })
  })

  test('a callback may close: its batch is answered, what comes later is refused, and close resolves', async () => {
    await withTarget(target, size, async (made) => {
      const model = new Model(size)
      await withDisk(made, { engine }, async (disk) => {
        const heard: unknown[] = []
        let closed: Promise<void> | undefined
        let refused: Promise<unknown> | undefined
        const requests = [0, 1, 8, 9, 16].map((at, index) => {
          model.write(at * page, pattern(at, page))
          return {
            offset: at * page,
            data: pattern(at, page),
            callback(error: Error | null): void {
              heard.push(error)
              if (index !== 0) return
              closed = disk.close()
              refused = disk.write(0, pattern(99, page)).catch((error: unknown) => error)
            },
          }
        })
        await expect(disk.multiwrite(requests)).resolves.toEqual({ requests: 5, failed: 0 })
        expect(heard).toEqual([null, null, null, null, null])
        expect(await refused).toBeInstanceOf(BlockError)
        expect(await refused).toMatchObject({ code: 'EBADF' })
        await expect(closed).resolves.toBeUndefined()
      })
      expect(difference(made.readBack(), model.bytes)).toBeNull()
    })
  })

  test('callbacks run in the async context of their own call', async () => {
    await onDisk(async (disk) => {
      const context = new AsyncLocalStorage<string>()
      const heard: string[] = []
      const submit = (name: string, at: number): Promise<unknown> =>
        context.run(name, () =>
          disk.multiwrite(
            [0, 1].map((index) => ({
              offset: (at + index) * page,
              data: pattern(at, page),
              callback: () => void heard.push(`${name}${index} in ${context.getStore()}`),
            })),
          ),
        )
      await Promise.all([submit('a', 0), submit('b', 2), submit('c', 4), submit('d', 20)])
      await disk.multiwrite([
        { offset: 0, data: pattern(1, page), callback: () => void heard.push(`e in ${context.getStore()}`) },
      ])
      expect(heard.sort()).toEqual(
        ['a', 'b', 'c', 'd'].flatMap((name) => [`${name}0 in ${name}`, `${name}1 in ${name}`]).concat('e in undefined'),
      )
    })
  })

  test('a context that a callback enters is not seen by the next callback', async () => {
    await onDisk(async (disk) => {
      const context = new AsyncLocalStorage<string>()
      const heard: (string | undefined)[] = []
      await context.run('own', () =>
        disk.multiwrite(
          [0, 1, 9].map((at) => ({
            offset: at * page,
            data: pattern(at, page),
            callback(): void {
              heard.push(context.getStore())
              context.enterWith('entered')
            },
          })),
        ),
      )
      expect(heard).toEqual(['own', 'own', 'own'])
      expect(context.getStore()).toBeUndefined()
    })
  })

  test('promises go on in the async context of whoever waits', async () => {
    await onDisk(async (disk) => {
      const context = new AsyncLocalStorage<string>()
      const heard: (string | undefined)[] = []
      const lane = (name: string, at: number): Promise<void> =>
        context.run(name, async () => {
          await disk.write(at * page, pattern(at, page))
          heard.push(context.getStore())
          await disk.read(at * page, Buffer.alloc(page))
          heard.push(context.getStore())
        })
      await Promise.all([lane('a', 0), lane('b', 1), lane('c', 9)])
      expect(heard.sort()).toEqual(['a', 'a', 'b', 'b', 'c', 'c'])
    })
  })
})

describe.each(bufferedEngines)('%s: the moment of the answer', (engine) => {
  test('when a callback runs, every byte of its range is already what the batch leaves there', async () => {
    const space = 3000
    await withTarget(bufferedFile, space, async (made) => {
      const descriptor = fs.openSync(made.path, 'r')
      try {
        const model = new Model(space)
        const batches = fc.array(
          fc.record({ offset: fc.integer({ min: 0, max: space - 400 }), length: fc.integer({ min: 0, max: 400 }) }),
          { minLength: 1, maxLength: 20 },
        )
        const limits = fc.record({
          maxBytes: fc.integer({ min: 50, max: 1000 }),
          maxSegments: fc.integer({ min: 1, max: 8 }),
        })
        const property = fc.asyncProperty(batches, limits, async (batch, merge) => {
          const early: string[] = []
          await withDisk(made, { engine, merge: { mode: 'full', ...merge } }, async (disk) => {
            for (const [index, { offset, length }] of batch.entries()) model.write(offset, pattern(index, length))
            await disk.multiwrite(
              batch.map(({ offset, length }, index) => ({
                offset,
                data: pattern(index, length),
                callback(): void {
                  const actual = Buffer.alloc(length)
                  fs.readSync(descriptor, actual, 0, length, offset)
                  const wrong = difference(actual, model.read(offset, length))
                  if (wrong !== null) early.push(`request ${index}: ${wrong}`)
                },
              })),
            )
          })
          expect(early).toEqual([])
        })
        await fc.assert(property, { numRuns: 200 * patience })
      } finally {
        fs.closeSync(descriptor)
      }
    })
  })
})

describe.each(bufferedEngines)('%s: callbacks that throw', (engine) => {
  const script = (handler: string): string => `
    import { open } from 'multiwrite'
    const thrown = []
    ${handler}
    const disk = await open(process.env.TARGET, { engine: '${engine}' })
    const heard = []
    const requests = [0, 1, 2, 3, 40].map((at) => ({
      offset: at * 4096,
      data: Buffer.alloc(4096, at + 1),
      callback(error) {
        heard.push(at)
        if (at === 1 || at === 3) throw new Error('thrown by ' + at)
      },
    }))
    const result = await disk.multiwrite(requests)
    const atSettlement = heard.length
    await disk.write(8 * 4096, Buffer.alloc(4096, 77))
    await disk.close()
    await new Promise(setImmediate)
    console.log(JSON.stringify({ heard: heard.sort((a, b) => a - b), thrown, result, atSettlement }))
  `

  test('starve no sibling, surface once each as uncaught exceptions, and leave the promise alone', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const handler = `process.on('uncaughtException', (error, origin) => thrown.push(origin + ': ' + error.message))`
      const child = await runChild(script(handler), { env: { TARGET: made.path } })
      expect(child.stderr).toBe('')
      expect(JSON.parse(child.stdout)).toEqual({
        heard: [0, 1, 2, 3, 40],
        thrown: ['uncaughtException: thrown by 1', 'uncaughtException: thrown by 3'],
        result: { requests: 5, failed: 0 },
        atSettlement: 5,
      })
      expect(child.code).toBe(0)
      const content = made.readBack()
      expect([0, 1, 2, 3, 40, 8].map((at) => content[at * 4096])).toEqual([1, 2, 3, 4, 41, 77])
    })
  })

  test('end the process as any uncaught exception does where nobody handles it', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const child = await runChild(script(''), { env: { TARGET: made.path } })
      expect(child.signal).toBeNull()
      expect(child.code).not.toBe(0)
      expect(child.stdout).toBe('')
      expect(child.stderr).toContain('Error: thrown by 1')
    })
  })
})
