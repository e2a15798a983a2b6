// The options of `open` and `create`, checked by name and value before anything is opened. A name that we do not know is an
// error: a mistyped `readonly` must not open a disk for writing.

import { fileURLToPath } from 'node:url'
import { readSignal } from './abort.ts'
import type { EngineName } from './engine.ts'
import { invalidType, invalidValue, outOfRange } from './errors-argument.ts'
import { MAX_BYTES, MAX_VECTORS } from './native.ts'

/** How requests of a batch are merged. */
export type MergeMode = 'full' | 'sort' | 'off'

/** How requests of a batch are merged; given limits replace the defaults, which follow the device. */
export interface MergeOptions {
  /** `'full'` merges (default), `'sort'` submits sorted but unmerged, `'off'` as given. */
  readonly mode?: MergeMode | undefined
  /** Bytes of one submission, 1 to 0x7ffff000 (the kernel's MAX_RW_COUNT). */
  readonly maxBytes?: number | undefined
  /** Vectors of one submission, 1 to 1024 (the kernel's UIO_MAXIOV). */
  readonly maxSegments?: number | undefined
}

export interface OpenOptions {
  /** What is in the file; never guessed from its content. Default `'raw'`. */
  readonly format?: 'raw' | undefined
  /** Refuses everything that writes. Default `false`. */
  readonly readOnly?: boolean | undefined
  /** O_DIRECT. Default `true` for block devices, `false` for files; asked for and refused by the kernel: an error. */
  readonly direct?: boolean | undefined
  /** O_EXCL: a mounted or claimed device is refused. Default `true` for a writable block device. */
  readonly exclusive?: boolean | undefined
  /** `'auto'` (default) takes the first that works. */
  readonly engine?: 'auto' | EngineName | undefined
  /** Submissions in flight, 1 to 4096; more wait in order. Default 128. */
  readonly queueDepth?: number | undefined
  readonly merge?: MergeOptions | undefined
  /**
   * Microseconds to look for completions before sleeping, 0 to 1,000,000: latency bought with CPU. Default 0. It holds for all
   * devices of the thread while one that asks for it is open.
   */
  readonly busyPollUs?: number | undefined
  /** What lies below an image that names a backing file; a raw image has none. Default `null`. */
  readonly backing?: null | undefined
  /** Whether overlapping operations of different calls take effect in the order of their calls. Default `true`. */
  readonly ordered?: boolean | undefined
}

export interface CreateOptions extends OpenOptions {
  readonly format?: 'raw' | undefined
  /** Size of the image in bytes. */
  readonly size: number | bigint
  /** Allows an existing file or a block device to be used; what is on it is lost. Default `false`. */
  readonly overwrite?: boolean | undefined
}

/** Options of a single read. */
export interface ReadOptions {
  /** Withdraws the request if it has not been submitted when the signal is raised. */
  readonly signal?: AbortSignal | undefined
}

/** Options of a single write. */
export interface WriteOptions extends ReadOptions {
  /** On stable storage when it is answered. */
  readonly fua?: boolean | undefined
}

/** Options of a batch. */
export type BatchOptions = ReadOptions

/** Options of `writeZeroes`. */
export interface ZeroOptions {
  /** The space may be given back to the device or file system. */
  readonly unmap?: boolean | undefined
  /** On stable storage when it is answered. */
  readonly fua?: boolean | undefined
}

/** Options of a call, with their defaults. */
export interface CheckedCallOptions {
  fua: boolean
  unmap: boolean
  signal: AbortSignal | undefined
}

/** Options with their defaults; `undefined` where the default depends on the device. */
export interface CheckedOptions {
  readOnly: boolean
  direct: boolean | undefined
  exclusive: boolean | undefined
  engine: 'auto' | EngineName
  queueDepth: number
  busyPollUs: number
  mode: MergeMode
  maxBytes: number | undefined
  maxSegments: number | undefined
  ordered: boolean
}

export interface CheckedCreateOptions extends CheckedOptions {
  size: number
  overwrite: boolean
}

const ENGINES = ['auto', 'io_uring', 'aio', 'threads'] as const
const MODES = ['full', 'sort', 'off'] as const
const FORMATS = ['raw'] as const
const QUEUE_DEPTH_DEFAULT = 128
const QUEUE_DEPTH_MAX = 4096
const BUSY_POLL_MAX_US = 1_000_000

const OPEN_NAMES = [
  'format',
  'readOnly',
  'direct',
  'exclusive',
  'engine',
  'queueDepth',
  'merge',
  'ordered',
  'busyPollUs',
  'backing',
]
const CREATE_NAMES = [...OPEN_NAMES, 'size', 'overwrite']

/** A path as a string. Throws for what is no path. */
export function checkPath(path: unknown): string {
  if (path instanceof URL) {
    if (path.protocol !== 'file:') throw invalidValue('path', path.href, 'must be a file: URL')
    return fileURLToPath(path)
  }
  if (typeof path !== 'string') throw invalidType('path', ['string', 'URL'], path)
  if (path === '' || path.includes('\0')) throw invalidValue('path', path, 'must be a path without null bytes')
  return path
}

export function checkOpenOptions(options: unknown): CheckedOptions {
  return check(options === undefined ? {} : options, OPEN_NAMES)
}

export function checkCreateOptions(options: unknown): CheckedCreateOptions {
  const checked = check(options, CREATE_NAMES)
  const { size, overwrite, readOnly } = options as Record<string, unknown>
  if (readOnly === true) throw invalidValue('options.readOnly', true, 'must be false: a new image is written to')
  return { ...checked, size: checkSize(size, 'options.size'), overwrite: flag(overwrite, 'overwrite') ?? false }
}

/** A size in bytes: a safe integer, or a `bigint` that is one. */
export function checkSize(size: unknown, name: string): number {
  if (typeof size !== 'number' && typeof size !== 'bigint') throw invalidType(name, ['number', 'bigint'], size)
  const bytes = Number(size)
  if (!Number.isSafeInteger(bytes) || bytes < 0) {
    throw outOfRange(name, `a whole number >= 0 and <= ${Number.MAX_SAFE_INTEGER}`, size)
  }
  return bytes
}

function check(options: unknown, names: readonly string[]): CheckedOptions {
  checkNames(options, 'options', names)
  const { format, readOnly, direct, exclusive, engine, queueDepth, merge, ordered, busyPollUs, backing } = options
  oneOf(format, 'options.format', FORMATS)
  if (backing !== undefined && backing !== null) {
    throw invalidValue('options.backing', backing, 'must be null: a raw image has no backing file')
  }
  const mergeOptions = merge === undefined ? {} : merge
  checkNames(mergeOptions, 'options.merge', ['mode', 'maxBytes', 'maxSegments'])
  return {
    readOnly: flag(readOnly, 'readOnly') ?? false,
    direct: flag(direct, 'direct'),
    exclusive: flag(exclusive, 'exclusive'),
    engine: oneOf(engine, 'options.engine', ENGINES) ?? 'auto',
    queueDepth: whole(queueDepth, 'options.queueDepth', 1, QUEUE_DEPTH_MAX) ?? QUEUE_DEPTH_DEFAULT,
    busyPollUs: whole(busyPollUs, 'options.busyPollUs', 0, BUSY_POLL_MAX_US) ?? 0,
    mode: oneOf(mergeOptions.mode, 'options.merge.mode', MODES) ?? 'full',
    maxBytes: whole(mergeOptions.maxBytes, 'options.merge.maxBytes', 1, MAX_BYTES),
    maxSegments: whole(mergeOptions.maxSegments, 'options.merge.maxSegments', 1, MAX_VECTORS),
    ordered: flag(ordered, 'ordered') ?? true,
  }
}

function checkNames(
  options: unknown,
  name: string,
  names: readonly string[],
): asserts options is Record<string, unknown> {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalidType(name, 'object', options)
  }
  for (const key of Object.keys(options)) {
    if (!names.includes(key)) {
      const value = (options as Record<string, unknown>)[key]
      throw invalidValue(`${name}.${key}`, value, `is unknown; known are ${names.join(', ')}`)
    }
  }
}

function flag(value: unknown, name: string): boolean | undefined {
  if (value !== undefined && typeof value !== 'boolean') throw invalidType(`options.${name}`, 'boolean', value)
  return value
}

function oneOf<T extends string>(value: unknown, name: string, allowed: readonly T[]): T | undefined {
  if (value === undefined) return undefined
  if (typeof value !== 'string') throw invalidType(name, 'string', value)
  if (!(allowed as readonly string[]).includes(value)) {
    throw invalidValue(name, value, `must be one of: ${allowed.map((one) => `'${one}'`).join(', ')}`)
  }
  return value as T
}

function whole(value: unknown, name: string, min: number, max: number): number | undefined {
  if (value === undefined) return undefined
  if (typeof value !== 'number') throw invalidType(name, 'number', value)
  if (!Number.isInteger(value) || value < min || value > max) {
    throw outOfRange(name, `a whole number >= ${min} and <= ${max}`, value)
  }
  return value
}

const NO_CALL_OPTIONS: CheckedCallOptions = { fua: false, unmap: false, signal: undefined }

/** @param names the options that the call knows */
export function checkCallOptions(options: unknown, names: readonly string[]): CheckedCallOptions {
  if (options === undefined) return NO_CALL_OPTIONS
  checkNames(options, 'options', names)
  const { fua, unmap, signal } = options
  return { fua: flag(fua, 'fua') ?? false, unmap: flag(unmap, 'unmap') ?? false, signal: readSignal(signal) }
}
