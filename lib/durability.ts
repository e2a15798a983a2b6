// Flushes. A flush covers every write issued before it, so it waits until those have ended, and only then starts an
// fdatasync: the kernel's own flush covers nothing that is still in flight. Waiters that are ready at the same moment share
// one; a waiter that becomes ready while one is under way waits for the next. Reads have nothing to be made durable: they are
// counted apart, for those who wait until everything has ended.
//
// A failed flush latches. The kernel reports lost data once and then calls the pages clean, so a later success would be a
// lie: from then on every flush fails with that error until the device is opened again. Only who knows that no fdatasync has
// failed may say otherwise: a format driver whose tables could not be written, and are in memory still.

import type { BlockError } from './errors.ts'
import { Fifo } from './fifo.ts'

/** A place in the order of operations; see `issue`. */
export interface Ticket {
  readonly line: Line
  ended: boolean
}

/** Operations in the order of issue, and how many of them have ended with all before them. */
class Line {
  /** From the `ended`-th ever issued on. */
  readonly #tickets = new Fifo<Ticket>()
  ended = 0
  issued = 0

  issue(): Ticket {
    const ticket = { line: this, ended: false }
    this.#tickets.push(ticket)
    this.issued++
    return ticket
  }

  end(ticket: Ticket): void {
    ticket.ended = true
    while (this.#tickets.first()?.ended === true) {
      this.#tickets.take()
      this.ended++
    }
  }
}

interface Waiter {
  /** Writes issued before the flush. */
  after: number
  resolve: () => void
  reject: (error: BlockError) => void
}

/** What became of an fdatasync; `latches`: a later success would be a lie. */
export type Synced = (error: BlockError | null, latches: boolean) => void

export class Durability {
  readonly #sync: (done: Synced) => void
  readonly #writes = new Line()
  readonly #reads = new Line()
  #waiters: Waiter[] = []
  #listeners: { writes: number; reads: number; resolve: () => void }[] = []
  #syncing = false
  #failure: BlockError | null = null

  /** @param sync starts an fdatasync */
  constructor(sync: (done: Synced) => void) {
    this.#sync = sync
  }

  /** Notes that an operation begins. */
  issue(read: boolean): Ticket {
    return (read ? this.#reads : this.#writes).issue()
  }

  /** Notes that an operation has ended, well or not. */
  end(ticket: Ticket): void {
    ticket.line.end(ticket)
    if (this.#waiters.length > 0) this.#startIfReady()
    if (this.#listeners.length > 0) this.#tellListeners()
  }

  /** The error that a flush failed with, once one has. */
  get failure(): BlockError | null {
    return this.#failure
  }

  /** Makes every flush from now on fail. */
  latch(error: BlockError): void {
    this.#failure ??= error
  }

  /** Resolves when every write issued before the call is on stable storage. */
  flush(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiters.push({ after: this.#writes.issued, resolve, reject })
      this.#startIfReady()
    })
  }

  /** Resolves when everything issued before the call has ended, well or not. */
  settled(): Promise<void> {
    return new Promise((resolve) => {
      this.#listeners.push({ writes: this.#writes.issued, reads: this.#reads.issued, resolve })
      this.#tellListeners()
    })
  }

  #tellListeners(): void {
    const ready = this.#listeners.filter((listener) => this.#hasEnded(listener))
    if (ready.length === 0) return
    this.#listeners = this.#listeners.filter((listener) => !this.#hasEnded(listener))
    for (const listener of ready) listener.resolve()
  }

  #hasEnded({ writes, reads }: { writes: number; reads: number }): boolean {
    return writes <= this.#writes.ended && reads <= this.#reads.ended
  }

  #startIfReady(): void {
    if (this.#syncing) return
    const ready = this.#waiters.filter((waiter) => waiter.after <= this.#writes.ended)
    if (ready.length === 0) return
    this.#waiters = this.#waiters.filter((waiter) => waiter.after > this.#writes.ended)
    if (this.#failure !== null) {
      for (const waiter of ready) waiter.reject(this.#failure)
      return
    }
    this.#syncing = true
    this.#sync((error, latches) => {
      this.#syncing = false
      if (latches) this.#failure ??= error
      const failure = this.#failure ?? error
      for (const waiter of ready) {
        if (failure === null) waiter.resolve()
        else waiter.reject(failure)
      }
      this.#startIfReady()
    })
  }
}
