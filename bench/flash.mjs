// Flashing an image beside the tools that people use for it (flashers.mjs), on a target of choice. The suite has the same as its
// section "flash", on targets in memory.
//
//     node bench/flash.mjs                 a loop device on tmpfs, an image of 2 GiB
//     node bench/flash.mjs --mib 1024 --rounds 7 --json results.json
//     node bench/flash.mjs --on FOLDER     the loop device goes, around the page cache, to a file in FOLDER: a disk's own speed
//     node bench/flash.mjs --target PATH --destroy            a disk or file of yours, whose content is lost
//
// A rate counts as of the image's bytes. Loop devices need root.

import fs from 'node:fs'
import { parseArgs } from 'node:util'
import { CONVERT, DD, DD_CMP, flashers, makeImage, QEMU_DD } from './flashers.mjs'
import { measure } from './measure.mjs'
import { loopDevice } from './targets.mjs'

const { values } = parseArgs({
  options: {
    mib: { type: 'string', default: '2048' },
    rounds: { type: 'string', default: '5' },
    on: { type: 'string' },
    target: { type: 'string' },
    destroy: { type: 'boolean', default: false },
    json: { type: 'string' },
  },
})
if (values.target !== undefined && !values.destroy) throw new Error('--target needs --destroy: its content is lost')

const mib = Number(values.mib)
const bytes = mib * 2 ** 20
const rounds = Number(values.rounds)
const target = values.target ?? loopDevice(bytes, values.on).path

const results = []
for (const [title, sparse] of /** @type {const} */ ([
  ['an image of random bytes', false],
  ['an image that is half zeros', true],
])) {
  const { file: image, remove } = makeImage(bytes, sparse)
  const contenders = flashers({ image, target, requests: mib, dense: !sparse })
  const measured = await measure(contenders, [DD, CONVERT, QEMU_DD, DD_CMP], { rounds, duration_ms: 0 })
  remove()
  console.log(`\n${title}, ${mib} MiB to ${target}; MiB/s, median (least to most) of ${rounds} rounds`)
  for (const { name, perSecond, ratio } of measured) {
    const { min, median, max } = perSecond
    const figures = `${median.toFixed(0)} (${min.toFixed(0)} to ${max.toFixed(0)})`
    const ratios = Object.entries(ratio).map(
      ([peer, of]) => `x ${peer} ${of.median.toFixed(2)} (${of.min.toFixed(2)} to ${of.max.toFixed(2)})`,
    )
    console.log(
      `  ${name.padEnd(30)}${figures.padStart(22)}   ${name.startsWith('multiwrite') ? ratios.join('; ') : ''}`,
    )
    results.push({ title, name, mibPerSecond: perSecond, ratio })
  }
}
if (values.json !== undefined) fs.writeFileSync(values.json, JSON.stringify(results, null, 2))
process.exit(0)
