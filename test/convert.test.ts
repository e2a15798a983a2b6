// `multiwrite convert` and `check`, against what qemu-img says of the same images.

import { execFileSync, spawnSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { gzipSync } from 'node:zlib'
import { create } from 'multiwrite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { cli } from './support/cli.ts'
import { temporaryDirectory } from './support/targets.ts'

const MIB = 1 << 20
const run = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: 'pipe' })

/** Why there can be no qcow2 image; empty where there can. */
const noQcow2 = await (async (): Promise<string> => {
  if (spawnSync('qemu-img', ['--version']).status !== 0) return 'skipped: needs qemu-img'
  const { path: folder, cleanup } = temporaryDirectory()
  try {
    await (await create(path.join(folder, 'probe'), { format: 'qcow2', size: MIB })).close()
    return ''
  } catch (error) {
    return `skipped: no driver for qcow2: ${(error as Error).message}`
  } finally {
    cleanup()
  }
})()

let directory: { path: string; cleanup(): void }
beforeAll(() => {
  directory = temporaryDirectory()
})
afterAll(() => directory?.cleanup())
const inside = (name: string): string => path.join(directory.path, name)

test.each([
  [['convert', 'one'], 'TARGET missing'],
  [['convert', '--to', 'vmdk', '/etc/hostname', 'x'], '--to is raw, qcow2; not "vmdk"'],
  [['convert', '--backing', 'base', '/etc/hostname', 'x'], 'only a qcow2 image has a backing file'],
  [['check'], 'IMAGE missing'],
  [['check', '--format', 'raw', 'x'], '--format is qcow2; not "raw"'],
])('usage: %j ends with status 2', async (args, message) => {
  expect(await cli(args)).toMatchObject({ status: 2, stdout: '', stderr: expect.stringContaining(message) })
})

test('a packed image of unknown size cannot become qcow2, and can become raw', async () => {
  const content = randomFillSync(Buffer.alloc(MIB + 77))
  fs.writeFileSync(inside('packed'), gzipSync(content))
  const refused = await cli(['convert', inside('packed'), inside('unpacked.qcow2')])
  expect([refused.status, refused.stderr]).toEqual([2, expect.stringContaining('unpack the image first')])
  expect(fs.existsSync(inside('unpacked.qcow2'))).toBe(false)
  expect((await cli(['convert', '--to', 'raw', inside('packed'), inside('unpacked')])).status).toBe(0)
  expect(fs.readFileSync(inside('unpacked')).equals(content)).toBe(true)
})

describe.skipIf(noQcow2 !== '')(`qcow2${noQcow2 && ` (${noQcow2})`}`, () => {
  const content = randomFillSync(Buffer.alloc(8 * MIB))
  content.fill(0, 2 * MIB, 6 * MIB)
  let raw: string
  beforeAll(() => {
    raw = inside('raw')
    fs.writeFileSync(raw, content)
  })

  test('a raw image becomes one that qemu-img finds sound and equal, with no room for zeros', async () => {
    const image = inside('made.qcow2')
    const { status, stderr, stdout } = await cli(['convert', '--json', raw, image])
    expect({ status, stderr }).toMatchObject({ status: 0 })
    expect(JSON.parse(stdout)).toMatchObject({
      target: { format: 'qcow2' },
      writtenBytes: 4 * MIB,
      skippedBytes: 4 * MIB,
      verified: { bytes: 8 * MIB },
    })
    expect(run('qemu-img', 'check', image)).toContain('No errors were found')
    expect(run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', raw, image)).toContain('Images are identical')
    expect(fs.statSync(image).size).toBeLessThan(6 * MIB)

    const sound = await cli(['check', image])
    expect([sound.status, sound.stdout]).toEqual([0, expect.stringMatching(/^metadata {2}sound$/m)])
    expect(sound.stdout).toMatch(/^clusters {2}64 of 128 allocated/m)
  })

  test('one that does not end with a whole sector is filled up with zeros', async () => {
    const [odd, image, back] = [inside('odd'), inside('odd.qcow2'), inside('odd-back')]
    fs.writeFileSync(odd, content.subarray(0, MIB + 100))
    expect(await cli(['convert', odd, image])).toMatchObject({ status: 0 })
    run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, back)
    const found = fs.readFileSync(back)
    expect(found).toHaveLength(MIB + 512)
    expect(found.subarray(0, MIB + 100).equals(content.subarray(0, MIB + 100))).toBe(true)
  })

  test('one that qemu-img made becomes a raw image, and is written to a file as what is in it', async () => {
    const image = inside('theirs.qcow2')
    run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', raw, image)
    for (const command of [
      ['convert', '--from'],
      ['write', '--format'],
    ]) {
      const target = inside(`from-${command[0]}`)
      expect(await cli([...command, 'qcow2', image, target])).toMatchObject({ status: 0 })
      expect(fs.readFileSync(target).equals(content)).toBe(true)
    }
  })

  test('what it names below itself is only used if --backing says so', async () => {
    const [base, top] = [inside('base'), inside('top.qcow2')]
    fs.copyFileSync(raw, base)
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', top)
    const refused = await cli(['convert', '--from', 'qcow2', top, inside('flat')])
    expect([refused.status, refused.stderr]).toEqual([1, expect.stringContaining(base)])
    expect(await cli(['convert', '--from', 'qcow2', '--backing', base, top, inside('flat')])).toMatchObject({
      status: 0,
    })
    expect(fs.readFileSync(inside('flat')).equals(content)).toBe(true)
    // To look at its metadata nothing below is needed.
    fs.rmSync(base)
    for (const repair of [[], ['--repair']]) {
      const found = await cli(['check', ...repair, top])
      expect([found.status, found.stdout]).toEqual([0, expect.stringMatching(/^metadata {2}sound$/m)])
    }
  })

  test('a corrupt one is told with status 1, and with --repair it is sound again', async () => {
    const image = inside('corrupt.qcow2')
    run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', raw, image)
    // The refcount of a cluster in use becomes 0: the first data cluster of an image of QEMU's comes after its tables.
    const bytes = fs.readFileSync(image)
    const table = Number(bytes.readBigUInt64BE(48))
    const block = Number(bytes.readBigUInt64BE(table))
    bytes.writeUInt16BE(0, block + 2 * 6)
    fs.writeFileSync(image, bytes)
    expect(spawnSync('qemu-img', ['check', image]).status).toBe(2)
    const found = await cli(['check', image])
    expect([found.status, found.stdout]).toEqual([
      1,
      expect.stringMatching(/^metadata {2}1 corruption: --repair mends/m),
    ])
    expect(JSON.parse((await cli(['check', '--json', image])).stdout)).toMatchObject({ path: image, corruptions: 1 })
    const mended = await cli(['check', '--repair', image])
    expect([mended.status, mended.stdout]).toEqual([0, expect.stringMatching(/^mended {4}1 corruption$/m)])
    expect(run('qemu-img', 'check', image)).toContain('No errors were found')
  })
})
