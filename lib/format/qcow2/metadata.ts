// An image's own reads and writes, counted, and where its tables lie: no write of a guest may touch those clusters, whatever
// an entry says, and none of them is ever allocated.

import { constants } from 'node:os'
import { BlockError } from '../../errors.ts'
import type { FormatHost } from '../driver.ts'
import { corrupt } from './layout.ts'

const PAGE = 4096

/** Clusters of tables that are kept track of: those of an image of many terabytes. */
const TABLE_CLUSTERS_MAX = 8 << 20

export class Metadata {
  readonly host: FormatHost
  readonly clusterSize: number
  /** Units of the writes of tables, in bytes: what costs the host no more than a part of it. */
  readonly unit: number
  submissions = 0
  bytes = 0
  /** Clusters of the host that hold tables, by their number. */
  readonly #tables = new Set<number>()
  #failure: BlockError | null = null
  /** Why it is not known where tables belong; `null` while it is. */
  #uncertain: BlockError | null = null
  /** What a flush of the host has failed with. */
  #lost: unknown = null

  constructor(host: FormatHost, clusterSize: number) {
    this.host = host
    this.clusterSize = clusterSize
    this.unit = Math.min(clusterSize, Math.max(512, host.limits.alignment))
  }

  /** Memory for a table. A small one is copied on its way anyway, and would be a page of its own otherwise. */
  memory(length: number): Buffer {
    return length < PAGE ? Buffer.alloc(length) : this.host.alloc(length)
  }

  /** Reads; what lies past the end of the host is zeros. The caller has bounded `length`. */
  async read(offset: number, length: number): Promise<Buffer> {
    const bytes = this.memory(length)
    const there = Math.min(length, Math.max(0, this.host.size - offset))
    if (there > 0) {
      this.#count(there)
      await this.host.read(offset, bytes.subarray(0, there))
    }
    return bytes
  }

  write(offset: number, bytes: Uint8Array): Promise<void> {
    this.#count(bytes.length)
    return this.host.write(offset, bytes)
  }

  /** Everything written before is on stable storage. Once that has failed it fails for good: what was lost nobody can tell. */
  async flush(): Promise<void> {
    if (this.#lost !== null) throw this.#lost
    try {
      await this.host.flush()
    } catch (error) {
      this.#lost ??= error ?? new Error('the flush failed')
      throw this.#lost
    }
  }

  /** Whether a flush of the host has failed. */
  get hasLost(): boolean {
    return this.#lost !== null
  }

  /** Makes the header refer to another table, durably. If that fails nobody can tell which one is in force. */
  async switchHeader(offset: number, bytes: Uint8Array): Promise<void> {
    try {
      await this.write(offset, bytes)
      await this.flush()
    } catch (error) {
      throw this.giveUp('a write of the header failed: open the image again to see which table it refers to', error)
    }
  }

  /** Nothing is written any more, not even what was accepted: what is on the disk is in order, and would not be afterwards. */
  giveUp(reason: string, cause: unknown): BlockError {
    const { path } = this.host
    this.#uncertain ??= new BlockError(constants.errno.EIO, { syscall: 'qcow2', path, reason, cause })
    this.#failure ??= this.#uncertain
    return this.#uncertain
  }

  #count(bytes: number): void {
    this.submissions++
    this.bytes += bytes
  }

  /** Enters bytes of the host as those of a table; returns whether another one has some of the same clusters,
   * or there are more than anybody has. */
  claim(offset: number, length: number): boolean {
    let meets = this.#tables.size + length / this.clusterSize > TABLE_CLUSTERS_MAX
    if (meets) return true
    for (let cluster = Math.floor(offset / this.clusterSize); cluster * this.clusterSize < offset + length; cluster++) {
      if (this.#tables.has(cluster)) meets = true
      this.#tables.add(cluster)
    }
    return meets
  }

  /** Takes back `claim`: the table lies elsewhere now. */
  disclaim(offset: number, length: number): void {
    for (let cluster = Math.floor(offset / this.clusterSize); cluster * this.clusterSize < offset + length; cluster++) {
      this.#tables.delete(cluster)
    }
  }

  isTable(cluster: number): boolean {
    return this.#tables.has(cluster)
  }

  /** Takes back every `claim`. */
  forget(): void {
    this.#tables.clear()
  }

  /** Why nothing may be written any more; `null` while it may. */
  get failure(): BlockError | null {
    return this.#failure
  }

  /** The image contradicts itself: from now on nothing is written. */
  fail(what: string): BlockError {
    this.#failure ??= corrupt(this.host.path, what)
    return this.#failure
  }

  /** Everything was looked through and is in order again, as far as can be told. */
  heal(): void {
    this.#failure = this.#uncertain
  }

  /** What was accepted before the image was found to contradict itself may still be written, but not to a table that is void. */
  assertCertain(): void {
    if (this.#uncertain !== null) throw this.#uncertain
  }

  assertSound(): void {
    if (this.#failure !== null) throw this.#failure
  }

  noSpace(): BlockError {
    const reason = 'no cluster is free and the host can not grow: take a larger one'
    return new BlockError(constants.errno.ENOSPC, { syscall: 'write', path: this.host.path, reason })
  }
}
