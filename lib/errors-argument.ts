// The errors of a wrong argument, worded and shaped as Node's own: `error.name` stays `TypeError` or `RangeError`,
// `error.code` tells the kind, and the stack and `toString()` show both, as in `RangeError [ERR_OUT_OF_RANGE]: ...`.
// Whatever checks arguments makes its errors here, so that all of them read alike. These functions make errors, they
// never throw: `throw invalidType('requests[1].offset', ['number', 'bigint'], offset)`.

import { inspect } from 'node:util'

/** An error with the code that Node gives to the same mistake. */
interface Coded {
  code: string
}

/** What `typeof` can say, and `null`: these are "of type", everything else is an instance or a phrase. */
const PRIMITIVES = new Set([
  'bigint',
  'boolean',
  'function',
  'null',
  'number',
  'object',
  'string',
  'symbol',
  'undefined',
])

/** As long as Node shows of a value before it cuts. */
const RECEIVED_LENGTH_MAX = 128
/** Of a value that stands beside its type, Node shows less. */
const RECEIVED_TYPED_LENGTH_MAX = 28
/** From here on Node writes whole numbers in groups of three digits. */
const GROUPED_FROM = 2 ** 32

/**
 * The argument has the wrong type: `ERR_INVALID_ARG_TYPE`.
 *
 * @param name the argument as the caller would write it, such as `requests[1].offset`
 * @param expected the types it may have: what `typeof` says (`number`), a class (`Uint8Array`), or a phrase that
 *   completes "must be" (`an array of buffers`)
 * @param actual what was given
 */
export function invalidType(name: string, expected: string | readonly string[], actual: unknown): TypeError {
  const message = `${subject(name)} must be ${describeExpected(expected)}. Received ${describeReceived(actual)}`
  return withCode(new TypeError(message), 'ERR_INVALID_ARG_TYPE', invalidType)
}

/**
 * A number that is no whole number, negative, unsafe, or past the end: `ERR_OUT_OF_RANGE`.
 *
 * @param name the argument as the caller would write it
 * @param requirement what completes "It must be", such as `a whole number` or `>= 0 and <= 511`
 * @param actual what was given
 */
export function outOfRange(name: string, requirement: string, actual: unknown): RangeError {
  const message = `The value of "${name}" is out of range. It must be ${requirement}. Received ${describeNumber(actual)}`
  return withCode(new RangeError(message), 'ERR_OUT_OF_RANGE', outOfRange)
}

/**
 * The right type but a value that means nothing here: `ERR_INVALID_ARG_VALUE`.
 *
 * @param name the argument as the caller would write it
 * @param actual what was given
 * @param reason what completes the name, such as `must be one of: 'raw', 'qcow2'` or `is detached`
 */
export function invalidValue(name: string, actual: unknown, reason = 'is invalid'): TypeError {
  const kind = name.includes('.') ? 'property' : 'argument'
  const shown = shorten(inspect(actual), RECEIVED_LENGTH_MAX)
  const message = `The ${kind} '${name}' ${reason}. Received ${shown}`
  return withCode(new TypeError(message), 'ERR_INVALID_ARG_VALUE', invalidValue)
}

/** Gives the error its code, and a stack that begins with both name and code and at the caller of `maker`. */
function withCode<E extends Error>(error: E, code: string, maker: (...args: never[]) => unknown): E & Coded {
  const shown = `${error.name} [${code}]`
  // The stack's first line is made from the name when the stack is first read: so the name is lent for that moment.
  Object.defineProperty(error, 'name', { value: shown, configurable: true })
  Error.captureStackTrace(error, maker)
  void error.stack
  Reflect.deleteProperty(error, 'name')
  Object.defineProperty(error, 'toString', {
    value(this: Error): string {
      return `${this.name} [${code}]: ${this.message}`
    },
    configurable: true,
    writable: true,
  })
  return Object.assign(error, { code })
}

function subject(name: string): string {
  return `The "${name}" ${name.includes('.') ? 'property' : 'argument'}`
}

function describeExpected(expected: string | readonly string[]): string {
  const all = typeof expected === 'string' ? [expected] : expected
  const types = all.filter((one) => PRIMITIVES.has(one))
  const classes = all.filter((one) => /^[A-Z]\w*$/.test(one))
  const phrases = all.filter((one) => !types.includes(one) && !classes.includes(one))
  const parts: string[] = []
  if (types.length > 0) parts.push(`${types.length > 1 ? 'one of type' : 'of type'} ${either(types)}`)
  if (classes.length > 0) parts.push(`an instance of ${either(classes)}`)
  return either([...parts, ...phrases])
}

function either(words: readonly string[]): string {
  if (words.length < 3) return words.join(' or ')
  return `${words.slice(0, -1).join(', ')}, or ${words.at(-1)}`
}

function describeReceived(actual: unknown): string {
  if (actual === null || actual === undefined) return String(actual)
  if (typeof actual === 'function') return `function ${actual.name}`
  if (typeof actual === 'object') {
    const maker = actual.constructor
    return typeof maker === 'function' && maker.name !== ''
      ? `an instance of ${maker.name}`
      : inspect(actual, { depth: -1 })
  }
  return `type ${typeof actual} (${shorten(inspect(actual, { colors: false }), RECEIVED_TYPED_LENGTH_MAX)})`
}

function describeNumber(actual: unknown): string {
  if (typeof actual === 'bigint') return `${grouped(actual)}n`
  if (Number.isInteger(actual) && Math.abs(actual as number) > GROUPED_FROM) return grouped(actual as number)
  return inspect(actual)
}

function grouped(whole: number | bigint): string {
  return String(whole).replace(/\B(?=(?:\d{3})+$)/g, '_')
}

function shorten(text: string, lengthMax: number): string {
  return text.length > lengthMax ? `${text.slice(0, lengthMax)}...` : text
}
