// What planning costs: nanoseconds per request for the shapes that matter, medians of several rounds, from `dist/`. The two
// shapes that have a goal are exported for the goals.
//
//     npm run build:lib && node bench/planner.mjs

import { fileURLToPath } from 'node:url'
import { planMerged } from '../dist/planner/merge.js'
import { spread } from './measure.mjs'

const ROUNDS = 15
/** The optimising compiler's share. */
const WARM_UP_ROUNDS = 5
const LIMITS = { maxBytes: 2 ** 20, maxSegments: 256, alignment: 512 }
const REQUEST_BYTES = 4096

// A fixed seed: the same batches on every run.
let seed = 12345
function random(below) {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
  return Math.floor((seed / 2 ** 32) * below)
}

function shuffle(values) {
  for (let i = values.length - 1; i > 0; i--) {
    const j = random(i + 1)
    const kept = values[i]
    values[i] = values[j]
    values[j] = kept
  }
  return values
}

function unitsAt(offsets, length = REQUEST_BYTES, fua = null) {
  const offset = Float64Array.from(offsets)
  return { count: offset.length, offset, length: new Float64Array(offset.length).fill(length), fua }
}

const sequence = (count, step = REQUEST_BYTES) => Array.from({ length: count }, (_, i) => i * step)
const scattered = (count) => Array.from({ length: count }, () => random(2 ** 28) * REQUEST_BYTES)
const streams = (count, ways) =>
  Array.from({ length: count }, (_, i) => (i % ways) * 2 ** 40 + Math.floor(i / ways) * REQUEST_BYTES)

export const PLANNED_REQUESTS = 100_000
const N = PLANNED_REQUESTS
const casesOf = () => [
  ['100,000 sorted, adjacent', unitsAt(sequence(N))],
  ['100,000 sorted, apart', unitsAt(sequence(N, 3 * REQUEST_BYTES))],
  ['100,000 backwards', unitsAt(sequence(N).reverse())],
  ['100,000 in 8 streams, in turns', unitsAt(streams(N, 8))],
  ['100,000 shuffled, adjacent', unitsAt(shuffle(sequence(N)))],
  ['100,000 at random', unitsAt(scattered(N))],
  ['100,000 sorted, each overlaps the next', unitsAt(sequence(N), REQUEST_BYTES + 512)],
  ['100,000 shuffled, each overlaps 8', unitsAt(shuffle(sequence(N)), 8 * REQUEST_BYTES)],
  ['100,000 on the same range', unitsAt(sequence(N, 0))],
  ['64 sorted, adjacent', unitsAt(sequence(64))],
  ['64 shuffled, adjacent', unitsAt(shuffle(sequence(64)))],
  ['64 at random', unitsAt(scattered(64))],
  ['8 sorted, adjacent', unitsAt(sequence(8))],
  ['2 sorted, adjacent', unitsAt(sequence(2))],
  ['1', unitsAt(sequence(1))],
]

/** Nanoseconds per request of one round of about 10 ms. */
function round(units, times) {
  const started = process.hrtime.bigint()
  let submissions = 0
  for (let i = 0; i < times; i++) submissions += planMerged(units, LIMITS).count
  const elapsed_ns = Number(process.hrtime.bigint() - started)
  return { ns: elapsed_ns / times / units.count, submissions: submissions / times }
}

/**
 * Nanoseconds per request of one batch of `PLANNED_REQUESTS` adjacent ones.
 * @param {'sorted' | 'shuffled'} order
 */
export function planningCost(order) {
  const offsets = sequence(N)
  const units = unitsAt(order === 'sorted' ? offsets : shuffle(offsets))
  for (let i = 0; i < WARM_UP_ROUNDS; i++) round(units, 1)
  return spread(Array.from({ length: ROUNDS }, () => round(units, 1).ns))
}

function table() {
  console.log(`${'batch'.padEnd(42)}${'ns/request'.padStart(12)}${'best'.padStart(10)}${'submissions'.padStart(14)}`)
  for (const [name, units] of casesOf()) {
    const times = Math.max(1, Math.round(N / units.count))
    const samples = Array.from({ length: ROUNDS }, () => round(units, times))
    const { median, min } = spread(samples.map(({ ns }) => ns))
    const submissions = String(samples[0].submissions)
    console.log(
      name.padEnd(42) + median.toFixed(1).padStart(12) + min.toFixed(1).padStart(10) + submissions.padStart(14),
    )
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) table()
