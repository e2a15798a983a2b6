// A worker of scaling.mjs: single writes at random in some lanes on a device of its own, for as long as it is told.

import { parentPort, workerData } from 'node:worker_threads'
import { open } from '../dist/index.js'
import { timed } from './measure.mjs'
import { scattered } from './workload.mjs'

const { path, size, lanes } = workerData
const disk = await open(path, { exclusive: false })
const workload = scattered({ lanes, count: 1, size, alloc: disk.alloc.bind(disk) })

/** @param {number} lane */
const step = (lane) => {
  const { offsets, buffers } = workload.next(lane)
  return disk.write(offsets[0], buffers[0])
}

parentPort?.on('message', async (/** @type {number} */ duration_ms) => {
  if (duration_ms > 0) {
    parentPort?.postMessage(await timed(duration_ms, lanes, 1, step))
    return
  }
  await disk.close()
  parentPort?.close()
})
parentPort?.postMessage(null)
