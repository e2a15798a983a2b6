// Places to write to: files with and without the page cache, tmpfs, and loop devices of both sector sizes. A suite runs over
// all of them with `eachTarget`; a target that this machine cannot make is skipped with its reason in the title.
//
// Whoever calls `make` calls `cleanup` when done, also after a failure. What is left when the process ends is cleaned up then,
// and what a killed process left is cleaned up by the next one: its temporary directories carry its number. Loop devices are
// detached by their own name only.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { type BlockDevice, type OpenOptions, open } from 'multiwrite'
import { describe } from 'vitest'

export const engineNames = ['io_uring', 'aio', 'threads'] as const
export type EngineName = (typeof engineNames)[number]

/** The engines that the suites run over: `MULTIWRITE_ENGINES=io_uring,threads` names others than the default. */
export const engines: readonly EngineName[] = (process.env.MULTIWRITE_ENGINES ?? 'io_uring').split(',').map((name) => {
  const engine = engineNames.find((each) => each === name.trim())
  if (engine === undefined) throw new Error(`MULTIWRITE_ENGINES: no such engine: ${name}`)
  return engine
})

/** Those of them that take buffered files. */
export const bufferedEngines: readonly EngineName[] = engines.filter((engine) => engine !== 'aio')

/** What a new target is filled with: not zero, so that a stray write of zeros shows. */
export const background = 0xee

/** `MULTIWRITE_LONG=1` runs the random suites this many times longer. */
export const patience = process.env.MULTIWRITE_LONG ? 20 : 1

export interface MadeTarget {
  path: string
  /** What `open` needs to treat the path as the target's name says. */
  options: OpenOptions
  /** Offsets and lengths must be multiples of it, in bytes; 1 where any will do. */
  sectorSize: number
  /** Removes the file and detaches the device. Close the disk first. */
  cleanup(): void
  /** The whole content by way of node:fs alone. Flush or close the disk first. */
  readBack(): Buffer
  /** Makes the content what it was at first, by way of node:fs alone. Close the disk first. */
  reset(): void
}

export interface Target {
  name: string
  available: boolean
  /** Why it is not available; empty where it is. */
  reason: string
  /** A block device, not a file. */
  block: boolean
  direct: boolean
  /** @param size in bytes, a multiple of 4096 for block devices */
  make(size: number): MadeTarget
}

/** Temporary files that must lie on a disk-backed file system: beside the project, not in /tmp, which may be a tmpfs. */
const cacheDirectory = fileURLToPath(new URL('../../.cache/tests/', import.meta.url))
const sharedMemoryDirectory = '/dev/shm'

const leftovers = new Set<() => void>()
process.once('exit', () => {
  for (const cleanup of leftovers) cleanup()
})

/** `cleanup`, run once: by the caller, or by the end of the process. */
function owned(cleanup: () => void): () => void {
  const once = (): void => {
    if (leftovers.delete(once)) cleanup()
  }
  leftovers.add(once)
  return once
}

/** A new directory for temporary files, and what removes it. */
export function temporaryDirectory(parent: string = os.tmpdir()): { path: string; cleanup(): void } {
  fs.mkdirSync(parent, { recursive: true })
  const directory = fs.mkdtempSync(path.join(parent, `multiwrite-test-${process.pid}-`))
  return { path: directory, cleanup: owned(() => fs.rmSync(directory, { recursive: true, force: true })) }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/** Runs a command for its effect; what it has to complain about does not matter. */
function attempt(command: string, ...args: string[]): string {
  return spawnSync(command, args, { encoding: 'utf8' }).stdout ?? ''
}

for (const parent of [os.tmpdir(), cacheDirectory, sharedMemoryDirectory]) {
  const names = fs.existsSync(parent) ? fs.readdirSync(parent) : []
  for (const name of names) {
    const pid = /^multiwrite-test-(\d+)-/.exec(name)?.[1]
    if (pid === undefined || isAlive(Number(pid))) continue
    const directory = path.join(parent, name)
    const backed = attempt('losetup', '--associated', path.join(directory, 'image'), '--noheadings', '--output', 'NAME')
    for (const device of backed.split('\n').filter(Boolean)) attempt('losetup', '--detach', device.trim())
    attempt('umount', directory)
    attempt('rm', '-rf', '--one-file-system', directory)
  }
}

function filledFile(parent: string, size: number): { path: string; cleanup(): void } {
  const directory = temporaryDirectory(parent)
  const file = path.join(directory.path, 'image')
  fs.writeFileSync(file, Buffer.alloc(size, background))
  return { path: file, cleanup: directory.cleanup }
}

function file(parent: string, size: number, options: OpenOptions, sectorSize: number): MadeTarget {
  const { path, cleanup } = filledFile(parent, size)
  const reset = (): void => fs.writeFileSync(path, Buffer.alloc(size, background))
  return { path, options, sectorSize, cleanup, readBack: () => fs.readFileSync(path), reset }
}

interface LoopOptions {
  sectorSize: 512 | 4096
  /** The directory of the backing file. */
  backing: string
  /** The loop device itself goes around the page cache of its backing file. */
  directIo: boolean
}

/** Attaches a loop device; only root can. */
export function attachLoop(
  size: number,
  { sectorSize, backing, directIo }: LoopOptions,
): { path: string; cleanup(): void } {
  const image = filledFile(backing, size)
  let device: string
  try {
    const flags = ['--find', '--show', '--sector-size', String(sectorSize), ...(directIo ? ['--direct-io=on'] : [])]
    device = execFileSync('losetup', [...flags, image.path], { encoding: 'utf8', stdio: 'pipe' }).trim()
  } catch (error) {
    image.cleanup()
    throw error
  }
  const cleanup = owned(() => {
    try {
      execFileSync('losetup', ['--detach', device], { stdio: 'pipe' })
    } finally {
      image.cleanup()
    }
  })
  return { path: device, cleanup }
}

function loop(size: number, how: LoopOptions, options: OpenOptions): MadeTarget {
  const { path, cleanup } = attachLoop(size, how)
  const readBack = (): Buffer => {
    // Written around the page cache, or by way of it and still dirty: what is read afterwards comes from the device.
    execFileSync('blockdev', ['--flushbufs', path])
    const descriptor = fs.openSync(path, 'r')
    try {
      const content = Buffer.alloc(size)
      let done = 0
      while (done < size) {
        const count = fs.readSync(descriptor, content, done, size - done, done)
        if (count === 0) throw new Error(`${path} ends after ${done} of ${size} bytes`)
        done += count
      }
      return content
    } finally {
      fs.closeSync(descriptor)
    }
  }
  const reset = (): void => {
    const descriptor = fs.openSync(path, 'r+')
    try {
      fs.writeFileSync(descriptor, Buffer.alloc(size, background))
      fs.fsyncSync(descriptor)
    } finally {
      fs.closeSync(descriptor)
    }
  }
  return { path, options, sectorSize: options.direct === false ? 1 : how.sectorSize, cleanup, readBack, reset }
}

/** Why loop devices cannot be had here; empty where they can. */
export const noLoop: string = (() => {
  if (process.getuid?.() !== 0) return 'skipped: needs root'
  try {
    attachLoop(1 << 20, { sectorSize: 4096, backing: os.tmpdir(), directIo: false }).cleanup()
    return ''
  } catch (error) {
    return `skipped: needs loop devices: ${String(error).trim()}`
  }
})()

function noDirect(parent: string): string {
  try {
    const { path, cleanup } = filledFile(parent, 4096)
    try {
      fs.closeSync(fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_DIRECT))
    } finally {
      cleanup()
    }
    return ''
  } catch (error) {
    return `skipped: needs a file system with O_DIRECT: ${String(error)}`
  }
}

const noSharedMemory = ((): string => {
  try {
    fs.accessSync(sharedMemoryDirectory, fs.constants.W_OK)
    return ''
  } catch (error) {
    return `skipped: needs ${sharedMemoryDirectory}: ${String(error)}`
  }
})()

function target(
  name: string,
  reason: string,
  kind: { block: boolean; direct: boolean },
  make: (size: number) => MadeTarget,
): Target {
  return { name, reason, available: reason === '', ...kind, make }
}

const memoryBacked = noSharedMemory === '' ? sharedMemoryDirectory : os.tmpdir()

export const bufferedFile: Target = target('buffered file', '', { block: false, direct: false }, (size) =>
  file(os.tmpdir(), size, { direct: false }, 1),
)
export const directFile: Target = target(
  'direct file',
  noDirect(cacheDirectory),
  { block: false, direct: true },
  // A page is a multiple of what any file system asks for.
  (size) => file(cacheDirectory, size, { direct: true }, 4096),
)
export const tmpfsFile: Target = target('tmpfs file', noSharedMemory, { block: false, direct: false }, (size) =>
  file(sharedMemoryDirectory, size, { direct: false }, 1),
)
export const loop512: Target = target('loop device, 512-byte sectors', noLoop, { block: true, direct: true }, (size) =>
  loop(size, { sectorSize: 512, backing: memoryBacked, directIo: false }, { direct: true }),
)
export const loop4096: Target = target(
  'loop device, 4096-byte sectors',
  noLoop,
  { block: true, direct: true },
  (size) => loop(size, { sectorSize: 4096, backing: memoryBacked, directIo: false }, { direct: true }),
)
export const loopOnFile: Target = target(
  'loop device, direct to its file',
  noLoop || noDirect(cacheDirectory),
  { block: true, direct: true },
  (size) => loop(size, { sectorSize: 512, backing: cacheDirectory, directIo: true }, { direct: true }),
)
export const loopBuffered: Target = target('buffered loop device', noLoop, { block: true, direct: false }, (size) =>
  loop(size, { sectorSize: 512, backing: memoryBacked, directIo: false }, { direct: false }),
)

export const targets: readonly Target[] = [
  bufferedFile,
  directFile,
  tmpfsFile,
  loop512,
  loop4096,
  loopOnFile,
  loopBuffered,
]

/** Runs a suite on each engine and target that go together. */
export function eachTarget(on: readonly Target[], suite: (target: Target, engine: EngineName) => void): void {
  for (const engine of engines) {
    for (const target of on) {
      if (engine === 'aio' && !target.direct) continue
      const title = `${engine}, ${target.name}${target.available ? '' : ` (${target.reason})`}`
      describe.skipIf(!target.available)(title, () => suite(target, engine))
    }
  }
}

/** Makes a target, hands it to `work`, and cleans up whatever happens. */
export async function withTarget<T>(
  target: Target,
  size: number,
  work: (made: MadeTarget) => T | Promise<T>,
): Promise<T> {
  const made = target.make(size)
  try {
    return await work(made)
  } finally {
    made.cleanup()
  }
}

/** Opens what was made, hands the disk to `work`, and closes it whatever happens. */
export async function withDisk<T>(
  made: MadeTarget,
  options: OpenOptions,
  work: (disk: BlockDevice) => T | Promise<T>,
): Promise<T> {
  const disk = await open(made.path, { ...made.options, ...options })
  try {
    return await work(disk)
  } finally {
    await disk.close()
  }
}
