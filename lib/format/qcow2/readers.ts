// Who may still be reading from clusters that nothing refers to any more. A cluster is used again only when every read that began
// before it was freed has ended: reads of one part of a cluster do not wait for a write to another part that moves it.

/** Reads that began between two moments at which something was freed. */
interface Generation {
  count: number
  isOver: boolean
  runs: (() => void)[]
  next: Generation | null
}

export class Readers {
  /** The oldest generation with anything in it, and the present one. */
  #oldest: Generation = { count: 0, isOver: false, runs: [], next: null }
  #present: Generation = this.#oldest

  /** A read begins; `leave` takes what this returns. */
  enter(): Generation {
    this.#present.count++
    return this.#present
  }

  leave(generation: Generation): void {
    generation.count--
    if (generation.count === 0 && generation.isOver) this.#advance()
  }

  /** Runs something when every read that has begun has ended. */
  whenGone(run: () => void): void {
    const present = this.#present
    present.runs.push(run)
    present.isOver = true
    const next: Generation = { count: 0, isOver: false, runs: [], next: null }
    present.next = next
    this.#present = next
    this.#advance()
  }

  #advance(): void {
    while (this.#oldest.isOver && this.#oldest.count === 0) {
      const { runs, next } = this.#oldest
      this.#oldest = next!
      for (const run of runs) run()
    }
  }
}
