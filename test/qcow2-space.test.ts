// What a guest gives up goes back to the host: the file gets holes, when nothing on the disk refers there any more and before
// anybody writes there anew.

import fs from 'node:fs'
import { BlockError, create, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { difference } from './support/model.ts'
import {
  crashed,
  imageIn,
  inDirectory,
  noQemu,
  qemuCheck,
  qemuContent,
  qemuImg,
  Recorder,
  randomOf,
  withQemu,
} from './support/qcow2.ts'
import { temporaryDirectory } from './support/targets.ts'

/** Bytes that a file takes. */
const takenBy = (file: string): number => fs.statSync(file).blocks * 512

const MIB = 1 << 20
const long = process.env.MULTIWRITE_LONG !== undefined

describe('a hole in the file', () => {
  const folders = [
    ['tmpfs', '/dev/shm'],
    ['the disk', undefined],
  ] as const
  test.each(folders)('is where the guest has discarded or zeroed: on %s', async (_, parent) => {
    const directory = temporaryDirectory(parent)
    try {
      const image = imageIn(directory.path)
      const model = Buffer.alloc(8 * MIB, 7)
      const disk = await create(image, { format: 'qcow2', size: 8 * MIB })
      await disk.write(0, model)
      await disk.flush()
      expect(takenBy(image)).toBeGreaterThan(8 * MIB)
      await disk.discard(MIB, 3 * MIB)
      model.fill(0, MIB, 4 * MIB)
      await disk.writeZeroes(5 * MIB, 2 * MIB, { unmap: true })
      model.fill(0, 5 * MIB, 7 * MIB)
      // Zeros that keep their place.
      await disk.writeZeroes(7 * MIB, MIB / 2)
      model.fill(0, 7 * MIB, 7.5 * MIB)
      await disk.flush()
      await disk.close()
      expect(takenBy(image)).toBeLessThan(3.5 * MIB)
      expect(takenBy(image)).toBeGreaterThan(3 * MIB)
      const again = await open(image, { format: 'qcow2' })
      const into = Buffer.alloc(8 * MIB)
      await again.read(0, into)
      expect(difference(into, model)).toBeNull()
      // What is written afterwards goes there, and is not lost in a hole that comes too late.
      await again.write(0, Buffer.alloc(8 * MIB, 9))
      await again.discard(0, 8 * MIB)
      await again.write(0, Buffer.alloc(8 * MIB, 8))
      await again.discard(0, 4 * MIB)
      await again.flush()
      await again.write(0, Buffer.alloc(4 * MIB, 5))
      await again.read(0, into)
      expect(difference(into, Buffer.concat([Buffer.alloc(4 * MIB, 5), Buffer.alloc(4 * MIB, 8)]))).toBeNull()
      expect(await again.check()).toMatchObject({ leaks: 0, corruptions: 0 })
      await again.close()
    } finally {
      directory.cleanup()
    }
  })

  test.skipIf(noQemu !== '')(`is not where a snapshot still has something${withQemu}`, async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const made = await create(image, { format: 'qcow2', size: 4 * MIB })
      await made.write(0, Buffer.alloc(4 * MIB, 7))
      await made.close()
      qemuImg('snapshot', '-c', 'first', image)
      const disk = await open(image, { format: 'qcow2' })
      await disk.write(MIB, Buffer.alloc(MIB, 8))
      await disk.discard(0, 4 * MIB)
      await disk.close()
      // What was written since then is gone.
      expect(takenBy(image)).toBeLessThan(5 * MIB)
      qemuImg('snapshot', '-a', 'first', image)
      expect(qemuCheck(image)).toMatchObject({ status: 0 })
      expect(difference(qemuContent(image), Buffer.alloc(4 * MIB, 7))).toBeNull()
    })
  })

  test('is of no use where the host has none: nobody hears of it', async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const recorder = new Recorder()
      let asked = 0
      const made = await create(image, { format: 'qcow2', size: 4 * MIB })
      await made.write(0, Buffer.alloc(4 * MIB, 7))
      await made.close()
      const disk = await open(image, { format: recorder.driver() })
      recorder.run = (kind, act) => {
        if (kind !== 'discard') return act('all')
        asked++
        return Promise.reject(new BlockError(95, { syscall: 'discard', path: image }))
      }
      for (let at = 0; at < 4 * MIB; at += MIB) {
        await disk.discard(at, MIB / 2)
        await disk.flush()
      }
      await disk.flush()
      await disk.close()
      expect(asked).toBe(1)
      const again = await open(image, { format: 'qcow2', readOnly: true })
      expect(await again.check()).toMatchObject({ leaks: 0, corruptions: 0, allocatedClusters: 32 })
      await again.close()
    })
  })
})

// Each stretch of what lies below was given a table, only to say nothing in it.
test('to discard what an image does not have takes no room in it', async () => {
  await inDirectory(async (directory) => {
    const [image, below] = [imageIn(directory), `${directory}/below`]
    const size = 16 * MIB
    fs.writeFileSync(below, Buffer.alloc(size, 7))
    const backing = { path: below, format: 'raw' } as const
    const disk = await create(image, { format: 'qcow2', size, clusterSize: 512, backing })
    const before = await disk.check()
    await disk.discard(0, size)
    await disk.flush()
    expect(await disk.check()).toEqual(before)
    await disk.close()
  })
})

// The shape of QEMU's test 250: more than 2 GiB given up at once. Only its ends are written, the file has no more.
test('more than 2 GiB are given up by one call', async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const size = 4100 * MIB
    const disk = await create(image, { format: 'qcow2', size, preallocation: 'metadata' })
    await disk.write(0, Buffer.alloc(10 * MIB, 1))
    await disk.write(size - 10 * MIB, Buffer.alloc(10 * MIB, 2))
    await disk.flush()
    expect(takenBy(image)).toBeGreaterThan(20 * MIB)
    await disk.discard(0, size)
    await disk.close()
    expect(takenBy(image)).toBeLessThan(2 * MIB)
    if (noQemu !== '') return
    const { status, figures } = qemuCheck(image)
    expect({ status, allocated: figures['allocated-clusters'] ?? 0 }).toEqual({ status: 0, allocated: 0 })
  })
})

test.skipIf(noQemu !== '')(`no crash finds a hole where something is${withQemu}`, async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const size = 512 << 10
    const cluster = 4096
    const made = await create(image, { format: 'qcow2', size, clusterSize: cluster })
    const model = Buffer.alloc(size, 1)
    await made.write(0, model)
    await made.close()
    const base = fs.readFileSync(image)
    const recorder = new Recorder()
    const disk = await open(image, { format: recorder.driver() })
    const random = randomOf(7)
    // Each cluster has the number of the last turn that wrote it, or nothing; flushed or not.
    const allowed: Set<number>[] = Array.from({ length: size / cluster }, () => new Set([1]))
    const states: { at: number; allowed: Set<number>[] }[] = [{ at: 0, allowed }]
    for (let turn = 2; turn < 40; turn++) {
      const now = states.at(-1)!.allowed.map((set) => new Set(set))
      const under: Promise<void>[] = []
      for (let n = 0; n < 6; n++) {
        const first = Math.floor(random() * (size / cluster))
        const count = Math.min(size / cluster - first, 1 + Math.floor(random() * 12))
        const isDiscard = random() < 0.5
        for (let c = first; c < first + count; c++) now[c]!.add(isDiscard ? 0 : turn)
        const [offset, length] = [first * cluster, count * cluster]
        under.push(isDiscard ? disk.discard(offset, length) : disk.write(offset, Buffer.alloc(length, turn)))
      }
      states.push({ at: recorder.steps.length, allowed: now })
      await Promise.all(under)
      if (turn % 3 !== 0) continue
      await disk.flush()
      const into = Buffer.alloc(size)
      await disk.read(0, into)
      const flushed = Array.from({ length: size / cluster }, (_, c) => new Set([into[c * cluster]!]))
      states.push({ at: recorder.steps.length, allowed: flushed })
    }
    await disk.close()
    const discards = recorder.steps.flatMap((step, n) => (step.kind === 'discard' ? [n] : []))
    expect(discards.length).toBeGreaterThan(20)
    const some = long ? discards : discards.filter(() => random() < 0.1)
    for (const point of some.flatMap((n) => [n, n + 1, n + 2])) {
      for (const share of [0, 0.5, 1]) {
        const state = crashed(base, recorder.steps, Math.min(point, recorder.steps.length), () => random() < share)
        fs.writeFileSync(image, state)
        const { status, text } = qemuCheck(image)
        if (status !== 0 && status !== 3) throw new Error(`step ${point}, share ${share}: ${text}`)
        const after = await open(image, { format: 'qcow2', readOnly: true })
        const into = Buffer.alloc(size)
        await after.read(0, into)
        await after.close()
        const kept = states.findLast(({ at }) => at <= point)!
        const next = states[Math.min(states.indexOf(kept) + 1, states.length - 1)]!
        for (let c = 0; c < size / cluster; c++) {
          const byte = into[c * cluster]!
          const may = kept.allowed[c]!.has(byte) || next.allowed[c]!.has(byte)
          expect({ point, share, c, byte, may }).toEqual({ point, share, c, byte, may: true })
        }
      }
    }
  })
})
