// What every command of the command line has in common: its face, its exit statuses, its arguments, and how it ends with a
// message.

import { type ParseArgsConfig, parseArgs } from 'node:util'
import { BlockError } from '../index.ts'

/** Exit statuses. */
export const EXIT = { done: 0, failed: 1, usage: 2, refused: 3 } as const
export type ExitStatus = (typeof EXIT)[keyof typeof EXIT]

/** A command of `multiwrite`. Results go to standard output, messages to standard error. */
export interface Command {
  readonly name: string
  /** @param args what follows the command's name */
  run(args: readonly string[]): Promise<ExitStatus>
}

/** Ends the command with a message and no stack. */
export class Stop extends Error {
  readonly status: ExitStatus

  constructor(status: ExitStatus, message: string) {
    super(message)
    this.status = status
  }
}

type Options = NonNullable<ParseArgsConfig['options']>
type Parsed<T extends Options> = ReturnType<typeof parseArgs<{ options: T; allowPositionals: true }>>

/** What a command takes. */
export interface Syntax<T extends Options> {
  /** What `--help` prints. */
  readonly usage: string
  readonly options: T
  /** Names of the arguments. */
  readonly operands: readonly string[]
  /** How many of them, from the last on, may be missing. */
  readonly optional?: number
}

const HELP = { help: { type: 'boolean', short: 'h' } } as const

/**
 * Reads a command's arguments.
 *
 * @returns `null` if help was asked for; it has been printed
 * @throws Stop for what the command does not take
 */
export function parseArguments<const T extends Options>(
  args: readonly string[],
  { usage, options, operands, optional = 0 }: Syntax<T>,
): { values: Parsed<T>['values']; operands: string[] } | null {
  let parsed: Parsed<T & typeof HELP>
  try {
    parsed = parseArgs({ args: [...args], options: { ...options, ...HELP }, allowPositionals: true }) as typeof parsed
  } catch (error) {
    throw new Stop(EXIT.usage, `${(error as Error).message}\n\n${usage}`)
  }
  if ((parsed.values as { help?: boolean }).help) {
    process.stdout.write(usage)
    return null
  }
  const { positionals } = parsed
  const missing = operands.slice(positionals.length, operands.length - optional)
  if (missing.length > 0) throw new Stop(EXIT.usage, `${missing.join(' and ')} missing\n\n${usage}`)
  if (positionals.length > operands.length) {
    throw new Stop(EXIT.usage, `too much: ${positionals.slice(operands.length).join(' ')}\n\n${usage}`)
  }
  return { values: parsed.values as unknown as Parsed<T>['values'], operands: positionals }
}

/** One of a few words. */
export function oneOf<T extends string>(
  value: string | undefined,
  option: string,
  allowed: readonly T[],
  usage: string,
): T {
  const found = allowed.find((word) => word === (value ?? allowed[0]))
  if (found === undefined)
    throw new Stop(EXIT.usage, `--${option} is ${allowed.join(', ')}; not "${value}"\n\n${usage}`)
  return found
}

export const ENGINES = ['auto', 'io_uring', 'aio', 'threads'] as const

/** What went wrong outside of this program in one line; its own mistakes with their stack. */
export function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const bug = error instanceof TypeError || error instanceof RangeError || error instanceof ReferenceError
  const told = error instanceof Stop || isOption(error) || ('code' in error && !bug)
  if (!told) return error.stack ?? error.message
  return (isOfSystem(error) ? asBlockError(error) : error).message.trimEnd()
}

/** What Node says of a call that the system refused, in the library's words, which tell what to do. */
function asBlockError({ errno, syscall, path }: SystemError): BlockError {
  return new BlockError(-errno, { syscall, path: path ?? '' })
}

type SystemError = Error & { errno: number; syscall: string; path?: string }

function isOfSystem(error: Error): error is SystemError {
  return !(error instanceof BlockError) && 'errno' in error && Number(error.errno) < 0 && 'syscall' in error
}

/** What an error means for the exit status. */
export function statusOf(error: unknown): ExitStatus {
  if (error instanceof Stop) return error.status
  return error instanceof Error && isOption(error) ? EXIT.usage : EXIT.failed
}

/** An option that the library does not take was given on the command line, such as aio for a file without O_DIRECT. */
function isOption(error: Error): boolean {
  return 'code' in error && error.code === 'ERR_INVALID_ARG_VALUE'
}

/**
 * Keeps a command going when whoever reads its output has gone: half an image on a disk is worse than words that nobody reads.
 * Results that could not be written for another reason are a failure, since somebody waits for them.
 */
export function guardOutput(): void {
  process.stderr.on('error', () => undefined)
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return
    process.stderr.write(`multiwrite: the result cannot be written: ${explain(error)}\n`)
    // The command may have its own status yet to set.
    process.once('exit', (status) => {
      if (status === EXIT.done) process.exitCode = EXIT.failed
    })
  })
}

/** Runs a command to its end: sets the exit status, and turns what it throws into a message. */
export async function runCommand({ name, run }: Command, args: readonly string[]): Promise<void> {
  try {
    process.exitCode = await run(args)
  } catch (error) {
    process.stderr.write(`multiwrite ${name}: ${explain(error)}\n`)
    process.exitCode = statusOf(error)
  }
}
