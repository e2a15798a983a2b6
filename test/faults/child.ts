// Runs the scenario, once or once per set of rules of the fault shim, and prints what came of each run as a line of JSON. The
// process must then end by itself: a slot that is never given back, or a handle that is never let go, would keep it alive.

import fs from 'node:fs'
import { codeOf, type Outcome, run, type Setup, warmUp } from './scenario.ts'

export interface Plan extends Setup {
  /** Rules of the shim, as numbers; one set per run. */
  runs: number[][]
  /** The library's module that loads the addon; needed for rules. */
  native?: string
}

const { runs, native, ...setup } = JSON.parse(process.env.PLAN ?? '') as Plan
const { addon } =
  native === undefined
    ? { addon: undefined }
    : ((await import(native)) as { addon: () => { setFaults(rules: Float64Array): void } })
const print = (outcome: Outcome): void => void fs.writeSync(1, `${JSON.stringify(outcome)}\n`)

// A fault from outside may strike while the engine is set up, which is then tried again, once.
let setUp: string | undefined
await warmUp(setup).catch(async (error: unknown) => {
  setUp = codeOf(error)
  await warmUp(setup)
})
for (const [seed, rules] of runs.entries()) {
  addon?.().setFaults(Float64Array.from(rules))
  const outcome = await run(setup, seed + 1)
  addon?.().setFaults(new Float64Array(0))
  print(setUp === undefined ? outcome : { ...outcome, setUp })
}
