// The errors of I/O: what failed, on which range of which device, and by which engine. Errors of arguments are made in
// errors-argument.ts.

import { constants } from 'node:os'
import { getSystemErrorMap } from 'node:util'
import { adviceOn } from './errors-advice.ts'

/** What a `BlockError` knows beside its words. */
export interface BlockErrorDetail {
  syscall: string
  path: string
  offset?: number | undefined
  length?: number | undefined
  engine?: string | undefined
  /** Replaces the system's words for the errno, and says what to do unless `advice` does. */
  reason?: string | undefined
  /** What to do about it, for the end of the message. */
  advice?: string | undefined
  /** What it comes from. */
  cause?: unknown
}

const nameOfErrno = new Map<number, string>(Object.entries(constants.errno).map(([name, errno]) => [errno, name]))

/** `EIO` for 5. An errno that this system does not name is `ERRNO_n`. */
export function errnoName(errno: number): string {
  // Where two names share a number, that of Node's errors is taken (EAGAIN, not EWOULDBLOCK); of an operation that is not
  // supported the block layer's.
  if (errno === constants.errno.EOPNOTSUPP) return 'EOPNOTSUPP'
  return getSystemErrorMap().get(-errno)?.[0] ?? nameOfErrno.get(errno) ?? `ERRNO_${errno}`
}

const reasons = new WeakMap<Error, string>()

/**
 * Why something failed, in words that can stand in another error: the reason of a `BlockError`, if it has one beside the
 * system's own words, or the message of any other error.
 */
export function reasonOf(error: unknown): string | undefined {
  if (error instanceof BlockError) return reasons.get(error)
  return error instanceof Error ? error.message : undefined
}

/**
 * An operation on a device failed. `code` is the errno's name such as `'EIO'` and `errno` its negative number, as in Node's
 * own system errors; `offset` and `length` (bytes) are those of the request, not of the submission that carried it.
 */
export class BlockError extends Error {
  readonly code: string
  readonly errno: number
  readonly syscall: string
  readonly path: string
  readonly offset: number | undefined
  readonly length: number | undefined
  readonly engine: string | undefined

  /** @param errno the positive errno, such as `os.constants.errno.EIO` */
  constructor(errno: number, detail: BlockErrorDetail) {
    const code = errnoName(errno)
    const words =
      detail.reason ??
      (errno === constants.errno.EOPNOTSUPP ? 'the device or file system does not support it' : undefined) ??
      getSystemErrorMap().get(-errno)?.[1] ??
      'the kernel refused'
    const advice = detail.advice ?? (detail.reason === undefined ? adviceOn(code) : '')
    const what = detail.offset === undefined ? '' : ` of ${detail.length ?? 0} bytes at ${detail.offset}`
    super(
      `${code}: ${words}, ${detail.syscall}${what} '${detail.path}'${advice && `; ${advice}`}`,
      detail.cause === undefined ? undefined : { cause: detail.cause },
    )
    if (detail.reason !== undefined) reasons.set(this, detail.reason)
    this.name = 'BlockError'
    this.code = code
    this.errno = -errno
    this.syscall = detail.syscall
    this.path = detail.path
    this.offset = detail.offset
    this.length = detail.length
    this.engine = detail.engine
  }
}

/**
 * Requests of a batch failed that have no callback to hear of it: `errors[i]` belongs to request `failed[i]` of the batch.
 * Requests with a callback heard there and are not in here.
 */
export class MultiwriteError extends AggregateError {
  /** Indices into the array of requests, ascending. */
  readonly failed: readonly number[]

  constructor(errors: readonly Error[], failed: readonly number[]) {
    const first = errors[0]
    const which = failed.length === 1 ? `request ${failed[0]}` : `${failed.length} requests, first request ${failed[0]}`
    super(errors, `${which} failed: ${first?.message ?? ''}`)
    this.name = 'MultiwriteError'
    this.failed = failed
  }
}

/**
 * An `AbortSignal` withdrew what had not been submitted yet; `cause` is the signal's reason. For a batch it tells what had
 * become of the rest.
 */
export class AbortError extends Error {
  readonly code = 'ABORT_ERR'
  /** Requests of the batch that were carried out. */
  readonly completed: number
  /** Requests without a callback that failed for another reason; `errors[i]` belongs to request `failed[i]`. */
  readonly failed: readonly number[]
  readonly errors: readonly Error[]

  constructor(reason: unknown, completed = 0, failed: readonly number[] = [], errors: readonly Error[] = []) {
    super('The operation was aborted; what was withdrawn may be submitted again', { cause: reason })
    this.name = 'AbortError'
    this.completed = completed
    this.failed = failed
    this.errors = errors
  }
}
