// What tests of failures have in common: who was answered what, and a disk that is closed whatever happens.

import { type BlockDevice, BlockError } from 'multiwrite'
import { expect } from 'vitest'

/** ` (skipped: why)` for the title of a suite that cannot run here; empty where it can. */
export const needs = (reason: string): string => (reason === '' ? '' : ` (${reason})`)

/** What became of each request: `null` or its error. Every request is answered exactly once. */
export class Answers {
  readonly of: unknown[] = []
  readonly order: number[] = []

  callback(index: number): (error: unknown) => void {
    return (error) => {
      expect(index in this.of, `request ${index} is answered twice`).toBe(false)
      this.of[index] = error
      this.order.push(index)
    }
  }

  codes(count: number): unknown[] {
    return Array.from({ length: count }, (_, index) => {
      const error = this.of[index]
      return error instanceof BlockError ? error.code : error
    })
  }
}

/** Hands a disk to `work`, and closes it whatever happens. */
export async function using<T>(disk: BlockDevice, work: (disk: BlockDevice) => Promise<T>): Promise<T> {
  try {
    return await work(disk)
  } finally {
    await disk.close()
  }
}
