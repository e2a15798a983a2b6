// A block device or image file as users see it: its face, and the checks of what they pass. What passes goes to the dispatch.

import { constants } from 'node:os'
import { throwIfAborted } from './abort.ts'
import { Blocks } from './blocks.ts'
import type { EngineInfo } from './choose-engine.ts'
import { type BatchResult, Dispatch } from './dispatch.ts'
import type { Engine } from './engine.ts'
import { BlockError } from './errors.ts'
import { invalidType, outOfRange } from './errors-argument.ts'
import type { DeviceLimits } from './limits.ts'
import { ALLOC_MAX, alignedBuffer, PAGE_SIZE } from './memory.ts'
import { blocking, type Failure, type Geometry, isFailure } from './native.ts'
import {
  type BatchOptions,
  type CheckedOptions,
  checkCallOptions,
  checkSize,
  type MergeMode,
  type ReadOptions,
  type WriteOptions,
  type ZeroOptions,
} from './options.ts'
import type { Limits } from './planner/units.ts'
import { Ranges } from './ranges.ts'
import {
  type Data,
  NO_INDEX,
  type ReadRequest,
  readData,
  readOffset,
  readRequests,
  type WriteRequest,
} from './requests.ts'
import { newCounters, type Stats, snapshot } from './stats.ts'

const { EBADF, EOPNOTSUPP, EROFS } = constants.errno

const READ_OPTIONS = ['signal']
const WRITE_OPTIONS = ['fua', 'signal']

/** What `open` found; for the constructor. */
export interface Opened {
  file: number
  /** A second descriptor without O_DIRECT, for the partial block at the end of a direct file; -1: none. */
  tailFile: number
  geometry: Geometry
  direct: boolean
  path: string
  engine: EngineInfo
  limits: DeviceLimits
  options: CheckedOptions
}

/** An open block device or image file. Made by `open` and `create`. */
export class BlockDevice {
  /** As it was given to `open`. */
  readonly path: string
  readonly format: string = 'raw'
  readonly readOnly: boolean
  /** Whether the kernel accepted O_DIRECT: the page cache is not used. */
  readonly direct: boolean
  /** The engine that serves this device, final since `open`, and why it is this one. */
  readonly engine: EngineInfo
  /** What the device can do, in bytes. */
  readonly limits: DeviceLimits
  /** The size that all accepted truncations leave; `#blocks.size` is that which the target has now. */
  #size: number
  #truncations = 0
  /** How many have ended well. */
  #truncated = 0
  readonly #file: number
  readonly #tailFile: number
  readonly #blockDevice: boolean
  readonly #blocks: Blocks
  readonly #mode: MergeMode
  readonly #merge: Limits
  readonly #counters = newCounters()
  readonly #dispatch: Dispatch
  readonly #ranges: Ranges
  readonly #releaseEngine: () => void
  #closing: Promise<void> | null = null

  /** For `open`. */
  constructor(engine: Engine, opened: Opened) {
    const { options, limits, geometry, file, tailFile, direct, path } = opened
    this.path = path
    this.readOnly = options.readOnly
    this.direct = direct
    this.engine = opened.engine
    this.limits = limits
    this.#size = geometry.size
    this.#file = file
    this.#tailFile = tailFile
    this.#blockDevice = geometry.blockDevice
    this.#blocks = new Blocks(limits.alignment, tailFile >= 0, !geometry.blockDevice)
    this.#blocks.size = geometry.size
    this.#mode = options.mode
    this.#merge = mergeLimits(options, limits)
    const { alignment, memoryAlignment } = limits
    this.#releaseEngine = () => engine.busyPoll(options.busyPollUs, -1)
    engine.busyPoll(options.busyPollUs, 1)
    this.#dispatch = new Dispatch(engine, {
      path,
      engineName: opened.engine.name,
      target: {
        file,
        tailFile,
        direct,
        alignment,
        memoryAlignment,
        // The page cache and threads submit one by one.
        kernelMerges: direct && opened.engine.name !== 'threads',
      },
      blocks: this.#blocks,
      mode: options.mode,
      merge: this.#merge,
      queueDepth: options.queueDepth,
      ordered: options.ordered,
      counters: this.#counters,
    })
    this.#ranges = new Ranges({
      file,
      path,
      engine: opened.engine.name,
      blockDevice: geometry.blockDevice,
      granularity: geometry.blockDevice ? limits.logicalBlockSize : Math.max(geometry.fileBlockSize, alignment),
      blocks: this.#blocks,
      dispatch: this.#dispatch,
      counters: this.#counters,
    })
  }

  /** Bytes. */
  get size(): number {
    return this.#size
  }

  /** How batches are merged, with the limits in force. */
  get merge(): { mode: MergeMode; maxBytes: number; maxSegments: number } {
    return { mode: this.#mode, ...this.#merge }
  }

  /** Counters since `open`: a fresh plain object with each use. */
  get stats(): Stats {
    return snapshot(this.#counters)
  }

  /**
   * Writes a batch: sorted, merged, submitted at once, each request answered by its own callback. The result is that of
   * carrying the requests out one after another, in array order.
   *
   * @returns resolves when every request is done and the last callback has returned; rejects with a `MultiwriteError` if a
   *   request without a callback failed, or, with nothing done, for a wrong argument
   */
  multiwrite(requests: readonly WriteRequest[], options?: BatchOptions): Promise<BatchResult> {
    return this.#batch(requests, options, false)
  }

  /**
   * Reads a batch: sorted, merged, submitted at once, each request answered by its own callback. What several requests ask
   * for is read once.
   *
   * @returns as `multiwrite`
   */
  multiread(requests: readonly ReadRequest[], options?: BatchOptions): Promise<BatchResult> {
    return this.#batch(requests, options, true)
  }

  #batch(requests: unknown, options: unknown, read: boolean): Promise<BatchResult> {
    try {
      this.#check(read ? 'read' : 'write')
      const { signal } = checkCallOptions(options, READ_OPTIONS)
      const work = readRequests(requests, this.#size, read)
      this.#checkOpen(read ? 'read' : 'write')
      throwIfAborted(signal)
      return this.#dispatch.run(work, signal)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /**
   * Writes one request. Calls of one turn of JavaScript go out as one batch.
   *
   * @param offset bytes from the start of the device
   * @returns resolves when the request is done; rejects with its `BlockError`
   */
  write(offset: number | bigint, data: Data, options?: WriteOptions): Promise<void> {
    // Not an async function: its promise around the dispatch's would cost as much as the rest of the call.
    try {
      this.#check('write')
      const where = readOffset(offset, NO_INDEX)
      const pieces = readData(data, NO_INDEX, 'data')
      const checked = checkCallOptions(options, WRITE_OPTIONS)
      this.#checkOpen('write')
      throwIfAborted(checked.signal)
      return this.#dispatch.write(where, pieces, this.#size, checked)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /**
   * Reads one request into memory.
   *
   * @param offset bytes from the start of the device
   * @param into memory to fill, wholly: one piece or several that follow each other
   * @returns resolves when all of it is filled; rejects with a `BlockError`
   */
  read(offset: number | bigint, into: Data, options?: ReadOptions): Promise<void> {
    try {
      this.#check('read')
      const where = readOffset(offset, NO_INDEX)
      const pieces = readData(into, NO_INDEX, 'into')
      const checked = checkCallOptions(options, READ_OPTIONS)
      this.#checkOpen('read')
      throwIfAborted(checked.signal)
      return this.#dispatch.read(where, pieces, this.#size, checked)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /**
   * Makes durable: resolves when every write issued before the call is on stable storage. A failed flush latches: this and
   * every later one reject with its error until the device is opened again.
   */
  async flush(): Promise<void> {
    this.#check('fdatasync')
    this.#dispatch.sendGathered()
    if (this.readOnly) return
    return this.#dispatch.durability.flush()
  }

  /**
   * Says that the content of a range is of no use any more, so that the device may forget it. What the range reads as
   * afterwards is up to the device; a file reads as zeros. Bytes before the first and after the last whole block stay.
   *
   * @param offset bytes
   * @param length bytes
   * @returns rejects with `EOPNOTSUPP` where the device or file system can't
   */
  async discard(offset: number | bigint, length: number | bigint): Promise<void> {
    this.#check('write')
    const range = this.#readRange(offset, length)
    this.#dispatch.sendGathered()
    return this.#ranges.discard(range.offset, range.length, this.#size)
  }

  /**
   * Makes a range read as zeros, by the fastest way that the target has; as the last resort they are written.
   *
   * @param offset bytes
   * @param length bytes
   * @param options `unmap`: the space may be given back; `fua`: on stable storage when it is answered
   */
  async writeZeroes(offset: number | bigint, length: number | bigint, options?: ZeroOptions): Promise<void> {
    this.#check('write')
    const range = this.#readRange(offset, length)
    const { unmap, fua } = checkCallOptions(options, ['unmap', 'fua'])
    this.#checkOpen('write')
    this.#dispatch.sendGathered()
    const done = this.#ranges.writeZeroes(range.offset, range.length, this.#size, unmap, fua)
    if (!fua) return done
    await done
    if (this.#dispatch.durability.failure !== null) throw this.#dispatch.durability.failure
  }

  /**
   * Sets the size of a file. Operations that are called later are checked against the new size at once; those called before
   * take effect before.
   *
   * @param size bytes
   * @returns rejects with `EOPNOTSUPP` for a block device
   */
  async truncate(size: number | bigint): Promise<void> {
    this.#check('write')
    const bytes = checkSize(size, 'size')
    if (this.#blockDevice) {
      const reason = 'the size of a block device is its own'
      throw new BlockError(EOPNOTSUPP, { syscall: 'ftruncate', path: this.path, reason })
    }
    this.#dispatch.sendGathered()
    const before = this.#size
    this.#size = bytes
    this.#truncations++
    return this.#ranges.truncate(Math.min(before, this.#blocks.size), bytes, async (error) => {
      this.#truncations--
      if (error === null) {
        this.#truncated++
        this.#blocks.size = bytes
      } else if (this.#truncations === 0) this.#size = this.#blocks.size
    })
  }

  /** Reads the size anew, for a device that was resized. */
  async refresh(): Promise<void> {
    this.#check('statx')
    this.#dispatch.sendGathered()
    // `close` waits for it as for any operation: the descriptor must not go away underneath.
    const ticket = this.#dispatch.durability.issue(true)
    try {
      let geometry: Geometry | Failure
      let truncated: number
      do {
        // What was read beside a truncation may be of before it, and be heard of after it.
        truncated = this.#truncated
        geometry = await blocking.geometry(this.#file)
        if (isFailure(geometry)) throw new BlockError(geometry.errno, { syscall: geometry.syscall, path: this.path })
      } while (truncated !== this.#truncated)
      this.#blocks.size = geometry.size
      if (this.#truncations === 0) this.#size = geometry.size
    } finally {
      this.#dispatch.durability.end(ticket)
    }
  }

  /**
   * Zeroed memory that needs no copy on its way to this device: aligned, and safe from being detached. It stays valid after
   * `close`, and goes back to the system when its last view is gone. It lies on a SharedArrayBuffer; Web APIs that refuse
   * shared memory want `Buffer.from(b)`.
   *
   * @param size bytes
   */
  alloc(size: number): Buffer {
    if (typeof size !== 'number') throw invalidType('size', 'number', size)
    if (!Number.isInteger(size) || size < 0 || size > ALLOC_MAX) {
      throw outOfRange('size', `a whole number >= 0 and <= ${ALLOC_MAX}`, size)
    }
    return alignedBuffer(size, Math.max(PAGE_SIZE, this.limits.memoryAlignment))
  }

  /**
   * Finishes what was accepted, flushes, and releases the descriptor, also if the flush fails: then it rejects with that
   * error. Later operations are refused. A second call returns the first one's promise.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  /** `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(): Promise<void> {
    this.#dispatch.sendGathered()
    await this.#dispatch.durability.settled()
    let failure: BlockError | null = null
    if (!this.readOnly)
      failure = await this.#dispatch.durability.flush().then(
        () => null,
        (error: BlockError) => error,
      )
    this.#releaseEngine()
    for (const file of [this.#tailFile, this.#file]) {
      if (file < 0) continue
      const { errno, syscall } = await blocking.close(file)
      if (errno !== 0) failure ??= new BlockError(errno, { syscall, path: this.path })
    }
    if (failure !== null) throw failure
  }

  /** Asked again when arguments were read: a getter among them may have closed the device. */
  #checkOpen(syscall: string): void {
    if (this.#closing === null) return
    throw new BlockError(EBADF, { syscall, path: this.path, reason: 'the device is closed' })
  }

  #check(syscall: 'read' | 'write' | 'fdatasync' | 'statx'): void {
    this.#checkOpen(syscall)
    if (syscall === 'write' && this.readOnly) {
      throw new BlockError(EROFS, { syscall, path: this.path, reason: 'the device was opened read-only' })
    }
  }

  #readRange(offset: unknown, length: unknown): { offset: number; length: number } {
    const range = { offset: readOffset(offset, NO_INDEX), length: checkSize(length, 'length') }
    if (range.length > this.#size - range.offset) {
      throw outOfRange('offset', `<= ${this.#size} - ${range.length} (device size - length)`, offset)
    }
    return range
  }
}

function mergeLimits(options: CheckedOptions, limits: DeviceLimits): Limits {
  const maxBytes = options.maxBytes ?? limits.maxBytes
  // A run is cut where direct I/O can go on.
  const whole = maxBytes - (maxBytes % limits.alignment)
  const maxSegments = options.maxSegments ?? limits.maxSegments
  return { maxBytes: Math.max(whole, limits.alignment), maxSegments }
}
