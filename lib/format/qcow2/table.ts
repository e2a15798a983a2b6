// A table of one cluster in memory: an L2 table or a refcount block, in the byte order of the disk. It knows which of its bytes
// the disk has not got yet. Whoever awaits something while he has one in hand pins it, or the cache may drop it meanwhile.

/** What of a table is to be written: a copy, as of the moment at which it was taken. */
export interface Dirty {
  readonly offset: number
  readonly bytes: Buffer
}

export class Table {
  /** Which one it is: the index of its L1 or refcount table entry. */
  readonly index: number
  /** Where it lies on the host, in bytes. */
  readonly offset: number
  readonly bytes: Buffer
  readonly view: DataView
  /** Whether the table above it refers to it on the disk. */
  linked: boolean
  /** Whether it says anything that the disk must know before others may refer to it. */
  needed = false
  /** Those who have it in hand. */
  pins = 0
  #from = Number.POSITIVE_INFINITY
  #to = 0

  constructor(index: number, offset: number, bytes: Buffer, linked: boolean) {
    this.index = index
    this.offset = offset
    this.bytes = bytes
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    this.linked = linked
  }

  get dirty(): boolean {
    return this.#from < this.#to
  }

  /** Bytes `from` to `to` have changed. */
  mark(from: number, to: number): void {
    if (from < this.#from) this.#from = from
    if (to > this.#to) this.#to = to
  }

  /** Takes what has changed, in whole units; `mark` it again if it can't be written. */
  take(unit: number): Dirty {
    const from = this.#from - (this.#from % unit)
    const to = Math.min(this.bytes.length, Math.ceil(this.#to / unit) * unit)
    this.#from = Number.POSITIVE_INFINITY
    this.#to = 0
    return { offset: this.offset + from, bytes: Buffer.from(this.bytes.subarray(from, to)) }
  }

  /** Takes back what `take` gave. */
  giveBack({ offset, bytes }: Dirty): void {
    this.mark(offset - this.offset, offset - this.offset + bytes.length)
  }

  high(entry: number): number {
    return this.view.getUint32(entry * 8)
  }

  low(entry: number): number {
    return this.view.getUint32(entry * 8 + 4)
  }

  set(entry: number, high: number, low: number): void {
    this.view.setUint32(entry * 8, high)
    this.view.setUint32(entry * 8 + 4, low)
    this.mark(entry * 8, entry * 8 + 8)
  }
}

/** Tables by their index; the least recently used ones that are clean and in nobody's hands go when there are too many. */
export class TableCache {
  readonly #tables = new Map<number, Table>()
  readonly #dirty = new Set<Table>()
  /** So many are kept, and more only of those that can't be dropped. */
  readonly max: number
  #last: Table | null = null

  constructor(max: number) {
    this.max = max
  }

  /** Tables that the disk does not have as they are. */
  get dirty(): ReadonlySet<Table> {
    return this.#dirty
  }

  get(index: number): Table | undefined {
    if (this.#last !== null && this.#last.index === index) return this.#last
    const table = this.#tables.get(index)
    if (table === undefined) return undefined
    // A map is in the order of entry: the first one is that which was not asked for for the longest time.
    this.#tables.delete(index)
    this.#tables.set(index, table)
    this.#last = table
    return table
  }

  /** Enters a table in the place of one of the same index. */
  add(table: Table): void {
    const before = this.#tables.get(table.index)
    if (before !== undefined) this.drop(before)
    this.#tables.set(table.index, table)
    this.#last = table
    if (this.#tables.size > this.max) this.#evict()
  }

  drop(table: Table): void {
    this.#dirty.delete(table)
    if (this.#tables.get(table.index) === table) this.#tables.delete(table.index)
    if (this.#last === table) this.#last = null
  }

  clear(): void {
    this.#tables.clear()
    this.#dirty.clear()
    this.#last = null
  }

  soil(table: Table): void {
    this.#dirty.add(table)
  }

  clean(table: Table): void {
    if (!table.dirty && table.linked) this.#dirty.delete(table)
  }

  #evict(): void {
    for (const table of this.#tables.values()) {
      if (this.#tables.size <= this.max) break
      if (table.pins > 0 || table === this.#last || this.#dirty.has(table)) continue
      this.#tables.delete(table.index)
    }
  }
}
