// Measures several contenders against each other in one run.
//
// Rounds are interleaved and turn round, A B C C B A A B C ..., so that what else happens on the machine meets all of them
// alike. Figures of one round are compared with each other only: a ratio is taken per round, and the median of those ratios
// is told. The first round warms up and is thrown away. A round that other programs have disturbed is measured again, and if
// there is no end of it, the least disturbed ones count.
//
// CPU time is that of the process, its threads and io_uring's workers included. What a loop device or a disk driver does in
// kernel threads of its own is in nobody's account.

import { PerformanceObserver } from 'node:perf_hooks'
import { setImmediate } from 'node:timers/promises'
import { watchOthers } from './others.mjs'

/** A round is disturbed if other programs keep more of a processor busy. */
const OTHERS_MAX = 0.15
/** So many times the rounds asked for are measured at the most. */
const ATTEMPTS = 2
/** From then on, since the start of the program, disturbed rounds count: the whole suite is to end within ten minutes. */
const PATIENCE_MS = 3 * 60_000

/** How many rounds were measured, and how many of them were disturbed so much that they do not count. */
export const roundsSoFar = { measured: 0, dropped: 0 }

/** What warms up runs for so long at least: the optimising compiler needs its time, however short the rounds are. */
const WARM_UP_MS = 400

/**
 * What one contender did in one round.
 * @typedef {object} Sample
 * @property {number} requests
 * @property {number} elapsed_ns
 * @property {number} user_us CPU time
 * @property {number} system_us
 * @property {number} [collection_us] of the garbage collector, within the CPU time, where it is known
 * @property {number} [submissions] that its requests made, where it is known
 * @property {number} [p50_ns] latency, where it was asked for
 * @property {number} [p99_ns]
 */

/**
 * @typedef {object} Contender
 * @property {string} name
 * @property {(duration_ms: number) => Promise<Sample>} run
 * @property {boolean} [ready] has nothing to warm up: another program
 */

/** @typedef {{ min: number, median: number, max: number }} Spread */

/**
 * A contender's rounds taken together.
 * @typedef {object} Result
 * @property {string} name
 * @property {Spread} perSecond requests
 * @property {Spread} userPerRequest_us
 * @property {Spread} systemPerRequest_us
 * @property {Spread | null} collectionPerRequest_us
 * @property {Spread | null} requestsPerSubmission
 * @property {Spread | null} p50_us
 * @property {Spread | null} p99_us
 * @property {Record<string, Spread>} ratio per peer: requests per second as a multiple of the peer's in the same round
 */

/**
 * The samples of each contender, one a round: those of the same round stand at the same place and were taken one right after
 * the other.
 *
 * @param {Contender[]} contenders
 * @param {{ rounds: number, duration_ms: number }} how
 * @returns {Promise<Sample[][]>}
 */
export async function inTurns(contenders, { rounds, duration_ms }) {
  /** @type {{ others: number, samples: Sample[] }[]} */
  const measured = []
  let quiet = 0
  const mayGoOn = () => measured.length < rounds || (quiet < rounds && performance.now() < PATIENCE_MS)
  for (let round = 0; mayGoOn() && round <= rounds * ATTEMPTS; round++) {
    const warmUp = round === 0
    /** @type {Sample[]} */
    const samples = []
    const othersSince = watchOthers()
    const order = [...contenders.entries()]
    if (round % 2 === 0) order.reverse()
    for (const [i, contender] of order) {
      if (warmUp && contender.ready) continue
      samples[i] = await contender.run(warmUp ? Math.max(duration_ms, WARM_UP_MS) : duration_ms)
    }
    if (warmUp) continue
    const others = othersSince()
    measured.push({ others, samples })
    if (others <= OTHERS_MAX) quiet++
  }
  const counted = measured.sort((a, b) => a.others - b.others).slice(0, rounds)
  roundsSoFar.measured += measured.length
  roundsSoFar.dropped += measured.length - counted.length
  return contenders.map((_, i) => counted.map(({ samples }) => samples[i]))
}

/**
 * @param {Contender[]} contenders
 * @param {string[]} peers names of those that the others are compared with; such as are not there are left out
 * @param {{ rounds: number, duration_ms: number }} how
 * @returns {Promise<Result[]>}
 */
export async function measure(contenders, peers, how) {
  const samples = await inTurns(contenders, how)
  const rates = samples.map((ofOne) => ofOne.map(rateOf))
  return contenders.map(({ name }, i) => {
    /** @type {Record<string, Spread>} */
    const ratio = {}
    for (const peer of peers) {
      const at = contenders.findIndex((contender) => contender.name === peer)
      if (at >= 0 && at !== i) ratio[peer] = spread(rates[i].map((rate, round) => rate / rates[at][round]))
    }
    const mine = samples[i]
    return {
      name,
      perSecond: spread(rates[i]),
      userPerRequest_us: spread(mine.map((sample) => sample.user_us / sample.requests)),
      systemPerRequest_us: spread(mine.map((sample) => sample.system_us / sample.requests)),
      collectionPerRequest_us: spreadOfKnown(mine, ({ requests, collection_us }) =>
        collection_us === undefined ? undefined : collection_us / requests,
      ),
      requestsPerSubmission: spreadOfKnown(mine, ({ requests, submissions }) => submissions && requests / submissions),
      p50_us: spreadOfKnown(mine, ({ p50_ns }) => p50_ns && p50_ns / 1e3),
      p99_us: spreadOfKnown(mine, ({ p99_ns }) => p99_ns && p99_ns / 1e3),
      ratio,
    }
  })
}

/** Requests per second. @param {Sample} sample */
export function rateOf({ requests, elapsed_ns }) {
  return (requests / elapsed_ns) * 1e9
}

/** Microseconds of CPU time. @param {Sample} sample */
export function cpuPerRequest({ requests, user_us, system_us }) {
  return (user_us + system_us) / requests
}

/** @param {Sample[]} samples @param {(sample: Sample) => number | undefined} valueIn */
function spreadOfKnown(samples, valueIn) {
  const known = samples.map(valueIn).filter((value) => value !== undefined)
  return known.length === 0 ? null : spread(known)
}

/** @param {number[]} values @returns {Spread} */
export function spread(values) {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
  return { min: sorted[0], median, max: sorted[sorted.length - 1] }
}

/**
 * Microseconds that the garbage collector has taken so far. What it did lately is told a turn or two later.
 */
let collected_us = 0
new PerformanceObserver((list) => {
  for (const { duration } of list.getEntries()) collected_us += duration * 1e3
}).observe({ entryTypes: ['gc'] })

async function collectedSoFar_us() {
  await setImmediate()
  await setImmediate()
  return collected_us
}

/**
 * Something that is true once the time is over. A timer makes it so, not a look at the clock in each step, which would be a
 * cost that no user has.
 *
 * @param {number} duration_ms
 */
function deadline(duration_ms) {
  const time = { over: false }
  setTimeout(() => {
    time.over = true
  }, duration_ms)
  return time
}

/**
 * Runs `step` over and over in so many lanes at once until the time is over, and waits for the last ones to end.
 *
 * @param {number} duration_ms
 * @param {number} lanes
 * @param {number} requests of one step
 * @param {(lane: number) => Promise<unknown>} step
 * @returns {Promise<Sample>}
 */
export async function timed(duration_ms, lanes, requests, step) {
  const collectedBefore_us = await collectedSoFar_us()
  const time = deadline(duration_ms)
  const cpu = process.cpuUsage()
  const started_ms = performance.now()
  let steps = 0
  /** @param {number} lane */
  const walk = async (lane) => {
    while (!time.over) {
      await step(lane)
      steps++
    }
  }
  await Promise.all(Array.from({ length: lanes }, (_, lane) => walk(lane)))
  const elapsed_ns = (performance.now() - started_ms) * 1e6
  const { user, system } = process.cpuUsage(cpu)
  const collection_us = (await collectedSoFar_us()) - collectedBefore_us
  return { requests: steps * requests, elapsed_ns, user_us: user, system_us: system, collection_us }
}

/** Room for the latencies of one round, made once: what is measured must not wait for a list to grow. */
const latencies_ns = new Float64Array(4 << 20)

/**
 * The same with one request at a time, each of them timed.
 *
 * @param {number} duration_ms
 * @param {() => Promise<unknown>} step
 * @returns {Promise<Sample>}
 */
export async function timedSingly(duration_ms, step) {
  const collectedBefore_us = await collectedSoFar_us()
  const time = deadline(duration_ms)
  const cpu = process.cpuUsage()
  const started_ms = performance.now()
  let now_ms = started_ms
  let requests = 0
  while (!time.over) {
    await step()
    const ended_ms = performance.now()
    latencies_ns[requests++ % latencies_ns.length] = (ended_ms - now_ms) * 1e6
    now_ms = ended_ms
  }
  const { user, system } = process.cpuUsage(cpu)
  const sorted = latencies_ns.subarray(0, Math.min(requests, latencies_ns.length)).sort()
  return {
    requests,
    elapsed_ns: (now_ms - started_ms) * 1e6,
    user_us: user,
    system_us: system,
    collection_us: (await collectedSoFar_us()) - collectedBefore_us,
    p50_ns: percentile(sorted, 0.5),
    p99_ns: percentile(sorted, 0.99),
  }
}

/** @param {Float64Array} sorted @param {number} part */
function percentile(sorted, part) {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]
}
