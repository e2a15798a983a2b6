// `multiwrite convert IMAGE TARGET`: from raw to qcow2 and back, into a file that is made for it. Zeros of the image take no room
// in the target; what was made is read back and compared, by way of the target's own format.

import { create, open } from '../index.ts'
import { type Command, EXIT, type ExitStatus, oneOf, parseArguments, Stop } from './command.ts'
import { carryImage, createDirect, IMAGE_OPTIONS, imageSettings } from './image-command.ts'
import { type Backing, FORMATS, WHOLE_CHUNKS } from './source.ts'

const SECTOR_BYTES = 512

const USAGE = `usage: multiwrite convert [options] IMAGE TARGET

Writes what is in IMAGE to TARGET, an image file of another format, and
compares both. Zeros take no room in TARGET. For a device there is "write".

  IMAGE    a raw image, as it is or packed by gzip, xz or zstd, or qcow2
  TARGET   a file, which is made if it is not there

  --from raw|qcow2     what IMAGE is; raw if nothing is said
  --to qcow2|raw       what TARGET becomes; the other one if nothing is said
  --backing FILE       what lies below IMAGE, if that names a backing file:
                       such a name is never followed
  --backing-format raw|qcow2
                       what that is; raw if nothing is said
  --force              overwrite TARGET without asking
  --no-verify          don't compare
  --engine NAME        io_uring, aio or threads instead of the first that works
  --progress=FD        progress for programs: a line of JSON, four a second
  --json               the result as JSON
  --help

exit status: 0 done, 1 I/O or verification failed, 2 usage, 3 refused for
safety
`

const OPTIONS = {
  ...IMAGE_OPTIONS,
  from: { type: 'string' },
  to: { type: 'string' },
  backing: { type: 'string' },
  'backing-format': { type: 'string' },
} as const

async function run(args: readonly string[]): Promise<ExitStatus> {
  const parsed = parseArguments(args, { usage: USAGE, options: OPTIONS, operands: ['IMAGE', 'TARGET'] })
  if (parsed === null) return EXIT.done
  const { values, operands } = parsed
  const [image, path] = operands as [string, string]
  const from = values.from === undefined ? undefined : oneOf(values.from, 'from', FORMATS, USAGE)
  const to = oneOf(values.to ?? (from === 'qcow2' ? 'raw' : 'qcow2'), 'to', FORMATS, USAGE)
  const backing: Backing | undefined =
    values.backing === undefined
      ? undefined
      : { path: values.backing, format: oneOf(values['backing-format'], 'backing-format', FORMATS, USAGE) }
  if (backing !== undefined && from !== 'qcow2')
    throw new Stop(EXIT.usage, 'only a qcow2 image has a backing file: say --from qcow2, or leave --backing out')
  const settings = imageSettings(values, USAGE)
  return carryImage({ command: 'convert', image, format: from, backing, path }, settings, ({ size }, target) => {
    if (to === 'qcow2' && size === null) {
      throw new Stop(EXIT.usage, 'the size of a qcow2 image must be known when it is made: unpack the image first')
    }
    if (target.kind === 'block device') {
      throw new Stop(EXIT.usage, `${path} is a block device: "multiwrite write" writes an image to one`)
    }
    return {
      zeroes: 'known',
      firstLast: false,
      // A raw image may end anywhere, a qcow2 image has whole sectors.
      open: () => {
        const options = { ...WHOLE_CHUNKS, overwrite: target.kind === 'existing file', engine: settings.engine }
        if (to === 'raw') return createDirect(path, { ...options, size: size ?? 0 })
        return create(path, { ...options, format: to, size: Math.ceil(size! / SECTOR_BYTES) * SECTOR_BYTES })
      },
      reopen: (direct) => open(path, { ...WHOLE_CHUNKS, format: to, readOnly: true, direct }),
    }
  })
}

export const convertCommand: Command = {
  name: 'convert',
  run,
}
