// A writer of VM images: many small pieces, in whatever order they come, become a few large writes, and the image is on stable
// storage when it says so.
//
//     node examples/vm-image.mjs IMAGE
//
// The pieces stand for what a guest's disk consists of: a boot sector, tables, files. Each knows its own outcome by a callback;
// the batch as a whole by its promise.

import { create } from 'multiwrite'

const [path] = process.argv.slice(2)
if (path === undefined) throw new Error('usage: node examples/vm-image.mjs IMAGE')

const MIB = 1 << 20
const disk = await create(path, { size: 64 * MIB, overwrite: true })

/** Pieces of a disk image, out of order. */
function* pieces() {
  for (let file = 0; file < 1000; file++) {
    // Neighbours come close to each other, but in no order: 7 has no divisor in common with 250.
    const place = Math.floor(file / 250) * 250 + ((file * 7) % 250)
    const name = Buffer.from(`file ${place} `)
    yield { offset: MIB + place * 8192, data: [name, Buffer.alloc(8192 - name.length, '.')] }
  }
  yield { offset: 0, data: Buffer.concat([Buffer.alloc(510, 0x90), Buffer.from([0x55, 0xaa])]) }
}

let written = 0
let batch = []
const inFlight = []
for (const piece of pieces()) {
  batch.push({
    ...piece,
    callback(error) {
      if (error) console.error(`the piece at ${piece.offset} failed: ${error.message}`)
      else written++
    },
  })
  if (batch.length === 250) {
    // Not awaited: the next batch is made while this one is written. Overlaps would be carried out in the order of the calls.
    inFlight.push(disk.multiwrite(batch))
    batch = []
  }
}
inFlight.push(disk.multiwrite(batch))
await Promise.all(inFlight)
await disk.flush()

const { write } = disk.stats
console.log(
  `${written} pieces in ${write.submissions} writes of ${Math.round(write.bytes / write.submissions / 1024)} KiB each`,
)
console.log(`by ${disk.engine.name}: ${disk.engine.reason}`)
await disk.close()
