// Who may go when, against the rules themselves: random histories of batches, operations on ranges, withdrawals and endings go
// through the gate, and after each step everything is looked at as G1, G4 and G6 put it. A disk of a few bytes carries out what
// is released, in any order that the gate leaves open, and must come to what the calls come to one after another.
//
// The model compares everything with everything: it is slow and has no ideas of its own. Real devices are in order.test.ts.

import { AbortError } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { Batch } from '../lib/batch.ts'
import { Blocks } from '../lib/blocks.ts'
import { Durability } from '../lib/durability.ts'
import { Gate } from '../lib/gate.ts'
import type { MergeMode } from '../lib/options.ts'
import { Collector, type Work } from '../lib/requests.ts'
import { newCounters } from '../lib/stats.ts'
import type { Submission } from '../lib/submission.ts'
import type { Hold } from '../lib/tracker.ts'
import { patience } from './support/targets.ts'

const SIZE = 96

function must(holds: boolean, what: string): void {
  if (!holds) throw new Error(what)
}

/** A request, or an operation on a range: in the order of calls, which is that of the list. */
interface Step {
  start: number
  end: number
  read: boolean
  fua: boolean
  batch: Batch | null
  owner: number
  /** What a write puts into each of its bytes: its number. */
  id: number
  state: 'waiting' | 'going' | 'ended'
  withdrawn: boolean
  /** Of an operation. */
  hold: Hold<unknown> | null
  /** Of a read. */
  into: Uint8Array | null
}

interface Flight {
  submission: Submission
  /** The blocks that it moves, as they were when it left; `null` while it has not left. */
  blocks: Uint8Array | null
}

interface Setup {
  seed: number
  ordered: boolean
  alignment: number
  mode: MergeMode
  maxBytes: number
}

class World {
  readonly disk = new Uint8Array(SIZE)
  readonly steps: Step[] = []
  readonly flights: Flight[] = []
  /** Operations that were let go and have not been looked at. */
  readonly #begun: Step[] = []
  readonly #firstOf = new Map<unknown, number>()
  readonly blocks: Blocks
  readonly gate: Gate
  readonly #setup: Setup
  #seed: number

  constructor(setup: Setup) {
    this.#setup = setup
    this.#seed = setup.seed
    this.blocks = new Blocks(setup.alignment, false, false)
    this.blocks.size = SIZE
    this.gate = new Gate(setup.ordered, this.blocks)
  }

  random(below: number): number {
    this.#seed = (Math.imul(this.#seed, 1103515245) + 12345) >>> 0
    return Math.floor((this.#seed / 2 ** 32) * below)
  }

  batch(): void {
    const read = this.random(3) === 0
    const collector = new Collector(4, read)
    const first = this.steps.length
    const count = 1 + this.random(this.random(3) === 0 ? 12 : 3)
    const [unmerged, fua] = [this.random(4) === 0, this.random(4) === 0]
    for (let owner = 0; owner < count; owner++) {
      const start = this.random(SIZE)
      const end = Math.min(SIZE, start + 1 + this.random(this.random(4) === 0 ? SIZE : 12))
      const data = new Uint8Array(end - start).fill(this.steps.length + 1)
      collector.add(start, data, owner, SIZE)
      const step: Step = {
        start,
        end,
        read,
        fua: false,
        batch: null,
        owner,
        id: this.steps.length + 1,
        state: 'waiting',
        withdrawn: false,
        hold: null,
        into: read ? data : null,
      }
      if (!read && fua && this.random(3) === 0) {
        collector.setFua()
        step.fua = true
      }
      if (!read && unmerged && this.random(3) === 0) collector.setNoMerge()
      this.steps.push(step)
    }
    const batch = this.newBatch(collector.finish([]), first)
    this.#firstOf.set(batch, first)
    for (const step of this.steps.slice(first)) step.batch = batch
    this.released(this.gate.admit(batch))
  }

  newBatch(work: Work, first: number): Batch {
    const { alignment, mode, maxBytes } = this.#setup
    const context = {
      path: 'path',
      engine: 'none',
      mode,
      limits: () => ({ maxBytes, maxSegments: 8, alignment, tail: Number.POSITIVE_INFINITY }),
      mayFill: null,
      counters: newCounters(),
      durability: new Durability(() => undefined),
    }
    const answer = (owner: number, error: Error | null): void => {
      const step = this.steps[first + owner]!
      must(error === null ? step.state === 'going' : step.withdrawn, `answered with ${error}, being ${step.state}`)
      if (error !== null) return
      step.state = 'ended'
    }
    return new Batch(work, context, { answer, finished: () => undefined }, null)
  }

  operation(): void {
    const start = this.random(SIZE)
    const end = Math.min(SIZE, start + 1 + this.random(SIZE / 2))
    const step: Step = {
      start,
      end,
      read: false,
      fua: false,
      batch: null,
      owner: -1,
      id: this.steps.length + 1,
      state: 'waiting',
      withdrawn: false,
      hold: null,
      into: null,
    }
    this.steps.push(step)
    step.hold = this.gate.enter(start, end, () => this.#begun.push(step))
    this.released([])
  }

  /** Takes what the gate lets go. */
  released(submissions: readonly Submission[]): void {
    for (const step of this.#begun.splice(0)) {
      this.mayGo(step)
      step.state = 'going'
    }
    for (const submission of submissions) {
      for (const step of this.membersOf(submission)) {
        if (step.state !== 'waiting') continue
        must(!step.withdrawn, 'released after it was withdrawn')
        this.mayGo(step)
      }
    }
    for (const submission of submissions) {
      for (const step of this.membersOf(submission)) step.state = 'going'
      this.flights.push({ submission, blocks: null })
    }
  }

  membersOf({ batch, members, membersFrom, membersTo }: Submission): Step[] {
    const first = this.#firstOf.get(batch)!
    return [...members.subarray(membersFrom, membersTo)].map((owner) => this.steps[first + owner]!)
  }

  /** Whether one must not go before an earlier one has ended. A write moves whole blocks. */
  conflict(a: Step, b: Step): boolean {
    if (a.read && b.read) return false
    // Without order across calls, operations on ranges keep their order, and keep requests away.
    if (!this.#setup.ordered && a.batch !== b.batch && a.batch !== null) return false
    const [x, y] = [a, b].map(({ start, end, read, batch }) =>
      read || batch === null ? { start, end } : this.blocks.around(start, end),
    ) as [Step, Step]
    return x.start < y.end && y.start < x.end
  }

  /** Whether two requests of a batch may be settled by one plan. */
  settled(a: Step, b: Step): boolean {
    if (a.batch !== b.batch || a.batch === null) return false
    return a.batch.mayMerge(a.owner) && b.batch!.mayMerge(b.owner)
  }

  mayGo(step: Step): void {
    for (const other of this.steps) {
      if (other === step) return
      if (other.state === 'ended' || other.withdrawn || !this.conflict(other, step) || this.settled(other, step))
        continue
      // A request may be carried out in several runs: only those are in the way that meet the later one.
      const isOver = other.state === 'going' && other.batch !== null && !this.flies(other, step)
      must(isOver, `${step.id} goes before ${other.id} has ended`)
    }
  }

  /** Whether a run of a request is on its way that meets another one. */
  flies(step: Step, other: Step): boolean {
    const { start, end } = other.read ? other : this.blocks.around(other.start, other.end)
    return this.flights.some(({ submission }) => {
      const span = this.spanOf(submission)
      return span.start < end && start < span.end && this.membersOf(submission).includes(step)
    })
  }

  /** All who wait have somebody to wait for: he came before and has not ended. */
  check(): void {
    if (!this.#setup.ordered) return
    const inPlace: Step[] = []
    for (const step of this.steps) {
      if (step.state === 'ended') continue
      const mustWait =
        step.state === 'waiting' && (this.meetsClaim(step) || inPlace.some((one) => this.conflict(one, step)))
      must(step.state !== 'waiting' || step.withdrawn || mustWait, `${step.id} waits for nobody`)
      // A request that was withdrawn keeps its place until its turn has come.
      if (step.state === 'going' || mustWait) inPlace.push(step)
    }
  }

  /** What replaces a run that was withdrawn in part has one place together. */
  meetsClaim(step: Step): boolean {
    return this.flights.some(({ submission: { claim } }) => {
      if (claim === null) return false
      const { start, end, read } = claim.hold
      return this.conflict({ ...step, start, end, read, batch: null }, step)
    })
  }

  send(): void {
    const waiting = this.flights.filter(({ blocks }) => blocks === null)
    const flight = waiting[this.random(waiting.length)]
    if (flight === undefined) return
    const { submission } = flight
    const span = this.spanOf(submission)
    for (const other of this.flights) {
      if (other.blocks === null || (other.submission.read && submission.read)) continue
      const there = this.spanOf(other.submission)
      const isMeant = !this.#setup.ordered && other.submission.batch !== submission.batch
      must(isMeant || there.start >= span.end || there.end <= span.start, 'two in flight overlap')
    }
    submission.sent = true
    flight.blocks = this.disk.slice(span.start, span.end)
    for (const step of this.membersOf(submission)) {
      if (step.read && this.#setup.ordered) this.checkRead(step, submission)
    }
  }

  spanOf({ offset, end, read }: Submission): { start: number; end: number } {
    return read ? { start: offset, end } : this.blocks.around(offset, end)
  }

  /** What a read finds now is what all writes before it left there, and nobody after it. */
  checkRead(step: Step, submission: Submission): void {
    const before = this.steps.slice(0, this.steps.indexOf(step))
    for (let at = Math.max(step.start, submission.offset); at < Math.min(step.end, submission.end); at++) {
      const writer = before.findLast((one) => !one.read && !one.withdrawn && one.start <= at && at < one.end)
      must(this.disk[at] === (writer?.id ?? 0), `a read finds ${this.disk[at]} at ${at}`)
    }
  }

  /** Ends something that is in flight, or an operation. */
  end(): void {
    const operations = this.steps.filter(({ state, hold }) => state === 'going' && hold !== null)
    const flying = this.flights.filter(({ blocks }) => blocks !== null)
    const chosen = this.random(operations.length + flying.length)
    const operation = operations[chosen]
    if (operation !== undefined) {
      this.disk.fill(operation.id, operation.start, operation.end)
      operation.state = 'ended'
      this.released(this.gate.leave(operation.hold as Parameters<Gate['leave']>[0]))
      return
    }
    const flight = flying[chosen - operations.length]
    if (flight === undefined) return
    const { submission } = flight
    if (!submission.read) this.write(submission, flight.blocks!)
    this.flights.splice(this.flights.indexOf(flight), 1)
    this.leave(submission)
  }

  leave(submission: Submission): void {
    const submissions = this.gate.ended(submission)
    submission.batch.tell()
    this.released(submissions)
  }

  /** Writes what a run has of each of its members into the blocks that it read before, and these to the disk. */
  write({ plan, index, units, batch, offset, end }: Submission, blocks: Uint8Array): void {
    const { start } = this.blocks.around(offset, end)
    let place = offset
    for (let s = plan.firstSegment[index]!; s < plan.firstSegment[index + 1]!; s++) {
      const planned = plan.segmentUnit[s]!
      const length = plan.segmentLength[s]!
      if (planned >= 0) {
        const unit = units === null ? planned : units.unit[planned]!
        const from = plan.segmentStart[s]! + (units === null ? 0 : units.start[planned]!)
        blocks.set(batch.work.views[unit]!.subarray(from, from + length), place - start)
        this.checkFua(batch as Batch, unit, place, place + length, plan.fua[index] === 1)
      }
      place += length
    }
    this.disk.set(blocks, start)
  }

  /** What asked for FUA is not covered by what goes out without. */
  checkFua(batch: Batch, owner: number, start: number, end: number, fua: boolean): void {
    for (const step of this.steps) {
      if (step.batch !== batch || !step.fua || step.owner > owner || step.withdrawn) continue
      must(fua || step.end <= start || end <= step.start, 'what was written with FUA is covered without')
    }
  }

  /** Withdraws requests of a batch that has something left to withdraw, as the queue and the dispatch do. */
  abort(): void {
    const open = this.steps.filter(({ state, withdrawn, batch }) => batch !== null && state !== 'ended' && !withdrawn)
    const one = open[this.random(open.length)]
    if (one === undefined) return
    const batch = one.batch!
    const sent = this.flights.filter(({ submission }) => submission.batch === batch && submission.sent)
    const all = this.random(2) === 0
    const leaving = new Map<number, AbortError>()
    for (const step of this.steps) {
      if (step.batch !== batch || step.state === 'ended' || step.withdrawn || (!all && step !== one)) continue
      // Which part of it is on the disk would be for the kernel to say.
      if (sent.some(({ submission }) => this.membersOf(submission).includes(step))) continue
      if (step.state === 'going' && this.isBegun(step)) continue
      step.withdrawn = true
      leaving.set(step.owner, new AbortError(null))
    }
    const ended: Submission[] = []
    for (const flight of [...this.flights]) {
      const { submission } = flight
      if (submission.batch !== batch || submission.sent || !submission.concerns(leaving)) continue
      const rest = batch.replan(submission, leaving, (owner) => leaving.get(owner)!)
      this.flights.splice(this.flights.indexOf(flight), 1, ...rest.map((part) => ({ submission: part, blocks: null })))
      ended.push(submission)
    }
    batch.withdraw(leaving)
    for (const submission of ended) {
      for (const step of this.membersOf(submission)) {
        if (!step.withdrawn) continue
        const left = this.flights.some(({ submission: other }) => this.membersOf(other).includes(step))
        if (!left) step.state = 'ended'
      }
      this.leave(submission)
    }
    batch.tell()
  }

  /** Whether a part of it has been written. */
  isBegun(step: Step): boolean {
    for (let at = step.start; at < step.end; at++) if (this.disk[at] === step.id) return true
    return step.read || this.#setup.maxBytes < SIZE
  }

  run(length: number): void {
    for (let step = 0; step < length; step++) {
      const what = this.random(12)
      if (what < 4 && this.steps.length < 230) this.batch()
      else if (what === 4 && this.steps.length < 230) this.operation()
      else if (what === 5) this.abort()
      else if (what < 9) this.send()
      else this.end()
      this.check()
    }
    while (this.steps.some(({ state, withdrawn }) => state !== 'ended' && !withdrawn) || this.flights.length > 0) {
      const before = JSON.stringify([this.steps.map(({ state }) => state), this.flights.map(({ blocks }) => blocks)])
      for (let some = 0; some < 20; some++) {
        this.send()
        this.end()
      }
      this.check()
      const after = JSON.stringify([this.steps.map(({ state }) => state), this.flights.map(({ blocks }) => blocks)])
      must(before !== after, 'nothing goes on')
    }
    if (!this.#setup.ordered) return
    for (let at = 0; at < SIZE; at++) {
      const writer = this.steps.findLast((one) => !one.read && !one.withdrawn && one.start <= at && at < one.end)
      must(this.disk[at] === (writer?.id ?? 0), `${this.disk[at]} is left at ${at}, not ${writer?.id ?? 0}`)
    }
  }
}

test('of a batch that meets something under way only what must wait has a place of its own; the rest is one plan', () => {
  const count = 512
  const blocks = new Blocks(1, false, false)
  blocks.size = count * 4096
  const gate = new Gate(true, blocks)
  const context = {
    path: 'path',
    engine: 'none',
    mode: 'full' as const,
    limits: () => ({ maxBytes: 1 << 30, maxSegments: 1024 }),
    mayFill: null,
    counters: newCounters(),
    durability: new Durability(() => undefined),
  }
  const batchOf = (offsets: readonly number[]): Batch => {
    const collector = new Collector(offsets.length, false)
    for (const offset of offsets) collector.add(offset, Buffer.alloc(4096), 0, blocks.size)
    const nobody = { answer: () => undefined, finished: () => undefined }
    return new Batch(collector.finish([]), context, nobody, null)
  }
  const [first] = gate.admit(batchOf([100 * 4096]))
  const batch = batchOf([...Array.from({ length: count }, (_, at) => at * 4096), 100 * 4096])
  const free = gate.admit(batch)
  const waiting = batch.holds!.flatMap((hold, owner) => (hold === null ? [] : [owner]))
  expect(waiting).toEqual([100, count])
  expect(free.map(({ offset, length }) => [offset / 4096, length / 4096])).toEqual([
    [0, 100],
    [101, count - 101],
  ])
  const released = gate.ended(first!)
  expect(released.map(({ offset, membersFrom, membersTo }) => [offset / 4096, membersTo - membersFrom])).toEqual([
    [100, 1],
  ])
  expect(gate.ended(released[0]!)).toHaveLength(1)
})

describe('everything goes in the order of calls where it overlaps, and as soon as it may', () => {
  const setups: Omit<Setup, 'seed'>[] = [
    { ordered: true, alignment: 1, mode: 'full', maxBytes: 1024 },
    { ordered: true, alignment: 1, mode: 'full', maxBytes: 8 },
    { ordered: true, alignment: 8, mode: 'full', maxBytes: 1024 },
    { ordered: true, alignment: 8, mode: 'full', maxBytes: 16 },
    { ordered: true, alignment: 1, mode: 'sort', maxBytes: 1024 },
    { ordered: true, alignment: 8, mode: 'off', maxBytes: 1024 },
    { ordered: false, alignment: 1, mode: 'full', maxBytes: 1024 },
    { ordered: false, alignment: 1, mode: 'sort', maxBytes: 16 },
  ]

  test.each(setups)('ordered: $ordered, blocks of $alignment, mode $mode, up to $maxBytes at once', (setup) => {
    for (let seed = 1; seed <= 150 * patience; seed++) {
      try {
        new World({ ...setup, seed }).run(20 + (seed % 100))
      } catch (error) {
        throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error })
      }
    }
  })
})
