// Who holds a block device: mount points, swap, and devices stacked on it (device mapper, md), of the disk itself, of its
// partitions, and of the disk that it is a partition of. O_EXCL tells only that somebody does; a person needs the name. `open` asks
// when a device is busy, and anybody may ask before.

import { readdir, readFile, readlink, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { deviceNumber } from './device-number.ts'
import { BlockError } from './errors.ts'
import { checkPath } from './options.ts'

/**
 * Who uses a block device: mounts, swap, and devices that are stacked on it, on the device itself, its partitions, or the disk that it
 * is a partition of. `open` for writing refuses such a device (`EBUSY`); this tells beforehand.
 *
 * @param path a path, or a `file:` URL
 * @returns in words, such as `mounted on /mnt/data` or `partition sdb2 is used as swap`; empty if nobody can be seen, and for what is
 *   no block device. Rejects with a `BlockError` if the path can't be looked at
 */
export async function holdersOf(path: string | URL): Promise<string[]> {
  const name = checkPath(path)
  const found = await stat(name).catch((error: NodeJS.ErrnoException) => {
    throw new BlockError(-(error.errno ?? 0), { syscall: 'stat', path: name })
  })
  return found.isBlockDevice() ? holdersOfDevice(deviceNumber(found.rdev)) : []
}

/** @param number `major:minor` */
export async function holdersOfDevice(number: string): Promise<string[]> {
  const folder = await realpath(`/sys/dev/block/${number}`).catch(() => null)
  if (folder === null) return []
  const found = await describe(await namesOf(folder, ''))
  for (const entry of await partitionsOf(folder)) {
    found.push(...(await describe(await namesOf(join(folder, entry), `partition ${entry} is `))))
  }
  // Whoever claims a disk claims all of it.
  if (await isPartition(folder)) {
    const disk = dirname(folder)
    found.push(...(await describe(await namesOf(disk, `its disk ${basename(disk)} is `))))
  }
  return found
}

/**
 * Processes that have a block device, or another part of its disk, open: in words, such as `process 4711 (qemu-nbd)`. None of
 * them need be the one that holds it, and those of others are hidden from who is not root.
 */
export async function openIn(number: string): Promise<string[]> {
  const folder = await realpath(`/sys/dev/block/${number}`).catch(() => null)
  if (folder === null) return []
  const disk = (await isPartition(folder)) ? dirname(folder) : folder
  const folders = [disk, ...(await partitionsOf(disk)).map((entry) => join(disk, entry))]
  const numbers = new Set<string>()
  for (const one of folders) numbers.add((await namesOf(one, '')).number)
  const found: string[] = []
  for (const process of await list('/proc')) {
    if (!/^\d+$/.test(process) || !(await hasOpen(join('/proc', process, 'fd'), numbers))) continue
    found.push(`process ${process} (${(await text(join('/proc', process, 'comm'))).trim()})`)
  }
  return found
}

async function hasOpen(folder: string, numbers: ReadonlySet<string>): Promise<boolean> {
  for (const descriptor of await list(folder)) {
    const path = join(folder, descriptor)
    // To look at a file that lies elsewhere may block: its server may be dead.
    const target = await readlink(path).catch(() => '')
    if (target.startsWith('/dev/') && numbers.has(await numberAt(path))) return true
  }
  return false
}

async function isPartition(folder: string): Promise<boolean> {
  return (await text(join(folder, 'partition'))) !== ''
}

/** The names of a disk's partitions. */
async function partitionsOf(folder: string): Promise<string[]> {
  const found: string[] = []
  for (const entry of await list(folder)) if (await isPartition(join(folder, entry))) found.push(entry)
  return found
}

interface Names {
  folder: string
  /** `major:minor`. */
  number: string
  prefix: string
}

async function namesOf(folder: string, prefix: string): Promise<Names> {
  return { folder, number: (await text(join(folder, 'dev'))).trim(), prefix }
}

async function describe({ folder, number, prefix }: Names): Promise<string[]> {
  const found: string[] = []
  const members = await membersWith(basename(folder))
  for (const line of (await text('/proc/self/mountinfo')).split('\n')) {
    const fields = line.split(' ')
    if (fields[2] === number || (await sourceIsIn(fields, members))) {
      found.push(`${prefix}mounted on ${unescapeMount(fields[4] ?? '?')}`)
    }
  }
  for (const line of (await text('/proc/swaps')).split('\n').slice(1)) {
    const path = line.split(/\s/)[0]
    if (path !== undefined && path !== '' && (await numberAt(path)) === number) found.push(`${prefix}used as swap`)
  }
  for (const holder of await list(join(folder, 'holders'))) found.push(`${prefix}held by ${holder}`)
  return [...new Set(found)]
}

/** A device and all that share a btrfs file system with it: a mount names only one of them. */
async function membersWith(name: string): Promise<readonly string[]> {
  for (const id of await list('/sys/fs/btrfs')) {
    const members = await list(join('/sys/fs/btrfs', id, 'devices'))
    if (members.includes(name)) return members
  }
  return [name]
}

/** File systems such as btrfs mount under a device number of their own; their source field still names the device. */
async function sourceIsIn(fields: readonly string[], names: readonly string[]): Promise<boolean> {
  const source = fields[fields.indexOf('-') + 2]
  if (source === undefined || !source.startsWith('/dev/')) return false
  const path = await realpath(source).catch(() => source)
  return names.includes(basename(path))
}

/** `major:minor` of a device by its path; empty where it can't be told, as nothing is there. */
export async function numberAt(path: string): Promise<string> {
  const found = await stat(path).catch(() => null)
  return found === null ? '' : deviceNumber(found.rdev)
}

/** mountinfo writes blanks and backslashes as octal numbers. */
function unescapeMount(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
}

async function text(path: string): Promise<string> {
  return readFile(path, 'utf8').catch((error: unknown) => unlessShort(error, ''))
}

async function list(path: string): Promise<string[]> {
  return readdir(path).catch((error: unknown) => unlessShort(error, []))
}

/** What is not there, or is not ours to see, holds nothing; but to be short of descriptors or memory is not to have looked. */
function unlessShort<T>(error: unknown, otherwise: T): T {
  const { errno, code } = error as NodeJS.ErrnoException
  if (code !== 'EMFILE' && code !== 'ENFILE' && code !== 'ENOMEM') return otherwise
  throw new BlockError(-errno!, {
    syscall: 'open',
    path: '/proc',
    reason: 'who holds the device could not be found out',
  })
}
