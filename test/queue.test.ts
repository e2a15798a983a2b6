// Who may go past whom on the way to the engine: a request that can't go holds up nobody who can, and nobody waits for ever.
// The engine is one that does what the test says, when it says so; gate, batches and staging memory are the real ones.

import { describe, expect, test } from 'vitest'
import { Batch } from '../lib/batch.ts'
import { Blocks } from '../lib/blocks.ts'
import { Durability } from '../lib/durability.ts'
import type { Engine, Operation } from '../lib/engine.ts'
import { Gate } from '../lib/gate.ts'
import { alignedBuffer, PIECE_MAX, threadStaging } from '../lib/memory.ts'
import { OP } from '../lib/native.ts'
import { Queue } from '../lib/queue.ts'
import { Collector } from '../lib/requests.ts'
import { newCounters } from '../lib/stats.ts'
import { patience } from './support/targets.ts'

const MiB = 1 << 20
const BLOCK = 512

interface Sent {
  operation: Operation
  offset: number
  length: number
  isWrite: boolean
}

class ManualEngine {
  readonly sent: Sent[] = []
  looks = 0
  #stalled: (() => void)[] = []
  #send: (() => void)[] = []
  #tell: (() => void)[] = []

  hasSlot = (): boolean => true
  #length = 0
  /** How many were handed over by each call. */
  readonly calls: number[] = []
  #handedOver = 0

  commit(): void {
    if (this.#added > this.#handedOver) this.calls.push(this.#added - this.#handedOver)
    this.#handedOver = this.#added
  }

  #added = 0

  /** Called for each look at memory that turns out to need a copy. */
  rewind(): void {
    this.looks++
  }

  begin(): void {
    this.#length = 0
  }

  vectorOf(_view: Uint8Array, _start: number, length: number): void {
    this.#length += length
  }

  vectorIn(_region: number, _start: number, length: number): void {
    this.#length += length
  }

  add(operation: Operation, op: number, _file: number, offset: number): void {
    this.#added++
    this.sent.push({ operation, offset, length: this.#length, isWrite: op === OP.write })
  }

  stall(pump: () => void): void {
    this.#stalled.push(pump)
  }

  afterDrain(send: () => void, tell: () => void): void {
    this.#send.push(send)
    this.#tell.push(tell)
  }

  get offsets(): number[] {
    return this.sent.map(({ offset }) => offset).sort((a, b) => a - b)
  }

  /** The kernel's answer to what is in flight at `offset`. */
  settle(offset: number, result: number): void {
    this.settleAt(
      this.sent.findIndex((one) => one.offset === offset),
      result,
    )
  }

  settleAt(index: number, result: number): void {
    const [{ operation }] = this.sent.splice(index, 1) as [Sent]
    operation.settle(result)
    for (const list of [this.#stalled, this.#send, this.#tell]) for (const call of list.splice(0)) call()
  }
}

class Device {
  readonly engine = new ManualEngine()
  readonly answers: string[] = []
  readonly #blocks: Blocks
  readonly #gate: Gate
  readonly #queue: Queue
  readonly #size: number

  /** @param size of a file that is opened with O_DIRECT: what is over its last block is its tail */
  constructor(size: number, depth: number) {
    this.#size = size
    this.#blocks = new Blocks(BLOCK, true, true)
    this.#blocks.size = size
    this.#gate = new Gate(true, this.#blocks)
    const target = {
      file: 1,
      direct: true,
      alignment: BLOCK,
      memoryAlignment: BLOCK,
      kernelMerges: true,
      tailFile: 2,
      size,
      tail: this.#blocks.tail,
    }
    const engine = this.engine as unknown as Engine
    this.#queue = new Queue(
      engine,
      threadStaging('path'),
      this.#gate,
      target,
      depth,
      true,
      newCounters(),
      null,
      () => undefined,
    )
  }

  /** Writes memory to places, as one batch. */
  write(...requests: { offset: number; data: Uint8Array }[]): void {
    const collector = new Collector(requests.length, false)
    for (const { offset, data } of requests) collector.add(offset, data, 0, this.#size)
    const context = {
      path: 'path',
      engine: 'manual',
      mode: 'full' as const,
      limits: () => ({ maxBytes: PIECE_MAX, maxSegments: 64, alignment: BLOCK, tail: this.#blocks.tail }),
      mayFill: null,
      counters: newCounters(),
      durability: new Durability(() => undefined),
    }
    const answer = (owner: number, error: Error | null): void => {
      this.answers.push(`${requests[owner]!.offset}: ${error === null ? 'done' : error.message.slice(0, 3)}`)
    }
    const listener = { answer, finished: () => undefined }
    this.#queue.enqueue(this.#gate.admit(new Batch(collector.finish([]), context, listener, null)))
    this.#queue.pump()
  }
}

/** Memory that the kernel may be shown as it is, and memory that must be copied. */
const ours = (length: number): Uint8Array => alignedBuffer(length, 4096, 'path')
const foreign = (length: number): Uint8Array => Buffer.alloc(length)

describe('without memory to copy into', () => {
  const pieces = 32

  test('what needs none goes by, and those that need some have it in their order', () => {
    const device = new Device(1 << 30, 256)
    const { engine } = device
    for (let at = 0; at < pieces; at++) device.write({ offset: at * 2 * MiB, data: foreign(MiB) })
    expect(engine.sent).toHaveLength(pieces)
    const [large, small, free, late] = [500, 502, 504, 506].map((place) => place * MiB) as [
      number,
      number,
      number,
      number,
    ]
    device.write({ offset: large, data: foreign(MiB) })
    device.write({ offset: small, data: foreign(4096) })
    device.write({ offset: free, data: ours(4096) })
    expect(engine.offsets.slice(pieces)).toEqual([free])
    // Room for the small one would be there if the large one had not come before it.
    const staging = threadStaging('path')
    engine.settle(0, MiB)
    expect(engine.offsets.slice(pieces - 1)).toEqual([large, free])
    device.write({ offset: late, data: ours(4096) })
    expect(engine.offsets.slice(pieces - 1)).toEqual([large, free, late])
    engine.settle(2 * MiB, MiB)
    expect(engine.offsets.slice(pieces - 2)).toEqual([large, small, free, late])
    while (engine.sent.length > 0)
      engine.settle(engine.sent[0]!.offset, engine.sent[0]!.offset < large + MiB ? MiB : 4096)
    expect(device.answers).toHaveLength(pieces + 4)
    const taken = Array.from({ length: pieces }, () => staging.take(MiB))
    expect(taken).not.toContain(-1)
    for (const start of taken) staging.give(start, MiB)
  })

  test('who found none has it before who came later', () => {
    const device = new Device(1 << 30, pieces + 1)
    const { engine } = device
    const [large, small] = [500 * MiB, 502 * MiB]
    for (let at = 0; at < pieces; at++) device.write({ offset: at * 2 * MiB, data: foreign(MiB) })
    device.write({ offset: large, data: foreign(MiB) })
    device.write({ offset: 400 * MiB, data: ours(4096) })
    device.write({ offset: small, data: foreign(4096) })
    expect(engine.offsets.slice(pieces)).toEqual([400 * MiB])
    engine.settle(0, MiB)
    expect(engine.offsets.slice(pieces - 1)).toEqual([400 * MiB, large])
    while (engine.sent.length > 0) {
      const { offset } = engine.sent[0]!
      engine.settle(offset, offset === 400 * MiB || offset === small ? 4096 : MiB)
    }
    expect(device.answers).toHaveLength(pieces + 3)
  })

  test('thousands that need some wait, and each is looked at once until there is some', () => {
    const device = new Device(2 ** 40, 256)
    const { engine } = device
    const count = 3000
    for (let at = 0; at < pieces; at++) device.write({ offset: at * 2 * MiB, data: foreign(MiB) })
    for (let at = 0; at < count; at++) device.write({ offset: (1000 + at) * MiB, data: foreign(4096) })
    const free = 100_000 * MiB
    device.write({ offset: free, data: ours(4096) })
    expect(engine.offsets.slice(pieces)).toEqual([free])
    const order: number[] = []
    for (let at = 0; at < pieces; at++) engine.settle(at * 2 * MiB, MiB)
    while (engine.sent.length > 0) {
      const { offset } = engine.sent[0]!
      if (offset !== free) order.push(offset)
      engine.settle(offset, 4096)
    }
    expect(order).toEqual(Array.from({ length: count }, (_, at) => (1000 + at) * MiB))
    expect(device.answers).toHaveLength(pieces + count + 1)
    // Once to find out, once to go, and for the first in line once per call.
    expect(engine.looks).toBeLessThan(4 * (pieces + count))
  })
})

describe('the tail of a file, which goes through the page cache', () => {
  const size = 64 * MiB + 100

  test('waits for what is near it, and keeps away what is near it, but nothing else', () => {
    const device = new Device(size, 64)
    const { engine } = device
    const tail = { offset: 64 * MiB, data: foreign(100) }
    const near = 64 * MiB - 4096
    // The folio of the page cache that has the tail begins there.
    const file = new Device(63 * MiB + 100, 64)
    file.write({ offset: 63 * MiB - 4096, data: ours(4096) })
    file.write({ offset: 63 * MiB, data: foreign(100) })
    expect(file.engine.offsets).toEqual([63 * MiB - 4096])
    file.write({ offset: 62 * MiB, data: ours(4096) })
    file.write({ offset: 62 * MiB - 4096, data: ours(4096) })
    // What came after the tail and is near it does not go by: the tail would wait for ever.
    expect(file.engine.offsets).toEqual([62 * MiB - 4096, 63 * MiB - 4096])
    file.engine.settle(63 * MiB - 4096, 4096)
    expect(file.engine.offsets).toEqual([62 * MiB - 4096, 63 * MiB])
    file.engine.settle(63 * MiB, 100)
    expect(file.engine.offsets).toEqual([62 * MiB - 4096, 62 * MiB])
    // A tail that begins a folio shares it with nothing.
    device.write({ offset: near, data: ours(4096) })
    device.write(tail)
    expect(engine.offsets).toEqual([near, 64 * MiB])
  })
})

describe('requests of a failed run, one by one', () => {
  test('wait until nothing touches them, and what touches neither goes by', () => {
    const device = new Device(1 << 30, 64)
    const { engine } = device
    device.write({ offset: 8192, data: ours(4096) }, { offset: 12_288, data: ours(4096) })
    device.write({ offset: 16_384, data: ours(4096) })
    device.write({ offset: 4096, data: ours(4096) })
    expect(engine.offsets).toEqual([4096, 8192, 16_384])
    engine.settle(8192, -5)
    // The last of the failed run would be next, but touches what is in flight.
    expect(engine.offsets).toEqual([4096, 16_384])
    device.write({ offset: MiB, data: ours(4096) })
    expect(engine.offsets).toEqual([4096, 16_384, MiB])
    engine.settle(16_384, 4096)
    expect(engine.offsets).toEqual([4096, 12_288, MiB])
    // Beside it, where it would fail with it, nobody is let in.
    device.write({ offset: 16_384, data: ours(4096) })
    device.write({ offset: 2 * MiB, data: ours(4096) })
    expect(engine.offsets).toEqual([4096, 12_288, MiB, 2 * MiB])
    engine.settle(12_288, -5)
    expect(engine.offsets).toEqual([4096, 16_384, MiB, 2 * MiB])
    engine.settle(4096, 4096)
    engine.settle(8192, 4096)
    for (const { offset } of [...engine.sent]) engine.settle(offset, 4096)
    expect(device.answers).toContain('12288: EIO')
    expect(device.answers.filter((answer) => answer.endsWith('done'))).toHaveLength(6)
  })

  test('what would be beside one that waits does not go by: it would wait for ever', () => {
    const device = new Device(1 << 30, 64)
    const { engine } = device
    const [left, middle, right] = [4096, 8192, 12_288].map((offset) => ({ offset, data: ours(4096) })) as [
      { offset: number; data: Uint8Array },
      { offset: number; data: Uint8Array },
      { offset: number; data: Uint8Array },
    ]
    device.write(left)
    device.write(middle)
    device.write(right)
    // Those after them in the same places.
    device.write(left)
    device.write(right)
    engine.settle(middle.offset, -5)
    expect(engine.offsets).toEqual([left.offset, right.offset])
    engine.settle(right.offset, 4096)
    expect(engine.offsets).toEqual([left.offset])
    engine.settle(left.offset, 4096)
    expect(engine.offsets).toEqual([middle.offset])
    engine.settle(middle.offset, 4096)
    expect(engine.offsets).toEqual([left.offset, right.offset])
  })

  test('many that wait keep everybody waiting, and all have their turn', () => {
    const device = new Device(1 << 30, 4096)
    const { engine } = device
    const count = 50
    for (let at = 0; at < count; at++) {
      const offset = at * MiB
      device.write({ offset, data: ours(4096) }, { offset: offset + 4096, data: ours(4096) })
      device.write({ offset: offset + 8192, data: ours(4096) })
    }
    for (let at = 0; at < count; at++) engine.settle(at * MiB, -5)
    expect(engine.sent.length).toBeLessThanOrEqual(count)
    device.write({ offset: 500 * MiB, data: ours(4096) })
    expect(engine.offsets).not.toContain(500 * MiB)
    let settled = 0
    for (; engine.sent.length > 0; settled++) engine.settle(engine.sent[0]!.offset, 4096)
    expect(settled).toBe(3 * count + 1)
    expect(device.answers.filter((answer) => answer.endsWith('done'))).toHaveLength(3 * count + 1)
  })
})

describe('a device that has nothing to do', () => {
  const batch = (length: number): { offset: number; data: Uint8Array }[] =>
    Array.from({ length: 8 }, (_, at) => ({ offset: at * 4 * MiB, data: ours(length) }))

  test('gets a long submission before the others are made up, and those together', () => {
    const device = new Device(1 << 30, 32)
    device.write(...batch(512 << 10))
    expect(device.engine.calls).toEqual([1, 7])
    // It is busy now.
    device.write(...batch(512 << 10).map(({ offset, data }) => ({ offset: offset + 512 * MiB, data })))
    expect(device.engine.calls).toEqual([1, 7, 8])
  })

  test('gets short ones together: a call of the system would cost as much as they do', () => {
    const device = new Device(1 << 30, 32)
    device.write(...batch(4096))
    expect(device.engine.calls).toEqual([8])
  })
})

test('in random histories everybody is answered, whatever waits for whatever', () => {
  const size = 64 * MiB + 100
  for (let seed = 1; seed <= 60 * patience; seed++) {
    let state = seed
    const random = (below: number): number => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0
      return Math.floor((state / 2 ** 32) * below)
    }
    const device = new Device(size, [2, 8, 48, 200][random(4)]!)
    const { engine } = device
    // Mostly large copies, so that memory is short; or small ones side by side, so that runs and their neighbours fail.
    const areLarge = random(2) === 0
    let requests = 0
    const settle = (mayFail: boolean): void => {
      if (engine.sent.length === 0) return
      const index = random(engine.sent.length)
      const { length, offset } = engine.sent[index]!
      const what = mayFail ? random(10) : 0
      // Blocks are whole, but for the tail's.
      const part = offset >= 64 * MiB ? 0 : Math.floor(random(length) / BLOCK) * BLOCK
      const result = what === 9 ? -5 : what === 8 ? -4 : what === 7 && part > 0 ? part : length
      engine.settleAt(index, result)
    }
    for (let step = 0; step < 120; step++) {
      if (random(2) === 0) {
        settle(true)
        continue
      }
      const batch = Array.from({ length: 1 + random(4) }, () => {
        if (random(12) === 0) return { offset: 64 * MiB + random(50), data: foreign(50) }
        const length = areLarge && random(4) > 0 ? 1 + random(2 * MiB) : 1 + random(8) * 512
        const offset = areLarge ? random(size - length) : 62 * MiB + random(64) * 512 + (random(3) === 0 ? 100 : 0)
        return { offset, data: random(3) === 0 ? ours(length) : foreign(length) }
      })
      requests += batch.length
      device.write(...batch)
    }
    for (let left = 0; engine.sent.length > 0; left++) {
      if (left > 100_000) expect.fail(`seed ${seed}: never ends`)
      settle(left < 200)
    }
    expect(device.answers.length, `seed ${seed}`).toBe(requests)
  }
  // All memory was given back.
  const taken = Array.from({ length: 32 }, () => threadStaging('path').take(MiB))
  expect(taken).not.toContain(-1)
  for (const start of taken) threadStaging('path').give(start, MiB)
})
