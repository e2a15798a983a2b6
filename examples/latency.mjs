// A latency probe: single writes of 4 KiB at random places, one at a time, and how long they take, with and without making each
// durable. For a real measurement there is `multiwrite bench`.
//
//     node examples/latency.mjs FILE [COUNT]
//
// FILE is made, and removed afterwards: nothing that exists is touched.

import { randomInt } from 'node:crypto'
import { unlink } from 'node:fs/promises'
import { createHistogram } from 'node:perf_hooks'
import { create } from 'multiwrite'

const [path, count = '200'] = process.argv.slice(2)
if (path === undefined) throw new Error('usage: node examples/latency.mjs FILE [COUNT]')

const BLOCK = 4096
const BLOCKS = 4096
const disk = await create(path, { size: BLOCK * BLOCKS, busyPollUs: 50 })
try {
  const page = disk.alloc(BLOCK)
  page.fill(0x5a)
  for (const fua of [false, true]) {
    const histogram = createHistogram()
    for (let index = 0; index < Number(count); index++) {
      const began = process.hrtime.bigint()
      await disk.write(randomInt(BLOCKS) * BLOCK, page, { fua })
      histogram.record(process.hrtime.bigint() - began)
    }
    const us = (percentile) => (histogram.percentile(percentile) / 1000).toFixed(1)
    console.log(`${fua ? 'durable' : 'written'}: p50 ${us(50)} us, p99 ${us(99)} us, of ${histogram.count} writes`)
  }
} finally {
  await disk.close()
  await unlink(path)
}
