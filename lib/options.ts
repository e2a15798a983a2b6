// The options of `open` and `create`, checked by name and value before anything is opened. A name that we do not know is an
// error: a mistyped `readonly` must not open a disk for writing.

import { fileURLToPath } from 'node:url'
import { readSignal } from './abort.ts'
import type { EngineName } from './engine.ts'
import { invalidType, invalidValue, outOfRange } from './errors-argument.ts'
import type { FormatBacking, FormatDriver } from './format/driver.ts'
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

/** What lies below an image that stores only what differs. */
export type Backing = FormatBacking | BackingFile

/** An image that is to be opened read-only. */
export interface BackingFile {
  readonly path: string | URL
  readonly format: 'raw' | 'qcow2' | FormatDriver
  /** What lies below that one. */
  readonly backing?: Backing | null | undefined
}

/** Options of `open`. */
export interface OpenOptions {
  /** What is in the file, or a driver that knows it; never guessed from its content. Default `'raw'`. */
  readonly format?: 'raw' | 'qcow2' | FormatDriver | undefined
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
  /**
   * What lies below an image: an open device, which stays the caller's, or a path with its format, opened read-only and closed
   * with the image, or `null` for nothing. A path that an image names is never followed: one that names one is refused unless
   * this option is given. A raw image has nothing below it.
   */
  readonly backing?: Backing | null | undefined
  /** Whether overlapping operations of different calls take effect in the order of their calls. Default `true`. */
  readonly ordered?: boolean | undefined
}

/** Options of `create`. */
export interface CreateOptions extends OpenOptions {
  /** Size of the image in bytes; of qcow2 a multiple of 512. */
  readonly size: number | bigint
  /** qcow2: bytes that are allocated as one, a power of two from 512 to 2 MiB. Default 65,536. */
  readonly clusterSize?: number | undefined
  /** qcow2: width of a reference count, a power of two from 1 to 64. Default 16. */
  readonly refcountBits?: number | undefined
  /** qcow2: reference counts are written when the image is closed, and rebuilt if it never was. Default `false`. */
  readonly lazyRefcounts?: boolean | undefined
  /** qcow2: `'metadata'` allocates everything without writing it. Default `'off'`. */
  readonly preallocation?: 'off' | 'metadata' | undefined
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

/** Options of `check`. */
export interface CheckOptions {
  /** Gives lost space back and sets reference counts right. Default `false`. */
  readonly repair?: boolean | undefined
}

/** Options of a call, with their defaults. */
export interface CheckedCallOptions {
  fua: boolean
  unmap: boolean
  repair: boolean
  signal: AbortSignal | undefined
}

/** Options with their defaults; `undefined` where the default depends on the device. */
export interface CheckedOptions {
  format: 'raw' | 'qcow2' | FormatDriver
  /** `undefined`: not given. */
  backing: FormatBacking | CheckedBacking | null | undefined
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

/** A backing file to be opened. */
export interface CheckedBacking {
  path: string
  options: CheckedOptions
}

export interface CheckedCreateOptions extends CheckedOptions {
  size: number
  overwrite: boolean
  clusterSize: number | undefined
  refcountBits: number | undefined
  lazyRefcounts: boolean | undefined
  preallocation: 'off' | 'metadata' | undefined
}

const ENGINES = ['auto', 'io_uring', 'aio', 'threads'] as const
const MODES = ['full', 'sort', 'off'] as const
const FORMATS = ['raw', 'qcow2'] as const
const PREALLOCATIONS = ['off', 'metadata'] as const
/** Images below images below images: more than anybody has, fewer than would exhaust anything. */
const BACKING_DEPTH_MAX = 64
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
const DRIVER_NAMES = ['clusterSize', 'refcountBits', 'lazyRefcounts', 'preallocation']
const CREATE_NAMES = [...OPEN_NAMES, 'size', 'overwrite', ...DRIVER_NAMES]

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
  const { clusterSize, refcountBits, lazyRefcounts, preallocation } = options as Record<string, unknown>
  if (checked.format === 'raw') {
    for (const name of DRIVER_NAMES) {
      const value = (options as Record<string, unknown>)[name]
      if (value !== undefined)
        throw invalidValue(
          `options.${name}`,
          value,
          'is not known to the format raw: leave it out, or pass another format',
        )
    }
  }
  return {
    ...checked,
    size: checkSize(size, 'options.size'),
    overwrite: flag(overwrite, 'overwrite') ?? false,
    clusterSize: powerOfTwo(clusterSize, 'options.clusterSize', 512, 2 << 20),
    refcountBits: powerOfTwo(refcountBits, 'options.refcountBits', 1, 64),
    lazyRefcounts: flag(lazyRefcounts, 'lazyRefcounts'),
    preallocation: oneOf(preallocation, 'options.preallocation', PREALLOCATIONS),
  }
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
  const checkedFormat = checkFormat(format, 'options.format') ?? 'raw'
  const mergeOptions = merge === undefined ? {} : merge
  checkNames(mergeOptions, 'options.merge', ['mode', 'maxBytes', 'maxSegments'])
  const checked: CheckedOptions = {
    format: checkedFormat,
    backing: undefined,
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
  checked.backing = checkBacking(backing, 'options.backing', checked, 0)
  return checked
}

function checkFormat(format: unknown, name: string): 'raw' | 'qcow2' | FormatDriver | undefined {
  if (typeof format !== 'object' || format === null) {
    if (format !== undefined && typeof format !== 'string')
      throw invalidType(name, ['string', 'a FormatDriver'], format)
    return oneOf(format, name, FORMATS)
  }
  const driver = format as Partial<FormatDriver>
  if (typeof driver.name !== 'string') throw invalidType(`${name}.name`, 'string', driver.name)
  if (typeof driver.open !== 'function') throw invalidType(`${name}.open`, 'function', driver.open)
  return format as FormatDriver
}

/** What is opened for an image below another one has that one's engine and limits. */
function checkBacking(
  backing: unknown,
  name: string,
  above: CheckedOptions,
  depth: number,
): FormatBacking | CheckedBacking | null | undefined {
  if (backing === undefined || backing === null) return backing
  if (above.format === 'raw') throw invalidValue(name, backing, 'must be null: a raw image has no backing file')
  if (typeof backing !== 'object') throw invalidType(name, ['object', 'null'], backing)
  const { read, size } = backing as Partial<FormatBacking>
  if (typeof read === 'function' && typeof size === 'number') return backing as FormatBacking
  if (depth === BACKING_DEPTH_MAX)
    throw invalidValue(
      name,
      backing,
      `is deeper than ${BACKING_DEPTH_MAX} images: make one image of some of them (qemu-img convert)`,
    )
  checkNames(backing, name, ['path', 'format', 'backing'])
  const format = checkFormat(backing.format, `${name}.format`)
  // Never guessed: who writes to a raw disk could make it look like anything.
  if (format === undefined) throw invalidType(`${name}.format`, ['string', 'a FormatDriver'], format)
  const path = checkPath(backing.path)
  const options: CheckedOptions = { ...above, format, readOnly: true, exclusive: undefined, backing: undefined }
  options.backing = checkBacking(backing.backing, `${name}.backing`, options, depth + 1)
  return { path, options }
}

function powerOfTwo(value: unknown, name: string, min: number, max: number): number | undefined {
  const number = whole(value, name, min, max)
  if (number === undefined || Number.isInteger(Math.log2(number))) return number
  throw outOfRange(name, `a power of two >= ${min} and <= ${max}`, value)
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

const NO_CALL_OPTIONS: CheckedCallOptions = { fua: false, unmap: false, repair: false, signal: undefined }

/** @param names the options that the call knows */
export function checkCallOptions(options: unknown, names: readonly string[]): CheckedCallOptions {
  if (options === undefined) return NO_CALL_OPTIONS
  checkNames(options, 'options', names)
  const { fua, unmap, repair, signal } = options
  return {
    fua: flag(fua, 'fua') ?? false,
    unmap: flag(unmap, 'unmap') ?? false,
    repair: flag(repair, 'repair') ?? false,
    signal: readSignal(signal),
  }
}
