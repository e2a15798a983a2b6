// Puts what is in memory on the disk, in an order that leaves nothing wrong at any moment: a count is never lower than the number
// of references, and nothing refers to what is not there yet.
//
//   1  reference counts that were raised, tables that nothing refers to yet, and the guest's data     flush
//   2  entries of L2 tables, of the L1 table, and of the refcount table for the blocks made ahead      flush
//   3  in memory: clusters that nothing refers to any more are free, and lower counts go with the next commit
//
// Only if a block that was not linked ahead of need describes what step 2 refers to, it is linked in between, with a flush of
// its own. What is taken is taken at one moment: later changes are the next commit's. If a step fails, everything that was
// taken counts as unwritten again, so the whole can be tried again; the disk has at most leaks.

import type { Freeing } from './freeing.ts'
import type { Header } from './header.ts'
import { writeU64 } from './layout.ts'
import type { Mapping } from './mapping.ts'
import type { Metadata } from './metadata.ts'
import type { Refcounts } from './refcounts.ts'
import type { Dirty, Table } from './table.ts'

/** Everything that one commit writes. */
interface Taken {
  counts: { table: Table; dirty: Dirty }[]
  /** Blocks that the refcount table on the disk does not refer to. */
  blocks: Table[]
  /** L2 tables that nothing on the disk refers to, and others. */
  madeTables: { table: Table; dirty: Dirty }[]
  tables: { table: Table; dirty: Dirty }[]
  /** Entries of the L1 table, and the parts of it that hold them. */
  l1: number[]
  l1Parts: Dirty[]
  replaced: number[]
  unmapped: number[]
}

/** Tables that wait for a commit; with more of them one is made though nobody asks. */
const DIRTY_TABLES_MAX = 64
/** The same for reference counts that are put off. */
const LAZY_BLOCKS_MAX = 1024
/** Commits at the end. */
const COMMITS_MAX = 32
/** Of what is much, so much more is too much. */
const PRESSURE_MAX = 4
/** Clusters that wait for one, to be free. */
const FREED_MAX = 1 << 16

export class Committer {
  readonly #metadata: Metadata
  readonly #refcounts: Refcounts
  readonly #mapping: Mapping
  readonly #header: Header
  readonly #freeing: Freeing
  #running: Promise<void> = Promise.resolve()
  #next: Promise<void> | null = null
  /** Counts stay in memory until the image is closed: the header says that they are not to be believed. */
  lazy = false

  constructor(metadata: Metadata, refcounts: Refcounts, mapping: Mapping, header: Header, freeing: Freeing) {
    this.#metadata = metadata
    this.#refcounts = refcounts
    this.#mapping = mapping
    this.#header = header
    this.#freeing = freeing
    refcounts.withoutCommits = (run) =>
      this.#alone(async () => {
        do {
          await this.#commit(false)
        } while (mapping.dirtyL1.size > 0)
        await run()
      })
    refcounts.freeMore = () => this.#freeMore()
  }

  /** Whether the disk lacks anything but the guest's data. */
  get dirty(): boolean {
    const { cache } = this.#refcounts.blocks
    const { tables, dirtyL1, replaced, unmapped } = this.#mapping
    return cache.dirty.size + tables.dirty.size + dirtyL1.size + replaced.length + unmapped.length > 0
  }

  /** Whether too much is in memory only to go on. */
  get isFull(): boolean {
    return this.pressure > PRESSURE_MAX
  }

  /** How much is in memory only: more than 1 is much. */
  get pressure(): number {
    const { cache } = this.#refcounts.blocks
    const { tables, replaced, unmapped } = this.#mapping
    const counts = this.lazy ? cache.dirty.size / LAZY_BLOCKS_MAX : cache.dirty.size / DIRTY_TABLES_MAX
    return counts + tables.dirty.size / DIRTY_TABLES_MAX + (replaced.length + unmapped.length) / FREED_MAX
  }

  /** Everything that has been written and mapped before the call is on stable storage. Callers that wait share one. */
  commit(): Promise<void> {
    this.#next ??= this.#alone(() => {
      this.#next = null
      return this.#commit(this.lazy && this.#refcounts.blocks.cache.dirty.size < LAZY_BLOCKS_MAX)
    })
    return this.#next
  }

  /** The last one: reference counts included, and those that are lower now. */
  async finish(): Promise<void> {
    this.lazy = false
    // Each one writes what the one before has freed or linked; what is left after so many is lost space at the worst.
    for (let n = 0; n < COMMITS_MAX; n++) {
      await this.commit()
      await this.#freeing.done
      if (!this.#isUnwritten()) break
    }
  }

  /** Whether the disk lacks anything that can be written. */
  #isUnwritten(): boolean {
    const { tables, dirtyL1, replaced, unmapped } = this.#mapping
    if (tables.dirty.size + dirtyL1.size + replaced.length + unmapped.length > 0) return true
    return [...this.#refcounts.blocks.cache.dirty].some(({ offset }) => offset < this.#metadata.host.size)
  }

  async #freeMore(): Promise<boolean> {
    const { replaced, unmapped } = this.#mapping
    const count = replaced.length + unmapped.length + this.#freeing.pending
    if (count === 0) return false
    // Who asks for a commit hears of its failure; here it is only that nothing more is free.
    if (replaced.length + unmapped.length > 0) await this.commit().catch(() => undefined)
    await this.#freeing.done
    return true
  }

  #alone(run: () => Promise<void>): Promise<void> {
    const turn = this.#running.then(run)
    this.#running = turn.catch(() => undefined)
    return turn
  }

  async #commit(lazy: boolean): Promise<void> {
    this.#metadata.assertCertain()
    // A host that is slow to take back what it is given must not be given ever more.
    if (this.#freeing.pending > FREED_MAX) await this.#freeing.done
    // A host that could not grow when clusters were taken may be able to now.
    if (this.dirty) await this.#refcounts.end.coverAll()
    const taken = this.#take(lazy)
    try {
      await this.#write([...taken.counts, ...taken.madeTables])
      await this.#metadata.flush()
      // Whatever becomes of the entry that refers to a table, what is added to it from here on goes with step 2; those among them that
      // say nothing yet needed no write.
      for (const l1Index of taken.l1) {
        const table = this.#mapping.tables.get(l1Index)
        if (table !== undefined) table.linked = true
      }
      // The counts that step 2 relies on.
      for (let blocks = this.#linkable(taken); blocks.some(({ needed }) => needed); blocks = this.#linkable(taken)) {
        await this.#link(blocks)
        await this.#metadata.flush()
        for (const block of blocks) block.linked = true
      }
      const ahead = this.#linkable(taken)
      if (taken.tables.length + taken.l1.length + ahead.length > 0) {
        const l1 = taken.l1Parts.map((dirty) => ({ dirty }))
        await Promise.all([this.#write(taken.tables), this.#write(l1), this.#link(ahead)])
        await this.#metadata.flush()
      }
      for (const block of ahead) block.linked = true
    } catch (error) {
      this.#giveBack(taken)
      throw error
    }
    this.#clean(taken)
    this.#freeing.free(taken.replaced, taken.unmapped)
  }

  #take(lazy: boolean): Taken {
    const { unit } = this.#metadata
    const { tables, dirtyL1 } = this.#mapping
    const taken: Taken = {
      counts: [],
      blocks: [],
      madeTables: [],
      tables: [],
      l1: [...dirtyL1],
      l1Parts: this.#partsOfL1([...dirtyL1]),
      replaced: this.#mapping.replaced,
      unmapped: this.#mapping.unmapped,
    }
    this.#mapping.replaced = []
    this.#mapping.unmapped = []
    dirtyL1.clear()
    if (!lazy) {
      for (const table of this.#refcounts.blocks.cache.dirty) {
        // Where the host could not grow to: then it can't describe anything that was written, as that would lie behind it.
        if (table.offset >= this.#metadata.host.size) continue
        if (table.dirty) taken.counts.push({ table, dirty: table.take(unit) })
        if (!table.linked) taken.blocks.push(table)
      }
    }
    for (const table of tables.dirty) {
      if (!table.dirty) continue
      const list = table.linked ? taken.tables : taken.madeTables
      list.push({ table, dirty: table.take(unit) })
    }
    return taken
  }

  #giveBack(taken: Taken): void {
    for (const { table, dirty } of [...taken.counts, ...taken.madeTables, ...taken.tables]) table.giveBack(dirty)
    for (const l1Index of taken.l1) this.#mapping.dirtyL1.add(l1Index)
    this.#mapping.replaced = taken.replaced.concat(this.#mapping.replaced)
    this.#mapping.unmapped = taken.unmapped.concat(this.#mapping.unmapped)
  }

  #clean(taken: Taken): void {
    for (const { table } of taken.counts) this.#refcounts.blocks.cache.clean(table)
    for (const table of taken.blocks) this.#refcounts.blocks.cache.clean(table)
    for (const { table } of taken.madeTables) this.#mapping.tables.clean(table)
    for (const { table } of taken.tables) this.#mapping.tables.clean(table)
    // A table that was made and has not been changed since is linked by its L1 entry alone.
    for (const l1Index of taken.l1) {
      const table = this.#mapping.tables.get(l1Index)
      if (table === undefined) continue
      table.linked = true
      this.#mapping.tables.clean(table)
    }
  }

  async #write(list: readonly { dirty: Dirty }[]): Promise<void> {
    await Promise.all(list.map(({ dirty }) => this.#metadata.write(dirty.offset, dirty.bytes)))
  }

  /** The parts of the L1 table that hold some entries, in whole units, as they are now. */
  #partsOfL1(entries: readonly number[]): Dirty[] {
    const { l1 } = this.#mapping
    const { unit } = this.#metadata
    const all = Buffer.from(l1.buffer, l1.byteOffset, l1.byteLength)
    const units = new Set(entries.map((entry) => Math.floor((entry * 8) / unit)))
    return [...units].map((index) => ({
      offset: this.#header.l1Offset + index * unit,
      bytes: Buffer.from(all.subarray(index * unit, (index + 1) * unit)),
    }))
  }

  /** Blocks that may be linked now: those whose own cluster is counted by one that is linked, or by themselves. */
  #linkable({ blocks }: Taken): Table[] {
    const { perBlock, cache } = this.#refcounts.blocks
    return blocks.filter((block) => {
      if (block.linked) return false
      const counter = Math.floor(block.offset / this.#metadata.clusterSize / perBlock)
      return counter === block.index || cache.get(counter)?.linked !== false
    })
  }

  async #link(blocks: readonly Table[]): Promise<void> {
    const writes = blocks.map(({ index, offset }) => {
      const entry = Buffer.alloc(8)
      writeU64(entry, offset, 0)
      return this.#metadata.write(this.#header.refcountOffset + index * 8, entry)
    })
    await Promise.all(writes)
  }
}
