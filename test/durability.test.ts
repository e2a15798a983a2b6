// What `flush` and `fua` promise: after them the data is on stable storage, and a failure of theirs is never forgotten.
//
// The page cache and the device's own cache survive the death of a process, so durability cannot be shown by killing one. It
// is shown on a device that records what arrives: the record, replayed up to the flush that was acknowledged, is what a power
// cut at that moment may leave. Everything acknowledged must be in it.

import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { type BlockDevice, BlockError, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { runChild } from './support/child.ts'
import { descriptorsOf } from './support/descriptors.ts'
import { everywhere } from './support/everywhere.ts'
import { difference, pattern } from './support/model.ts'
import {
  flushFailingDisk,
  type Logged,
  loggedCount,
  noServedDisk,
  readLog,
  recordingDisk,
  type ServedDisk,
} from './support/served-disk.ts'
import { noStrace } from './support/strace.ts'
import {
  background,
  bufferedFile,
  directFile,
  type EngineName,
  engineNames,
  loop512,
  loop4096,
  patience,
  temporaryDirectory,
  withDisk,
  withTarget,
} from './support/targets.ts'

const long = process.env.MULTIWRITE_LONG !== undefined

async function failure(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => {
      throw new Error('resolved')
    },
    (error: unknown) => error,
  )
}

/** Numbers in [0, below) that depend on the seed alone. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

describe.skipIf(noServedDisk !== '')(
  `a device that fails one flush${noServedDisk && ` (${noServedDisk})`}`,
  { timeout: 60_000 },
  () => {
    const eio = { name: 'BlockError', code: 'EIO', syscall: 'fdatasync' }

    async function onFailing(
      work: (disk: BlockDevice, served: ServedDisk) => Promise<void>,
      engine: EngineName,
      direct: boolean,
    ): Promise<void> {
      const served = await flushFailingDisk(1 << 20)
      try {
        const disk = await open(served.path, { engine, direct })
        try {
          await work(disk, served)
        } finally {
          await disk.close().catch(() => undefined)
        }
      } finally {
        served.cleanup()
      }
    }

    const ways = [
      ['io_uring', true],
      ['io_uring', false],
      ['aio', true],
      ['threads', true],
      ['threads', false],
    ] as const

    describe.each(ways)('%s, direct %s', (engine, direct) => {
      test('tells every waiter, latches, lets plain writes go on, and forgets only with a new open', async () => {
        await onFailing(
          async (disk, { path }) => {
            await disk.write(4096, pattern(1, 4096))
            const waiters = await Promise.all([disk.flush(), disk.flush(), disk.flush()].map(failure))
            for (const error of waiters) {
              expect(error).toBeInstanceOf(BlockError)
              expect(error).toMatchObject({ ...eio, path })
            }
            // The device would answer the next one with success.
            const { flushes } = disk.stats
            expect(flushes).toBeLessThanOrEqual(2)
            await expect(disk.flush()).rejects.toMatchObject(eio)
            expect(disk.stats.flushes).toBe(flushes)

            await expect(disk.write(8192, pattern(2, 4096), { fua: true })).rejects.toMatchObject({ code: 'EIO' })
            const told: (string | undefined)[] = []
            const request = (offset: number, fua: boolean) => ({
              offset,
              data: pattern(3, 4096),
              fua,
              callback(error: Error | null): void {
                told.push((error as BlockError | null)?.code)
              },
            })
            const result = await disk.multiwrite([request(16_384, true), request(32_768, false)])
            expect(result).toEqual({ requests: 2, failed: 1 })
            expect(told.sort()).toEqual(['EIO', undefined])
            await expect(disk.writeZeroes(65_536, 4096, { fua: true })).rejects.toMatchObject({ code: 'EIO' })

            await disk.write(12_288, pattern(4, 4096))
            const into = Buffer.alloc(4096)
            await disk.read(12_288, into)
            expect(difference(into, pattern(4, 4096))).toBeNull()

            await expect(disk.close()).rejects.toMatchObject(eio)
            expect(descriptorsOf(path)).toBe(0)
            const again = await open(path, { engine, direct, exclusive: true })
            await again.flush()
            await again.write(0, pattern(5, 4096), { fua: true })
            await again.close()
          },
          engine,
          direct,
        )
      })

      test('fails the close that flushes, and releases the descriptor all the same', async () => {
        await onFailing(
          async (disk, { path }) => {
            await disk.write(0, pattern(1, 4096))
            const first = disk.close()
            expect(disk.close()).toBe(first)
            await expect(first).rejects.toMatchObject(eio)
            expect(descriptorsOf(path)).toBe(0)
            await (await open(path, { engine, direct, exclusive: true })).close()
          },
          engine,
          direct,
        )
      })

      test(`fails the write with fua that meets it${direct ? ', alone' : ', and latches'}`, async () => {
        await onFailing(
          async (disk) => {
            await disk.write(0, pattern(1, 4096))
            await expect(disk.write(8192, pattern(2, 4096), { fua: true })).rejects.toMatchObject({ code: 'EIO' })
            if (direct) await disk.flush()
            else await expect(disk.flush()).rejects.toMatchObject({ code: 'EIO' })
          },
          engine,
          direct,
        )
      })

      test('latches when it was made for writeZeroes with fua', async () => {
        await onFailing(
          async (disk) => {
            await disk.write(0, pattern(1, 4096))
            await expect(disk.writeZeroes(65_536, 8192, { fua: true })).rejects.toMatchObject({ code: 'EIO' })
            await expect(disk.flush()).rejects.toMatchObject({ code: 'EIO' })
          },
          engine,
          direct,
        )
      })
    })

    test('rejects a flush that was called while the failing one was under way, and one that waits for writes', async () => {
      await onFailing(
        async (disk) => {
          await disk.write(0, pattern(1, 4096))
          const first = failure(disk.flush())
          const write = disk.write(65_536, pattern(2, 65_536))
          const second = failure(disk.flush())
          expect(await first).toMatchObject(eio)
          expect(await second).toMatchObject(eio)
          await write
        },
        'io_uring',
        true,
      )
    })
  },
)

describe('a flush', () => {
  everywhere([bufferedFile, directFile, loop512], (target, engine) => {
    test('is shared by those who wait for the same writes', async () => {
      await withTarget(target, 1 << 20, (made) =>
        withDisk(made, { engine }, async (disk) => {
          const writes = Array.from({ length: 16 }, (_, at) => disk.write(at * 16_384, pattern(at, 4096)))
          await Promise.all([...Array.from({ length: 500 }, () => disk.flush()), ...writes])
          expect(disk.stats.flushes).toBe(1)
        }),
      )
    })

    test('that begins at once is shared by nobody who came later: they share the next', async () => {
      await withTarget(target, 1 << 20, (made) =>
        withDisk(made, { engine }, async (disk) => {
          await disk.write(0, pattern(1, 4096))
          await Promise.all(Array.from({ length: 500 }, () => disk.flush()))
          expect(disk.stats.flushes).toBe(2)
        }),
      )
    })

    test('does not wait for reads, and close waits for both', async () => {
      await withTarget(target, 1 << 20, (made) =>
        withDisk(made, { engine }, async (disk) => {
          await disk.write(0, pattern(1, 4096))
          let filled = false
          const into = Buffer.alloc(1 << 19)
          const read = disk.multiread([{ offset: 4096, into }]).then(() => {
            filled = into.every((byte) => byte === background)
          })
          const flushed = disk.flush()
          // Nothing of the read can have been heard yet.
          expect(disk.stats).toMatchObject({ flushes: 1, read: { submissions: 1 } })
          await disk.close()
          await Promise.all([read, flushed])
          expect(filled).toBe(true)
        }),
      )
    })

    test('is made far more seldom than it is asked for by many writers', async () => {
      const lanes = 64
      const rounds = 10
      await withTarget(target, 1 << 20, (made) =>
        withDisk(made, { engine }, async (disk) => {
          const lane = async (at: number): Promise<void> => {
            for (let round = 0; round < rounds; round++) {
              await disk.write(at * 4096, pattern(round, 4096))
              await disk.flush()
            }
          }
          await Promise.all(Array.from({ length: lanes }, (_, at) => lane(at)))
          expect(disk.stats.flushes).toBeLessThan((lanes * rounds) / 4)
        }),
      )
    })
  })

  test('is not refused to a read-only device, and costs nothing there', async () => {
    await withTarget(bufferedFile, 4096, (made) =>
      withDisk(made, { readOnly: true }, async (disk) => {
        await disk.flush()
        expect(disk.stats.flushes).toBe(0)
      }),
    )
  })

  test.skipIf(noStrace !== '')(
    `starts only when every write issued before it has ended${noStrace && ` (${noStrace})`}`,
    async () => {
      const phases = 30
      const writes = 8
      const made = bufferedFile.make(phases * writes * 4 * 4096)
      const directory = temporaryDirectory()
      try {
        const log = path.join(directory.path, 'log')
        const script = `
          import { open } from 'multiwrite'
          const disk = await open(process.env.TARGET, { engine: 'threads', merge: { mode: 'off' } })
          for (let phase = 0; phase < ${phases}; phase++) {
            const before = [], after = []
            const place = (at) => (phase * ${2 * writes} + at) * 8192
            for (let at = 0; at < ${writes}; at++) before.push(disk.write(place(at), Buffer.alloc(4096, at)))
            const flushed = disk.flush()
            for (let at = ${writes}; at < ${2 * writes}; at++) after.push(disk.write(place(at), Buffer.alloc(4096, at)))
            await flushed
            await Promise.all([...before, ...after])
          }
          console.log(JSON.stringify(disk.stats.flushes))
          await disk.close()`
        const calls = 'trace=pwrite64,pwritev,pwritev2,fdatasync'
        const child = await runChild(script, {
          env: { TARGET: made.path, UV_USE_IO_URING: '0' },
          wrapper: ['strace', '-f', '-qq', '-o', log, '-P', made.path, '-e', calls],
          silence: 20_000,
        })
        expect(child).toMatchObject({ code: 0, stdout: `${phases}\n` })
        const flushes = checkOrder(fs.readFileSync(log, 'utf8'), 2 * writes, writes)
        // The last one is that of close.
        expect(flushes).toBe(phases + 1)
      } finally {
        made.cleanup()
        directory.cleanup()
      }
    },
  )
})

/**
 * Checks that the n-th fdatasync of a log begins when the first `covered` of the n-th `perPhase` writes have ended.
 *
 * @returns how many fdatasyncs there were
 */
function checkOrder(log: string, perPhase: number, covered: number): number {
  const underWay = new Map<string, number>()
  const ended = new Set<number>()
  let flushes = 0
  for (const line of log.split('\n')) {
    const [, pid, rest] = /^(\d+)\s+(.*)$/.exec(line) ?? []
    if (pid === undefined || rest === undefined) continue
    if (rest.startsWith('fdatasync(')) {
      for (let at = 0; at < covered; at++) {
        const block = flushes * perPhase + at
        if (block < 30 * perPhase && !ended.has(block))
          throw new Error(`flush ${flushes} before write ${block}: ${line}`)
      }
      flushes++
    } else if (/^pwrite/.test(rest)) {
      const unfinished = rest.includes('<unfinished')
      // pwrite64(fd, data, 4096, offset), pwritev(fd, [vectors], 1, offset), pwritev2(..., offset, flags)
      const numbers = [...rest.replace(/\[.*\]|".*"(\.\.\.)?/, '').matchAll(/, (\d+)/g)].map((match) =>
        Number(match[1]),
      )
      const offset = numbers.find((number) => number >= 8192 && number % 8192 === 0) ?? 0
      if (unfinished) underWay.set(pid, offset / 8192)
      else ended.add(offset / 8192)
    } else if (/^<\.\.\. pwrite\w+ resumed/.test(rest)) {
      ended.add(underWay.get(pid)!)
      underWay.delete(pid)
    }
  }
  return flushes
}

describe.skipIf(noServedDisk !== '')(
  `a recorded device, replayed${noServedDisk && ` (${noServedDisk})`}`,
  { timeout: 600_000 },
  () => {
    const sectors = 2048
    const bytes = sectors * 512

    /** The content of a sector that write number `id` wrote. */
    function stamp(id: number, sector: number): Buffer {
      const content = Buffer.alloc(512)
      for (let at = 0; at < 512; at += 8) {
        content.writeUInt32LE(id, at)
        content.writeUInt32LE(sector ^ 0x5a5a5a5a, at + 4)
      }
      return content
    }

    interface Acknowledged {
      /** Requests that the device had recorded. */
      logged: number
      /** For each sector the number of the write that is on stable storage, or a later one. */
      floor: Uint32Array
    }

    interface Recorded {
      acknowledged: Acknowledged[]
      /** For each sector the numbers of the writes that made it zeros. */
      zeroed: number[][]
    }

    /**
     * Writes at random, and notes what is promised when.
     *
     * @param lanes how many calls are under way at once
     */
    async function load(disk: BlockDevice, log: string, lanes: number, rounds: number): Promise<Recorded> {
      const random = randomNumbers(42)
      const issued = new Uint32Array(sectors)
      const floor = new Uint32Array(sectors)
      const zeroed: number[][] = Array.from({ length: sectors }, () => [])
      const acknowledged: Acknowledged[] = []
      let id = 0
      const acknowledge = (stable: (readonly [number, number])[]): void => {
        for (const [sector, number] of stable) floor[sector] = Math.max(floor[sector]!, number)
        acknowledged.push({ logged: loggedCount(log), floor: floor.slice() })
      }
      const take = (): { offset: number; data: Buffer; stable: (readonly [number, number])[] } => {
        const count = 1 + random(16)
        const first = random(sectors - count)
        id++
        const data = Buffer.alloc(count * 512)
        const stable: (readonly [number, number])[] = []
        for (let at = 0; at < count; at++) {
          stamp(id, first + at).copy(data, at * 512)
          issued[first + at] = id
          stable.push([first + at, id])
        }
        return { offset: first * 512, data, stable }
      }
      const lane = async (): Promise<void> => {
        for (let round = 0; round < rounds; round++) {
          const dice = random(10)
          if (dice < 3) {
            const covered = [...issued.entries()]
            await disk.flush()
            acknowledge(covered)
          } else if (dice < 5) {
            const { offset, data, stable } = take()
            await disk.write(offset, data, { fua: true })
            acknowledge(stable)
          } else if (dice < 6 && lanes === 1) {
            // One at a time: the recorder takes its room for zeros in two steps, and others may come between them.
            const { offset, data, stable } = take()
            for (const [sector, number] of stable) zeroed[sector]!.push(number)
            const fua = random(2) === 1
            await disk.writeZeroes(offset, data.length, { fua })
            if (fua) acknowledge(stable)
          } else if (dice < 8) {
            const requests = Array.from({ length: 1 + random(8) }, () => {
              const { stable, ...request } = take()
              const fua = random(4) === 0
              const callback = (): void => {
                if (fua) acknowledge(stable)
              }
              return { ...request, fua, callback }
            })
            await disk.multiwrite(requests)
          } else {
            const { offset, data } = take()
            await disk.write(offset, data)
          }
        }
      }
      await Promise.all(Array.from({ length: lanes }, lane))
      return { acknowledged, zeroed }
    }

    function carryOut(image: Buffer, { offset, data }: Logged): void {
      data.copy(image, offset)
    }

    /** Finds a sector that holds less than was promised. */
    function missing(image: Buffer, { floor }: Acknowledged, zeroed: readonly number[][]): string | null {
      for (let sector = 0; sector < sectors; sector++) {
        const promised = floor[sector]!
        if (promised === 0) continue
        const id = image.readUInt32LE(sector * 512)
        const content = image.subarray(sector * 512, (sector + 1) * 512)
        if (content.every((byte) => byte === 0)) {
          if (zeroed[sector]!.some((number) => number >= promised)) continue
          return `sector ${sector} is zeros instead of write ${promised}`
        }
        if (content.every((byte) => byte === background)) return `sector ${sector} has not been written`
        if (difference(content, stamp(id, sector)) !== null) return `sector ${sector} is torn`
        if (id < promised) return `sector ${sector} is of write ${id}, but ${promised} is promised`
      }
      return null
    }

    const ways = [
      ['io_uring', 8, {}],
      ['io_uring', 1, {}],
      ['io_uring', 8, { direct: false }],
      ['io_uring', 8, { merge: { mode: 'off' } }],
      ['aio', 8, {}],
      ['threads', 8, {}],
      ['threads', 1, { direct: false }],
      ['threads', 8, { direct: false }],
    ] as const

    test.each(ways)('holds all that was acknowledged, with %s, %d at a time, %o', async (engine, lanes, options) => {
      const served = await recordingDisk(bytes)
      const random = randomNumbers(7)
      let recorded: Recorded
      let entries: Logged[]
      try {
        const disk = await open(served.path, { engine, ...options })
        recorded = await load(disk, served.log, lanes, (lanes === 1 ? 80 : 15) * Math.min(patience, 8))
        await disk.close()
        entries = readLog(served.log)
      } finally {
        served.cleanup()
      }
      const { acknowledged, zeroed } = recorded
      expect(acknowledged.length).toBeGreaterThan(20)
      expect(entries.some(({ discard }) => discard)).toBe(false)

      acknowledged.sort((a, b) => a.logged - b.logged)
      const image = Buffer.alloc(bytes, background)
      let done = 0
      for (const each of acknowledged) {
        // The device promises what arrived before a flush; what was acknowledged lies before the last one of then.
        let end = each.logged
        while (end > 0 && !entries[end - 1]!.flush) end--
        for (; done < end; done++) carryOut(image, entries[done]!)
        expect(missing(image, each, zeroed), `at entry ${end} of ${entries.length}`).toBeNull()
        // What came later may be there as well: up to some point, or some of it.
        const later = entries.slice(end, end + 1 + random(40))
        const prefix = Buffer.from(image)
        for (const entry of later) carryOut(prefix, entry)
        expect(missing(prefix, each, zeroed), `some way after entry ${end}`).toBeNull()
        const some = Buffer.from(image)
        for (const entry of later) if (random(2) === 1) carryOut(some, entry)
        expect(missing(some, each, zeroed), `with some of what came after entry ${end}`).toBeNull()
      }
    })
  },
)

describe.skipIf(!loop4096.available)(`a process killed in the middle (${loop4096.reason || 'loop device'})`, () => {
  const blocks = 1024
  const rounds = long ? 300 : 8
  const script = `
    import { open } from 'multiwrite'
    const { TARGET, ENGINE, ROUND } = process.env
    const disk = await open(TARGET, { engine: ENGINE })
    let turn = 0
    const block = () => {
      const at = Math.floor(Math.random() * ${blocks})
      const data = Buffer.alloc(4096)
      new Uint32Array(data.buffer, data.byteOffset, 1024).fill((Number(ROUND) << 20) + (++turn & 0xfffff))
      return { offset: at * 4096, data }
    }
    console.log('ready')
    const lane = async () => {
      for (;;) {
        const dice = Math.random()
        if (dice < 0.1) await disk.flush()
        else if (dice < 0.2) { const { offset, data } = block(); await disk.write(offset, data, { fua: true }) }
        else await disk.multiwrite(Array.from({ length: 1 + Math.floor(Math.random() * 32) }, block))
      }
    }
    await Promise.all(Array.from({ length: 8 }, lane))`

  function ready(child: ChildProcess): Promise<void> {
    return new Promise((resolve, reject) => {
      let said = ''
      child.stderr!.on('data', (text) => {
        said += text
      })
      child.stdout!.once('data', () => resolve())
      child.once('exit', () => reject(new Error(`the writer ended by itself: ${said}`)))
    })
  }

  test.each(engineNames)(
    '%s: leaves whole blocks, no holder, and a device that opens again',
    { timeout: long ? 1_800_000 : 60_000 },
    async (engine) => {
      const made = loop4096.make(blocks * 4096)
      const random = randomNumbers(99)
      try {
        const begin = Buffer.alloc(blocks * 4096)
        fs.writeFileSync(made.path, begin)
        for (let round = 1; round <= rounds; round++) {
          const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
            cwd: fileURLToPath(new URL('..', import.meta.url)),
            env: { ...process.env, TARGET: made.path, ENGINE: engine, ROUND: String(round) },
            stdio: ['ignore', 'pipe', 'pipe'],
          })
          const exited = new Promise<NodeJS.Signals | null>((resolve) => {
            child.once('exit', (_, signal) => resolve(signal))
          })
          await ready(child)
          await sleep(random(60))
          child.kill('SIGKILL')
          expect(await Promise.race([exited, sleep(20_000, 'still there')])).toBe('SIGKILL')

          // Exclusively, although the kernel may still be finishing for the dead.
          const disk = await open(made.path, { engine, exclusive: true })
          const content = disk.alloc(blocks * 4096)
          await disk.read(0, content)
          await disk.close()
          const words = new Uint32Array(content.buffer, content.byteOffset, content.length / 4)
          for (let block = 0; block < blocks; block++) {
            const piece = words.subarray(block * 1024, (block + 1) * 1024)
            expect(piece.every((word) => word === piece[0])).toBe(true)
            expect(piece[0]! >>> 20).toBeLessThanOrEqual(round)
          }
          // Some of what was written last is there.
          if (round === rounds) expect(words.some((word) => word !== 0)).toBe(true)
        }
      } finally {
        made.cleanup()
      }
      // Somebody who still had it open would keep it attached.
      const attached = execFileSync('losetup', ['--list', '--noheadings', '--output', 'NAME,BACK-FILE'], {
        encoding: 'utf8',
      })
      expect(attached.split('\n').filter((line) => line.includes(`multiwrite-test-${process.pid}-`))).toEqual([])
    },
  )
})

describe('the demonstration', () => {
  test('proves its image after a trace with five thousand flushes, and honours every one', {
    timeout: 600_000,
  }, async () => {
    const directory = temporaryDirectory(long ? undefined : '/dev/shm')
    const demo = fileURLToPath(new URL('../dist/cli/demo.js', import.meta.url))
    const trace = fileURLToPath(new URL('../bench/traces/sqlite-ext4.csv.gz', import.meta.url))
    try {
      const stdout = await new Promise<string>((resolve, reject) => {
        execFile(
          process.execPath,
          [demo, '--trace', trace, '--json'],
          { env: { ...process.env, TMPDIR: directory.path }, maxBuffer: 1 << 26 },
          (error, stdout, stderr) => (error === null ? resolve(stdout) : reject(new Error(`${stdout}\n${stderr}`))),
        )
      })
      expect(JSON.parse(stdout)).toMatchObject({})
    } finally {
      directory.cleanup()
    }
  })
})
