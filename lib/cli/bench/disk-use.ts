// What the kernel counted for the disk below a target: /sys/block/NAME/stat, before and after.

import { readFile, realpath, stat } from 'node:fs/promises'
import { basename } from 'node:path'
import { deviceNumber } from '../../device-number.ts'
import type { DiskUse } from './results.ts'

/** Fields of the file, as Documentation/block/stat.rst of Linux names them. */
interface Snapshot {
  name: string
  at_ms: number
  fields: number[]
}

/** `null` where the target lies on no disk, as on tmpfs. */
export async function diskSnapshot(path: string): Promise<Snapshot | null> {
  try {
    const found = await stat(path)
    const device = found.isBlockDevice() ? found.rdev : found.dev
    const folder = await realpath(`/sys/dev/block/${deviceNumber(device)}`)
    const fields = (await readFile(`${folder}/stat`, 'utf8')).trim().split(/\s+/).map(Number)
    return { name: basename(folder), at_ms: performance.now(), fields }
  } catch {
    return null
  }
}

export function diskUse(before: Snapshot | null, after: Snapshot | null): DiskUse | null {
  if (before === null || after === null) return null
  const [
    readRequests,
    readMerges,
    readSectors,
    readTicks,
    writes,
    writeMerges,
    writtenSectors,
    writeTicks,
    ,
    io,
    queue,
  ] = after.fields.map((field, index) => field - (before.fields[index] ?? 0))
  const elapsed_ms = Math.max(1, after.at_ms - before.at_ms)
  return {
    name: after.name,
    read: {
      requests: readRequests ?? 0,
      merges: readMerges ?? 0,
      sectors: readSectors ?? 0,
      ticks_ms: readTicks ?? 0,
    },
    write: {
      requests: writes ?? 0,
      merges: writeMerges ?? 0,
      sectors: writtenSectors ?? 0,
      ticks_ms: writeTicks ?? 0,
    },
    queue_ms: queue ?? 0,
    util: Math.min(100, ((io ?? 0) / elapsed_ms) * 100),
  }
}
