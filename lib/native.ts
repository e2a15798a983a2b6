// The only file that touches the addon: loads it, checks that both speak the same layout, and gives it its types.
//
// Each load gets an addon state of its own (process.dlopen instead of require), so that two copies of this module in one
// thread do not share tables by accident.

import { createRequire } from 'node:module'
import { constants } from 'node:os'
import { loadFirst } from './addon-file.ts'

/** Must equal kLayoutVersion in native/layout.h. */
export const LAYOUT_VERSION = 1

/** Fields of a record in the request table. */
export const REQUEST = {
  op: 0,
  flags: 1,
  file: 2,
  slot: 3,
  firstVector: 4,
  vectorCount: 5,
  offset: 6,
  stride: 7,
} as const
/** Fields of a record in the vector table. */
export const VECTOR = { region: 0, start: 1, length: 2, stride: 3 } as const
/** Fields of a record in the result table. */
export const RESULT = { slot: 0, value: 1, stride: 2 } as const
/** Operations. */
export const OP = { read: 0, write: 1, fdatasync: 2 } as const
/** Operations of `changeRange`. */
export const RANGE_OP = { discard: 0, zero: 1, zeroUnmap: 2, truncate: 3 } as const
/** RWF_DSYNC: the write is on stable storage when it is reported. */
export const FLAG_DSYNC = 1
/** UIO_MAXIOV: vectors of one system call. */
export const MAX_VECTORS = 1024
/** MAX_RW_COUNT: bytes of one system call; the kernel cuts what is longer. */
export const MAX_BYTES = 0x7ffff000

/** Engines by their number in the addon. */
export const ENGINE_KIND = { io_uring: 0, aio: 1, threads: 2 } as const

/** A system call that failed. */
export interface Failure {
  errno: number
  syscall: string
}

/** What the kernel says of an open file; sizes in bytes, 0 where it does not say. */
export interface Geometry {
  blockDevice: boolean
  regularFile: boolean
  deviceReadOnly: boolean
  size: number
  logicalBlockSize: number
  physicalBlockSize: number
  optimalIoSize: number
  fileBlockSize: number
  directAlignmentKnown: boolean
  directMemoryAlignment: number
  directOffsetAlignment: number
  major: number
  minor: number
}

/** A file that the addon has opened. */
export interface OpenFile extends Geometry {
  /** Its number in the addon. */
  file: number
  /** Its number in the process. */
  descriptor: number
}

/** Called with a result; with nothing where there was no memory for one. */
type Done<T> = (result: T | undefined) => void
/** `undefined`: started, it will call. An errno: it could not be started, and calls nobody. */
type Started = number | undefined

export interface Addon {
  layout: { version: number; requestStride: number; vectorStride: number; resultStride: number; maxVectors: number }
  attach(
    requests: Float64Array,
    vectors: Float64Array,
    results: Float64Array,
    drained: (count: number) => void,
    version: number,
  ): number
  startEngine(kind: number): Failure | undefined
  open(path: string, flags: number, kind: number, done: Done<OpenFile | Failure>): Started
  geometry(file: number, done: Done<Geometry | Failure>): Started
  changeRange(file: number, op: number, offset: number, length: number, done: Done<Failure>): Started
  /** What can't be started is done at once, and answered with its errno, or 0. */
  close(file: number, done: Done<Failure>): Started
  /** -1 for want of memory. */
  addRegion(view: Uint8Array): number
  removeRegion(id: number): void
  address(view: Uint8Array): number
  adjustExternalMemory(bytes: number): void
  setBusyPoll(microseconds: number): void
  submit(count: number, views: readonly Uint8Array[] | undefined): number
}

let loaded: Addon | undefined

/** The addon, loaded at the first call. Throws where there is none that fits, as `loadFirst` does. */
export function addon(): Addon {
  loaded ??= load()
  return loaded
}

function load(): Addon {
  const { Module } = createRequire(import.meta.url)('node:module') as typeof import('node:module')
  return loadFirst((path) => {
    // A module object of Node's own kind: dlopen reads and sets `exports` on it, and errors name its `filename`.
    const module = new Module(path)
    process.dlopen(module, path)
    const native = module.exports as Addon
    const { layout } = native
    if (
      layout.version !== LAYOUT_VERSION ||
      layout.requestStride !== REQUEST.stride ||
      layout.vectorStride !== VECTOR.stride ||
      layout.resultStride !== RESULT.stride ||
      layout.maxVectors !== MAX_VECTORS
    ) {
      throw new Error('it was built for another version; rebuild it with: npm run build:native')
    }
    return native
  })
}

/** What blocks: run by the addon on another thread. What can't be is a failure like any other; none of them reject. */
export const blocking = {
  open: (path: string, flags: number, kind: number): Promise<OpenFile | Failure> =>
    answered('open', (done) => addon().open(path, flags, kind, done)),
  geometry: (file: number): Promise<Geometry | Failure> => answered('statx', (done) => addon().geometry(file, done)),
  changeRange: (file: number, op: number, offset: number, length: number): Promise<Failure> =>
    answered(op === RANGE_OP.truncate ? 'ftruncate' : 'fallocate', (done) =>
      addon().changeRange(file, op, offset, length, done),
    ),
  /** The descriptor is gone afterwards, whatever the answer. */
  close: (file: number): Promise<Failure> => answered('close', (done) => addon().close(file, done)),
} as const

function answered<T extends object>(
  syscall: string,
  start: (done: Done<T | Failure>) => Started,
): Promise<T | Failure> {
  return new Promise((resolve) => {
    const errno = start((result) => resolve(result ?? { errno: constants.errno.ENOMEM, syscall }))
    if (errno !== undefined) resolve({ errno, syscall })
  })
}

export function isFailure(value: object): value is Failure {
  return 'syscall' in value
}
