// Opening and creating: from a path and options to a device that is ready, each step with its reason.

import { constants as fsConstants } from 'node:fs'
import { type FileHandle, open as openFile, stat, unlink } from 'node:fs/promises'
import { constants } from 'node:os'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { chooseEngine } from './choose-engine.ts'
import { BlockDevice } from './device.ts'
import { type EngineName, threadEngine } from './engine.ts'
import { BlockError } from './errors.ts'
import { outOfRange } from './errors-argument.ts'
import { DrivenBackend } from './format/driven.ts'
import type { FormatBacking, FormatDriver, FormatImage } from './format/driver.ts'
import { driverNamed } from './format/drivers.ts'
import { holdersOfDevice, numberAt, openIn } from './holders.ts'
import { readLimits } from './limits.ts'
import { threadStaging } from './memory.ts'
import { blocking, ENGINE_KIND, isFailure, type OpenFile } from './native.ts'
import {
  type CheckedCreateOptions,
  type CheckedOptions,
  type CreateOptions,
  checkCreateOptions,
  checkOpenOptions,
  checkPath,
  type OpenOptions,
} from './options.ts'
import { type Opened, RawBackend } from './raw.ts'
import { filesOf, isPath, noteFiles } from './same-file.ts'

const { O_RDONLY, O_RDWR, O_DIRECT, O_EXCL, O_CREAT } = fsConstants
const { EBUSY, EEXIST, EINVAL, EISDIR, EOPNOTSUPP, EROFS } = constants.errno

/** How long a device may be busy with no holder to be seen: the kernel may still be finishing for a process that died. */
const BUSY_RETRY_MS = 500
const BUSY_RETRY_STEP_MS = 50

/** Opening a pipe or a terminal may block or change it, so it is not even tried. */
const NEITHER = 'this is neither a block device nor a regular file: name one of these'

/**
 * Opens a block device or an image file.
 *
 * @param path a path, or a `file:` URL
 * @returns rejects with a `BlockError` that names the system call where the system refuses, with a `TypeError` or `RangeError`
 *   where an argument is wrong
 */
export async function open(path: string | URL, options?: OpenOptions): Promise<BlockDevice> {
  checkPlatform()
  return openChecked(checkPath(path), checkOpenOptions(options))
}

/**
 * Makes a new image of `options.size` bytes, which read as zeros, and opens it.
 *
 * An existing file is refused (`EEXIST`) unless `options.overwrite` is `true`. A block device needs `overwrite: true` too; it
 * is neither unlinked nor truncated, and must hold `size` bytes.
 */
export async function create(path: string | URL, options: CreateOptions): Promise<BlockDevice> {
  checkPlatform()
  const name = checkPath(path)
  const checked = checkCreateOptions(options)
  const kind = await kindOf(name)
  if (kind !== 'none' && !checked.overwrite) {
    throw new BlockError(EEXIST, {
      syscall: 'open',
      path: name,
      reason: 'the file exists already; pass overwrite: true to lose what is in it',
    })
  }
  const driver = await driverOf(checked)
  if (driver !== null && driver.create === undefined) {
    const reason = `images of the format ${driver.name} can't be made: open one that is there`
    throw new BlockError(EOPNOTSUPP, { syscall: 'open', path: name, reason })
  }
  driver?.checkCreate?.(checked)
  // Before a file that may lie below the new image loses what is in it.
  await filesOf(name, checked.backing)
  if (kind === 'block') {
    if (driver !== null) return createImage(driver, name, checked)
    const device = await openChecked(name, checked)
    if (checked.size <= device.size) return device
    await device.close()
    throw outOfRange('options.size', `<= ${device.size}, the size of ${name}`, checked.size)
  }
  if (kind === 'other') throw new BlockError(EINVAL, { syscall: 'open', path: name, reason: NEITHER })
  // What can't be opened afterwards must not cost an existing file its content.
  chooseEngine(threadEngine(name), checked.engine, checked.direct ?? false, name)
  try {
    await asBlockError(name, () => makeFile(name, driver === null ? checked.size : 0, checked))
    return await (driver === null ? openChecked(name, checked) : createImage(driver, name, checked))
  } catch (error) {
    // Only what this call has made: whoever made it meanwhile keeps it.
    const isOthers = error instanceof BlockError && error.code === 'EEXIST'
    if (kind === 'none' && !isOthers) await unlink(name).catch(() => undefined)
    throw error
  }
}

/** A file of `size` bytes without content; its name is on stable storage when this resolves. */
async function makeFile(path: string, size: number, { overwrite, direct }: CheckedCreateOptions): Promise<void> {
  // O_DIRECT, or a size, that the file system refuses must not cost an existing file its content: both are tried first.
  const flags = O_RDWR | O_CREAT | (overwrite ? 0 : O_EXCL) | (direct === true ? O_DIRECT : 0)
  const file = await openFile(path, flags, 0o666)
  try {
    if (size > (await file.stat()).size) await file.truncate(size)
    await file.truncate(0)
    await file.truncate(size)
  } finally {
    await file.close()
  }
  let folder: FileHandle | undefined
  try {
    folder = await openFile(dirname(path), O_RDONLY)
    await folder.sync()
  } finally {
    await folder?.close()
  }
}

/** The driver of an image; `null` for a raw one. */
async function driverOf({ format }: CheckedOptions): Promise<FormatDriver | null> {
  if (format === 'raw') return null
  return typeof format === 'string' ? driverNamed(format) : format
}

async function openChecked(path: string, options: CheckedOptions): Promise<BlockDevice> {
  const driver = await driverOf(options)
  if (driver === null) return openRaw(path, options)
  await filesOf(path, options.backing)
  const host = await openRaw(path, { ...options, ordered: true })
  return openImage(driver, host, options, (below) => driver.open(host, below))
}

/** Writes an empty image into what was made for it, and opens that. */
async function createImage(driver: FormatDriver, path: string, options: CheckedCreateOptions): Promise<BlockDevice> {
  const host = await openRaw(path, { ...options, ordered: true })
  return openImage(driver, host, options, async (below) => {
    const { size, clusterSize, refcountBits, lazyRefcounts, preallocation } = options
    await driver.create!(host, { ...below, size, clusterSize, refcountBits, lazyRefcounts, preallocation })
    return driver.open(host, below)
  })
}

/** A device above the image that `open` makes of a host. What was opened for it is closed if that fails. */
async function openImage(
  driver: FormatDriver,
  host: BlockDevice,
  options: CheckedOptions,
  open: (options: { readOnly: boolean; backing: FormatBacking | null | undefined }) => Promise<FormatImage>,
): Promise<BlockDevice> {
  let below: BlockDevice | null = null
  try {
    const { backing, readOnly } = options
    if (isPath(backing)) below = await openChecked(backing.path, backing.options)
    const image = await open({ readOnly, backing: isPath(backing) ? below : backing })
    const release = async (): Promise<void> => below?.close()
    const device = new BlockDevice(new DrivenBackend(driver.name, image, host, options, release))
    noteFiles(device, await filesOf(host.path, backing))
    return device
  } catch (error) {
    await host.close().catch(() => undefined)
    await below?.close().catch(() => undefined)
    throw error
  }
}

async function openRaw(path: string, options: CheckedOptions): Promise<BlockDevice> {
  const kind = await kindOf(path)
  if (kind === 'directory') throw new BlockError(EISDIR, { syscall: 'open', path })
  if (kind === 'other') throw new BlockError(EINVAL, { syscall: 'open', path, reason: NEITHER })
  const direct = options.direct ?? kind === 'block'
  const opened = await openAs(path, kind, options, direct).catch((error: unknown) => {
    // By default the page cache serves where there is no O_DIRECT; who asked for direct I/O must hear of it.
    if (direct && options.direct === undefined && error instanceof BlockError && error.errno === -EINVAL) {
      return openAs(path, kind, options, false)
    }
    throw error
  })
  try {
    const limits = await asBlockError(path, () => readLimits(opened.geometry, opened.direct))
    const device = new BlockDevice(new RawBackend(threadEngine(path), threadStaging(path), { ...opened, limits }))
    noteFiles(device, await filesOf(path, null))
    return device
  } catch (error) {
    await blocking.close(opened.file)
    if (opened.tailFile >= 0) await blocking.close(opened.tailFile)
    throw error
  }
}

async function openAs(
  path: string,
  kind: Kind,
  options: CheckedOptions,
  direct: boolean,
): Promise<Omit<Opened, 'limits'>> {
  const engine = chooseEngine(threadEngine(path), options.engine, direct, path)
  const exclusive = (options.exclusive ?? !options.readOnly) && kind === 'block'
  const flags = (options.readOnly ? O_RDONLY : O_RDWR) | (exclusive ? O_EXCL : 0)
  const geometry = await openNative(path, flags | (direct ? O_DIRECT : 0), engine.name)
  if (geometry.deviceReadOnly && !options.readOnly) {
    await blocking.close(geometry.file)
    // Some kernels open it and refuse each write with EPERM.
    const reason = 'the device is read-only; pass readOnly: true to read it'
    throw new BlockError(EROFS, { syscall: 'open', path, reason })
  }
  let tailFile = -1
  if (direct && !geometry.blockDevice) {
    try {
      // The same file, even if its name has come to mean another one.
      tailFile = (await openNative(path, flags, engine.name, `/proc/self/fd/${geometry.descriptor}`)).file
    } catch (error) {
      await blocking.close(geometry.file)
      throw error
    }
  }
  return { path, file: geometry.file, tailFile, geometry, direct, engine, options }
}

/**
 * Opens the file in the addon; a busy device is tried again for a while.
 *
 * @param name another name of it to open it by
 */
async function openNative(path: string, flags: number, engine: EngineName, name = path): Promise<OpenFile> {
  const deadline = performance.now() + BUSY_RETRY_MS
  for (;;) {
    const opened = await blocking.open(name, flags, ENGINE_KIND[engine])
    if (!isFailure(opened)) return opened
    const { errno, syscall } = opened
    if (errno === EINVAL && (flags & O_DIRECT) !== 0) {
      throw new BlockError(errno, {
        syscall,
        path,
        engine,
        reason: 'direct I/O is not supported here; leave out direct: true',
      })
    }
    if (errno !== EBUSY) throw new BlockError(errno, { syscall, path })
    const number = await numberAt(path)
    // The name has gone meanwhile.
    if (number === '') throw new BlockError(errno, { syscall, path })
    const holders = await holdersOfDevice(number)
    if (holders.length > 0 || performance.now() >= deadline) {
      const who = holders.length > 0 ? holders.join('; ') : await unseen(number)
      const advice = 'unmount or release it first, or pass readOnly: true to look at it'
      throw new BlockError(errno, { syscall, path, reason: `the device is in use: ${who}`, advice })
    }
    await sleep(BUSY_RETRY_STEP_MS)
  }
}

/** Where nothing tells who holds a device, who has it open may help. */
async function unseen(number: string): Promise<string> {
  const processes = await openIn(number)
  if (processes.length === 0) return 'somebody holds the device, nobody can be seen'
  return `somebody holds the device; it is open in ${processes.join(', ')}`
}

type Kind = 'none' | 'block' | 'file' | 'directory' | 'other'

async function kindOf(path: string): Promise<Kind> {
  try {
    const found = await stat(path)
    if (found.isBlockDevice()) return 'block'
    if (found.isFile()) return 'file'
    return found.isDirectory() ? 'directory' : 'other'
  } catch (error) {
    const { errno, code } = error as NodeJS.ErrnoException
    if (errno === undefined) throw error
    // Whatever else it is, opening would say it too; but what can't be looked at may be there, and is not to be removed as ours.
    if (code !== 'ENOENT' && code !== 'ENOTDIR') throw new BlockError(-errno, { syscall: 'open', path })
    return 'none'
  }
}

/** Runs file-system calls; their failures become `BlockError`s. */
async function asBlockError<T>(path: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run()
  } catch (error) {
    const { errno, syscall } = error as NodeJS.ErrnoException
    if (errno === undefined) throw error
    throw new BlockError(-errno, { syscall: syscall ?? 'open', path })
  }
}

function checkPlatform(): void {
  if (process.platform === 'linux') return
  const error = new Error(
    `multiwrite opens devices on Linux only; this is ${process.platform}: the planner (multiwrite/planner) works everywhere`,
  )
  throw Object.assign(error, { code: 'ERR_FEATURE_UNAVAILABLE_ON_PLATFORM' })
}
