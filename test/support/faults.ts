// The fault shim of the test build: rules that replace, shorten, hold back or reverse what the kernel answered, and that refuse
// what the addon asks of the system (see native/faults.h). Importing this makes the process load the test build, so it must come before the first `open`.

import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { addon } from '../../dist/native.js'

/** The addon that was built for tests. */
export const faultyAddon: string = fileURLToPath(new URL('../../build/Release/multiwrite_faults.node', import.meta.url))
if (!existsSync(faultyAddon)) throw new Error(`${faultyAddon} is missing; build it with: npm run build:faults`)
process.env.MULTIWRITE_ADDON = faultyAddon

/** The module that loads the addon, for processes of their own. */
export const nativeModule: string = new URL('../../dist/native.js', import.meta.url).href

/** Operations, and what is asked of the system; `allocation` is all of the latter, each counted as one. */
const bitOf = {
  read: 1 << 0,
  write: 1 << 1,
  fdatasync: 1 << 2,
  memory: 1 << 8,
  descriptor: 1 << 9,
  mapping: 1 << 10,
  thread: 1 << 11,
  context: 1 << 12,
  object: 1 << 13,
  allocation: 0x3f << 8,
} as const
const numberOf = { replace: 1, shorten: 2, hold: 3, reverse: 4 } as const

/** So many that it never ends. */
export const forever: number = 2 ** 53

export interface Rule {
  /** What it counts. */
  on: keyof typeof bitOf | readonly (keyof typeof bitOf)[]
  does: keyof typeof numberOf
  /** Replace: the result, a negative errno or bytes. Shorten: bytes at the most. Reverse: how many to collect. */
  value?: number
  /** How many to let pass first; none by default. */
  after?: number
  /** How many to act on; one by default. */
  times?: number
}

/** Rules as the addon takes them. */
export function numbers(rules: readonly Rule[]): number[] {
  return rules.flatMap(({ on, does, value = 0, after = 0, times = 1 }) => {
    const operations = typeof on === 'string' ? [on] : on
    const bits = operations.reduce((sum, operation) => sum | bitOf[operation], 0)
    return [bits, after, times, numberOf[does], value]
  })
}

/** What the test build tells of itself. */
export interface Usage {
  /** Of the process: what was asked of the system, how much of that was refused, and pieces of memory not given back. */
  asked: number
  refused: number
  pieces: number
  /** Of the thread: slots in flight, and open files. */
  slots: number
  files: number
}

/** The test build's own functions. Rules for resources hold for the whole process, others for the thread. */
export interface FaultyAddon {
  setFaults(rules: Float64Array): void
  usage(): Usage
}

/** Sets the rules of this process; without any, nothing goes wrong any more. */
export function setFaults(...rules: readonly Rule[]): void {
  const faulty = addon() as ReturnType<typeof addon> & FaultyAddon
  faulty.setFaults(Float64Array.from(numbers(rules)))
}

/** Runs `work` under the rules. */
export async function withFaults<T>(rules: readonly Rule[], work: () => Promise<T>): Promise<T> {
  setFaults(...rules)
  try {
    return await work()
  } finally {
    setFaults()
  }
}
