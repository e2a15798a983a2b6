// After an image has gone to a whole disk, the kernel still has the partitions of what was there before. It reads the table anew if it is
// asked to (BLKRRPART), which the tool blockdev of util-linux and busybox does; it refuses while a partition is open. What was written
// is right either way, so nothing here is a failure of the command: it is said.

import { spawnSync } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import type { Disk } from './disks.ts'

/** What became of it; `reason` where the kernel keeps what it had. */
export type Reread = { done: true } | { done: false; reason: string }

/** Where administrators' tools are; the path of other people may not name it. */
const SYSTEM_PATH = '/usr/sbin:/sbin'

/**
 * Has the kernel read the partition table of a disk, which must be closed.
 *
 * @returns `null` for what has none: a partition, or a device whose table the kernel does not look at
 */
export async function rereadPartitions(path: string, { name, parent }: Disk): Promise<Reread | null> {
  if (parent !== null) return null
  // Told from Linux 6.10 on; before, the attempt tells.
  if ((await readFile(`/sys/block/${name}/partscan`, 'utf8').catch(() => '')).trim() === '0') return null
  const { error, status, stderr } = spawnSync('blockdev', ['--rereadpt', path], {
    encoding: 'utf8',
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, LC_ALL: 'C', PATH: `${process.env.PATH ?? ''}:${SYSTEM_PATH}` },
  })
  if (error !== undefined) return { done: false, reason: 'the tool blockdev, which asks for it, is not there' }
  if (status === 0) return { done: true }
  // EINVAL: a device without partitions, such as a loop device that was attached without --partscan.
  if (stderr.includes('Invalid argument')) return null
  if (stderr.includes('busy')) return { done: false, reason: 'one of the old ones is in use' }
  return { done: false, reason: stderr.trim() }
}
