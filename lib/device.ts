// A block device or image file as users see it: its face, and the checks of what they pass. What passes goes to the dispatch.

import { constants } from 'node:os'
import { throwIfAborted } from './abort.ts'
import type { Backend, RangeOperations } from './backend.ts'
import type { EngineInfo } from './choose-engine.ts'
import type { BatchResult, Dispatch } from './dispatch.ts'
import { BlockError } from './errors.ts'
import { invalidType, outOfRange } from './errors-argument.ts'
import type { CheckResult } from './format/driver.ts'
import type { DeviceLimits } from './limits.ts'
import { ALLOC_MAX, alignedBuffer, PAGE_SIZE } from './memory.ts'
import {
  type BatchOptions,
  type CheckOptions,
  checkCallOptions,
  checkSize,
  type MergeMode,
  type ReadOptions,
  type WriteOptions,
  type ZeroOptions,
} from './options.ts'
import {
  type Data,
  NO_INDEX,
  type ReadRequest,
  readData,
  readOffset,
  readRequests,
  type WriteRequest,
} from './requests.ts'
import type { Stats } from './stats.ts'

const { EBADF, EOPNOTSUPP, EROFS } = constants.errno

const READ_OPTIONS = ['signal']
const WRITE_OPTIONS = ['fua', 'signal']

/** An open block device or image file. Made by `open` and `create`. */
export class BlockDevice {
  /** As it was given to `open`. */
  readonly path: string
  /** `'raw'`, `'qcow2'`, or the name of the driver that was given to `open`. */
  readonly format: string
  readonly readOnly: boolean
  /** Whether the kernel accepted O_DIRECT: the page cache is not used. */
  readonly direct: boolean
  /** The engine that serves this device, final since `open`, and why it is this one. */
  readonly engine: EngineInfo
  /** What the device can do, in bytes. */
  readonly limits: DeviceLimits
  readonly #backend: Backend
  readonly #dispatch: Dispatch
  readonly #ranges: RangeOperations
  /** The size that all accepted truncations leave; the backend's is that which the target has now. */
  #size: number
  #truncations = 0
  /** How many have ended well. */
  #truncated = 0
  #closing: Promise<void> | null = null

  /** For `open`. */
  constructor(backend: Backend) {
    this.#backend = backend
    this.#dispatch = backend.dispatch
    this.#ranges = backend.ranges
    this.#size = backend.blocks.size
    this.path = backend.path
    this.format = backend.format
    this.readOnly = backend.readOnly
    this.direct = backend.direct
    this.engine = backend.engine
    this.limits = backend.limits
  }

  /** Bytes. */
  get size(): number {
    return this.#size
  }

  /** How batches are merged, with the limits in force. */
  get merge(): { mode: MergeMode; maxBytes: number; maxSegments: number } {
    return { mode: this.#backend.mode, ...this.#backend.merge }
  }

  /** Counters since `open`: a fresh plain object with each use. */
  get stats(): Stats {
    return this.#backend.stats()
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
   * every later one reject with its error until the device is opened again. Only if it failed because an image's tables could
   * not be written, which are in memory still, the next one tries again.
   */
  async flush(): Promise<void> {
    this.#check('fdatasync')
    this.#dispatch.sendGathered()
    if (this.readOnly) return
    return this.#dispatch.durability.flush()
  }

  /**
   * Says that the content of a range is of no use any more, so that the device may forget it. What the range reads as
   * afterwards is up to the device; a file reads as zeros. Bytes before the first and after the last whole block stay. A qcow2
   * image gives whole clusters back, and their space to the file or device that holds it, after the next flush.
   *
   * @param offset bytes
   * @param length bytes
   * @returns rejects with `EOPNOTSUPP` where the device, file system or format can't
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
   * @returns rejects with `EOPNOTSUPP` for a block device, and for what an image can't do: qcow2 only grows, to multiples of 512
   */
  async truncate(size: number | bigint): Promise<void> {
    this.#check('write')
    const bytes = checkSize(size, 'size')
    if (this.#backend.fixedSize !== null) {
      throw new BlockError(EOPNOTSUPP, { syscall: 'ftruncate', path: this.path, reason: this.#backend.fixedSize })
    }
    this.#dispatch.sendGathered()
    const before = this.#size
    this.#size = bytes
    this.#truncations++
    const { blocks } = this.#backend
    return this.#ranges.truncate(Math.min(before, blocks.size), bytes, async (error) => {
      this.#truncations--
      if (error === null) {
        this.#truncated++
        blocks.size = bytes
      } else if (this.#truncations === 0) this.#size = blocks.size
    })
  }

  /**
   * Looks through an image's own tables and tells what `qemu-img check` tells. Everything else waits meanwhile.
   *
   * @param options `repair`: gives back what is lost, and sets right what is counted wrongly. What contradicts itself stays.
   * @returns rejects with `EOPNOTSUPP` for a format without such tables, as raw is
   */
  async check(options?: CheckOptions): Promise<CheckResult> {
    const { repair } = checkCallOptions(options, ['repair'])
    this.#check(repair ? 'write' : 'read')
    this.#dispatch.sendGathered()
    return this.#ranges.check(repair)
  }

  /** Reads the size anew, for a device that was resized. */
  async refresh(): Promise<void> {
    this.#check('statx')
    this.#dispatch.sendGathered()
    // `close` waits for it as for any operation: the descriptor must not go away underneath.
    const ticket = this.#dispatch.durability.issue(true)
    try {
      let size: number
      let truncated: number
      do {
        // What was read beside a truncation may be of before it, and be heard of after it.
        truncated = this.#truncated
        size = await this.#backend.readSize()
      } while (truncated !== this.#truncated)
      this.#backend.blocks.size = size
      if (this.#truncations === 0) this.#size = size
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
   * @throws a `BlockError` with `ENOMEM` where there is no memory
   */
  alloc(size: number): Buffer {
    if (typeof size !== 'number') throw invalidType('size', 'number', size)
    if (!Number.isInteger(size) || size < 0 || size > ALLOC_MAX) {
      throw outOfRange('size', `a whole number >= 0 and <= ${ALLOC_MAX}`, size)
    }
    return alignedBuffer(size, Math.max(PAGE_SIZE, this.limits.memoryAlignment), this.path)
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
    const released = await this.#backend.close()
    failure ??= released
    if (failure !== null) throw failure
  }

  /** Asked again when arguments were read: a getter among them may have closed the device. */
  #checkOpen(syscall: string): void {
    if (this.#closing === null) return
    throw new BlockError(EBADF, { syscall, path: this.path, reason: 'the device is closed: open it again' })
  }

  #check(syscall: 'read' | 'write' | 'fdatasync' | 'statx'): void {
    this.#checkOpen(syscall)
    if (syscall === 'write' && this.readOnly) {
      throw new BlockError(EROFS, {
        syscall,
        path: this.path,
        reason: 'the device was opened read-only: open it without readOnly to write',
      })
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
