// Before a thread measures, it does for a moment the same on a file in memory. V8 runs new code slowly and compiles what runs
// often, on another thread: at some thousand requests a second that goes on for seconds, in which a request costs three times
// what it costs afterwards and the device's own threads lack a processor. The target is not touched.

import fs from 'node:fs'
import path from 'node:path'
import { LIVE, type Load, Loop } from './loop.ts'
import { openTarget } from './open-target.ts'
import type { Kind, TargetOptions } from './target.ts'

const MEMORY = '/dev/shm'
/** From statfs(2). */
const TMPFS_MAGIC = 0x01021994
/** What is compiled for the first device alone is thrown away with the second, and then compiled for any. */
const DEVICES = 2
const EACH_NS = 150e6
const FILE_BYTES = 16 << 20
/** Requests in flight must not wait for each other. */
const BLOCKS_PER_SLOT = 4

/** Where there is no such file to be had, the run begins cold. */
export async function warmUp(kind: Kind, target: TargetOptions, load: Load, stop: Int32Array): Promise<void> {
  const blocks = Math.floor(FILE_BYTES / load.bs)
  const depth = Math.min(load.depth, Math.floor(blocks / BLOCKS_PER_SLOT))
  if (depth === 0) return
  const file = makeFile()
  if (file === null) return
  try {
    const ends = { requests: Number.POSITIVE_INFINITY, runtime_ns: EACH_NS, ramp_ns: 0, rate: null, verifySeed: null }
    const batchComplete = Math.min(load.batchComplete, depth)
    for (let device = 0; device < DEVICES; device++) {
      const opened = await openTarget(kind, { ...target, path: file.path, readOnly: false })
      const likeIt = { ...load, ...ends, blocks, depth, batchComplete }
      await new Loop(opened, likeIt, stop, new Float64Array(LIVE.length)).run()
      await opened.close()
    }
  } catch {
    // The file system may not have what the target has, such as direct I/O.
  } finally {
    file.remove()
  }
}

function makeFile(): { path: string; remove(): void } | null {
  try {
    if (fs.statfsSync(MEMORY).type !== TMPFS_MAGIC) return null
    const directory = fs.mkdtempSync(path.join(MEMORY, 'multiwrite-warm-up-'))
    const name = path.join(directory, 'file')
    fs.writeFileSync(name, '')
    fs.truncateSync(name, FILE_BYTES)
    return { path: name, remove: () => fs.rmSync(directory, { recursive: true, force: true }) }
  } catch {
    return null
  }
}
