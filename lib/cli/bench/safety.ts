// What must not be overwritten: a block device without --force, and whatever somebody uses, with or without it.
//
// What can be seen of users is looked at first, for files as well; then the device is claimed with O_EXCL. The claim is held as
// long as anything is measured, so that nobody mounts the device meanwhile.

import { type BlockDevice, type OpenOptions, open } from '../../index.ts'
import { EXIT, Stop } from '../command.ts'
import { asRefusal, examine } from '../target.ts'

/** Opens the target for writing, or refuses. */
export async function claim(path: string, force: boolean, options: OpenOptions): Promise<BlockDevice> {
  const { kind } = await examine(path)
  if (kind === 'block device' && !force) {
    throw new Stop(EXIT.refused, `refused: everything on the block device ${path} would be lost; --force allows it`)
  }
  try {
    return await open(path, { ...options, ...(kind === 'block device' ? { exclusive: true } : {}) })
  } catch (error) {
    throw asRefusal(error)
  }
}
