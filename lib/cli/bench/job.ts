// What `multiwrite bench` is asked to do: fio's words, read and checked. Nothing here touches the target.

import { parseArgs } from 'node:util'
import type { MergeMode, OpenOptions } from '../../index.ts'
import { ENGINES, EXIT, Stop } from '../command.ts'
import { WORD_BYTES } from './pattern.ts'
import { parseSize, parseTime } from './units.ts'

export const RW = ['read', 'write', 'randread', 'randwrite', 'rw', 'randrw'] as const
export type Rw = (typeof RW)[number]

/** One load on one target. */
export interface Job {
  name: string
  filename: string
  rw: Rw
  /** Bytes of a request. */
  bs: number
  /** Requests in flight at the most. */
  iodepth: number
  /** Requests of one call at the most. */
  batch: number
  /** A call waits until so many may go together; 1: none waits. */
  batchComplete: number
  /** Bytes of the target that are used, from its start on; `null`: all of it. */
  size: number | null
  /** Milliseconds; `null`: until as many blocks were visited as there are. */
  runtime: number | null
  /** Milliseconds before anything counts. */
  ramp: number
  /** `null`: what the target suggests. */
  direct: boolean | null
  engine: NonNullable<OpenOptions['engine']>
  merge: MergeMode
  busyPollUs: number
  /** Requests a second, from a clock that waits for nobody; `null`: as fast as they are answered. */
  rateIops: number | null
  /** A flush after so many writes; 0: none. */
  fdatasync: number
  numjobs: number
  /** Percentage of reads in a mixed load. */
  rwmixread: number
  verify: boolean
  seed: number
}

/** The loads of a sweep: every size at every depth. */
export interface Sweep {
  depths: number[]
  sizes: number[]
}

export const PEERS = ['fs', 'fio'] as const
export type Peer = (typeof PEERS)[number]

/** What becomes of the results, and what is allowed. */
export interface Arguments {
  job: Job
  sweep: Sweep | null
  compare: Peer[]
  rounds: number
  force: boolean
  /** Where JSON goes: a file, `-` for standard output, `null` for nowhere. */
  json: string | null
  html: string | null
  /** The descriptor that other programs hear of the progress by. */
  progress: string | undefined
  /** The words as they were given, for the reports. */
  given: Record<string, string>
}

const DEPTH_MAX = 4096

export const DEFAULT_SWEEP: Sweep = {
  depths: [1, 2, 4, 8, 16, 32, 64, 128],
  sizes: [4096, 16384, 65536, 262144],
}
/** Of each cell of a sweep, and of each round of a comparison, where nothing else is said: the compiler of JavaScript needs
 * some tenths of a second until the loop is as fast as it gets. */
const SHORT_RUNTIME_MS = 2000
const SHORT_RAMP_MS = 500

const OPTIONS = {
  name: { type: 'string' },
  filename: { type: 'string' },
  rw: { type: 'string' },
  bs: { type: 'string' },
  iodepth: { type: 'string' },
  batch: { type: 'string' },
  'batch-complete': { type: 'string' },
  size: { type: 'string' },
  runtime: { type: 'string' },
  ramp: { type: 'string' },
  direct: { type: 'string' },
  engine: { type: 'string' },
  merge: { type: 'string' },
  'busy-poll': { type: 'string' },
  'rate-iops': { type: 'string' },
  fdatasync: { type: 'string' },
  numjobs: { type: 'string' },
  rwmixread: { type: 'string' },
  seed: { type: 'string' },
  sweep: { type: 'string' },
  compare: { type: 'string' },
  rounds: { type: 'string' },
  json: { type: 'string' },
  html: { type: 'string' },
  progress: { type: 'string' },
  verify: { type: 'boolean' },
  force: { type: 'boolean' },
  help: { type: 'boolean' },
} as const
type Name = keyof typeof OPTIONS

/** Other spellings: fio's own where ours is shorter. Underscores and dashes are the same. */
const ALIASES: Record<string, Name> = {
  'ramp-time': 'ramp',
  readwrite: 'rw',
  blocksize: 'bs',
  randseed: 'seed',
  ioengine: 'engine',
  'iodepth-batch': 'batch',
  'iodepth-batch-submit': 'batch',
  'iodepth-batch-complete': 'batch-complete',
  'iodepth-batch-complete-min': 'batch-complete',
}

/** What an option stands for that is given without a value. */
const BARE: Partial<Record<Name, string>> = { json: '-', sweep: 'default' }

export function parseArguments(argv: readonly string[]): Arguments | 'help' {
  const given = readWords(argv)
  if (given.help !== undefined) return 'help'
  const read = new Reader(given)
  const filename = given.filename
  if (filename === undefined || filename === '') throw usage('--filename is missing: which device or file?')

  const sweep = readSweep(given.sweep)
  const compare = readPeers(given.compare)
  const short = sweep !== null || compare.length > 0
  const iodepth = read.whole('iodepth', 1, DEPTH_MAX) ?? 1
  // A call of more than the depth can't be. A sweep has depths of its own.
  const largest = sweep === null ? iodepth : Math.max(...sweep.depths)
  const batch = Math.min(read.whole('batch', 1, DEPTH_MAX) ?? 1, largest)
  const direct = read.oneOf('direct', ['0', '1'])
  // A pass over the whole target in each cell of a sweep could take days.
  const runtime = read.time('runtime') ?? (short ? SHORT_RUNTIME_MS : null)
  const job: Job = {
    name: given.name ?? 'multiwrite',
    filename,
    rw: read.oneOf('rw', RW) ?? 'read',
    bs: read.size('bs') ?? 4096,
    iodepth,
    batch,
    batchComplete: Math.min(read.whole('batch-complete', 1, DEPTH_MAX) ?? 1, largest),
    size: read.size('size') ?? null,
    runtime,
    ramp: read.time('ramp') ?? (short ? SHORT_RAMP_MS : 0),
    direct: direct === undefined ? null : direct === '1',
    engine: readEngine(given.engine),
    merge: read.oneOf('merge', ['full', 'sort', 'off']) ?? 'full',
    busyPollUs: read.whole('busy-poll', 0, 1_000_000) ?? 0,
    rateIops: read.whole('rate-iops', 1, 100_000_000) ?? null,
    fdatasync: read.whole('fdatasync', 0, 1_000_000_000) ?? 0,
    numjobs: read.whole('numjobs', 1, 256) ?? 1,
    rwmixread: read.whole('rwmixread', 0, 100) ?? 50,
    verify: given.verify !== undefined,
    seed: read.whole('seed', 0, 2 ** 32 - 1) ?? 1,
  }
  const rounds = read.whole('rounds', 1, 1000) ?? 5
  const args: Arguments = {
    job,
    sweep,
    compare,
    rounds,
    force: given.force !== undefined,
    json: given.json ?? null,
    html: given.html ?? null,
    progress: given.progress,
    given,
  }
  checkTogether(args)
  return args
}

/** What single options do not show to be wrong. */
function checkTogether({ job, sweep, compare }: Arguments): void {
  if (job.verify && job.numjobs > 1 && writes(job.rw)) {
    throw usage('--verify goes with one job only: several would overwrite what another one checks')
  }
  if (job.verify && (sweep !== null || compare.length > 0)) throw usage('--verify goes with a single load only')
  if (job.verify && job.bs % WORD_BYTES !== 0) throw usage(`--verify needs a --bs that is a multiple of ${WORD_BYTES}`)
  if (sweep !== null && compare.length > 0) throw usage('--sweep and --compare do not go together')
  if (job.batchComplete > job.batch) throw usage('--batch-complete must not be more than --batch')
  if (job.ramp > 0 && job.runtime === null) throw usage('--ramp needs a --runtime')
}

/** The options by their own names, each with its text. */
function readWords(argv: readonly string[]): Partial<Record<Name, string>> {
  const args = argv.map((arg) => {
    const [, word, value] = /^--([^=]+)(?:=(.*))?$/s.exec(arg) ?? []
    if (word === undefined) return arg
    const dashed = word.replaceAll('_', '-')
    const name = ALIASES[dashed] ?? dashed
    const text = value ?? BARE[name as Name]
    return text === undefined ? `--${name}` : `--${name}=${text}`
  })
  let values: Partial<Record<Name, string | boolean>>
  try {
    values = parseArgs({ args, options: OPTIONS }).values
  } catch (error) {
    throw usage((error as Error).message)
  }
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, value === true ? '1' : value]))
}

class Reader {
  readonly #given: Partial<Record<Name, string>>

  constructor(given: Partial<Record<Name, string>>) {
    this.#given = given
  }

  whole(name: Name, min: number, max: number): number | undefined {
    const given = this.#given[name]
    return given === undefined ? undefined : wholeNumber(given, `--${name}=${given}`, min, max)
  }

  size(name: Name): number | undefined {
    const given = this.#given[name]
    return given === undefined ? undefined : sizeNumber(given, `--${name}=${given}`)
  }

  time(name: Name): number | undefined {
    const given = this.#given[name]
    if (given === undefined) return undefined
    const ms = parseTime(given)
    if (ms === null) throw usage(`--${name}=${given}: must be a time such as 30, 500ms or 2m`)
    return ms
  }

  oneOf<T extends string>(name: Name, known: readonly T[]): T | undefined {
    const given = this.#given[name]
    if (given !== undefined && !(known as readonly string[]).includes(given)) {
      throw usage(`--${name}=${given}: must be one of ${known.join(', ')}`)
    }
    return given as T | undefined
  }
}

function wholeNumber(text: string, where: string, min: number, max: number): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isInteger(value) || value < min || value > max) {
    throw usage(`${where}: must be a whole number from ${min} to ${max}`)
  }
  return value
}

function sizeNumber(text: string, where: string): number {
  const bytes = parseSize(text)
  if (bytes === null || bytes === 0) throw usage(`${where}: must be a size such as 4k, 1M or 10GiB`)
  return bytes
}

/** Our names, and fio's for the same. */
function readEngine(given: string | undefined): Job['engine'] {
  const name = given === 'libaio' ? 'aio' : given
  const known = ENGINES.find((each) => each === name)
  if (given !== undefined && known === undefined) {
    throw usage(`--engine=${given}: must be one of ${ENGINES.join(', ')}`)
  }
  return known ?? 'auto'
}

/** `1,8,32x4k,64k`: depths, then sizes. */
function readSweep(given: string | undefined): Sweep | null {
  if (given === undefined) return null
  if (given === 'default') return DEFAULT_SWEEP
  const where = `--sweep=${given}`
  const [depths, sizes, ...more] = given.split('x')
  if (depths === undefined || sizes === undefined || more.length > 0) {
    throw usage(`${where}: must be depths, an x and sizes, such as 1,8,32x4k,64k`)
  }
  return {
    depths: ascending(depths.split(',').map((text) => wholeNumber(text, where, 1, DEPTH_MAX))),
    sizes: ascending(sizes.split(',').map((text) => sizeNumber(text, where))),
  }
}

function ascending(values: number[]): number[] {
  return [...new Set(values)].sort((a, b) => a - b)
}

function readPeers(given: string | undefined): Peer[] {
  if (given === undefined) return []
  return given.split(',').map((name) => {
    const peer = PEERS.find((each) => each === name)
    if (peer === undefined) throw usage(`--compare=${given}: must be of ${PEERS.join(', ')}`)
    return peer
  })
}

function usage(message: string): Stop {
  return new Stop(EXIT.usage, `${message}`)
}

export function writes(rw: Rw): boolean {
  return rw !== 'read' && rw !== 'randread'
}

export function isRandom(rw: Rw): boolean {
  return rw.startsWith('rand')
}

/** Reads and writes in one load. */
export function isMixed(rw: Rw): boolean {
  return rw === 'rw' || rw === 'randrw'
}
