// The first answer that goes wrong, the second, the third, until there is none left that could: for each kind of operation,
// and with a ring too small for what is asked of it. What is refused instead of answered is in faults-allocation.test.ts. Each run is the whole scenario of test/faults/scenario.ts, which
// judges itself; all runs of a test share a process, which must then end by itself.

import { constants } from 'node:os'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Plan } from './faults/child.ts'
import type { Outcome } from './faults/scenario.ts'
import { units } from './faults/scenario.ts'
import { runChild } from './support/child.ts'
import { compiled } from './support/compile.ts'
import { faultyAddon, forever, nativeModule, numbers, type Rule } from './support/faults.ts'
import { bufferedFile, directFile, type EngineName, type Target, tmpfsFile, withTarget } from './support/targets.ts'

const long = process.env.MULTIWRITE_LONG !== undefined
/** The short run strikes each second place only, except in the first sweep. */
const stride = long ? 1 : 2
const { EINTR, EAGAIN, EIO, ENOSPC } = constants.errno

let program: ReturnType<typeof compiled>
beforeAll(() => {
  program = compiled('faults/child.ts')
})
afterAll(() => program.cleanup())

/** Carries out the scenario once per set of rules, in one process. */
async function outcomes(
  target: Target,
  engine: EngineName,
  unit: number,
  runs: readonly (readonly Rule[])[],
  { options = {}, env = {} }: { options?: Plan['options']; env?: Record<string, string> } = {},
): Promise<Outcome[]> {
  return withTarget(target, units * unit, async (made) => {
    const plan: Plan = {
      path: made.path,
      options: { ...made.options, engine, ...options },
      unit,
      runs: runs.map(numbers),
      native: nativeModule,
    }
    const script = `await import(${JSON.stringify(program.path)})`
    const child = await runChild(script, {
      env: { PLAN: JSON.stringify(plan), MULTIWRITE_ADDON: faultyAddon, ...env },
      silence: 10_000,
    })
    expect(child.stderr).toBe('')
    expect(child.signal).toBeNull()
    expect(child.code).toBe(0)
    const lines = child.stdout.trim().split('\n')
    expect(lines).toHaveLength(runs.length)
    return lines.map((line) => JSON.parse(line) as Outcome)
  })
}

const clean = { wrong: [], errors: [], flushes: ['ok', 'ok', 'ok'] }

/** Thousands of flushes: on a file system in memory where there is one. */
const cached = tmpfsFile.available ? tmpfsFile : bufferedFile

/** Whole blocks of direct I/O go the straight way; what begins and ends inside blocks goes through copies and reads. */
const places: [Target, EngineName, unit: number][] = [
  [cached, 'io_uring', 1000],
  [directFile, 'io_uring', 4096],
  [directFile, 'io_uring', 1000],
  [directFile, 'aio', 4096],
  [cached, 'threads', 1000],
]
if (long) places.push([directFile, 'aio', 1000], [directFile, 'threads', 4096], [directFile, 'threads', 1000])

for (const [target, engine, unit] of places) {
  const title = `${engine}, ${target.name}${target.available ? '' : ` (${target.reason})`}, pieces of ${unit} bytes`
  describe.skipIf(!target.available)(title, () => suite(target, engine, unit))
}

function suite(target: Target, engine: EngineName, unit: number): void {
  let submissions: Outcome['submissions'] | undefined

  /** How many operations of each kind there are when nothing goes wrong. */
  const counted = async (): Promise<Outcome['submissions']> => {
    if (submissions === undefined) {
      const [whole] = await outcomes(target, engine, unit, [[]])
      expect(whole).toMatchObject(clean)
      submissions = whole!.submissions
    }
    return submissions
  }

  /**
   * One run for each place at which each of the faults may strike, and a few beyond the last. Nothing may be left unanswered
   * or unexplained, whatever the fault.
   */
  const sweep = async (faults: readonly Omit<Rule, 'after'>[], every = stride): Promise<Outcome[]> => {
    const { write, read, flush, rmw } = await counted()
    const runs: Rule[][] = []
    const beyond: number[] = []
    for (const fault of faults) {
      // A block that is written in part is read first, at its start and at its end.
      const last = { write, read: read + 2 * rmw, fdatasync: flush }[fault.on as 'write'] + 3
      const step = fault.on === 'fdatasync' ? 1 : every
      for (let after = 0; after <= last; after += step) runs.push([{ ...fault, after }])
      beyond.push(runs.length - 1)
    }
    const swept = await outcomes(target, engine, unit, runs)
    for (const [index, { wrong, flushes }] of swept.entries()) {
      const unanswered = flushes.filter((answer) => answer === 'unanswered')
      expect({ rules: runs[index], wrong, unanswered }).toEqual({ rules: runs[index], wrong: [], unanswered: [] })
    }
    // Beyond the last operation nothing can go wrong, so the sweep was complete.
    for (const index of beyond) expect(swept[index]).toMatchObject(clean)
    return swept
  }
  const each = (fault: Omit<Rule, 'on' | 'after'>): Omit<Rule, 'after'>[] =>
    (['write', 'read', 'fdatasync'] as const).map((on) => ({ on, ...fault }))

  const failures = [
    ['EIO', EIO],
    ['ENOSPC', ENOSPC],
  ] as const
  test.each(long ? failures : failures.slice(0, 1))(
    'the Nth write fails with %s: it is told, and nothing else is amiss',
    async (code, errno) => {
      const swept = await sweep([{ on: 'write', does: 'replace', value: -errno }], 1)
      for (const { errors } of swept) expect(errors.filter((error) => error !== code)).toEqual([])
      expect(swept.some(({ errors }) => errors.length > 0)).toBe(true)
    },
  )

  test('the Nth read fails: it is told, and nothing else is amiss', async () => {
    const swept = await sweep([{ on: 'read', does: 'replace', value: -EIO }], 1)
    for (const { errors, flushes } of swept) {
      expect(errors.filter((error) => error !== 'EIO')).toEqual([])
      expect(flushes).toEqual(['ok', 'ok', 'ok'])
    }
    expect(swept.some(({ errors }) => errors.length > 0)).toBe(true)
  })

  test('the Nth flush fails: it is told to its waiters and to all after them, and to no write', async () => {
    const swept = await sweep([{ on: 'fdatasync', does: 'replace', value: -EIO }])
    for (const { errors, flushes } of swept) {
      expect(errors).toEqual([])
      const first = flushes.indexOf('EIO')
      if (first >= 0) expect(flushes.slice(first)).toEqual(flushes.slice(first).map(() => 'EIO'))
    }
    expect(swept[0]?.flushes).toContain('EIO')
  })

  test.each([
    ['EINTR', -EINTR],
    ['EAGAIN', -EAGAIN],
  ] as const)('the Nth operation of each kind is answered with %s: nobody hears of it', async (_, value) => {
    for (const outcome of await sweep(each({ does: 'replace', value }))) expect(outcome).toMatchObject(clean)
  })

  test('the Nth operation is cut short: it is carried on, and nobody hears of it', async () => {
    const cut = { does: 'shorten', value: unit === 4096 ? 5000 : 700 } as const
    for (const outcome of await sweep([
      { on: 'write', ...cut },
      { on: 'read', ...cut },
    ])) {
      expect(outcome).toMatchObject(clean)
    }
  })

  test('the Nth operation does nothing at all, or all from the Nth on fail', async () => {
    const nothing = { does: 'replace', value: 0 } as const
    const failing = each({ does: 'replace', value: -EIO, times: forever })
    await sweep([{ on: 'write', ...nothing }, { on: 'read', ...nothing }, ...failing])
  })

  test('the Nth answer is held back: nobody minds', async () => {
    for (const outcome of await sweep(each({ does: 'hold' }))) expect(outcome).toMatchObject(clean)
  })

  test.each([1, 2, 3])('everything passes through a queue of depth %i', async (queueDepth) => {
    for (const outcome of await outcomes(target, engine, unit, [[], [], []], { options: { queueDepth } })) {
      expect(outcome).toMatchObject(clean)
    }
  })

  if (engine === 'io_uring' && (long || unit === 1000)) {
    test.each([1, 2, 4])('a ring of %i entries is full and overflows, and nothing is lost', async (entries) => {
      const env = { MULTIWRITE_TEST_RING: String(entries) }
      for (const outcome of await outcomes(target, engine, unit, [[], [], [], [], []], { env })) {
        expect(outcome).toMatchObject(clean)
      }
      const held: Rule[] = [{ on: ['write', 'read', 'fdatasync'], does: 'hold', times: forever }]
      const failing: Rule[] = [{ on: 'write', does: 'replace', value: -EIO, after: 3, times: 4 }]
      const [late, failed] = await outcomes(target, engine, unit, [held, failing], { env })
      expect(late).toMatchObject(clean)
      expect(failed?.wrong).toEqual([])
    })

    test.each([1, 4])('10,000 scattered writes pass through a ring of %i entries', async (entries) => {
      const script = `
        import { open } from 'multiwrite'
        const disk = await open(process.env.TARGET, { engine: 'io_uring', direct: ${target.direct}, queueDepth: 4096 })
        let answered = 0
        const data = disk.alloc(512)
        const callback = (error) => { if (error === null) answered++ }
        const requests = Array.from({ length: 10000 }, (_, at) => ({ offset: ((at * 7) % 10000) * 1024, data, callback }))
        const result = await disk.multiwrite(requests)
        const { submissions } = disk.stats.write
        await disk.close()
        console.log(JSON.stringify({ ...result, answered, submissions }))
      `
      await withTarget(target, 10_000 * 1024, async (made) => {
        const env = { TARGET: made.path, MULTIWRITE_ADDON: faultyAddon, MULTIWRITE_TEST_RING: String(entries) }
        const child = await runChild(script, { env, silence: 20_000 })
        expect(child).toMatchObject({ stderr: '', code: 0 })
        const all = { requests: 10_000, failed: 0, answered: 10_000, submissions: 10_000 }
        expect(JSON.parse(child.stdout)).toEqual(all)
      })
    })
  }
}
