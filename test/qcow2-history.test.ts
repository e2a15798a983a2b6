// Random histories of everything that can be done to a qcow2 image, many operations under way together, beside plain memory that
// they are done to one after another. Afterwards QEMU finds nothing wrong with the image, and the same bytes in it. The same with
// a host whose operations fail: what was refused may be there or not, everything else is, and nothing worse than leaks is left.
//
// `MULTIWRITE_SEED=4711` runs one seed; `MULTIWRITE_LONG=1` runs thousands.

import fs from 'node:fs'
import { type BlockDevice, BlockError, type CreateOptions, create, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { Possible } from './support/history.ts'
import { difference } from './support/model.ts'
import { imageIn, inDirectory, noQemu, qemuCheck, qemuContent, qemuImg, Recorder, randomOf } from './support/qcow2.ts'

const long = process.env.MULTIWRITE_LONG !== undefined
const one = process.env.MULTIWRITE_SEED

function seeds(short: number, many: number): number[] {
  if (one !== undefined) return [Number(one)]
  return Array.from({ length: long ? many : short }, (_, seed) => seed)
}

type Options = Omit<CreateOptions, 'size' | 'format'>

/** What kind of image a seed makes. */
interface Kind {
  size: number
  options: Options
  backing: number
  snapshot: boolean
}

function kindOf(random: () => number): Kind {
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!
  const clusterSize = pick([512, 512, 1024, 4096, 65536])
  const size = 512 * (1 + Math.floor(random() * (clusterSize === 65536 ? 1200 : 500)))
  const backing = random() < 0.3 ? 512 * Math.floor(random() * (size / 512) * 1.3) : 0
  const options: Options = {
    clusterSize,
    refcountBits: pick([1, 2, 4, 8, 16, 16, 16, 32, 64]),
    lazyRefcounts: random() < 0.2,
    preallocation: backing === 0 && random() < 0.15 ? 'metadata' : 'off',
    merge: { mode: pick(['full', 'full', 'full', 'sort', 'off'] as const) },
    direct: random() < 0.2,
  }
  // A snapshot needs counts of more than one bit.
  return { size, options, backing, snapshot: noQemu === '' && options.refcountBits! > 1 && random() < 0.25 }
}

class History {
  readonly #disk: BlockDevice
  readonly #random: () => number
  readonly #model: Possible
  readonly #mayFail: boolean
  /** Ranges of operations that are under way. */
  #busy: { start: number; end: number }[] = []
  refused = 0

  constructor(disk: BlockDevice, random: () => number, model: Possible, mayFail: boolean) {
    this.#disk = disk
    this.#random = random
    this.#model = model
    this.#mayFail = mayFail
  }

  #pick(max: number): number {
    return Math.floor(this.#random() * max)
  }

  /** A range that nothing under way touches: what overlaps is ordered, which other tests look at. */
  #range(): { offset: number; length: number } | null {
    // What a truncation that may yet fail has promised is left alone.
    const size = this.#mayFail ? this.#model.bytes.length : this.#disk.size
    for (let attempt = 0; attempt < 10; attempt++) {
      const length = Math.min(size, 1 + this.#pick(this.#random() < 0.15 ? 60_000 : 3000))
      const offset = this.#pick(size - length + 1)
      if (this.#busy.some(({ start, end }) => start < offset + length && end > offset)) continue
      return { offset, length }
    }
    return null
  }

  async run(steps: number): Promise<void> {
    for (let turn = 0; turn < steps; turn++) {
      const under: Promise<void>[] = []
      for (let n = this.#pick(8); n >= 0; n--) {
        under.push(this.#one(turn * 10 + n))
        if (this.#random() < 0.3) await new Promise((resolve) => setImmediate(resolve))
      }
      await Promise.all(under)
    }
  }

  async #one(index: number): Promise<void> {
    const kind = this.#random()
    if (kind < 0.03) return this.#truncate()
    if (kind < 0.1) {
      await this.#hear(this.#disk.flush())
      return
    }
    const range = this.#range()
    if (range === null) return
    const { offset, length } = range
    const claim = { start: offset, end: offset + length }
    this.#busy.push(claim)
    try {
      if (kind < 0.65) await this.#write(offset, length, index)
      else if (kind < 0.8) await this.#read(offset, length)
      else if (kind < 0.92) await this.#zero(offset, length)
      else await this.#discard(offset, length)
    } finally {
      this.#busy = this.#busy.filter((other) => other !== claim)
    }
  }

  async #hear(promise: Promise<unknown>): Promise<boolean> {
    try {
      await promise
      return true
    } catch (error) {
      if (!this.#mayFail || !(error instanceof BlockError)) throw error
      this.refused++
      return false
    }
  }

  async #truncate(): Promise<void> {
    const before = this.#disk.size
    const size = before + 512 * this.#pick(200)
    if (await this.#hear(this.#disk.truncate(size))) this.#model.resize(size)
  }

  async #write(offset: number, length: number, index: number): Promise<void> {
    if (this.#random() < 0.4) {
      const data = Buffer.alloc(length, 1 + (index % 255))
      const done = await this.#hear(this.#disk.write(offset, data, { fua: this.#random() < 0.1 }))
      if (done) this.#model.set(offset, data)
      else this.#model.maybe(offset, data)
      return
    }
    // A batch in the range, with overlaps and gaps.
    const requests = Array.from({ length: 1 + this.#pick(6) }, (_, n) => {
      const from = this.#pick(length)
      const data = Buffer.alloc(1 + this.#pick(Math.min(length - from, 2000)), 1 + ((index * 3 + n) % 255))
      const noMerge = this.#random() < 0.1
      let failed = false
      const callback = (error: Error | null): void => {
        if (error !== null && !this.#mayFail) throw error
        failed = error !== null
      }
      return { offset: offset + from, data, noMerge, callback, isFailed: () => failed }
    })
    const { failed } = await this.#disk.multiwrite(requests)
    this.refused += failed
    for (const { offset: at, data, isFailed } of requests) {
      if (isFailed()) this.#model.maybe(at, data)
      else this.#model.set(at, data)
    }
  }

  async #read(offset: number, length: number): Promise<void> {
    const into = Buffer.alloc(length, 0xa5)
    if (!(await this.#hear(this.#disk.read(offset, into)))) return
    expect(this.#model.find(offset, into)).toBeNull()
  }

  async #zero(offset: number, length: number): Promise<void> {
    const zeros = Buffer.alloc(length)
    const options = { unmap: this.#random() < 0.5, fua: this.#random() < 0.1 }
    if (await this.#hear(this.#disk.writeZeroes(offset, length, options))) this.#model.set(offset, zeros)
    else this.#model.maybe(offset, zeros)
  }

  async #discard(offset: number, length: number): Promise<void> {
    const zeros = Buffer.alloc(length)
    const done = await this.#hear(this.#disk.discard(offset, length))
    // Whole clusters read as zeros, edges as before: either will do, and the next look settles it.
    this.#model.maybe(offset, zeros)
    if (done) await this.#read(offset, length)
  }
}

async function prepare(
  directory: string,
  random: () => number,
): Promise<{ kind: Kind; model: Possible; reopen: object }> {
  const kind = kindOf(random)
  const image = imageIn(directory)
  const content = Buffer.alloc(kind.size)
  let reopen: object = {}
  if (kind.backing > 0) {
    const below = `${directory}/below`
    fs.writeFileSync(below, Buffer.alloc(kind.backing, 0xbb))
    content.fill(0xbb, 0, Math.min(kind.backing, kind.size))
    reopen = { backing: { path: below, format: 'raw' } }
  }
  const made = await create(image, { format: 'qcow2', size: kind.size, ...kind.options, ...reopen })
  if (kind.snapshot) {
    const data = Buffer.alloc(Math.ceil(kind.size / 2), 0xcc)
    await made.write(0, data)
    content.set(data)
  }
  await made.close()
  if (kind.snapshot) qemuImg('snapshot', '-c', 'first', image)
  return { kind, model: new Possible(content), reopen }
}

async function contentOf(image: string, reopen: object): Promise<Buffer> {
  const disk = await open(image, { format: 'qcow2', readOnly: true, ...reopen })
  const bytes = Buffer.alloc(disk.size)
  if (disk.size > 0) await disk.read(0, bytes)
  await disk.close()
  return bytes
}

describe('random histories', () => {
  test('give what they give one after another, and QEMU agrees', { timeout: 3_600_000 }, async () => {
    for (const seed of seeds(60, 3000)) {
      await inDirectory(async (directory) => {
        const random = randomOf(seed)
        const { kind, model, reopen } = await prepare(directory, random)
        const image = imageIn(directory)
        const where = `seed ${seed}, ${JSON.stringify(kind)}`
        const { merge, direct } = kind.options
        const disk = await open(image, {
          format: 'qcow2',
          ...reopen,
          ...(merge ? { merge } : {}),
          direct: direct === true,
        })
        try {
          await new History(disk, random, model, false).run(12)
        } catch (error) {
          throw new Error(where, { cause: error })
        }
        const checked = await disk.check()
        await disk.close()
        expect({ where, ...checked }).toMatchObject({ where, corruptions: 0, checkErrors: 0, leaks: 0 })
        const bytes = await contentOf(image, reopen)
        expect({ where, wrong: model.find(0, bytes) }).toEqual({ where, wrong: null })
        if (noQemu !== '' || (!long && seed % 3 !== 0)) return
        const judged = qemuCheck(image)
        expect({ where, status: judged.status, text: judged.text }).toMatchObject({ where, status: 0 })
        expect({ where, wrong: difference(qemuContent(image), bytes) }).toEqual({ where, wrong: null })
      })
    }
  })

  test('with failures of the host: only what was refused may be missing', { timeout: 3_600_000 }, async () => {
    let refused = 0
    for (const seed of seeds(60, 3000)) {
      await inDirectory(async (directory) => {
        const random = randomOf(seed + 1_000_000)
        const { kind, model, reopen } = await prepare(directory, random)
        const image = imageIn(directory)
        const where = `seed ${seed}, ${JSON.stringify(kind)}`
        const recorder = new Recorder()
        recorder.recording = false
        const nth = 1 + Math.floor(random() * 120)
        const forever = random() < 0.2
        const hows = ['before', 'half', 'after'] as const
        const how = hows[Math.floor(random() * 3)]!
        const { merge } = kind.options
        const disk = await open(image, { format: recorder.driver(), ...reopen, ...(merge ? { merge } : {}) })
        recorder.operations = 0
        recorder.fails = (n) => (n === nth || (forever && n > nth) ? how : null)
        const history = new History(disk, random, model, true)
        try {
          await history.run(12)
          const into = Buffer.alloc(disk.size)
          recorder.fails = null
          await disk.read(0, into)
          expect(model.find(0, into)).toBeNull()
        } catch (error) {
          throw new Error(where, { cause: error })
        }
        refused += history.refused
        const closed = await disk.close().then(
          () => true,
          () => false,
        )
        if (kind.options.lazyRefcounts) {
          const mended = await open(image, { format: 'qcow2', ...reopen })
          await mended.check({ repair: true })
          await mended.close()
        }
        if (closed) {
          const bytes = await contentOf(image, reopen)
          expect({ where, wrong: model.find(0, bytes) }).toEqual({ where, wrong: null })
        }
        const again = await open(image, { format: 'qcow2', readOnly: true, ...reopen })
        const checked = await again.check()
        await again.close()
        expect({ where, ...checked }).toMatchObject({ where, corruptions: 0, checkErrors: 0 })
        if (noQemu !== '' || (!long && seed % 3 !== 0)) return
        const judged = qemuCheck(image)
        if (judged.status !== 0 && judged.status !== 3) throw new Error(`${where}: ${judged.text}`)
      })
    }
    if (one === undefined) expect(refused).toBeGreaterThan(20)
  })
})

// Counts of 64 bits in clusters of 512 bytes: the refcount table moves every few MiB of the host, the L1 table with each growth.
test('tables that move while others write, give up and fail', { timeout: 3_600_000 }, async () => {
  const cluster = 512
  let moved = 0
  for (const seed of seeds(6, 400)) {
    await inDirectory(async (directory) => {
      const random = randomOf(seed + 2_000_000)
      const pick = (max: number): number => Math.floor(random() * max)
      const image = imageIn(directory)
      const options = { clusterSize: cluster, refcountBits: 64, lazyRefcounts: random() < 0.2 } as const
      await (await create(image, { format: 'qcow2', size: 1 << 20, ...options })).close()
      const recorder = new Recorder()
      recorder.recording = false
      const disk = await open(image, { format: recorder.driver() })
      const nth = seed % 4 === 0 ? Number.POSITIVE_INFINITY : pick(1500)
      const many = random() < 0.3 ? 40 : 1
      const how = random() < 0.5 ? 'before' : 'after'
      recorder.fails = (n) => (n >= nth && n < nth + many ? how : null)
      const where = `seed ${seed}, operation ${nth} and ${many - 1} more fail ${how} their effect`
      /** What each cluster may hold. */
      const may: Set<number>[] = Array.from({ length: (1 << 20) / cluster }, () => new Set([0]))
      const act = async (value: number, first: number, count: number): Promise<void> => {
        const [offset, length] = [first * cluster, count * cluster]
        const isWrite = random() < 0.7
        const acting = isWrite ? disk.write(offset, Buffer.alloc(length, value)) : disk.discard(offset, length)
        const done = await acting.then(
          () => true,
          () => false,
        )
        for (let c = first; c < first + count; c++) {
          if (done && isWrite) may[c] = new Set([value])
          else may[c]!.add(isWrite ? value : 0)
        }
      }
      for (let turn = 1; turn < 50; turn++) {
        const under: Promise<unknown>[] = []
        // Ranges of their own, so that it is known what becomes of them.
        const share = Math.floor(may.length / 5)
        for (let n = 0; n < 5; n++) {
          const count = 1 + pick(Math.min(160, share - 1))
          under.push(act(turn * 5 + n, n * share + pick(share - count), count))
        }
        if (random() < 0.25) under.push(disk.flush().catch(() => undefined))
        if (random() < 0.25 && disk.size < 6 << 20) {
          const size = disk.size + cluster * pick(4000)
          const growing = disk.truncate(size).then(
            () => {
              while (may.length < size / cluster) may.push(new Set([0]))
            },
            () => undefined,
          )
          under.push(growing)
        }
        await Promise.all(under)
      }
      recorder.fails = null
      const judge = async (reader: BlockDevice): Promise<void> => {
        const into = Buffer.alloc(may.length * cluster)
        await reader.read(0, into)
        for (let c = 0; c < may.length; c++) {
          const bytes = into.subarray(c * cluster, (c + 1) * cluster)
          const is = bytes[0]!
          const right = bytes.every((byte) => byte === is) && [...may[c]!].some((value) => value % 256 === is)
          if (!right) throw new Error(`${where}: cluster ${c} begins with ${is}, may be ${[...may[c]!]}`)
        }
      }
      await judge(disk)
      const closed = await disk.close().then(
        () => true,
        () => false,
      )
      if (options.lazyRefcounts && !closed) return
      const again = await open(image, { format: 'qcow2', readOnly: true })
      const checked = await again.check()
      expect({ where, ...checked }).toMatchObject({
        where,
        corruptions: 0,
        checkErrors: 0,
        ...(closed && nth > 1e9 ? { leaks: 0 } : {}),
      })
      if (closed) await judge(again)
      await again.close()
      if (fs.readFileSync(image).readUInt32BE(56) > 1) moved++
      if (noQemu !== '' || (long && seed % 10 > 0)) return
      const judged = qemuCheck(image)
      if (judged.status !== 0 && judged.status !== 3) throw new Error(`${where}: ${judged.text}`)
    })
  }
  if (one === undefined) expect(moved).toBeGreaterThan(0)
})
