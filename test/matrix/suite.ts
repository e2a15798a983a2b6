// What a device does, once and for all engines, targets and threads. Each case checks itself and returns a report of what
// happened: contents, errors, orders, statistics. On targets of one kind the reports must be the same whoever serves.
//
// Runs in the main thread and in workers, with and without the test runner.

import assert from 'node:assert/strict'
import { AsyncLocalStorage } from 'node:async_hooks'
import { createHash } from 'node:crypto'
import { setImmediate as turn } from 'node:timers/promises'
import { AbortError, type BlockDevice, BlockError, MultiwriteError, type OpenOptions, open } from 'multiwrite'

export interface Context {
  path: string
  /** With the engine. */
  options: OpenOptions
  /** What whole blocks are multiples of, in bytes. */
  sectorSize: number
}

/** Size of the target in bytes. */
export const size: number = 64 * 4096

/** What became of a case. */
export interface Result {
  name: string
  report?: unknown
  /** Why it failed. */
  failure?: string
}

type Case = (context: Context) => Promise<unknown>

/** The bytes of request number `index`. */
function pattern(index: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, at) => (index * 61 + at * 7 + (at >> 8) * 31 + 13) & 0xff)
}

const hashOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex').slice(0, 16)

/** An error as far as it is the same on every engine. */
function described(error: unknown, { path, options }: Context): unknown {
  if (!(error instanceof Error)) return error
  const { name, message } = error
  const { code, errno, syscall, offset, length } = error as Partial<BlockError>
  const words = message.replaceAll(path, 'PATH').replaceAll(String(options.engine), 'ENGINE')
  if (error instanceof BlockError) assert.equal(error.path, path)
  if (error instanceof BlockError && error.engine !== undefined) assert.equal(error.engine, options.engine)
  const own = error instanceof BlockError || error instanceof AbortError || error instanceof MultiwriteError
  return { name, own, code, errno, syscall, offset, length, words }
}

const outcome = (promise: Promise<unknown>): Promise<unknown> => promise.catch((error: unknown) => error)

/** Opens the target, fills it, hands it to `work`, and closes it whatever happens. */
async function onDisk<T>(
  { path, options }: Context,
  work: (disk: BlockDevice, model: Buffer) => Promise<T>,
  more: OpenOptions = {},
): Promise<T> {
  const disk = await open(path, { ...options, ...more })
  try {
    assert.equal(disk.engine.name, options.engine)
    assert.equal(disk.size, size)
    const model = Buffer.alloc(size, 0xee)
    const blank = disk.alloc(size)
    blank.fill(0xee)
    await disk.write(0, blank)
    return await work(disk, model)
  } finally {
    await disk.close()
  }
}

/** The content, by way of the device, which must be the model's. */
async function contentOf(disk: BlockDevice, model: Uint8Array): Promise<string> {
  const content = disk.alloc(size)
  await disk.read(0, content)
  const at = content.findIndex((byte, index) => byte !== model[index])
  assert.equal(at, -1, `byte ${at} is ${content[at]} instead of ${model[at]}`)
  return hashOf(content)
}

/** What was counted since the last look, without what depends on timing. */
function counting(disk: BlockDevice): () => unknown {
  const look = (): Record<string, number> => {
    const { write, read, flushes, bounced, rmw, isolated, zeroes } = disk.stats
    return {
      requests: write.requests,
      submissions: write.submissions,
      bytes: write.bytes,
      overlapBytes: write.overlapBytes,
      reads: read.requests,
      readSubmissions: read.submissions,
      readBytes: read.bytes,
      flushes,
      bounced,
      rmw,
      isolated,
      zeroes,
    }
  }
  const before = look()
  return () => Object.fromEntries(Object.entries(look()).map(([name, value]) => [name, value - before[name]!]))
}

/** Spans with all that can go wrong between two of them: apart, touching, overlapping, equal, one within the other. */
const spans: readonly (readonly [at: number, length: number])[] = [
  [8, 4],
  [0, 2],
  [2, 2],
  [10, 4],
  [9, 1],
  [9, 1],
  [20, 6],
  [21, 2],
  [19, 3],
  [40, 1],
  [30, 10],
  [50, 2],
  [3, 6],
]

export const cases: Readonly<Record<string, Case>> = {
  'a batch gives what its requests give one after another': (context) =>
    onDisk(context, async (disk, model) => {
      const reports: unknown[] = []
      // Whole blocks, and what begins and ends inside them.
      for (const unit of [context.sectorSize, 333]) {
        const counted = counting(disk)
        const answers: unknown[] = []
        const requests = spans.map(([at, length], index) => {
          const bytes = pattern(index, length * unit)
          model.set(bytes, at * unit)
          const cut = unit >> 1
          const shapes = [bytes, [bytes.subarray(0, cut), bytes.subarray(cut)], aligned(disk, bytes)]
          return {
            offset: index % 2 === 0 ? at * unit : BigInt(at * unit),
            data: shapes[index % 3]!,
            callback(error: unknown): void {
              assert.equal(answers[index], undefined)
              answers[index] = error
            },
          }
        })
        reports.push(await disk.multiwrite(requests), answers, counted(), await contentOf(disk, model))
      }
      return reports
    }),

  'callbacks of one submission run in array order': (context) =>
    onDisk(context, async (disk) => {
      const order: number[] = []
      const requests = [5, 2, 7, 0, 1, 6, 3, 4].map((at, index) => ({
        offset: at * 4096,
        data: pattern(at, 4096),
        callback: () => void order.push(index),
      }))
      await disk.multiwrite(requests)
      assert.deepEqual(order, [0, 1, 2, 3, 4, 5, 6, 7])
      return [order, disk.stats.write.submissions]
    }),

  'callbacks come after the call and before the promise': (context) =>
    onDisk(context, async (disk) => {
      const events: string[] = []
      const requests = [0, 9, 4].map((at) => ({
        offset: at * 4096,
        data: pattern(at, 4096),
        callback: () => void events.push('callback'),
      }))
      const done = disk.multiwrite(requests).then(() => void events.push('settled'))
      events.push('returned')
      await done
      assert.deepEqual(events, ['returned', 'callback', 'callback', 'callback', 'settled'])
      return events
    }),

  'single writes of a turn go out as one batch': (context) =>
    onDisk(context, async (disk, model) => {
      const counted = counting(disk)
      await Promise.all(
        [3, 1, 0, 2, 5, 4, 3, 20].map((at, index) => {
          const bytes = pattern(index, 4096)
          model.set(bytes, at * 4096)
          return disk.write(at * 4096, bytes)
        }),
      )
      const one = counted()
      for (let at = 0; at < 3; at++) {
        const bytes = pattern(at + 50, 4096)
        model.set(bytes, at * 4096)
        await disk.write(at * 4096, bytes)
      }
      return [one, counted(), await contentOf(disk, model)]
    }),

  'reads see what was written, wherever it goes': (context) =>
    onDisk(context, async (disk, model) => {
      const bytes = pattern(1, size)
      model.set(bytes)
      await disk.write(0, bytes)
      const counted = counting(disk)
      const hashes: string[] = []
      for (const [offset, length] of [
        [0, 4096],
        [8192, 3 * context.sectorSize],
        [1001, 1],
        [4095, 4098],
        [size - 777, 777],
        [size, 0],
      ] as const) {
        for (const into of [
          [Buffer.alloc(length)],
          [disk.alloc(length)],
          [Buffer.alloc(length >> 1), disk.alloc(length - (length >> 1))],
        ]) {
          await disk.read(offset, into)
          const found = Buffer.concat(into)
          assert.ok(found.equals(bytes.subarray(offset, offset + length)), `${length} bytes at ${offset}`)
          hashes.push(hashOf(found))
        }
      }
      return [hashes, counted()]
    }),

  'a batch of reads fills each one’s memory': (context) =>
    onDisk(context, async (disk) => {
      const bytes = pattern(2, size)
      await disk.write(0, bytes)
      const counted = counting(disk)
      const reports: unknown[] = []
      for (const unit of [context.sectorSize, 333]) {
        const heard: unknown[] = []
        const requests = spans.map(([at, length], index) => ({
          offset: at * unit,
          into: index % 2 === 0 ? disk.alloc(length * unit) : Buffer.alloc(length * unit),
          callback(error: unknown): void {
            heard[index] = error
          },
        }))
        reports.push(await disk.multiread(requests), heard)
        for (const { offset, into } of requests) {
          assert.ok(into.equals(bytes.subarray(offset, offset + into.length)), `at ${offset}`)
        }
      }
      return [reports, counted()]
    }),

  'overlapping calls take effect in their order': (context) =>
    onDisk(
      context,
      async (disk, model) => {
        const pending: Promise<unknown>[] = []
        for (let index = 0; index < 60; index++) {
          const unit = index % 3 === 0 ? 4096 : 1000
          const offset = ((index * 5) % 16) * unit
          const length = (1 + (index % 4)) * unit
          if (index % 5 === 4) {
            const expected = Buffer.from(model.subarray(offset, offset + length))
            const into = Buffer.alloc(length)
            pending.push(disk.read(offset, into).then(() => assert.ok(into.equals(expected), `read ${index}`)))
          } else if (index % 7 === 6) {
            model.fill(0, offset, offset + length)
            pending.push(disk.writeZeroes(offset, length))
          } else {
            const bytes = pattern(index, length)
            model.set(bytes, offset)
            pending.push(
              index % 2 === 0 ? disk.write(offset, bytes) : disk.multiwrite([{ offset, data: bytes, noMerge: true }]),
            )
          }
          if (index % 13 === 12) await turn()
        }
        await Promise.all(pending)
        return contentOf(disk, model)
      },
      { queueDepth: 4 },
    ),

  'a flush is answered after all writes before it': (context) =>
    onDisk(context, async (disk) => {
      const events: string[] = []
      const pending = [0, 5, 9].map((at) =>
        disk
          .multiwrite([{ offset: at * 4096, data: pattern(at, 4096), fua: at === 5 }])
          .then(() => events.push('write')),
      )
      await Promise.all([...pending, disk.flush().then(() => events.push('flush'))])
      assert.deepEqual(events, ['write', 'write', 'write', 'flush'])
      return [events, disk.stats.flushes]
    }),

  'close carries out what was accepted, and refuses what comes later': (context) =>
    onDisk(context, async (disk) => {
      const events: string[] = []
      for (let at = 0; at < 10; at++) void disk.write(at * 8192, pattern(at, 4096)).then(() => events.push('write'))
      const closed = disk.close()
      assert.equal(disk.close(), closed)
      const refused = await Promise.all([
        outcome(disk.write(0, pattern(0, 4096))),
        outcome(disk.read(0, Buffer.alloc(10))),
        outcome(disk.multiwrite([])),
        outcome(disk.multiread([])),
        outcome(disk.flush()),
      ])
      await closed
      assert.equal(events.length, 10)
      const errors = refused.map((error) => described(error, context))
      for (const error of errors) assert.equal((error as { code: string }).code, 'EBADF')
      return [events, errors]
    }),

  'wrong arguments are refused whole, by name': (context) =>
    onDisk(context, async (disk, model) => {
      const heard: unknown[] = []
      const good = { offset: 0, data: pattern(1, 4096), callback: (error: unknown) => void heard.push(error) }
      const wrong: unknown[] = [
        [good, { offset: size - 1, data: pattern(2, 2) }],
        [good, { offset: -1, data: pattern(2, 2) }],
        [good, { offset: 0.5, data: pattern(2, 2) }],
        [good, { offset: Number.NaN, data: pattern(2, 2) }],
        [good, { offset: 2n ** 60n, data: pattern(2, 2) }],
        [good, { offset: '0', data: pattern(2, 2) }],
        [good, { offset: 0, data: 'text' }],
        [good, { offset: 0, data: [pattern(2, 2), 7] }],
        [good, { offset: 0, data: pattern(2, 2), callback: 1 }],
        [good, null],
        'text',
      ]
      const errors: unknown[] = []
      for (const requests of wrong) {
        errors.push(described(await outcome(disk.multiwrite(requests as never)), context))
      }
      errors.push(described(await outcome(disk.write(size, pattern(1, 1))), context))
      errors.push(described(await outcome(disk.read(size - 1, Buffer.alloc(2))), context))
      errors.push(described(await outcome(disk.multiwrite([good], { speed: 1 } as never)), context))
      for (const error of errors) assert.match(String((error as { code: string }).code), /^ERR_/)
      assert.deepEqual(heard, [])
      assert.equal(disk.stats.write.submissions, 1)
      return [errors, await contentOf(disk, model)]
    }),

  'a device that was opened read-only is not written to': async (context) => {
    const content = await onDisk(context, (disk, model) => contentOf(disk, model))
    const disk = await open(context.path, { ...context.options, readOnly: true })
    try {
      const errors = [
        await outcome(disk.write(0, pattern(1, 4096))),
        await outcome(disk.multiwrite([{ offset: 0, data: pattern(1, 4096) }])),
        await outcome(disk.writeZeroes(0, 4096)),
      ].map((error) => described(error, context))
      for (const error of errors) assert.equal((error as { code: string }).code, 'EROFS')
      await disk.flush()
      assert.equal(await contentOf(disk, Buffer.alloc(size, 0xee)), content)
      return [errors, disk.stats.flushes]
    } finally {
      await disk.close()
    }
  },

  'what waits is withdrawn by a signal, what was submitted is told': (context) =>
    onDisk(
      context,
      async (disk, model) => {
        const controller = new AbortController()
        const heard: unknown[] = []
        const places = [0, 2, 4, 6, 8]
        const done = disk.multiwrite(
          places.map((at, index) => ({
            offset: at * 4096,
            data: pattern(at, 4096),
            callback(error: unknown): void {
              heard[index] = described(error, context)
            },
          })),
          { signal: controller.signal },
        )
        controller.abort('enough')
        const error = await outcome(done)
        assert.ok(error instanceof AbortError)
        const { cause, completed, failed, errors } = error
        assert.deepEqual(
          { cause, completed, failed, errors },
          { cause: 'enough', completed: 1, failed: [], errors: [] },
        )
        model.set(pattern(0, 4096), 0)
        const before = await outcome(disk.write(0, pattern(1, 1), { signal: controller.signal }))
        return [heard, described(error, context), described(before, context), await contentOf(disk, model)]
      },
      { queueDepth: 1, merge: { mode: 'off' } },
    ),

  'callbacks and promises go on in the async context of their call': (context) =>
    onDisk(context, async (disk) => {
      const store = new AsyncLocalStorage<string>()
      const heard: string[] = []
      const lane = (name: string, at: number): Promise<void> =>
        store.run(name, async () => {
          await disk.multiwrite([
            {
              offset: at * 4096,
              data: pattern(at, 4096),
              callback(): void {
                heard.push(`${name}: callback in ${store.getStore()}`)
                store.enterWith('strange')
              },
            },
          ])
          heard.push(`${name}: batch in ${store.getStore()}`)
          await disk.write(at * 4096, pattern(at, 4096))
          heard.push(`${name}: write in ${store.getStore()}`)
          await disk.read(at * 4096, Buffer.alloc(4096))
          heard.push(`${name}: read in ${store.getStore()}`)
          await disk.flush()
          heard.push(`${name}: flush in ${store.getStore()}`)
        })
      await Promise.all([lane('a', 0), lane('b', 1), lane('c', 9)])
      heard.sort()
      for (const line of heard) assert.ok(line.endsWith(` in ${line[0]}`), line)
      return heard
    }),

  'a callback that throws starves nobody, and surfaces': (context) =>
    onDisk(context, async (disk) => {
      const thrown: string[] = []
      const heard: number[] = []
      process.setUncaughtExceptionCaptureCallback((error) => void thrown.push(String(error)))
      try {
        const result = await disk.multiwrite(
          [0, 1, 2, 3].map((at) => ({
            offset: at * 4096,
            data: pattern(at, 4096),
            callback(): void {
              heard.push(at)
              if (at % 2 === 1) throw new Error(`thrown by ${at}`)
            },
          })),
        )
        await turn()
        await turn()
        assert.deepEqual(heard, [0, 1, 2, 3])
        assert.deepEqual(thrown, ['Error: thrown by 1', 'Error: thrown by 3'])
        return [result, heard, thrown]
      } finally {
        process.setUncaughtExceptionCaptureCallback(null)
      }
    }),

  'a callback may submit, and may close': (context) =>
    onDisk(context, async (disk, model) => {
      const inner: Promise<unknown>[] = []
      const events: string[] = []
      await disk.multiwrite([
        {
          offset: 0,
          data: pattern(1, 4096),
          callback(): void {
            events.push('outer')
            inner.push(
              disk.multiwrite([{ offset: 0, data: pattern(2, 4096), callback: () => void events.push('inner') }]),
              disk.write(4096, pattern(3, 4096)),
              disk.flush(),
            )
          },
        },
      ])
      await Promise.all(inner)
      model.set(pattern(2, 4096), 0)
      model.set(pattern(3, 4096), 4096)
      const content = await contentOf(disk, model)
      let closed: Promise<void> | undefined
      const result = await disk.multiwrite(
        [0, 5, 9].map((at, index) => ({
          offset: at * 4096,
          data: pattern(at, 4096),
          callback(): void {
            if (index === 0) closed = disk.close()
          },
        })),
      )
      await closed
      return [events, content, result, described(await outcome(disk.flush()), context)]
    }),

  'a queue of depth one carries out many': (context) =>
    onDisk(
      context,
      async (disk, model) => {
        const heard: unknown[] = []
        const counted = counting(disk)
        const unit = context.sectorSize === 1 ? 100 : 512
        const count = Math.floor(size / unit / 2)
        const requests = Array.from({ length: count }, (_, index) => {
          const at = ((index * 7) % count) * 2
          const bytes = pattern(index, unit)
          model.set(bytes, at * unit)
          return { offset: at * unit, data: bytes, callback: (error: unknown) => void heard.push(error) }
        })
        const result = await disk.multiwrite(requests)
        assert.equal(heard.length, count)
        assert.ok(heard.every((error) => error === null))
        return [result, counted(), await contentOf(disk, model)]
      },
      { queueDepth: 1 },
    ),

  'the modes of merging write the same': async (context) => {
    const reports: unknown[] = []
    for (const mode of ['full', 'sort', 'off'] as const) {
      const merge = { mode, maxBytes: 4 * 4096, maxSegments: 8 }
      const report = await onDisk(
        context,
        async (disk, model) => {
          const counted = counting(disk)
          const requests = spans.map(([at, length], index) => {
            const bytes = pattern(index, length * 4096)
            model.set(bytes, at * 4096)
            return { offset: at * 4096, data: bytes }
          })
          // Overlaps are serialised where they are not merged; how many runs that makes is the planner's alone.
          return [await disk.multiwrite(requests), counted(), await contentOf(disk, model)]
        },
        { merge },
      )
      reports.push(report)
    }
    return reports
  },

  'the statistics tell what was done': (context) =>
    onDisk(context, async (disk) => {
      const counted = counting(disk)
      await disk.multiwrite([])
      await disk.multiwrite([{ offset: 0, data: Buffer.alloc(0) }])
      await disk.multiwrite([0, 1, 1, 5].map((at) => ({ offset: at * 4096, data: pattern(at, 4096) })))
      await disk.write(0, disk.alloc(4096))
      await disk.write(4096, disk.alloc(4096), { fua: true })
      await disk.read(0, disk.alloc(8192))
      await disk.multiread([0, 1, 3].map((at) => ({ offset: at * 4096, into: Buffer.alloc(4096) })))
      await disk.flush()
      await disk.flush()
      await disk.writeZeroes(8192, 4096)
      const { metadata, discards } = disk.stats
      assert.equal(disk.stats.write.gapBytes, 0)
      return [counted(), metadata, discards]
    }),

  'memory of alloc is zeroed and aligned, and outlives the device': async (context) => {
    let kept: Buffer | undefined
    const lengths = await onDisk(context, async (disk) => {
      kept = disk.alloc(10)
      const buffers = [0, 1, 4096, 100_000].map((length) => disk.alloc(length))
      for (const buffer of buffers) assert.ok(buffer.every((byte) => byte === 0))
      buffers[2]!.set(pattern(4, 4096))
      const counted = counting(disk)
      await disk.write(4096, buffers[2]!)
      return [buffers.map(({ length }) => length), counted()]
    })
    kept?.fill(1)
    return lengths
  },
}

/** A copy that needs no other on its way. */
function aligned(disk: BlockDevice, bytes: Uint8Array): Buffer {
  const buffer = disk.alloc(bytes.length)
  buffer.set(bytes)
  return buffer
}

/** Runs all cases, one after another. */
export async function runAll(context: Context): Promise<Result[]> {
  const results: Result[] = []
  for (const [name, run] of Object.entries(cases)) {
    try {
      results.push({ name, report: await run(context) })
    } catch (error) {
      results.push({ name, failure: error instanceof Error ? (error.stack ?? error.message) : String(error) })
    }
  }
  return results
}
