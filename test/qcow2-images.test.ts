// Images that QEMU made, in every variant that we treat: read right, written right, and checked as QEMU checks them. And what QEMU
// makes of ours.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import * as zlib from 'node:zlib'
import { type BlockDevice, type CheckResult, create, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { failure } from './support/failure.ts'
import { difference } from './support/model.ts'
import { nodeBinary } from './support/nodes.ts'
import {
  imageIn,
  inDirectory,
  noQemu,
  qemuCheck,
  qemuContent,
  qemuImg,
  qemuIo,
  Recorder,
  randomOf,
  withQemu,
} from './support/qcow2.ts'

const hasZstd = 'zstdDecompressSync' in zlib
/** A Node that reads zstd; `null`: none was fetched, and that part of a test is left out. */
const nodeWithZstd = hasZstd ? process.execPath : nodeBinary('x64', 24)

/** Bytes of which some compress well, some badly and some not at all. */
function unevenly(length: number): Buffer {
  const bytes = Buffer.alloc(length, 3)
  for (let at = 0; at < length / 2; at++) {
    bytes[at] = at < 600_000 ? (at >> 9) ^ (at % 7) : Math.imul(at, 2654435761) >>> (at % 19)
  }
  return bytes
}

interface Variant {
  name: string
  /** For `qemu-img create -o`. */
  options: string
  size: number
}

const variants: Variant[] = [
  { name: 'version 2', options: 'compat=0.10', size: 4 << 20 },
  { name: 'version 2, clusters of 512 bytes', options: 'compat=0.10,cluster_size=512', size: 1 << 20 },
  ...[512, 1024, 4096, 65536, 2 << 20].map((size) => ({
    name: `clusters of ${size} bytes`,
    options: `cluster_size=${size}`,
    size: size > 65536 ? 16 << 20 : 2 << 20,
  })),
  ...[1, 2, 4, 8, 32, 64].map((bits) => ({
    name: `counts of ${bits} bits`,
    options: `refcount_bits=${bits},cluster_size=1024`,
    size: 1 << 20,
  })),
  { name: 'lazy counts', options: 'lazy_refcounts=on', size: 2 << 20 },
  { name: 'preallocated', options: 'preallocation=metadata', size: 4 << 20 },
  { name: 'a size that is no multiple of the cluster', options: 'cluster_size=65536', size: (1 << 20) + 512 * 7 },
]

async function contentOf(disk: BlockDevice): Promise<Buffer> {
  const bytes = Buffer.alloc(disk.size)
  await disk.read(0, bytes)
  return bytes
}

/** Writes all over an image, and to the model. */
async function scribble(disk: BlockDevice, model: Buffer, seed: number): Promise<void> {
  const random = randomOf(seed)
  for (let turn = 0; turn < 4; turn++) {
    const requests = Array.from({ length: 20 }, (_, n) => {
      const length = Math.min(disk.size, 1 + Math.floor(random() * 30_000))
      return { offset: Math.floor(random() * (disk.size - length)), data: Buffer.alloc(length, 1 + turn * 20 + n) }
    })
    for (const { offset, data } of requests) model.set(data, offset)
    await disk.multiwrite(requests)
    const length = Math.floor(disk.size / 5)
    const offset = Math.floor(random() * (disk.size - length))
    await disk.writeZeroes(offset, length, { unmap: turn % 2 === 0 })
    model.fill(0, offset, offset + length)
  }
}

async function judge(image: string, model: Buffer): Promise<void> {
  expect(qemuCheck(image)).toMatchObject({ status: 0 })
  expect(difference(qemuContent(image), model)).toBeNull()
}

async function checked(image: string): Promise<CheckResult> {
  const disk = await open(image, { format: 'qcow2', readOnly: true, backing: null })
  const result = await disk.check()
  await disk.close()
  return result
}

async function expectSameCheck(image: string): Promise<void> {
  const ours = await checked(image)
  const { figures } = qemuCheck(image)
  expect({
    'image-end-offset': ours.imageEndOffset,
    'total-clusters': ours.totalClusters,
    'allocated-clusters': ours.allocatedClusters,
    'fragmented-clusters': ours.fragmentedClusters,
    'compressed-clusters': ours.compressedClusters,
    leaks: ours.leaks,
    corruptions: ours.corruptions,
    'check-errors': ours.checkErrors,
  }).toEqual({
    'image-end-offset': figures['image-end-offset'] ?? 0,
    'total-clusters': figures['total-clusters'] ?? 0,
    'allocated-clusters': figures['allocated-clusters'] ?? 0,
    'fragmented-clusters': figures['fragmented-clusters'] ?? 0,
    'compressed-clusters': figures['compressed-clusters'] ?? 0,
    leaks: figures.leaks ?? 0,
    corruptions: figures.corruptions ?? 0,
    'check-errors': figures['check-errors'] ?? 0,
  })
}

describe.skipIf(noQemu !== '')(`images made by QEMU${withQemu}`, () => {
  test.each(variants)('$name', async ({ options, size }) => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      qemuImg('create', '-q', '-f', 'qcow2', '-o', options, image, String(size))
      qemuIo(
        image,
        'write -P 1 100k 100k',
        'write -P 2 513 1000',
        'write -z 120k 50k',
        'write -P 3 700k 64k',
        'discard 700k 20k',
      )
      const model = qemuContent(image)
      await expectSameCheck(image)
      const disk = await open(image, { format: 'qcow2' })
      expect(disk).toMatchObject({ format: 'qcow2', size })
      expect(difference(await contentOf(disk), model)).toBeNull()
      await scribble(disk, model, size)
      expect(difference(await contentOf(disk), model)).toBeNull()
      await disk.close()
      await judge(image, model)
      await expectSameCheck(image)
      // QEMU goes on with it.
      qemuIo(image, 'write -P 9 0 300k')
      model.fill(9, 0, 300 << 10)
      await judge(image, model)
    })
  })

  test.each([
    ['deflate', ''],
    ['zstd', ',compression_type=zstd'],
  ])('compressed clusters: %s', async (type, option) => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const model = Buffer.alloc(1 << 20)
      for (let at = 0; at < model.length; at++) model[at] = at < 600_000 ? (at >> 9) ^ (at % 7) : 0
      const raw = `${directory}/raw`
      fs.writeFileSync(raw, model)
      qemuImg('convert', '-c', '-O', 'qcow2', '-o', `cluster_size=16384${option}`, raw, image)
      if (type === 'zstd' && !hasZstd) {
        expect(await failure(open(image, { format: 'qcow2' }))).toMatchObject({
          code: 'EOPNOTSUPP',
          message: expect.stringContaining('zstd'),
        })
        return
      }
      await expectSameCheck(image)
      const disk = await open(image, { format: 'qcow2' })
      expect(difference(await contentOf(disk), model)).toBeNull()
      const some = Buffer.alloc(20_000)
      await Promise.all([disk.read(5000, some), disk.read(100_000, Buffer.alloc(3))])
      expect(difference(some, model.subarray(5000, 25_000))).toBeNull()
      // Written to, a compressed cluster becomes an ordinary one.
      await disk.multiwrite([
        { offset: 20_000, data: Buffer.alloc(100, 7) },
        { offset: 20_200, data: Buffer.alloc(40_000, 8) },
      ])
      model.fill(7, 20_000, 20_100)
      model.fill(8, 20_200, 60_200)
      await disk.discard(16384 * 8, 16384)
      model.fill(0, 16384 * 8, 16384 * 9)
      await disk.close()
      await judge(image, model)
      await expectSameCheck(image)
    })
  })

  test.each([512, 65536, 2 << 20])(
    'compressed clusters one behind the other in a sector: of %d bytes',
    async (size) => {
      await inDirectory(async (directory) => {
        const image = imageIn(directory)
        const model = unevenly(6 << 20)
        fs.writeFileSync(`${directory}/raw`, model)
        qemuImg('convert', '-c', '-O', 'qcow2', '-o', `cluster_size=${size}`, `${directory}/raw`, image)
        const disk = await open(image, { format: 'qcow2', readOnly: true })
        expect(difference(await contentOf(disk), model)).toBeNull()
        await disk.close()
        await expectSameCheck(image)
        if (nodeWithZstd === null) return
        qemuImg(
          'convert',
          '-c',
          '-O',
          'qcow2',
          '-o',
          `cluster_size=${size},compression_type=zstd`,
          `${directory}/raw`,
          image,
        )
        const script = `
        import { open } from ${JSON.stringify(new URL('../dist/index.js', import.meta.url).href)}
        const disk = await open(process.argv[1], { format: 'qcow2', readOnly: true })
        const bytes = Buffer.alloc(disk.size)
        await disk.read(0, bytes)
        await disk.close()
        process.stdout.write(bytes)`
        const args = ['--input-type=module', '-e', script, image]
        const read = execFileSync(nodeWithZstd, args, { maxBuffer: 16 << 20, stdio: ['ignore', 'pipe', 'inherit'] })
        expect(difference(read, model)).toBeNull()
      })
    },
  )

  test.each(['0.10', '1.1'])('what lies below shows, and is left alone: compat=%s', async (compat) => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const below = `${directory}/below.qcow2`
      qemuImg('create', '-q', '-f', 'qcow2', below, '600k')
      qemuIo(below, 'write -P 5 0 300k', 'write -P 6 400k 200k')
      const before = fs.readFileSync(below)
      const option = `compat=${compat},cluster_size=4096`
      qemuImg('create', '-q', '-f', 'qcow2', '-o', option, '-b', below, '-F', 'qcow2', image, '1M')
      qemuIo(image, 'write -P 7 100k 10k', 'write -z 200k 30k')
      const model = qemuContent(image)
      // The path that it names is not followed.
      const refused = await failure(open(image, { format: 'qcow2' }))
      expect(refused).toMatchObject({ code: 'EOPNOTSUPP', message: expect.stringContaining(below) })
      const lower = await open(below, { format: 'qcow2', readOnly: true })
      for (const backing of [lower, { path: below, format: 'qcow2' as const }]) {
        const disk = await open(image, { format: 'qcow2', backing })
        expect(difference(await contentOf(disk), model)).toBeNull()
        await scribble(disk, model, 3)
        await disk.discard(0, 64 << 10)
        if (compat === '1.1') model.fill(0, 0, 64 << 10)
        expect(difference(await contentOf(disk), model)).toBeNull()
        await disk.close()
        await judge(image, model)
      }
      // A device that was passed stays open.
      await lower.read(0, Buffer.alloc(10))
      await lower.close()
      expect(fs.readFileSync(below).equals(before)).toBe(true)
      const alone = await open(image, { format: 'qcow2', backing: null, readOnly: true })
      await alone.close()
    })
  })

  test('compressed bytes that could not be read once are read the next time', async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const raw = `${directory}/raw`
      const content = unevenly(1 << 20)
      fs.writeFileSync(raw, content)
      qemuImg('convert', '-c', '-f', 'raw', '-O', 'qcow2', raw, image)
      const recorder = new Recorder()
      const disk = await open(image, { format: recorder.driver(), readOnly: true })
      const into = Buffer.alloc(65536)
      await disk.read(65536, into)
      recorder.fails = (_, kind) => (kind === 'read' ? 'before' : null)
      expect(await failure(disk.read(0, into))).toMatchObject({ code: 'EIO' })
      recorder.fails = null
      await disk.read(0, into)
      expect(difference(into, content.subarray(0, 65536))).toBeNull()
      await disk.close()
    })
  })

  test('internal snapshots keep what they have', async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4096', image, '1M')
      qemuIo(image, 'write -P 1 0 700k', 'write -z 200k 50k')
      qemuImg('snapshot', '-c', 'first', image)
      const first = qemuContent(image)
      qemuIo(image, 'write -P 2 100k 50k')
      qemuImg('snapshot', '-c', 'second', image)
      const model = qemuContent(image)
      const second = Buffer.from(model)
      const disk = await open(image, { format: 'qcow2' })
      await scribble(disk, model, 5)
      await disk.discard(300 << 10, 100 << 10)
      model.fill(0, 300 << 10, 400 << 10)
      await disk.flush()
      await scribble(disk, model, 6)
      expect(difference(await contentOf(disk), model)).toBeNull()
      await disk.close()
      await judge(image, model)
      await expectSameCheck(image)
      for (const [name, content] of [
        ['second', second],
        ['first', first],
      ] as const) {
        qemuImg('snapshot', '-a', name, image)
        await judge(image, content)
      }
    })
  })

  test('an image grows', async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const below = `${directory}/below`
      fs.writeFileSync(below, Buffer.alloc(3 << 20, 0xbb))
      for (const clusterSize of [512, 4096, 65536]) {
        const lies = { path: below, format: 'raw' as const }
        const disk = await create(image, {
          format: 'qcow2',
          size: 99 * 512,
          clusterSize,
          backing: lies,
          overwrite: true,
        })
        const model = Buffer.alloc(2 << 20)
        model.fill(0xbb, 0, disk.size)
        await disk.write(40_000, Buffer.alloc(1000, 1))
        model.fill(1, 40_000, 41_000)
        const growing = disk.truncate(2 << 20)
        expect(disk.size).toBe(2 << 20)
        await disk.write((2 << 20) - 100, Buffer.alloc(100, 2))
        model.fill(2, (2 << 20) - 100)
        await growing
        // What lies below the former end must not show.
        expect(difference(await contentOf(disk), model)).toBeNull()
        expect(await failure(disk.truncate(4096))).toMatchObject({ code: 'EOPNOTSUPP' })
        expect(disk.size).toBe(2 << 20)
        await disk.close()
        await judge(image, model)
      }
    })
  })

  test('an image that was not closed is repaired when asked to, and not written to before', async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const copy = `${directory}/copy`
      const disk = await create(image, { format: 'qcow2', size: 1 << 20, clusterSize: 512, lazyRefcounts: true })
      await disk.write(1000, Buffer.alloc(300_000, 5))
      await disk.flush()
      fs.copyFileSync(image, copy)
      await disk.close()
      expect(qemuCheck(image)).toMatchObject({ status: 0 })
      const dirty = await open(copy, { format: 'qcow2' })
      expect(await failure(dirty.write(0, Buffer.alloc(1)))).toMatchObject({
        code: 'EROFS',
        message: expect.stringContaining('dirty'),
      })
      const found = await dirty.check()
      expect(found.corruptions).toBeGreaterThan(0)
      expect(await dirty.check({ repair: true })).toMatchObject({
        corruptions: 0,
        leaks: 0,
        corruptionsFixed: found.corruptions,
      })
      await dirty.write(0, Buffer.alloc(1000, 6))
      await dirty.close()
      const model = Buffer.alloc(1 << 20)
      model.fill(5, 1000, 301_000)
      model.fill(6, 0, 1000)
      await judge(copy, model)
    })
  })

  test('leaks are repaired', async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const copy = `${directory}/copy`
      const disk = await create(image, { format: 'qcow2', size: 1 << 20, clusterSize: 4096 })
      await disk.write(0, Buffer.alloc(500_000, 1))
      await disk.flush()
      await disk.discard(0, 400_000)
      await disk.flush()
      // References are gone, counts are not lowered yet.
      fs.copyFileSync(image, copy)
      await disk.close()
      expect(qemuCheck(copy)).toMatchObject({ status: 3 })
      await expectSameCheck(copy)
      const leaky = await open(copy, { format: 'qcow2' })
      const { leaks } = await leaky.check()
      expect(leaks).toBeGreaterThan(50)
      expect(await leaky.check({ repair: true })).toMatchObject({ leaks: 0, leaksFixed: leaks, corruptions: 0 })
      await leaky.close()
      expect(qemuCheck(copy)).toMatchObject({ status: 0 })
    })
  })

  test('features that are cleared by those who do not know them are cleared before the first write, not before', async () => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      qemuImg('create', '-q', '-f', 'qcow2', image, '1M')
      qemuImg('bitmap', '--add', image, 'dirt')
      expect(fs.readFileSync(image)[95]).toBe(1)
      const reader = await open(image, { format: 'qcow2' })
      await reader.read(0, Buffer.alloc(10))
      await expectSameCheck(image)
      await reader.close()
      expect(fs.readFileSync(image)[95]).toBe(1)
      const writer = await open(image, { format: 'qcow2' })
      await writer.write(0, Buffer.alloc(10, 1))
      await writer.close()
      expect(fs.readFileSync(image)[95]).toBe(0)
      expect(qemuCheck(image)).toMatchObject({ status: 0 })
    })
  })

  // They are void then, and QEMU calls what they have a leak.
  test.each([512, 4096, 65536])(
    'bitmaps that are void are given back with the first write: clusters of %d bytes',
    async (size) => {
      await inDirectory(async (directory) => {
        const image = imageIn(directory)
        qemuImg('create', '-q', '-f', 'qcow2', '-o', `cluster_size=${size}`, image, '64M')
        for (const [name, granularity] of [
          ['first', '512'],
          ['second', '4096'],
          ['third', '65536'],
        ] as const) {
          qemuImg('bitmap', '--add', '-g', granularity, image, name)
        }
        qemuImg('bitmap', '--disable', image, 'second')
        qemuIo(image, 'write -P 1 0 100k', 'write -P 2 50M 1M')
        await expectSameCheck(image)
        const model = qemuContent(image)
        const disk = await open(image, { format: 'qcow2' })
        await disk.write(1 << 20, Buffer.alloc(1000, 3))
        model.fill(3, 1 << 20, (1 << 20) + 1000)
        // What they had is used again.
        await disk.flush()
        await disk.write(10 << 20, Buffer.alloc(size, 4))
        model.fill(4, 10 << 20, (10 << 20) + size)
        await disk.close()
        await judge(image, model)
        await expectSameCheck(image)
        // QEMU takes them for void as well, and can add others.
        qemuImg('bitmap', '--add', image, 'fourth')
        await judge(image, model)
      })
    },
  )

  test.each([
    ['an external data file', ['-o', 'data_file=DIR/data'], 'external data file'],
    ['extended L2 entries', ['-o', 'extended_l2=on'], 'extended L2'],
  ] as const)('refused, and called by its name: %s', async (_, options, words) => {
    await inDirectory(async (directory) => {
      const image = imageIn(directory)
      const args = options.map((option) => option.replace('DIR', directory))
      qemuImg('create', '-q', '-f', 'qcow2', ...args, image, '1M')
      const before = fs.readFileSync(image)
      for (const readOnly of [false, true]) {
        const error = await failure(open(image, { format: 'qcow2', readOnly }))
        expect(error).toMatchObject({ code: 'EOPNOTSUPP', message: expect.stringContaining(words) })
      }
      expect(fs.readFileSync(image).equals(before)).toBe(true)
    })
  })
})

// QEMU's own test 046, with its numbers: writes of which the first allocates while the others come.
const iotest046: [string, [number, number, number][]][] = [
  [
    'in one cluster',
    [
      [0x18000, 0x2000, 10],
      [0x12000, 0x2000, 11],
      [0x1c000, 0x2000, 12],
    ],
  ],
  [
    'one after the other, across clusters',
    [
      [0x28000, 0x2000, 20],
      [0x2a000, 0x10000, 21],
    ],
  ],
  [
    'with a gap',
    [
      [0x48000, 0x2000, 40],
      [0x4c000, 0x10000, 41],
    ],
  ],
  [
    'into a cluster that is allocated',
    [
      [0x76000, 0x8000, 70],
      [0x66000, 0x2000, 60],
      [0x6a000, 0xe000, 61],
    ],
  ],
  [
    'backwards',
    [
      [0xdc000, 0x2000, 121],
      [0xc4000, 0x18000, 120],
    ],
  ],
  [
    'backwards with a gap',
    [
      [0xfc000, 0x2000, 141],
      [0xe4000, 0x14000, 140],
    ],
  ],
  [
    'around another one',
    [
      [0x10c000, 0x8000, 161],
      [0x104000, 0x18000, 160],
    ],
  ],
]

test.each(iotest046)('writes that allocate at once, above another image: %s', async (_, writes) => {
  await inDirectory(async (directory) => {
    const below = `${directory}/below`
    const model = Buffer.alloc(0x180000)
    for (let n = 0; n < model.length / 65536; n++) model.fill(n, n * 65536, (n + 1) * 65536)
    fs.writeFileSync(below, model)
    const disk = await create(imageIn(directory), {
      format: 'qcow2',
      size: model.length,
      backing: { path: below, format: 'raw' },
    })
    for (const [offset, length, byte] of writes) model.fill(byte, offset, offset + length)
    const pending: Promise<void>[] = []
    for (const [offset, length, byte] of writes) {
      pending.push(disk.write(offset, Buffer.alloc(length, byte)))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await Promise.all(pending)
    expect(difference(await contentOf(disk), model)).toBeNull()
    expect(await disk.check()).toMatchObject({ leaks: 0, corruptions: 0 })
    await disk.close()
  })
})

// After QEMU's test 154: zeros in parts of clusters, of which some lie above something.
test.each([true, false])('zeros where something lies below, unmapped or not: %s', async (unmap) => {
  await inDirectory(async (directory) => {
    const below = `${directory}/below`
    const image = imageIn(directory)
    const model = Buffer.alloc(256 << 10)
    model.fill(0xbb, 0, 100 << 10)
    fs.writeFileSync(below, model.subarray(0, 130 << 10))
    const backing = { path: below, format: 'raw' as const }
    const disk = await create(image, { format: 'qcow2', size: model.length, clusterSize: 4096, backing })
    const before = disk.stats.write.bytes
    for (const [offset, length] of [
      [1000, 100], // inside one
      [8192, 4096], // the whole of one
      [14_000, 10_000], // two parts and one whole
      [98 << 10, 8 << 10], // across the end of what is there
      [120 << 10, 20 << 10], // across the end of what lies below
      [200 << 10, 3000], // where nothing is
    ] as const) {
      await disk.writeZeroes(offset, length, { unmap })
      model.fill(0, offset, offset + length)
    }
    expect(disk.stats.write.bytes).toBe(before)
    expect(difference(await contentOf(disk), model)).toBeNull()
    const { allocatedClusters } = await disk.check()
    // Zeros that are there already cost nothing, and whole clusters are marked.
    expect(allocatedClusters).toBe(5)
    await disk.close()
    if (noQemu === '') await judge(image, model)
  })
})

test('without what it names below, an image is not made to show it later', async () => {
  await inDirectory(async (directory) => {
    const below = `${directory}/below`
    const image = imageIn(directory)
    fs.writeFileSync(below, Buffer.alloc(256 << 10, 0xbb))
    const backing = { path: below, format: 'raw' as const }
    const made = await create(image, { format: 'qcow2', size: 256 << 10, clusterSize: 4096, backing })
    await made.close()
    const alone = await open(image, { format: 'qcow2', backing: null })
    expect(difference(await contentOf(alone), Buffer.alloc(256 << 10))).toBeNull()
    await alone.writeZeroes(0, 64 << 10)
    await alone.writeZeroes(70_000, 1000)
    await alone.close()
    const both = await open(image, { format: 'qcow2', backing })
    const into = Buffer.alloc(80_000)
    await both.read(0, into)
    const expected = Buffer.alloc(80_000, 0xbb)
    expected.fill(0, 0, 64 << 10)
    // The cluster of the second was written whole, with what was below it then: nothing.
    expected.fill(0, 69_632, 73_728)
    expect(difference(into, expected)).toBeNull()
    await both.close()
  })
})

test('sequential writes into new clusters: no padding, no byte twice, two flushes', async () => {
  await inDirectory(async (directory) => {
    const disk = await create(imageIn(directory), { format: 'qcow2', size: 64 << 20 })
    const before = disk.stats
    const page = Buffer.alloc(4096, 1)
    for (let at = 0; at < 32 << 20; at += 64 * 4096) {
      await disk.multiwrite(Array.from({ length: 64 }, (_, n) => ({ offset: at + n * 4096, data: page })))
    }
    await disk.flush()
    const { write, metadata, flushes } = disk.stats
    expect(write).toMatchObject({ requests: 8192, submissions: 128, bytes: 32 << 20, gapBytes: 0 })
    expect((write.bytes + metadata.bytes) / (32 << 20)).toBeLessThan(1.02)
    expect(flushes - before.flushes).toBe(2)
    await disk.close()
  })
})

test('requests in one new cluster are one run, its gaps zeros, also where the host held something else', async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const disk = await create(image, { format: 'qcow2', size: 8 << 20 })
    // Clusters that were used, and are free again.
    await disk.write(0, Buffer.alloc(1 << 20, 0xee))
    await disk.flush()
    await disk.discard(0, 1 << 20)
    await disk.flush()
    const before = disk.stats
    const at = 4 << 20
    await disk.multiwrite([
      { offset: at + 40_000, data: Buffer.alloc(100, 3) },
      { offset: at + 100, data: Buffer.alloc(100, 1) },
      { offset: at + 20_000, data: Buffer.alloc(100, 2) },
    ])
    const { write } = disk.stats
    expect(write.submissions - before.write.submissions).toBe(1)
    expect(write.gapBytes - before.write.gapBytes).toBe(40_000 - 100 - 200)
    const model = Buffer.alloc(65536)
    model.fill(1, 100, 200)
    model.fill(2, 20_000, 20_100)
    model.fill(3, 40_000, 40_100)
    const into = Buffer.alloc(65536, 9)
    await disk.read(at, into)
    expect(difference(into, model)).toBeNull()
    await disk.close()
    expect(fs.statSync(image).size).toBeLessThan(3 << 20)
  })
})
