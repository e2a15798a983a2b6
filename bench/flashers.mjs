// Programs that carry an image to a target, as contenders: `multiwrite write`, dd and qemu-img, whole processes from their start
// to the moment when everything is flushed. The time that Node takes to start is in ours. The image lies in memory, so that
// reading it costs all of them the same: a copy from the page cache.

import { execFileSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { qemuVersion, timeOfChildren } from './qemu.mjs'
import { memoryDirectory, temporaryDirectory, Unavailable } from './targets.mjs'

/** @typedef {import('./measure.mjs').Contender} Contender */

const MIB = 1 << 20
const commandLine = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))

export const DD = 'dd bs=1M oflag=direct'
export const CONVERT = 'qemu-img convert -t none'
/** What somebody does who does not trust the medium. */
export const DD_CMP = 'dd, then dd iflag=direct | cmp'
export const QEMU_DD = 'qemu-img dd bs=1M'

/**
 * Random bytes in a file in memory; of a sparse image the middle half is a hole.
 * @param {number} bytes
 * @param {boolean} sparse
 */
export function makeImage(bytes, sparse) {
  const { directory, remove } = temporaryDirectory(memoryDirectory())
  const { bavail, bsize } = fs.statfsSync(directory)
  if (bavail * bsize < bytes) {
    remove()
    throw new Unavailable(`there is no room in memory for an image of ${bytes / MIB} MiB`)
  }
  const file = path.join(directory, 'image')
  const descriptor = fs.openSync(file, 'w')
  const chunk = Buffer.alloc(MIB)
  for (let at = 0; at < bytes; at += MIB) {
    if (sparse && at >= bytes / 4 && at < (bytes * 3) / 4) continue
    fs.writeSync(descriptor, randomFillSync(chunk), 0, MIB, at)
  }
  fs.ftruncateSync(descriptor, bytes)
  fs.closeSync(descriptor)
  return { file, remove }
}

/**
 * A program as a contender.
 *
 * @param {string} name
 * @param {number} requests what the whole image counts as
 * @param {readonly string[]} command
 * @returns {Contender}
 */
const program = (name, requests, [file, ...args]) => ({
  name,
  ready: true,
  async run() {
    const before = timeOfChildren()
    const began = process.hrtime.bigint()
    execFileSync(file, args, { stdio: ['ignore', 'pipe', 'pipe'] })
    const elapsed_ns = Number(process.hrtime.bigint() - began)
    const after = timeOfChildren()
    return {
      requests,
      elapsed_ns,
      user_us: after.user_us - before.user_us,
      system_us: after.system_us - before.system_us,
    }
  },
})

/**
 * A file is made anew by all of them; a device is there.
 *
 * @param {object} how
 * @param {string} how.image
 * @param {string} how.target
 * @param {number} how.requests what the whole image counts as
 * @param {boolean} [how.dense] the image has no zeros: qemu-img dd, which writes them, is worth its time
 * @returns {Contender[]} without those whose program is not there
 */
export function flashers({ image, target, requests, dense = true }) {
  /** @param {string} name @param {string[]} options */
  const ours = (name, ...options) =>
    program(name, requests, [process.execPath, commandLine, 'write', '--force', ...options, image, target])
  const dd = ['dd', `if=${image}`, `of=${target}`, 'bs=1M', 'oflag=direct', 'conv=fsync', 'status=none']
  const readBack = 'dd if="$2" iflag=direct bs=1M status=none | cmp -n "$(stat -c %s "$1")" "$1" -'
  const ddCmp = `dd if="$1" of="$2" bs=1M oflag=direct conv=fsync status=none && ${readBack}`
  const raw = ['-f', 'raw', '-O', 'raw']
  const there = fs.statSync(target).isBlockDevice() ? ['-n'] : []
  const byQemu = [
    program(CONVERT, requests, ['qemu-img', 'convert', ...there, ...raw, '-t', 'none', image, target]),
    ...(dense ? [program(QEMU_DD, requests, ['qemu-img', 'dd', ...raw, 'bs=1M', `if=${image}`, `of=${target}`])] : []),
  ]
  return [
    ours('multiwrite write --no-verify', '--no-verify'),
    program(DD, requests, dd),
    ...(qemuVersion() === null ? [] : byQemu),
    ours('multiwrite write, verified'),
    program(DD_CMP, requests, ['sh', '-c', ddCmp, 'sh', image, target]),
  ]
}
