// `multiwrite info TARGET`: what a device or image is, what it can do, who uses it, and which engine would serve it and why.
//
// It only looks: the target is opened read-only and not exclusively, so that what is mounted can be looked at. What it says of
// engine and direct I/O is what a writer would get.

import { stat } from 'node:fs/promises'
import { type BlockDevice, type DeviceLimits, holdersOf, open } from '../index.ts'
import { type Command, ENGINES, EXIT, type ExitStatus, oneOf, parseArguments, Stop } from './command.ts'
import { type Disk, diskAt, loopsOn } from './disks.ts'
import { type Qcow2Header, readQcow2Header } from './qcow2-header.ts'
import { formatBytes, formatCount, formatField } from './report.ts'
import { FORMATS, type Format } from './source.ts'
import { styleOf } from './style.ts'
import { describeTarget } from './target.ts'

const USAGE = `usage: multiwrite info [options] TARGET

What TARGET, a block device or image file, is: size, limits and alignment, who
uses it, and which engine would serve it and why. Nothing is written.

  --format raw|qcow2   what TARGET is to be taken for; raw if nothing is said
  --direct             as with O_DIRECT on a file (block devices always)
  --engine NAME        as with io_uring, aio or threads
  --json               the same for programs
  --help

exit status: 0 done, 1 it can't be opened, 2 usage
`

const OPTIONS = {
  format: { type: 'string' },
  direct: { type: 'boolean' },
  engine: { type: 'string' },
  json: { type: 'boolean' },
} as const

/** What can be known without opening it. */
interface Known {
  path: string
  kind: 'block device' | 'file'
  size: number
  holders: string[]
  disk: Disk | null
}

interface Opened {
  format: Format
  size: number
  direct: boolean
  engine: BlockDevice['engine']
  limits: DeviceLimits
  qcow2: Qcow2Header | null
}

type Info = Known & Opened

async function run(args: readonly string[]): Promise<ExitStatus> {
  const parsed = parseArguments(args, { usage: USAGE, options: OPTIONS, operands: ['TARGET'] })
  if (parsed === null) return EXIT.done
  const { values, operands } = parsed
  const path = operands[0]!
  const format = oneOf(values.format, 'format', FORMATS, USAGE)
  const engine = oneOf(values.engine, 'engine', ENGINES, USAGE)
  const stats = await stat(path)
  const isDevice = stats.isBlockDevice()
  const known: Known = {
    path,
    kind: isDevice ? 'block device' : 'file',
    size: stats.size,
    holders: isDevice ? await holdersOf(path) : (await loopsOn(stats)).map((loop) => `attached to ${loop}`),
    disk: await diskAt(path),
  }
  const say = (info: object, text: string[]): void => {
    process.stdout.write(`${values.json ? JSON.stringify(info, null, 2) : text.join('\n')}\n`)
  }

  let opened: Opened
  try {
    opened = await look(path, format, engine, values.direct ?? false)
  } catch (error) {
    // Without permission there is still what the system knows.
    say(known, knownLines(known))
    throw error
  }
  const info: Info = {
    ...known,
    ...opened,
    size: opened.qcow2 !== null && format === 'qcow2' ? opened.qcow2.virtualSize : opened.size,
  }
  say(info, [...knownLines(info), ...openedLines(info)])
  return EXIT.done
}

async function look(path: string, format: Format, engine: (typeof ENGINES)[number], direct: boolean): Promise<Opened> {
  const qcow2 = await readQcow2Header(path)
  if (format === 'qcow2' && qcow2 === null)
    throw new Stop(EXIT.failed, `${path} is no qcow2 image: leave out --format to look at it as it is`)
  // As the file that it is: the limits are those of what it lies on, and no image needs to be whole to be looked at.
  const disk = await open(path, { readOnly: true, engine, ...(direct ? { direct: true } : {}) })
  const { size, limits } = disk
  await disk.close()
  return { format, size, direct: disk.direct, engine: disk.engine, limits, qcow2 }
}

function knownLines({ path, kind, size, holders, disk }: Known): string[] {
  const { bold, danger } = styleOf(process.stdout)
  const isDevice = kind === 'block device'
  const target = {
    path,
    kind: isDevice ? ('block device' as const) : ('existing file' as const),
    disk,
    size: disk?.bytes ?? size,
  }
  const [first, ...rest] = describeTarget(target)
  const nobody = isDevice ? 'nobody that can be seen' : 'no loop device'
  const users = formatField('used by', holders.length > 0 ? holders.join('; ') : nobody)
  return [
    formatField('what', first!).replace(path, bold(path)),
    ...rest.map((line) => formatField('', line)),
    holders.length > 0 ? danger(users) : users,
  ]
}

function openedLines({ format, size, direct, engine, limits, qcow2 }: Info): string[] {
  const bytes = (value: number): string => (value === 0 ? 'unknown' : formatBytes(value))
  const discard =
    limits.discardGranularity === 0 ? 'no discard' : `discard by ${formatBytes(limits.discardGranularity)}`
  const stream = limits.optimalIoSize === 0 ? '' : `; best streamed by ${formatBytes(limits.optimalIoSize)}`
  return [
    formatField('format', `${format}, ${formatCount(size)} bytes`),
    ...qcow2Lines(format, qcow2),
    formatField('engine', `${engine.name}: ${engine.reason}`),
    formatField('direct', direct ? 'yes, O_DIRECT' : 'no, through the page cache'),
    formatField(
      'aligned',
      `offsets and lengths by ${formatBytes(limits.alignment)}, memory by ${formatBytes(limits.memoryAlignment)}`,
    ),
    formatField('blocks', `${bytes(limits.logicalBlockSize)} logical, ${bytes(limits.physicalBlockSize)} physical`),
    formatField(
      'merging',
      `runs of up to ${formatBytes(limits.maxBytes)} and ${formatCount(limits.maxSegments)} segments${stream}`,
    ),
    formatField('medium', `${limits.rotational === 1 ? 'turning disks' : 'not of turning disks'}; ${discard}`),
  ]
}

function qcow2Lines(format: string, qcow2: Qcow2Header | null): string[] {
  if (qcow2 === null) return []
  if (format === 'raw') return [formatField('', 'it begins like a qcow2 image: --format qcow2 tells more')]
  const { version, clusterSize, refcountBits, backingFile, encrypted, snapshots, features } = qcow2
  return [
    formatField('', `version ${version}, clusters of ${formatBytes(clusterSize)}, refcounts of ${refcountBits} bits`),
    ...(backingFile === null ? [] : [formatField('', `names a backing file: ${backingFile} (not followed)`)]),
    ...(features.length === 0 ? [] : [formatField('', `features: ${features.join(', ')}`)]),
    ...(encrypted ? [formatField('', 'encrypted')] : []),
    ...(snapshots === 0
      ? []
      : [formatField('', `${formatCount(snapshots)} internal ${snapshots === 1 ? 'snapshot' : 'snapshots'}`)]),
  ]
}

export const infoCommand: Command = {
  name: 'info',
  run,
}
