// Bad input changes nothing: for every argument of every function the right class and code and the argument's name in the
// message, by rejection and never by a throw from a function that returns a promise; no byte changed, no callback called.

import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { type BlockDevice, BlockError, create, open } from 'multiwrite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { difference, Model, pattern } from './support/model.ts'
import {
  bufferedEngines,
  bufferedFile,
  type MadeTarget,
  temporaryDirectory,
  withDisk,
  withTarget,
} from './support/targets.ts'

const size = 1 << 16
const wrongType = { class: TypeError, code: 'ERR_INVALID_ARG_TYPE' }
const wrongValue = { class: TypeError, code: 'ERR_INVALID_ARG_VALUE' }
const outOfRange = { class: RangeError, code: 'ERR_OUT_OF_RANGE' }

interface Expected {
  class: ErrorConstructor | TypeErrorConstructor | RangeErrorConstructor
  code: string
}

/** What a call that returns a promise rejects with; a throw from the call itself fails the test. */
async function rejection(call: () => Promise<unknown>): Promise<unknown> {
  let promise: Promise<unknown> | undefined
  expect(() => {
    promise = call()
  }).not.toThrow()
  expect(promise).toBeInstanceOf(Promise)
  return promise?.then(
    (value) => {
      throw new Error(`resolved with ${String(value)}`)
    },
    (error: unknown) => error,
  )
}

function expectArgumentError(error: unknown, expected: Expected, name: string): void {
  expect(error).toBeInstanceOf(expected.class)
  expect(error).toMatchObject({ name: expected.class.name, code: expected.code })
  // The whole name: "data" must not be taken for "requests[1].data".
  const word = name.replace(/[[\].]/g, '\\$&')
  expect((error as Error).message).toMatch(new RegExp(`(^|[^\\w.])${word}($|[^\\w.[])`))
}

function detached(length = 4096): Uint8Array {
  const bytes = new Uint8Array(length)
  structuredClone(bytes.buffer, { transfer: [bytes.buffer] })
  return bytes
}

/** A view whose buffer has become too short for it: its length is 0 as if it were empty. */
function outsideOfBuffer(length = 4096): Uint8Array {
  const resizable = Reflect.construct(ArrayBuffer, [length, { maxByteLength: length }])
  const bytes = new Uint8Array(resizable, 0, length)
  resizable.resize(0)
  return bytes
}

/** Options, or a request, with a property that closes the device when it is read. */
function closing(name: 'data' | 'into' | 'fua' | 'signal', close: () => void): never {
  const value = { data: pattern(1, 9), into: Buffer.alloc(9), fua: false, signal: undefined }[name]
  const isRequest = name === 'data' || name === 'into'
  return Object.defineProperty(isRequest ? { offset: 600 } : {}, name, {
    enumerable: true,
    get() {
      close()
      return value
    },
  }) as never
}

/** What is no whole number of bytes at all, and what kind of mistake it is. */
const badNumbers: [string, unknown, Expected][] = [
  ['undefined', undefined, wrongType],
  ['null', null, wrongType],
  ['a string', '0', wrongType],
  ['an object', {}, wrongType],
  ['true', true, wrongType],
  ['NaN', Number.NaN, outOfRange],
  ['a fraction', 1.5, outOfRange],
  ['negative', -1, outOfRange],
  ['infinite', Number.POSITIVE_INFINITY, outOfRange],
  ['unsafe', 2 ** 53, outOfRange],
]
const badOffsets: [string, unknown, Expected][] = [
  ...badNumbers,
  ['a negative bigint', -1n, outOfRange],
  ['an unsafe bigint', 2n ** 53n, outOfRange],
  ['a bigint beyond 64 bits', 2n ** 64n, outOfRange],
]
const badBytes: [string, unknown, Expected][] = [
  ['undefined', undefined, wrongType],
  ['null', null, wrongType],
  ['a string', 'data', wrongType],
  ['a number', 4096, wrongType],
  ['an object', {}, wrongType],
  ['an ArrayBuffer', new ArrayBuffer(16), wrongType],
  ['a DataView', new DataView(new ArrayBuffer(16)), wrongType],
  ['another typed array', new Uint16Array(16), wrongType],
  ['an object with the prototype of one', Object.create(Buffer.prototype), wrongType],
  ['detached', detached(), wrongValue],
  ['outside of its buffer', outsideOfBuffer(), wrongValue],
]
const badFlags: [string, unknown][] = [
  ['a number', 1],
  ['a string', 'yes'],
  ['null', null],
]

describe.each(bufferedEngines)('%s: open', (engine) => {
  const refused = async (options: unknown, expected: Expected, name: string): Promise<void> => {
    await withTarget(bufferedFile, size, async (made) => {
      expectArgumentError(await rejection(() => open(made.path, options as never)), expected, name)
      expect(difference(made.readBack(), new Model(size).bytes)).toBeNull()
    })
  }

  test.each([
    ['undefined', undefined, wrongType],
    ['null', null, wrongType],
    ['a number', 3, wrongType],
    ['an object', {}, wrongType],
    ['a Buffer', Buffer.from('/dev/null'), wrongType],
    ['a string with a NUL in it', '/dev/nu\0ll', wrongValue],
  ])('path: %s', async (_, value, expected) => {
    expectArgumentError(await rejection(() => open(value as never, { engine })), expected, 'path')
  })

  test('path: a URL of another kind than file:', async () => {
    const error = await rejection(() => open(new URL('https://example.org/disk')))
    expect(error).toBeInstanceOf(TypeError)
  })

  test('path: a file: URL is fine', async () => {
    const directory = temporaryDirectory()
    try {
      const file = path.join(directory.path, 'a name with 100% of # and ü')
      fs.writeFileSync(file, Buffer.alloc(512))
      const disk = await open(pathToFileURL(file), { engine })
      expect(disk.path).toBe(file)
      expect(disk.size).toBe(512)
      await disk.close()
    } finally {
      directory.cleanup()
    }
  })

  test.each([
    ['a string', 'raw'],
    ['a number', 1],
    ['true', true],
  ])('options: %s', async (_, value) => {
    await refused(value, wrongType, 'options')
  })

  test.each(['readonly', 'Direct', 'o_direct', 'size', 'overwrite'])('an unknown option: %s', async (name) => {
    await refused({ engine, [name]: true }, wrongValue, `options.${name}`)
  })

  test('an unknown option of merge', async () => {
    await refused({ engine, merge: { mode: 'full', maxbytes: 1 } }, wrongValue, 'options.merge.maxbytes')
  })

  test.each(['readOnly', 'direct', 'exclusive', 'ordered'])('%s that is no boolean', async (name) => {
    for (const [, value] of badFlags) await refused({ engine, [name]: value }, wrongType, `options.${name}`)
  })

  test('an option that is undefined is an option that is not given', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const options = {
        format: undefined,
        readOnly: undefined,
        direct: undefined,
        exclusive: undefined,
        engine: undefined,
        queueDepth: undefined,
        merge: undefined,
        ordered: undefined,
      }
      const disk = await open(made.path, options as never)
      expect(disk).toMatchObject({ format: 'raw', readOnly: false, direct: false, size })
      await disk.close()
    })
  })

  test.each([
    ['format', 'vmdk', wrongValue],
    ['format', 42, wrongType],
    ['engine', 'uring', wrongValue],
    ['engine', 42, wrongType],
    ['merge', 'full', wrongType],
    ['merge', 1, wrongType],
  ])('%s: %s', async (name, value, expected) => {
    await refused({ [name]: value }, expected, `options.${name}`)
  })

  test.each([
    ['mode', 'all', wrongValue],
    ['mode', 1, wrongType],
    ['maxBytes', '4096', wrongType],
    ['maxBytes', 0, outOfRange],
    ['maxBytes', -1, outOfRange],
    ['maxBytes', 1.5, outOfRange],
    ['maxBytes', Number.NaN, outOfRange],
    ['maxSegments', '16', wrongType],
    ['maxSegments', 0, outOfRange],
    ['maxSegments', -1, outOfRange],
    ['maxSegments', 1.5, outOfRange],
    ['maxSegments', Number.NaN, outOfRange],
  ])('merge.%s: %s', async (name, value, expected) => {
    await refused({ engine, merge: { [name]: value } }, expected, `options.merge.${name}`)
  })

  test.each([
    ['queueDepth', '8', wrongType],
    ['queueDepth', 0, outOfRange],
    ['queueDepth', -1, outOfRange],
    ['queueDepth', 1.5, outOfRange],
    ['queueDepth', Number.NaN, outOfRange],
    ['queueDepth', Number.POSITIVE_INFINITY, outOfRange],
  ])('%s: %s', async (name, value, expected) => {
    await refused({ engine, [name]: value }, expected, `options.${name}`)
  })
})

describe.each(bufferedEngines)('%s: create', (engine) => {
  const refused = async (options: unknown, expected: Expected, name: string): Promise<void> => {
    const directory = temporaryDirectory()
    try {
      const file = path.join(directory.path, 'image')
      expectArgumentError(await rejection(() => create(file, options as never)), expected, name)
      expect(fs.readdirSync(directory.path)).toEqual([])
    } finally {
      directory.cleanup()
    }
  }

  test.each(badNumbers)('size: %s', async (_, value, expected) => {
    await refused({ format: 'raw', engine, size: value }, expected, 'options.size')
  })

  test('no options at all', async () => {
    await refused(undefined, wrongType, 'options')
    await refused('raw', wrongType, 'options')
  })

  test.each([
    ['format', 'vmdk', wrongValue],
    ['overwrite', 'yes', wrongType],
    ['overwrite', 1, wrongType],
    ['overWrite', true, wrongValue],
    ['direct', 'yes', wrongType],
    ['queueDepth', 0, outOfRange],
    ['readonly', true, wrongValue],
  ])('%s: %s', async (name, value, expected) => {
    await refused({ format: 'raw', size, engine, [name]: value }, expected, `options.${name}`)
  })

  test('path', async () => {
    for (const value of [undefined, 3, {}]) {
      const error = await rejection(() => create(value as never, { format: 'raw', size }))
      expectArgumentError(error, wrongType, 'path')
    }
  })
})

describe.each(bufferedEngines)('%s: an open device', (engine) => {
  let made: MadeTarget
  let disk: BlockDevice

  beforeAll(async () => {
    made = bufferedFile.make(size)
    disk = await open(made.path, { engine })
  })
  afterAll(async () => {
    await disk?.close()
    made?.cleanup()
  })

  const expectUntouched = async (): Promise<void> => {
    await disk.flush()
    expect(difference(made.readBack(), new Model(size).bytes)).toBeNull()
    expect(disk.stats.write).toEqual({ requests: 0, submissions: 0, bytes: 0, gapBytes: 0, overlapBytes: 0 })
  }

  /** The bad request stands between good ones, which must not be carried out. */
  const batchRefused = async (bad: unknown, expected: Expected, name: string): Promise<void> => {
    const heard: unknown[] = []
    const callback = (error: unknown): void => void heard.push(error)
    const good = (at: number): unknown => ({ offset: at * 4096, data: pattern(at, 4096), callback })
    const withCallback = typeof bad === 'object' && bad !== null ? { callback, ...bad } : bad
    const error = await rejection(() => disk.multiwrite([good(0), withCallback, good(2)] as never))
    expectArgumentError(error, expected, name)
    await new Promise(setImmediate)
    expect(heard).toEqual([])
    await expectUntouched()
  }

  const data = Buffer.alloc(512)

  describe('multiwrite', () => {
    test.each([
      ['undefined', undefined],
      ['null', null],
      ['an object', {}],
      ['a string', 'requests'],
      ['a single request', { offset: 0, data }],
      ['a Buffer', data],
      ['an iterator', [{ offset: 0, data }].values()],
    ])('requests: %s', async (_, value) => {
      expectArgumentError(await rejection(() => disk.multiwrite(value as never)), wrongType, 'requests')
      await expectUntouched()
    })

    test.each([
      ['null', null],
      ['a number', 42],
      ['a string', 'request'],
      ['undefined', undefined],
    ])('a request that is %s', async (_, value) => {
      await batchRefused(value, wrongType, 'requests[1]')
    })

    test('a hole in the array', async () => {
      const requests = [{ offset: 0, data }]
      requests[2] = { offset: 4096, data }
      expectArgumentError(await rejection(() => disk.multiwrite(requests)), wrongType, 'requests[1]')
      await expectUntouched()
    })

    test.each(badOffsets)('offset: %s', async (_, offset, expected) => {
      await batchRefused({ offset, data }, expected, 'requests[1].offset')
    })

    test.each(badBytes)('data: %s', async (_, bytes, expected) => {
      await batchRefused({ offset: 0, data: bytes }, expected, 'requests[1].data')
    })

    test.each(badBytes)('data with a piece that is %s', async (_, bytes, expected) => {
      await batchRefused({ offset: 0, data: [data, bytes, data] }, expected, 'requests[1].data[1]')
    })

    test.each([
      ['a number', 42],
      ['a string', 'callback'],
      ['an object', {}],
    ])('callback: %s', async (_, callback) => {
      await batchRefused({ offset: 0, data, callback }, wrongType, 'requests[1].callback')
    })

    test.each(badFlags)('fua: %s', async (_, fua) => {
      await batchRefused({ offset: 0, data, fua }, wrongType, 'requests[1].fua')
    })

    test.each(badFlags)('noMerge: %s', async (_, noMerge) => {
      await batchRefused({ offset: 0, data, noMerge }, wrongType, 'requests[1].noMerge')
    })

    test.each([
      ['a range that ends past the end', size - 511, data],
      ['a range that starts past the end', size + 512, data],
      ['a range far past the end', 2 ** 52, data],
      ['pieces that together end past the end', size - 512, [data, Buffer.alloc(1)]],
      ['the last safe integer', Number.MAX_SAFE_INTEGER, data],
      ['a bigint past the end', BigInt(size), data],
    ])('%s', async (_, offset, bytes) => {
      const error = await rejection(() =>
        disk.multiwrite([
          { offset: 0, data },
          { offset, data: bytes },
        ]),
      )
      expect(error).toBeInstanceOf(RangeError)
      expect(error).toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
      expect((error as Error).message).toContain('requests[1]')
      await expectUntouched()
    })

    test('the first bad request of many is named', async () => {
      const requests = Array.from({ length: 1000 }, (_, at) => ({ offset: at < 700 ? at : -at, data: Buffer.alloc(1) }))
      const error = await rejection(() => disk.multiwrite(requests))
      expectArgumentError(error, outOfRange, 'requests[700].offset')
      await expectUntouched()
    })

    test('a getter that throws', async () => {
      const thrown = new Error('from the getter')
      const request = {
        offset: 0,
        get data(): Uint8Array {
          throw thrown
        },
      }
      expect(await rejection(() => disk.multiwrite([{ offset: 0, data }, request]))).toBe(thrown)
      await expectUntouched()
    })

    test('options', async () => {
      for (const value of [42, 'options', true]) {
        const error = await rejection(() => disk.multiwrite([{ offset: 0, data }], value as never))
        expectArgumentError(error, wrongType, 'options')
      }
      const signal = await rejection(() => disk.multiwrite([{ offset: 0, data }], { signal: {} } as never))
      expectArgumentError(signal, wrongType, 'options.signal')
      const unknown = await rejection(() => disk.multiwrite([{ offset: 0, data }], { fua: true } as never))
      expectArgumentError(unknown, wrongValue, 'options.fua')
      await expectUntouched()
    })
  })

  describe('write', () => {
    test.each(badOffsets)('offset: %s', async (_, offset, expected) => {
      expectArgumentError(await rejection(() => disk.write(offset as never, data)), expected, 'offset')
      await expectUntouched()
    })

    test.each(badBytes)('data: %s', async (_, bytes, expected) => {
      expectArgumentError(await rejection(() => disk.write(0, bytes as never)), expected, 'data')
      await expectUntouched()
    })

    test.each(badBytes)('data with a piece that is %s', async (_, bytes, expected) => {
      expectArgumentError(await rejection(() => disk.write(0, [data, bytes] as never)), expected, 'data[1]')
      await expectUntouched()
    })

    test('a range past the end', async () => {
      const error = await rejection(() => disk.write(size - 511, data))
      expect(error).toBeInstanceOf(RangeError)
      expect(error).toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
      expect((error as Error).message).toMatch(/offset|data/)
      await expectUntouched()
    })

    test('options', async () => {
      for (const value of [42, 'options', true]) {
        expectArgumentError(await rejection(() => disk.write(0, data, value as never)), wrongType, 'options')
      }
      for (const [, fua] of badFlags) {
        expectArgumentError(await rejection(() => disk.write(0, data, { fua } as never)), wrongType, 'options.fua')
      }
      const signal = await rejection(() => disk.write(0, data, { signal: 1 } as never))
      expectArgumentError(signal, wrongType, 'options.signal')
      const unknown = await rejection(() => disk.write(0, data, { FUA: true } as never))
      expectArgumentError(unknown, wrongValue, 'options.FUA')
      await expectUntouched()
    })

    test('a refused write does not keep back what was gathered with it', async () => {
      await withTarget(bufferedFile, size, async (made) => {
        const model = new Model(size)
        model.write(0, pattern(1, 100))
        model.write(100, pattern(2, 100))
        await withDisk(made, { engine }, async (disk) => {
          const first = disk.write(0, pattern(1, 100))
          const bad = rejection(() => disk.write(-1, pattern(9, 100)))
          const second = disk.write(100, pattern(2, 100))
          await Promise.all([first, second])
          expectArgumentError(await bad, outOfRange, 'offset')
        })
        expect(difference(made.readBack(), model.bytes)).toBeNull()
      })
    })
  })

  describe('read', () => {
    const unread = (): Buffer => Buffer.alloc(512, 0x11)

    test.each(badOffsets)('offset: %s', async (_, offset, expected) => {
      const into = unread()
      expectArgumentError(await rejection(() => disk.read(offset as never, into)), expected, 'offset')
      expect(difference(into, unread())).toBeNull()
    })

    test.each(badBytes)('into: %s', async (_, bytes, expected) => {
      expectArgumentError(await rejection(() => disk.read(0, bytes as never)), expected, 'into')
    })

    test('a range past the end', async () => {
      const into = unread()
      const error = await rejection(() => disk.read(size - 511, into))
      expect(error).toBeInstanceOf(RangeError)
      expect(error).toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
      expect(difference(into, unread())).toBeNull()
    })

    test('options', async () => {
      expectArgumentError(await rejection(() => disk.read(0, unread(), 42 as never)), wrongType, 'options')
      const signal = await rejection(() => disk.read(0, unread(), { signal: 1 } as never))
      expectArgumentError(signal, wrongType, 'options.signal')
      const unknown = await rejection(() => disk.read(0, unread(), { fua: true } as never))
      expectArgumentError(unknown, wrongValue, 'options.fua')
    })
  })

  describe('alloc', () => {
    test.each(badNumbers)('size: %s', (_, value, expected) => {
      let error: unknown
      try {
        disk.alloc(value as never)
      } catch (thrown) {
        error = thrown
      }
      expectArgumentError(error, expected, 'size')
    })

    test('gives zeroed, aligned, shared memory of any size', () => {
      for (const length of [0, 1, 512, 4096, 5000, 1 << 20]) {
        const buffer = disk.alloc(length)
        expect(Buffer.isBuffer(buffer)).toBe(true)
        expect(buffer.length).toBe(length)
        expect(buffer.buffer).toBeInstanceOf(SharedArrayBuffer)
        expect(difference(buffer, Buffer.alloc(length))).toBeNull()
        buffer.fill(0xff)
      }
    })

    test('gives memory that no other living buffer has', () => {
      const buffers = Array.from({ length: 100 }, (_, index) => disk.alloc(1000 + index))
      for (const [index, buffer] of buffers.entries()) buffer.fill(index)
      for (const [index, buffer] of buffers.entries())
        expect(difference(buffer, Buffer.alloc(1000 + index, index))).toBeNull()
    })
  })
})

describe.each(bufferedEngines)('%s: a closed device', (engine) => {
  test('refuses every operation with EBADF and says why', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const disk = await open(made.path, { engine })
      await disk.close()
      const heard: unknown[] = []
      const callback = (error: unknown): void => void heard.push(error)
      const calls: (() => Promise<unknown>)[] = [
        () => disk.multiwrite([{ offset: 0, data: pattern(1, 512), callback }]),
        () => disk.write(0, pattern(1, 512)),
        () => disk.read(0, Buffer.alloc(512)),
        () => disk.flush(),
        () => disk.refresh(),
      ]
      for (const call of calls) {
        const error = await rejection(call)
        expect(error).toBeInstanceOf(BlockError)
        expect(error).toMatchObject({ code: 'EBADF', path: made.path })
        expect((error as Error).message).toContain('closed')
      }
      expect(heard).toEqual([])
      expect(difference(made.readBack(), new Model(size).bytes)).toBeNull()
    })
  })

  // What such a call asked for was sent after the descriptor was gone.
  test('refuses what closes it while its arguments are read', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      for (const readOnly of [false, true]) {
        const calls: ((disk: BlockDevice, close: () => void) => Promise<unknown>)[] = [
          (disk, close) => disk.multiread([{ offset: 0, into: Buffer.alloc(9) }, closing('into', close)]),
          (disk, close) => disk.read(0, Buffer.alloc(9), closing('signal', close)),
        ]
        if (!readOnly) {
          calls.push(
            (disk, close) => disk.multiwrite([{ offset: 0, data: pattern(1, 512) }, closing('data', close)]),
            (disk, close) => disk.write(0, pattern(1, 512), closing('fua', close)),
            (disk, close) => disk.writeZeroes(0, 512, closing('fua', close)),
          )
        }
        for (const call of calls) {
          const disk = await open(made.path, { engine, readOnly })
          const error = await rejection(() => call(disk, () => void disk.close()))
          expect(error).toBeInstanceOf(BlockError)
          expect(error).toMatchObject({ code: 'EBADF', path: made.path })
          await disk.close()
          expect(difference(made.readBack(), new Model(size).bytes)).toBeNull()
        }
      }
    })
  })

  test('refuses from the moment close is called', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const disk = await open(made.path, { engine })
      const closed = disk.close()
      expect(await rejection(() => disk.write(0, pattern(1, 512)))).toMatchObject({ code: 'EBADF' })
      expect(await rejection(() => disk.flush())).toMatchObject({ code: 'EBADF' })
      await closed
      expect(difference(made.readBack(), new Model(size).bytes)).toBeNull()
    })
  })

  test('a second close returns the promise of the first, before and after it resolves', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const disk = await open(made.path, { engine })
      const first = disk.close()
      expect(disk.close()).toBe(first)
      await expect(first).resolves.toBeUndefined()
      expect(disk.close()).toBe(first)
      await disk[Symbol.asyncDispose]()
    })
  })

  test('disposing of a device closes it', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const disk = await open(made.path, { engine })
      await disk[Symbol.asyncDispose]()
      expect(await rejection(() => disk.flush())).toMatchObject({ code: 'EBADF' })
    })
  })

  test('memory from alloc stays valid', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      const disk = await open(made.path, { engine })
      const buffer = disk.alloc(8192).fill(7)
      await disk.write(0, buffer)
      await disk.close()
      expect(difference(buffer, Buffer.alloc(8192, 7))).toBeNull()
      buffer.fill(8)
      expect(buffer[8191]).toBe(8)
    })
  })
})

describe.each(bufferedEngines)('%s: a read-only device', (engine) => {
  test('refuses writes with EROFS, and reads', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      await withDisk(made, { engine, readOnly: true }, async (disk) => {
        expect(disk.readOnly).toBe(true)
        const heard: unknown[] = []
        const callback = (error: unknown): void => void heard.push(error)
        const calls: (() => Promise<unknown>)[] = [
          () => disk.multiwrite([{ offset: 0, data: pattern(1, 512), callback }]),
          () => disk.write(0, pattern(1, 512)),
        ]
        for (const call of calls) {
          const error = await rejection(call)
          expect(error).toBeInstanceOf(BlockError)
          expect(error).toMatchObject({ code: 'EROFS', path: made.path })
        }
        expect(heard).toEqual([])
        const into = Buffer.alloc(1000)
        await disk.read(77, into)
        expect(difference(into, new Model(1000).bytes)).toBeNull()
        await disk.flush()
      })
      expect(difference(made.readBack(), new Model(size).bytes)).toBeNull()
    })
  })
})
