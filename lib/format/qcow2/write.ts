// Writing the guest's bytes. What lies in clusters of our own is written in place; the rest of a run goes to new clusters, which
// follow each other on the host, with what is to be kept of their old content before and behind it: one vector each. The tables
// are changed when the bytes are on the host, and the disk hears of it with the next commit. So a write that fails leaves the
// guest's old bytes, and its clusters are free again.

import type { Range } from '../driver.ts'
import type { Committer } from './commit.ts'
import { Kind, type Mapping } from './mapping.ts'
import type { Metadata } from './metadata.ts'
import { lengthOf, Pieces, Together } from './pieces.ts'
import type { Reading } from './read.ts'
import type { Extent, Refcounts } from './refcounts.ts'
import type { Table } from './table.ts'

/** Entries that will refer to clusters when those are written. */
interface Change {
  readonly table: Table
  readonly entry: number
  readonly count: number
  /** Where the first of them lies on the host. */
  readonly offset: number
}

/** Everything that one run has under way. */
interface Run {
  readonly together: Together
  readonly pieces: Pieces
  /** Zeros between requests, ascending. */
  readonly gaps: readonly Range[]
  readonly changes: Change[]
  readonly taken: Extent[]
  readonly pinned: Table[]
  /** Why tables can't be changed: too much is in memory already, and can't be written. `null`: they can. */
  readonly full: unknown
}

/** Writing a shorter gap costs less than another vector would. */
const GAP_LEFT_OUT_MIN = 4096

/** Padding, and zeros that a guest asks for. Nobody writes to it. */
export const ZEROS: Uint8Array = new Uint8Array(new SharedArrayBuffer(64 << 10))

/** `length` zeros, to be written. */
export function zeroPieces(length: number): Pieces {
  return new Pieces(zeros(length))
}

function zeros(length: number): Uint8Array[] {
  const pieces: Uint8Array[] = []
  for (let rest = length; rest > 0; rest -= ZEROS.length)
    pieces.push(rest < ZEROS.length ? ZEROS.subarray(0, rest) : ZEROS)
  return pieces
}

export class Writing {
  readonly #metadata: Metadata
  readonly #mapping: Mapping
  readonly #refcounts: Refcounts
  readonly #reading: Reading
  readonly #committer: Committer
  readonly #clusterSize: number

  constructor(metadata: Metadata, mapping: Mapping, refcounts: Refcounts, reading: Reading, committer: Committer) {
    this.#metadata = metadata
    this.#mapping = mapping
    this.#refcounts = refcounts
    this.#reading = reading
    this.#committer = committer
    this.#clusterSize = mapping.clusterSize
  }

  async write(offset: number, pieces: Pieces, gaps: readonly Range[] = []): Promise<void> {
    this.#metadata.assertSound()
    const full = this.#committer.pressure > 1 ? await this.relieve() : null
    const run: Run = { together: new Together(), pieces, gaps, changes: [], taken: [], pinned: [], full }
    try {
      await this.#start(offset, offset + pieces.length, run)
      await run.together.all()
    } catch (error) {
      await run.together.settled()
      await this.#undo(run.taken)
      throw error
    } finally {
      for (const table of run.pinned) table.pins--
    }
    for (const { table, entry, count, offset: host } of run.changes) {
      for (let n = 0; n < count; n++) this.#mapping.map(table, entry + n, host + n * this.#clusterSize)
    }
  }

  /**
   * Commits if much is in memory only. Who asks for a commit hears of its failure; here it is tried again with the next write. But
   * if there is too much already, this returns the failure: what changes tables must be refused then, or memory has no bounds.
   */
  async relieve(): Promise<unknown> {
    if (this.#committer.pressure <= 1) return null
    let failure: unknown = null
    const committed = this.#committer.commit().catch((error: unknown) => {
      failure = error
    })
    if (!this.#committer.isFull) return null
    await committed
    return this.#committer.isFull ? failure : null
  }

  /** Without an `await` where everything is in memory: what is sent in one turn is merged by the host. */
  async #start(from: number, end: number, run: Run): Promise<void> {
    const { coverage } = this.#mapping
    const size = this.#clusterSize
    let place = from
    while (place < end) {
      const l1Index = Math.floor(place / coverage)
      if (run.full !== null && !this.#mapping.isOwn(l1Index)) throw run.full
      let table = this.#mapping.forWriting(l1Index)
      // Asked again: among many that arrive together, the cache may have dropped it before we got our hands on it.
      while (table instanceof Promise) {
        await table
        table = this.#mapping.forWriting(l1Index)
      }
      table.pins++
      run.pinned.push(table)
      const stop = Math.min(end, (l1Index + 1) * coverage)
      while (place < stop) {
        const i = Math.floor((place % coverage) / size)
        const host = this.#mapping.inPlace(table, i)
        if (host >= 0) {
          place = this.#writeInPlace(table, i, host, place, stop, run)
        } else {
          const written = this.#writeNew(table, i, place, stop, run)
          place = written instanceof Promise ? await written : written
        }
      }
    }
  }

  #writeInPlace(table: Table, i: number, host: number, place: number, stop: number, run: Run): number {
    const size = this.#clusterSize
    const within = place % size
    let end = place - within + size
    let next = i + 1
    while (end < stop && this.#mapping.inPlace(table, next) === host + (next - i) * size) {
      end += size
      next++
    }
    end = Math.min(end, stop)
    run.together.add(this.#metadata.host.write(host + within, run.pieces.take(end - place)))
    return end
  }

  /** Writes to new clusters, as many as follow each other; returns how far it came. */
  #writeNew(table: Table, i: number, place: number, stop: number, run: Run): number | Promise<number> {
    if (run.full !== null) throw run.full
    const size = this.#clusterSize
    const reused = this.#mapping.reusable(table, i)
    if (reused >= 0)
      return this.#writeExtent(table, i, place, stop, { first: reused / size, count: 1, virgin: false }, run)
    let count = 1
    let end = place - (place % size) + size
    while (end < stop && this.#mapping.inPlace(table, i + count) < 0 && this.#mapping.reusable(table, i + count) < 0) {
      end += size
      count++
    }
    const extent = this.#refcounts.allocate(count)
    if (extent instanceof Promise) return extent.then((got) => this.#writeTaken(table, i, place, stop, got, run))
    return this.#writeTaken(table, i, place, stop, extent, run)
  }

  #writeTaken(
    table: Table,
    i: number,
    place: number,
    stop: number,
    extent: Extent,
    run: Run,
  ): number | Promise<number> {
    run.taken.push(extent)
    return this.#writeExtent(table, i, place, stop, extent, run)
  }

  #writeExtent(
    table: Table,
    i: number,
    place: number,
    stop: number,
    extent: Extent,
    run: Run,
  ): number | Promise<number> {
    const size = this.#clusterSize
    const { first, count, virgin } = extent
    const start = place - (place % size)
    const end = Math.min(stop, start + count * size)
    const tail = start + count * size - end
    const head = this.#kept(table, i, start, place - start, virgin)
    const rest = this.#kept(table, i + count - 1, end, tail, virgin)
    run.changes.push({ table, entry: i, count, offset: first * size })
    const send = (before: readonly Uint8Array[], behind: readonly Uint8Array[]): number => {
      const from = before.length > 0 ? first * size : first * size + place - start
      if (virgin && run.gaps.length > 0) {
        this.#writeAround(place, end, from, before, behind, run)
      } else {
        const data = run.pieces.take(end - place)
        const all = before.length + behind.length > 0 ? [...before, ...data, ...behind] : data
        run.together.add(this.#metadata.host.write(from, all))
      }
      return end
    }
    if (!(head instanceof Promise) && !(rest instanceof Promise)) return send(head, rest)
    return Promise.all([head, rest]).then(([before, behind]) => send(before, behind))
  }

  /** Writes to clusters that read as zeros: gaps that are worth it are left out. */
  #writeAround(
    place: number,
    end: number,
    host: number,
    before: readonly Uint8Array[],
    behind: readonly Uint8Array[],
    run: Run,
  ): void {
    let from = place
    let to = host
    let data = [...before]
    for (const { offset, length } of run.gaps) {
      if (length < GAP_LEFT_OUT_MIN || offset < from || offset + length > end) continue
      data.push(...run.pieces.take(offset - from))
      run.pieces.take(length)
      run.together.add(this.#metadata.host.write(to, data))
      to += lengthOf(data) + length
      from = offset + length
      data = []
    }
    data.push(...run.pieces.take(end - from), ...behind)
    run.together.add(this.#metadata.host.write(to, data))
  }

  /** What a new cluster must hold besides what is written: nothing where it holds it already. */
  #kept(
    table: Table,
    i: number,
    offset: number,
    length: number,
    virgin: boolean,
  ): Uint8Array[] | Promise<Uint8Array[]> {
    if (length === 0) return NOTHING
    const place = offset - (offset % this.#clusterSize)
    if (this.#reading.readsZeros(table, i, place)) return virgin ? NOTHING : zeros(length)
    return this.#readKept(offset, length)
  }

  /** Async, so that memory that is not to be had is told like a read that fails. */
  async #readKept(offset: number, length: number): Promise<Uint8Array[]> {
    const bytes = this.#metadata.host.alloc(length)
    this.#metadata.submissions++
    this.#metadata.bytes += length
    await this.#reading.read(offset, [bytes])
    return [bytes]
  }

  async #undo(taken: readonly Extent[]): Promise<void> {
    const clusters = taken.flatMap(({ first, count }) => Array.from({ length: count }, (_, n) => first + n))
    // What can't be freed leaks: that is not what the caller asked about.
    if (clusters.length > 0) await this.#refcounts.release(clusters).catch(() => undefined)
  }

  /** Whether a gap in a cluster may be filled with zeros, for `mergeRequests`. */
  mayFill(table: Table, i: number, place: number): boolean {
    const kind = this.#mapping.kindOf(table, i)
    if (kind === Kind.none) return !this.#reading.isBacked(place)
    return kind === Kind.zero && this.#mapping.hostOf(table, i) === 0
  }
}

const NOTHING: Uint8Array[] = []
