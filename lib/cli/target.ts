// What may be written to: the checks before an image goes to a device or file, and the question to whoever sits at the terminal.
//
// To write an image to the wrong disk is the accident of this field. So what would be lost is shown in the words by which people
// know their disks, a device in use is refused with the name of its user, and off a terminal nothing that exists is overwritten
// unless --force says so. --force answers the question; it does not lift a refusal.

import { once } from 'node:events'
import { stat } from 'node:fs/promises'
import { createInterface } from 'node:readline/promises'
import { deviceNumber } from '../device-number.ts'
import { type BlockDevice, BlockError, holdersOf } from '../index.ts'
import { EXIT, Stop } from './command.ts'
import { type Disk, diskAt, fileKey, liesOn, loopsOn } from './disks.ts'
import { formatBytes } from './report.ts'
import { styleOf } from './style.ts'

/** Something to write to, found safe. */
export interface Target {
  readonly path: string
  readonly kind: 'block device' | 'existing file' | 'new file'
  /** What the system knows of a block device. */
  readonly disk: Disk | null
  /** Bytes; of a file, what it has now. */
  readonly size: number
}

function refuse(reason: string): never {
  throw new Stop(EXIT.refused, `refused: ${reason}`)
}

/**
 * Finds out what a path is.
 *
 * @throws Stop (refused) for what is in use or read-only, naming who uses it
 */
export async function examine(path: string): Promise<Target> {
  const stats = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null
    throw error
  })
  if (stats === null) {
    // A mistyped name would fill the memory that /dev lies on, and look like success.
    if (path.startsWith('/dev/') && !path.startsWith('/dev/shm/')) {
      throw new Stop(EXIT.usage, `there is no device ${path}; "lsblk" lists those that there are`)
    }
    return { path, kind: 'new file', disk: null, size: 0 }
  }
  if (stats.isFile()) {
    const loops = await loopsOn(stats)
    if (loops.length > 0) refuse(`${path} is in use: attached to ${loops.join(', ')}; detach it first (losetup -d)`)
    return { path, kind: 'existing file', disk: null, size: stats.size }
  }
  if (!stats.isBlockDevice())
    throw new Stop(EXIT.usage, `${path} is neither a block device nor a regular file: name one of these`)
  const holders = await holdersOf(path)
  if (holders.length > 0) refuse(`${path} is in use: ${holders.join('; ')}. Unmount or release it first`)
  const disk = await diskAt(path)
  if (disk?.readOnly) refuse(`${path} is read-only: look for a switch on the medium, or see "blockdev --setrw"`)
  return { path, kind: 'block device', disk, size: disk?.bytes ?? 0 }
}

/** Refuses an image that lies on its own target, whatever is stacked between them. */
export async function refuseOwnGround(image: string, target: Target): Promise<void> {
  if (target.kind === 'new file') return
  const stats = await stat(target.path)
  const ground = await liesOn(image)
  const own = stats.isBlockDevice() ? deviceNumber(stats.rdev) : fileKey(stats)
  if (ground.has(own))
    refuse(`the image ${image} lies on ${target.path}: it would overwrite itself. Copy it elsewhere first`)
  // And the other way round: a loop device above the image.
  const imageStats = await stat(image)
  const below = await liesOn(target.path)
  if (imageStats.isFile() && below.has(fileKey(imageStats))) {
    refuse(`${target.path} lies on the image ${image}: it would overwrite itself. Take another target`)
  }
}

export function refuseTooSmall(target: Target, sizeMin: number): void {
  if (target.kind !== 'block device' || target.size >= sizeMin) return
  refuse(
    `${target.path} is too small: it has ${formatBytes(target.size)} (${target.size} bytes) and the image needs ` +
      `${formatBytes(sizeMin)} (${sizeMin} bytes). Take a larger target`,
  )
}

/** A target in the words by which people know it, a line each. */
export function describeTarget({ path, kind, disk, size }: Target): string[] {
  if (disk === null) return [kind === 'new file' ? `${path}, a new file` : `${path}, a file of ${formatBytes(size)}`]
  const kinds = [disk.removable ? 'removable' : '', disk.rotational ? 'rotating' : ''].filter(Boolean)
  const lines = [
    `${path}, ${disk.parent === null ? 'a disk' : `a partition of ${disk.parent}`} of ${formatBytes(size)}`,
  ]
  if (kinds.length > 0) lines[0] += `, ${kinds.join(', ')}`
  lines.push(`model ${disk.model || 'unknown'}, serial ${disk.serial || 'unknown'}`)
  if (disk.stableName !== '') lines.push(disk.stableName)
  if (disk.backingFile !== '') lines.push(`a loop device on ${disk.backingFile}`)
  if (disk.content !== '') lines.push(`holds ${disk.content}`)
  for (const { name, bytes, content } of disk.partitions) {
    lines.push(`partition ${name}, ${formatBytes(bytes)}${content === '' ? '' : `, ${content}`}`)
  }
  if (disk.partitions.length === 0 && disk.parent === null) lines.push('no partitions that the kernel knows of')
  return lines
}

/**
 * Asks on a terminal; off one, and with the image on standard input, only --force answers.
 *
 * @param ask whether standard input may be asked
 */
export async function confirm(target: Target, force: boolean, ask: boolean): Promise<void> {
  if (force || target.kind === 'new file') return
  const lost = target.kind === 'block device' ? `everything on ${target.path}` : `the content of ${target.path}`
  if (!ask || !process.stdin.isTTY || !process.stderr.isTTY) {
    refuse(`${lost} would be lost, and there is no terminal to ask at; --force allows it`)
  }
  const style = styleOf(process.stderr)
  const questions = createInterface({ input: process.stdin, output: process.stderr })
  try {
    const asked = `${style.danger(`${lost[0]!.toUpperCase()}${lost.slice(1)} will be lost.`)} Type "yes" to go on: `
    // Ctrl-D closes it without an answer, Ctrl-C takes the question back.
    const answer = await Promise.race([
      questions.question(asked).catch(() => '\n'),
      once(questions, 'close').then(() => '\n'),
    ])
    if (answer === '\n') process.stderr.write('\n')
    if (answer.trim() !== 'yes')
      throw new Stop(EXIT.refused, 'not confirmed; nothing was written. To be asked again, run it again')
  } finally {
    questions.close()
  }
}

/** What was opened must still be what was shown: a stick may have been changed while the question stood there. */
export async function checkSame(target: Target, opened: BlockDevice): Promise<void> {
  if (target.disk === null) return
  const now = await diskAt(target.path)
  const same =
    now !== null &&
    (['name', 'number', 'serial', 'model', 'bytes'] as const).every((field) => now[field] === target.disk![field])
  if (!same || opened.size !== target.size)
    refuse(`${target.path} is not the device any more that it was; look again at what is connected, and run it anew`)
}

/** What the library says of a target that it does not open, as the end of a command: in use and read-only are refusals. */
export function asRefusal(error: unknown): unknown {
  if (!(error instanceof BlockError)) return error
  const { code, message } = error
  if (code === 'EBUSY' || code === 'EROFS') return new Stop(EXIT.refused, `refused: ${message}`)
  return error
}
