// The addon under the address and undefined-behaviour sanitizers, over all engines: the behavioural suite, memory taken away in flight, answers that go
// wrong, workers that end in the middle of things, and the ends of processes. And the thread pool alone under the thread
// sanitizer. What they find they print; a run that is clean prints nothing of theirs.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Plan as Faults } from './faults/child.ts'
import type { Life, Plan as Lives } from './faults/life.ts'
import { type Outcome, units } from './faults/scenario.ts'
import type { Plan as Ending } from './life/ending.ts'
import type { Plan as Transfers, Report as TransfersReport } from './life/transfers.ts'
import { eachWay, type Way } from './life/ways.ts'
import type { Plan as Workers, Report as WorkersReport } from './life/workers.ts'
import { type Context, type Result, size } from './matrix/suite.ts'
import { type ChildResult, runChild } from './support/child.ts'
import { compiled } from './support/compile.ts'
import { forever, nativeModule, numbers, type Rule } from './support/faults.ts'
import { temporaryDirectory, withTarget } from './support/targets.ts'

const root = fileURLToPath(new URL('../', import.meta.url))
const page = 4096
const long = process.env.MULTIWRITE_LONG !== undefined
const minutes = 60_000

const output = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { cwd: root, encoding: 'utf8', stdio: 'pipe' })

/** The library of a sanitizer that belongs to g++; it must be in the process before anything else. */
function runtime(name: string): string {
  const file = output('g++', `-print-file-name=${name}`).trim()
  // Where there is none, the compiler answers with the bare name.
  if (!path.isAbsolute(file)) throw new Error(`g++ has no ${name}`)
  return file
}

function reason(of: () => unknown): string {
  try {
    of()
    return ''
  } catch (error) {
    return `skipped: ${String(error).split('\n')[0]}`
  }
}

const noAddressSanitizer = reason(() => [runtime('libasan.so'), output('cmake', '--version')])
const noThreadSanitizer = reason(() => runtime('libtsan.so'))

describe.skipIf(noAddressSanitizer !== '')(
  `address and undefined behaviour${noAddressSanitizer && ` (${noAddressSanitizer})`}`,
  () => {
    const addon = path.join(root, 'build-asan/Release/multiwrite.node')
    const programs = new Map<string, { path: string; cleanup(): void }>()
    let directory: { path: string; cleanup(): void }

    beforeAll(() => {
      directory = temporaryDirectory()
      const configuration = ['MULTIWRITE_SANITIZE=address,undefined', 'MULTIWRITE_FAULTS=ON', 'CMAKE_CXX_COMPILER=g++']
      const compile = ['node_modules/cmake-js/bin/cmake-js', 'compile', '--out', 'build-asan']
      output(process.execPath, ...compile, ...configuration.map((one) => `--CD${one}`))
      for (const name of [
        'matrix/elsewhere',
        'life/transfers',
        'life/workers',
        'life/ending',
        'faults/child',
        'faults/life',
      ]) {
        programs.set(name, compiled(`${name}.ts`))
      }
    }, 5 * minutes)
    afterAll(() => {
      for (const { cleanup } of programs.values()) cleanup()
      directory?.cleanup()
    })

    /** Runs a program under the sanitizers; what they have to say fails the test. */
    async function run(name: string, plan: object, leaks: boolean): Promise<ChildResult> {
      // Writes read the caller's memory where it lies. If JavaScript gives it away, the kernel may read what has been freed: the
      // bytes are thrown away with the request, which fails. Memory that is written to gets no such pardon.
      const pardons = path.join(directory.path, 'pardons')
      fs.writeFileSync(pardons, 'interceptor_name:pwrite\ninterceptor_name:pwritev\n')
      const child = await runChild(`await import(${JSON.stringify(programs.get(name)?.path)})`, {
        env: {
          PLAN: JSON.stringify(plan),
          CONTEXT: JSON.stringify(plan),
          MULTIWRITE_ADDON: addon,
          LD_PRELOAD: runtime('libasan.so'),
          // To see where a leak comes from, add fast_unwind_on_malloc=0: Node is built without frame pointers.
          ASAN_OPTIONS: `detect_leaks=${leaks ? 1 : 0}:suppressions=${pardons}`,
          UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
        },
        silence: 2 * minutes,
      })
      expect(child.stderr).not.toContain('ERROR: AddressSanitizer')
      expect(child.stderr).not.toContain('ERROR: LeakSanitizer')
      expect(child.stderr).not.toContain('runtime error')
      expect(child.stderr).toBe('')
      return child
    }

    test('the addon is instrumented: without the sanitizer in the process it does not load', async () => {
      const script = `(await import(${JSON.stringify(nativeModule)})).addon()`
      const alone = await runChild(script, { env: { MULTIWRITE_ADDON: addon } })
      expect(alone.stderr).toContain('ASan runtime does not come first')
      const env = { MULTIWRITE_ADDON: addon, LD_PRELOAD: runtime('libasan.so'), ASAN_OPTIONS: 'detect_leaks=0' }
      expect(await runChild(script, { env })).toEqual({ code: 0, signal: null, stdout: '', stderr: '' })
    })

    eachWay(({ engine, target }: Way) => {
      test(
        'the behavioural suite',
        async () => {
          await withTarget(target, size, async (made) => {
            const options = { ...made.options, engine }
            const context: Context = { path: made.path, options, sectorSize: made.sectorSize }
            const child = await run('matrix/elsewhere', context, true)
            const results = JSON.parse(child.stdout) as Result[]
            expect(results.length).toBeGreaterThan(15)
            expect(results.filter(({ failure }) => failure !== undefined)).toEqual([])
            expect([child.code, child.signal]).toEqual([0, null])
          })
        },
        20 * minutes,
      )

      test(
        'memory that is taken away in flight',
        async () => {
          for (const odd of long ? [false, true] : [true]) {
            await withTarget(target, 32 * 16 * page, async (made) => {
              const options = { ...made.options, engine }
              const plan: Transfers = { path: made.path, options, count: long ? 500 : 40, pages: 16, odd }
              const child = await run('life/transfers', plan, true)
              expect((JSON.parse(child.stdout) as TransfersReport).wrong).toEqual([])
              expect([child.code, child.signal]).toEqual([0, null])
            })
          }
        },
        20 * minutes,
      )

      test(
        'workers that end with requests in flight; what they allocated goes with them',
        async () => {
          await withTarget(target, 4 << 20, async (made) => {
            const plan: Workers = {
              path: made.path,
              options: { ...made.options, engine, busyPollUs: 20 },
              ends: ['terminate', 'natural', 'early', 'exit', 'throw'],
              workers: long ? 50 : 5,
              atOnce: 1,
              devices: 2,
            }
            const child = await run('life/workers', plan, true)
            expect((JSON.parse(child.stdout.split('\n')[1] ?? '') as WorkersReport).wrong).toEqual([])
            expect([child.code, child.signal]).toEqual([0, null])
          })
        },
        20 * minutes,
      )

      test(
        'processes that end with requests in flight',
        async () => {
          await withTarget(target, 4 << 20, async (made) => {
            const options = { ...made.options, engine }
            for (const [end, code, worker] of [
              ['abandon', 0, true],
              ['exit', 5, true],
              ['exit', 5, false],
            ] as const) {
              const plan: Ending = { path: made.path, options, end, worker, steps: 30 }
              // Node itself leaves everything behind at process.exit.
              const child = await run('life/ending', plan, end !== 'exit')
              expect([child.code, child.signal]).toEqual([code, null])
            }
          })
        },
        10 * minutes,
      )

      test(
        'answers that are wrong, short, late, or in another order; refusals',
        async () => {
          const all = ['read', 'write', 'fdatasync'] as const
          const runs: Rule[][] = [
            [],
            [{ on: ['read', 'write'], does: 'shorten', value: 1000, times: forever }],
            [{ on: all, does: 'reverse', value: 4, times: forever }],
            [{ on: all, does: 'hold', times: forever }],
            [{ on: 'write', does: 'replace', value: -5, after: 3, times: 2 }],
            [{ on: all, does: 'replace', value: -11, times: 20 }],
            [{ on: 'allocation', does: 'replace', times: 10 }],
            [{ on: 'memory', does: 'replace', after: 3, times: forever }],
          ]
          const unit = 1000
          await withTarget(target, units * unit, async (made) => {
            const options = { ...made.options, engine }
            const plan: Faults = { path: made.path, options, unit, runs: runs.map(numbers), native: nativeModule }
            const child = await run('faults/child', plan, true)
            const outcomes = child.stdout
              .trim()
              .split('\n')
              .map((line) => JSON.parse(line) as Outcome)
            expect(outcomes.map(({ wrong }) => wrong)).toEqual(runs.map(() => []))
            expect([child.code, child.signal]).toEqual([0, null])
          })
        },
        10 * minutes,
      )

      test(
        'threads that are refused what they ask for; what they had goes with them',
        async () => {
          for (const times of [1, forever]) {
            await withTarget(target, units * page, async (made) => {
              const options = { ...made.options, engine }
              const rule = numbers([{ on: 'allocation', does: 'replace', times }])
              const step = long ? 1 : 23
              const plan: Lives = {
                path: made.path,
                options,
                unit: page,
                whole: true,
                native: nativeModule,
                rule,
                step,
              }
              const child = await run('faults/life', plan, true)
              const lives = child.stdout
                .trim()
                .split('\n')
                .map((line) => JSON.parse(line) as Life)
              expect(lives.flatMap(({ wrong, amiss }) => [...wrong, ...amiss])).toEqual([])
              expect(lives.at(-1)?.refused).toBe(0)
              expect([child.code, child.signal]).toEqual([0, null])
            })
          }
        },
        20 * minutes,
      )
    })
  },
)

test.skipIf(noThreadSanitizer !== '')(
  `the thread pool has no data race${noThreadSanitizer && ` (${noThreadSanitizer})`}`,
  () => {
    const directory = temporaryDirectory()
    try {
      const program = path.join(directory.path, 'threads_tsan')
      const sources = ['native/threads.cc', 'test/native/threads_tsan.cc']
      const flags = ['-std=c++17', '-g', '-O1', '-Wall', '-Wextra', '-fsanitize=thread', '-pthread']
      output('g++', ...flags, ...sources, '-o', program)
      // At fixed addresses: the sanitizer wants its shadow in a place that a random layout may have taken.
      const { status, signal, stdout, stderr } = spawnSync(
        'setarch',
        ['--addr-no-randomize', program, path.join(directory.path, 'file')],
        { encoding: 'utf8', timeout: 5 * minutes },
      )
      expect(stderr).toBe('')
      expect({ status, signal, stdout }).toEqual({ status: 0, signal: null, stdout: 'done\n' })
    } finally {
      directory.cleanup()
    }
  },
  6 * minutes,
)
