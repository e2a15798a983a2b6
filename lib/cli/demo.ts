// `npm start`: replays recorded traffic of a real guest on an image, merged, sorted only and as given, tells what each took,
// and proves after each that every byte of the image is the right one.
//
// A client of the public API and nothing else. The order of things: arguments, trace, target, and only then is anything
// written. What exists already is never overwritten unless `--yes` allows it, and a target that was made here is remade for each
// mode; one that existed keeps what it held where the trace does not write, and the proof includes that. The image is read back
// with the operating system's own calls, so that a wrong offset cannot hide by being wrong in the same way twice. A file that
// nobody named lives in a directory of its own, which goes when the process does, whatever ends it but SIGKILL.

import { randomInt } from 'node:crypto'
import { rmSync } from 'node:fs'
import { mkdtemp, open as openFile, stat, statfs } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type BlockDevice, create, type MergeMode, type OpenOptions, open } from '../index.ts'
import { Model, type Prior, type ReadAt, survey, verify } from './content.ts'
import { type ReplayResult, replay, StaleReadError } from './replay.ts'
import {
  formatBytes,
  formatCount,
  formatDifference,
  formatReport,
  Progress,
  type Report,
  reportAsJson,
  withArticle,
} from './report.ts'
import { readTrace, type Trace, TraceError } from './trace.ts'

const EXIT = { done: 0, failed: 1, usage: 2, refused: 3 } as const

/** The first replay pays for compiled code and for the pages that the cache takes from the system: it is not counted. */
const REPLAYS: readonly { mode: MergeMode; counted: boolean }[] = [
  { mode: 'full', counted: false },
  { mode: 'full', counted: true },
  { mode: 'sort', counted: true },
  { mode: 'off', counted: true },
]

const DEFAULT_TRACE = fileURLToPath(new URL('../../bench/traces/ext4-cp-64k.merge-on.csv.gz', import.meta.url))

/** A new image ends on a boundary that suits every logical block size. */
const IMAGE_ALIGN = 4096
/** Left on the file system that a new image is made on. */
const SPARE_BYTES = 64 * 1024 * 1024

const USAGE = `usage: npm start -- [options] [TARGET]

Replays recorded block traffic on TARGET (a file or block device; without one, on a file
that is made for it and removed afterwards): merged, sorted only, and as given. Then
compares every byte of it with what must be there.

  --trace FILE    the recording: CSV, gzip'd or not, "batch,time_us,op,offset,length"
  --yes           overwrite TARGET if it exists
  --direct        O_DIRECT on a file as well (block devices always)
  --engine NAME   io_uring, aio or threads instead of the first that works
  --json          the results as JSON
  --help

exit status: 0 done and every byte right, 1 failed, 2 usage, 3 refused for safety
`

/** Ends the command with a message and no stack. */
class Stop extends Error {
  readonly status: number
  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

interface Arguments {
  trace: string
  target: string | undefined
  yes: boolean
  direct: boolean
  /** Checked by the library, which knows its engines. */
  engine: NonNullable<OpenOptions['engine']>
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

function parseArguments(argv: string[]): Arguments | 'help' {
  const options = {
    trace: { type: 'string' },
    yes: { type: 'boolean' },
    direct: { type: 'boolean' },
    engine: { type: 'string' },
    json: { type: 'boolean' },
    help: { type: 'boolean' },
  } as const
  let parsed: ReturnType<typeof parseArgs<{ options: typeof options; allowPositionals: true }>>
  try {
    parsed = parseArgs({ args: argv, options, allowPositionals: true })
  } catch (error) {
    throw new Stop(EXIT.usage, `${(error as Error).message}\n\n${USAGE}`)
  }
  const { values, positionals } = parsed
  if (values.help) return 'help'
  if (positionals.length > 1) throw new Stop(EXIT.usage, `one TARGET at most, not ${positionals.join(' ')}\n\n${USAGE}`)
  return {
    trace: values.trace ?? DEFAULT_TRACE,
    target: positionals[0],
    yes: values.yes ?? false,
    direct: values.direct ?? false,
    engine: (values.engine ?? 'auto') as Arguments['engine'],
    json: values.json ?? false,
  }
}

/** Decides what is written to, and refuses what may not be. Makes nothing but the directory of a temporary file. */
async function chooseTarget({ target: path, yes }: Arguments, trace: Trace): Promise<Target> {
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
    throw new Stop(EXIT.usage, `${path} is neither a file nor a block device`)
  }
  const kind = stats.isBlockDevice() ? 'block device' : 'existing file'
  if (!yes) {
    throw new Stop(
      EXIT.refused,
      `refused: ${path} is ${withArticle(kind)} whose content would be overwritten; --yes allows that`,
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
        if (bytesRead === 0) throw new Stop(EXIT.failed, `${path} ends at ${offset + done}, before its end as a device`)
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
      progress.step(counted ? `replaying, merge: ${mode}` : 'warming up')
      result = await replay(disk, trace, model, {
        positionBase: index * linesPerReplay,
        onProgress: (requests) => progress.at(requests, requestCount),
      })
    } catch (error) {
      // The first failure is the one to report.
      await disk.close().catch(() => {})
      if (!(error instanceof StaleReadError)) throw error
      throw new Stop(EXIT.failed, `${error.message}: ${formatDifference(error.difference, linesPerReplay)}`)
    }
    await disk.close()
    if (!counted) continue

    progress.step(`comparing every byte, merge: ${mode}`)
    const written = model
    const difference = await withReader(target.path, (readAt) =>
      verify(readAt, size, written, (bytes) => progress.at(bytes, size)),
    )
    if (difference !== null) {
      throw new Stop(
        EXIT.failed,
        `${target.path} is wrong (merge: ${mode}): ${formatDifference(difference, linesPerReplay)}`,
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
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'ERR_INVALID_ARG_VALUE') throw new Stop(EXIT.usage, message)
    throw error
  }
}

async function surveyTarget(path: string, size: number, trace: Trace, progress: Progress): Promise<Prior> {
  progress.step('reading what the target holds')
  return await withReader(path, (readAt) => survey(readAt, size, trace, (bytes) => progress.at(bytes, size)))
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

async function main(argv: string[]): Promise<number> {
  const progress = new Progress(process.stderr)
  try {
    const args = parseArguments(argv)
    if (args === 'help') {
      process.stdout.write(USAGE)
      return EXIT.done
    }
    const trace = await readTrace(args.trace)
    const qemu = await readQemuSubmissions(args.trace)
    const target = await chooseTarget(args, trace)
    const outcome = await replayAll(target, trace, args, progress)
    progress.clear()
    const { size, direct, ...rest } = outcome
    const report = { trace, target: { path: target.path, kind: target.kind, size, direct }, ...rest, qemu }
    process.stdout.write(`${args.json ? reportAsJson(report) : formatReport(report)}\n`)
    return EXIT.done
  } catch (error) {
    progress.clear()
    process.stderr.write(`multiwrite replay: ${explain(error)}\n`)
    if (error instanceof Stop) return error.status
    return error instanceof TraceError ? EXIT.usage : EXIT.failed
  }
}

/** What went wrong outside of this program in one line; its own mistakes with their stack. */
function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const bug = error instanceof TypeError || error instanceof RangeError || error instanceof ReferenceError
  const told = error instanceof Stop || error instanceof TraceError || ('code' in error && !bug)
  return told ? error.message.trimEnd() : (error.stack ?? error.message)
}

main(process.argv.slice(2)).then((status) => {
  process.exitCode = status
})
