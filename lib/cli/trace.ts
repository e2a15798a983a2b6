// Recorded block traffic, read from (gzip'd) CSV: `batch,time_us,op,offset,length`, one request a line in arrival order.
//
// A trace is checked whole before anything is replayed: whoever replays it overwrites a disk, and half a trace on a disk is
// worse than none. So every complaint is a `TraceError` that names the file and the line. Columns after the fifth are ignored,
// which lets the same reader count the submissions that QEMU made from a trace (they carry a sixth column). The whole trace is
// held in memory, about 100 bytes per request.

import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { gunzip } from 'node:zlib'

/** Write, read, flush, discard, write zeroes. */
export type Op = 'W' | 'R' | 'F' | 'D' | 'Z'

export interface TraceRequest {
  /** The line of the file, the header being line 1. */
  line: number
  op: Op
  /** Bytes from the start of the disk; 0 for a flush. */
  offset: number
  /** Bytes; 0 for a flush. */
  length: number
}

export interface Trace {
  path: string
  /** The requests that reached the device together, in order of arrival. Never empty, nor is any batch. */
  batches: TraceRequest[][]
  /** How many requests of each kind. */
  counts: Record<Op, number>
  /** How many bytes the requests of each kind have together. */
  bytes: Record<Op, number>
  /** Where the furthest write, read or zeroing ends: the least size of a disk that the trace fits on. */
  end: number
  /** Where the furthest request of any kind ends: most often the size of the disk that was recorded. */
  diskEnd: number
  /** Lines in the file, the header included; no request's `line` is above it. */
  lines: number
}

/** A trace that cannot be read or replayed; the message names the file and, where there is one, the line. */
export class TraceError extends Error {
  override name = 'TraceError'
}

/** Offsets and lengths must be multiples of this. Disks do not take less, and the record of who wrote what is kept by it. */
export const SECTOR_BYTES = 512

/** No recording comes near it; a small file that unpacks to more is not one. */
const TEXT_BYTES_MAX = 512 * 1024 * 1024

const HEADER = 'batch,time_us,op,offset,length'

const WHOLE_NUMBER = /^\d+$/
/** What recordings of the kernel's block layer have for a request that reached the device with no other. */
const NO_BATCH = '-1'

const isOp = (text: string): text is Op => text.length === 1 && 'WRFDZ'.includes(text)

/**
 * Reads and checks a trace, gzip'd or plain.
 *
 * @throws TraceError if the file cannot be read, is no trace, or holds requests that are not whole sectors.
 */
export async function readTrace(path: string): Promise<Trace> {
  let bytes: Buffer
  try {
    bytes = await readFile(path)
    if (bytes[0] === 0x1f && bytes[1] === 0x8b) {
      bytes = await promisify(gunzip)(bytes, { maxOutputLength: TEXT_BYTES_MAX })
    }
  } catch (error) {
    throw new TraceError(
      `trace ${path} cannot be read: ${(error as Error).message}; name a recording, as it is or packed by gzip`,
      { cause: error },
    )
  }
  return parseTrace(bytes.toString('utf8'), path)
}

/**
 * Parses the text of a trace; `path` is for messages.
 *
 * @throws TraceError naming the line.
 */
export function parseTrace(text: string, path: string): Trace {
  const lines = text.split('\n')
  if (lines.at(-1) === '') lines.pop()
  const header = (lines[0] ?? '').trimEnd()
  if (header !== HEADER && !header.startsWith(`${HEADER},`)) {
    throw new TraceError(`${path}:1: not a trace: the first line should be "${HEADER}"`)
  }

  const trace: Trace = {
    path,
    batches: [],
    counts: { W: 0, R: 0, F: 0, D: 0, Z: 0 },
    bytes: { W: 0, R: 0, F: 0, D: 0, Z: 0 },
    end: 0,
    diskEnd: 0,
    lines: lines.length,
  }
  let batchNumber: number | null = null
  let batch: TraceRequest[] = []
  for (let index = 1; index < lines.length; index++) {
    const where = `${path}:${index + 1}`
    const fields = lines[index]!.trimEnd().split(',')
    if (fields.length < 5)
      throw new TraceError(`${where}: ${fields.length} of the 5 fields "${HEADER}": write them all`)
    const number = fields[0] === NO_BATCH ? null : wholeNumber(fields[0]!, 'batch', where)
    wholeNumber(fields[1]!, 'time_us', where)
    const request = parseRequest(fields[2]!, fields[3]!, fields[4]!, index + 1, where)
    if (number === null || number !== batchNumber) {
      batchNumber = number
      batch = []
      trace.batches.push(batch)
    }
    batch.push(request)
    trace.counts[request.op]++
    trace.bytes[request.op] += request.length
    const end = request.offset + request.length
    trace.diskEnd = Math.max(trace.diskEnd, end)
    if (request.op !== 'D') trace.end = Math.max(trace.end, end)
  }
  if (trace.batches.length === 0) throw new TraceError(`${path}: no requests: name a recording that has some`)
  return trace
}

function parseRequest(op: string, offsetText: string, lengthText: string, line: number, where: string): TraceRequest {
  if (!isOp(op)) throw new TraceError(`${where}: op "${op}" is none of W, R, F, D, Z: write one of these`)
  const offset = wholeNumber(offsetText, 'offset', where)
  const length = wholeNumber(lengthText, 'length', where)
  if (op === 'F') return { line, op, offset: 0, length: 0 }
  if (length === 0) throw new TraceError(`${where}: length is 0: leave the line out`)
  if (!Number.isSafeInteger(offset + length))
    throw new TraceError(`${where}: the end of the range is above 2^53: leave the line out`)
  if (offset % SECTOR_BYTES !== 0) {
    throw new TraceError(
      `${where}: offset ${offset} is not a multiple of ${SECTOR_BYTES}: only whole sectors can be replayed`,
    )
  }
  if (length % SECTOR_BYTES !== 0) {
    throw new TraceError(
      `${where}: length ${length} is not a multiple of ${SECTOR_BYTES}: only whole sectors can be replayed`,
    )
  }
  return { line, op, offset, length }
}

function wholeNumber(text: string, field: string, where: string): number {
  const value = WHOLE_NUMBER.test(text) ? Number(text) : Number.NaN
  if (!Number.isSafeInteger(value))
    throw new TraceError(`${where}: ${field} "${text}" is not a whole number: write one`)
  return value
}
