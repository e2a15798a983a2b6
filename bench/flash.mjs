// Flashing an image, beside the tools that people use for it: whole programs on one target in one run, from their start to the
// moment when everything is flushed. The time that Node takes to start is in ours.
//
//     node bench/flash.mjs                 a loop device on tmpfs, an image of 1 GiB
//     node bench/flash.mjs --mib 2048 --rounds 7 --json results.json
//     node bench/flash.mjs --on FOLDER     the loop device goes, around the page cache, to a file in FOLDER: a disk's own speed
//     node bench/flash.mjs --target /dev/sdX --destroy        a disk of yours, whose content is lost
//
// A rate counts as of the image's bytes. What the others do not do stands in rows of its own: verification, and the zeros of
// a sparse image. Loop devices need root.

import { execFileSync, spawnSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { inTurns, spread } from './measure.mjs'
import { atTheLatestAtExit, loopDevice } from './targets.mjs'

const { values } = parseArgs({
  options: {
    mib: { type: 'string', default: '1024' },
    rounds: { type: 'string', default: '5' },
    on: { type: 'string' },
    target: { type: 'string' },
    destroy: { type: 'boolean', default: false },
    json: { type: 'string' },
  },
})
if (values.target !== undefined && !values.destroy) throw new Error('--target needs --destroy: its content is lost')

const MIB = 1 << 20
const bytes = Number(values.mib) * MIB
const commandLine = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))

/** An image in memory, so that reading it costs all of them the same: random, or with a hole in the middle half. */
function makeImage(name, sparse) {
  const file = path.join(folder, name)
  const descriptor = fs.openSync(file, 'w')
  const chunk = Buffer.alloc(MIB)
  for (let at = 0; at < bytes; at += MIB) {
    if (sparse && at >= bytes / 4 && at < (bytes * 3) / 4) continue
    fs.writeSync(descriptor, randomFillSync(chunk), 0, MIB, at)
  }
  fs.ftruncateSync(descriptor, bytes)
  fs.closeSync(descriptor)
  return file
}

/** A loop device on a file that has been written whole, so that nothing is allocated while it is measured. */
function loopOn(place) {
  const own = fs.mkdtempSync(path.join(place, 'multiwrite-flash-'))
  atTheLatestAtExit(() => fs.rmSync(own, { recursive: true, force: true }))
  const file = path.join(own, 'disk')
  execFileSync('dd', ['if=/dev/zero', `of=${file}`, 'bs=1M', `count=${bytes / MIB}`, 'conv=fsync', 'status=none'])
  const device = execFileSync('losetup', ['--find', '--show', '--direct-io=on', file], { encoding: 'utf8' }).trim()
  atTheLatestAtExit(() => execFileSync('losetup', ['--detach', device]))
  return device
}

const folder = fs.mkdtempSync('/dev/shm/multiwrite-flash-')
atTheLatestAtExit(() => fs.rmSync(folder, { recursive: true, force: true }))
const target = values.target ?? (values.on === undefined ? loopDevice(bytes).path : loopOn(values.on))
const dense = makeImage('dense', false)
const sparse = makeImage('sparse', true)

/** @param {string} name @param {string[]} command */
const program = (name, [file, ...args]) => ({
  name,
  ready: true,
  async run() {
    const began = process.hrtime.bigint()
    execFileSync(file, args, { stdio: ['ignore', 'pipe', 'pipe'] })
    return { requests: bytes / MIB, elapsed_ns: Number(process.hrtime.bigint() - began), user_us: 0, system_us: 0 }
  },
})
const ours = (name, image, ...options) =>
  program(name, [process.execPath, commandLine, 'write', '--force', ...options, image, target])

const dd = (image) => ['dd', `if=${image}`, `of=${target}`, 'bs=1M', 'oflag=direct', 'conv=fsync', 'status=none']
const qemu = (image, ...options) => [
  'qemu-img',
  'convert',
  '-n',
  '-f',
  'raw',
  '-O',
  'raw',
  '-t',
  'none',
  ...options,
  image,
  target,
]
const tables = [
  {
    title: 'an image of random bytes',
    peers: ['dd bs=1M oflag=direct', 'qemu-img convert'],
    contenders: [
      ours('write, not verified', dense, '--no-verify'),
      program('dd bs=1M oflag=direct', dd(dense)),
      program('qemu-img convert', qemu(dense)),
      program('qemu-img dd bs=1M', [
        'qemu-img',
        'dd',
        '-f',
        'raw',
        '-O',
        'raw',
        'bs=1M',
        `if=${dense}`,
        `of=${target}`,
      ]),
      ours('write, verified', dense),
    ],
  },
  {
    title: 'an image that is half zeros',
    peers: ['dd bs=1M oflag=direct', 'qemu-img convert'],
    contenders: [
      ours('write, not verified', sparse, '--no-verify'),
      program('dd bs=1M oflag=direct', dd(sparse)),
      program('qemu-img convert', qemu(sparse)),
      ours('write, verified', sparse),
    ],
  },
]

const there = ({ name }) => !name.startsWith('qemu-img') || spawnSync('qemu-img', ['--version']).status === 0
const results = []
for (const { title, peers, contenders } of tables) {
  const taking = contenders.filter(there)
  const samples = await inTurns(taking, { rounds: Number(values.rounds), duration_ms: 0 })
  console.log(`\n${title}, ${values.mib} MiB to ${target}; MiB/s, median (least to most) of ${values.rounds} rounds`)
  const rate = ({ elapsed_ns }) => bytes / MIB / (elapsed_ns / 1e9)
  const rates = new Map(taking.map(({ name }, index) => [name, samples[index].map(rate)]))
  for (const [name, own] of rates) {
    const { min, median, max } = spread(own)
    const ratios = peers
      .filter((peer) => peer !== name && rates.has(peer))
      .map((peer) => {
        const ratio = spread(own.map((mine, round) => mine / rates.get(peer)[round]))
        results.push({ title, name, peer, ratio, rate: { min, median, max } })
        return `x ${peer} ${ratio.median.toFixed(2)} (${ratio.min.toFixed(2)} to ${ratio.max.toFixed(2)})`
      })
    const figures = `${median.toFixed(0)} (${min.toFixed(0)} to ${max.toFixed(0)})`
    console.log(`  ${name.padEnd(24)}${figures.padStart(22)}   ${name.startsWith('write') ? ratios.join('; ') : ''}`)
  }
}
if (values.json !== undefined) fs.writeFileSync(values.json, JSON.stringify(results, null, 2))
process.exit(0)
