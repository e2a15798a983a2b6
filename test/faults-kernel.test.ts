// System calls that really fail, the first of them, the second, and so on, until there is none left. Each run is the whole
// scenario of test/faults/scenario.ts, which judges itself, in a process that must end by itself.

import fs from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Plan } from './faults/child.ts'
import { type Outcome, units } from './faults/scenario.ts'
import { compiled } from './support/compile.ts'
import { difference, pattern } from './support/model.ts'
import { noStrace, runInjected } from './support/strace.ts'
import { background, bufferedFile, directFile, type EngineName, withTarget } from './support/targets.ts'

const long = process.env.MULTIWRITE_LONG !== undefined

let program: ReturnType<typeof compiled>
beforeAll(() => {
  program = compiled('faults/child.ts')
})
afterAll(() => program.cleanup())

const targetOf = (engine: EngineName): typeof bufferedFile => (engine === 'aio' ? directFile : bufferedFile)

/** The scenario under injected system calls: what came of it, and how many calls were answered by strace. */
async function outcomeOf(engine: EngineName, injection: string): Promise<{ outcome: Outcome; injected: number }> {
  const target = targetOf(engine)
  const unit = target.direct ? 4096 : 1000
  return withTarget(target, units * unit, async (made) => {
    const plan: Plan = { path: made.path, options: { ...made.options, engine }, unit, runs: [[]] }
    const script = `await import(${JSON.stringify(program.path)})`
    const on = engine === 'threads' ? made.path : undefined
    const child = await runInjected(script, [injection], { PLAN: JSON.stringify(plan) }, on)
    expect(child.stderr, injection).toBe('')
    expect({ injection, code: child.code, signal: child.signal }).toEqual({ injection, code: 0, signal: null })
    return { outcome: JSON.parse(child.stdout) as Outcome, injected: child.injected.length }
  })
}

/** Which of the calls to strike; the sweep ends when there are none left. */
const chosen = long ? Array.from({ length: 100 }, (_, at) => at + 1) : [1, 2, 3, 4, 6, 9]

/** Calls `judge` with the outcome of each run in which a call was struck. */
async function sweep(
  engine: EngineName,
  call: string,
  fault: string,
  judge: (outcome: Outcome) => void,
): Promise<void> {
  let struck = 0
  for (const nth of chosen) {
    const { outcome, injected } = await outcomeOf(engine, `${call}:${fault}:when=${nth}`)
    expect({ nth, wrong: outcome.wrong }).toEqual({ nth, wrong: [] })
    if (injected === 0) break
    struck++
    judge(outcome)
  }
  expect(struck).toBeGreaterThan(0)
}

const unheard = (outcome: Outcome): void => {
  expect(outcome.errors).toEqual([])
  expect(outcome.flushes).toEqual(['ok', 'ok', 'ok'])
}

/** The engine proves itself when it is set up; a fault that strikes there refuses it, with the error of the call. */
const unheardOrRefused =
  (code: string) =>
  (outcome: Outcome): void => {
    if (outcome.setUp !== undefined) expect(outcome.setUp).toBe(code)
    expect(outcome.refused).toBeUndefined()
    unheard(outcome)
  }

describe.skipIf(noStrace !== '')(`system calls that fail${noStrace && ` (${noStrace})`}`, () => {
  const passing: [EngineName, string, string][] = [
    ['io_uring', 'io_uring_enter', 'EINTR'],
    ['io_uring', 'io_uring_enter', 'EAGAIN'],
    ['io_uring', 'io_uring_enter', 'EBUSY'],
    ['aio', 'io_submit', 'EINTR'],
    ['aio', 'io_submit', 'EAGAIN'],
    ['aio', 'io_getevents', 'EINTR'],
    ['threads', 'pwrite64', 'EINTR'],
    ['threads', 'pwritev', 'EINTR'],
    ['threads', 'pread64', 'EINTR'],
    ['threads', 'fdatasync', 'EINTR'],
  ]

  test.each(passing)('%s: the Nth %s says %s, and nobody hears of it', async (engine, call, code) => {
    await sweep(engine, call, `error=${code}`, unheardOrRefused(code))
  })

  test.each(passing)('%s: every second %s says %s, and then 50 in a row', async (engine, call, code) => {
    // The first proves the engine.
    for (const when of ['2+2', '3..52']) {
      const { outcome, injected } = await outcomeOf(engine, `${call}:error=${code}:when=${when}`)
      expect(outcome.wrong).toEqual([])
      // Of a pool of threads each counts for itself, and may have too little to do.
      if (engine !== 'threads') expect(injected).toBeGreaterThan(0)
      unheard(outcome)
    }
  })

  test.each([
    ['io_uring', 'io_uring_enter', 'EAGAIN'],
    ['io_uring', 'io_uring_enter', 'EBUSY'],
    ['aio', 'io_submit', 'EAGAIN'],
  ] as const)(
    '%s: what %s has no room for (%s) goes when something has ended, with nobody to push it',
    async (...how) => {
      const [engine, call, code] = how
      const target = targetOf(engine)
      const script = `
      import { open } from 'multiwrite'
      const disk = await open(process.env.TARGET, { engine: '${engine}', direct: ${target.direct} })
      const write = (at) => disk.multiwrite([{ offset: at * 8192, data: Buffer.alloc(4096, at + 1) }])
      // The first proves the engine, the second is under way when the third finds no room.
      await Promise.all([write(0), write(1)])
      console.log('written')
      await disk.close()
    `
      await withTarget(target, 4 * 8192, async (made) => {
        const child = await runInjected(script, [`${call}:error=${code}:when=3`], { TARGET: made.path })
        expect(child).toMatchObject({ stderr: '', stdout: 'written\n', code: 0 })
        expect(child.injected).toHaveLength(1)
        const content = made.readBack()
        expect([content[0], content[8192]]).toEqual([1, 2])
      })
    },
  )

  test('io_uring: the Nth io_uring_enter has no memory: who hears of it hears the truth', async () => {
    await sweep('io_uring', 'io_uring_enter', 'error=ENOMEM', ({ setUp, errors }) => {
      if (setUp !== undefined) expect(setUp).toBe('ENOMEM')
      for (const error of errors) expect(error).toBe('ENOMEM')
    })
  })

  test.each([
    ['pwrite64', 'EIO'],
    ['pwritev', 'ENOSPC'],
    ['pread64', 'EIO'],
  ] as const)('threads: the Nth %s says %s, once and from then on, and it is told', async (call, code) => {
    const truly = ({ errors, flushes }: Outcome): void => {
      for (const error of errors) expect(error).toBe(code)
      expect(flushes).toEqual(flushes.map((flush) => (flush === 'ok' ? 'ok' : code)))
    }
    // Once: a merged run is done again request by request, and then there may be nothing to tell.
    await sweep('threads', call, `error=${code}`, truly)
    // From the first on: whoever makes this call again, on whichever thread, fails again.
    const { outcome } = await outcomeOf('threads', `${call}:error=${code}:when=1+`)
    expect(outcome.wrong).toEqual([])
    expect(outcome.errors.length).toBeGreaterThan(0)
    truly(outcome)
  })

  test('threads: the Nth fdatasync says EIO, and every waiter from then on is told', async () => {
    await sweep('threads', 'fdatasync', 'error=EIO', ({ errors, flushes }) => {
      expect(errors).toEqual([])
      const first = flushes.indexOf('EIO')
      if (first >= 0) expect(flushes.slice(first).every((flush) => flush === 'EIO')).toBe(true)
    })
  })

  test('threads: what a durable run has covered stays durable when it fails and is done again bit by bit', async () => {
    const script = `
      import { open } from 'multiwrite'
      const disk = await open(process.env.TARGET, { engine: 'threads' })
      const request = (length, value, fua) => ({ offset: 0, data: Buffer.alloc(length, value), fua, callback() {} })
      await disk.multiwrite([request(8192, 1, true), request(4096, 2, false)])
      await disk.close().catch(() => undefined)
    `
    await withTarget(bufferedFile, 8192, async (made) => {
      // The second one strikes nothing; it makes plain writes show.
      const injections = ['pwritev2:error=EIO:when=1', 'pwrite64:error=EIO:when=1000']
      const child = await runInjected(script, injections, { TARGET: made.path }, made.path)
      expect(child.stderr).toBe('')
      // strace counts each thread's calls: another one of the pool may be struck once as well.
      expect(child.injected.length).toBeGreaterThan(0)
      const plain = child.calls.filter((line) => !line.includes('RWF_DSYNC'))
      expect(plain).toEqual([])
    })
  })

  describe('a write that is cut short, and of which nothing more was written', () => {
    const script = (data: string): string => `
      import { open } from 'multiwrite'
      const disk = await open(process.env.TARGET, { engine: 'threads' })
      const bytes = Uint8Array.from(JSON.parse(process.env.BYTES))
      await disk.write(100, ${data})
      console.log(JSON.stringify(disk.stats))
      await disk.close()
    `

    // What strace says was written was not; so the bytes before the cut stay as they were, and those behind it must be there.
    test.each([
      ['pwrite64', 'bytes', 1],
      ['pwrite64', 'bytes', 700],
      ['pwrite64', 'bytes', 2999],
      ['pwritev', '[bytes.subarray(0, 1000), bytes.subarray(1000)]', 1],
      ['pwritev', '[bytes.subarray(0, 1000), bytes.subarray(1000)]', 999],
      ['pwritev', '[bytes.subarray(0, 1000), bytes.subarray(1000, 1500), bytes.subarray(1500)]', 1000],
      ['pwritev', '[bytes.subarray(0, 1000), bytes.subarray(1000, 1500), bytes.subarray(1500)]', 1001],
      ['pwritev', '[bytes.subarray(0, 1000), bytes.subarray(1000, 1500), bytes.subarray(1500)]', 1700],
    ])('%s, %s: goes on behind byte %i', async (call, data, cut) => {
      await withTarget(bufferedFile, 8192, async (made) => {
        const bytes = pattern(3, 3000)
        const env = { TARGET: made.path, BYTES: JSON.stringify([...bytes]) }
        const child = await runInjected(script(data), [`${call}:retval=${cut}:when=1`], env, made.path)
        expect(child.stderr).toBe('')
        expect(child.injected).toHaveLength(1)
        expect((JSON.parse(child.stdout) as { resubmitted: number }).resubmitted).toBe(1)
        const expected = Buffer.alloc(8192, background)
        expected.set(bytes.subarray(cut), 100 + cut)
        expect(difference(fs.readFileSync(made.path), expected)).toBeNull()
      })
    })

    test('is found out by the scenario, whose judgement must be worth something', async () => {
      const { outcome, injected } = await outcomeOf('threads', 'pwrite64:retval=500:when=1')
      expect(injected).toBeGreaterThan(0)
      expect(outcome.wrong).not.toEqual([])
      const whole = await outcomeOf('threads', 'pwrite64:retval=1000:when=1')
      expect(whole.outcome.wrong).not.toEqual([])
    })
  })
})
