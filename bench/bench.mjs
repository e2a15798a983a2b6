// A target with the means to open it, for this library, for node:fs and for fio: what the sections of the suite and the goals
// have in common. All that was opened is closed with it.

import fs from 'node:fs'
import { open } from '../dist/index.js'
import { inOtherProcess } from './other-process.mjs'
import { fio } from './peers.mjs'
import { qemuBench } from './qemu.mjs'
import { REQUEST_BYTES } from './workload.mjs'

/** @typedef {import('./measure.mjs').Contender} Contender */
/** @typedef {import('./targets.mjs').Target} Target */
/** @typedef {import('../dist/index.js').BlockDevice} BlockDevice */
/** @typedef {import('../dist/index.js').OpenOptions} OpenOptions */

/** @typedef {{ fio: boolean, qemu: boolean }} Installed which programs there are */

export const TARGET_BYTES = 256 << 20

/** Memory as users have it who do not ask the device for it. @param {number} size */
export const plainMemory = (size) => Buffer.alloc(size)

export class Bench {
  /** @type {(() => Promise<unknown>)[]} */
  #closers = []

  /**
   * @param {Target} target
   * @param {Installed} settings
   */
  constructor(target, settings) {
    this.target = target
    this.settings = settings
  }

  /** Closed by the caller. @param {OpenOptions} [options] */
  openDisk(options) {
    return open(this.target.path, { direct: this.target.direct, exclusive: false, ...options })
  }

  /** Closed with the bench. @param {OpenOptions} [options] */
  async disk(options) {
    const disk = await this.openDisk(options)
    this.#closers.push(() => disk.close())
    return disk
  }

  /** The same for node:fs. */
  async handle() {
    const { O_RDWR, O_DIRECT } = fs.constants
    const handle = await fs.promises.open(this.target.path, O_RDWR | (this.target.direct ? O_DIRECT : 0))
    this.#closers.push(() => handle.close())
    return handle
  }

  /**
   * A contender whose device is open during its own rounds only. Polling needs that: the thread's engine polls for as long as
   * any of its devices asks for it.
   *
   * @param {OpenOptions} options
   * @param {(disk: BlockDevice) => Contender} contenderOn
   * @param {string} name
   * @returns {Contender}
   */
  openedForItsRounds(name, options, contenderOn) {
    return {
      name,
      run: async (duration_ms) => {
        const disk = await this.openDisk(options)
        try {
          return await contenderOn(disk).run(duration_ms)
        } finally {
          await disk.close()
        }
      },
    }
  }

  /**
   * @param {string} name
   * @param {Omit<import('./peers.mjs').FioJob, 'path' | 'size' | 'direct'>} job
   * @returns {Contender[]} none where there is no fio
   */
  fio(name, job) {
    if (!this.settings.fio) return []
    const { path, size, direct } = this.target
    return [fio(name, { path, size, direct, ...job }, job.blockSize / REQUEST_BYTES)]
  }

  /**
   * @param {string} name
   * @param {Omit<import('./qemu.mjs').QemuJob, 'path' | 'direct'>} job
   * @returns {Contender[]} none where there is no qemu-img
   */
  qemu(name, job) {
    if (!this.settings.qemu) return []
    const { path, direct } = this.target
    return [qemuBench(name, { path, direct, ...job }, job.blockSize / REQUEST_BYTES)]
  }

  /**
   * `fs.write` in a process of its own, for which libuv uses io_uring.
   * @param {Pick<import('./other-process.mjs').Job, 'work' | 'shape' | 'lanes' | 'count'>} job
   * @returns {Contender}
   */
  fsWriteByUring(job) {
    const { path, size, direct } = this.target
    const { contender, close } = inOtherProcess(
      'fs.write, UV_USE_IO_URING=1',
      { UV_USE_IO_URING: '1' },
      { path, size, direct, ...job },
    )
    this.#closers.push(close)
    return contender
  }

  async close() {
    for (const close of this.#closers.splice(0)) await close()
  }
}

/**
 * Makes a target, yields what is measured on it and takes it away again.
 *
 * @template T
 * @param {() => Target} make throws `Unavailable` where it can't be had
 * @param {Installed} settings
 * @param {(bench: Bench) => AsyncGenerator<T>} measured
 * @returns {AsyncGenerator<T>}
 */
export async function* onTarget(make, settings, measured) {
  const target = make()
  const bench = new Bench(target, settings)
  try {
    yield* measured(bench)
  } finally {
    await bench.close()
    target.remove()
  }
}
