// Images that were made to do harm, or are damaged: refused with words, or treated as far as they make sense. Memory and time are
// bounded, no path in them is opened, and where tables overlap nothing is written.
//
// The CVEs are those of QEMU's qcow2 driver, the other shapes those of its tests 060 and 080.

import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { type BlockDevice, BlockError, create, open } from 'multiwrite'
import { beforeAll, describe, expect, test } from 'vitest'
import { failure } from './support/failure.ts'
import { imageIn, inDirectory, noQemu, qemuImg, qemuIo, randomOf } from './support/qcow2.ts'

const long = process.env.MULTIWRITE_LONG !== undefined
const seedsGiven = process.env.MULTIWRITE_SEED

const CLUSTER = 4096
const SIZE = 256 << 10

/** Where the tables of the image lie that is spoilt. */
interface Places {
  l1: number
  l2: number
  refcountTable: number
  block: number
  data: number
}

let base: Buffer
let places: Places

const u64 = (bytes: Buffer, at: number): number => Number(bytes.readBigUInt64BE(at) & 0x00fffffffffffe00n)

beforeAll(async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const disk = await create(image, { format: 'qcow2', size: SIZE, clusterSize: CLUSTER })
    await disk.write(0, Buffer.alloc(20_000, 1))
    await disk.write(100_000, Buffer.alloc(5000, 2))
    await disk.close()
    base = fs.readFileSync(image)
    const l1 = u64(base, 40)
    const l2 = u64(base, l1)
    const refcountTable = u64(base, 48)
    places = { l1, l2, refcountTable, block: u64(base, refcountTable), data: u64(base, l2) }
  })
})

async function withImage(
  spoil: (image: Buffer) => Buffer | undefined,
  work: (image: string, bytes: Buffer) => Promise<void>,
) {
  await inDirectory(async (directory) => {
    const copy = Buffer.from(base)
    const bytes = spoil(copy) ?? copy
    const image = imageIn(directory)
    fs.writeFileSync(image, bytes)
    await work(image, bytes)
  })
}

type Spoil = (image: Buffer) => Buffer | undefined

const set32 =
  (at: number, value: number): Spoil =>
  (image) => {
    image.writeUInt32BE(value >>> 0, at)
    return undefined
  }
const set64 =
  (at: number, value: bigint): Spoil =>
  (image) => {
    image.writeBigUInt64BE(value, at)
    return undefined
  }

const refused: [string, string, Spoil][] = [
  ['it is empty', 'qcow2', () => Buffer.alloc(0)],
  ['it is cut off inside the header', 'qcow2', (image) => image.subarray(0, 90)],
  ['it begins otherwise', 'QFI', set32(0, 0x514649fa)],
  ['version 1', 'version 1', set32(4, 1)],
  ['version 4', 'version 4', set32(4, 4)],
  ['CVE-2014-0144: clusters of one byte', 'clusters', set32(20, 0)],
  ['CVE-2014-0144: clusters of 2^8 bytes', 'clusters', set32(20, 8)],
  ['CVE-2014-0144: clusters of 2^22 bytes', 'clusters', set32(20, 22)],
  ['CVE-2014-0144: clusters of 2^63 bytes', 'clusters', set32(20, 63)],
  ['CVE-2014-0143: an L1 table of 2^32 - 1 entries', 'L1', set32(36, 0xffffffff)],
  ['CVE-2014-0143: an L1 table of more than 32 MiB', 'L1', set32(36, (32 << 20) / 8 + 1)],
  ['CVE-2014-0143: a size that overflows', 'size', set64(24, 0xffffffffffffffffn)],
  ['CVE-2014-0143: a size that the L1 table can not describe', 'L1', set64(24, 1n << 40n)],
  ['CVE-2014-0147: a refcount table past the end', 'refcount', set64(48, 1n << 62n)],
  ['CVE-2014-0147: a refcount table at an odd place', 'refcount', set64(48, 4097n)],
  ['CVE-2014-0147: a refcount table at 0', 'refcount', set64(48, 0n)],
  ['a refcount table of no clusters', 'refcount', set32(56, 0)],
  ['a refcount table of 2^32 - 1 clusters', 'refcount', set32(56, 0xffffffff)],
  ['a refcount table of more than 8 MiB', 'refcount', set32(56, (8 << 20) / CLUSTER + 1)],
  ['an L1 table at an odd place', 'L1', set64(40, 12345n)],
  ['an L1 table past the end', 'L1', set64(40, 1n << 55n)],
  ['CVE-2014-0145: 65537 snapshots', 'snapshots', set32(60, 65537)],
  [
    'CVE-2014-0146: snapshots past the end',
    'snapshots',
    (image) => {
      image.writeUInt32BE(1, 60)
      image.writeBigUInt64BE(1n << 50n, 64)
      return undefined
    },
  ],
  [
    'CVE-2014-0145: a snapshot with too much extra data',
    'extra',
    (image) => {
      image.writeUInt32BE(1, 60)
      image.writeBigUInt64BE(BigInt(places.data), 64)
      image.fill(0, places.data, places.data + 64)
      image.writeUInt32BE(0xfffffff0, places.data + 36)
      return undefined
    },
  ],
  [
    'CVE-2014-0143: a snapshot with an L1 table of 2^32 - 1 entries',
    'L1',
    (image) => {
      image.writeUInt32BE(1, 60)
      image.writeBigUInt64BE(BigInt(places.data), 64)
      image.fill(0, places.data, places.data + 64)
      image.writeUInt32BE(0xffffffff, places.data + 8)
      return undefined
    },
  ],
  ['encryption by AES', 'encryption', set32(32, 1)],
  ['encryption by LUKS', 'encryption', set32(32, 2)],
  ['unknown encryption', 'encryption', set32(32, 77)],
  ['an external data file', 'external data file', set32(76, 4)],
  ['extended L2 entries', 'extended L2', set32(76, 16)],
  ['an unknown incompatible feature', 'bit 5', set32(76, 32)],
  ['an unknown incompatible feature in the upper half', 'bit 63', set32(72, 0x80000000)],
  [
    'an unknown feature that has a name',
    '"warp drive"',
    (image) => {
      image.writeUInt32BE(1 << 7, 76)
      image.writeUInt32BE(0x6803f857, 112)
      image.writeUInt32BE(48, 116)
      image.fill(0, 120, 168)
      image[121] = 7
      image.write('warp drive', 122)
      return undefined
    },
  ],
  ['corrupt', 'corrupt', set32(76, 2)],
  ['counts of 2^7 bits', 'reference counts', set32(96, 7)],
  ['counts of 2^31 bits', 'reference counts', set32(96, 31)],
  ['a header of no bytes', 'header', set32(100, 0)],
  ['a header that is longer than a cluster', 'header', set32(100, CLUSTER + 8)],
  ['a header of 2^32 - 1 bytes', 'header', set32(100, 0xffffffff)],
  [
    'an extension that is longer than the header',
    'extension',
    (image) => {
      image.writeUInt32BE(0x12345678, 112)
      image.writeUInt32BE(0x7fffffff, 116)
      return undefined
    },
  ],
  [
    'compression that contradicts its bit',
    'compression',
    (image) => {
      image[104] = 1
      return undefined
    },
  ],
  [
    'unknown compression',
    'compression',
    (image) => {
      image.writeUInt32BE(8, 76)
      image[104] = 2
      return undefined
    },
  ],
  [
    'a backing file',
    '/etc/passwd',
    (image) => {
      image.writeBigUInt64BE(1000n, 8)
      image.writeUInt32BE(11, 16)
      image.write('/etc/passwd', 1000)
      return undefined
    },
  ],
  [
    'a backing file by a protocol',
    'json:',
    (image) => {
      image.writeBigUInt64BE(1000n, 8)
      image.writeUInt32BE(38, 16)
      image.write('json:{"driver":"file","filename":"/x"} ', 1000)
      return undefined
    },
  ],
  [
    'the name of a backing file outside of the first cluster',
    'backing file',
    (image) => {
      image.writeBigUInt64BE(4090n, 8)
      image.writeUInt32BE(20, 16)
      return undefined
    },
  ],
  [
    'the name of a backing file in the header',
    'backing file',
    (image) => {
      image.writeBigUInt64BE(8n, 8)
      image.writeUInt32BE(20, 16)
      return undefined
    },
  ],
  [
    'the name of a backing file of 2^32 - 1 bytes',
    'backing file',
    (image) => {
      image.writeBigUInt64BE(1000n, 8)
      image.writeUInt32BE(0xffffffff, 16)
      return undefined
    },
  ],
]

describe('refused, with nothing written', () => {
  test.each(refused)('%s', async (_, words, spoil) => {
    await withImage(spoil, async (image, bytes) => {
      const error = await failure(open(image, { format: 'qcow2' }))
      expect(error).toBeInstanceOf(BlockError)
      expect((error as BlockError).message).toContain(words)
      expect(fs.readFileSync(image).equals(bytes)).toBe(true)
    })
  })
})

test('an image is never taken for what it is not said to be', async () => {
  await withImage(
    () => undefined,
    async (image) => {
      const raw = await open(image)
      expect(raw).toMatchObject({ format: 'raw', size: base.length })
      await raw.close()
    },
  )
})

const COPIED = 1n << 63n

/** Guest writes would go to a table, or a table lies in another one. */
const overlaps: [string, () => Spoil][] = [
  ['a cluster of the guest is the L1 table', () => set64(places.l2, COPIED | BigInt(places.l1))],
  ['a cluster of the guest is its own L2 table', () => set64(places.l2, COPIED | BigInt(places.l2))],
  ['a cluster of the guest is the refcount table', () => set64(places.l2, COPIED | BigInt(places.refcountTable))],
  ['a cluster of the guest is a refcount block', () => set64(places.l2, COPIED | BigInt(places.block))],
  ['a cluster of the guest lies past the end', () => set64(places.l2, COPIED | (1n << 50n))],
  ['a cluster of the guest lies at an odd place', () => set64(places.l2, COPIED | BigInt(places.data + 512))],
  ['an entry has bits that mean nothing', () => set64(places.l2, COPIED | (1n << 60n) | BigInt(places.data))],
  ['an L2 table is the header', () => set64(places.l1, COPIED | 0n)],
  ['an L2 table is the L1 table', () => set64(places.l1, COPIED | BigInt(places.l1))],
  ['an L2 table is a refcount block', () => set64(places.l1, COPIED | BigInt(places.block))],
  ['an L2 table lies past the end', () => set64(places.l1, COPIED | (1n << 50n))],
  ['an L2 table lies at an odd place', () => set64(places.l1, COPIED | BigInt(places.l2 + 512))],
  ['a refcount block is the header of another table', () => set64(places.refcountTable, BigInt(places.l1))],
  ['a refcount block lies past the end', () => set64(places.refcountTable, 1n << 50n)],
  ['a refcount block lies at an odd place', () => set64(places.refcountTable, BigInt(places.block + 512))],
  ['the L1 table is the refcount table', () => set64(40, BigInt(places.refcountTable))],
  [
    'tables count as free',
    () => (image) => {
      image.fill(0, places.block, places.block + CLUSTER)
      return undefined
    },
  ],
]

describe('tables that overlap', () => {
  test.each(overlaps)('%s: writes are refused and tables stay as they are', async (_, spoil) => {
    await withImage(spoil(), async (image, bytes) => {
      const disk = await open(image, { format: 'qcow2' })
      const results = [
        await disk.write(0, Buffer.alloc(CLUSTER, 9)).catch((error: unknown) => error),
        await disk.write(200_000, Buffer.alloc(CLUSTER, 9)).catch((error: unknown) => error),
      ]
      expect(results.some((result) => result instanceof BlockError)).toBe(true)
      for (const result of results) if (result !== undefined) expect(result).toMatchObject({ code: 'EIO' })
      await disk.read(150_000, Buffer.alloc(10)).catch((error: unknown) => expect(error).toBeInstanceOf(BlockError))
      await disk.close().catch((error: unknown) => expect(error).toBeInstanceOf(BlockError))
      const after = fs.readFileSync(image)
      for (const [from, length] of [
        [0, 112],
        [places.l1, 8],
        [places.l2, 64],
        [places.refcountTable, 8],
      ] as const) {
        expect(after.subarray(from, from + length).equals(bytes.subarray(from, from + length))).toBe(true)
      }
      const found = await open(image, { format: 'qcow2', readOnly: true })
      expect((await found.check()).corruptions).toBeGreaterThan(0)
      await found.close()
    })
  })

  test('compressed bytes that are none, or too many: only those who read them hear of it', async () => {
    const place = 62 - (12 - 8)
    await withImage(set64(places.l2, (1n << 62n) | (3n << BigInt(place)) | BigInt(places.data)), async (image) => {
      const disk = await open(image, { format: 'qcow2', readOnly: true })
      expect(await failure(disk.read(0, Buffer.alloc(100)))).toMatchObject({ code: 'EIO' })
      await disk.read(CLUSTER, Buffer.alloc(100))
      await disk.close()
    })
  })
})

/** An image that is damaged, and where its tables lie. */
interface Victim {
  image: Buffer
  cluster: number
  /** Places of entries of 8 bytes. */
  entries: number[]
  /** Where counts lie. */
  counts: number
}

/** All tables of an image that is in order, as far as they lie in the first few clusters of each. */
function victimOf(image: Buffer): Victim {
  const cluster = 2 ** image.readUInt32BE(20)
  const entries: number[] = []
  const table = (at: number, count: number): number[] => Array.from({ length: count }, (_, n) => at + n * 8)
  const l1 = u64(image, 40)
  const l1s = table(l1, Math.min(8, image.readUInt32BE(36)))
  const refcountTable = u64(image, 48)
  entries.push(...l1s, ...l1s, ...table(refcountTable, 2))
  for (const at of l1s) if (u64(image, at) !== 0) entries.push(...table(u64(image, at), 64))
  const snapshots = image.readUInt32BE(60) > 0 ? u64(image, 64) : 0
  if (snapshots > 0) entries.push(...table(snapshots, 12), ...table(u64(image, snapshots), 4))
  if (image.readUInt32BE(112) === 0x23852875) {
    const directory = u64(image, 136)
    entries.push(...table(112, 4), ...table(directory, 4), ...table(u64(image, directory), 2))
  }
  return { image, cluster, entries: entries.filter((at) => at + 8 <= image.length), counts: u64(image, refcountTable) }
}

const victims: Victim[] = []

beforeAll(async () => {
  victims.push(victimOf(base))
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    for (const options of [
      { clusterSize: 512, refcountBits: 1 },
      { clusterSize: 512, refcountBits: 64, lazyRefcounts: true },
      { clusterSize: 65536, refcountBits: 8 },
    ]) {
      const disk = await create(image, { format: 'qcow2', size: SIZE, overwrite: true, ...options })
      await disk.write(0, Buffer.alloc(20_000, 1))
      await disk.write(100_000, Buffer.alloc(5000, 2))
      await disk.close()
      victims.push(victimOf(fs.readFileSync(image)))
    }
    if (noQemu !== '') return
    // Compressed clusters, a snapshot and a bitmap, of one image.
    fs.writeFileSync(`${directory}/raw`, Buffer.alloc(SIZE, 'something that can be made smaller. '))
    qemuImg('convert', '-c', '-O', 'qcow2', '-o', 'cluster_size=4096', `${directory}/raw`, image)
    qemuImg('snapshot', '-c', 'first', image)
    qemuIo(image, 'write -P 3 50k 20k', 'write -z 100k 8k')
    qemuImg('bitmap', '--add', '-g', '512', image, 'bits')
    qemuIo(image, 'write -P 4 10k 3k')
    victims.push(victimOf(fs.readFileSync(image)))
  })
})

/** Values that lie where mistakes are. */
function nasty({ image, cluster }: Victim, random: () => number): bigint {
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!
  const offset = BigInt(cluster * Math.floor(random() * (image.length / cluster + 2)))
  return pick([
    0n,
    1n,
    offset,
    offset | COPIED,
    offset | COPIED | 1n,
    offset | 1n,
    offset + 512n,
    offset | (1n << 62n) | (BigInt(Math.floor(random() * 16)) << 58n),
    0xffffffffffffffffn,
    1n << BigInt(Math.floor(random() * 64)),
    BigInt(Math.floor(random() * 2 ** 48)),
    BigInt(Math.floor(random() * 256)),
  ])
}

function mutate(random: () => number): Buffer {
  const victim = victims[Math.floor(random() * victims.length)]!
  const image = Buffer.from(victim.image)
  for (let n = 1 + Math.floor(random() * 4); n > 0; n--) {
    const kind = random()
    const value = nasty(victim, random)
    if (kind < 0.3) {
      const at = Math.floor(random() * 28) * 4
      if (at < 8 && random() < 0.9) continue
      if (random() < 0.5) image.writeUInt32BE(Number(value & 0xffffffffn), at)
      else image.writeBigUInt64BE(value, at)
    } else if (kind < 0.8) {
      image.writeBigUInt64BE(value, victim.entries[Math.floor(random() * victim.entries.length)]!)
    } else if (kind < 0.95) {
      image.writeUInt16BE(Number(value & 0xffffn), victim.counts + 2 * Math.floor(random() * 40))
    } else {
      image.writeUInt32BE(Number(value & 0xffffffffn), 112 + 4 * Math.floor(random() * 10))
    }
  }
  return random() < 0.1 ? image.subarray(0, Math.floor(random() * image.length)) : image
}

async function abuse(disk: BlockDevice, random: () => number, say: (stage: string) => void): Promise<void> {
  const size = Math.min(disk.size, 1 << 20)
  const at = (length: number): number => Math.floor(random() * Math.max(0, size - length))
  const refuse = (error: unknown): void => {
    if (!(error instanceof BlockError)) throw error
  }
  for (let n = 0; n < 12; n++) {
    const length = Math.min(size, 1 + Math.floor(random() * 9000))
    const kind = random()
    say(`operation ${n}, a kind of ${kind.toFixed(2)}`)
    if (kind < 0.3) await disk.read(at(length), Buffer.alloc(length)).catch(refuse)
    else if (kind < 0.65) await disk.write(at(length), Buffer.alloc(length, n + 1)).catch(refuse)
    else if (kind < 0.75) await disk.writeZeroes(at(length), length).catch(refuse)
    else if (kind < 0.85) await disk.discard(at(length), length).catch(refuse)
    else if (kind < 0.9) await disk.truncate(disk.size + 512 * Math.floor(random() * 100)).catch(refuse)
    else if (kind < 0.95) await disk.flush().catch(refuse)
    else await disk.check({ repair: random() < 0.5 }).catch(refuse)
  }
  say('checking')
  await disk.check().catch(refuse)
  say('closing')
  await disk.close().catch(refuse)
}

/** What one damaged image may take. It is some milliseconds; a machine that does other things as well makes it some hundred. */
const HANG_MS = 20_000

/**
 * Tells at once, past the reporter, which seed failed and why, and keeps the image: a run of an hour must not end in a message that
 * scrolled away, and a process that dies tells nothing at all.
 */
function tellFailure(seed: number, bytes: Buffer, stage: string, error: unknown): void {
  const kept = path.join(os.tmpdir(), `multiwrite-damaged-${seed}.qcow2`)
  const why = error instanceof Error ? (error.stack ?? error.message) : String(error)
  const under = process.getActiveResourcesInfo().join(', ')
  const words = `MULTIWRITE_SEED=${seed} failed while ${stage}; the image is ${kept}; under way: ${under}\n${why}\n`
  fs.writeFileSync(kept, bytes)
  fs.writeFileSync(`${kept}.txt`, words)
  fs.writeSync(2, words)
}

async function treat(image: string, bytes: Buffer, random: () => number, say: (stage: string) => void) {
  const readOnly = random() < 0.3
  const options = { format: 'qcow2', readOnly, ...(random() < 0.5 ? { backing: null } : {}) } as const
  say('opening')
  let disk: BlockDevice
  try {
    disk = await open(image, options)
  } catch (error) {
    if (!(error instanceof BlockError)) throw error
    expect(fs.readFileSync(image).equals(bytes)).toBe(true)
    return false
  }
  await abuse(disk, random, say)
  if (readOnly) expect(fs.readFileSync(image).equals(bytes)).toBe(true)
  expect(fs.statSync(image).size).toBeLessThan(32 << 20)
  return true
}

test('images with random damage: no crash, no hang, bounded memory, and nothing is written to what is refused', {
  timeout: 3_600_000,
}, async () => {
  const seeds =
    seedsGiven === undefined ? Array.from({ length: long ? 20_000 : 400 }, (_, n) => n) : [Number(seedsGiven)]
  let opened = 0
  const heap = process.memoryUsage().rss
  const times: { seed: number; ms: number }[] = []
  for (const seed of seeds) {
    const random = randomOf(seed + 77)
    const spoilt = mutate(random)
    const began = performance.now()
    await withImage(
      () => spoilt,
      async (image, bytes) => {
        let stage = ''
        const say = (now: string): void => {
          stage = now
        }
        let timer: NodeJS.Timeout | undefined
        const hang = new Promise<never>((_, reject) => {
          timer = setTimeout(() => reject(new Error('it hangs')), HANG_MS)
        })
        try {
          if (await Promise.race([treat(image, bytes, random, say), hang])) opened++
        } catch (error) {
          tellFailure(seed, bytes, stage, error)
          throw new Error(`seed ${seed}, ${stage}`, { cause: error })
        } finally {
          clearTimeout(timer)
        }
      },
    )
    times.push({ seed, ms: performance.now() - began })
  }
  const grown = (process.memoryUsage().rss - heap) >> 20
  if (long) {
    const slowest = times.sort((a, b) => b.ms - a.ms).slice(0, 5)
    const words = slowest.map(({ seed, ms }) => `${seed}: ${ms.toFixed(0)} ms`).join(', ')
    fs.writeSync(2, `${opened} of ${seeds.length} opened, ${grown} MiB more in memory; the slowest seeds: ${words}\n`)
  }
  if (seedsGiven === undefined) expect(opened).toBeGreaterThan(seeds.length / 5)
  expect(grown).toBeLessThan(512)
})

// The counts said "two", so check found nothing wrong, and with repair the image was written to as if it were in order.
test('tables that lie in each other stay refused, also where counts agree with that, and after a repair', async () => {
  const spoil = (image: Buffer): undefined => {
    // A cluster of the guest is the L1 table.
    image.writeBigUInt64BE(BigInt(places.l1), places.l2 + 8 * 30)
    image.writeUInt16BE(2, places.block + 2 * (places.l1 / CLUSTER))
  }
  await withImage(spoil, async (image, bytes) => {
    const disk = await open(image, { format: 'qcow2' })
    expect((await disk.check()).corruptions).toBeGreaterThan(0)
    expect((await disk.check({ repair: true })).corruptions).toBeGreaterThan(0)
    await disk.close()
    expect(
      fs
        .readFileSync(image)
        .subarray(places.l1, places.l1 + 8)
        .equals(bytes.subarray(places.l1, places.l1 + 8)),
    ).toBe(true)
  })
  // A refcount table of two clusters, of which the second is the L1 table of an empty guest.
  const overlap = (image: Buffer): Buffer => {
    const [table, l1] = [image.length, image.length + CLUSTER]
    image.writeBigUInt64BE(BigInt(table), 48)
    image.writeUInt32BE(2, 56)
    image.writeBigUInt64BE(BigInt(l1), 40)
    image.fill(0, places.block, places.block + CLUSTER)
    for (const [at, count] of [
      [0, 1],
      [places.block, 1],
      [table, 1],
      [l1, 2],
    ] as const) {
      image.writeUInt16BE(count, places.block + 2 * (at / CLUSTER))
    }
    const tables = Buffer.alloc(2 * CLUSTER)
    tables.writeBigUInt64BE(BigInt(places.block))
    return Buffer.concat([image, tables])
  }
  await withImage(overlap, async (image) => {
    const disk = await open(image, { format: 'qcow2' })
    for (const repair of [false, true]) {
      expect(await disk.check({ repair })).toMatchObject({ corruptions: 1, leaks: 0, checkErrors: 0 })
      expect(await failure(disk.write(0, Buffer.alloc(100, 9)))).toMatchObject({ code: 'EIO' })
    }
    await disk.close()
  })
})

// It was put together anew for each 64 KiB of it: half a minute for 64 MiB.
test('a long table of snapshots is read in few pieces', async () => {
  const count = 400
  const length = 40 + 2 * 65535 + 2
  const spoil = (image: Buffer): Buffer => {
    const table = Buffer.alloc(count * length)
    for (let at = 0; at < table.length; at += length) table.fill(0xff, at + 12, at + 16)
    image.writeUInt32BE(count, 60)
    image.writeBigUInt64BE(BigInt(image.length), 64)
    return Buffer.concat([image, table])
  }
  await withImage(spoil, async (image) => {
    const disk = await open(image, { format: 'qcow2' })
    expect(disk.stats.metadata.submissions).toBeLessThan(30)
    expect(disk.stats.metadata.bytes).toBeGreaterThan(count * length)
    await disk.close()
  })
})

test('counts of 64 bits that no number can hold stay as they are', async () => {
  await inDirectory(async (directory) => {
    const image = imageIn(directory)
    const made = await create(image, { format: 'qcow2', size: SIZE, clusterSize: 4096, refcountBits: 64 })
    await made.write(0, Buffer.alloc(SIZE, 1))
    await made.close()
    const bytes = fs.readFileSync(image)
    const block = u64(bytes, u64(bytes, 48))
    const data = u64(bytes, u64(bytes, u64(bytes, 40)))
    const at = block + 8 * (data / 4096)
    bytes.writeBigUInt64BE(0xffffffffffffffffn, at)
    fs.writeFileSync(image, bytes)
    const disk = await open(image, { format: 'qcow2' })
    await disk.discard(0, SIZE)
    await disk.close()
    expect(fs.readFileSync(image).readBigUInt64BE(at)).toBe(0xffffffffffffffffn)
    const again = await open(image, { format: 'qcow2' })
    expect(await again.check()).toMatchObject({ leaks: 1, corruptions: 0 })
    expect(await again.check({ repair: true })).toMatchObject({ leaks: 0, leaksFixed: 1, corruptions: 0 })
    await again.close()
  })
})

describe('bitmaps that are void', () => {
  const DIRECTORY = 64 << 10
  const TABLE = DIRECTORY + CLUSTER
  const BITS = TABLE + CLUSTER

  /** An image with a bitmap whose directory, table and clusters lie behind everything else, and are counted. */
  function withBitmap(spoil: (image: Buffer) => void): Spoil {
    return (image) => {
      const longer = Buffer.concat([image, Buffer.alloc(BITS + CLUSTER - image.length)])
      longer[95] = 1
      longer.writeUInt32BE(0x23852875, 112)
      longer.writeUInt32BE(24, 116)
      longer.writeUInt32BE(1, 120)
      longer.writeBigUInt64BE(32n, 128)
      longer.writeBigUInt64BE(BigInt(DIRECTORY), 136)
      longer.writeBigUInt64BE(BigInt(TABLE), DIRECTORY)
      longer.writeUInt32BE(2, DIRECTORY + 8)
      longer[DIRECTORY + 16] = 1
      longer[DIRECTORY + 17] = 16
      longer.writeUInt16BE(4, DIRECTORY + 18)
      longer.write('name', DIRECTORY + 24)
      longer.writeBigUInt64BE(BigInt(BITS), TABLE)
      longer.writeBigUInt64BE(1n, TABLE + 8)
      for (const at of [DIRECTORY, TABLE, BITS]) longer.writeUInt16BE(1, places.block + 2 * (at / CLUSTER))
      spoil(longer)
      return longer
    }
  }

  const countOf = (image: Buffer, at: number): number => image.readUInt16BE(places.block + 2 * (at / CLUSTER))

  async function write(spoil: (image: Buffer) => void): Promise<{ counts: number[]; after: Buffer; leaks: number }> {
    let found: { counts: number[]; after: Buffer; leaks: number } | undefined
    await withImage(withBitmap(spoil), async (image) => {
      const disk = await open(image, { format: 'qcow2' })
      await disk.write(0, Buffer.alloc(100, 9))
      await disk.close()
      const after = fs.readFileSync(image)
      expect(after[95]).toBe(0)
      const reader = await open(image, { format: 'qcow2', readOnly: true })
      const { leaks, corruptions } = await reader.check()
      expect(corruptions).toBe(0)
      await reader.close()
      found = { counts: [DIRECTORY, TABLE, BITS].map((at) => countOf(after, at)), after, leaks }
    })
    return found!
  }

  test('are given back', async () => {
    expect(await write(() => undefined)).toMatchObject({ counts: [0, 0, 0], leaks: 0 })
  })

  const odd: [string, (image: Buffer) => void][] = [
    ['their bits are the L1 table', (image) => void image.writeBigUInt64BE(BigInt(places.l1), TABLE)],
    ['their bits are a refcount block', (image) => void image.writeBigUInt64BE(BigInt(places.block), TABLE)],
    ['their bits are the header', (image) => void image.writeBigUInt64BE(512n, TABLE)],
    ['their bits are their own directory', (image) => void image.writeBigUInt64BE(BigInt(DIRECTORY), TABLE)],
    ['their bits are their own table', (image) => void image.writeBigUInt64BE(BigInt(TABLE), TABLE)],
    ['their bits stand twice', (image) => void image.writeBigUInt64BE(BigInt(BITS), TABLE + 8)],
    ['their bits lie past the end', (image) => void image.writeBigUInt64BE(1n << 50n, TABLE)],
    ['an entry has bits that mean nothing', (image) => void image.writeBigUInt64BE((1n << 60n) | BigInt(BITS), TABLE)],
    ['a table is the L2 table', (image) => void image.writeBigUInt64BE(BigInt(places.l2), DIRECTORY)],
    ['a table lies past the end', (image) => void image.writeBigUInt64BE(1n << 50n, DIRECTORY)],
    ['a table lies at an odd place', (image) => void image.writeBigUInt64BE(BigInt(TABLE + 8), DIRECTORY)],
    ['a table has 2^32 - 1 entries', (image) => void image.writeUInt32BE(0xffffffff, DIRECTORY + 8)],
    ['a name is longer than the directory', (image) => void image.writeUInt16BE(0xffff, DIRECTORY + 18)],
    ['there are fewer than the header says', (image) => void image.writeUInt32BE(2, 120)],
    ['their bits are counted twice', (image) => void image.writeUInt16BE(2, places.block + 2 * (BITS / CLUSTER))],
  ]
  test.each(odd)('stay where they are, and nothing else is touched, if %s', async (_, spoil) => {
    const before = withBitmap(spoil)(Buffer.from(base))!
    const { counts, after } = await write(spoil)
    expect(counts).toEqual([DIRECTORY, TABLE, BITS].map((at) => countOf(before, at)))
    for (const at of [places.l1, places.l2, places.refcountTable, places.block]) {
      expect(after.subarray(at, at + 64).equals(before.subarray(at, at + 64))).toBe(true)
    }
  })

  // Each of them was read as often as it was named.
  test('of which many share one table are looked at once', async () => {
    const count = 65535
    const entries = CLUSTER
    const spoil = (image: Buffer): Buffer => {
      const longer = withBitmap(() => undefined)(image)!
      const directory = Buffer.alloc(count * 32)
      longer.writeUInt32BE(count, 120)
      longer.writeBigUInt64BE(BigInt(directory.length), 128)
      longer.writeBigUInt64BE(BigInt(longer.length), 136)
      for (let at = 0; at < directory.length; at += 32) {
        longer.copy(directory, at, DIRECTORY, DIRECTORY + 32)
        directory.writeUInt32BE(entries, at + 8)
      }
      return Buffer.concat([longer, directory])
    }
    await withImage(spoil, async (image) => {
      const disk = await open(image, { format: 'qcow2' })
      expect((await disk.check()).corruptions).toBeGreaterThan(0)
      expect(disk.stats.metadata.bytes).toBeLessThan(16 << 20)
      await disk.write(0, Buffer.alloc(100, 9))
      expect(disk.stats.metadata.bytes).toBeLessThan(16 << 20)
      await disk.close()
    })
  })
})

// Each entry was followed, and the one table read a million times.
test('check reads a table once, however often it is named', async () => {
  const entries = 1 << 20
  const spoil = (image: Buffer): Buffer => {
    const l1 = Buffer.alloc(entries * 8)
    for (let at = 0; at < l1.length; at += 8) base.copy(l1, at, places.l1, places.l1 + 8)
    image.writeBigUInt64BE(BigInt(entries) * BigInt((CLUSTER / 8) * CLUSTER), 24)
    image.writeUInt32BE(entries, 36)
    image.writeBigUInt64BE(BigInt(image.length), 40)
    return Buffer.concat([image, l1])
  }
  await withImage(spoil, async (image) => {
    const disk = await open(image, { format: 'qcow2', readOnly: true })
    const before = disk.stats.metadata.submissions
    const { corruptions, allocatedClusters } = await disk.check()
    expect(corruptions).toBeGreaterThan(0)
    expect(allocatedClusters).toBe(entries * 7)
    expect(disk.stats.metadata.submissions - before).toBeLessThan(100)
    await disk.close()
  })
})

// What no block describes was gone through cluster by cluster, for minutes; and a reference took a thousand bytes of memory.
test('check takes no more time and memory for references that lie far apart', { timeout: 60_000 }, async () => {
  const tables = 1024
  const perTable = CLUSTER / 8
  const apart = 24 << 20
  const first = 2 ** 33
  const spoil = (image: Buffer): Buffer => {
    const l1 = Buffer.alloc(tables * 8)
    const l2 = Buffer.alloc(tables * CLUSTER)
    for (let n = 0; n < tables; n++) {
      l1.writeBigUInt64BE(BigInt(image.length + l1.length + n * CLUSTER) | (1n << 63n), n * 8)
    }
    for (let n = 0; n < tables * perTable; n++) l2.writeBigUInt64BE(BigInt(first + n * apart) | (1n << 63n), n * 8)
    image.writeBigUInt64BE(BigInt(tables) * BigInt(perTable * CLUSTER), 24)
    image.writeUInt32BE(tables, 36)
    image.writeBigUInt64BE(BigInt(image.length), 40)
    return Buffer.concat([image, l1, l2])
  }
  await withImage(spoil, async (image) => {
    const end = first + tables * perTable * apart
    fs.truncateSync(image, end)
    const disk = await open(image, { format: 'qcow2', readOnly: true })
    const before = process.memoryUsage().rss
    const found = await disk.check()
    expect(process.memoryUsage().rss - before).toBeLessThan(320 << 20)
    expect(found).toMatchObject({ allocatedClusters: tables * perTable, imageEndOffset: end - apart + CLUSTER })
    expect(found.corruptions).toBeGreaterThanOrEqual(tables * perTable)
    await disk.close()
  })
})
