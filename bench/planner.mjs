// What planning costs: nanoseconds per request for the shapes that matter, medians of several rounds, from `dist/`.
//
//     npm run build:lib && node bench/planner.mjs
//
// Goals: 100 ns per request for 100,000 sorted requests, 300 ns for 100,000 shuffled ones.

import { planMerged } from '../dist/planner/merge.js'

const ROUNDS = 15
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

const N = 100_000
const cases = [
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

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1]

console.log(`${'batch'.padEnd(42)}${'ns/request'.padStart(12)}${'best'.padStart(10)}${'submissions'.padStart(14)}`)
for (const [name, units] of cases) {
  const times = Math.max(1, Math.round(N / units.count))
  let submissions = 0
  const samples = []
  for (let i = 0; i < ROUNDS; i++) {
    const result = round(units, times)
    samples.push(result.ns)
    submissions = result.submissions
  }
  const shown = [
    name.padEnd(42),
    median(samples).toFixed(1).padStart(12),
    Math.min(...samples)
      .toFixed(1)
      .padStart(10),
  ]
  console.log(shown.join('') + String(submissions).padStart(14))
}
