// What is promised of speed, as counts instead of times: how often the kernel is entered for a batch, how often JavaScript, and
// that no worker thread of io_uring takes part where a merged direct write stays within the limits.
//
// Each script runs in a process of its own, in which nothing else makes system calls, callbacks or threads.

import fs from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { runChild } from './support/child.ts'
import { noStrace } from './support/strace.ts'
import {
  bufferedFile,
  directFile,
  type EngineName,
  eachTarget,
  engines,
  loop512,
  loop4096,
  loopOnFile,
  type Target,
  temporaryDirectory,
  withTarget,
} from './support/targets.ts'

const size = 8 << 20

/**
 * Opens the target; `entered` counts how often the addon has entered JavaScript, each time by the async resource that it has
 * made by then. Those that are made later, of the same name, are the contexts of users' callbacks.
 */
const preamble = `
  import fs from 'node:fs'
  import path from 'node:path'
  import { createHook } from 'node:async_hooks'
  const { TARGET, ENGINE, DIRECT } = process.env
  const own = new Set()
  let entered = 0
  createHook({
    init: (id, type) => { if (type === 'multiwrite' && !opened) own.add(id) },
    before: (id) => { if (own.has(id)) entered++ },
  }).enable()
  let opened = false
  const { open } = await import('multiwrite')
  const disk = await open(TARGET, { engine: ENGINE, direct: DIRECT === 'true', queueDepth: 64 })
  opened = true
  const page = disk.alloc(4096)
  const adjacent = (count) => Array.from({ length: count }, (_, at) => ({ offset: (count - 1 - at) * 4096, data: page }))
  const scattered = (count) => Array.from({ length: count }, (_, at) => ({ offset: at * 8192, data: page }))
`

/** What a script prints with `console.log(JSON.stringify(...))`. */
async function run(target: Target, engine: EngineName, script: string): Promise<unknown> {
  return withTarget(target, size, async (made) => {
    const env = { TARGET: made.path, ENGINE: engine, DIRECT: String(target.direct), UV_USE_IO_URING: '0' }
    const child = await runChild(`${preamble}${script}; await disk.close()`, { env })
    expect(child.stderr).toBe('')
    expect(child.code).toBe(0)
    return JSON.parse(child.stdout)
  })
}

eachTarget([bufferedFile, directFile, loop512], (target, engine) => {
  test('the 64 callbacks of a merged batch are one entry into JavaScript', async () => {
    const found = await run(
      target,
      engine,
      `
        let called = 0
        const requests = adjacent(64).map((request) => ({ ...request, callback() { called++ } }))
        const before = entered
        await disk.multiwrite(requests)
        console.log(JSON.stringify({ called, entered: entered - before }))
      `,
    )
    expect(found).toEqual({ called: 64, entered: 1 })
  })
})

// The block layer counts a request as done after it has told its owner, so what has been counted is there to be reaped.
describe.each(engines.filter((engine) => engine !== 'threads'))('%s', (engine) => {
  test.skipIf(!loop512.available)(
    `32 submissions that have ended when the loop looks are one entry into JavaScript${loop512.available ? '' : ` (${loop512.reason})`}`,
    async () => {
      const found = await run(
        loop512,
        engine,
        `
          const stat = '/sys/block/' + path.basename(TARGET) + '/stat'
          const written = () => Number(fs.readFileSync(stat, 'utf8').trim().split(/\\s+/)[4])
          let called = 0
          const requests = scattered(32).map((request) => ({ ...request, callback() { called++ } }))
          const [before, writtenBefore] = [entered, written()]
          const done = disk.multiwrite(requests)
          while (written() < writtenBefore + 32);
          await done
          console.log(JSON.stringify({ called, submissions: disk.stats.write.submissions, entered: entered - before }))
        `,
      )
      expect(found).toEqual({ called: 32, submissions: 32, entered: 1 })
    },
  )
})

// A worker thread waits some seconds for more work before it ends, so none that took part can be missed.
describe.skipIf(!engines.includes('io_uring'))('io_uring: workers of the kernel', () => {
  const countWorkers = `
    const tasks = () => fs.readdirSync('/proc/self/task').map((id) => fs.readFileSync('/proc/self/task/' + id + '/comm', 'utf8'))
    const workers = () => tasks().filter((name) => name.startsWith('iou-wrk')).length
  `
  const direct = [directFile, loop512, loop4096, loopOnFile]
    .filter((target) => target.available)
    .map((target) => ({ target, name: target.name }))

  test.each(direct)('take no part in merged direct writes within the limits: $name', async ({ target }) => {
    const found = await run(
      target,
      'io_uring',
      `
        ${countWorkers}
        // The file is new: its pages must be out of the cache, and its blocks found once, before a write need not wait for that.
        const before = await open(TARGET, { engine: 'threads', direct: true, exclusive: false })
        await before.write(0, before.alloc(${size}))
        await before.close()
        for (const count of [1, 2, 64, 128, 256, 1024]) {
          await disk.multiwrite(adjacent(count))
          await Promise.all([0, 1, 2, 3].map((lane) => disk.multiwrite(
            adjacent(count / 4).map(({ offset, data }) => ({ offset: offset + lane * (${size} / 4), data })),
          )))
        }
        const large = disk.alloc(4 << 20)
        await disk.write(0, large)
        await disk.multiwrite(scattered(64))
        console.log(JSON.stringify({ workers: workers() }))
      `,
    )
    expect(found).toEqual({ workers: 0 })
  })

  test.skipIf(!loop512.available)('the count is to be trusted: a write beyond the limits takes one', async () => {
    const found = (await run(
      loop512,
      'io_uring',
      `
        ${countWorkers}
        const wide = await open(TARGET, { engine: ENGINE, exclusive: false, merge: { maxBytes: 4 << 20, maxSegments: 1024 } })
        await wide.write(0, wide.alloc(4 << 20))
        await wide.close()
        console.log(JSON.stringify({ workers: workers() }))
      `,
    )) as { workers: number }
    expect(found.workers).toBeGreaterThan(0)
  })
})

// Callbacks that each ask for one request, and callers that do when what they awaited is done: a call of the system for each
// would cost more than the requests.
describe.each(engines.filter((engine) => engine !== 'threads'))(
  `%s: from callbacks and after await${noStrace && ` (${noStrace})`}`,
  (engine) => {
    const next = '[{ offset: 4096 * (2 * ended++ + 1), data: page, callback: again }]'
    const fromCallbacks = `disk.multiwrite(requests.map((request) => ({ ...request, callback: () => disk.multiwrite(${next}) })))`
    const afterAwait = `Promise.all(requests.map((request) => disk.multiwrite([request]).then(() => disk.multiwrite(${next}))))`
    test.skipIf(noStrace !== '' || !loop512.available).each([
      ['the callbacks of one delivery ask for', fromCallbacks],
      ['callers ask for who have awaited what one delivery brought', afterAwait],
    ])('what %s is handed over together, while the device has work', async (_, writeTwice) => {
      const calls = await withTarget(loop512, size, async (made) => {
        const directory = temporaryDirectory()
        try {
          const log = path.join(directory.path, 'log')
          const script = `${preamble}
            const stat = '/sys/block/' + path.basename(TARGET) + '/stat'
            const written = () => Number(fs.readFileSync(stat, 'utf8').trim().split(/\\s+/)[4])
            let ended = 0
            const again = () => ended++
            const requests = scattered(32)
            const before = written()
            const done = ${writeTwice}
            // Nothing was delivered before all of them have ended.
            while (written() < before + 32);
            fs.existsSync('/the delivery begins')
            await done
            while (ended < 64) await new Promise(setImmediate)
            fs.existsSync('/the delivery ends')
            await disk.close()
          `
          const wrapper = [
            'strace',
            '-f',
            '-qq',
            '-o',
            log,
            '-e',
            'trace=io_submit,io_uring_enter,access,faccessat,faccessat2',
          ]
          const env = { TARGET: made.path, ENGINE: engine, DIRECT: String(loop512.direct), UV_USE_IO_URING: '0' }
          const child = await runChild(script, { env, wrapper })
          expect(child.stderr).toBe('')
          expect(child.code).toBe(0)
          const text = fs.readFileSync(log, 'utf8')
          const part = text.slice(text.indexOf('/the delivery begins'), text.indexOf('/the delivery ends'))
          return [...part.matchAll(/io_uring_enter\(\d+, ([1-9]\d*)|io_submit\(0x[0-9a-f]+, (\d+)/g)].map((match) =>
            Number(match[1] ?? match[2]),
          )
        } finally {
          directory.cleanup()
        }
      })
      expect(calls.reduce((sum, count) => sum + count, 0)).toBe(32)
      expect(calls.length).toBeLessThanOrEqual(16)
      // The first goes at once: the device has nothing to do.
      expect(calls[0]).toBe(1)
    })
  },
)

// Those of io_uring are counted in kernel.test.ts.
const others = engines.filter((engine) => engine !== 'io_uring')
describe.each(others)(`%s: system calls${noStrace && ` (${noStrace})`}`, (engine) => {
  /** The calls that hand writes to the kernel while a batch is written: how many entries each has handed over. */
  const submitted = async (target: Target, batch: string): Promise<number[]> =>
    withTarget(target, size, async (made) => {
      const directory = temporaryDirectory()
      try {
        const log = path.join(directory.path, 'log')
        const script = `${preamble}
          const requests = ${batch}
          fs.existsSync('/the batch begins')
          await disk.multiwrite(requests)
          fs.existsSync('/the batch ends')
          await disk.close()
        `
        const calls = 'io_submit,pwrite64,pwritev,pwritev2,access,faccessat,faccessat2,stat,statx,newfstatat'
        const wrapper = ['strace', '-f', '-qq', '-o', log, '-e', `trace=${calls}`]
        const env = { TARGET: made.path, ENGINE: engine, DIRECT: String(target.direct), UV_USE_IO_URING: '0' }
        const child = await runChild(script, { env, wrapper })
        expect(child.stderr).toBe('')
        expect(child.code).toBe(0)
        const text = fs.readFileSync(log, 'utf8')
        const [begin, end] = [text.indexOf('/the batch begins'), text.indexOf('/the batch ends')]
        expect(begin).toBeGreaterThan(0)
        expect(end).toBeGreaterThan(begin)
        const entries: number[] = []
        for (const line of text.slice(begin, end).split('\n')) {
          const many = /io_submit\(0x[0-9a-f]+, (\d+)/.exec(line)
          if (many !== null) entries.push(Number(many[1]))
          else if (/\bpwrite(?:64|v|v2)\(/.test(line)) entries.push(1)
        }
        return entries.filter((count) => count > 0)
      } finally {
        directory.cleanup()
      }
    })

  const cases = [bufferedFile, directFile, loop512]
    .filter((target) => target.available && (engine !== 'aio' || target.direct))
    .map((target) => ({ target, name: target.name }))

  describe.skipIf(noStrace !== '').each(cases)('$name', ({ target }) => {
    test('64 adjacent requests are handed over by one call, as one entry', async () => {
      expect(await submitted(target, 'adjacent(64)')).toEqual([1])
    })

    test('32 scattered requests: calls of eight entries, or of one each where threads write', async () => {
      const found = await submitted(target, 'scattered(32)')
      expect(found).toEqual(engine === 'threads' ? new Array(32).fill(1) : [8, 8, 8, 8])
    })
  })
})
