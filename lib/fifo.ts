// A line of those that wait: the queues' own, so that the first of a hundred thousand is taken without moving the others.

/** Entries that were taken are dropped so many at once: taking single ones off the start of a long array costs its length. */
const DROPPED_AT_ONCE = 4096
/** An empty line keeps the places of so many for those that come next: a new array for each that comes and goes costs more. */
const KEPT_MAX = 64

export class Fifo<T> {
  #entries: (T | undefined)[]
  #head = 0

  constructor(entries: T[] = []) {
    this.#entries = entries
  }

  get length(): number {
    return this.#entries.length - this.#head
  }

  push(entry: T): void {
    this.#entries.push(entry)
  }

  /** Puts one before all others. */
  pushFirst(entry: T): void {
    if (this.#head > 0) this.#entries[--this.#head] = entry
    else this.#entries.unshift(entry)
  }

  /** The one whose turn is next; it stays. */
  first(): T | undefined {
    return this.#entries[this.#head]
  }

  /** Takes the one whose turn is next. */
  take(): T | undefined {
    if (this.length === 0) return undefined
    const entry = this.#entries[this.#head]
    this.#entries[this.#head++] = undefined
    if (this.#head === this.#entries.length && this.#head >= KEPT_MAX) {
      this.#entries = []
      this.#head = 0
    } else if (this.#head >= DROPPED_AT_ONCE) {
      this.#entries = this.#entries.slice(this.#head)
      this.#head = 0
    }
    return entry
  }

  /** Puts in the place of each one what is made of it. */
  replaceEach(make: (entry: T) => T | T[]): void {
    this.#entries = (this.#entries.slice(this.#head) as T[]).flatMap(make)
    this.#head = 0
  }
}

/** A list with one more. An empty one that is pushed to makes room for sixteen, where there is often but one. */
export function withOne<T>(list: T[], one: T): T[] {
  if (list.length === 0) return [one]
  list.push(one)
  return list
}
