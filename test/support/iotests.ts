// Concurrent writes to blocks that they share: what QEMU's own tests of its block layer (the "iotests", named by number) found
// worth trying, with their numbers.

import { setImmediate as turn } from 'node:timers/promises'
import type { BlockDevice } from 'multiwrite'

/** `[offset, length, byte]`: a write that consists of one byte over and over. */
export type Write = readonly [offset: number, length: number, byte: number]

export const filled = ([, length, byte]: Write): Buffer => Buffer.alloc(length, byte)

export function apply(content: Buffer, writes: readonly Write[]): Buffer {
  for (const [offset, length, byte] of writes) content.fill(byte, offset, offset + length)
  return content
}

/** Ways to issue writes that are in flight together. */
export const ways: Record<string, (disk: BlockDevice, writes: readonly Write[]) => Promise<unknown>> = {
  'one batch': (disk, writes) => disk.multiwrite(writes.map((one) => ({ offset: one[0], data: filled(one) }))),
  'one batch, nothing merged': (disk, writes) =>
    disk.multiwrite(writes.map((one) => ({ offset: one[0], data: filled(one), noMerge: true }))),
  'calls of one turn': (disk, writes) => Promise.all(writes.map((one) => disk.write(one[0], filled(one)))),
  'batches of one': (disk, writes) =>
    Promise.all(writes.map((one) => disk.multiwrite([{ offset: one[0], data: filled(one) }]))),
  'calls of many turns': async (disk, writes) => {
    const pending: Promise<void>[] = []
    for (const one of writes) {
      pending.push(disk.write(one[0], filled(one)))
      await turn()
    }
    await Promise.all(pending)
  },
}

export interface Group {
  name: string
  writes: Write[]
  /** `[from, to, byte]`; `null`: as it was. What is not named is as it was, too. */
  expected: (readonly [from: number, to: number, byte: number | null])[]
}

// ---------------------------------------------------------------------------------------------------------------------

export const iotest077: Group[] = [
  {
    name: 'one small write',
    writes: [[0x200, 0x200, 10]],
    expected: [
      [0, 0x200, null],
      [0x200, 0x400, 10],
      [0x400, 0x1000, null],
    ],
  },
  ...[0x1000, 0x2000].map(
    (base): Group => ({
      name: `two in one block at ${base.toString(16)}`,
      writes: [
        [base + 0x200, 0x200, 10],
        [base + 0x400, 0x200, 11],
      ],
      expected: [
        [base, base + 0x200, null],
        [base + 0x200, base + 0x400, 10],
        [base + 0x400, base + 0x600, 11],
        [base + 0x600, base + 0x1000, null],
      ],
    }),
  ),
  {
    name: 'a chain of eight in one block',
    writes: Array.from({ length: 8 }, (_, at) => [0x5000 + at * 0x200, 0x200, 10 + at] as const),
    expected: Array.from({ length: 8 }, (_, at) => [0x5000 + at * 0x200, 0x5200 + at * 0x200, 10 + at] as const),
  },
  ...[0x6000, 0x8000, 0xa000, 0xc000].map((base, order): Group => {
    const three: Write[] = [
      [base, 0x200, 10],
      [base + 0x1e00, 0x200, 10],
      [base + 0x800, 0x1000, 11],
    ]
    const orders = [
      [0, 1, 2],
      [0, 2, 1],
      [2, 0, 1],
      [2, 1, 0],
    ]
    return {
      name: `two in two blocks and one that spans both, order ${order}`,
      writes: orders[order]!.map((at) => three[at]!),
      expected: [
        [base, base + 0x200, 10],
        [base + 0x200, base + 0x800, null],
        [base + 0x800, base + 0x1800, 11],
        [base + 0x1800, base + 0x1e00, null],
        [base + 0x1e00, base + 0x2000, 10],
      ],
    }
  }),
  {
    name: 'the tail of one and a later one in the same block',
    writes: [
      [0xe000, 0x1800, 10],
      [0xf000, 0xc00, 11],
    ],
    expected: [
      [0xe000, 0xf000, 10],
      [0xf000, 0xfc00, 11],
      [0xfc00, 0x10000, null],
    ],
  },
  {
    name: 'overlapping, from the start of a block',
    writes: [
      [0x10000, 0x800, 10],
      [0x10000, 0x400, 11],
    ],
    expected: [
      [0x10000, 0x10400, 11],
      [0x10400, 0x10800, 10],
      [0x10800, 0x11000, null],
    ],
  },
  {
    name: 'a whole block over a part of it',
    writes: [
      [0x11000, 0x800, 10],
      [0x11000, 0x1000, 11],
    ],
    expected: [[0x11000, 0x12000, 11]],
  },
  {
    name: 'a part of a block over the whole',
    writes: [
      [0x12000, 0x1000, 10],
      [0x12800, 0x100, 11],
    ],
    expected: [
      [0x12000, 0x12800, 10],
      [0x12800, 0x12900, 11],
      [0x12900, 0x13000, 10],
    ],
  },
]

// QEMU's test writes to an image of 64 KiB clusters whose backing file has byte n throughout cluster n. Here the disk itself has.
export const cluster = 0x10000
export const iotest046: Group[] = [
  {
    name: 'before and after in the same cluster',
    writes: [
      [0x18000, 0x2000, 0x10],
      [0x12000, 0x2000, 0x11],
      [0x1c000, 0x2000, 0x12],
    ],
    expected: [
      [0x10000, 0x12000, 1],
      [0x12000, 0x14000, 0x11],
      [0x14000, 0x18000, 1],
      [0x18000, 0x1a000, 0x10],
      [0x1a000, 0x1c000, 1],
      [0x1c000, 0x1e000, 0x12],
      [0x1e000, 0x20000, 1],
    ],
  },
  {
    name: 'one after the other, across clusters',
    writes: [
      [0x28000, 0x2000, 0x20],
      [0x2a000, 0x10000, 0x21],
    ],
    expected: [
      [0x20000, 0x28000, 2],
      [0x28000, 0x2a000, 0x20],
      [0x2a000, 0x3a000, 0x21],
      [0x3a000, 0x40000, 3],
    ],
  },
  {
    name: 'one after the other, with a gap',
    writes: [
      [0x48000, 0x2000, 0x40],
      [0x4c000, 0x10000, 0x41],
    ],
    expected: [
      [0x40000, 0x48000, 4],
      [0x48000, 0x4a000, 0x40],
      [0x4a000, 0x4c000, 4],
      [0x4c000, 0x5c000, 0x41],
      [0x5c000, 0x60000, 5],
    ],
  },
  {
    name: 'with the next cluster written first',
    writes: [
      [0x76000, 0x8000, 0x70],
      [0x66000, 0x2000, 0x60],
      [0x6a000, 0xe000, 0x61],
    ],
    expected: [
      [0x60000, 0x66000, 6],
      [0x66000, 0x68000, 0x60],
      [0x68000, 0x6a000, 6],
      [0x6a000, 0x78000, 0x61],
      [0x78000, 0x7e000, 0x70],
      [0x7e000, 0x80000, 7],
    ],
  },
  {
    name: 'in reverse',
    writes: [
      [0xdc000, 0x2000, 121],
      [0xc4000, 0x18000, 120],
    ],
    expected: [
      [0xc0000, 0xc4000, 12],
      [0xc4000, 0xdc000, 120],
      [0xdc000, 0xde000, 121],
      [0xde000, 0xe0000, 13],
    ],
  },
  {
    name: 'in reverse, with a gap',
    writes: [
      [0xfc000, 0x2000, 141],
      [0xe4000, 0x14000, 140],
    ],
    expected: [
      [0xe0000, 0xe4000, 14],
      [0xe4000, 0xf8000, 140],
      [0xf8000, 0xfc000, 15],
      [0xfc000, 0xfe000, 141],
      [0xfe000, 0x100000, 15],
    ],
  },
  {
    name: 'enclosing an earlier one',
    writes: [
      [0x10c000, 0x8000, 161],
      [0x104000, 0x18000, 160],
    ],
    expected: [
      [0x100000, 0x104000, 16],
      [0x104000, 0x11c000, 160],
      [0x11c000, 0x120000, 17],
    ],
  },
]

export function clusters(size: number): Buffer {
  const content = Buffer.alloc(size)
  for (let at = 0; at < size; at += cluster) content.fill(at / cluster, at, at + cluster)
  return content
}

/** What a group's expectations say, on top of what was there. */
export function expectedOf(group: Group, before: Buffer): Buffer {
  const content = Buffer.from(before)
  for (const [from, to, byte] of group.expected) if (byte !== null) content.fill(byte, from, to)
  return content
}
