// `multiwrite write IMAGE TARGET`: carries an image to a device or file, and proves that it is there.

import { open } from '../index.ts'
import { type Command, EXIT, type ExitStatus, oneOf, parseArguments } from './command.ts'
import { carryImage, createDirect, IMAGE_OPTIONS, imageSettings } from './image-command.ts'
import { FORMATS, WHOLE_CHUNKS } from './source.ts'
import { refuseTooSmall } from './target.ts'

const USAGE = `usage: multiwrite write [options] IMAGE TARGET

Writes IMAGE to TARGET, flushes, and compares what TARGET then holds with the
image, past the page cache.

  IMAGE    a raw image, as it is or packed by gzip, xz or zstd; "-" is standard
           input
  TARGET   a block device, or a file, which is made if it is not there

  --format raw|qcow2   what IMAGE is; raw if nothing is said
  --force              overwrite TARGET without asking; off a terminal it must
                       be said. A device that is in use is refused all the same
  --zeroes zero|skip|write
                       long runs of zeros in the image: let the device zero
                       them, by discarding if it can (this is so if nothing is
                       said); leave what is there; write them
  --first-last         leave the first 64 KiB to the end, so that a disk that
                       was not finished is not taken for one; until then they
                       are zeros
  --no-verify          don't read it back
  --engine NAME        io_uring, aio or threads instead of the first that works
  --progress=FD        progress for programs: a line of JSON, four a second
  --json               the result as JSON
  --help

exit status: 0 done, 1 writing or verification failed, 2 usage, 3 refused for
safety
  xz -dc disk.img.xz | multiwrite write --force - /dev/sdX
`

const OPTIONS = {
  ...IMAGE_OPTIONS,
  format: { type: 'string' },
  zeroes: { type: 'string' },
  'first-last': { type: 'boolean' },
} as const

async function run(args: readonly string[]): Promise<ExitStatus> {
  const parsed = parseArguments(args, { usage: USAGE, options: OPTIONS, operands: ['IMAGE', 'TARGET'] })
  if (parsed === null) return EXIT.done
  const { values, operands } = parsed
  const [image, path] = operands as [string, string]
  const zeroes = oneOf(values.zeroes, 'zeroes', ['zero', 'skip', 'write'], USAGE)
  const format = values.format === undefined ? undefined : oneOf(values.format, 'format', FORMATS, USAGE)
  const settings = imageSettings(values, USAGE)
  const options = { engine: settings.engine, ...WHOLE_CHUNKS }
  return carryImage({ command: 'write', image, format, path }, settings, (source, target) => {
    refuseTooSmall(target, source.sizeMin)
    const isDevice = target.kind === 'block device'
    return {
      // What is made here reads as zeros.
      zeroes: !isDevice && zeroes === 'zero' ? 'known' : zeroes,
      firstLast: values['first-last'] ?? false,
      // A file becomes the image, whatever it was: its old end must not show behind it.
      open: () =>
        isDevice
          ? open(path, options)
          : createDirect(path, { ...options, size: source.size ?? 0, overwrite: target.kind === 'existing file' }),
      reopen: (direct) => open(path, { ...WHOLE_CHUNKS, readOnly: true, direct }),
    }
  })
}

export const writeCommand: Command = {
  name: 'write',
  run,
}
