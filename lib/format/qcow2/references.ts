// How often each cluster of the host is referred to, as a check counts it. The references of a sound image lie close together; those
// of a hostile one lie as far apart as it likes, one in each place: so memory is taken for few clusters at a time, and what nobody
// refers to costs neither memory nor time.

/** Clusters that are kept next to each other. */
const PAGE = 8
const PAGES_AT_FIRST = 1024

export class References {
  /** Pages by their number plus one, in a table with open addressing; 0: nothing is there. */
  #keys = new Float64Array(PAGES_AT_FIRST)
  #counts = new Uint32Array(PAGES_AT_FIRST * PAGE)
  #pages = 0
  /** Drawn anew each time: who makes an image can't choose places that collide. */
  readonly #seeds = [draw(), draw(), draw()] as const
  /** Where the page that was asked for last lies: the next one to be asked for is the same, mostly. */
  #last = 0

  /** Takes in that a cluster is referred to, or so many times. */
  add(cluster: number, times: number): void {
    const page = Math.floor(cluster / PAGE)
    let place = this.#find(page + 1)
    if (this.#keys[place] === 0) {
      if (this.#pages >= this.#keys.length / 2) {
        this.#grow()
        place = this.#find(page + 1)
      }
      this.#keys[place] = page + 1
      this.#pages++
    }
    this.#counts[place * PAGE + (cluster % PAGE)]! += times
  }

  get(cluster: number): number {
    // Where there is no page, there are zeros.
    return this.#counts[this.#find(Math.floor(cluster / PAGE) + 1) * PAGE + (cluster % PAGE)]!
  }

  /** All clusters that are referred to, in no order, and how often. */
  *all(): Generator<[cluster: number, count: number]> {
    for (let at = 0; at < this.#counts.length; at++) {
      const count = this.#counts[at]!
      if (count > 0) yield [(this.#keys[Math.floor(at / PAGE)]! - 1) * PAGE + (at % PAGE), count]
    }
  }

  /** The place of a key, or the one that it would have. */
  #find(key: number): number {
    const keys = this.#keys
    if (keys[this.#last] === key) return this.#last
    const mask = keys.length - 1
    const [a, b, c] = this.#seeds
    const low = Math.imul(key ^ a, b)
    let place = Math.imul((low >>> 15) ^ low ^ Math.floor(key / 2 ** 32), c)
    place = ((place >>> 16) ^ place) & mask
    while (keys[place] !== 0 && keys[place] !== key) place = (place + 1) & mask
    this.#last = place
    return place
  }

  #grow(): void {
    const [keys, counts] = [this.#keys, this.#counts]
    this.#keys = new Float64Array(keys.length * 2)
    this.#counts = new Uint32Array(counts.length * 2)
    this.#last = 0
    for (let from = 0; from < keys.length; from++) {
      if (keys[from] === 0) continue
      const to = this.#find(keys[from]!)
      this.#keys[to] = keys[from]!
      this.#counts.set(counts.subarray(from * PAGE, from * PAGE + PAGE), to * PAGE)
    }
  }
}

/** An odd number of 32 bits. */
function draw(): number {
  return (Math.random() * 2 ** 32) | 1
}
