// Where the requests of a load go: one after another, or every block once in a random order, over and over.
//
// fio remembers in a bitmap which random blocks it has visited. Here the order is a permutation that is computed: a Feistel
// network over the block numbers, whose results past the last block are put through it again. It needs no memory and no search,
// visits every block once before any of them again, and has another order in each pass.

const ROUNDS = 4
/** The most blocks of a load: two halves of a block number must fit into integers. */
export const BLOCKS_MAX: number = 2 ** 52

/** A small generator of pseudo-random numbers (xorshift, Marsaglia 2003): 32 bits at a time. */
export class Random {
  #state: number

  constructor(seed: number) {
    // 0 would stay 0 for ever, and neighbouring seeds must not have neighbouring states.
    this.#state = mix(seed, 0x9e3779b9) || 1
  }

  /** A whole number from 0 to 2 ** 32 - 1. */
  next(): number {
    let x = this.#state
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    this.#state = x
    return x >>> 0
  }
}

/** Two numbers made one, every bit of which depends on all of theirs (the finaliser of MurmurHash3). */
export function mix(a: number, b: number): number {
  let x = a ^ Math.imul(b, 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return (x ^ (x >>> 16)) >>> 0
}

/** Block numbers below `blocks`, each once in every pass. */
export class Offsets {
  readonly #blocks: number
  readonly #random: boolean
  readonly #halfBits: number
  readonly #mask: number
  readonly #keys = new Uint32Array(ROUNDS)
  readonly #seeds: Random
  #next = 0

  constructor(blocks: number, random: boolean, seed: number) {
    this.#blocks = blocks
    this.#random = random
    this.#halfBits = Math.max(1, Math.ceil(Math.log2(blocks) / 2))
    this.#mask = 2 ** this.#halfBits - 1
    this.#seeds = new Random(seed)
    this.#rekey()
  }

  /** The next block. */
  next(): number {
    if (this.#next === this.#blocks) {
      this.#next = 0
      this.#rekey()
    }
    let block = this.#next++
    if (!this.#random) return block
    // The network's domain is less than four times the blocks, so this ends soon; being a permutation, it does end.
    do block = this.#permute(block)
    while (block >= this.#blocks)
    return block
  }

  #rekey(): void {
    for (let round = 0; round < ROUNDS; round++) this.#keys[round] = this.#seeds.next()
  }

  #permute(block: number): number {
    const mask = this.#mask
    let high = Math.floor(block / (mask + 1))
    let low = block % (mask + 1)
    for (let round = 0; round < ROUNDS; round++) {
      const swapped = high ^ (mix(low, this.#keys[round]!) & mask)
      high = low
      low = swapped
    }
    return high * (mask + 1) + low
  }
}
