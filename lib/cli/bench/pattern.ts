// What `--verify` writes and expects: bytes that depend on the seed, on the offset of the block, and on how many writes went
// before it. So a block that lies elsewhere, an old one, and one that was never written are all told from the right one.
//
// The first four bytes of a block carry the number of the write, veiled by the seed and the offset; a later run that knows the
// seed can read it from there (`--rw=read --verify`, after a crash for example) and then knows what must follow.

import { mix } from './offsets.ts'

/** A block is a whole number of these. */
export const WORD_BYTES = 4

function base(seed: number, offset: number): number {
  return mix(mix(seed, offset % 2 ** 32), Math.floor(offset / 2 ** 32))
}

/** A generator of the words after the first; cheap, as it runs for every four bytes. */
function step(word: number): number {
  return (Math.imul(word, 1664525) + 1013904223) | 0
}

/**
 * Fills a block.
 *
 * @param words the block
 * @param offset its place on the target, in bytes
 * @param generation number of the write, from 1 on
 */
export function fillBlock(words: Uint32Array, offset: number, seed: number, generation: number): void {
  const veil = base(seed, offset)
  words[0] = veil ^ generation
  let word = mix(veil, generation)
  for (let i = 1; i < words.length; i++) {
    word = step(word)
    words[i] = word
  }
}

/** A byte that is not what was written. */
export interface Mismatch {
  /** From the start of the target. */
  offset: number
  expected: number
  found: number
}

/**
 * Compares a block with what it should hold.
 *
 * @param generation number of the write that must be there; `null`: any, as the block itself says
 * @returns the first wrong byte, or `null`
 */
export function checkBlock(
  words: Uint32Array,
  offset: number,
  seed: number,
  generation: number | null,
): Mismatch | null {
  const veil = base(seed, offset)
  const number = generation ?? (words[0]! ^ veil) >>> 0
  const first = (veil ^ number) >>> 0
  if (words[0] !== first) return firstByte(words[0]!, first, offset)
  let word = mix(veil, number)
  for (let i = 1; i < words.length; i++) {
    word = step(word)
    if (words[i] === word >>> 0) continue
    // If even the second word is wrong, then the number of the write was none, and the whole block is another's.
    if (generation === null && i === 1) return { offset, expected: first & 0xff, found: words[0]! & 0xff }
    return firstByte(words[i]!, word >>> 0, offset + i * WORD_BYTES)
  }
  return null
}

/** Words are compared as they lie in memory: little-endian, as on all machines that Node runs on. */
function firstByte(found: number, expected: number, offset: number): Mismatch {
  let byte = 0
  while (((found ^ expected) >>> (8 * byte)) % 256 === 0) byte++
  return { offset: offset + byte, expected: (expected >>> (8 * byte)) & 0xff, found: (found >>> (8 * byte)) & 0xff }
}
