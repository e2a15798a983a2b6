// `multiwrite write` when the world around it goes away: whoever reads its output, its image, its target, the room on its target.
// Each ends with its own status and words that say what the target holds; what can go on goes on.

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { cli, commandLine } from './support/cli.ts'
import { failingDisk, noFailingDisk } from './support/failing-disk.ts'
import { noLoop, temporaryDirectory } from './support/targets.ts'

const MIB = 1 << 20
let directory: { path: string; cleanup(): void }
let image: string
const inside = (name: string): string => path.join(directory.path, name)
const titled = (title: string, reason: string): string => (reason === '' ? title : `${title} (${reason})`)

beforeAll(() => {
  directory = temporaryDirectory()
  image = inside('image')
  fs.writeFileSync(image, randomFillSync(Buffer.alloc(8 * MIB)))
})
afterAll(() => directory?.cleanup())

/** Runs a line of shell in which `multiwrite` is the command line. */
function shell(line: string): { status: number | null; stdout: string; stderr: string } {
  const script = `multiwrite() { '${process.execPath}' '${commandLine}' "$@"; }; ${line}`
  return spawnSync('bash', ['-c', script], { cwd: directory.path, encoding: 'utf8' })
}

const isWhole = (name: string): boolean => fs.readFileSync(inside(name)).equals(fs.readFileSync(image))

test.each([
  ['its messages', 'multiwrite write image a 2> >(exec true)', 'a'],
  ['its result', 'set -o pipefail; multiwrite write image b | true', 'b'],
  ['its progress', 'multiwrite write --progress=3 image c 3> >(exec true)', 'c'],
  ['anything, all three descriptors being closed', 'multiwrite write image d >&- 2>&- <&-', 'd'],
])('nobody reads %s any more: the image is written all the same, and well', (_, line, made) => {
  const { status, stderr } = shell(line)
  expect({ status, stderr }).toEqual({ status: 0, stderr: expect.not.stringMatching(/^\s+at /m) })
  expect(isWhole(made)).toBe(true)
})

test.each(['--help', 'write --help', 'info image'])('`multiwrite %s | true` ends in peace', (args) => {
  expect(shell(`set -o pipefail; multiwrite ${args} | true`)).toEqual(
    expect.objectContaining({ status: 0, stderr: '' }),
  )
})

test('a result that cannot be written is a failure, and says why', () => {
  const { status, stderr } = shell('multiwrite write --json image full-output > /dev/full')
  expect(status).toBe(1)
  expect(stderr).toContain('the result cannot be written: ENOSPC')
  expect(isWhole('full-output')).toBe(true)
})

test.each([
  ['standard input', '- e < /dev/null'],
  ['standard input', '- e <&-'],
  ['nothing', 'nothing e'],
])('an empty image (%s) is no image: a download that failed would look like success', (what, args) => {
  fs.writeFileSync(inside('nothing'), '')
  const { status, stderr } = shell(`multiwrite write ${args}`)
  expect({ status, stderr }).toEqual({
    status: 1,
    stderr: `multiwrite write: ${what} is empty: nothing was written. Look at what should have made the image\n`,
  })
  expect(fs.existsSync(inside('e'))).toBe(false)
})

test.skipIf(noLoop !== '')(titled('a full target is told with what it holds, for any source', noLoop), () => {
  const small = inside('small')
  fs.mkdirSync(small)
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4M', 'tmpfs', small])
  try {
    for (const line of ['multiwrite write image small/t', 'multiwrite write - small/t < image']) {
      const { status, stderr } = shell(line)
      expect(status).toBe(1)
      // Of what is in flight at once, chance decides which is the one without room.
      expect(stderr).toMatch(/ENOSPC: .* of 1048576 bytes at \d+ 'small\/t'; make room on what it lies on/)
      const place = Number(/bytes at (\d+) /.exec(stderr)?.[1])
      expect([place % MIB, place < 8 * MIB]).toEqual([0, true])
      expect(stderr).toContain('it holds an incomplete image')
      fs.rmSync(path.join(small, 't'))
    }
  } finally {
    execFileSync('umount', [small])
  }
})

test.skipIf(noLoop !== '')(titled('a file system without direct I/O is written through the page cache', noLoop), () => {
  const plain = inside('plain')
  fs.mkdirSync(plain)
  execFileSync('mount', ['-t', 'ramfs', 'ramfs', plain])
  try {
    const { status, stdout } = shell('multiwrite write image plain/t')
    expect({ status, stdout }).toEqual({ status: 0, stdout: expect.stringContaining('reads through the page cache') })
    expect(isWhole('plain/t')).toBe(true)
  } finally {
    execFileSync('umount', [plain])
  }
})

/** Runs it, and does something as soon as it has begun to write. */
function meanwhile(args: readonly string[], act: () => void): Promise<{ status: number | null; stderr: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [commandLine, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
    let stderr = ''
    let acted = false
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
      if (!acted && stderr.includes('writing\n')) {
        acted = true
        act()
      }
    })
    child.on('close', (status) => resolve({ status, stderr }))
  })
}

test.skipIf(noFailingDisk !== '')(
  titled('a target that vanishes ends it with status 1 and what can be said', noFailingDisk),
  async () => {
    const disk = await failingDisk(64 * MIB, 5)
    try {
      const big = inside('big')
      fs.writeFileSync(big, randomFillSync(Buffer.alloc(64 * MIB)))
      const { status, stderr } = await meanwhile(['write', '--force', big, disk.path], () => disk.vanish())
      expect(status).toBe(1)
      expect(stderr).toMatch(/multiwrite write: (EIO|ENXIO|ENODEV): /)
      expect(stderr).toMatch(/it holds an incomplete image|Don't trust it/)
      expect(stderr).not.toMatch(/^\s+at /m)
    } finally {
      await disk.cleanup()
    }
  },
)

test('an image that becomes shorter while it is read is named as what it is', async () => {
  // The image ends before its end as it was opened: a file system in between would need luck.
  const source = inside('shrinking')
  fs.copyFileSync(image, source)
  fs.truncateSync(source, 512 * MIB)
  // Opened at its full length, cut before most of it has been read: half a gigabyte takes longer than the cut.
  const { status, stderr } = await meanwhile(['write', '--zeroes=write', source, inside('shrunk')], () =>
    fs.truncateSync(source, MIB),
  )
  expect({ status, stderr }).toEqual({
    status: 1,
    stderr: expect.stringContaining(`the image ${source} became shorter while it was read`),
  })
  expect(stderr).toContain('it holds an incomplete image')
})

test('a signal while standard input has nothing ends it at once, by that signal', async () => {
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    const { signal, stderr } = await cli(['write', '-', inside('never')], {
      meanwhile: (child) => {
        child.stdin!.write(Buffer.alloc(16, 1))
        child.stderr!.on('data', (text: string) => {
          if (text.includes('writing')) child.kill(name)
        })
      },
    })
    expect({ signal, stderr }).toEqual({
      signal: name,
      stderr: expect.stringContaining('multiwrite write: interrupted'),
    })
    fs.rmSync(inside('never'))
  }
})
