// Random histories: operations of all kinds on one open disk, many of them under way together, and afterwards the question
// whether the answers can be true. Every call is noted in the order of calls; when all have been answered, the notes are carried
// out one after another on plain memory, with the outcomes that were heard, and what was read, and what is left at the end, must
// be what that gives.
//
// A history is made from its seed, as it goes. What cannot be known (how much of a failed or withdrawn write has arrived) is
// kept as a possibility for each byte, until a read settles it.

import { setImmediate as turn } from 'node:timers/promises'
import { AbortError, type BlockDevice, BlockError, MultiwriteError, type OpenOptions, open } from 'multiwrite'
import { pattern } from './model.ts'

/** Numbers from 0 to 1 that depend on the seed alone (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Plain memory of which some bytes may be one of several. */
export class Possible {
  bytes: Buffer
  #others: { start: number; bytes: Uint8Array }[] = []

  constructor(content: Buffer) {
    this.bytes = content
  }

  /** It is so. */
  set(offset: number, data: Uint8Array): void {
    this.bytes.set(data, offset)
    const end = offset + data.length
    this.#others = this.#others.flatMap((other) => {
      const stop = other.start + other.bytes.length
      if (stop <= offset || other.start >= end) return [other]
      const parts: { start: number; bytes: Uint8Array }[] = []
      if (other.start < offset) parts.push({ start: other.start, bytes: other.bytes.subarray(0, offset - other.start) })
      if (stop > end) parts.push({ start: end, bytes: other.bytes.subarray(end - other.start) })
      return parts
    })
  }

  /** Each byte of it may be so, or as it was. */
  maybe(offset: number, data: Uint8Array): void {
    if (data.length > 0) this.#others.push({ start: offset, bytes: data })
  }

  resize(size: number): void {
    const next = Buffer.alloc(size)
    next.set(this.bytes.subarray(0, size))
    this.bytes = next
    this.#others = this.#others
      .filter(({ start }) => start < size)
      .map(({ start, bytes }) => ({ start, bytes: bytes.subarray(0, size - start) }))
  }

  /** Why this cannot have been found there; `null` if it can. Then it is so from now on. */
  find(offset: number, found: Uint8Array): string | null {
    const expected = this.bytes.subarray(offset, offset + found.length)
    if (expected.length !== found.length) return `${found.length} bytes at ${offset} of ${this.bytes.length}`
    if (Buffer.compare(found, expected) !== 0) {
      const near = this.#others.filter(
        ({ start, bytes }) => start < offset + found.length && start + bytes.length > offset,
      )
      for (let at = 0; at < found.length; at++) {
        if (found[at] === expected[at]) continue
        const place = offset + at
        if (!near.some(({ start, bytes }) => bytes[place - start] === found[at])) {
          return `byte ${place} is ${found[at]} instead of ${expected[at]}`
        }
      }
    }
    this.set(offset, found)
    return null
  }
}

type Outcome = 'done' | 'open'

type Note =
  | { kind: 'write'; offset: number; data: Uint8Array; outcome: Outcome | 'never' }
  | { kind: 'read'; offset: number; length: number; content: () => Uint8Array; outcome: Outcome }
  | { kind: 'resize'; size: number }

/** Sectors of 512 bytes that refuse to be written and to be read. */
export interface BadSectors {
  writes: ReadonlySet<number>
  reads: ReadonlySet<number>
}

export interface Setup {
  seed: number
  path: string
  options: OpenOptions
  /** What is on it. */
  content: Buffer
  /** A block device: it has one size, and what was discarded may read as anything. */
  block: boolean
  bad?: BadSectors
  /** Any read or write may fail with EIO. */
  mayFail?: boolean
  /** A file that is neither cut nor grown. */
  fixedSize?: boolean
  /** Reads all of it when it is closed. */
  readBack(): Buffer
}

const SECTOR = 512
/** Bytes that a file may grow beyond. */
const GROWTH_MAX = 50_000

/** Carries out the history of a seed; throws what is wrong with it. */
export async function runHistory(setup: Setup): Promise<void> {
  const random = randomNumbers(setup.seed)
  const options = optionsOf(random)
  const name = `seed ${setup.seed}, ${JSON.stringify({ ...setup.options, ...options })}`
  try {
    await new History(setup, options, random).run()
  } catch (error) {
    throw new Error(`${name}: ${error instanceof Error ? error.message : String(error)}`, { cause: error })
  }
}

function optionsOf(random: () => number): OpenOptions {
  const below = (count: number): number => Math.floor(random() * count)
  const modes = ['full', 'full', 'full', 'sort', 'off'] as const
  const depths = [1, 2, 8, 128] as const
  return {
    queueDepth: depths[below(4)]!,
    merge: {
      mode: modes[below(5)]!,
      ...(random() < 0.3 ? { maxBytes: SECTOR * (1 + below(20)) } : {}),
      ...(random() < 0.3 ? { maxSegments: 1 + below(5) } : {}),
    },
    // Then nothing may overlap that is under way together: one call at a time.
    ordered: random() < 0.95,
  }
}

class History {
  readonly #setup: Setup
  readonly #options: OpenOptions
  readonly #random: () => number
  readonly #notes: Note[] = []
  readonly #wrong: string[] = []
  #pending: Promise<void>[] = []
  #disk!: BlockDevice
  #grain = 1
  #writes = 0

  constructor(setup: Setup, options: OpenOptions, random: () => number) {
    this.#setup = setup
    this.#options = options
    this.#random = random
  }

  async run(): Promise<void> {
    const { path, options, content } = this.#setup
    this.#disk = await open(path, { ...options, ...this.#options })
    this.#grain = this.#pick([1, 1, 1, SECTOR, SECTOR, 4096])
    const count = 1 + this.#below(40)
    try {
      for (let at = 0; at < count; at++) {
        this.#step()
        if (this.#options.ordered === false || this.#chance(0.03)) await Promise.all(this.#pending)
        else if (this.#chance(0.15)) await turn()
        else if (this.#chance(0.1)) await null
      }
    } finally {
      // Half of the histories are closed while they are under way.
      if (this.#chance(0.5)) await Promise.all(this.#pending)
      await this.#disk.close().catch((error: unknown) => this.#wrong.push(`close: ${error}`))
    }
    await Promise.all(this.#pending)
    this.#judge(new Possible(Buffer.from(content)))
  }

  /** Carries out the notes one after another. */
  #judge(memory: Possible): void {
    for (const [at, note] of this.#notes.entries()) {
      if (note.kind === 'resize') memory.resize(note.size)
      else if (note.kind === 'write') {
        if (note.outcome === 'done') memory.set(note.offset, note.data)
        else if (note.outcome === 'open') memory.maybe(note.offset, note.data)
      } else if (note.outcome === 'done') {
        const found = memory.find(note.offset, note.content())
        if (found !== null) this.#wrong.push(`note ${at}, read ${note.offset}+${note.length}: ${found}`)
      }
    }
    const left = this.#setup.readBack()
    if (left.length !== memory.bytes.length) this.#wrong.push(`size ${left.length} instead of ${memory.bytes.length}`)
    else {
      const found = memory.find(0, left)
      if (found !== null) this.#wrong.push(`in the end ${found}`)
    }
    if (this.#wrong.length > 0) throw new Error(this.#wrong.slice(0, 5).join('; '))
  }

  #below(count: number): number {
    return Math.floor(this.#random() * count)
  }

  #chance(probability: number): boolean {
    return this.#random() < probability
  }

  #pick<T>(choices: readonly T[]): T {
    return choices[this.#below(choices.length)]!
  }

  #range(most: number): [offset: number, length: number] {
    const { size } = this.#disk
    const grain = this.#grain
    const offset = Math.min(size, this.#below(size / grain + 1) * grain)
    const wanted = this.#below(this.#chance(0.75) ? Math.min(2000, most) : most)
    return [offset, Math.min(size - offset, grain === 1 ? wanted : Math.ceil(wanted / grain) * grain)]
  }

  /** Memory of some kind, filled with what is given. */
  #memory(bytes: Uint8Array): Uint8Array {
    const size = bytes.length
    const kinds: (() => Uint8Array)[] = [
      () => Buffer.alloc(size),
      () => this.#disk.alloc(size),
      () => this.#disk.alloc(size + 64).subarray(7, 7 + size),
      () => new Uint8Array(new SharedArrayBuffer(size + 16), this.#below(17), size),
      () => new Uint8Array(resizable(size + 8), this.#below(8), size),
    ]
    const memory = this.#pick(kinds)()
    memory.set(bytes)
    return memory
  }

  /** The same in one piece or several. */
  #pieces(bytes: Uint8Array): Uint8Array | Uint8Array[] {
    if (this.#chance(0.7)) return this.#memory(bytes)
    const pieces: Uint8Array[] = []
    for (let at = 0; at < bytes.length; ) {
      const length = this.#chance(0.1) ? 0 : 1 + this.#below(bytes.length - at)
      pieces.push(this.#memory(bytes.subarray(at, at + length)))
      at += length
    }
    return pieces
  }

  #step(): void {
    const { block, bad, fixedSize = block } = this.#setup
    const kind = this.#random()
    if (kind < 0.35) this.#batchOfWrites()
    else if (kind < 0.6) this.#write()
    else if (kind < 0.74) this.#read()
    else if (kind < 0.82) this.#batchOfReads()
    else if (kind < 0.87 && bad === undefined) this.#writeZeroes()
    else if (kind < 0.9 && bad === undefined) this.#discard()
    else if (kind < 0.94 && !fixedSize) this.#truncate()
    else if (kind < 0.96) this.#carry(this.#disk.refresh(), 'refresh')
    else if (kind < 0.99) this.#carry(this.#disk.flush(), 'flush')
    else this.#carry(this.#disk.multiwrite([]), 'nothing')
  }

  /** Waits for what must not fail. */
  #carry(promise: Promise<unknown>, what: string): void {
    this.#pending.push(
      promise.then(
        () => undefined,
        (error: unknown) => void this.#wrong.push(`${what}: ${error}`),
      ),
    )
  }

  /** What a request alone would come to. */
  #fate(kind: 'write' | 'read', offset: number, length: number): 'succeeds' | 'fails' | 'either' {
    const { bad, mayFail = false } = this.#setup
    if (length === 0) return 'succeeds'
    if (mayFail) return 'either'
    if (bad === undefined) return 'succeeds'
    const { alignment } = this.#disk.limits
    const from = Math.floor(offset / alignment) * alignment
    const to = Math.ceil((offset + length) / alignment) * alignment
    const touches = (sectors: ReadonlySet<number>, start: number, end: number): boolean => {
      for (let at = start / SECTOR; at < end / SECTOR; at++) if (sectors.has(at)) return true
      return false
    }
    if (touches(kind === 'write' ? bad.writes : bad.reads, from, to)) return 'fails'
    if (kind === 'read') return 'succeeds'
    // A block that is written in part must be read, unless others of the batch write the rest of it.
    const head = offset > from && touches(bad.reads, from, from + alignment)
    const tail = offset + length < to && touches(bad.reads, to - alignment, to)
    return head || tail ? 'either' : 'succeeds'
  }

  /** Notes what became of a request, and whether that can be. */
  #heard(note: Note & { outcome: unknown }, error: unknown, wasAborted: boolean): void {
    if (note.kind === 'resize') return
    const length = note.kind === 'write' ? note.data.length : note.length
    const what = `${note.kind} ${note.offset}+${length}`
    const fate = this.#fate(note.kind, note.offset, length)
    if (error === null) {
      if (fate === 'fails') this.#wrong.push(`${what} succeeded on a bad sector`)
      note.outcome = 'done'
    } else if (error instanceof AbortError) {
      if (!wasAborted) this.#wrong.push(`${what} was withdrawn, nobody knows why`)
      if (note.outcome !== 'never') note.outcome = 'open'
    } else if (error instanceof BlockError && error.code === 'EIO' && fate !== 'succeeds') {
      if (error.offset !== note.offset || error.length !== length) this.#wrong.push(`${what}: ${error}`)
      note.outcome = 'open'
    } else {
      this.#wrong.push(`${what}: ${error}`)
      note.outcome = 'open'
    }
  }

  /** Raises a signal sooner or later. */
  #abortSometime(controller: AbortController): void {
    const turns = this.#below(4)
    const abort = async (): Promise<void> => {
      for (let at = 0; at < turns; at++) await turn()
      controller.abort()
    }
    this.#pending.push(abort())
  }

  #newWrite(most: number): Note & { kind: 'write' } {
    const [offset, length] = this.#range(most)
    const note: Note & { kind: 'write' } = {
      kind: 'write',
      offset,
      data: pattern(this.#writes++, length),
      outcome: 'open',
    }
    this.#notes.push(note)
    return note
  }

  #write(): void {
    const note = this.#newWrite(20_000)
    const fua = this.#chance(0.1)
    const controller = this.#chance(0.1) ? new AbortController() : undefined
    const data = this.#pieces(note.data)
    const promise = this.#disk.write(note.offset, data, { fua, ...(controller ? { signal: controller.signal } : {}) })
    if (controller !== undefined) {
      if (this.#chance(0.3) && note.data.length > 0) {
        // Before anything can have been submitted.
        note.outcome = 'never'
        controller.abort()
      } else {
        this.#abortSometime(controller)
      }
    }
    this.#pending.push(
      promise.then(
        () => {
          if (note.outcome === 'never') this.#wrong.push(`write ${note.offset} was aborted, and succeeded`)
          this.#heard(note, null, true)
        },
        (error: unknown) => this.#heard(note, error, controller !== undefined),
      ),
    )
  }

  #newRead(most: number): { note: Note & { kind: 'read' }; into: Uint8Array | Uint8Array[] } {
    const [offset, length] = this.#range(most)
    const into = this.#pieces(Buffer.alloc(length, 0xff))
    const content = (): Uint8Array => (Array.isArray(into) ? Buffer.concat(into) : into)
    const note: Note & { kind: 'read' } = { kind: 'read', offset, length, content, outcome: 'open' }
    this.#notes.push(note)
    return { note, into }
  }

  #read(): void {
    const { note, into } = this.#newRead(30_000)
    const controller = this.#chance(0.1) ? new AbortController() : undefined
    const promise = this.#disk.read(note.offset, into, controller ? { signal: controller.signal } : undefined)
    if (controller !== undefined) this.#abortSometime(controller)
    this.#pending.push(
      promise.then(
        () => this.#heard(note, null, true),
        (error: unknown) => this.#heard(note, error, controller !== undefined),
      ),
    )
  }

  #batchOfWrites(): void {
    const notes: (Note & { kind: 'write' })[] = []
    const requests = Array.from({ length: 1 + this.#below(this.#chance(0.1) ? 40 : 8) }, () => {
      const note = this.#newWrite(20_000)
      notes.push(note)
      const flags = { ...(this.#chance(0.1) ? { fua: true } : {}), ...(this.#chance(0.1) ? { noMerge: true } : {}) }
      return { offset: this.#chance(0.1) ? BigInt(note.offset) : note.offset, data: this.#pieces(note.data), ...flags }
    })
    this.#batch(notes, requests, (batch, options) => this.#disk.multiwrite(batch, options))
  }

  #batchOfReads(): void {
    const notes: (Note & { kind: 'read' })[] = []
    const requests = Array.from({ length: 1 + this.#below(6) }, () => {
      const { note, into } = this.#newRead(20_000)
      notes.push(note)
      return { offset: note.offset, into }
    })
    this.#batch(notes, requests, (batch, options) => this.#disk.multiread(batch, options))
  }

  #batch<R extends object>(
    notes: (Note & { kind: 'write' | 'read' })[],
    requests: readonly R[],
    call: (
      requests: (R & { callback?(error: unknown): void })[],
      options?: { signal: AbortSignal },
    ) => Promise<{ requests: number; failed: number }>,
  ): void {
    const controller = this.#chance(0.15) ? new AbortController() : undefined
    const answers = new Map<number, unknown>()
    const asks = notes.map(() => controller !== undefined || this.#chance(0.5))
    let settled = false
    const callback = (index: number) => (error: unknown) => {
      if (answers.has(index)) this.#wrong.push(`request ${index} was answered twice`)
      if (settled) this.#wrong.push(`request ${index} was answered after its batch`)
      answers.set(index, error)
    }
    const batch = requests.map((one, at) => (asks[at] ? { ...one, callback: callback(at) } : one))
    const promise = call(batch, controller ? { signal: controller.signal } : undefined)
    if (answers.size > 0) this.#wrong.push('a request was answered inside the call')
    if (controller !== undefined) this.#abortSometime(controller)
    const hear = (result: unknown): void => {
      settled = true
      const silent = new Map<number, unknown>()
      if (result instanceof MultiwriteError) {
        for (const [at, index] of result.failed.entries()) silent.set(index, result.errors[at])
      }
      for (const [index, note] of notes.entries()) {
        if (asks[index] && !answers.has(index)) this.#wrong.push(`request ${index} was not answered`)
        if (asks[index] && silent.has(index)) this.#wrong.push(`request ${index} was answered in two ways`)
        const error = asks[index] ? (answers.get(index) ?? null) : (silent.get(index) ?? null)
        this.#heard(note, error, controller !== undefined)
      }
      const told = [...answers.values()]
      const withdrawn = told.filter((error) => error instanceof AbortError).length
      const failed = told.filter((error) => error !== null).length - withdrawn
      if (result instanceof AbortError) {
        if (withdrawn === 0) this.#wrong.push('an AbortError, and nothing was withdrawn')
        if (result.completed !== notes.length - withdrawn - failed) {
          this.#wrong.push(
            `completed is ${result.completed} of ${notes.length}, ${withdrawn} withdrawn, ${failed} failed`,
          )
        }
      } else if (withdrawn > 0) {
        this.#wrong.push('requests were withdrawn, and no AbortError')
      } else if (!(result instanceof Error)) {
        const { requests: count, failed: number } = result as { requests: number; failed: number }
        if (count !== notes.length || number !== failed) this.#wrong.push(`the batch says ${JSON.stringify(result)}`)
      } else if (!(result instanceof MultiwriteError)) {
        this.#wrong.push(`the batch: ${result}`)
      }
    }
    this.#pending.push(promise.then(hear, hear))
  }

  #writeZeroes(): void {
    const [offset, length] = this.#range(60_000)
    const note: Note & { kind: 'write' } = { kind: 'write', offset, data: Buffer.alloc(length), outcome: 'open' }
    this.#notes.push(note)
    const promise = this.#disk.writeZeroes(offset, length, { unmap: this.#chance(0.5), fua: this.#chance(0.1) })
    const hear = (error: unknown): void => {
      if (error === null) note.outcome = 'done'
      else if (!this.#setup.mayFail || !(error instanceof BlockError) || error.code !== 'EIO') {
        this.#wrong.push(`writeZeroes ${offset}+${length}: ${error}`)
      }
    }
    this.#pending.push(promise.then(() => hear(null), hear))
  }

  #discard(): void {
    const [offset, length] = this.#range(60_000)
    const { limits, size } = this.#disk
    const { block } = this.#setup
    const grain = block ? limits.logicalBlockSize : Math.max(limits.discardGranularity, limits.alignment)
    const start = Math.ceil(offset / grain) * grain
    const end = offset + length === size ? size : Math.floor((offset + length) / grain) * grain
    if (start < end) {
      const outcome = block ? 'open' : 'done'
      this.#notes.push({ kind: 'write', offset: start, data: Buffer.alloc(end - start), outcome })
    }
    const done = this.#disk.discard(offset, length).catch((error: unknown) => {
      // Some devices can't.
      if (!block || !(error instanceof BlockError) || error.code !== 'EOPNOTSUPP') throw error
    })
    this.#carry(done, `discard ${offset}+${length}`)
  }

  #truncate(): void {
    const { size } = this.#disk
    const next = this.#chance(0.5) ? this.#below(size + 1) : Math.min(size + this.#below(GROWTH_MAX), 4 * GROWTH_MAX)
    this.#notes.push({ kind: 'resize', size: next })
    const done = this.#disk.truncate(next)
    if (this.#disk.size !== next) this.#wrong.push(`size is ${this.#disk.size} after a truncation to ${next}`)
    this.#carry(done, `truncate ${next}`)
  }
}

/** Memory that may shrink; the types of the language's version that is compiled for know nothing of it. */
function resizable(size: number): ArrayBuffer {
  const make = ArrayBuffer as unknown as new (size: number, options: { maxByteLength: number }) => ArrayBuffer
  return new make(size, { maxByteLength: size + 100 })
}
