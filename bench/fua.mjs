// What merging saves where every write must be on stable storage: 64 adjacent writes of 4 KiB with `fua`, as one batch, as one
// batch whose requests may not be merged, and one after another. The kernel never merges such writes, and a device without FUA
// flushes its cache for each of them, so the number of flushes is counted too, from the disk's own statistics.
//
//   node bench/fua.mjs [--rounds N]
//
// A ratio is taken per round and the median told. On a disk that others use their flushes are counted with ours.

import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { open } from '../dist/index.js'
import { spread } from './measure.mjs'
import { atTheLatestAtExit, ext4File, loopDevice, Unavailable } from './targets.mjs'

const REQUESTS = 64
const REQUEST_BYTES = 4096
const SIZE = 64 << 20
/** How often each way is taken in one round. */
const REPEATS = 4
const EXT4_MAGIC = 0xef53
/** The field of /sys/block/DISK/stat that counts completed flushes (Documentation/block/stat.rst). */
const FLUSHES_FIELD = 15

const { values } = parseArgs({ options: { rounds: { type: 'string', default: '9' } } })
const rounds = Number(values.rounds)
if (!Number.isSafeInteger(rounds) || rounds < 5) throw new RangeError(`--rounds takes a whole number >= 5`)

/** A file on the disk of this project, if that is ext4. */
function ownDisk() {
  const parent = fileURLToPath(new URL('../.cache/', import.meta.url))
  fs.mkdirSync(parent, { recursive: true })
  if (fs.statfsSync(parent).type !== EXT4_MAGIC) throw new Unavailable(`${parent} is not on ext4`)
  const directory = fs.mkdtempSync(path.join(parent, 'multiwrite-bench-'))
  const remove = atTheLatestAtExit(() => fs.rmSync(directory, { recursive: true, force: true }))
  const file = path.join(directory, 'image')
  fs.writeFileSync(file, Buffer.alloc(SIZE, 1), { flush: true })
  return { name: "file on ext4 on this machine's disk, direct", path: file, size: SIZE, direct: true, remove }
}

/** The statistics of the disk below a path. @param {string} target */
function flushCounter(target) {
  const { dev, rdev } = fs.statSync(target)
  const number = rdev === 0 ? dev : rdev
  const major = (number >> 8) & 0xfff
  const minor = (number & 0xff) | ((number >> 12) & 0xfff00)
  let folder = fs.realpathSync(`/sys/dev/block/${major}:${minor}`)
  if (fs.existsSync(path.join(folder, 'partition'))) folder = path.dirname(folder)
  const count = () => Number(fs.readFileSync(path.join(folder, 'stat'), 'utf8').trim().split(/\s+/)[FLUSHES_FIELD])
  return { count, fua: fs.readFileSync(path.join(folder, 'queue/fua'), 'utf8').trim() === '1' }
}

/** @param {import('./targets.mjs').Target} target */
async function compare(target) {
  const disk = await open(target.path, { direct: target.direct })
  try {
    const { count, fua } = flushCounter(target.path)
    const data = Array.from({ length: REQUESTS }, (_, at) => disk.alloc(REQUEST_BYTES).fill(at))
    let place = 0
    const next = () => {
      place = (place + REQUESTS * REQUEST_BYTES) % target.size
      return place
    }
    /** @param {boolean} noMerge */
    const batch = (noMerge) => async () => {
      const base = next()
      await disk.multiwrite(
        data.map((bytes, at) => ({ offset: base + at * REQUEST_BYTES, data: bytes, fua: true, noMerge })),
      )
    }
    const singly = async () => {
      const base = next()
      for (let at = 0; at < REQUESTS; at++) await disk.write(base + at * REQUEST_BYTES, data[at], { fua: true })
    }
    const ways = [
      { name: 'one batch', run: batch(false) },
      { name: 'one batch, not merged', run: batch(true) },
      { name: 'one after another', run: singly },
    ].map((way) => ({ ...way, elapsed_ms: /** @type {number[]} */ ([]), flushes: /** @type {number[]} */ ([]) }))
    // The first round warms up and is thrown away.
    for (let round = -1; round < rounds; round++) {
      for (const way of ways) {
        const before = count()
        const start = performance.now()
        for (let repeat = 0; repeat < REPEATS; repeat++) await way.run()
        const elapsed_ms = (performance.now() - start) / REPEATS
        if (round < 0) continue
        way.elapsed_ms.push(elapsed_ms)
        way.flushes.push((count() - before) / REPEATS)
      }
    }
    console.log(`\n${target.name} (${disk.engine.name}; the disk ${fua ? 'has' : 'has no'} FUA)`)
    for (const way of ways) {
      const ratio = spread(way.elapsed_ms.map((elapsed, round) => ways[0].elapsed_ms[round] / elapsed)).median
      console.log(
        `  ${way.name.padEnd(22)} ${spread(way.elapsed_ms).median.toFixed(2).padStart(8)} ms ` +
          `${spread(way.flushes).median.toFixed(1).padStart(6)} flushes   one batch takes ${ratio.toFixed(3)} of its time`,
      )
    }
  } finally {
    await disk.close()
  }
}

console.log(`${REQUESTS} adjacent writes of ${REQUEST_BYTES} bytes with fua; medians of ${rounds} interleaved rounds`)
for (const make of [() => loopDevice(SIZE), () => ext4File(SIZE, true), ownDisk]) {
  try {
    const target = make()
    try {
      await compare(target)
    } finally {
      target.remove()
    }
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error
    console.log(`\nskipped: ${error.message}`)
  }
}
