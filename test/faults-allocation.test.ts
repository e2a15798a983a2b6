// What the addon asks the system for and does not get: memory, descriptors, mappings, threads, kernel contexts, objects of
// Node's. The first that it asks for, the second, until there is none left that could be refused, over the whole life of a
// thread (test/faults/life.ts); and the cases in which somebody once was left without an answer, or a descriptor was left open.

import fs from 'node:fs'
import { BlockError, open } from 'multiwrite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Life, Plan } from './faults/life.ts'
import { units } from './faults/scenario.ts'
import { runChild } from './support/child.ts'
import { compiled } from './support/compile.ts'
import { descriptorsOf } from './support/descriptors.ts'
import { failure } from './support/failure.ts'
import { faultyAddon, forever, nativeModule, numbers, type Rule, setFaults, withFaults } from './support/faults.ts'
import {
  bufferedFile,
  directFile,
  type EngineName,
  type MadeTarget,
  type Target,
  withDisk,
  withTarget,
} from './support/targets.ts'

const long = process.env.MULTIWRITE_LONG !== undefined
const unit = 4096

const places: [EngineName, Target][] = [
  ['io_uring', directFile],
  ['aio', directFile],
  ['threads', bufferedFile],
]

describe.each(places)('%s: the Nth thing that a thread asks for', (engine, target) => {
  const title = target.available ? '' : ` (${target.reason})`
  let program: ReturnType<typeof compiled>
  beforeAll(() => {
    program = compiled('faults/life.ts')
  })
  afterAll(() => program.cleanup())

  async function lives(rule: Rule, step: number): Promise<Life[]> {
    return withTarget(target, units * unit, async (made) => {
      const plan: Plan = {
        path: made.path,
        options: { ...made.options, engine },
        unit,
        whole: true,
        native: nativeModule,
        rule: numbers([rule]),
        step,
      }
      const script = `await import(${JSON.stringify(program.path)})`
      const env = { PLAN: JSON.stringify(plan), MULTIWRITE_ADDON: faultyAddon }
      const child = await runChild(script, { env, silence: 20_000 })
      expect(child).toMatchObject({ stderr: '', code: 0, signal: null })
      return child.stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as Life)
    })
  }

  /** What holds for every life. */
  function judge(all: readonly Life[]): void {
    for (const { after, wrong, amiss, during, afterwards } of all) {
      expect({ after, wrong, amiss }).toEqual({ after, wrong: [], amiss: [] })
      // Reads and writes that are accepted find what they need, or wait for it.
      expect({ after, wrong: during?.wrong, errors: during?.errors }).toEqual({ after, wrong: [], errors: [] })
      const told = [during?.refused ?? 'ok', ...during!.others, ...during!.flushes].filter((code) => code !== 'ok')
      // ENOSPC: the file below a qcow2 image did not get longer.
      expect({ after, told: told.filter((code) => !/^(ENOMEM|EMFILE|EAGAIN|ENOSPC)$/.test(code)) }).toEqual({
        after,
        told: [],
      })
      expect(during!.flushes.slice(0, 2).filter((answer) => answer !== 'ok')).toEqual([])
      // And then it is as if nothing had been.
      const { refused, errors, flushes, others } = afterwards!
      const rest = [...errors, ...flushes, ...others].filter((code) => code !== 'ok')
      expect({ after, wrong: afterwards?.wrong, refused, rest }).toEqual({
        after,
        wrong: [],
        refused: undefined,
        rest: [],
      })
    }
    // The last one had nothing left that could be refused, so all of them were struck, and struck they were.
    const last = all.at(-1)!
    expect(last.refused).toBe(0)
    expect(last.asked).toBeGreaterThan(100)
    expect(all.slice(0, -1).filter(({ refused }) => refused === 0)).toEqual([])
    expect(all.some(({ during }) => during?.refused !== undefined)).toBe(true)
  }

  test.skipIf(!target.available)(
    `is refused once: only its caller hears of it, and nothing is left behind${title}`,
    async () => {
      const all = await lives({ on: 'allocation', does: 'replace' }, long ? 1 : 9)
      judge(all)
      for (const { during, refused } of all) {
        const told = [during?.refused ?? 'ok', ...during!.others, ...during!.flushes].filter((code) => code !== 'ok')
        expect(told.length).toBeLessThanOrEqual(refused)
      }
    },
    5 * 60_000,
  )

  test.skipIf(!target.available)(
    `is refused, and so is everything from then on: all are told, and nothing is left behind${title}`,
    async () => judge(await lives({ on: 'allocation', does: 'replace', times: forever }, long ? 1 : 13)),
    5 * 60_000,
  )

  test.skipIf(!target.available)(`there is no memory for long vectors, ever: they take turns${title}`, async () => {
    await withTarget(target, 64 * 4 * unit, async (made) => {
      const { resubmitted } = await withDisk(made, { engine }, async (disk) => {
        // The second piece lies before the first in memory, or the two would be one vector.
        const requests = Array.from({ length: 64 }, (_, at) => {
          const [behind, before] = [disk.alloc(unit).fill(2 * at + 1), disk.alloc(unit).fill(2 * at)]
          return { offset: at * 4 * unit, data: [before, behind] }
        })
        await withFaults([{ on: 'memory', does: 'replace', times: forever }], async () => {
          expect(await disk.multiwrite(requests)).toEqual({ requests: 64, failed: 0 })
        })
        return disk.stats
      })
      expect(resubmitted).toBeGreaterThan(0)
      const content = made.readBack()
      for (let at = 0; at < 64; at++) {
        const place = at * 4 * unit
        expect([content[place], content[place + unit - 1]]).toEqual([2 * at, 2 * at])
        expect([content[place + unit], content[place + 2 * unit - 1]]).toEqual([2 * at + 1, 2 * at + 1])
      }
    })
  })
})

const withFile = (work: (made: MadeTarget) => Promise<void>): Promise<void> => withTarget(bufferedFile, 64 * unit, work)

/** Ways in which a job does not start: no memory, none of Node's objects, no thread. */
const unstarted = ['memory', 'object', 'thread'] as const

describe('a call that blocks finds no thread to run on', () => {
  // `close` rejected with an error of no kind, and the descriptor stayed open for ever.
  test.each([
    ['memory', 0],
    ['memory', 1],
    ['object', 0],
    ['object', 1],
    ['thread', 0],
  ] as const)('close (%s, after %i): it is closed all the same', async (on, after) => {
    await withFile(async (made) => {
      const disk = await open(made.path, made.options)
      await disk.write(0, Buffer.alloc(unit, 7))
      expect(descriptorsOf(made.path)).toBe(1)
      await withFaults([{ on, does: 'replace', after, times: forever }], () => disk.close())
      expect(descriptorsOf(made.path)).toBe(0)
      expect(made.readBack()[0]).toBe(7)
    })
  })

  test('close, whose flush fails: it rejects with that, and is closed', async () => {
    await withFile(async (made) => {
      const disk = await open(made.path, made.options)
      await disk.write(0, Buffer.alloc(unit, 7))
      const rules: Rule[] = [
        { on: 'fdatasync', does: 'replace', value: -5 },
        { on: 'allocation', does: 'replace', times: forever },
      ]
      const error = await withFaults(rules, () => failure(disk.close()))
      expect(error).toBeInstanceOf(BlockError)
      expect(error).toMatchObject({ code: 'EIO', syscall: 'fdatasync' })
      expect(descriptorsOf(made.path)).toBe(0)
    })
  })

  test.each(unstarted)('the others (%s) reject with ENOMEM, and hold nobody up', async (on) => {
    await withFile(async (made) => {
      await withDisk(made, {}, async (disk) => {
        // Writing zeros is a last resort that needs no thread.
        setFaults({ on, does: 'replace', times: forever })
        const calls = [
          ['fallocate', disk.discard(0, 4 * unit)],
          ['fallocate', disk.writeZeroes(8 * unit, 4 * unit)],
          ['ftruncate', disk.truncate(32 * unit)],
          ['statx', disk.refresh()],
          ['open', open(made.path, made.options)],
        ] as const
        const told = await Promise.all(calls.map(([, promise]) => failure(promise)))
        setFaults()
        for (const [index, [syscall]] of calls.entries()) {
          expect(told[index]).toBeInstanceOf(BlockError)
          expect(told[index]).toMatchObject({ code: 'ENOMEM', errno: -12, syscall, path: made.path })
        }
        expect(disk.size).toBe(64 * unit)
        // Their ranges are free again.
        await disk.write(0, Buffer.alloc(64 * unit, 9))
        await disk.discard(0, 4 * unit)
        await disk.truncate(32 * unit)
      })
      expect(descriptorsOf(made.path)).toBe(0)
      expect(made.readBack()).toEqual(Buffer.concat([Buffer.alloc(4 * unit), Buffer.alloc(28 * unit, 9)]))
    })
  })
})

describe('memory', () => {
  test('that alloc does not get is a BlockError, thrown, and the next call may get it', async () => {
    await withFile(async (made) => {
      await withDisk(made, {}, async (disk) => {
        // Room for its number: the table doubles, so one of these asks for more.
        setFaults({ on: 'memory', does: 'replace', times: forever })
        let thrown: unknown
        const kept: Buffer[] = []
        try {
          for (let i = 0; i < 10_000; i++) kept.push(disk.alloc(unit * 16))
        } catch (error) {
          thrown = error
        } finally {
          setFaults()
        }
        expect(thrown).toBeInstanceOf(BlockError)
        expect(thrown).toMatchObject({ code: 'ENOMEM', syscall: 'alloc', path: made.path })
        expect(disk.alloc(unit * 16)).toHaveLength(unit * 16)
        expect(kept.length).toBeGreaterThan(0)
      })
    })
  })

  test('that the system itself does not give is told in the same way', async () => {
    const script = `
      import { execFileSync } from 'node:child_process'
      import fs from 'node:fs'
      import { open } from 'multiwrite'
      const disk = await open(process.env.TARGET, { direct: false })
      const size = 1 << 30
      const limit = (bytes) => execFileSync('prlimit', ['--pid', String(process.pid), '--as=' + bytes + ':unlimited'])
      const pages = Number(fs.readFileSync('/proc/self/statm', 'utf8').split(' ')[0])
      limit(pages * 4096 + size / 2)
      let told
      try {
        disk.alloc(size)
      } catch (error) {
        told = { name: error.name, code: error.code, cause: error.cause?.name }
      }
      limit('unlimited')
      const { length } = disk.alloc(size)
      await disk.close()
      console.log(JSON.stringify({ told, length }))
    `
    await withFile(async (made) => {
      const child = await runChild(script, { env: { TARGET: made.path }, silence: 20_000 })
      expect(child).toMatchObject({ stderr: '', code: 0 })
      const told = { name: 'BlockError', code: 'ENOMEM', cause: 'RangeError' }
      expect(JSON.parse(child.stdout)).toEqual({ told, length: 1 << 30 })
    })
  })

  // Nobody was told, and whoever came to the same range afterwards waited for ever.
  test('for zeros that are to be written: the call rejects, and its range is free again', async () => {
    const script = `
      import { open } from 'multiwrite'
      const { addon } = await import(${JSON.stringify(nativeModule)})
      const disk = await open(process.env.TARGET, { direct: false })
      // All numbers of the table are taken, so the next region needs a longer one.
      const kept = []
      const refuse = Float64Array.from(${JSON.stringify(numbers([{ on: 'memory', does: 'replace', times: forever }]))})
      addon().setFaults(refuse)
      try {
        for (;;) kept.push(disk.alloc(1 << 16))
      } catch {}
      const told = await disk.writeZeroes(1, 100).then(() => 'ok', ({ code, syscall }) => code + ' ' + syscall)
      addon().setFaults(new Float64Array(0))
      const later = await disk.writeZeroes(1, 100).then(() => 'ok', ({ code, syscall }) => code + ' ' + syscall)
      await disk.close()
      console.log(JSON.stringify({ told, later }))
    `
    await withFile(async (made) => {
      const env = { TARGET: made.path, MULTIWRITE_ADDON: faultyAddon }
      const child = await runChild(script, { env, silence: 10_000 })
      expect(child).toMatchObject({ stderr: '', code: 0 })
      expect(JSON.parse(child.stdout)).toEqual({ told: 'ENOMEM alloc', later: 'ok' })
      expect(made.readBack().subarray(0, 102)).toEqual(Buffer.from([0xee, ...new Array<number>(100).fill(0), 0xee]))
    })
  })
})

describe('the addon', () => {
  const root = new URL('../', import.meta.url)

  // All of them, or the loops above would pass over some.
  test('asks for memory in one way, which can be refused', () => {
    const native = new URL('native/', root)
    const files = fs.readdirSync(native).filter((name) => /\.(cc|h)$/.test(name))
    // The one that refuses, and what stands for the C++ library.
    const others = files.filter((name) => name !== 'faults.cc' && name !== 'freestanding.cc')
    expect(others.length).toBeGreaterThan(10)
    const found = others.flatMap((name) => {
      const code = fs.readFileSync(new URL(name, native), 'utf8').replace(/\/\/.*/g, '')
      const wrong = code.match(
        /\b(malloc|calloc|realloc|strdup|posix_memalign|aligned_alloc)\b|\bnew (?!\(std::nothrow\))|std::(vector|string|map|deque|function|thread|make_unique|make_shared)\b/g,
      )
      return (wrong ?? []).map((each) => `${name}: ${each}`)
    })
    expect(found).toEqual([])
  })

  test('that is released has nothing of the shim', () => {
    const names = ['setFaults', 'CountAllocations', 'MULTIWRITE_TEST_RING']
    const inside = (file: string | URL): string[] => names.filter((name) => fs.readFileSync(file).includes(name))
    expect(inside(faultyAddon)).toEqual(names)
    expect(inside(new URL('build/Release/multiwrite.node', root))).toEqual([])
  })
})
