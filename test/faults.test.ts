// What the kernel may answer, and the library must cope with: short results cut at every byte, nothing done, interruptions,
// errors once and for ever. The shim of the test build alters the answers of a kernel that has done all it was asked to; a
// kernel that really refuses is in faults-kernel.test.ts and faults-device.test.ts.

import { setTimeout as sleep } from 'node:timers/promises'
import { type BlockDevice, BlockError, type OpenOptions } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { everywhere } from './support/everywhere.ts'
import { forever, type Rule, setFaults, withFaults } from './support/faults.ts'
import { difference, Model, pattern } from './support/model.ts'
import { bufferedFile, directFile, type MadeTarget, withDisk, withTarget } from './support/targets.ts'

const long = process.env.MULTIWRITE_LONG !== undefined
const page = 4096
const size = 64 * page
const [EINTR, EIO, EAGAIN, EFBIG, ENOSPC] = [-4, -5, -11, -27, -28]

/** What a promise came to: its value, or its error. */
const outcome = (promise: Promise<unknown>): Promise<unknown> => promise.catch((error: unknown) => error)
const codeOf = (error: unknown): unknown => (error instanceof BlockError ? error.code : error)

everywhere([bufferedFile, directFile], (target, engine) => {
  const onDisk = (
    work: (disk: BlockDevice, made: MadeTarget) => Promise<void>,
    options: OpenOptions = {},
  ): Promise<void> =>
    withTarget(target, size, (made) => withDisk(made, { engine, ...options }, (disk) => work(disk, made)))

  // Two requests of several pieces that touch and one between them: a merged run of sixteen parts.
  const unit = target.direct ? page : 7
  const lengths = [3, 1, 5, 2, 4, 1].map((length) => length * unit)
  const total = 16 * unit
  const boundaries = lengths.map((_, at) => lengths.slice(0, at + 1).reduce((sum, length) => sum + length))

  /** Where to cut: at each byte; for whole blocks at each boundary, around it, and at each block. */
  const cuts = target.direct
    ? [...boundaries, ...Array.from({ length: 16 }, (_, at) => (at + 1) * unit)].flatMap((at) => [at - 1, at, at + 1])
    : Array.from({ length: total }, (_, at) => at + 1)
  const usable = [...new Set(cuts)].filter((cut) => cut >= (target.direct ? page : 1) && cut <= total)

  /** How often a run of `total` bytes is resumed if no answer says more than `cut`; direct I/O goes on at whole blocks. */
  const resumptions = (cut: number, alignment: number, times: number): number => {
    let done = 0
    let count = -1
    while (done < total) {
      count++
      let step = Math.min(count < times ? cut : total, total - done)
      if (done + step < total) step -= step % alignment
      done += step
    }
    return count
  }

  describe.each([
    ['once', 1],
    ['every time', forever],
  ] as const)('results cut short %s', (_, times) => {
    test.each(['aligned', 'plain'] as const)(
      'writes go on behind what was done, byte by byte: %s memory',
      async (kind) => {
        await onDisk(async (disk, made) => {
          const buffers = lengths.map((length) => (kind === 'aligned' ? disk.alloc(length) : Buffer.alloc(length)))
          const model = new Model(size)
          let expected = 0
          for (const cut of usable) {
            const offset = target.direct ? page : 5
            let place = offset
            for (const [at, buffer] of buffers.entries()) {
              buffer.set(pattern(cut * 7 + at, buffer.length))
              model.write(place, buffer)
              place += buffer.length
            }
            const [a, b, c, d, e, f] = buffers as [Buffer, Buffer, Buffer, Buffer, Buffer, Buffer]
            const answers: unknown[] = []
            const callback = (error: unknown): void => void answers.push(error)
            await withFaults([{ on: 'write', does: 'shorten', value: cut, times }], () =>
              disk.multiwrite([
                { offset: offset + (boundaries[2] as number), data: [d, e, f], callback },
                { offset, data: [a, b], callback },
                { offset: offset + (boundaries[1] as number), data: c, callback },
              ]),
            )
            expect(answers).toEqual([null, null, null])
            expect(difference(made.readBack(), model.bytes), `cut at ${cut}`).toBeNull()
            expected += resumptions(cut, disk.limits.alignment, times)
            expect(disk.stats.resubmitted, `cut at ${cut}`).toBe(expected)
          }
          expect(disk.stats.write.submissions).toBe(usable.length)
        })
      },
    )

    test.each(['aligned', 'plain'] as const)(
      'reads go on behind what was done, byte by byte: %s memory',
      async (kind) => {
        await onDisk(async (disk) => {
          const content = pattern(5, size)
          await disk.write(0, content)
          const buffers = lengths.map((length) => (kind === 'aligned' ? disk.alloc(length) : Buffer.alloc(length)))
          let expected = 0
          for (const cut of usable) {
            const offset = target.direct ? 3 * page : 100 + cut
            for (const buffer of buffers) buffer.fill(0)
            await withFaults([{ on: 'read', does: 'shorten', value: cut, times }], () => disk.read(offset, buffers))
            const wanted = content.subarray(offset, offset + total)
            expect(difference(Buffer.concat(buffers), wanted), `cut at ${cut}`).toBeNull()
            expected += resumptions(cut, disk.limits.alignment, times)
            expect(disk.stats.resubmitted, `cut at ${cut}`).toBe(expected)
          }
        })
      },
    )
  })

  if (target.direct) {
    test.each([
      ['once', 1],
      ['every time', forever],
    ] as const)('what begins and ends inside blocks is whole when results are cut short %s', async (_, times) => {
      await onDisk(async (disk, made) => {
        const { alignment } = disk.limits
        const model = new Model(size)
        for (let blocks = 1; blocks < 8; blocks++) {
          for (const more of [-1, 0, 1]) {
            const cut = Math.max(blocks * alignment + more, alignment)
            const [offset, length] = [alignment + 100 * blocks, 6 * alignment + 10 * blocks]
            const data = pattern(cut, length)
            model.write(offset, data)
            model.write(offset + length + 50, data)
            const into = Buffer.alloc(length + 200)
            await withFaults([{ on: ['write', 'read'], does: 'shorten', value: cut, times }], async () => {
              const requests = [offset, offset + length + 50].map((start) => ({ offset: start, data }))
              await disk.multiwrite(requests)
              await disk.read(offset - 100, into)
            })
            expect(difference(into, model.read(offset - 100, length + 200)), `read, cut at ${cut}`).toBeNull()
            expect(difference(made.readBack(), model.bytes), `cut at ${cut}`).toBeNull()
          }
        }
        expect(disk.stats.rmw).toBeGreaterThan(0)
        expect(disk.stats.resubmitted).toBeGreaterThan(0)
      })
    })
  }

  test('what was done before an error is not asked for again, and the error is told', async () => {
    await onDisk(async (disk) => {
      const rules: Rule[] = [
        { on: 'write', does: 'replace', value: EIO, after: 1 },
        { on: 'write', does: 'shorten', value: 3 * page },
      ]
      const error = await withFaults(rules, () => outcome(disk.write(0, pattern(1, 8 * page))))
      expect(error).toMatchObject({ code: 'EIO', offset: 0, length: 8 * page })
      expect(disk.stats.resubmitted).toBe(1)
    })
  })

  test('what a merged run has written before it was refused is credited to its requests', async () => {
    await onDisk(async (disk, made) => {
      const rules: Rule[] = [
        { on: 'write', does: 'replace', value: EIO, after: 1, times: forever },
        { on: 'write', does: 'shorten', value: 2 * page },
      ]
      const answers: unknown[] = []
      const result = await withFaults(rules, () =>
        disk.multiwrite(
          [3, 0, 2, 1].map((at) => ({
            offset: at * page,
            data: pattern(at, page),
            callback(error: unknown): void {
              answers[at] = codeOf(error)
            },
          })),
        ),
      )
      expect(disk.stats.write.submissions).toBe(1)
      expect(result).toEqual({ requests: 4, failed: 2 })
      expect(answers).toEqual([null, null, 'EIO', 'EIO'])
      expect(difference(made.readBack().subarray(page, 2 * page), pattern(1, page))).toBeNull()
    })
  })

  test('less than a block of direct I/O is written again or refused, and never a loop', async () => {
    await onDisk(async (disk, made) => {
      for (const cut of [1, 100, 511]) {
        const once = await withFaults([{ on: 'write', does: 'shorten', value: cut }], () =>
          outcome(disk.write(0, pattern(cut, 4 * page))),
        )
        expect([undefined, 'EIO']).toContain(codeOf(once))
        if (once === undefined)
          expect(difference(made.readBack().subarray(0, 4 * page), pattern(cut, 4 * page))).toBeNull()
        const always = await withFaults([{ on: 'write', does: 'shorten', value: cut, times: forever }], () =>
          outcome(disk.write(0, pattern(cut, 4 * page))),
        )
        expect(codeOf(always)).toBe(target.direct ? 'EIO' : undefined)
      }
    })
  })

  describe.each([
    ['once', 1],
    ['every time', forever],
  ] as const)('a kernel that does nothing and says so, %s', (_, times) => {
    test('is an error of the write, not a loop', async () => {
      await onDisk(async (disk) => {
        const rules: Rule[] = [{ on: 'write', does: 'replace', value: 0, times }]
        const error = await withFaults(rules, () => outcome(disk.write(page, pattern(1, page))))
        expect(error).toMatchObject({ name: 'BlockError', code: 'EIO', offset: page, length: page, engine })
        await disk.write(page, pattern(1, page))
      })
    })

    test('after a part was done is an error too', async () => {
      await onDisk(async (disk) => {
        const rules: Rule[] = [
          { on: 'write', does: 'replace', value: 0, after: 1, times },
          { on: 'write', does: 'shorten', value: page },
        ]
        expect(await withFaults(rules, () => outcome(disk.write(0, pattern(1, 4 * page))))).toMatchObject({
          code: 'EIO',
        })
      })
    })

    test('is an error of the read, not a loop', async () => {
      await onDisk(async (disk) => {
        const rules: Rule[] = [{ on: 'read', does: 'replace', value: 0, times }]
        const error = await withFaults(rules, () => outcome(disk.read(page, Buffer.alloc(page))))
        expect(error).toMatchObject({ name: 'BlockError', code: 'EIO', offset: page, length: page, engine })
        await disk.read(page, Buffer.alloc(page))
      })
    })
  })

  // A wait of a millisecond follows each EAGAIN with nothing else in flight.
  test.each([
    ['EINTR', EINTR, [1, 2, 50, 3000]],
    ['EAGAIN', EAGAIN, [1, 2, 50, long ? 3000 : 200]],
  ] as const)('%s never reaches the user, however often it comes', async (_, value, counts) => {
    await onDisk(async (disk, made) => {
      const model = new Model(size)
      for (const times of counts) {
        model.write(times % 2 === 0 ? 0 : page, pattern(times, page))
        model.write(10 * page, pattern(times + 1, 2 * page))
        await withFaults([{ on: ['write', 'read'], does: 'replace', value, times }], async () => {
          const written = disk.multiwrite([
            { offset: times % 2 === 0 ? 0 : page, data: pattern(times, page) },
            { offset: 10 * page, data: pattern(times + 1, 2 * page) },
          ])
          const into = Buffer.alloc(page)
          await Promise.all([written, disk.read(10 * page, into)])
          expect(difference(into, pattern(times + 1, 2 * page).subarray(0, page))).toBeNull()
        })
        expect(difference(made.readBack(), model.bytes)).toBeNull()
      }
      expect(disk.stats.resubmitted).toBe(counts.reduce<number>((sum, times) => sum + times, 0))
    })
  })

  test('while the kernel says EAGAIN, requests wait, JavaScript goes on, and in the end they are carried out', async () => {
    await onDisk(async (disk, made) => {
      const answers: unknown[] = []
      setFaults({ on: ['write', 'read'], does: 'replace', value: EAGAIN, times: forever })
      try {
        const done = disk.multiwrite(
          [0, 2, 4].map((at) => ({
            offset: at * page,
            data: pattern(at, page),
            callback: (error: unknown) => void answers.push(error),
          })),
        )
        const read = disk.read(2 * page, Buffer.alloc(page))
        await sleep(50)
        for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
        expect(answers).toEqual([])
        setFaults()
        await Promise.all([done, read])
        expect(answers).toEqual([null, null, null])
        expect(difference(made.readBack().subarray(2 * page, 3 * page), pattern(2, page))).toBeNull()
      } finally {
        setFaults()
      }
    })
  })

  describe.each([
    ['EIO', EIO],
    ['ENOSPC', ENOSPC],
    ['EFBIG', EFBIG],
  ] as const)('%s', (code, value) => {
    test('once is told to the request that it strikes, and to no other', async () => {
      await onDisk(
        async (disk, made) => {
          const answers: unknown[] = []
          // Apart from each other: what touches may be merged by the kernel, fail as one, and is then tried again alone.
          const places = [0, 2, 4, 8, 11]
          const requests = places.map((at, index) => ({
            offset: at * page,
            data: pattern(at, page),
            callback(error: unknown): void {
              answers[index] = codeOf(error)
            },
          }))
          const result = await withFaults([{ on: 'write', does: 'replace', value, after: 2 }], () =>
            disk.multiwrite(requests),
          )
          expect(result).toEqual({ requests: 5, failed: 1 })
          expect(answers.filter((answer) => answer === code)).toHaveLength(1)
          expect(answers.filter((answer) => answer === null)).toHaveLength(4)
          expect(disk.stats).toMatchObject({ isolated: 0, resubmitted: 0 })
          const content = made.readBack()
          for (const at of places) {
            expect(difference(content.subarray(at * page, (at + 1) * page), pattern(at, page))).toBeNull()
          }
        },
        { merge: { mode: 'off' } },
      )
    })

    test('once is nobody’s fault where the kernel merges neighbours: each is tried again, alone', async () => {
      await onDisk(
        async (disk, made) => {
          const answers: unknown[] = []
          const requests = [0, 1, 2, 3].map((at) => ({
            offset: at * page,
            data: pattern(at, page),
            callback(error: unknown): void {
              answers[at] = codeOf(error)
            },
          }))
          await withFaults([{ on: 'write', does: 'replace', value, after: 2 }], () => disk.multiwrite(requests))
          // Pages of a cache do not fail together, nor does what threads write one after another.
          const alone = !target.direct || engine === 'threads'
          expect(answers.filter((answer) => answer === code)).toHaveLength(alone ? 1 : 0)
          const content = made.readBack()
          for (const at of [0, 1, 2, 3]) {
            expect(difference(content.subarray(at * page, (at + 1) * page), pattern(at, page))).toBeNull()
          }
        },
        { merge: { mode: 'off' } },
      )
    })

    test('for ever is told to each request, of each kind, with its own range', async () => {
      await onDisk(async (disk) => {
        await withFaults([{ on: ['write', 'read'], does: 'replace', value, times: forever }], async () => {
          const answers: unknown[] = []
          const result = await disk.multiwrite(
            [0, 1, 2, 8, 9].map((at, index) => ({
              offset: at * page,
              data: pattern(at, page),
              callback(error: unknown): void {
                answers[index] = error
              },
            })),
          )
          expect(result).toEqual({ requests: 5, failed: 5 })
          for (const [index, at] of [0, 1, 2, 8, 9].entries()) {
            expect(answers[index]).toMatchObject({ code, offset: at * page, length: page, syscall: 'write', engine })
          }
          const [write, read] = await Promise.all([
            outcome(disk.write(20 * page, pattern(1, page))),
            outcome(disk.read(22 * page, Buffer.alloc(2 * page))),
          ])
          expect(write).toMatchObject({ code, syscall: 'write', offset: 20 * page, length: page })
          expect(read).toMatchObject({ code, syscall: 'read', offset: 22 * page, length: 2 * page })
        })
        await disk.write(0, pattern(1, page))
      })
    })
  })

  if (target.direct) {
    // What has to rewrite blocks holds its memory while it reads them. Once all memory was held like that by writes which stood
    // behind a read that needed some: nothing was in flight any more, and nobody ever went on.
    test('who has memory is not kept waiting by who needs some', async () => {
      const MiB = 1 << 20
      const options = { engine, queueDepth: 1024, merge: { maxBytes: MiB } }
      await withTarget(target, 36 * MiB, (made) =>
        withDisk(made, options, async (disk) => {
          const [large, small] = [pattern(1, 1_000_000), pattern(2, 100)]
          // As many as have memory at first: 31 of 1 MiB and 256 of 4 KiB.
          const rules: Rule[] = [
            { on: 'read', does: 'replace', value: EAGAIN, times: 287 },
            { on: 'read', does: 'hold', times: forever },
          ]
          await withFaults(rules, async () => {
            const done: Promise<unknown>[] = [disk.read(35 * MiB, Buffer.alloc(page))]
            for (let i = 0; i < 31; i++) done.push(disk.write(i * MiB + 17, large))
            for (let i = 0; i < 300; i++) done.push(disk.write(31 * MiB + i * 2 * page + 17, small))
            await Promise.all(done)
          })
          expect(disk.stats).toMatchObject({ rmw: 331, bounced: 332, resubmitted: 287 })
        }),
      )
    })
  }
})
