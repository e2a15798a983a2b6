// Who holds a block device: mount points, swap, and devices stacked on it (device mapper, md, loop), of the disk itself and of
// its partitions. O_EXCL tells only that somebody does; a person needs the name.

import { readdir, readFile, realpath, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'

/** In words, such as `mounted on /mnt/data` or `partition sdb2 is used as swap`; empty if nobody can be seen. */
export async function holdersOf(major: number, minor: number): Promise<string[]> {
  const folder = await realpath(`/sys/dev/block/${major}:${minor}`).catch(() => null)
  if (folder === null) return []
  const self = await namesOf(folder, '')
  const found = await describe(self)
  for (const entry of await list(folder)) {
    const partition = join(folder, entry)
    if ((await text(join(partition, 'partition'))) === '') continue
    found.push(...(await describe(await namesOf(partition, `partition ${entry} is `))))
  }
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
  for (const line of (await text('/proc/self/mountinfo')).split('\n')) {
    const fields = line.split(' ')
    if (fields[2] === number || (await sourceIs(fields, basename(folder)))) {
      found.push(`${prefix}mounted on ${unescapeMount(fields[4] ?? '?')}`)
    }
  }
  for (const line of (await text('/proc/swaps')).split('\n').slice(1)) {
    const path = line.split(/\s/)[0]
    if (path !== undefined && path !== '' && (await deviceNumber(path)) === number) found.push(`${prefix}used as swap`)
  }
  for (const holder of await list(join(folder, 'holders'))) found.push(`${prefix}held by ${holder}`)
  return [...new Set(found)]
}

/** File systems such as btrfs mount under a device number of their own; their source field still names the device. */
async function sourceIs(fields: readonly string[], name: string): Promise<boolean> {
  const source = fields[fields.indexOf('-') + 2]
  if (source === undefined || !source.startsWith('/dev/')) return false
  const path = await realpath(source).catch(() => source)
  return basename(path) === name
}

async function deviceNumber(path: string): Promise<string> {
  try {
    const { rdev } = await stat(path)
    return `${deviceMajor(rdev)}:${deviceMinor(rdev)}`
  } catch {
    return ''
  }
}

/** The parts of a device number as Linux packs it for user space. */
export function deviceMajor(rdev: number): number {
  return Number((BigInt(rdev) >> 8n) & 0xfffn) | Number((BigInt(rdev) >> 32n) & 0xfffff000n)
}

export function deviceMinor(rdev: number): number {
  return Number(BigInt(rdev) & 0xffn) | Number((BigInt(rdev) >> 12n) & 0xffffff00n)
}

/** mountinfo writes blanks and backslashes as octal numbers. */
function unescapeMount(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
}

async function text(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '')
}

async function list(path: string): Promise<string[]> {
  return readdir(path).catch(() => [])
}
