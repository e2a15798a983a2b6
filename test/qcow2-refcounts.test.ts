// Who gets which cluster, when a block of reference counts is being made for one caller and others allocate meanwhile.

import type { FormatHost } from 'multiwrite'
import { expect, test } from 'vitest'
import type { Header } from '../dist/format/qcow2/header.js'
import { Metadata } from '../dist/format/qcow2/metadata.js'
import { type Extent, Refcounts } from '../dist/format/qcow2/refcounts.js'

const clusterSize = 512
/** Counts of 64 bits. */
const perBlock = 64
/** Blocks made ahead of need. */
const ahead = 16

/** The counts of a file that holds a header, a refcount table and one block. */
function countsOfEmptyFile(): Refcounts {
  let size = 3 * clusterSize
  const bytes = Buffer.alloc(1 << 20)
  for (const used of [0, 1, 2]) bytes.writeUInt32BE(1, 2 * clusterSize + used * 8 + 4)
  const host = {
    path: 'memory',
    readOnly: false,
    limits: { alignment: 1 },
    get size(): number {
      return size
    },
    read: async (offset: number, into: Uint8Array): Promise<void> =>
      into.set(bytes.subarray(offset, offset + into.length)),
    truncate: async (to: number): Promise<void> => {
      size = to
    },
    alloc: (length: number): Buffer => Buffer.alloc(length),
  }
  const header = { clusterSize, refcountOrder: 6, refcountOffset: clusterSize, refcountClusters: 1 }
  const table = Buffer.alloc(clusterSize)
  table.writeUInt32BE(2 * clusterSize, 4)
  const metadata = new Metadata(host as unknown as FormatHost, clusterSize)
  const refcounts = new Refcounts(metadata, header as Header, table)
  refcounts.end.growable = true
  return refcounts
}

test('a block that somebody else makes meanwhile is not made twice', async () => {
  // Whoever comes in between comes after so many promise jobs.
  for (let jobs = 0; jobs < 16; jobs++) {
    const refcounts = countsOfEmptyFile()
    const taken: Extent[] = []
    // Whole stretches, so that nothing is left for blocks after those that were made first.
    while (taken.reduce((end, { first, count }) => Math.max(end, first + count), 0) < (ahead + 1) * perBlock)
      taken.push(await refcounts.allocate(perBlock))
    let used = taken.reduce((sum, { count }) => sum + count, 0)
    const waiting = refcounts.allocate(perBlock)
    expect(waiting).toBeInstanceOf(Promise)
    for (let n = 0; n < jobs; n++) await null
    // Clusters of a stretch whose blocks ahead reach as far as the one that is being made.
    const freed = [...Array(8).keys()].map((n) => perBlock + 8 + n)
    await refcounts.release(freed)
    taken.push(await refcounts.allocate(1), await waiting, await refcounts.allocate(perBlock))
    used += taken.slice(-3).reduce((sum, { count }) => sum + count, 0) - freed.length
    let counted = 0
    let blocks = 0
    for (const [index, offset] of refcounts.blocks.table.entries()) {
      if (offset === 0) continue
      blocks++
      const block = await refcounts.blocks.load(index)
      for (let n = 0; n < perBlock; n++) counted += refcounts.blocks.get(block, n)
    }
    // The header, the table, its blocks, and what was taken.
    expect({ jobs, counted }).toEqual({ jobs, counted: 2 + blocks + used })
  }
})
