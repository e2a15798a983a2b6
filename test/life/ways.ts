// The engines, each with the page cache and around it, as far as it serves there: what the life cycle is tested on.

import { describe } from 'vitest'
import { bufferedFile, directFile, type EngineName, type Target } from '../support/targets.ts'

export interface Way {
  engine: EngineName
  target: Target
}

export const ways: readonly Way[] = [
  { engine: 'io_uring', target: bufferedFile },
  { engine: 'io_uring', target: directFile },
  { engine: 'aio', target: directFile },
  { engine: 'threads', target: bufferedFile },
  { engine: 'threads', target: directFile },
]

/** Runs a suite on each of them. */
export function eachWay(suite: (way: Way) => void): void {
  for (const way of ways) {
    const { engine, target } = way
    const title = `${engine}, ${target.name}${target.available ? '' : ` (${target.reason})`}`
    describe.skipIf(!target.available)(title, () => suite(way))
  }
}
