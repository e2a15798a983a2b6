// Tables that can not be written. They stay in memory, so nothing is lost yet: the flush that they belong to is refused, and the
// next one tries again. Only an fdatasync that failed stays failed (test/qcow2-device.test.ts), as nobody knows what it has lost.

import fs from 'node:fs'
import { type BlockDevice, create, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { failure } from './support/failure.ts'
import { difference } from './support/model.ts'
import { imageIn, inDirectory, noQemu, qemuCheck, qemuContent, Recorder } from './support/qcow2.ts'

const CLUSTER = 512
const SIZE = 20 << 20
/** Bytes of the guest, and nothing else that is written, consist of it. */
const GUEST = 0x77

const isTable = (bytes: Buffer | null): boolean => bytes?.some((byte) => byte !== GUEST) ?? false

async function onImage(
  options: object,
  work: (disk: BlockDevice, recorder: Recorder, image: string) => Promise<void>,
): Promise<void> {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const made = await create(image, { format: 'qcow2', size: SIZE, clusterSize: CLUSTER, ...options })
    await made.write(0, Buffer.alloc(8 * CLUSTER, GUEST))
    await made.close()
    const recorder = new Recorder()
    recorder.recording = false
    await work(await open(image, { format: recorder.driver() }), recorder, image)
  })
}

/** That an image is in order, and that the guest's clusters that were written are all there, and no others. */
async function judge(image: string, written: ReadonlySet<number>, statuses = [0]): Promise<void> {
  const expected = Buffer.alloc(SIZE)
  for (const at of written) expected.fill(GUEST, at, at + CLUSTER)
  const disk = await open(image, { format: 'qcow2', readOnly: true })
  const into = Buffer.alloc(SIZE)
  await disk.read(0, into)
  expect(difference(into, expected)).toBeNull()
  expect(await disk.check()).toMatchObject({ corruptions: 0, checkErrors: 0 })
  await disk.close()
  if (noQemu !== '') return
  expect(statuses).toContain(qemuCheck(image).status)
  expect(difference(qemuContent(image), expected)).toBeNull()
}

describe('a write of a table that fails once', () => {
  const hows = ['before', 'half', 'after'] as const

  test.each(hows)('refuses one flush; the next one makes everything durable: it fails %s its effect', async (how) => {
    // Each write of the flush, until there are no more of them.
    let tables = 0
    for (let nth = 0; nth <= tables; nth++) {
      await onImage({}, async (disk, recorder, image) => {
        const written = new Set(Array.from({ length: 8 }, (_, n) => n * CLUSTER))
        // Places in different tables; one cluster is moved, and two are given back.
        for (let at = 4 << 20; at < 5 << 20; at += 100 << 10) {
          await disk.write(at, Buffer.alloc(CLUSTER, GUEST))
          written.add(at)
        }
        await disk.discard(0, 2 * CLUSTER)
        written.delete(0)
        written.delete(CLUSTER)
        let seen = 0
        recorder.fails = (_, kind, bytes) => (kind === 'write' && isTable(bytes) && seen++ === nth ? how : null)
        const first = await disk.flush().then(
          () => null,
          (error: unknown) => error,
        )
        tables = Math.max(tables, seen)
        if (seen > nth) expect(first).toMatchObject({ code: 'EIO', syscall: 'fdatasync' })
        else expect(first).toBeNull()
        recorder.fails = null
        await disk.flush()
        // As it would be found if everything stopped now.
        fs.copyFileSync(image, `${image}.now`)
        await judge(`${image}.now`, written, [0, 3])
        await disk.write(9 << 20, Buffer.alloc(CLUSTER, GUEST), { fua: true })
        written.add(9 << 20)
        await disk.close()
        await judge(image, written)
      })
    }
    expect(tables).toBeGreaterThan(4)
  })

  // The table in memory stayed as long as the failed one, and a shorter one could not be made of it.
  test('leaves an image that can still grow, to another size as well', async () => {
    let tables = 0
    for (let nth = 0; nth <= tables; nth++) {
      await inDirectory(async (directory) => {
        const image = imageIn(directory)
        const size = 32 << 10
        await (await create(image, { format: 'qcow2', size, clusterSize: CLUSTER })).close()
        const recorder = new Recorder()
        recorder.recording = false
        const disk = await open(image, { format: recorder.driver() })
        await disk.write(0, Buffer.alloc(CLUSTER, GUEST))
        let seen = 0
        recorder.fails = (_, kind, bytes) => (kind === 'write' && isTable(bytes) && seen++ === nth ? 'before' : null)
        const growing = disk.truncate(16 << 20).then(
          () => true,
          () => false,
        )
        // Another table, while the one above it is being moved.
        const written = disk.write(CLUSTER, Buffer.alloc(CLUSTER, GUEST)).then(
          () => true,
          () => false,
        )
        const [hasGrown, isWritten] = await Promise.all([growing, written])
        tables = Math.max(tables, seen)
        recorder.fails = null
        if (!hasGrown) expect(disk.size).toBe(size)
        // Where a write of the header failed nobody can tell which table is in force: then nothing is written any more.
        const again = await disk.truncate(hasGrown ? 16 << 20 : 8 << 20).then(
          () => true,
          () => false,
        )
        if (again) await disk.write(disk.size - CLUSTER, Buffer.alloc(CLUSTER, GUEST))
        const end = disk.size
        const closed = await disk.close().then(
          () => true,
          () => false,
        )
        expect(closed).toBe(again)
        const reader = await open(image, { format: 'qcow2', readOnly: true })
        expect(await reader.check()).toMatchObject({ corruptions: 0, checkErrors: 0, ...(closed ? { leaks: 0 } : {}) })
        if (closed) {
          expect(reader.size).toBe(end)
          const into = Buffer.alloc(end)
          const expected = Buffer.alloc(end)
          expected.fill(GUEST, 0, isWritten ? 2 * CLUSTER : CLUSTER)
          expected.fill(GUEST, end - CLUSTER)
          await reader.read(0, into)
          expect(difference(into, expected)).toBeNull()
        }
        await reader.close()
      })
    }
    expect(tables).toBeGreaterThan(4)
  })

  test('refuses the write with FUA that needs it, and no other', async () => {
    await onImage({}, async (disk, recorder, image) => {
      recorder.fails = (_, kind, bytes) => (kind === 'write' && isTable(bytes) ? 'before' : null)
      const fua = { fua: true }
      expect(await failure(disk.write(1 << 20, Buffer.alloc(CLUSTER, GUEST), fua))).toMatchObject({ code: 'EIO' })
      expect(await failure(disk.writeZeroes(0, 8 * CLUSTER, fua))).toMatchObject({ code: 'EIO' })
      recorder.fails = null
      await disk.write(2 << 20, Buffer.alloc(CLUSTER, GUEST), fua)
      await disk.flush()
      await disk.close()
      // What was refused has been carried out meanwhile.
      await judge(image, new Set([1 << 20, 2 << 20]))
    })
  })
})

describe('writes of tables that always fail', () => {
  test.each([{}, { lazyRefcounts: true }])('bound what is kept in memory: %j', async (options) => {
    await onImage(options, async (disk, recorder, image) => {
      const written = new Set(Array.from({ length: 8 }, (_, n) => n * CLUSTER))
      const write = async (at: number): Promise<boolean> => {
        const error = await disk.write(at, Buffer.alloc(CLUSTER, GUEST)).then(
          () => null,
          (refused: unknown) => refused,
        )
        if (error === null) written.add(at)
        else expect(error).toMatchObject({ code: 'EIO', offset: at, length: CLUSTER })
        return error === null
      }
      expect(await write(CLUSTER * 100)).toBe(true)
      recorder.fails = (_, kind, bytes) => (kind === 'write' && isTable(bytes) ? 'before' : null)
      // A table of its own each.
      const places = Array.from({ length: 360 }, (_, n) => (n + 10) * CLUSTER * (CLUSTER / 8))
      const results: boolean[] = []
      for (const at of places) results.push(await write(at))
      const taken = results.indexOf(false)
      expect(taken).toBeGreaterThan(64)
      expect(taken).toBeLessThan(400)
      // From then on nothing that needs room is taken in, however it comes.
      expect(results.slice(taken).every((done) => !done)).toBe(true)
      const batch = places.slice(0, 64).map((at) => ({ offset: at + CLUSTER * 7, data: Buffer.alloc(CLUSTER, GUEST) }))
      expect(await failure(disk.multiwrite(batch))).toMatchObject({ failed: { length: 64 } })
      expect(await failure(disk.discard(0, 8 * CLUSTER))).toMatchObject({ code: 'EIO' })
      expect(await failure(disk.writeZeroes(0, 8 * CLUSTER))).toMatchObject({ code: 'EIO' })
      // What has its place already goes on.
      expect(await write(places[0]!)).toBe(true)
      expect(await write(0)).toBe(true)
      expect(await failure(disk.flush())).toMatchObject({ code: 'EIO' })
      recorder.fails = null
      expect(await write(places.at(-1)!)).toBe(true)
      await disk.flush()
      expect(await disk.check()).toMatchObject({ corruptions: 0, checkErrors: 0, leaks: 0 })
      await disk.close()
      await judge(image, written)
    })
  })
})
