// What must not be overwritten: a block device without --force, and whatever somebody uses, with or without it.
//
// The claim on a device is O_EXCL, by way of this library's `open`, which names the holder; it is held as long as anything is
// measured, so that nobody mounts the device meanwhile. A file can't be claimed; that it backs a loop device or is swapped to
// can be seen.

import { readdir, readFile, realpath, stat } from 'node:fs/promises'
import { type BlockDevice, BlockError, type OpenOptions, open } from '../../index.ts'
import { EXIT, Stop } from '../command.ts'

/** Opens the target for writing, or refuses. */
export async function claim(path: string, force: boolean, options: OpenOptions): Promise<BlockDevice> {
  const isDevice = (await stat(path)).isBlockDevice()
  if (!isDevice) {
    const user = await userOf(path)
    if (user !== null) throw refused(`${path} is ${user}`)
  }
  let disk: BlockDevice
  try {
    disk = await open(path, { ...options, ...(isDevice ? { exclusive: true } : {}) })
  } catch (error) {
    if (error instanceof BlockError && error.code === 'EBUSY') throw refused(error.message)
    throw error
  }
  if (!isDevice || force) return disk
  await disk.close()
  throw refused(`${path} is a block device, and all that is on it would be overwritten; --force allows that`)
}

function refused(message: string): Stop {
  return new Stop(EXIT.refused, `bench: ${message}`)
}

/** Who uses a file below a file system, in words; `null` if nobody can be seen. */
async function userOf(path: string): Promise<string | null> {
  const real = await realpath(path)
  for (const name of await readdir('/sys/block').catch(() => [])) {
    const backing = await readFile(`/sys/block/${name}/loop/backing_file`, 'utf8').catch(() => '')
    if (backing.trimEnd() === real) return `what /dev/${name} lies on`
  }
  const swaps = await readFile('/proc/swaps', 'utf8').catch(() => '')
  if (swaps.split('\n').some((line) => line.split(/\s/)[0] === real)) return 'used as swap'
  return null
}
