// What sysfs, procfs and udev's records know of a block device, for people who must not mix up two disks: model, serial number,
// partitions, and what a file or device lies on. Only reading; what is not known is left out. The library's `holdersOf` tells who
// uses a device.

import type { Stats } from 'node:fs'
import { readdir, readFile, readlink, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { deviceNumber } from '../device-number.ts'

/** A partition, as the kernel sees it. */
export interface Partition {
  readonly name: string
  /** Bytes from the start of the disk. */
  readonly offset: number
  readonly bytes: number
  /** File system and label, where udev has looked. */
  readonly content: string
}

export interface Disk {
  /** As the kernel calls it, such as `sdb` or `nvme0n1p2`. */
  readonly name: string
  /** `major:minor`. */
  readonly number: string
  /** The disk that a partition belongs to. */
  readonly parent: string | null
  readonly bytes: number
  readonly model: string
  readonly serial: string
  readonly removable: boolean
  readonly readOnly: boolean
  readonly rotational: boolean
  /** A name that stays the same, from /dev/disk/by-id. */
  readonly stableName: string
  /** The file below a loop device. */
  readonly backingFile: string
  readonly partitions: readonly Partition[]
  /** What lies on a device as a whole, where udev has looked. */
  readonly content: string
}

/** sysfs counts in these whatever the device's own sectors are. */
const SYSFS_SECTOR = 512

/** A block device by its path; `null` if that is none. */
export async function diskAt(path: string): Promise<Disk | null> {
  const found = await stat(path).catch(() => null)
  return found?.isBlockDevice() ? describe(deviceNumber(found.rdev)) : null
}

async function describe(number: string): Promise<Disk | null> {
  const folder = await realpath(`/sys/dev/block/${number}`).catch(() => null)
  if (folder === null) return null
  const isPartition = (await text(join(folder, 'partition'))) !== ''
  const whole = isPartition ? dirname(folder) : folder
  const udev = await udevRecord(number)
  const partitions: Partition[] = []
  for (const name of await readdir(folder)) {
    if ((await text(join(folder, name, 'partition'))) === '') continue
    partitions.push({
      name,
      offset: Number(await text(join(folder, name, 'start'))) * SYSFS_SECTOR,
      bytes: Number(await text(join(folder, name, 'size'))) * SYSFS_SECTOR,
      content: contentOf(await udevRecord(await text(join(folder, name, 'dev')))),
    })
  }
  const vendor = udev.get('ID_VENDOR') ?? (await text(join(whole, 'device/vendor')))
  const model = udev.get('ID_MODEL') ?? (await text(join(whole, 'device/model')))
  return {
    name: basename(folder),
    number,
    parent: isPartition ? basename(whole) : null,
    bytes: Number(await text(join(folder, 'size'))) * SYSFS_SECTOR,
    // virtio shows its vendor as a number.
    model: model === '' ? '' : [vendor.startsWith('0x') ? '' : vendor, model].filter(Boolean).join(' '),
    serial: udev.get('ID_SERIAL_SHORT') ?? (await serialOf(whole)),
    removable: (await text(join(whole, 'removable'))) === '1',
    readOnly: (await text(join(folder, 'ro'))) === '1',
    rotational: (await text(join(whole, 'queue/rotational'))) === '1',
    stableName: await stableNameOf(basename(folder)),
    backingFile: await text(join(whole, 'loop/backing_file')),
    partitions: partitions.sort((a, b) => a.offset - b.offset),
    content: contentOf(udev),
  }
}

/**
 * Everything that a file or device lies on: numbers (`major:minor`) of block devices, down through partitions, device mapper, md
 * and loop devices, and `device:inode` of files.
 */
export async function liesOn(path: string): Promise<Set<string>> {
  const found = new Set<string>()
  const visit = async (stats: Stats | null): Promise<void> => {
    if (stats === null) return
    if (stats.isBlockDevice()) await visitDevice(deviceNumber(stats.rdev))
    else {
      found.add(fileKey(stats))
      for (const number of await devicesOf(deviceNumber(stats.dev))) await visitDevice(number)
    }
  }
  const visitDevice = async (number: string): Promise<void> => {
    if (number === '' || found.has(number)) return
    const folder = await realpath(`/sys/dev/block/${number}`).catch(() => null)
    if (folder === null) return
    found.add(number)
    if ((await text(join(folder, 'partition'))) !== '') await visitDevice(await text(join(dirname(folder), 'dev')))
    for (const slave of await list(join(folder, 'slaves')))
      await visitDevice(await text(join(folder, 'slaves', slave, 'dev')))
    const backing = await text(join(folder, 'loop/backing_file'))
    if (backing !== '') await visit(await stat(backing).catch(() => null))
  }
  await visit(await stat(path).catch(() => null))
  return found
}

/** What a file is known by in `liesOn`. */
export function fileKey({ dev, ino }: { dev: number; ino: number }): string {
  return `${dev}/${ino}`
}

/** Names of loop devices that a file is attached to. */
export async function loopsOn(file: { dev: number; ino: number }): Promise<string[]> {
  const found: string[] = []
  for (const name of await list('/sys/block')) {
    const backing = await text(`/sys/block/${name}/loop/backing_file`)
    const stats = backing === '' ? null : await stat(backing).catch(() => null)
    if (stats !== null && fileKey(stats) === fileKey(file)) found.push(`/dev/${name}`)
  }
  return found
}

/** The block devices of a file system: its own number, or, where that is none of a device (btrfs), those of its source. */
async function devicesOf(number: string): Promise<string[]> {
  if ((await realpath(`/sys/dev/block/${number}`).catch(() => null)) !== null) return [number]
  for (const line of (await text('/proc/self/mountinfo')).split('\n')) {
    const fields = line.split(' ')
    if (fields[2] !== number) continue
    const source = await stat(fields[fields.indexOf('-') + 2] ?? '').catch(() => null)
    if (source?.isBlockDevice()) return [deviceNumber(source.rdev)]
  }
  return []
}

async function serialOf(folder: string): Promise<string> {
  for (const name of ['device/serial', 'serial', 'device/wwid']) {
    const serial = await text(join(folder, name))
    if (serial !== '') return serial
  }
  // SCSI keeps it as a page of its own, behind a header of four bytes.
  const page = await readFile(join(folder, 'device/vpd_pg80')).catch(() => null)
  return page === null ? '' : page.toString('latin1', 4).replaceAll('\0', '').trim()
}

async function stableNameOf(name: string): Promise<string> {
  const folder = '/dev/disk/by-id'
  for (const link of (await list(folder)).sort()) {
    if (basename(await readlink(join(folder, link)).catch(() => '')) === name) return join(folder, link)
  }
  return ''
}

/** What udev found out about a device; empty where there is no udev. */
async function udevRecord(number: string): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  for (const line of (await text(`/run/udev/data/b${number}`)).split('\n')) {
    const [, key, value] = /^E:([A-Z_0-9]+)=(.*)$/.exec(line) ?? []
    if (key !== undefined && value !== undefined && value !== '') found.set(key, value.replaceAll('_', ' ').trim())
  }
  return found
}

function contentOf(udev: ReadonlyMap<string, string>): string {
  const [type, label] = [udev.get('ID_FS_TYPE'), udev.get('ID_FS_LABEL')]
  if (type === undefined) return ''
  return label === undefined ? type : `${type} "${label}"`
}

async function text(path: string): Promise<string> {
  return (await readFile(path, 'utf8').catch(() => '')).trim()
}

async function list(path: string): Promise<string[]> {
  return readdir(path).catch(() => [])
}
