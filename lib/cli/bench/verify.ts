// Reads back what a load has written and compares every byte: through a device opened anew, in batches, block by block in
// ascending order, so that the first wrong byte is the first one of the target.

import { open } from '../../index.ts'
import type { Load } from './loop.ts'
import { checkBlock, WORD_BYTES } from './pattern.ts'
import type { Verified } from './results.ts'
import type { TargetOptions } from './target.ts'

/** Read at a time. */
const BATCH_BYTES = 4 << 20

/** @param generations per block the number of its last write; 0: none */
export async function verifyWritten(
  { path, direct, engine }: TargetOptions,
  { bs, verifySeed }: Load,
  generations: Uint32Array,
): Promise<Verified> {
  const disk = await open(path, { readOnly: true, direct, engine })
  try {
    const perBatch = Math.max(1, Math.floor(BATCH_BYTES / bs))
    const memory = disk.alloc(perBatch * bs)
    const words = new Uint32Array(memory.buffer, memory.byteOffset, (perBatch * bs) / WORD_BYTES)
    const wordsPerBlock = bs / WORD_BYTES
    let bytes = 0
    for (let block = 0; block < generations.length; ) {
      const blocks: number[] = []
      for (; block < generations.length && blocks.length < perBatch; block++) {
        if (generations[block] !== 0) blocks.push(block)
      }
      await disk.multiread(
        blocks.map((each, i) => ({ offset: each * bs, into: memory.subarray(i * bs, (i + 1) * bs) })),
      )
      for (const [i, each] of blocks.entries()) {
        const content = words.subarray(i * wordsPerBlock, (i + 1) * wordsPerBlock)
        const mismatch = checkBlock(content, each * bs, verifySeed!, generations[each]!)
        if (mismatch !== null) return { bytes, mismatch }
        bytes += bs
      }
    }
    return { bytes, mismatch: null }
  } finally {
    await disk.close()
  }
}
