// What `write` and `convert` have in common: an image is carried to a target that was found safe, flushed, and proved.
//
// The order of things: the image; a flush; if its first 64 KiB were held back, those and another flush; then the verification,
// past the page cache where that can be had. Whatever ends it half-way, the last words are about the state of the target.

import { type BlockDevice, BlockError } from '../index.ts'
import { EXIT, type ExitStatus, explain, statusOf } from './command.ts'
import { type Copied, copy, type Difference, nothingCopied, verify, type ZeroMode } from './copy.ts'
import { Interrupt } from './interrupt.ts'
import { type Reread, rereadPartitions } from './partitions.ts'
import { formatSpeed, formatTime, Progress } from './progress.ts'
import { formatBytes, formatField } from './report.ts'
import type { Source } from './source.ts'
import { styleOf } from './style.ts'
import { asRefusal, checkSame, describeTarget, type Target } from './target.ts'

/** Where partition tables and boot loaders begin; a disk whose first part is zeros is taken for an empty one. */
const FIRST_BYTES = 64 * 1024

export interface Job {
  /** For messages. */
  readonly command: string
  /** As it was named. */
  readonly image: string
  readonly source: Source
  readonly target: Target
  readonly zeroes: ZeroMode
  readonly firstLast: boolean
  readonly verify: boolean
  readonly json: boolean
  /** Where other programs hear of the progress. */
  readonly descriptor: number | null
  /** Opens the target for writing, or makes it. */
  open(): Promise<BlockDevice>
  /** Opens what was made for reading, past the page cache if `direct`. */
  reopen(direct: boolean): Promise<BlockDevice>
}

/** How far a run came; the base of all that is said of it. */
interface Run {
  readonly copied: Copied
  /** What `--first-last` held back is on the target. */
  complete: boolean
  flushed: boolean
  verified: { bytes: number; by: 'direct reads' | 'reads through the page cache' } | null
  /** Of the partition table of a whole disk; `null` for anything else. */
  reread: Reread | null
  writeSeconds: number
  flushSeconds: number
  verifySeconds: number
}

export function showJob(source: Source, target: Target, image: string): void {
  const { bold } = styleOf(process.stderr)
  const size = source.size === null ? '' : ` of ${formatBytes(source.size)}`
  const from = image === '-' ? '' : `${image}, `
  const [first, ...rest] = describeTarget(target)
  const lines = [`image   ${from}${source.description}${size}`, `target  ${bold(first!)}`]
  process.stderr.write(`${[...lines, ...rest.map((line) => `        ${line}`)].join('\n')}\n`)
}

/** Carries it out and says what came of it. */
export async function runJob(job: Job): Promise<ExitStatus> {
  const { command, target } = job
  const disk = await job.open().catch((error: unknown) => {
    throw asRefusal(error)
  })
  const progress = new Progress(process.stderr, job.descriptor)
  const interrupt = new Interrupt()
  const run: Run = {
    copied: nothingCopied(job.verify),
    complete: false,
    flushed: false,
    verified: null,
    reread: null,
    writeSeconds: 0,
    flushSeconds: 0,
    verifySeconds: 0,
  }
  let difference: Difference | null = null
  let failure: unknown = null
  try {
    await checkSame(target, disk)
    await carry(job, disk, run, progress, interrupt)
    if (job.verify && !interrupt.signal.aborted) difference = await prove(job, disk, run, progress, interrupt)
  } catch (error) {
    failure = error
  }
  // The first failure is the one to report.
  await disk.close().catch((error: unknown) => {
    failure ??= error
  })
  progress.end()
  interrupt.stop()
  // Also of half an image: what the kernel has is the old disk's in any case. While the disk was open this would have been busy.
  if (target.disk !== null) run.reread = await rereadPartitions(target.path, target.disk)
  if (failure === null && !interrupt.signal.aborted && difference === null) {
    process.stdout.write(`${job.json ? asJson(job, disk, run) : asText(job, run)}\n`)
    return EXIT.done
  }
  const message = failure !== null ? explain(failure) : difference !== null ? wrong(difference, target) : 'interrupted'
  const { danger } = styleOf(process.stderr)
  process.stderr.write(`multiwrite ${command}: ${danger(message)}\n${state(job, run)}\n`)
  if (failure === null && difference === null) interrupt.die()
  return failure === null ? EXIT.failed : statusOf(failure)
}

/** Everything up to the last flush. */
async function carry(
  { source, target, zeroes, firstLast }: Job,
  disk: BlockDevice,
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
      zeroes,
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
  job: Job,
  disk: BlockDevice,
  run: Run,
  progress: Progress,
  { signal }: Interrupt,
): Promise<Difference | null> {
  // A device keeps its claim until it is proved. A file is opened anew: its own descriptor reads the cache.
  const isDevice = job.target.kind === 'block device' && disk.direct
  if (!isDevice) await disk.close()
  const reader = isDevice ? disk : await openReader(job)
  const began = performance.now()
  progress.phase('verifying', run.copied.bytes)
  let verified = 0
  const onProgress = (bytes: number): void => {
    verified += bytes
    progress.add(bytes)
  }
  try {
    return await verify(reader, run.copied, job.source, { signal, onProgress })
  } finally {
    run.verified = { bytes: verified, by: reader.direct ? 'direct reads' : 'reads through the page cache' }
    run.verifySeconds = (performance.now() - began) / 1000
    if (!isDevice) await reader.close()
  }
}

function openReader(job: Job): Promise<BlockDevice> {
  return job.reopen(true).catch((error: unknown) => {
    if (error instanceof BlockError && error.code === 'EINVAL') return job.reopen(false)
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
function state({ source: { size }, target: { path }, firstLast }: Job, run: Run): string {
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

function asText({ target }: Job, run: Run): string {
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
    ...(run.reread === null ? [] : [formatField('table', tableText(run.reread, target.path))]),
  ]
  return lines.join('\n')
}

function tableText(reread: Reread, path: string): string {
  if (reread.done) return 'the kernel has read the partition table'
  return `the kernel still has the old partitions: ${reread.reason}. Close what uses them and run "blockdev --rereadpt ${path}", or unplug the disk and plug it in again`
}

function asJson({ source, target }: Job, { engine, format }: BlockDevice, run: Run): string {
  const { bytes, writtenBytes, zeroedBytes, skippedBytes } = run.copied
  const { writeSeconds, flushSeconds, verifySeconds, verified, reread } = run
  const { path, kind, disk } = target
  return JSON.stringify(
    {
      image: { description: source.description, bytes },
      target: { path, kind, format, model: disk?.model ?? null, serial: disk?.serial ?? null },
      engine: { ...engine },
      writtenBytes,
      zeroedBytes,
      skippedBytes,
      writeSeconds,
      flushSeconds,
      verified: verified === null ? null : { bytes: verified.bytes, by: verified.by, seconds: verifySeconds },
      partitionTable: reread,
    },
    null,
    2,
  )
}
