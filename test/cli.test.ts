// The command line as a whole: its help, its usage errors, and what `info` tells of devices, files and images.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { formatTime } from '../lib/cli/progress.ts'
import { formatField, wrap } from '../lib/cli/report.ts'
import { cli, noTerminal, Terminal } from './support/cli.ts'
import { attachLoop, noLoop, temporaryDirectory } from './support/targets.ts'

const MIB = 1 << 20
const run = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: 'pipe' })
const titled = (title: string, reason: string): string => (reason === '' ? title : `${title} (${reason})`)

let directory: { path: string; cleanup(): void }
beforeAll(() => {
  directory = temporaryDirectory()
})
afterAll(() => directory?.cleanup())
const inside = (name: string): string => path.join(directory.path, name)

describe('help', () => {
  test('lists the commands, on standard output if asked for and on standard error if not', async () => {
    const asked = await cli(['--help'])
    expect({ status: asked.status, stderr: asked.stderr }).toEqual({ status: 0, stderr: '' })
    for (const name of ['info', 'write', 'convert', 'check', 'replay'])
      expect(asked.stdout).toMatch(new RegExp(`^  ${name} +\\w`, 'm'))
    expect(await cli([])).toMatchObject({ status: 2, stdout: '', stderr: asked.stdout })
    const unknown = await cli(['frobnicate'])
    expect([unknown.status, unknown.stderr]).toEqual([
      2,
      `multiwrite: there is no command "frobnicate"\n\n${asked.stdout}`,
    ])
  })

  test('of each command fits a terminal of 80 columns and tells its exit statuses', async () => {
    const { stdout } = await cli(['--help'])
    const names = [...stdout.matchAll(/^ {2}(\w+) /gm)].map(([, name]) => name!)
    expect(names.length).toBeGreaterThanOrEqual(3)
    for (const name of names) {
      const { status, stdout: help, stderr } = await cli([name, '--help'])
      expect({ name, status, stderr }).toEqual({ name, status: 0, stderr: '' })
      expect(help).toMatch(new RegExp(`^usage: multiwrite ${name} `))
      expect(help).toContain('exit status: 0')
      expect(help).toContain('--json')
      expect(help.split('\n').filter((line) => line.length > 79)).toEqual([])
    }
  })
})

test('text is broken between words, and a word longer than a line stays whole', () => {
  const long = 'x'.repeat(90)
  expect(wrap(`a ${long} b`)).toBe(`a\n${long}\nb`)
  expect(wrap('one two', '  ')).toBe('  one two')
  const field = formatField('engine', 'word '.repeat(30).trim())
  expect(field.split('\n').every((line) => line.length < 80)).toBe(true)
  expect(field.split('\n')[1]).toMatch(/^ {10}word/)
})

test.each([
  [0, '0:00'],
  [59.6, '1:00'],
  [750, '12:30'],
  [3723, '1:02:03'],
])('%d seconds are %s', (seconds, text) => expect(formatTime(seconds)).toBe(text))

describe('info', () => {
  test('tells of a file its size, limits, and the engine and why', async () => {
    fs.writeFileSync(inside('image'), Buffer.alloc(12_345))
    const { status, stdout, stderr } = await cli(['info', inside('image')])
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    for (const line of [
      /^what {6}.*image, a file of 12\.1 KiB$/m,
      /^format {4}raw, 12,345 bytes$/m,
      /^used by {3}no loop device$/m,
      /^engine {4}io_uring: the first choice/m,
      /^direct {4}no, through the page cache$/m,
      /^aligned {3}offsets and lengths by 1 byte, memory by 1 byte$/m,
      /^merging {3}runs of up to 1 MiB and 1,024 segments/m,
    ]) {
      expect(stdout).toMatch(line)
    }
    expect(stdout.split('\n').filter((line) => line.length > 79 && !line.startsWith('what'))).toEqual([])
  })

  test('gives programs all of it', async () => {
    const { stdout } = await cli(['info', '--json', '--engine', 'threads', inside('image')])
    const info = JSON.parse(stdout)
    expect(info).toMatchObject({
      path: inside('image'),
      kind: 'file',
      format: 'raw',
      size: 12_345,
      direct: false,
      engine: { name: 'threads', reason: expect.stringContaining('asked for') },
      limits: { alignment: 1, maxBytes: MIB, maxSegments: 1024 },
      holders: [],
      disk: null,
      qcow2: null,
    })
  })

  test.skipIf(noLoop !== '')(titled('tells of a device its partitions and who has it mounted', noLoop), async () => {
    const { path: device, cleanup } = attachLoop(40 * MIB, { sectorSize: 512, backing: os.tmpdir(), directIo: false })
    try {
      run('mkfs.ext4', '-q', device)
      const folder = inside('mounted here')
      fs.mkdirSync(folder)
      run('mount', device, folder)
      try {
        const { status, stdout } = await cli(['info', device])
        expect(status).toBe(0)
        expect(stdout).toContain(`${device}, a disk of 40 MiB`)
        expect(stdout).toMatch(/^ {10}a loop device on .*image/m)
        expect(stdout.replaceAll(/\n {9}/g, '')).toContain(`used by   mounted on ${folder}`)
        expect(stdout).toMatch(/^direct {4}yes, O_DIRECT$/m)
        expect(stdout).toMatch(/^blocks {4}512 bytes logical/m)
        const { holders, disk } = JSON.parse((await cli(['info', '--json', device])).stdout)
        expect(holders).toEqual([`mounted on ${folder}`])
        expect(disk).toMatchObject({ name: path.basename(device), parent: null, bytes: 40 * MIB, readOnly: false })
      } finally {
        run('umount', folder)
      }
      run('addpart', device, '1', '2048', '4096')
      try {
        const { stdout } = await cli(['info', device])
        expect(stdout).toContain(`partition ${path.basename(device)}p1, 2 MiB`)
      } finally {
        run('delpart', device, '1')
      }
    } finally {
      cleanup()
    }
  })

  const noQemu = spawnSync('qemu-img', ['--version']).status === 0 ? '' : 'skipped: needs qemu-img'
  test.skipIf(noQemu !== '')(
    titled('tells of a qcow2 image what its header says, and follows nothing', noQemu),
    async () => {
      const [base, image] = [inside('base.qcow2'), inside('top.qcow2')]
      run('qemu-img', 'create', '-q', '-f', 'qcow2', base, '1G')
      const options = 'cluster_size=128k,refcount_bits=32,lazy_refcounts=on'
      run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', '-o', options, image)
      run('qemu-img', 'snapshot', '-c', 'one', image)
      fs.rmSync(base)
      const { status, stdout } = await cli(['info', '--format', 'qcow2', image])
      expect(status).toBe(0)
      expect(stdout).toContain('qcow2, 1,073,741,824 bytes')
      expect(stdout).toContain('version 3, clusters of 128 KiB, refcounts of 32 bits')
      expect(stdout.replaceAll(/\n */g, ' ')).toContain(`names a backing file: ${base} (not followed)`)
      expect(stdout).toContain('features: lazy refcounts')
      expect(stdout).toContain('1 internal snapshot')
      // Unless it is asked for, it is a raw file that begins like one.
      expect((await cli(['info', image])).stdout).toContain('it begins like a qcow2 image: --format qcow2 tells more')
      expect(await cli(['info', '--format', 'qcow2', inside('image')])).toMatchObject({
        status: 1,
        stderr: expect.stringContaining('is no qcow2 image'),
      })
    },
  )

  test('says of what is not there, and of what is neither, that it is so', async () => {
    expect(await cli(['info', inside('nothing')])).toMatchObject({
      status: 1,
      stderr: expect.stringContaining('ENOENT'),
    })
    expect(await cli(['info', directory.path])).toMatchObject({ status: 1, stderr: expect.stringContaining('EISDIR') })
  })
})

test.skipIf(noTerminal !== '')(titled('the report of a replay fits a terminal of 80 columns', noTerminal), async () => {
  const trace = inside('trace.csv')
  const rows = Array.from({ length: 400 }, (_, index) => `${index >> 3},0,W,${index * 4096},4096`)
  fs.writeFileSync(trace, `batch,time_us,op,offset,length\n${rows.join('\n')}\n`)
  const terminal = new Terminal(directory.path, ['replay', trace, inside('target')])
  try {
    const screen = await terminal.shows('[status 0]')
    expect(screen).toMatch(/^merged +400 +50 +- /m)
    expect(screen).toMatch(/^as given +400 +400 /m)
    // What is longer than a line would be broken in the middle of a word by the terminal.
    expect(screen).toMatch(/^Every byte is right: after each replay all 1,638,400 bytes were read back/m)
    expect(screen).not.toContain('comparing')
  } finally {
    terminal.end()
  }
})
