// The process whose allocations are counted, for allocations.mjs: does some work until it is in a steady state, then more of
// it between two looks at the counters.
//
//     node --expose-gc --max-semi-space-size=MB bench/allocations-child.mjs TARGET [direct]

import fs from 'node:fs'
import { PerformanceObserver } from 'node:perf_hooks'
import { setTimeout } from 'node:timers/promises'
import { open } from '../dist/index.js'
import { multiwrite, multiwriteCallbacks, writes } from './ours.mjs'
import { fsWriteFanOut, writevByHand } from './peers.mjs'
import { adjacent, scattered } from './workload.mjs'

const SIZE = 64 << 20
const WARM_UP_MS = 600
const COUNTED_MS = 150

const [target, direct] = process.argv.slice(2)
const counters = fs.openSync(/** @type {string} */ (process.env.MULTIWRITE_ALLOCATION_COUNTERS), 'r+')
const view = new BigUint64Array(4)

/** Tells the allocator where the addon's code lies. */
function announceAddon() {
  const lines = fs.readFileSync('/proc/self/maps', 'utf8').split('\n')
  const addresses = lines
    .filter((line) => line.includes('multiwrite.node'))
    .flatMap((line) =>
      line
        .split(' ')[0]
        .split('-')
        .map((hex) => BigInt(`0x${hex}`)),
    )
  if (addresses.length === 0) throw new Error('the addon is not in memory')
  view[2] = addresses[0]
  view[3] = addresses[addresses.length - 1]
  fs.writeSync(counters, new Uint8Array(view.buffer, 16, 16), 0, 16, 16)
}

/** Allocations so far, of the process and of the addon. */
function look() {
  fs.readSync(counters, new Uint8Array(view.buffer), 0, 32, 0)
  return { process: Number(view[0]), addon: Number(view[1]) }
}

/** The heap, and the memory of typed arrays that lies outside it. */
function javaScriptBytes() {
  const { heapUsed, arrayBuffers } = process.memoryUsage()
  return heapUsed + arrayBuffers
}

let collections = 0
new PerformanceObserver((list) => (collections += list.getEntries().length)).observe({ entryTypes: ['gc'] })

const disk = await open(target, { direct: direct === 'direct', exclusive: false })
announceAddon()
const alloc = disk.alloc.bind(disk)
const shapes = [
  multiwrite('64 adjacent in a batch', disk, adjacent({ lanes: 4, count: 64, size: SIZE, alloc })),
  multiwriteCallbacks('the same with callbacks', disk, adjacent({ lanes: 4, count: 64, size: SIZE, alloc })),
  multiwrite('32 random in a batch', disk, scattered({ lanes: 1, count: 32, size: SIZE, alloc })),
  writes('single writes in 32 lanes', disk, scattered({ lanes: 32, count: 1, size: SIZE, alloc })),
]
const handle = await fs.promises.open(target, fs.constants.O_RDWR | (direct === 'direct' ? fs.constants.O_DIRECT : 0))
const batch = adjacent({ lanes: 4, count: 64, size: SIZE, alloc })
const peers = [fsWriteFanOut(handle.fd, batch), writevByHand(handle.fd, batch)]
const results = []
for (const shape of [...shapes, ...peers]) {
  await shape.run(WARM_UP_MS)
  globalThis.gc?.()
  await setTimeout(50)
  collections = 0
  const used = javaScriptBytes()
  const before = look()
  const { requests } = await shape.run(COUNTED_MS)
  const after = look()
  const bytes = javaScriptBytes() - used
  await setTimeout(50)
  results.push({
    shape: shape.name,
    ours: shapes.includes(shape),
    requests,
    addon: after.addon - before.addon,
    process: after.process - before.process,
    bytes: collections === 0 ? bytes : -1,
  })
}
await handle.close()
await disk.close()
console.log(JSON.stringify(results))
