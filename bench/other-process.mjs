// A contender in a process of its own, for what can only be chosen when a process starts, such as libuv's own io_uring. The
// process stays over all rounds, so that it is as warm as the others; its CPU time is its own.
//
// This file is both sides: the parent forks it.

import { fork } from 'node:child_process'
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { open } from '../dist/index.js'
import { fsWriteFanOut, fsWriteSingly } from './peers.mjs'
import { atTheLatestAtExit } from './targets.mjs'
import { adjacent, scattered } from './workload.mjs'

/** @typedef {import('./measure.mjs').Contender} Contender */
/** @typedef {import('./measure.mjs').Sample} Sample */

/**
 * @typedef {object} Job
 * @property {string} path
 * @property {number} size
 * @property {boolean} direct
 * @property {'fan out' | 'singly'} work of fs.write
 * @property {'adjacent' | 'scattered'} shape
 * @property {number} lanes
 * @property {number} count
 */

/**
 * @param {string} name
 * @param {NodeJS.ProcessEnv} env what is set for it
 * @param {Job} job
 * @returns {{ contender: Contender, close: () => Promise<void> }}
 */
export function inOtherProcess(name, env, job) {
  /** @type {import('node:child_process').ChildProcess | null} */
  let child = null
  const start = () => {
    const started = fork(fileURLToPath(import.meta.url), [JSON.stringify(job)], { env: { ...process.env, ...env } })
    const stop = atTheLatestAtExit(() => started.kill('SIGKILL'))
    started.once('exit', stop)
    return started
  }
  return {
    contender: {
      name,
      run: (duration_ms) =>
        new Promise((resolve, reject) => {
          child ??= start()
          const failed = () => reject(new Error(`${name}: the process has ended`))
          child.once('exit', failed)
          child.once('message', (/** @type {Sample} */ sample) => {
            child?.off('exit', failed)
            resolve(sample)
          })
          child.send(duration_ms)
        }),
    },
    close: () =>
      new Promise((resolve) => {
        if (child === null) return resolve()
        child.once('exit', () => resolve())
        child.disconnect()
      }),
  }
}

/** @param {Job} job */
async function serve({ path, size, direct, work, shape, lanes, count }) {
  const { O_RDWR, O_DIRECT } = fs.constants
  const handle = await fs.promises.open(path, O_RDWR | (direct ? O_DIRECT : 0))
  // For its memory only: aligned as direct I/O wants it, and the same as the other contenders have.
  const disk = await open(path, { direct, exclusive: false, readOnly: true })
  const workload = (shape === 'adjacent' ? adjacent : scattered)({ lanes, count, size, alloc: disk.alloc.bind(disk) })
  const contender = work === 'fan out' ? fsWriteFanOut(handle.fd, workload) : fsWriteSingly(handle.fd, workload)
  process.on('message', async (/** @type {number} */ duration_ms) => {
    process.send?.(await contender.run(duration_ms))
  })
  process.once('disconnect', async () => {
    await handle.close()
    await disk.close()
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await serve(JSON.parse(process.argv[2]))
