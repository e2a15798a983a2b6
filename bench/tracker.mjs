// What keeping order costs where nothing overlaps: a write's range is checked, entered and removed while so many others are
// held. Compare it with the microseconds that the rest of a request takes (bench/run.mjs).
//
//     node bench/tracker.mjs

import { Hold, Tracker } from '../dist/tracker.js'

const BLOCK = 4096
const ROUNDS = 7
const STEPS = 200_000

/** @param {number} held ranges that are held at the same time, a block apart @returns nanoseconds a range */
function cost(held) {
  const tracker = new Tracker()
  const tag = {}
  /** @param {number} at */
  const enter = (at) => {
    const hold = new Hold(at * 2 * BLOCK, at * 2 * BLOCK + BLOCK, false, tag)
    if (!tracker.addApart(hold, 0)) throw new Error('ranges overlap that must not')
    return hold
  }
  const holds = Array.from({ length: held }, (_, at) => enter(at))
  let seed = 1
  const rounds = []
  for (let round = 0; round < ROUNDS; round++) {
    const start = performance.now()
    for (let step = 0; step < STEPS; step++) {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0
      const at = (seed >>> 4) % held
      tracker.remove(holds[at], [])
      holds[at] = enter(at)
    }
    rounds.push(((performance.now() - start) / STEPS) * 1e6)
  }
  return rounds.sort((a, b) => a - b)[ROUNDS >> 1]
}

for (const held of [1, 32, 1024, 10_000]) {
  console.log(`${held.toLocaleString('en').padStart(6)} held: ${cost(held).toFixed(0).padStart(5)} ns a range`)
}
