// `multiwrite write IMAGE TARGET`: carries an image to a device or file, and proves that it is there.
//
// The order of things: arguments, image, target and all refusals, the question, and only then is anything written. Then: the
// image; a flush; with --first-last its first 64 KiB and another flush; the verification past the page cache. Whatever ends it
// half-way, the last words are about the state that the target is in.

import { type BlockDevice, BlockError, create, open as openDevice } from '../index.ts'
import { type Command, ENGINES, EXIT, type ExitStatus, explain, oneOf, parseArguments, statusOf } from './command.ts'
import { type Copied, copy, type Difference, nothingCopied, verify, type ZeroMode } from './copy.ts'
import { Interrupt } from './interrupt.ts'
import { formatSpeed, formatTime, Progress, progressDescriptor } from './progress.ts'
import { formatBytes } from './report.ts'
import { FORMATS, openSource, type Source } from './source.ts'
import { styleOf } from './style.ts'
import {
  asRefusal,
  checkSame,
  confirm,
  describeTarget,
  examine,
  refuseOwnGround,
  refuseTooSmall,
  type Target,
} from './target.ts'

/** Where partition tables and boot loaders begin; a disk whose first part is zeros is taken for an empty one. */
const FIRST_BYTES = 64 * 1024

const USAGE = `usage: multiwrite write [options] IMAGE TARGET

Writes IMAGE to TARGET, flushes, and compares what TARGET then holds with the image,
past the page cache.

  IMAGE    a raw image, as it is or packed by gzip, xz or zstd; "-" is standard input
  TARGET   a block device, or a file, which is made if it is not there

  --format raw|qcow2   what IMAGE is; raw if nothing is said
  --force              overwrite TARGET without asking (off a terminal it must be said).
                       A device that is in use is refused all the same
  --zeroes zero|skip|write
                       long runs of zeros in the image: let the device zero them, by
                       discarding if it can (this is so if nothing is said); leave what
                       is there; write them
  --first-last         leave the first 64 KiB to the end, so that a disk that was not
                       finished is not taken for one; until then they are zeros
  --no-verify          don't read it back
  --engine NAME        io_uring, aio or threads instead of the first that works
  --progress=FD        progress for programs: a line of JSON four times a second
  --json               the result as JSON
  --help

exit status: 0 done, 1 writing or verification failed, 2 usage, 3 refused for safety
  xz -dc disk.img.xz | multiwrite write --force - /dev/sdX
`

const OPTIONS = {
  format: { type: 'string' },
  force: { type: 'boolean' },
  zeroes: { type: 'string' },
  'first-last': { type: 'boolean' },
  'no-verify': { type: 'boolean' },
  engine: { type: 'string' },
  progress: { type: 'string' },
  json: { type: 'boolean' },
} as const

interface Arguments {
  image: string
  path: string
  zeroes: ZeroMode
  firstLast: boolean
  verify: boolean
  engine: (typeof ENGINES)[number]
  json: boolean
}

/** How far a run came; the base of all that is said of it. */
interface Run {
  readonly copied: Copied
  /** What `--first-last` held back is on the target. */
  complete: boolean
  flushed: boolean
  verified: { bytes: number; by: 'direct reads' | 'reads through the page cache' } | null
  writeSeconds: number
  flushSeconds: number
  verifySeconds: number
}

async function run(args: readonly string[]): Promise<ExitStatus> {
  const parsed = parseArguments(args, { usage: USAGE, options: OPTIONS, operands: ['IMAGE', 'TARGET'] })
  if (parsed === null) return EXIT.done
  const { values, operands } = parsed
  const [image, path] = operands as [string, string]
  const given: Arguments = {
    image,
    path,
    zeroes: oneOf(values.zeroes, 'zeroes', ['zero', 'skip', 'write'], USAGE),
    firstLast: values['first-last'] ?? false,
    verify: !values['no-verify'],
    engine: oneOf(values.engine, 'engine', ENGINES, USAGE),
    json: values.json ?? false,
  }
  const format = values.format === undefined ? undefined : oneOf(values.format, 'format', FORMATS, USAGE)
  const descriptor = progressDescriptor(values.progress)

  const source = await openSource(image, format)
  try {
    const target = await examine(path)
    if (image !== '-') await refuseOwnGround(image, target)
    refuseTooSmall(target, source.sizeMin)
    show(source, target, given)
    await confirm(target, values.force ?? false, image !== '-')
    return await write(source, target, given, descriptor)
  } finally {
    await source.close()
  }
}

function show(source: Source, target: Target, { image }: Arguments): void {
  const { bold } = styleOf(process.stderr)
  const size = source.size === null ? '' : ` of ${formatBytes(source.size)}`
  const from = image === '-' ? '' : `${image}, `
  const [first, ...rest] = describeTarget(target)
  const lines = [`image   ${from}${source.description}${size}`, `target  ${bold(first!)}`]
  process.stderr.write(`${[...lines, ...rest.map((line) => `        ${line}`)].join('\n')}\n`)
}

async function write(source: Source, target: Target, given: Arguments, descriptor: number | null): Promise<ExitStatus> {
  const disk = await openTarget(target, source, given)
  const progress = new Progress(process.stderr, descriptor)
  const interrupt = new Interrupt()
  const progressed: Run = {
    copied: nothingCopied(given.verify),
    complete: false,
    flushed: false,
    verified: null,
    writeSeconds: 0,
    flushSeconds: 0,
    verifySeconds: 0,
  }
  let difference: Difference | null = null
  let failure: unknown = null
  try {
    await checkSame(target, disk)
    await carry(source, target, disk, given, progressed, progress, interrupt)
    if (given.verify && !interrupt.signal.aborted) {
      difference = await prove(source, target, disk, progressed, progress, interrupt)
    }
  } catch (error) {
    failure = error
  }
  // The first failure is the one to report.
  await disk.close().catch((error: unknown) => {
    failure ??= error
  })
  progress.end()
  interrupt.stop()
  const { engine } = disk
  if (failure === null && !interrupt.signal.aborted && difference === null) {
    process.stdout.write(`${given.json ? asJson(source, target, engine, progressed) : asText(progressed)}\n`)
    return EXIT.done
  }
  const message = failure !== null ? explain(failure) : difference !== null ? wrong(difference, target) : 'interrupted'
  process.stderr.write(
    `multiwrite write: ${styleOf(process.stderr).danger(message)}\n${state(source, target, progressed, given)}\n`,
  )
  if (failure === null && difference === null) interrupt.die()
  return failure === null ? EXIT.failed : statusOf(failure)
}

async function openTarget(target: Target, source: Source, { engine }: Arguments): Promise<BlockDevice> {
  try {
    if (target.kind === 'block device') return await openDevice(target.path, { engine })
    // The file becomes the image, whatever it was: its old end must not show behind it.
    return await create(target.path, { size: source.size ?? 0, overwrite: target.kind === 'existing file', engine })
  } catch (error) {
    throw asRefusal(error)
  }
}

/** Everything up to the last flush. */
async function carry(
  source: Source,
  target: Target,
  disk: BlockDevice,
  { zeroes, firstLast }: Arguments,
  run: Run,
  progress: Progress,
  { signal }: Interrupt,
): Promise<void> {
  const isDevice = target.kind === 'block device'
  const heldBytes = firstLast ? Math.min(FIRST_BYTES, isDevice ? disk.size : FIRST_BYTES) : 0
  const began = performance.now()
  progress.phase('writing', source.size, { fraction: source.fraction })
  try {
    if (heldBytes > 0 && isDevice) {
      // The old beginning must not promise what is not there any more.
      await disk.writeZeroes(0, heldBytes)
      await disk.flush()
    }
    const options = {
      zeroes: !isDevice && zeroes === 'zero' ? ('known' as const) : zeroes,
      digests: run.copied.digests !== null,
      heldBytes,
      grows: source.size === null && !isDevice,
      signal,
      onProgress: (bytes: number) => progress.add(bytes),
    }
    await copy(source, disk, options, run.copied)
  } finally {
    run.writeSeconds = (performance.now() - began) / 1000
    // Also of what failed or was interrupted: then it can be said what is on the target.
    const flushing = performance.now()
    progress.phase('flushing', null)
    if (source.size === null && !isDevice) await disk.truncate(run.copied.bytes).catch(() => undefined)
    run.flushed = await disk.flush().then(() => true)
    run.flushSeconds = (performance.now() - flushing) / 1000
  }
  if (!run.copied.whole) return
  const { held } = run.copied
  if (held !== null) {
    await disk.write(0, held.subarray(0, Math.min(held.length, run.copied.bytes)))
    await disk.flush()
  }
  run.complete = true
}

/** Reads back, past the page cache where that can be had. */
async function prove(
  source: Source,
  target: Target,
  disk: BlockDevice,
  run: Run,
  progress: Progress,
  { signal }: Interrupt,
): Promise<Difference | null> {
  const began = performance.now()
  progress.phase('verifying', run.copied.bytes)
  let verified = 0
  const onProgress = (bytes: number): void => {
    verified += bytes
    progress.add(bytes)
  }
  // What has been flushed is on the target; a second descriptor with O_DIRECT does not see the cache of the first.
  const reader = disk.direct ? disk : await openReader(target.path)
  try {
    return await verify(reader, run.copied, source, { signal, onProgress })
  } finally {
    run.verified = { bytes: verified, by: reader.direct ? 'direct reads' : 'reads through the page cache' }
    run.verifySeconds = (performance.now() - began) / 1000
    if (reader !== disk) await reader.close()
  }
}

function openReader(path: string): Promise<BlockDevice> {
  return openDevice(path, { readOnly: true, direct: true }).catch((error: unknown) => {
    if (error instanceof BlockError && error.code === 'EINVAL')
      return openDevice(path, { readOnly: true, direct: false })
    throw error
  })
}

const hex = (byte: number): string => `0x${byte.toString(16).padStart(2, '0')}`

function wrong({ offset, length, expected, found }: Difference, { path }: Target): string {
  const what =
    expected === null || found === null
      ? `within the ${formatBytes(length)} from there`
      : `found ${hex(found)} where the image has ${hex(expected)}`
  return `verification failed: ${path} is wrong at offset ${offset}: ${what}`
}

/** What the target holds now, for whoever has to decide what to do with it. */
function state({ size }: Source, { path }: Target, run: Run, { firstLast }: Arguments): string {
  const { bytes } = run.copied
  const total = size === null ? '' : ` of ${formatBytes(size)}`
  if (run.complete) {
    const checked = run.verified === null ? 'not verified' : `${formatBytes(run.verified.bytes)} of it read back`
    return `${path}: the image was written whole and flushed; ${checked}. Don't trust it: write again, or take another target`
  }
  const flushed = run.flushed ? 'and flushed' : 'but not flushed'
  const first = firstLast ? '; its first 64 KiB are zeros, so it looks like an empty disk' : ''
  return `${path}: ${formatBytes(bytes)}${total} written ${flushed}: it holds an incomplete image${first}. Write again`
}

function asText(run: Run): string {
  const { bytes, writtenBytes, zeroedBytes, skippedBytes } = run.copied
  const seconds = run.writeSeconds + run.flushSeconds
  const zeros = [
    zeroedBytes > 0 ? `${formatBytes(zeroedBytes)} zeroed by the device` : '',
    skippedBytes > 0 ? `${formatBytes(skippedBytes)} of zeros left out` : '',
  ].filter(Boolean)
  const lines = [
    `wrote     ${formatBytes(bytes)} in ${formatTime(seconds)} (${formatSpeed(bytes / Math.max(seconds, 1e-3))}), flushed`,
    ...(zeros.length > 0 ? [`          ${formatBytes(writtenBytes)} of data, ${zeros.join(', ')}`] : []),
    run.verified === null
      ? 'verified  no, as asked for'
      : `verified  ${formatBytes(run.verified.bytes)} in ${formatTime(run.verifySeconds)} by ${run.verified.by}: every byte is right`,
  ]
  return lines.join('\n')
}

function asJson(source: Source, target: Target, engine: BlockDevice['engine'], run: Run): string {
  const { bytes, writtenBytes, zeroedBytes, skippedBytes } = run.copied
  const { writeSeconds, flushSeconds, verifySeconds, verified } = run
  const { path, kind, disk } = target
  return JSON.stringify(
    {
      image: { description: source.description, bytes },
      target: { path, kind, model: disk?.model ?? null, serial: disk?.serial ?? null },
      engine: { ...engine },
      writtenBytes,
      zeroedBytes,
      skippedBytes,
      writeSeconds,
      flushSeconds,
      verified: verified === null ? null : { bytes: verified.bytes, by: verified.by, seconds: verifySeconds },
    },
    null,
    2,
  )
}

export const writeCommand: Command = {
  name: 'write',
  summary: 'writes an image to a disk or file, and verifies it',
  run,
}
