// What a request costs besides time: system calls, and memory that is allocated. Each is counted in a run of its own, since
// counting costs time.

import { countAllocations } from './allocations.mjs'
import { Bench, onTarget, TARGET_BYTES } from './bench.mjs'
import { multiwrite, writes } from './ours.mjs'
import { fsWriteFanOut, writevByHand } from './peers.mjs'
import { requirePerf, systemCallsOf, systemCallsOfProgram } from './system-calls.mjs'
import { loopDevice } from './targets.mjs'
import { adjacent, REQUEST_BYTES, SCATTER_BYTES, scattered } from './workload.mjs'

/**
 * @typedef {object} Cost
 * @property {string} name
 * @property {Record<string, number | null>} figures by what they are; of a request, where the title does not say otherwise
 */

/**
 * @typedef {object} CostTable
 * @property {string} title
 * @property {Cost[]} costs
 */

/**
 * @typedef {object} CostSection
 * @property {string} name
 * @property {(settings: import('./suite.mjs').Settings) => AsyncGenerator<CostTable>} tables
 */

const DEPTH = 32
const COUNT = 64

/** @type {CostSection[]} */
export const costSections = [
  { name: 'calls', tables: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, systemCalls) },
  { name: 'memory', tables: (settings) => onTarget(() => loopDevice(TARGET_BYTES), settings, memory) },
]

/** @param {Bench} bench @returns {AsyncGenerator<CostTable>} */
async function* systemCalls(bench) {
  requirePerf()
  const { size } = bench.target
  const disk = await bench.disk()
  const handle = await bench.handle()
  const alloc = disk.alloc.bind(disk)
  const batches = adjacent({ lanes: 1, count: COUNT, size, alloc })
  const random = scattered({ lanes: 1, count: DEPTH, size, alloc })
  const lanes = scattered({ lanes: DEPTH, count: 1, size, alloc })
  const one = scattered({ lanes: 1, count: 1, size, alloc })
  /** @type {Cost[]} */
  const costs = []
  /** @param {string} name @param {import('./system-calls.mjs').Calls} calls */
  const add = (name, { requests, all, named }) => {
    const each = Object.entries(named).map(([call, count]) => [call, count / requests])
    costs.push({ name, figures: { all: all / requests, ...Object.fromEntries(each) } })
  }
  for (const engine of /** @type {const} */ (['io_uring', 'aio', 'threads'])) {
    const own = await bench.disk({ engine })
    const shapes = [
      multiwrite(`${COUNT} adjacent in a batch, ${engine}`, own, batches),
      multiwrite(`${DEPTH} random in a batch, ${engine}`, own, random),
      writes(`write in ${DEPTH} lanes, ${engine}`, own, lanes),
      writes(`write, one at a time, ${engine}`, own, one),
    ]
    for (const shape of shapes) add(shape.name, await systemCallsOf(shape))
  }
  add(`${COUNT} adjacent, fs.write`, await systemCallsOf(fsWriteFanOut(handle.fd, batches)))
  add(`${COUNT} adjacent, fs.writev`, await systemCallsOf(writevByHand(handle.fd, batches)))
  const fioJobs = [
    { name: `fio io_uring, depth ${DEPTH}`, job: { depth: DEPTH } },
    {
      name: `fio io_uring, ${DEPTH} per call, all awaited`,
      job: { depth: DEPTH, batchSubmit: DEPTH, batchComplete: DEPTH },
    },
    { name: 'fio io_uring, depth 1', job: { depth: 1 } },
  ]
  for (const { name, job } of bench.settings.fio ? fioJobs : []) {
    const whole = { engine: 'io_uring', rw: 'randwrite', blockSize: REQUEST_BYTES, blockAlign: SCATTER_BYTES, ...job }
    add(name, await systemCallsOfProgram(bench.fio(name, /** @type {never} */ (whole))[0]))
  }
  yield { title: `system calls per request, all threads; ${bench.target.name}`, costs }
}

/** @param {Bench} bench @returns {AsyncGenerator<CostTable>} */
async function* memory(bench) {
  const counted = await countAllocations(bench.target)
  yield {
    title: `memory allocated per request; ${bench.target.name}`,
    costs: counted.map(({ shape, requests, bytes, addon, process }) => ({
      name: shape,
      figures: {
        'bytes by JavaScript': bytes < 0 ? null : bytes / requests,
        'native allocations': addon / requests,
        'allocations of the process': process / requests,
      },
    })),
  }
}
