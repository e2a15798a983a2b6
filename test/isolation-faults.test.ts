// Merging is invisible in failure, also where no device fails on command: runs that fail once and not again, results that are
// short before they fail, a device that is gone, aborts, later calls and memory that is taken away meanwhile. The shim of the
// test build does the first, strace the last.

import fs from 'node:fs'
import path from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { type BlockDevice, BlockError, type OpenOptions, open, type WriteRequest } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { Answers, needs } from './support/answers.ts'
import { runChild } from './support/child.ts'
import { everywhere } from './support/everywhere.ts'
import { forever, type Rule, withFaults } from './support/faults.ts'
import { difference, pattern } from './support/model.ts'
import { noStrace } from './support/strace.ts'
import {
  background,
  bufferedFile,
  directFile,
  loop512,
  type MadeTarget,
  temporaryDirectory,
  withDisk,
  withTarget,
} from './support/targets.ts'

const page = 4096
const [EIO, EAGAIN, ENXIO, ENODEV, ENOMEDIUM, ENOSPC] = [-5, -11, -6, -19, -123, -28]

everywhere([bufferedFile, directFile, loop512], (target, engine) => {
  const size = 64 * page
  const onDisk = (
    work: (disk: BlockDevice, made: MadeTarget) => Promise<void>,
    options: OpenOptions = {},
  ): Promise<void> =>
    withTarget(target, size, (made) => withDisk(made, { engine, ...options }, (disk) => work(disk, made)))

  /** `count` pages that touch, from page `first` on. */
  const pages = (count: number, answers: Answers, first = 0): (WriteRequest & { data: Uint8Array })[] =>
    Array.from({ length: count }, (_, at) => ({
      offset: (first + at) * page,
      data: pattern(first + at, page),
      callback: answers.callback(at),
    }))
  const content = (...parts: [at: number, bytes: Uint8Array][]): Buffer => {
    const bytes = Buffer.alloc(size, background)
    for (const [at, part] of parts) bytes.set(part, at)
    return bytes
  }
  const all = (requests: readonly (WriteRequest & { data: Uint8Array })[]): Buffer =>
    content(...requests.map(({ offset, data }): [number, Uint8Array] => [Number(offset), data]))
  const fails = (value: number, after = 0, times = 1): Rule => ({ on: 'write', does: 'replace', value, after, times })

  test('a run that fails once, and each of its requests alone not: nobody hears of it', async () => {
    await onDisk(async (disk, made) => {
      const answers = new Answers()
      const requests = pages(8, answers)
      await withFaults([fails(EIO)], () => disk.multiwrite(requests))
      expect(answers.codes(8)).toEqual(requests.map(() => null))
      expect(answers.order).toEqual(requests.map((_, at) => at))
      expect(difference(made.readBack(), all(requests))).toBeNull()
      expect(disk.stats).toMatchObject({ isolated: 8, resubmitted: 0, write: { submissions: 1, bytes: 8 * page } })
    })
  })

  test('each request hears its own error', async () => {
    await onDisk(async (disk) => {
      const answers = new Answers()
      // From the last one to the first.
      await withFaults([fails(EIO), fails(ENOSPC, 1), fails(EIO, 3)], () => disk.multiwrite(pages(4, answers)))
      expect(answers.codes(4)).toEqual([null, 'EIO', null, 'ENOSPC'])
    })
  })

  test('a read that fails once is carried out again, each request by itself', async () => {
    await onDisk(async (disk) => {
      const bytes = pattern(3, size)
      await disk.write(0, bytes)
      const answers = new Answers()
      const requests = [2, 0, 1, 3].map((at, index) => ({
        // Overlapping ones read what they share once each.
        offset: at * page,
        into: index % 2 === 0 ? disk.alloc(2 * page) : Buffer.alloc(2 * page),
        callback: answers.callback(index),
      }))
      await withFaults([{ on: 'read', does: 'replace', value: EIO }], () => disk.multiread(requests))
      expect(answers.codes(4)).toEqual([null, null, null, null])
      for (const { offset, into } of requests) {
        expect(difference(into, bytes.subarray(offset, offset + 2 * page))).toBeNull()
      }
      expect(disk.stats).toMatchObject({ isolated: 4, read: { submissions: 1 } })
    })
  })

  test.each([
    ['ENODEV', ENODEV],
    ['ENXIO', ENXIO],
    ['ENOMEDIUM', ENOMEDIUM],
  ])('%s: the device is gone, all fail at once and nothing is tried again', async (_, value) => {
    await onDisk(async (disk) => {
      const answers = new Answers()
      // Whatever was asked for after the first would succeed.
      await withFaults([fails(value)], () => disk.multiwrite(pages(6, answers)))
      const errnos = (): unknown[] => answers.of.map((error) => (error instanceof BlockError ? error.errno : error))
      expect(errnos()).toEqual(Array.from({ length: 6 }, () => value))
      expect(disk.stats.isolated).toBe(0)
      const into = Array.from({ length: 3 }, (_, at) => ({
        offset: at * page,
        into: Buffer.alloc(page),
        callback: answers.callback(6 + at),
      }))
      await withFaults([{ on: 'read', does: 'replace', value }], () => disk.multiread(into))
      expect(errnos().slice(6)).toEqual([value, value, value])
      expect(disk.stats.isolated).toBe(0)
    })
  })

  test('while requests are carried out again, EAGAIN and short results never reach the user', async () => {
    await onDisk(async (disk, made) => {
      const answers = new Answers()
      const requests = pages(5, answers).map((request, at) => ({
        ...request,
        offset: at * 2 * page,
        data: pattern(at, 2 * page),
      }))
      const rules: Rule[] = [
        fails(EIO),
        fails(EAGAIN, 1),
        { on: 'write', does: 'shorten', value: page, after: 3 },
        fails(EAGAIN, 5, 3),
      ]
      await withFaults(rules, () => disk.multiwrite(requests))
      expect(answers.codes(5)).toEqual([null, null, null, null, null])
      expect(disk.stats).toMatchObject({ isolated: 5, resubmitted: 5 })
      expect(difference(made.readBack(), all(requests))).toBeNull()
    })
  })

  test('what overlaps and is asked for meanwhile waits until all is done, and then wins', async () => {
    for (const ordered of [true, false]) {
      await onDisk(
        async (disk, made) => {
          const answers = new Answers()
          const requests = pages(6, answers)
          const later = pattern(99, 2 * page)
          const into = Buffer.alloc(3 * page)
          await withFaults([fails(EIO), { on: 'write', does: 'hold', after: 1, times: forever }], async () => {
            const batch = disk.multiwrite(requests)
            while (disk.stats.isolated === 0) await turn()
            expect(answers.of).toHaveLength(0)
            const write = disk.write(2 * page, later)
            const read = disk.read(page, into)
            await write
            await Promise.all([batch, read])
          })
          expect(answers.codes(6)).toEqual(requests.map(() => null))
          const expected = all(requests)
          expected.set(later, 2 * page)
          expect(difference(made.readBack(), expected), `ordered: ${ordered}`).toBeNull()
          if (ordered) expect(difference(into, expected.subarray(page, 4 * page))).toBeNull()
        },
        { ordered },
      )
    }
  })

  test('so do zeroes, without order of calls, too', async () => {
    for (const ordered of [true, false]) {
      await onDisk(
        async (disk, made) => {
          const answers = new Answers()
          const requests = pages(6, answers)
          let told = -1
          await withFaults([fails(EIO), { on: 'write', does: 'hold', after: 1, times: forever }], async () => {
            const batch = disk.multiwrite(requests)
            while (disk.stats.isolated === 0) await turn()
            const zeroes = disk.writeZeroes(page, 2 * page).then(() => {
              told = answers.of.length
            })
            await Promise.all([batch, zeroes])
          })
          expect(told, `ordered: ${ordered}`).toBe(6)
          const expected = all(requests)
          expected.fill(0, page, 3 * page)
          expect(difference(made.readBack(), expected), `ordered: ${ordered}`).toBeNull()
        },
        { ordered },
      )
    }
  })

  test('what does not overlap is not held up', async () => {
    await onDisk(async (disk) => {
      const answers = new Answers()
      const events: string[] = []
      await withFaults([fails(EIO), { on: 'write', does: 'hold', after: 1, times: 1 }], async () => {
        const batch = disk.multiwrite(pages(6, answers)).then(() => events.push('batch'))
        while (disk.stats.isolated === 0) await turn()
        await disk.read(20 * page, Buffer.alloc(page)).then(() => events.push('read'))
        await batch
      })
      expect(events).toEqual(['read', 'batch'])
    })
  })

  test('another submission of the same batch is answered without waiting for it', async () => {
    await onDisk(async (disk) => {
      const answers = new Answers()
      const far = pages(2, answers, 40).map((request, at) => ({ ...request, callback: answers.callback(4 + at) }))
      // Which of the two runs ends first, and fails, is up to the threads.
      await withFaults([fails(EIO), { on: 'write', does: 'hold', after: 2, times: forever }], () =>
        disk.multiwrite([...pages(4, answers), ...far]),
      )
      expect(answers.codes(6)).toEqual(Array.from({ length: 6 }, () => null))
      expect([2, 4]).toContain(disk.stats.isolated)
      const first = disk.stats.isolated === 4 ? [4, 5] : [0, 1, 2, 3]
      expect(answers.order.slice(0, first.length)).toEqual(first)
    })
  })

  test('an abort comes too late for it: every request has its true outcome', async () => {
    await onDisk(async (disk, made) => {
      const answers = new Answers()
      const requests = pages(6, answers)
      const controller = new AbortController()
      const rules: Rule[] = [fails(EIO), fails(EIO, 3), { on: 'write', does: 'hold', after: 1, times: 1 }]
      const result = await withFaults(rules, async () => {
        const batch = disk.multiwrite(requests, { signal: controller.signal })
        while (disk.stats.isolated === 0) await turn()
        controller.abort(new Error('too late'))
        return batch
      })
      expect(result).toEqual({ requests: 6, failed: 1 })
      expect(answers.codes(6)).toEqual([null, null, null, 'EIO', null, null])
      expect(disk.stats.isolated).toBe(6)
      const found = made.readBack()
      const expected = all(requests)
      expected.set(found.subarray(3 * page, 4 * page), 3 * page)
      expect(difference(found, expected)).toBeNull()
    })
  })

  test('an abort withdraws what waits behind it', async () => {
    await onDisk(async (disk, made) => {
      const answers = new Answers()
      const requests = pages(3, answers)
      const controller = new AbortController()
      const { signal } = controller
      await withFaults([fails(EIO), { on: 'write', does: 'hold', after: 1, times: 1 }], async () => {
        const batch = disk.multiwrite(requests, { signal })
        while (disk.stats.isolated === 0) await turn()
        const behind = disk.write(page, pattern(50, page), { signal }).catch((error: unknown) => error)
        await turn()
        controller.abort()
        await expect(behind).resolves.toMatchObject({ code: 'ABORT_ERR' })
        await batch
      })
      expect(answers.codes(3)).toEqual([null, null, null])
      expect(difference(made.readBack(), all(requests))).toBeNull()
    })
  })

  test.each([
    ['while the kernel has it', 3],
    ['before its turn', 0],
  ])('memory that is taken away %s fails its owner only', async (_, taken) => {
    await onDisk(async (disk, made) => {
      const answers = new Answers()
      // From the last to the first.
      const requests = pages(4, answers)
      await withFaults([fails(EIO), { on: 'write', does: 'hold', after: 1, times: 1 }], async () => {
        const batch = disk.multiwrite(requests)
        while (disk.stats.isolated === 0) await turn()
        const gone = requests[taken]!.data.buffer as ArrayBuffer
        structuredClone(gone, { transfer: [gone] })
        await batch
      })
      const codes = answers.codes(4)
      // A copy is as good as the memory itself.
      const wasCopied = target.direct && taken === 3
      expect(codes[taken]).toBe(wasCopied ? null : 'EFAULT')
      expect(codes.filter((__, at) => at !== taken)).toEqual([null, null, null])
      const found = made.readBack()
      for (const at of [0, 1, 2, 3].filter((one) => one !== taken)) {
        expect(difference(found.subarray(at * page, (at + 1) * page), pattern(at, page))).toBeNull()
      }
    })
  })

  test('close and flush wait for it', async () => {
    await onDisk(async (disk) => {
      const events: string[] = []
      const requests = pages(4, new Answers()).map((request) => ({
        ...request,
        callback: () => void events.push('answer'),
      }))
      await withFaults([fails(EIO), { on: 'write', does: 'hold', after: 1, times: forever }], async () => {
        void disk.multiwrite(requests)
        while (disk.stats.isolated === 0) await turn()
        const flushed = disk.flush().then(() => events.push('flush'))
        await disk.close()
        await flushed
      })
      expect(events).toEqual(['answer', 'answer', 'answer', 'answer', 'flush'])
    })
  })

  test('hidden ones succeed without I/O, also of a run that failed by chance', async () => {
    await onDisk(async (disk, made) => {
      const answers = new Answers()
      const requests = [
        { offset: page, data: pattern(0, page), callback: answers.callback(0) },
        { offset: 0, data: pattern(1, 2 * page), callback: answers.callback(1) },
        { offset: 0, data: pattern(2, 4 * page), callback: answers.callback(2) },
      ]
      // The run, and then the one that hides the others; were more written, it would fail.
      await withFaults([fails(EIO), fails(EIO, 2, forever)], () => disk.multiwrite(requests))
      expect(answers.codes(3)).toEqual([null, null, null])
      expect(disk.stats.isolated).toBe(3)
      expect(difference(made.readBack(), content([0, pattern(2, 4 * page)]))).toBeNull()
    })
  })

  describe('what was written before the failure is credited', () => {
    // Six pages; the first result says less, the rest of the run fails.
    const short = (done: number): Rule[] => [{ on: 'write', does: 'shorten', value: done }, fails(EIO, 1)]

    test.each([1, 2, 3, 5])('%i of 6 pages: their requests succeed, the others are carried out', async (done) => {
      await onDisk(async (disk, made) => {
        const answers = new Answers()
        const requests = pages(6, answers)
        // Were a credited one written again, it would fail.
        const rules = [...short(done * page), fails(ENOSPC, 2 + 6 - done, forever)]
        await withFaults(rules, () => disk.multiwrite(requests))
        expect(answers.codes(6)).toEqual(requests.map(() => null))
        expect(disk.stats).toMatchObject({ isolated: 6, resubmitted: 1 })
        expect(difference(made.readBack(), all(requests))).toBeNull()
      })
    })

    test('a request that is half written is carried out from there', async () => {
      await onDisk(async (disk, made) => {
        const answers = new Answers()
        const requests = [
          { offset: 0, data: pattern(0, 2 * page), callback: answers.callback(0) },
          { offset: 2 * page, data: pattern(1, 2 * page), callback: answers.callback(1) },
        ]
        await withFaults(short(page), () => disk.multiwrite(requests))
        expect(answers.codes(2)).toEqual([null, null])
        expect(difference(made.readBack(), all(requests))).toBeNull()
      })
    })

    test('a request whose rest is refused fails, although much of it is written', async () => {
      await onDisk(async (disk) => {
        const answers = new Answers()
        const requests = [
          { offset: 0, data: pattern(0, 4 * page), callback: answers.callback(0) },
          { offset: 4 * page, data: pattern(1, page), callback: answers.callback(1) },
        ]
        // From the last to the first: the second request succeeds.
        await withFaults([...short(3 * page), fails(EIO, 3)], () => disk.multiwrite(requests))
        expect(answers.codes(2)).toEqual(['EIO', null])
      })
    })

    test('an earlier request that was hidden by what is written needs nothing more', async () => {
      await onDisk(async (disk, made) => {
        const answers = new Answers()
        const requests = [
          { offset: 0, data: pattern(0, page), callback: answers.callback(0) },
          { offset: 0, data: pattern(1, 2 * page), callback: answers.callback(1) },
          { offset: 2 * page, data: pattern(2, page), callback: answers.callback(2) },
        ]
        await withFaults([...short(2 * page), fails(EIO, 3, forever)], () => disk.multiwrite(requests))
        expect(answers.codes(3)).toEqual([null, null, null])
        expect(difference(made.readBack(), all(requests))).toBeNull()
      })
    })
  })

  describe('with FUA', () => {
    const fua = (requests: WriteRequest[]): WriteRequest[] => requests.map((one) => ({ ...one, fua: true }))

    /** A latched device cannot be closed without an error. */
    const onLatching = (work: (disk: BlockDevice, made: MadeTarget) => Promise<void>): Promise<void> =>
      withTarget(target, size, async (made) => {
        const disk = await open(made.path, { ...made.options, engine })
        try {
          await work(disk, made)
        } finally {
          await disk.close().catch(() => undefined)
        }
      })

    /** From now on nothing is promised to be stable; plain writes go on. */
    async function expectLatched(disk: BlockDevice): Promise<void> {
      await expect(disk.flush()).rejects.toMatchObject({ code: 'EIO' })
      await expect(disk.write(0, pattern(1, page), { fua: true })).rejects.toMatchObject({ code: 'EIO' })
      await disk.write(0, pattern(1, page))
      await expect(disk.close()).rejects.toMatchObject({ code: 'EIO' })
    }

    test('a merged run of FUA requests is carried out again with FUA, and fails its owner only', async () => {
      await onLatching(async (disk, made) => {
        const answers = new Answers()
        const requests = pages(4, answers)
        await withFaults([fails(EIO), fails(EIO, 2)], () => disk.multiwrite(fua(requests)))
        const codes = answers.codes(4)
        expect(codes[2]).toBe('EIO')
        expect(disk.stats.isolated).toBe(4)
        // Behind a page cache nobody can tell whose page was lost: all that ask for stable storage hear of it.
        expect(codes.filter((_, at) => at !== 2)).toEqual(target.direct ? [null, null, null] : ['EIO', 'EIO', 'EIO'])
        const found = made.readBack()
        const expected = all(requests)
        expected.set(found.subarray(2 * page, 3 * page), 2 * page)
        expect(difference(found, expected)).toBeNull()
        if (!target.direct) await expectLatched(disk)
      })
    })

    test('a failed FUA run latches a buffered target, even if its requests then succeed one by one', async () => {
      await onLatching(async (disk) => {
        const answers = new Answers()
        await withFaults([fails(EIO)], () => disk.multiwrite(fua(pages(4, answers))))
        if (target.direct) {
          expect(answers.codes(4)).toEqual([null, null, null, null])
          await disk.flush()
        } else {
          // The kernel has told of a lost page, once.
          expect(answers.codes(4)).toEqual(['EIO', 'EIO', 'EIO', 'EIO'])
          await expectLatched(disk)
        }
      })
    })
  })
})

// ---------------------------------------------------------------------------------------------------------------------
// System calls that are watched or held up

describe(`seen from the kernel${needs(noStrace)}`, () => {
  const library = JSON.stringify(new URL('../dist/native.js', import.meta.url).href)

  test.skipIf(noStrace !== '')(
    'a range goes out with FUA again if any request that covers it asked for it, also one that is hidden',
    async () => {
      const directory = temporaryDirectory()
      try {
        const file = path.join(directory.path, 'image')
        const log = path.join(directory.path, 'log')
        fs.writeFileSync(file, Buffer.alloc(8 * page, background))
        const script = `
          import { open } from 'multiwrite'
          import { addon } from ${library}
          const disk = await open(${JSON.stringify(file)}, { engine: 'threads' })
          // The first write fails; the shim counts answers, so its requests go out again one by one.
          addon().setFaults(Float64Array.of(2, 0, 1, 1, -5))
          const data = (byte) => Buffer.alloc(4096, byte)
          await disk.multiwrite([
            { offset: 0, data: data(1), fua: true, callback() {} },
            { offset: 0, data: data(2), callback() {} },
            { offset: 4096, data: data(3), fua: true, callback() {} },
          ])
          addon().setFaults(new Float64Array(0))
          await disk.close().catch(() => {})
          console.log('done')`
        const calls = 'trace=pwrite64,pwritev,pwritev2'
        const wrapper = ['strace', '-f', '--seccomp-bpf', '-qq', '-o', log, '-e', calls, '-P', file]
        const child = await runChild(script, { wrapper, silence: 20_000 })
        expect(child.stderr).toBe('')
        expect(child.stdout).toBe('done\n')
        const writes = fs.readFileSync(log, 'utf8').trim().split('\n')
        // The run, and its two visible requests.
        expect(writes).toHaveLength(3)
        for (const write of writes) expect(write).toContain('RWF_DSYNC')
      } finally {
        directory.cleanup()
      }
    },
  )

  test.skipIf(noStrace !== '').each([
    ['the first', 0],
    ['the middle', 1],
    ['the last', 2],
  ] as const)(
    'memory that is taken away and unmapped while the kernel works: only its owner fails, %s of three',
    async (_, taken) => {
      const directory = temporaryDirectory()
      try {
        const file = path.join(directory.path, 'image')
        const piece = 4 << 20
        fs.writeFileSync(file, '')
        fs.truncateSync(file, 3 * piece)
        const script = `
          import { open } from 'multiwrite'
          const disk = await open(${JSON.stringify(file)}, { engine: 'threads', merge: { maxBytes: ${4 * piece} } })
          const answers = []
          const memory = [1, 2, 3].map((byte) => new Uint8Array(${piece}).fill(byte))
          const batch = disk.multiwrite(memory.map((data, at) => ({
            offset: at * ${piece},
            data,
            callback(error) { answers[at] = error === null ? null : [error.code, error.offset, error.length] },
          })))
          const gone = memory[${taken}].buffer
          structuredClone(gone, { transfer: [gone] })
          for (let round = 0; round < 3; round++) gc()
          const result = await batch
          const { isolated, write } = disk.stats
          await disk.close()
          console.log(JSON.stringify({ answers, result, submitted: write.submissions }))`
        // Long enough for the memory to be gone before the kernel looks at it.
        const delay = ['-e', 'trace=pwritev', '-e', 'inject=pwritev:delay_enter=1500000:when=1']
        const log = path.join(directory.path, 'log')
        const wrapper = ['strace', '-f', '-qq', '-o', log, ...delay]
        const env = { NODE_OPTIONS: '--expose-gc' }
        const child = await runChild(script, { env, wrapper, silence: 30_000 })
        expect(child.stderr).toBe('')
        const { answers, result } = JSON.parse(child.stdout) as { answers: unknown[]; result: unknown }
        expect(answers).toEqual([0, 1, 2].map((at) => (at === taken ? ['EFAULT', taken * piece, piece] : null)))
        expect(result).toEqual({ requests: 3, failed: 1 })
        const found = fs.readFileSync(file)
        for (const at of [0, 1, 2].filter((one) => one !== taken)) {
          const part = found.subarray(at * piece, (at + 1) * piece)
          expect(difference(part, Buffer.alloc(piece, at + 1)), `request ${at}`).toBeNull()
        }
        // It really was gone: the kernel wrote what stands before it, or nothing.
        const answered = /= (-1 EFAULT|\d+).*\(DELAYED\)/.exec(fs.readFileSync(log, 'utf8'))
        expect(answered?.[1]).toBe(taken === 0 ? '-1 EFAULT' : String(taken * piece))
      } finally {
        directory.cleanup()
      }
    },
  )
})
