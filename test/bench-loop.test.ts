// The measuring loop against a target that answers as the test says: depths, batches, flushes, rates, stamps, contents.

import { afterEach, describe, expect, test, vi } from 'vitest'
import { Histogram } from '../lib/cli/bench/histogram.ts'
import { LIVE, type Load, Loop } from '../lib/cli/bench/loop.ts'
import type { Measured } from '../lib/cli/bench/results.ts'
import type { Request, Target } from '../lib/cli/bench/target.ts'

/** Time as a test sets it, in ns; `null`: the real one. */
const time = vi.hoisted(() => ({ now: null as number | null }))
vi.mock('../lib/cli/bench/clock.ts', async (original) => {
  const { clock } = await original<typeof import('../lib/cli/bench/clock.ts')>()
  return { clock: () => time.now ?? clock() }
})
afterEach(() => {
  time.now = null
})

interface Call {
  write: boolean
  count: number
  inFlight: number
}

/** Answers all that is in flight together, each time that `answerLater` says so. */
class FakeTarget implements Target {
  readonly calls: Call[] = []
  readonly offsets: number[] = []
  flushes = 0
  writesBeforeFlush: number[] = []
  inFlight = 0
  #waiting: { request: Request; write: boolean }[] = []
  #writes = 0
  readonly #later: (answer: () => void) => void
  readonly #carryOut: (request: Request, write: boolean) => Error | null
  #armed = false

  constructor(
    later: (answer: () => void) => void = setImmediate,
    carryOut: (request: Request, write: boolean) => Error | null = () => null,
  ) {
    this.#later = later
    this.#carryOut = carryOut
  }

  write(requests: readonly Request[]): void {
    this.#start(requests, true)
  }

  read(requests: readonly Request[]): void {
    this.#start(requests, false)
  }

  #start(requests: readonly Request[], write: boolean): void {
    this.inFlight += requests.length
    this.calls.push({ write, count: requests.length, inFlight: this.inFlight })
    for (const request of requests) {
      this.offsets.push(request.offset)
      this.#waiting.push({ request, write })
    }
    if (write) this.#writes += requests.length
    if (this.#armed) return
    this.#armed = true
    this.#later(() => this.#answer())
  }

  #answer(): void {
    this.#armed = false
    const answered = this.#waiting
    this.#waiting = []
    for (const { request, write } of answered) {
      this.inFlight--
      request.callback(this.#carryOut(request, write))
    }
  }

  flush(): Promise<void> {
    this.flushes++
    this.writesBeforeFlush.push(this.#writes)
    return new Promise((resolve) => setImmediate(resolve))
  }

  alloc(size: number): Buffer {
    return Buffer.alloc(size)
  }

  submissions(): null {
    return null
  }

  async close(): Promise<void> {}
}

const LOAD: Load = {
  bs: 512,
  blocks: 1000,
  random: false,
  readPercent: 0,
  depth: 8,
  batch: 1,
  batchComplete: 1,
  requests: 1000,
  runtime_ns: Number.POSITIVE_INFINITY,
  ramp_ns: 0,
  rate: null,
  flushEvery: 0,
  seed: 1,
  verifySeed: null,
}

async function run(
  target: Target,
  load: Partial<Load>,
  stop = new Int32Array(1),
): Promise<{ loop: Loop; measured: Measured; live: Float64Array }> {
  const live = new Float64Array(LIVE.length)
  const loop = new Loop(target, { ...LOAD, ...load }, stop, live)
  await loop.run()
  return { loop, measured: loop.measured, live }
}

describe('a closed loop', () => {
  test('keeps as many in flight as the depth says, each in a call of its own, and ends with the last answer', async () => {
    const target = new FakeTarget()
    const { measured, live } = await run(target, {})
    expect(target.calls).toHaveLength(1000)
    expect(target.calls.every(({ count }) => count === 1)).toBe(true)
    expect(Math.max(...target.calls.map(({ inFlight }) => inFlight))).toBe(8)
    expect(target.inFlight).toBe(0)
    expect(target.offsets).toEqual(Array.from({ length: 1000 }, (_, i) => i * 512))
    expect(new Histogram(measured.write.lat).count).toBe(1000)
    expect(measured.write.bytes).toBe(512_000)
    expect(live[LIVE.writes]).toBe(1000)
    expect(measured.read.bytes).toBe(0)
  })

  test('sends together what became free together, up to the batch, and holds nothing back', async () => {
    const target = new FakeTarget()
    const { measured } = await run(target, { batch: 5 })
    // Eight become free at once: five and three.
    expect(target.calls.slice(0, 4).map(({ count }) => count)).toEqual([5, 3, 5, 3])
    expect(measured.submits[5]! + measured.submits[3]!).toBeGreaterThan(240)
    expect(measured.completes[8]).toBeGreaterThan(120)
  })

  test('waits for so many to be free if that is asked for', async () => {
    // Answers one at a time.
    const queue: (() => void)[] = []
    const target = new FakeTarget((answer) => {
      queue.push(answer)
      setImmediate(() => queue.shift()?.())
    })
    await run(target, { batch: 4, batchComplete: 4, depth: 8, requests: 64 })
    expect(new Set(target.calls.map(({ count }) => count))).toEqual(new Set([4]))
  })

  test('sends a remainder that is less than so many', async () => {
    const target = new FakeTarget()
    await run(target, { batch: 4, batchComplete: 4, requests: 10 })
    expect(target.calls.map(({ count }) => count)).toEqual([4, 4, 2])
  })

  test('mixes reads and writes as asked for', async () => {
    const target = new FakeTarget()
    await run(target, { readPercent: 70, requests: 4000 })
    const reads = target.calls.filter(({ write }) => !write).length
    expect(reads).toBeGreaterThan(2600)
    expect(reads).toBeLessThan(3000)
  })

  test('flushes after so many writes, as often as they are reached', async () => {
    for (const batch of [1, 8]) {
      const target = new FakeTarget()
      const { measured } = await run(target, { flushEvery: 10, requests: 105, batch })
      expect(target.flushes).toBe(10)
      expect(target.writesBeforeFlush).toEqual([10, 20, 30, 40, 50, 60, 70, 80, 90, 100])
      expect(new Histogram(measured.sync).count).toBe(10)
    }
  })

  test('ends when it is told to, with what is in flight counted', async () => {
    const stop = new Int32Array(1)
    const target = new FakeTarget((answer) => {
      if (target.calls.length > 100) stop[0] = 1
      setImmediate(answer)
    })
    const { measured } = await run(target, { requests: Number.POSITIVE_INFINITY }, stop)
    expect(new Histogram(measured.write.lat).count).toBe(target.calls.length)
    expect(target.calls.length).toBeLessThan(150)
  })

  test('ends at the first error and tells it', async () => {
    const error = Object.assign(new Error('no'), { code: 'EIO' })
    const target = new FakeTarget(setImmediate, ({ offset }) => (offset === 100 * 512 ? error : null))
    const { measured } = await run(target, {})
    expect(measured.failed).toEqual({ message: 'no', code: 'EIO' })
    expect(target.calls.length).toBeLessThan(120)
    expect(target.inFlight).toBe(0)
  })

  test('measures the rate of a target that answers many at once, whenever the ramp ends', async () => {
    const ms = 1e6
    for (const ramp_ns of [21 * ms, 25 * ms, 29 * ms]) {
      time.now = 0
      // Eight every 10 ms: 800 a second. With the first ones after the ramp counted in, it would be 838 to 880.
      const target = new FakeTarget((answer) =>
        setImmediate(() => {
          time.now! += 10 * ms
          answer()
        }),
      )
      const { measured } = await run(target, {
        requests: Number.POSITIVE_INFINITY,
        ramp_ns,
        runtime_ns: 100 * ms,
      })
      expect([new Histogram(measured.write.lat).count, measured.elapsed_ms]).toEqual([80, 100])
    }
  })

  test('and so if it is stopped early, or in the ramp', async () => {
    const ms = 1e6
    for (const [stopAfter_ms, counted] of [
      [20, 0],
      [30, 0],
      [40, 8],
      [80, 40],
    ] as const) {
      time.now = 0
      const stop = new Int32Array(1)
      const target = new FakeTarget((answer) =>
        setImmediate(() => {
          time.now! += 10 * ms
          if (time.now! >= stopAfter_ms * ms) stop[0] = 1
          answer()
        }),
      )
      const load = { requests: Number.POSITIVE_INFINITY, ramp_ns: 25 * ms, runtime_ns: 1000 * ms }
      const { measured } = await run(target, load, stop)
      expect(new Histogram(measured.write.lat).count).toBe(counted)
      expect(measured.elapsed_ms).toBe((counted / 8) * 10)
    }
  })

  test('counts what a fixed rate asks for after the ramp, from the ramp on, and ends in time', async () => {
    const ms = 1e6
    time.now = 0
    // Each is due at a multiple of 10 ms and answered a millisecond later.
    const target = new FakeTarget((answer) =>
      setImmediate(() => {
        time.now! += ms
        answer()
      }),
    )
    const ticks = setInterval(() => {
      time.now! += ms
    }, 1)
    const load = { rate: 100, requests: Number.POSITIVE_INFINITY, ramp_ns: 25 * ms, runtime_ns: 100 * ms }
    const { measured } = await run(target, load)
    clearInterval(ticks)
    expect(new Histogram(measured.write.lat).count).toBe(10)
    expect(target.calls).toHaveLength(13)
  })

  test('counts nothing before the ramp is over', async () => {
    const target = new FakeTarget((answer) => setTimeout(answer, 2))
    const { measured } = await run(target, {
      requests: Number.POSITIVE_INFINITY,
      ramp_ns: 100e6,
      runtime_ns: 100e6,
    })
    const counted = new Histogram(measured.write.lat).count
    expect(counted).toBeGreaterThan(0)
    expect(counted).toBeLessThan(target.calls.length)
  })

  test('adds up the two parts of a latency to the whole', async () => {
    const { measured } = await run(new FakeTarget((answer) => setTimeout(answer, 3)), { requests: 80 })
    const [slat, clat, lat] = [measured.write.slat, measured.write.clat, measured.write.lat]
    expect(slat.sum + clat.sum).toBeCloseTo(lat.sum, -1)
    // The first of a turn has waited as long as the target takes.
    expect(clat.max).toBeGreaterThan(2e6)
  })
})

describe('an open loop', () => {
  test('makes as many requests as the rate says, also on a target that is idle in between', async () => {
    const target = new FakeTarget()
    const { measured } = await run(target, { rate: 500, requests: Number.POSITIVE_INFINITY, runtime_ns: 400e6 })
    // Due at 0 ms, 2 ms, ... 398 ms. Those that this machine was too late for are told, not dropped.
    expect(target.calls.length + measured.unstarted).toBe(200)
    expect(new Histogram(measured.write.lat).count).toBe(target.calls.length)
  })

  test('is never faster than the rate', async () => {
    const before = performance.now()
    await run(new FakeTarget(), { rate: 500, requests: 100 })
    expect(performance.now() - before).toBeGreaterThan(197)
  })

  test('counts latency from the intended start when the target stands still', async () => {
    // Answers at once, but the 50th request after 200 ms: at 1000/s some 200 requests are due meanwhile.
    let answers = 0
    const target = new FakeTarget((answer) => (++answers === 50 ? setTimeout(answer, 200) : setImmediate(answer)))
    const { measured } = await run(target, { rate: 1000, depth: 1, requests: 500 })
    const { clat, lat } = measured.write
    // One request was slow. That the others waited for it is seen in the total, and only there.
    const slow = (data: typeof lat): number =>
      new Histogram(data).bins().reduce((sum, { start, count }) => sum + (start > 50e6 ? count : 0), 0)
    expect(slow(clat)).toBeLessThan(10)
    expect(slow(lat)).toBeGreaterThan(100)
    expect(new Histogram(measured.wait).max).toBeGreaterThan(100e6)
    expect(measured.unstarted).toBe(0)
  })

  test('tells how many requests a slow target has kept from being started', async () => {
    const target = new FakeTarget((answer) => setTimeout(answer, 10))
    const { measured } = await run(target, {
      rate: 1000,
      depth: 1,
      requests: Number.POSITIVE_INFINITY,
      runtime_ns: 500e6,
    })
    const made = new Histogram(measured.write.lat).count
    expect(made).toBeLessThanOrEqual(51)
    expect(measured.unstarted).toBeGreaterThan(400)
    expect(made + measured.unstarted).toBe(500)
    expect(new Histogram(measured.write.lat).max).toBeGreaterThan(400e6)
  })
})

describe('contents', () => {
  /** A disk in memory. */
  function memoryTarget(spoil: (request: Request, write: boolean, disk: Buffer) => void = () => {}): FakeTarget {
    const disk = Buffer.alloc(100 * 512)
    return new FakeTarget(setImmediate, (request, write) => {
      if (write) request.data.copy(disk, request.offset)
      else disk.copy(request.into, 0, request.offset, request.offset + request.into.length)
      spoil(request, write, disk)
      return null
    })
  }
  const load: Partial<Load> = { blocks: 100, random: true, readPercent: 50, requests: 2000, verifySeed: 11, depth: 1 }

  test('of reads in a mixed load are compared with what the last write has left', async () => {
    const { measured } = await run(memoryTarget(), load)
    expect(measured.verified?.mismatch).toBe(null)
    expect(measured.verified!.bytes).toBeGreaterThan(300_000)
  })

  test('that are wrong end the load with the first wrong offset', async () => {
    const target = memoryTarget((request, write) => {
      if (!write && request.offset === 7 * 512) request.into[100]! ^= 1
    })
    const { measured } = await run(target, load)
    expect(measured.verified?.mismatch).toMatchObject({ offset: 7 * 512 + 100 })
    expect(target.calls.length).toBeLessThan(2000)
  })

  test('of an earlier write are wrong', async () => {
    const before = new Map<number, Buffer>()
    const target = memoryTarget((request, write, disk) => {
      // Every second write of block 7 is lost.
      if (!write || request.offset !== 7 * 512) return
      const kept = before.get(7)
      if (kept === undefined) before.set(7, Buffer.from(request.data))
      else kept.copy(disk, 7 * 512)
    })
    const { measured } = await run(target, load)
    expect(measured.verified?.mismatch?.offset).toBeGreaterThanOrEqual(7 * 512)
    expect(measured.verified?.mismatch?.offset).toBeLessThan(7 * 512 + 4)
  })
})
