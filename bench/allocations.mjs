// What a request allocates in steady state: in native code, counted by an allocator put before glibc's in a child process, and
// in JavaScript, from how much the heap grows while no collection runs.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { atTheLatestAtExit, compile } from './targets.mjs'

/** So large a young generation takes in all that a counting run allocates. */
const YOUNG_GENERATION_MB = 256

/**
 * @typedef {object} Allocations
 * @property {string} shape what is written, or the peer that writes
 * @property {boolean} ours
 * @property {number} requests counted
 * @property {number} addon allocations of this library's native code
 * @property {number} process allocations of the whole process, V8 and libuv included
 * @property {number} bytes that JavaScript allocated; -1 where a collection ran meanwhile, so that it can't be told
 */

/** @param {import('./targets.mjs').Target} target @returns {Promise<Allocations[]>} */
export async function countAllocations({ path: target, direct }) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'multiwrite-bench-'))
  const remove = atTheLatestAtExit(() => fs.rmSync(directory, { recursive: true, force: true }))
  try {
    const library = compile('count-allocations', directory)
    const counters = path.join(directory, 'counters')
    fs.writeFileSync(counters, Buffer.alloc(32))
    const child = fileURLToPath(new URL('./allocations-child.mjs', import.meta.url))
    const young = [`--min-semi-space-size=${YOUNG_GENERATION_MB}`, `--max-semi-space-size=${YOUNG_GENERATION_MB}`]
    const output = execFileSync(process.execPath, ['--expose-gc', ...young, child, target, direct ? 'direct' : ''], {
      encoding: 'utf8',
      env: { ...process.env, LD_PRELOAD: library, MULTIWRITE_ALLOCATION_COUNTERS: counters },
    })
    return JSON.parse(output)
  } finally {
    remove()
  }
}
