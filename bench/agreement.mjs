// Whether the instrument tells the truth: `multiwrite bench` and fio measure one device under one load, in turns, and their
// figures are laid side by side. Used by the suite, which says where they agree, and by instrument.mjs, which shows all.
//
// Agreement means: the median of ours lies within what fio's own rounds spread over, and within 5 % of fio's median (p99: 10 %).
// It can be expected where the device sets the pace, and answers sooner and later as devices do. Where each answer takes the
// same time to the microsecond, fio's rounds stand within a few tenths of a percent of each other, and a median outside of that
// says little by itself: that device shows how small the difference is. Where the device answers faster than a request can be
// made and handed over, both measure themselves.
//
// fio sorts latencies into bins, 64 for each power of two, and tells the middle of the bin that a percentile falls into: what
// it tells stands for all that the bin holds, 0.8 % to either side at most.

import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { delayedFile, loopDevice, Unavailable, varyingFile } from './targets.mjs'

/** @typedef {import('./measure.mjs').Spread} Spread */
/** @typedef {import('./targets.mjs').Target} Target */
/** @typedef {{ name: string, spread: Record<Measured | 'user_us' | 'system_us', Spread> }} Contender */
/** @typedef {'iops' | 'p50_ns' | 'p99_ns'} Measured */
/** @typedef {{ rw: string, bs: string, depth: number, batch: number, rounds: number, runtime_s: number, ramp_s: number }} Load */

const MAIN = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))
const SIZE = 512 << 20
/** The same on average, of which the random part is the larger one. */
const DELAY_MS = 5
const VARYING_MS = { least: 2, mean: 3 }
const ROUNDS = 7

/** Medians so far apart still agree. */
export const NEAR = /** @type {const} */ ({ iops: 0.05, p50_ns: 0.05, p99_ns: 0.1 })

/** The devices of the suite; where every answer takes the same time, one depth is enough to show how small the difference is. */
export const devices = {
  varying: { make: () => varyingFile(SIZE, VARYING_MS.least, VARYING_MS.mean), depths: [8, 32, 128] },
  delayed: { make: () => delayedFile(SIZE, DELAY_MS), depths: [8] },
}

/** A device that answers at once: not in the suite, since there both measure themselves. */
export const fastDevice = () => loopDevice(SIZE)

/**
 * Both on the same load.
 * @param {Target} target
 * @param {Load} load
 * @returns {Promise<[Contender, Contender]>} ours, then fio
 */
export async function besideFio(target, { rw, bs, depth, batch, rounds, runtime_s, ramp_s }) {
  const args = [
    ...[
      'bench',
      `--filename=${target.path}`,
      `--size=${target.size}`,
      '--direct=1',
      '--merge=off',
      '--force',
      '--json',
    ],
    ...[`--rw=${rw}`, `--bs=${bs}`, `--iodepth=${depth}`, `--batch=${batch}`],
    ...['--compare=fio', `--rounds=${rounds}`, `--runtime=${runtime_s}`, `--ramp=${ramp_s}`],
  ]
  const { stdout } = await promisify(execFile)(process.execPath, [MAIN, ...args], { maxBuffer: 64 << 20 })
  return JSON.parse(stdout).multiwrite.comparison.contenders
}

const BINS_PER_OCTAVE = 64

/**
 * What fio leaves open of a figure that it tells, to either side.
 * @param {Measured} key
 * @param {number} value
 */
function halfBin(key, value) {
  return key === 'iops' ? 0 : 2 ** Math.floor(Math.log2(value)) / BINS_PER_OCTAVE / 2
}

/**
 * @param {[Contender, Contender]} contenders
 * @param {Measured} key
 */
export function agreementOf([ours, fio], key) {
  const [mine, theirs] = [ours.spread[key], fio.spread[key]]
  const ratio = mine.median / theirs.median
  const within =
    mine.median >= theirs.min - halfBin(key, theirs.min) && mine.median <= theirs.max + halfBin(key, theirs.max)
  const near = Math.abs(ratio - 1) <= NEAR[key]
  return { mine, theirs, ratio, within, near, agrees: within && near }
}

/**
 * Figures of the suite: our median over fio's.
 * @param {import('./suite.mjs').Settings} settings
 * @returns {AsyncGenerator<import('./goals.mjs').Figure>}
 */
export async function* agreement({ fio }) {
  if (!fio) throw new Unavailable('fio is not installed')
  for (const { make, depths } of Object.values(devices)) {
    const target = make()
    try {
      for (const depth of depths) {
        const load = {
          rw: 'randwrite',
          bs: '4k',
          depth,
          batch: 1,
          rounds: ROUNDS,
          runtime_s: 1,
          ramp_s: 0.2,
        }
        const contenders = await besideFio(target, load)
        for (const [label, key] of /** @type {[string, Measured][]} */ ([
          ['IOPS', 'iops'],
          ['p50', 'p50_ns'],
          ['p99', 'p99_ns'],
        ])) {
          const { ratio, mine, theirs, within, near, agrees } = agreementOf(contenders, key)
          yield {
            measure: `${label}, depth ${depth}, ${target.name}`,
            spread: { min: mine.min / theirs.median, median: ratio, max: mine.max / theirs.median },
            is: '~',
            bound: NEAR[key],
            note: near && !within ? "outside fio's own spread" : '',
            met: agrees,
          }
        }
      }
    } finally {
      target.remove()
    }
  }
}
