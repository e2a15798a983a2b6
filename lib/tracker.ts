// Order across calls: which ranges of the device are spoken for, and who must wait for whom.
//
// A hold is one range of one operation. It is entered in the order of calls, waits for exactly those earlier ones that it
// conflicts with (they overlap, and one of them writes), and may go when the last of these has been removed. On removal a hold
// reports which others have nothing left to wait for. Nothing here knows requests, plans or the kernel.
//
// Most holds overlap nobody. They lie in a sorted list (`apart.ts`). When a newcomer overlaps some of them, they go over to
// `overlaps.ts` with it, each once in its life, which is where waiting is done, at a logarithmic cost for a hold whatever the
// others are. So what is in the list overlaps nobody, neither there nor in the list, and has nobody waiting for it.

import { Apart } from './apart.ts'
import { Hold, Overlaps } from './overlaps.ts'

export { Hold }

export class Tracker<T> {
  readonly #apart = new Apart<T>()
  readonly #overlaps = new Overlaps<T>()
  #order = 0

  get empty(): boolean {
    return this.#apart.count === 0 && this.#overlaps.count === 0
  }

  /** Whether an operation on the range would have to wait for one that is held now. */
  conflicts(start: number, end: number, read: boolean): boolean {
    for (let hold = this.#apart.find(start); hold !== null && hold.start < end; hold = this.#apart.next()) {
      if (!read || !hold.read) return true
    }
    return this.#overlaps.conflicts(start, end, read)
  }

  /** All holds that meet a range, in no order. Looks at each one that overlaps any other. */
  overlapping(start: number, end: number): Hold<T>[] {
    const found = this.#overlaps.overlapping(start, end)
    for (let hold = this.#apart.find(start); hold !== null && hold.start < end; hold = this.#apart.next())
      found.push(hold)
    return found
  }

  /** Enters a hold that waits for nobody, whomever it overlaps. */
  add(hold: Hold<T>): void {
    this.#add(hold, false)
  }

  /** Enters a hold if nobody has anything of its range, or within `reach` bytes of it; tells whether it did. */
  addApart(hold: Hold<T>, reach: number): boolean {
    const start = hold.start - reach
    const end = hold.end + reach
    const next = this.#apart.find(start)
    if ((next !== null && next.start < end) || this.#overlaps.conflicts(start, end, false)) return false
    hold.order = ++this.#order
    this.#apart.insert(hold)
    return true
  }

  /** Enters a hold behind all those that are in its way; it may go if then its `blockers` is 0. */
  enter(hold: Hold<T>): void {
    this.#add(hold, true)
  }

  /** Has a hold wait for those that are in its way now, without being in anybody's way itself. It is not to be removed. */
  wait(hold: Hold<T>): void {
    hold.order = ++this.#order
    this.#bringOver(hold.start, hold.end)
    this.#overlaps.wait(hold)
  }

  /** Removes a hold whose operation has ended; holds that may go now are appended to `released`. */
  remove(hold: Hold<T>, released: Hold<T>[]): void {
    if (hold.entry !== null) {
      this.#overlaps.remove(hold, released)
    } else {
      this.#apart.find(hold.start)
      this.#apart.drop()
    }
  }

  #add(hold: Hold<T>, waits: boolean): void {
    hold.order = ++this.#order
    const next = this.#apart.find(hold.start)
    if (next !== null && next.start < hold.end) {
      this.#bringOver(hold.start, hold.end)
    } else if (!this.#overlaps.conflicts(hold.start, hold.end, false)) {
      this.#apart.insert(hold)
      return
    }
    this.#overlaps.add(hold, waits)
  }

  /** Those of the list that a range meets are overlapped from now on. */
  #bringOver(start: number, end: number): void {
    for (let hold = this.#apart.find(start); hold !== null && hold.start < end; hold = this.#apart.find(start)) {
      this.#apart.drop()
      this.#overlaps.add(hold, false)
    }
  }
}
