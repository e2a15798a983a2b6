// Batches whose memory is taken away while they are on their way: transferred, shrunk, regrown, or simply forgotten, with the
// collector run at once and its pages given to others. Whatever happens, a request either fails with EFAULT or was carried
// out; one whose memory nobody touched is carried out; no byte outside of a request's own range changes, on disk or in memory.
//
// Runs in a process of its own and prints one line of JSON: what could not be explained, and what came of the requests.

import fs from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { type BlockDevice, BlockError, type OpenOptions, open } from 'multiwrite'

export interface Plan {
  path: string
  options: OpenOptions
  /** Buffers to take away, at the least. */
  count: number
  /** Pages of the longest request. Long ones are still on their way when the memory of the last has gone. */
  pages: number
  /** Ranges that are no multiples of anything; else of a page. */
  odd: boolean
}

export interface Report {
  wrong: string[]
  /** Requests whose memory was taken away: those that failed, and those that were done in time. */
  failed: number
  done: number
  untouched: number
}

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as () => void

const { path, options, count, pages, odd } = JSON.parse(process.env.PLAN ?? '') as Plan

const page = 4096
const cells = 32
const cell = pages * page
const filler = 0xdd

/** What is written is a piece of this, so that it tells where it was taken from. */
const contents = Buffer.from(Uint8Array.from({ length: cell + 256 }, (_, i) => (i * 7 + (i >> 8) * 31) & 0xff))
const fillers = Buffer.alloc(cell, filler)

const disk = await open(path, options)
const model = fs.readFileSync(path)
const report: Report = { wrong: [], failed: 0, done: 0, untouched: 0 }

let state = 1
function random(below: number): number {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
  return Math.floor((state / 2 ** 32) * below)
}
function oneOf<T>(choices: readonly T[]): T {
  return choices[random(choices.length)] as T
}

type Resizable = ArrayBuffer & { resize(length: number): void }
const ResizableBuffer = ArrayBuffer as unknown as new (length: number, options: { maxByteLength: number }) => Resizable

/** What may happen to plain memory, to resizable memory, and to all memory. */
const plain = ['transfer', 'transfer and keep', 'post'] as const
const resizable = ['shrink', 'empty', 'shrink and grow', 'grow', 'transfer'] as const
type Mishap = (typeof plain)[number] | (typeof resizable)[number] | 'nothing'

interface Request {
  offset: number
  length: number
  /** What is to be on disk when it is done; for a read, what is there. */
  bytes: Buffer
  /** Forgotten once the call is made, if it is to be collected. */
  view: Uint8Array | null
  buffer: ArrayBuffer | SharedArrayBuffer | null
  mishap: Mishap
  kept: { memory: Uint8Array; before: Buffer } | null
  error: unknown
}

function newRequest(at: number, write: boolean): Request {
  const whole = page * oneOf([1, 2, pages >> 1, pages, pages])
  const cut = odd ? random(page / 2) : 0
  const length = whole - cut
  const offset = at * cell + (random(2) === 0 ? 0 : cell - length)
  const skew = random(2) * 24
  const kind = oneOf(['plain', 'plain', 'plain', 'resizable', 'shared', 'pool'] as const)
  const size = length + skew
  let buffer: ArrayBuffer | SharedArrayBuffer
  let view: Uint8Array
  let mishap: Mishap = 'nothing'
  if (kind === 'pool') {
    view = disk.alloc(length)
    buffer = view.buffer as SharedArrayBuffer
  } else if (kind === 'shared') {
    buffer = new SharedArrayBuffer(size)
    view = new Uint8Array(buffer, skew, length)
  } else if (kind === 'resizable') {
    buffer = new ResizableBuffer(size, { maxByteLength: size * 2 })
    view = new Uint8Array(buffer, skew, length)
    if (random(3) > 0) mishap = oneOf(resizable)
  } else {
    buffer = new ArrayBuffer(size)
    view = Buffer.from(buffer, skew, length)
    if (random(3) > 0) mishap = oneOf(plain)
  }
  const first = random(256)
  const bytes = write ? contents.subarray(first, first + length) : Buffer.from(model.subarray(offset, offset + length))
  if (write) view.set(bytes)
  else view.fill(0xaa)
  return { offset, length, bytes, view, buffer, mishap, kept: null, error: undefined }
}

/** Takes the memory away, or at least forgets it. */
function strike(request: Request): void {
  const buffer = request.buffer as Resizable
  const size = buffer.byteLength
  switch (request.mishap) {
    case 'transfer':
      structuredClone(buffer, { transfer: [buffer] })
      break
    case 'transfer and keep': {
      const memory = new Uint8Array(structuredClone(buffer, { transfer: [buffer] }))
      request.kept = { memory, before: Buffer.from(memory) }
      break
    }
    case 'post': {
      const { port1, port2 } = new MessageChannel()
      port1.postMessage(buffer, [buffer])
      port2.close()
      break
    }
    case 'shrink':
      buffer.resize(size >> 1)
      break
    case 'empty':
      buffer.resize(0)
      break
    case 'shrink and grow':
      buffer.resize(size >> 1)
      buffer.resize(size)
      break
    case 'grow':
      buffer.resize(size * 2)
      break
  }
}

function send(disk: BlockDevice, requests: readonly Request[], write: boolean, single: boolean): Promise<unknown>[] {
  const note =
    (request: Request) =>
    (error: unknown): void => {
      request.error = error
    }
  if (!write || single) {
    return requests.map((request) => {
      const view = request.view as Uint8Array
      const call = write ? disk.write(request.offset, view) : disk.read(request.offset, view)
      return call.then(() => note(request)(null), note(request))
    })
  }
  return [
    disk.multiwrite(
      requests.map((request) => ({
        offset: request.offset,
        data: request.view as Uint8Array,
        callback: note(request),
      })),
    ),
  ]
}

const differs = (actual: Uint8Array, expected: Uint8Array): boolean => Buffer.compare(actual, expected) !== 0

async function round(number: number): Promise<void> {
  const write = random(2) === 0
  // Neighbours touch where both fill their cells: such are merged and share what the kernel answers.
  const requests = Array.from({ length: cells }, (_, at) => newRequest(at, write)).filter(() => random(4) > 0)
  const promises = send(disk, requests, write, random(2) === 0)
  for (let turns = random(3); turns > 0; turns--) await nextTurn()
  for (const request of requests) {
    // An answered request's memory is its owner's again.
    if (request.error !== undefined) request.mishap = 'nothing'
    strike(request)
    // A write's memory is nobody's from now on; a read's is looked at again at the end.
    if (write) request.view = null
    request.buffer = null
  }
  gc()
  const others = Array.from({ length: 8 }, () => Buffer.alloc(cell, filler))
  gc()
  await Promise.all(promises)

  const content = fs.readFileSync(path)
  for (const { offset, length, bytes, view, mishap, kept, error } of requests) {
    const what = `round ${number}, ${write ? 'write' : 'read'} at ${offset}, ${mishap}`
    const there = content.subarray(offset, offset + length)
    const harmless = mishap === 'nothing' || mishap === 'grow'
    const taken = !harmless && mishap !== 'shrink and grow'
    if (error !== null && !(error instanceof BlockError && error.code === 'EFAULT'))
      report.wrong.push(`${what}: ${error}`)
    if (error !== null && harmless) report.wrong.push(`${what}: ${error}`)
    if (error === null && !write && taken) report.wrong.push(`${what}: nothing was said`)
    if (error === null && write && mishap !== 'shrink and grow' && differs(there, bytes)) {
      report.wrong.push(`${what}: other bytes are on disk`)
    }
    if (error === null && !write && harmless && differs(view as Uint8Array, bytes)) {
      report.wrong.push(`${what}: other bytes were read`)
    }
    if (kept !== null && differs(kept.memory, kept.before))
      report.wrong.push(`${what}: its memory was written to later`)
    if (harmless) report.untouched++
    else if (error === null) report.done++
    else report.failed++
    // What a failed write leaves in its own range is open.
    if (write) there.copy(model, offset)
  }
  if (differs(content, model)) report.wrong.push(`round ${number}: bytes changed outside of all requests`)
  for (const other of others) {
    if (differs(other, fillers)) report.wrong.push(`round ${number}: memory of others was written to`)
  }
}

for (let number = 0; report.failed + report.done < count; number++) await round(number)
await disk.close()
fs.writeSync(1, JSON.stringify({ ...report, wrong: report.wrong.slice(0, 20) }))
