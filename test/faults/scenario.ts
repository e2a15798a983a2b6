// Everything that a device does, at once, and the judgement of what came of it. Whatever goes wrong below, some things must
// hold: every call is answered exactly once, every byte is what the answers say (that of the last write that succeeded on it,
// or of one that failed after that), no descriptor is left open.
//
// Runs in processes of its own, without the test runner.

import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { type BlockDevice, BlockError, create, MultiwriteError, type OpenOptions, open } from 'multiwrite'

export interface Setup {
  path: string
  options: OpenOptions
  /** Offsets and lengths are multiples of it, in bytes. */
  unit: number
  /**
   * Whether to do all the rest as well: making images, what is done to ranges, asking for the size. And nothing is set up
   * beforehand: what the set-up keeps open is for the end of the thread to close.
   */
  whole?: boolean
}

export interface Outcome {
  /** What can't be explained, in words. */
  wrong: string[]
  /** Code of the error with which the engine's first set-up failed. */
  setUp?: string
  /** Code of `open`'s error; then nothing else was done. */
  refused?: string
  /** Codes of what writes and reads failed with, in the order of their calls. */
  errors: string[]
  /** Per flush, and then for `close`: `ok`, or the code of its error. */
  flushes: string[]
  /** Of the whole: per other call `ok`, or the code of its error; codes only, where there was no memory for `alloc`. */
  others: string[]
  engine: string
  submissions: { write: number; read: number; flush: number; resubmitted: number; rmw: number }
}

/** Size of the target in units. */
export const units = 64

interface Written {
  offset: number
  data: Uint8Array
  failed: boolean
}

/** What was written in the order of the calls, and which bytes that allows. */
class Ledger {
  readonly #old: Buffer
  readonly writes: Written[] = []

  constructor(old: Buffer) {
    this.#old = old
  }

  note(offset: number, data: Uint8Array): Written {
    const written = { offset, data: Uint8Array.from(data), failed: false }
    this.writes.push(written)
    return written
  }

  /** The first byte that none of the first `count` writes explains, in words; `null` where there is none. */
  judge(content: Uint8Array, start: number, count: number): string | null {
    const undecided = new Uint8Array(content.length).fill(1)
    for (const { offset, data, failed } of this.writes.slice(0, count).reverse()) {
      const from = Math.max(offset, start)
      const to = Math.min(offset + data.length, start + content.length)
      for (let at = from; at < to; at++) {
        if (undecided[at - start] === 0) continue
        if (content[at - start] === data[at - offset]) undecided[at - start] = 0
        else if (!failed) return `byte ${at} is ${content[at - start]}, written was ${data[at - offset]}`
      }
    }
    for (let at = 0; at < content.length; at++) {
      if (undecided[at] === 1 && content[at] !== this.#old[start + at]) {
        return `byte ${start + at} is ${content[at]}, it was ${this.#old[start + at]} and nobody wrote that`
      }
    }
    return null
  }
}

export const codeOf = (error: unknown): string => (error instanceof BlockError ? error.code : String(error))

/** What is open, by number and name; without the descriptor that the question itself needs. */
function descriptors(): Set<string> {
  const names = new Set<string>()
  for (const descriptor of fs.readdirSync('/proc/self/fd')) {
    try {
      names.add(`${descriptor} ${fs.readlinkSync(`/proc/self/fd/${descriptor}`)}`)
    } catch {
      // That was it.
    }
  }
  return names
}

/** What was left open: seen twice, since other threads of the process open and close files in between. */
async function leaked(before: ReadonlySet<string>, { path, whole = false }: Setup): Promise<string[]> {
  const left = [...descriptors()].filter((one) => !before.has(one) && (!whole || one.includes(path)))
  if (left.length === 0) return []
  await sleep(50)
  const still = descriptors()
  return left.filter((one) => still.has(one)).map((one) => `left open: ${one}`)
}

/** What the set-up of an engine leaves open is not a leak: so it is there before anything is counted. */
export async function warmUp({ path, options }: Setup): Promise<void> {
  const disk = await open(path, { ...options, readOnly: true })
  await disk.close()
}

/** @param seed makes what is written differ from run to run */
export async function run(setup: Setup, seed: number): Promise<Outcome> {
  const wrong: string[] = []
  const before = descriptors()
  const ledger = new Ledger(fs.readFileSync(setup.path))
  const others: string[] = []
  if (setup.whole) await makeImages(setup, wrong, others)
  let disk: BlockDevice
  try {
    disk = await open(setup.path, setup.options)
  } catch (error) {
    wrong.push(...(await leaked(before, setup)))
    return { wrong, refused: codeOf(error), errors: [], flushes: [], others, engine: '', submissions: counts() }
  }
  const { errors, flushes } = await perform(disk, setup, seed, ledger, wrong, others)
  const { write, read, flushes: flush, resubmitted, rmw } = disk.stats
  wrong.push(...(await leaked(before, setup)))
  const stray = ledger.judge(fs.readFileSync(setup.path), 0, ledger.writes.length)
  if (stray !== null) wrong.push(`on disk: ${stray}`)
  const submissions = counts(write.submissions, read.submissions, flush, resubmitted, rmw)
  return { wrong, errors, flushes, others, engine: disk.engine.name, submissions }
}

function counts(write = 0, read = 0, flush = 0, resubmitted = 0, rmw = 0): Outcome['submissions'] {
  return { write, read, flush, resubmitted, rmw }
}

/** Images of both formats come to be, are written and read, and go. */
async function makeImages({ path, options }: Setup, wrong: string[], others: string[]): Promise<void> {
  for (const format of ['raw', 'qcow2'] as const) {
    const image = `${path}.${format}`
    const data = new Uint8Array(5000).fill(0xa5)
    const into = new Uint8Array(5000)
    let disk: BlockDevice | undefined
    try {
      disk = await create(image, { ...options, format, size: 1 << 20, overwrite: true })
      await disk.write(70_000, data)
      await disk.read(70_000, into)
      if (Buffer.compare(into, data) !== 0) wrong.push(`${format}: something else was read than written`)
      others.push('ok')
    } catch (error) {
      others.push(codeOf(error))
    }
    others.push(await (disk?.close() ?? Promise.resolve()).then(() => 'ok', codeOf))
    fs.rmSync(image, { force: true })
  }
}

/** All calls in one turn, the close among them; resolves when all are answered. */
async function perform(
  disk: BlockDevice,
  { unit, whole = false }: Setup,
  seed: number,
  ledger: Ledger,
  wrong: string[],
  others: string[],
): Promise<{ errors: string[]; flushes: string[] }> {
  const pending: Promise<unknown>[] = []
  const errors: string[] = []
  const flushes: string[] = []
  const judgements: (() => void)[] = []

  const content = (length: number): Uint8Array => {
    const number = seed * 31 + ledger.writes.length
    return Uint8Array.from({ length }, (_, at) => number * 61 + at * 7 + (at >> 8) * 31 + 1)
  }
  /** Memory of every kind: aligned and not, whole and in pieces. */
  const memory = (bytes: Uint8Array, kind: number): Uint8Array | Uint8Array[] => {
    const aligned = (part: Uint8Array): Uint8Array => {
      try {
        const memory = disk.alloc(part.length)
        memory.set(part)
        return memory
      } catch (error) {
        others.push(codeOf(error))
        return Buffer.from(part)
      }
    }
    if (kind === 0) return aligned(bytes)
    if (kind === 1) return Buffer.from(bytes)
    const cut = unit * Math.floor(bytes.length / unit / 2)
    // What is allocated in a row would be one vector: the second piece lies before the first.
    const second = kind === 2 ? bytes.subarray(cut) : aligned(bytes.subarray(cut))
    return [aligned(bytes.subarray(0, cut)), second]
  }
  const request = (at: number, length: number, kind: number) => {
    const written = ledger.note(at * unit, content(length * unit))
    return { written, offset: at * unit, data: memory(written.data, kind) }
  }
  const failed = (written: Written, error: unknown): void => {
    written.failed = true
    errors.push(codeOf(error))
  }
  const flush = (name: string, promise: Promise<void>): void => {
    const place = flushes.push('unanswered') - 1
    const answer = (text: string): void => {
      if (flushes[place] !== 'unanswered') wrong.push(`${name} was answered twice`)
      flushes[place] = text
    }
    pending.push(
      promise.then(
        () => answer('ok'),
        (error: unknown) => answer(codeOf(error)),
      ),
    )
  }

  // A batch of which each request hears for itself: overlaps, chains, containment, one alone, one durable.
  const heard: number[] = []
  const spans: [at: number, length: number][] = [
    [4, 2],
    [0, 3],
    [2, 3],
    [20, 1],
    [21, 2],
    [40, 4],
    [41, 1],
    [10, 1],
    [60, 1],
    [62, 2],
  ]
  const requests = spans.map(([at, length], index) => ({
    ...request(at, length, index % 4),
    ...(index === 7 ? { noMerge: true } : {}),
    ...(index === 8 ? { fua: true } : {}),
    callback(error: Error | null): void {
      heard[index] = (heard[index] ?? 0) + 1
      if (error !== null) failed(requests[index]!.written, error)
    },
  }))
  pending.push(
    disk.multiwrite(requests).then(
      (result) => {
        const own = requests.filter(({ written }) => written.failed).length
        if (result.requests !== spans.length || result.failed !== own) wrong.push(`resolved ${JSON.stringify(result)}`)
        for (let index = 0; index < spans.length; index++) {
          if (heard[index] !== 1) wrong.push(`request ${index} was answered ${heard[index] ?? 0} times`)
        }
      },
      (error: unknown) => wrong.push(`a batch with callbacks rejected: ${String(error)}`),
    ),
  )

  // Single writes, gathered; some overlap the batch.
  for (const [at, length] of [
    [30, 1],
    [31, 1],
    [5, 2],
    [50, 3],
  ] as const) {
    const { written, offset, data } = request(at, length, at % 4)
    pending.push(disk.write(offset, data).catch((error: unknown) => failed(written, error)))
  }

  // Reads of what was written above, and of what was not.
  const known = ledger.writes.length
  const fail = (error: unknown): void => void errors.push(codeOf(error))
  const judgeRead = (at: number, into: Uint8Array | Uint8Array[]): void => {
    const copy = Buffer.concat(into instanceof Uint8Array ? [into] : into)
    judgements.push(() => {
      const stray = ledger.judge(copy, at * unit, known)
      if (stray !== null) wrong.push(`read at ${at}: ${stray}`)
    })
  }
  for (const [at, length] of [
    [4, 3],
    [20, 3],
    [60, 1],
    [12, 1],
  ] as const) {
    const into = memory(new Uint8Array(length * unit), at % 4)
    pending.push(disk.read(at * unit, into).then(() => judgeRead(at, into), fail))
  }
  // The same as a batch, overlaps and all.
  const wanted = [
    [0, 7],
    [3, 2],
    [21, 1],
    [31, 3],
    [33, 1],
  ].map(([at, length], index) => {
    const into = memory(new Uint8Array(length! * unit), index % 4)
    const judge = (): void => judgeRead(at!, into)
    return { offset: at! * unit, into, callback: (error: Error | null) => (error === null ? judge() : fail(error)) }
  })
  pending.push(disk.multiread(wanted).catch((error: unknown) => wrong.push(`reads with callbacks: ${String(error)}`)))
  flush('flush', disk.flush())

  // A batch of which the promise hears.
  const silent = [request(0, 2, 0), request(8, 1, 1), request(22, 2, 2), request(61, 1, 0)]
  pending.push(
    disk.multiwrite(silent).then(
      () => undefined,
      (error: unknown) => {
        if (!(error instanceof MultiwriteError)) return void wrong.push(`a batch rejected with ${String(error)}`)
        for (const [at, index] of error.failed.entries()) failed(silent[index]!.written, error.errors[at])
      },
    ),
  )
  flush('second flush', disk.flush())
  if (whole) {
    const other = (promise: Promise<void>, done?: () => void): void => {
      const place = others.push('unanswered') - 1
      const answer = (text: string): void => {
        if (others[place] !== 'unanswered') wrong.push('a call was answered twice')
        others[place] = text
      }
      pending.push(
        promise.then(
          () => {
            answer('ok')
            done?.()
          },
          (error: unknown) => answer(codeOf(error)),
        ),
      )
    }
    /** Zeros, or what was there before, until it is known to have been done. */
    const zeros = (at: number, length: number): Written => {
      const written = ledger.note(at * unit, new Uint8Array(length * unit))
      written.failed = true
      return written
    }
    // What lies between whole blocks is not discarded.
    zeros(12, 8)
    other(disk.discard(12 * unit, 8 * unit))
    for (const [at, length, unmap] of [
      [24, 4, false],
      [44, 5, true],
      [3, 1, true],
    ] as const) {
      const written = zeros(at, length)
      other(disk.writeZeroes(at * unit, length * unit, { unmap, fua: at === 3 }), () => {
        written.failed = false
      })
    }
    other(disk.refresh())
    other(disk.truncate(disk.size))
  }
  flush('close', disk.close())

  await Promise.all(pending)
  for (const judge of judgements) judge()
  return { errors, flushes }
}
