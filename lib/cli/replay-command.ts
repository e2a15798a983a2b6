// `multiwrite replay` and `npm start`: replays recorded traffic of a real guest on an image, merged, sorted only and as given, tells what each took,
// and proves after each that every byte of the image is the right one.
//
// A client of the public API and nothing else. The order of things: arguments, trace, target, and only then is anything
// written. What exists already is never overwritten unless `--force` allows it, and a target that was made here is remade for each
// mode; one that existed keeps what it held where the trace does not write, and the proof includes that. The image is read back
// with the operating system's own calls, so that a wrong offset cannot hide by being wrong in the same way twice. A file that
// nobody named lives in a directory of its own, which goes when the process does, whatever ends it but SIGKILL.

import { randomInt } from 'node:crypto'
import { rmSync } from 'node:fs'
import { mkdtemp, open as openFile, stat, statfs } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type BlockDevice, create, type MergeMode, open } from '../index.ts'
import { type Command, ENGINES, EXIT, type ExitStatus, oneOf, parseArguments, Stop } from './command.ts'
import { Model, type Prior, type ReadAt, survey, verify } from './content.ts'
import { Progress, progressDescriptor } from './progress.ts'
import { type ReplayResult, replay, StaleReadError } from './replay.ts'
import {
  formatBytes,
  formatCount,
  formatDifference,
  formatReport,
  type Report,
  reportAsJson,
  withArticle,
} from './report.ts'
import { asRefusal } from './target.ts'
import { readTrace, type Trace, TraceError } from './trace.ts'

/** The first replay pays for compiled code and for the pages that the cache takes from the system: it is not counted. */
const REPLAYS: readonly { mode: MergeMode; counted: boolean }[] = [
  { mode: 'full', counted: false },
  { mode: 'full', counted: true },
  { mode: 'sort', counted: true },
  { mode: 'off', counted: true },
]

export const DEFAULT_TRACE: string = fileURLToPath(
  new URL('../../bench/traces/ext4-cp-64k.merge-on.csv.gz', import.meta.url),
)

/** A new image ends on a boundary that suits every logical block size. */
const IMAGE_ALIGN = 4096
/** Left on the file system that a new image is made on. */
const SPARE_BYTES = 64 * 1024 * 1024

const DONT_TRUST = "Don't trust what it holds: write again, or take another target"

const USAGE = `usage: multiwrite replay [options] [TRACE [TARGET]]

Replays recorded block traffic on TARGET: merged, sorted only, and as given.
Then compares every byte of it with what must be there.

  TRACE   the recording: CSV, gzip'd or not, "batch,time_us,op,offset,length";
          without one, that of a guest which copied files
  TARGET  a file or block device; without one, a file that is made for it and
          removed

  --force          overwrite TARGET if it exists
  --direct         O_DIRECT on a file as well (block devices always)
  --engine NAME    io_uring, aio or threads instead of the first that works
  --progress=FD    progress for programs: a line of JSON, four a second
  --json           the results as JSON
  --help

exit status: 0 done and every byte right, 1 failed, 2 usage, 3 refused
`

const OPTIONS = {
  force: { type: 'boolean' },
  direct: { type: 'boolean' },
  engine: { type: 'string' },
  progress: { type: 'string' },
  json: { type: 'boolean' },
} as const

/** What there is to choose. */
export interface Arguments {
  trace: string
  target: string | undefined
  /** What exists may be overwritten. */
  force: boolean
  /** The option that says so, for messages. */
  forceOption: string
  direct: boolean
  engine: (typeof ENGINES)[number]
  progress: string | undefined
  json: boolean
}

interface Target {
  path: string
  kind: Report['target']['kind']
  /** Made here, and remade for each mode. */
  fresh: boolean
  /** Of a fresh one; of another the device tells. */
  size: number
}

/** Decides what is written to, and refuses what may not be. Makes nothing but the directory of a temporary file. */
async function chooseTarget({ target: path, force, forceOption }: Arguments, trace: Trace): Promise<Target> {
  const size = Math.ceil(trace.diskEnd / IMAGE_ALIGN) * IMAGE_ALIGN
  if (path === undefined) {
    await checkSpace(tmpdir(), trace, 'set TMPDIR or name a TARGET elsewhere')
    const directory = await mkdtemp(join(tmpdir(), 'multiwrite-'))
    removeAtExit(directory)
    return { path: join(directory, 'disk.img'), kind: 'temporary file', fresh: true, size }
  }
  const stats = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null
    throw error
  })
  if (stats === null) {
    await checkSpace(dirname(path), trace, 'name a TARGET elsewhere')
    return { path, kind: 'new file', fresh: true, size }
  }
  if (!stats.isFile() && !stats.isBlockDevice()) {
    throw new Stop(EXIT.usage, `${path} is neither a file nor a block device: name a target`)
  }
  const kind = stats.isBlockDevice() ? 'block device' : 'existing file'
  if (!force) {
    throw new Stop(
      EXIT.refused,
      `refused: ${path} is ${withArticle(kind)} whose content would be overwritten; ${forceOption} allows that`,
    )
  }
  return { path, kind, fresh: false, size: 0 }
}

async function checkSpace(directory: string, trace: Trace, remedy: string): Promise<void> {
  const { bavail, bsize } = await statfs(directory)
  // Overlapping writes need less; whoever is that short of space should hear of it.
  const need = trace.bytes.W + trace.bytes.Z + SPARE_BYTES
  if (bavail * bsize >= need) return
  const free = formatBytes(bavail * bsize)
  throw new Stop(EXIT.failed, `${directory} has ${free} free and the image may need ${formatBytes(need)}: ${remedy}`)
}

function removeAtExit(directory: string): void {
  const remove = (): void => rmSync(directory, { recursive: true, force: true })
  process.once('exit', remove)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () => {
      remove()
      // The listener is gone by now: the signal ends the process, and whoever waits for it sees that it did.
      process.kill(process.pid, signal)
    })
  }
}

/** Reads through a descriptor of its own and the page cache. */
async function withReader<T>(path: string, use: (readAt: ReadAt) => Promise<T>): Promise<T> {
  const file = await openFile(path, 'r')
  try {
    return await use(async (offset, into) => {
      for (let done = 0; done < into.length; ) {
        const { bytesRead } = await file.read(into, done, into.length - done, offset + done)
        if (bytesRead === 0)
          throw new Stop(
            EXIT.failed,
            `${path} ends at ${offset + done}, before its end as a device: don't trust it, take another target`,
          )
        done += bytesRead
      }
    })
  } finally {
    await file.close()
  }
}

interface Outcome {
  modes: Report['modes']
  engine: Report['engine']
  limits: Report['limits']
  direct: boolean
  size: number
}

/** All modes one after another on one target, each followed by its proof. */
async function replayAll(target: Target, trace: Trace, args: Arguments, progress: Progress): Promise<Outcome> {
  // Another seed for each run: what an earlier run left on the target must not look like what this one writes.
  const seed = randomInt(2 ** 31)
  const linesPerReplay = trace.lines + 1
  const requestCount = trace.batches.flat().filter(({ op }) => op !== 'D').length
  let model: Model | null = null
  let outcome: Outcome | null = null
  for (const [index, { mode, counted }] of REPLAYS.entries()) {
    const disk = await openTarget(target, mode, index > 0, args)
    const { engine, direct, size, limits } = disk
    let result: ReplayResult
    try {
      if (size < trace.end) {
        const needed = formatCount(trace.end)
        throw new Stop(
          EXIT.usage,
          `${target.path} has ${formatCount(size)} bytes and the trace needs ${needed}: take a larger target`,
        )
      }
      if (model === null || target.fresh) {
        model = new Model(seed, target.fresh ? null : await surveyTarget(target.path, size, trace, progress))
      }
      progress.phase(counted ? `replaying, merge: ${mode}` : 'warming up', requestCount, { of: 'requests' })
      result = await replay(disk, trace, model, {
        positionBase: index * linesPerReplay,
        onProgress: progress.at,
      })
    } catch (error) {
      // The first failure is the one to report.
      await disk.close().catch(() => {})
      if (!(error instanceof StaleReadError)) throw error
      throw new Stop(
        EXIT.failed,
        `${error.message}: ${formatDifference(error.difference, linesPerReplay)}. ${DONT_TRUST}`,
      )
    }
    await disk.close()
    if (!counted) continue

    progress.phase(`comparing every byte, merge: ${mode}`, size)
    const written = model
    const difference = await withReader(target.path, (readAt) => verify(readAt, size, written, progress.at))
    if (difference !== null) {
      throw new Stop(
        EXIT.failed,
        `${target.path} is wrong (merge: ${mode}): ${formatDifference(difference, linesPerReplay)}. ${DONT_TRUST}`,
      )
    }
    outcome ??= {
      modes: {},
      engine,
      direct,
      size,
      limits: { maxBytes: limits.maxBytes, maxSegments: limits.maxSegments },
    }
    outcome.modes[mode] = result
  }
  return outcome!
}

async function openTarget(target: Target, mode: MergeMode, made: boolean, args: Arguments): Promise<BlockDevice> {
  const options = { merge: { mode }, engine: args.engine, ...(args.direct ? { direct: true } : {}) }
  try {
    if (!target.fresh) return await open(target.path, options)
    return await create(target.path, { format: 'raw', size: target.size, overwrite: made, ...options })
  } catch (error) {
    throw asRefusal(error)
  }
}

async function surveyTarget(path: string, size: number, trace: Trace, progress: Progress): Promise<Prior> {
  progress.phase('reading what the target holds', size)
  return await withReader(path, (readAt) => survey(readAt, size, trace, progress.at))
}

/** What QEMU submitted for the same batches, if that was recorded. */
async function readQemuSubmissions(tracePath: string): Promise<Trace | null> {
  const path = join(dirname(tracePath), basename(tracePath).replace(/\.csv(\.gz)?$/, '.qemu-submits.csv$1'))
  const present =
    path !== tracePath &&
    (await stat(path).then(
      () => true,
      () => false,
    ))
  return present ? await readTrace(path) : null
}

/** Replays as told; results go to standard output. */
export async function replayAs(args: Arguments): Promise<ExitStatus> {
  const progress = new Progress(process.stderr, progressDescriptor(args.progress))
  try {
    const trace = await readTrace(args.trace)
    const qemu = await readQemuSubmissions(args.trace)
    const target = await chooseTarget(args, trace)
    const outcome = await replayAll(target, trace, args, progress)
    progress.end()
    const { size, direct, ...rest } = outcome
    const report = { trace, target: { path: target.path, kind: target.kind, size, direct }, ...rest, qemu }
    process.stdout.write(`${args.json ? reportAsJson(report) : formatReport(report)}\n`)
    return EXIT.done
  } catch (error) {
    throw error instanceof TraceError ? new Stop(EXIT.usage, error.message) : error
  } finally {
    progress.end()
  }
}

async function run(args: readonly string[]): Promise<ExitStatus> {
  const parsed = parseArguments(args, { usage: USAGE, options: OPTIONS, operands: ['TRACE', 'TARGET'], optional: 2 })
  if (parsed === null) return EXIT.done
  const { values, operands } = parsed
  return replayAs({
    trace: operands[0] ?? DEFAULT_TRACE,
    target: operands[1],
    force: values.force ?? false,
    forceOption: '--force',
    direct: values.direct ?? false,
    engine: oneOf(values.engine, 'engine', ENGINES, USAGE),
    progress: values.progress,
    json: values.json ?? false,
  })
}

export const replayCommand: Command = {
  name: 'replay',
  run,
}
