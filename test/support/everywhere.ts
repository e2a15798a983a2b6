// For suites that are about what engines have in common: all of them in one run, each on the targets that it goes with.

import { describe } from 'vitest'
import { type EngineName, engineNames, type Target } from './targets.ts'

/** Runs a suite on each engine and target that go together, whatever engines the other suites run over. */
export function everywhere(on: readonly Target[], suite: (target: Target, engine: EngineName) => void): void {
  for (const engine of engineNames) {
    for (const target of on) {
      if (engine === 'aio' && !target.direct) continue
      const title = `${engine}, ${target.name}${target.available ? '' : ` (${target.reason})`}`
      describe.skipIf(!target.available)(title, () => suite(target, engine))
    }
  }
}
