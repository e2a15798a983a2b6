// Flushes and durable writes that fail: a page cache tells of what it has lost once, to whoever asks first, so from then on
// nothing may be called durable until the device is opened again.

import { BlockError, open } from 'multiwrite'
import { expect, test } from 'vitest'
import { everywhere } from './support/everywhere.ts'
import { forever, withFaults } from './support/faults.ts'
import { difference, pattern } from './support/model.ts'
import { bufferedFile, directFile, withDisk, withTarget } from './support/targets.ts'

const page = 4096
const size = 64 * page
const [EINTR, EIO, EAGAIN] = [-4, -5, -11]

/** What a promise came to: its value, or its error. */
const outcome = (promise: Promise<unknown>): Promise<unknown> => promise.catch((error: unknown) => error)
const codeOf = (error: unknown): unknown => (error instanceof BlockError ? error.code : error)

everywhere([bufferedFile, directFile], (target, engine) => {
  test.each([
    ['EINTR', EINTR],
    ['EAGAIN', EAGAIN],
  ] as const)('%s of a flush never reaches the user', async (_, value) => {
    await withTarget(target, size, (made) =>
      withDisk(made, { engine }, async (disk) => {
        for (const times of [1, 2, 50]) {
          await disk.write(0, pattern(times, page))
          await withFaults([{ on: 'fdatasync', does: 'replace', value, times }], () => disk.flush())
        }
        expect(disk.stats.flushes).toBeGreaterThanOrEqual(3)
      }),
    )
  })

  test('a failed flush is told to every waiter, and to every flush, fua write and close after it; plain writes go on', async () => {
    await withTarget(target, size, async (made) => {
      const disk = await open(made.path, { ...made.options, engine })
      await disk.write(0, pattern(1, page))
      const waiters = await withFaults([{ on: 'fdatasync', does: 'replace', value: EIO }], () =>
        Promise.all([outcome(disk.flush()), outcome(disk.flush()), outcome(disk.flush())]),
      )
      for (const waiter of waiters) expect(waiter).toMatchObject({ code: 'EIO', syscall: 'fdatasync', engine })
      expect(codeOf(await outcome(disk.flush()))).toBe('EIO')
      await disk.write(page, pattern(2, page))
      const into = Buffer.alloc(page)
      await disk.read(page, into)
      expect(difference(into, pattern(2, page))).toBeNull()
      expect(codeOf(await outcome(disk.write(0, pattern(3, page), { fua: true })))).toBe('EIO')
      expect(codeOf(await outcome(disk.close()))).toBe('EIO')
      // Opened again, all is forgiven.
      await withDisk(made, { engine }, async (again) => {
        await again.write(0, pattern(4, page), { fua: true })
        await again.flush()
      })
    })
  })

  test('a failed durable write counts as one where the page cache is used', async () => {
    await withTarget(target, size, async (made) => {
      const disk = await open(made.path, { ...made.options, engine })
      const failed = await withFaults([{ on: 'write', does: 'replace', value: EIO, times: forever }], () =>
        outcome(disk.write(0, pattern(1, page), { fua: true })),
      )
      expect(codeOf(failed)).toBe('EIO')
      const latched = target.direct ? undefined : 'EIO'
      expect(codeOf(await outcome(disk.flush()))).toBe(latched)
      expect(codeOf(await outcome(disk.write(0, pattern(1, page), { fua: true })))).toBe(latched)
      expect(codeOf(await outcome(disk.write(0, pattern(1, page))))).toBeUndefined()
      expect(codeOf(await outcome(disk.close()))).toBe(latched)
    })
  })

  test('a failed durable run counts as one even if each of its requests succeeds alone', async () => {
    // The page cache tells of a lost page once, and to whoever asks first.
    await withTarget(target, size, async (made) => {
      const disk = await open(made.path, { ...made.options, engine })
      const answers: unknown[] = []
      await withFaults([{ on: 'write', does: 'replace', value: EIO }], () =>
        disk.multiwrite(
          [0, 1].map((at) => ({
            offset: at * page,
            data: pattern(at, page),
            fua: true,
            callback(error: unknown): void {
              answers[at] = codeOf(error)
            },
          })),
        ),
      )
      expect(disk.stats.write.submissions).toBe(1)
      expect(answers).toEqual(target.direct ? [null, null] : ['EIO', 'EIO'])
      const latched = target.direct ? undefined : 'EIO'
      expect(codeOf(await outcome(disk.flush()))).toBe(latched)
      expect(codeOf(await outcome(disk.close()))).toBe(latched)
    })
  })
})
