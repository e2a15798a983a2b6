// What the exported planner says to wrong arguments: Node's own kinds of errors, naming the argument.

import { type PlanLimits, type PlanRequest, plan } from 'multiwrite/planner'
import { describe, expect, test } from 'vitest'

const LIMITS = { maxBytes: 4096, maxSegments: 16 }
const MAX = Number.MAX_SAFE_INTEGER

/** The error of a call whose arguments are not what the types ask for. */
function errorOf(...given: unknown[]): Error & { code?: string } {
  try {
    plan(...(given as [PlanRequest[], PlanLimits]))
  } catch (error) {
    return error as Error
  }
  throw new Error('no error')
}

const good = { offset: 0, length: 512 }
const type = { name: 'TypeError', code: 'ERR_INVALID_ARG_TYPE' }
const range = { name: 'RangeError', code: 'ERR_OUT_OF_RANGE' }

describe('the wrong type is a TypeError', () => {
  test.each<[string, string, unknown[]]>([
    ['no requests', '"requests"', [undefined, LIMITS]],
    ['requests that are not an array', '"requests"', [{ length: 0 }, LIMITS]],
    ['a request that is nothing', '"requests[1]"', [[good, null], LIMITS]],
    ['a hole in the array', '"requests[1]"', [new Array(2).fill(good, 0, 1), LIMITS]],
    ['a request that is a number', '"requests[0]"', [[5], LIMITS]],
    ['no offset', '"requests[1].offset"', [[good, { length: 1 }], LIMITS]],
    ['an offset in words', '"requests[1].offset"', [[good, { offset: '0', length: 1 }], LIMITS]],
    ['no length', '"requests[0].length"', [[{ offset: 0 }], LIMITS]],
    ['a length that is a bigint', '"requests[0].length"', [[{ offset: 0, length: 1n }], LIMITS]],
    ['no limits', '"limits"', [[good]]],
    ['limits that are null', '"limits"', [[good], null]],
    ['no maxBytes', '"limits.maxBytes"', [[good], { maxSegments: 1 }]],
    ['maxBytes in words', '"limits.maxBytes"', [[good], { maxBytes: '1', maxSegments: 1 }]],
    ['no maxSegments', '"limits.maxSegments"', [[good], { maxBytes: 1 }]],
    ['a mayFill that is not a function', '"mayFill"', [[good], LIMITS, true]],
    ['a mayFill that is null', '"mayFill"', [[good], LIMITS, null]],
  ])('%s', (_, name, given) => {
    const error = errorOf(...given)
    expect(error).toBeInstanceOf(TypeError)
    expect(error).toMatchObject(type)
    expect(error.message).toContain(name)
  })
})

describe('a number that cannot be is a RangeError', () => {
  test.each<[string, string, unknown[]]>([
    ['an offset that is NaN', '"requests[0].offset"', [[{ offset: Number.NaN, length: 1 }], LIMITS]],
    ['a fraction', '"requests[0].offset"', [[{ offset: 0.5, length: 1 }], LIMITS]],
    ['a negative offset', '"requests[1].offset"', [[good, { offset: -512, length: 1 }], LIMITS]],
    ['a negative bigint', '"requests[0].offset"', [[{ offset: -1n, length: 1 }], LIMITS]],
    ['an infinite offset', '"requests[0].offset"', [[{ offset: Infinity, length: 1 }], LIMITS]],
    ['an unsafe offset', '"requests[0].offset"', [[{ offset: MAX + 1, length: 0 }], LIMITS]],
    ['an unsafe bigint', '"requests[0].offset"', [[{ offset: 2n ** 53n + 1n, length: 0 }], LIMITS]],
    ['a bigint beyond all numbers', '"requests[0].offset"', [[{ offset: 10n ** 400n, length: 0 }], LIMITS]],
    ['a negative length', '"requests[0].length"', [[{ offset: 512, length: -1 }], LIMITS]],
    ['a length that is NaN', '"requests[0].length"', [[{ offset: 512, length: Number.NaN }], LIMITS]],
    ['an end past all safe integers', '"requests[0].offset + length"', [[{ offset: MAX, length: 1 }], LIMITS]],
    ['maxBytes of 0', '"limits.maxBytes"', [[good], { maxBytes: 0, maxSegments: 1 }]],
    ['maxBytes with a fraction', '"limits.maxBytes"', [[good], { maxBytes: 1.5, maxSegments: 1 }]],
    ['a negative maxSegments', '"limits.maxSegments"', [[good], { maxBytes: 1, maxSegments: -1 }]],
    ['maxSegments that is NaN', '"limits.maxSegments"', [[good], { maxBytes: 1, maxSegments: Number.NaN }]],
    ['minus infinity', '"limits.maxSegments"', [[good], { maxBytes: 1, maxSegments: -Infinity }]],
    // Divided into single bytes, this would take more memory than there is.
    ['a plan beyond all memory', '"limits.maxBytes"', [[{ offset: 0, length: MAX }], { maxBytes: 1, maxSegments: 1 }]],
  ])('%s', (_, name, given) => {
    const error = errorOf(...given)
    expect(error).toBeInstanceOf(RangeError)
    expect(error).toMatchObject(range)
    expect(error.message).toContain(name)
  })
})

describe('an error', () => {
  test('reads as one of Node', () => {
    const error = errorOf([good, { offset: 5_000_000_000.5, length: 1 }], LIMITS)
    const words = 'The value of "requests[1].offset" is out of range. It must be an integer. Received 5000000000.5'
    expect(error.message).toBe(words)
    expect(error.stack).toMatch(`RangeError [ERR_OUT_OF_RANGE]: ${words}\n`)
    expect(String(error)).toBe(`RangeError [ERR_OUT_OF_RANGE]: ${words}`)
    expect(Object.keys(error)).toEqual(['code'])
  })

  test('says what was received', () => {
    const messageFor = (offset: unknown): string => errorOf([{ offset, length: 1 }], LIMITS).message
    const start = 'The "requests[0].offset" property must be one of type number or bigint. Received '
    expect(messageFor(undefined)).toBe(`${start}undefined`)
    expect(messageFor('here')).toBe(`${start}type string ('here')`)
    expect(messageFor(new Map())).toBe(`${start}an instance of Map`)
    expect(messageFor(Object.create(null))).toBe(`${start}[Object: null prototype] {}`)
    expect(messageFor(function place() {})).toBe(`${start}function place`)
    expect(messageFor(-5_000_000_000)).toContain('Received -5_000_000_000')
    expect(messageFor(-5_000_000_000n)).toContain('Received -5_000_000_000n')
  })

  test('that mayFill throws is passed on', () => {
    const refusal = new Error('no table')
    const requests = [good, { offset: 1024, length: 512 }]
    const ask = (): unknown =>
      plan(requests, LIMITS, () => {
        throw refusal
      })
    expect(ask).toThrow(refusal)
  })
})

describe('what is accepted', () => {
  test('an empty batch', () => {
    expect(plan([], LIMITS)).toEqual({ submissions: [] })
  })

  test('offsets that are bigints, which come back as numbers', () => {
    expect(plan([{ offset: 2n ** 52n, length: 1 }], LIMITS).submissions[0]?.offset).toBe(2 ** 52)
  })

  test('the last byte that a safe integer can end at', () => {
    const whole = { maxBytes: Infinity, maxSegments: Infinity }
    expect(plan([{ offset: 0, length: MAX }], whole).submissions).toMatchObject([{ offset: 0, length: MAX }])
    expect(plan([{ offset: MAX - 1, length: 1 }], whole).submissions).toMatchObject([{ offset: MAX - 1, length: 1 }])
    expect(plan([{ offset: MAX, length: 0 }], whole).submissions).toEqual([])
  })

  test('minus zero, which is zero', () => {
    expect(plan([{ offset: -0, length: 1 }], LIMITS).submissions[0]?.offset).toBe(0)
    expect(plan([{ offset: 512, length: -0 }], LIMITS).submissions).toEqual([])
  })

  test('a mayFill that answers with a promise has not agreed', () => {
    const requests = [good, { offset: 1024, length: 512 }]
    const later = (async () => true) as unknown as () => boolean
    expect(plan(requests, LIMITS, later).submissions.length).toBe(2)
    expect(plan(requests, LIMITS, () => true).submissions.length).toBe(1)
  })

  test('requests are read and not changed', () => {
    const requests = Object.freeze([good, { offset: 256, length: 512 }].map((request) => Object.freeze(request)))
    expect(plan(requests, Object.freeze(LIMITS)).submissions).toMatchObject([{ offset: 0, length: 768 }])
  })
})
