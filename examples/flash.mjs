// Copies an image to a disk or file, with a line of progress: what the command `multiwrite write` does, in forty lines and
// without its checks. Four reads and writes are under way at any time.
//
//     node examples/flash.mjs IMAGE TARGET
//
// A block device is opened with O_DIRECT and exclusively: one that is mounted is refused, by the name of its mount point. What
// else is on it is lost.

import { stat } from 'node:fs/promises'
import { create, open } from 'multiwrite'

const [image, target] = process.argv.slice(2)
if (target === undefined) throw new Error('usage: node examples/flash.mjs IMAGE TARGET')

const CHUNK = 1 << 20
const LANES = 4

const source = await open(image, { readOnly: true })
const isDevice = await stat(target).then(
  (stats) => stats.isBlockDevice(),
  () => false,
)
const disk = isDevice ? await open(target) : await create(target, { size: source.size })
if (disk.size < source.size) throw new Error(`${target} is too small`)

let next = 0
let done = 0
const timer = setInterval(() => {
  process.stderr.write(`\r${Math.floor((100 * done) / source.size)} %`)
}, 250)

async function lane() {
  // Memory that needs no copy on its way to the device.
  const memory = disk.alloc(CHUNK)
  while (next < source.size) {
    const offset = next
    const data = memory.subarray(0, Math.min(CHUNK, source.size - offset))
    next += data.length
    await source.read(offset, data)
    await disk.write(offset, data)
    done += data.length
  }
}

await Promise.all(Array.from({ length: LANES }, lane))
await disk.flush()
clearInterval(timer)
process.stderr.write('\r')
console.log(`${done} bytes are on ${target}, and on stable storage`)
await source.close()
await disk.close()
