// `multiwrite write` as people and programs run it, on real loop devices: real file systems arrive whole, wrong bytes are found,
// what is in use is refused by the name of its user, and whatever ends it half-way, its last words tell what the target holds.

import { execFileSync, spawnSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { badDisk, noBadDisk, sector } from './support/bad-sectors.ts'
import { cli, noTerminal, Terminal } from './support/cli.ts'
import { attachLoop, noLoop, temporaryDirectory } from './support/targets.ts'

const MIB = 1 << 20
const FIRST = 64 * 1024

const run = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
const has = (tool: string): boolean => spawnSync('sh', ['-c', `command -v ${tool}`]).status === 0
const titled = (title: string, reason: string): string => (reason === '' ? title : `${title} (${reason})`)

let directory: { path: string; cleanup(): void }
beforeAll(() => {
  directory = temporaryDirectory()
})
afterAll(() => directory?.cleanup())
const inside = (name: string): string => path.join(directory.path, name)

/** Bytes with holes: data, zeros long and short, data to an odd end. */
function holey(bytes: number): Buffer {
  const image = randomFillSync(Buffer.alloc(bytes))
  image.fill(0, 1 * MIB, 3 * MIB + 5000)
  image.fill(0, 4 * MIB, 4 * MIB + 70_000)
  return image
}

function imageFile(name: string, content: Uint8Array): string {
  fs.writeFileSync(inside(name), content)
  return inside(name)
}

async function withLoop(size: number, work: (device: string) => Promise<void>): Promise<void> {
  const { path: device, cleanup } = attachLoop(size, { sectorSize: 512, backing: os.tmpdir(), directIo: false })
  try {
    await work(device)
  } finally {
    cleanup()
  }
}

/** What a device holds, past what was cached of it. */
function contentOf(device: string): Buffer {
  run('blockdev', '--flushbufs', device)
  return fs.readFileSync(device)
}

async function withMount(device: string, work: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = inside('mount point')
  fs.mkdirSync(folder, { recursive: true })
  run('mount', device, folder)
  try {
    await work(folder)
  } finally {
    run('umount', folder)
  }
}

describe.skipIf(noLoop !== '')(titled('a real file system', noLoop), () => {
  const makers = {
    ext4: {
      tool: 'mkfs.ext4',
      size: 64 * MIB,
      make: (file: string) => run('mkfs.ext4', '-q', file),
      check: (at: string) => run('fsck.ext4', '-fn', at),
    },
    xfs: {
      tool: 'mkfs.xfs',
      // The least that it takes.
      size: 300 * MIB,
      make: (file: string) => run('mkfs.xfs', '-q', file),
      check: (at: string) => run('xfs_repair', '-n', at),
    },
  }
  test.each(Object.entries(makers))(
    '%s arrives whole: it checks clean, and its files are the same',
    async (name, maker) => {
      const image = inside(`${name}.img`)
      fs.writeFileSync(image, '')
      const size = maker.size
      fs.truncateSync(image, size)
      maker.make(image)
      const files = Object.fromEntries(
        [1, 5000, 300_000, 4 * MIB + 3].map((size) => [`file ${size}`, randomFillSync(Buffer.alloc(size))] as const),
      )
      await withMount(image, (folder) => {
        for (const [file, content] of Object.entries(files)) fs.writeFileSync(path.join(folder, file), content)
      })

      await withLoop(size + 30 * MIB, async (device) => {
        const { status, stdout, stderr } = await cli(['write', '--force', image, device])
        expect({ status, stderr }).toEqual({
          status: 0,
          stderr: expect.stringContaining('writing\nflushing\nverifying\n'),
        })
        expect(stdout).toMatch(/^wrote {5}\d+ MiB in .*, flushed$/m)
        expect(stdout).toMatch(/zeroed by the device$/m)
        expect(stdout).toMatch(/^verified {2}\d+ MiB in .* by direct reads: every byte is right$/m)
        maker.check(device)
        await withMount(device, (folder) => {
          for (const [file, content] of Object.entries(files)) {
            expect(fs.readFileSync(path.join(folder, file)).equals(content), file).toBe(true)
          }
        })
        // Nothing beyond the image was touched: it was 0xee.
        expect(
          contentOf(device)
            .subarray(size)
            .every((byte) => byte === 0xee),
        ).toBe(true)
      })
    },
  )
})

describe('what comes in', () => {
  const content = holey(6 * MIB + 12_345)
  const pack = (tool: string): Buffer => execFileSync(tool, ['-c'], { input: content, maxBuffer: 100 * MIB })
  const packed: Record<string, () => Buffer> = {
    'as it is': () => content,
    gzip: () => Buffer.concat([gzipSync(content.subarray(0, 2 * MIB)), gzipSync(content.subarray(2 * MIB))]),
    xz: () => pack('xz'),
    zstd: () => pack('zstd'),
  }
  for (const [name, make] of Object.entries(packed)) {
    const missing = (name === 'xz' || name === 'zstd') && !has(name) ? `skipped: needs ${name}` : ''
    test.skipIf(missing !== '')(
      titled(`${name}, in a file and on standard input, is written unpacked`, missing),
      async () => {
        const bytes = make()
        const [one, two] = [inside('from-file'), inside('from-input')]
        const file = await cli(['write', imageFile('packed', bytes), one])
        expect({ status: file.status, stderr: file.stderr }).toMatchObject({ status: 0 })
        const input = await cli(['write', '-', two], { input: bytes })
        expect({ status: input.status, stderr: input.stderr }).toMatchObject({ status: 0 })
        for (const made of [one, two]) {
          expect(fs.readFileSync(made).equals(content)).toBe(true)
          fs.rmSync(made)
        }
      },
    )
  }

  test('a damaged image ends it with status 1, and the words say that it cannot be unpacked', async () => {
    const half = gzipSync(content).subarray(0, 3 * MIB)
    const { status, stdout, stderr } = await cli(['write', imageFile('half.gz', half), inside('from-half')])
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' })
    expect(stderr).toContain('the image cannot be unpacked: unexpected end of file')
    expect(stderr).toContain('it holds an incomplete image')
  })

  test('a qcow2 image is not written as it is by mistake', async () => {
    const image = imageFile('disk.qcow2', Buffer.concat([Buffer.from([0x51, 0x46, 0x49, 0xfb]), Buffer.alloc(100)]))
    const { status, stderr } = await cli(['write', image, inside('x')])
    expect({ status, stderr }).toEqual({ status: 3, stderr: expect.stringContaining('say --format qcow2') })
    expect(fs.existsSync(inside('x'))).toBe(false)
    expect((await cli(['write', '--format', 'raw', image, inside('x')])).status).toBe(0)
    expect(fs.readFileSync(inside('x')).equals(fs.readFileSync(image))).toBe(true)
  })

  test('an existing file becomes the image, its old end is gone', async () => {
    const target = imageFile('longer', Buffer.alloc(9 * MIB, 7))
    expect((await cli(['write', '--force', imageFile('image', content), target])).status).toBe(0)
    expect(fs.readFileSync(target).equals(content)).toBe(true)
  })

  test('a new file has holes where the image has zeros', async () => {
    const target = inside('sparse')
    const { status, stdout } = await cli(['write', '--json', imageFile('image', content), target])
    expect(status).toBe(0)
    const { writtenBytes, zeroedBytes, skippedBytes, image, verified } = JSON.parse(stdout)
    expect({ zeroedBytes, bytes: image.bytes, verified: verified.bytes }).toEqual({
      zeroedBytes: 0,
      bytes: content.length,
      verified: content.length,
    })
    expect(skippedBytes).toBeGreaterThan(2 * MIB)
    expect(writtenBytes + skippedBytes).toBe(content.length)
    expect(fs.statSync(target).blocks * 512).toBeLessThan(content.length - MIB)
  })
})

describe.skipIf(noLoop !== '')(titled('zeros on a device that holds something else', noLoop), () => {
  const content = holey(6 * MIB + 12_345)
  test.each([
    ['zero', true],
    ['write', true],
    ['skip', false],
  ])('with --zeroes %s', async (mode, replaced) => {
    await withLoop(8 * MIB, async (device) => {
      const image = imageFile('image', content)
      const { status, stdout } = await cli(['write', '--force', '--json', '--zeroes', mode, image, device])
      expect(status).toBe(0)
      const { writtenBytes, zeroedBytes, skippedBytes } = JSON.parse(stdout)
      expect(writtenBytes + zeroedBytes + skippedBytes).toBe(content.length)
      expect([zeroedBytes > 0, skippedBytes > 0]).toEqual([mode === 'zero', mode === 'skip'])
      const found = contentOf(device)
      expect(found.subarray(0, MIB).equals(content.subarray(0, MIB))).toBe(true)
      expect(found.subarray(MIB, 3 * MIB).every((byte) => byte === (replaced ? 0 : 0xee))).toBe(true)
      expect(found.subarray(5 * MIB, content.length).equals(content.subarray(5 * MIB))).toBe(true)
      expect(found.subarray(content.length).every((byte) => byte === 0xee)).toBe(true)
    })
  })

  test('--first-last leaves the same bytes', async () => {
    await withLoop(8 * MIB, async (device) => {
      const image = imageFile('image', content)
      expect((await cli(['write', '--force', '--first-last', image, device])).status).toBe(0)
      expect(contentOf(device).subarray(0, content.length).equals(content)).toBe(true)
    })
  })
})

describe.skipIf(noBadDisk !== '')(titled('a disk that is not sound', noBadDisk), () => {
  const content = randomFillSync(Buffer.alloc(4 * MIB))
  const bad = 3 * MIB + 512 * 7

  test('that stores a wrong byte is found by the verification, at that byte', async () => {
    const disk = await badDisk({ size: 4 * MIB, flips: [bad / sector, bad / sector + 100] })
    try {
      const { status, stdout, stderr } = await cli(['write', '--force', imageFile('image', content), disk.path])
      expect({ status, stdout }).toEqual({ status: 1, stdout: '' })
      const [expected, found] = [content[bad]!, content[bad]! ^ 0x10].map(
        (byte) => `0x${byte.toString(16).padStart(2, '0')}`,
      )
      expect(stderr).toContain(
        `verification failed: ${disk.path} is wrong at offset ${bad}: found ${found} where the image has ${expected}`,
      )
      expect(stderr).toContain("Don't trust it")
    } finally {
      await disk.cleanup()
    }
  })

  test('is found by an image from standard input too, which cannot be read again: 64 KiB are named', async () => {
    const disk = await badDisk({ size: 4 * MIB, flips: [bad / sector] })
    try {
      const { status, stderr } = await cli(['write', '--force', '-', disk.path], { input: content })
      expect(status).toBe(1)
      expect(stderr).toContain(`is wrong at offset ${3 * MIB}: within the 64 KiB from there`)
    } finally {
      await disk.cleanup()
    }
  })

  test('passes with --no-verify, so it is the verification that finds it', async () => {
    const disk = await badDisk({ size: 4 * MIB, flips: [bad / sector] })
    try {
      const { status, stdout } = await cli(['write', '--force', '--no-verify', imageFile('image', content), disk.path])
      expect({ status, stdout }).toEqual({ status: 0, stdout: expect.stringContaining('verified  no, as asked for') })
    } finally {
      await disk.cleanup()
    }
  })

  test('that refuses a write ends it with status 1 and the offset', async () => {
    const disk = await badDisk({ size: 4 * MIB, writes: [bad / sector] })
    try {
      const { status, stderr } = await cli(['write', '--force', imageFile('image', content), disk.path])
      expect({ status, stderr }).toEqual({ status: 1, stderr: expect.stringMatching(/EIO: .* at 3145728/) })
      expect(stderr).toContain('it holds an incomplete image')
    } finally {
      await disk.cleanup()
    }
  })
})

describe.skipIf(noLoop !== '')(titled('refused with status 3', noLoop), () => {
  let image: string
  beforeAll(() => {
    image = imageFile('small image', randomFillSync(Buffer.alloc(MIB)))
  })

  /** Runs it by force, and sees to it that nothing was written. */
  async function refusal(device: string, ...args: string[]): Promise<string> {
    // Not behind its first page: the kernel swaps to what is swap whenever it likes. An image would begin at the beginning.
    const before = contentOf(device).subarray(0, 4096)
    const { status, stdout, stderr } = await cli(['write', '--force', ...args, image, device])
    expect({ status, stdout, stderr }).toEqual({ status: 3, stdout: '', stderr: expect.stringContaining('refused: ') })
    expect(contentOf(device).subarray(0, 4096).equals(before)).toBe(true)
    return stderr
  }

  test('is a mounted device, by its mount point', async () => {
    await withLoop(32 * MIB, async (device) => {
      run('mkfs.ext4', '-q', device)
      await withMount(device, async (folder) => {
        expect(await refusal(device)).toContain(`${device} is in use: mounted on ${folder}`)
      })
    })
  })

  test('is swap', async () => {
    await withLoop(32 * MIB, async (device) => {
      run('mkswap', device)
      run('swapon', device)
      try {
        expect(await refusal(device)).toContain(`${device} is in use: used as swap`)
      } finally {
        run('swapoff', device)
      }
    })
  })

  test('is a disk whose partition is mounted, by the partition', async () => {
    await withLoop(64 * MIB, async (device) => {
      run('addpart', device, '1', '2048', String((32 * MIB) / 512))
      const name = path.basename(device)
      const [major, minor] = fs.readFileSync(`/sys/block/${name}/${name}p1/dev`, 'utf8').trim().split(':')
      // Where nobody makes device nodes, they are made here.
      const made = fs.existsSync(`${device}p1`) ? '' : inside('partition')
      if (made) run('mknod', made, 'b', major!, minor!)
      const partition = made || `${device}p1`
      try {
        run('mkfs.ext4', '-q', partition)
        await withMount(partition, async (folder) => {
          expect(await refusal(device)).toContain(`${device} is in use: partition ${name}p1 is mounted on ${folder}`)
        })
      } finally {
        if (made) fs.rmSync(made)
        run('delpart', device, '1')
      }
    })
  })

  test('is one that is read-only', async () => {
    const backing = imageFile('backing', Buffer.alloc(4 * MIB))
    const device = run('losetup', '--find', '--show', '--read-only', backing).trim()
    try {
      expect(await refusal(device)).toContain(`${device} is read-only`)
    } finally {
      run('losetup', '--detach', device)
    }
  })

  test('is one that is too small, with both sizes; also for a packed image that tells its size', async () => {
    const big = randomFillSync(Buffer.alloc(2 * MIB))
    await withLoop(MIB, async (device) => {
      for (const [name, bytes] of Object.entries({ raw: big, gzip: gzipSync(big) })) {
        const { status, stderr } = await cli(['write', '--force', imageFile(`big ${name}`, bytes), device])
        expect({ status, stderr }).toEqual({
          status: 3,
          stderr: expect.stringContaining(
            `${device} is too small: it has 1 MiB (${MIB} bytes) and the image needs 2 MiB`,
          ),
        })
      }
      for (const tool of ['xz', 'zstd'].filter(has)) {
        run(tool, '-k', '-f', inside('big raw'))
        const packed = `${inside('big raw')}.${tool === 'xz' ? 'xz' : 'zst'}`
        const { status, stderr } = await cli(['write', '--force', packed, device])
        expect({ tool, status, stderr }).toEqual({ tool, status: 3, stderr: expect.stringContaining('too small') })
      }
      expect(contentOf(device).every((byte) => byte === 0xee)).toBe(true)
    })
  })

  test('is the device that the image lies on, and a device that lies on the image', async () => {
    const backing = imageFile('ground', randomFillSync(Buffer.alloc(4 * MIB)))
    const device = run('losetup', '--find', '--show', backing).trim()
    try {
      const above = await cli(['write', '--force', backing, device])
      expect([above.status, above.stderr]).toEqual([
        3,
        expect.stringContaining(`${device} lies on the image ${backing}`),
      ])
      const itself = await cli(['write', '--force', device, device])
      expect([itself.status, itself.stderr]).toEqual([
        3,
        expect.stringContaining(`the image ${device} lies on ${device}`),
      ])
      const used = await cli(['write', '--force', image, backing])
      expect([used.status, used.stderr]).toEqual([3, expect.stringContaining(`is in use: attached to ${device}`)])
    } finally {
      run('losetup', '--detach', device)
    }
    const same = await cli(['write', '--force', image, image])
    expect([same.status, same.stderr]).toEqual([3, expect.stringContaining('it would overwrite itself')])
  })

  test('is everything that exists, off a terminal and without --force', async () => {
    await withLoop(2 * MIB, async (device) => {
      for (const [args, input] of [
        [[image], undefined],
        [['-'], fs.readFileSync(image)],
      ] as const) {
        const { status, stderr } = await cli(['write', ...args, device], input ? { input } : {})
        expect({ status, stderr }).toEqual({
          status: 3,
          stderr: expect.stringContaining(
            `everything on ${device} would be lost, and there is no terminal to ask at; --force`,
          ),
        })
      }
      expect(contentOf(device).every((byte) => byte === 0xee)).toBe(true)
    })
    const precious = imageFile('precious', Buffer.from('precious'))
    expect((await cli(['write', image, precious])).status).toBe(3)
    expect(fs.readFileSync(precious, 'utf8')).toBe('precious')
  })
})

test.each([
  [['write'], 'IMAGE and TARGET missing'],
  [['write', 'one'], 'TARGET missing'],
  [['write', 'one', 'two', 'three'], 'too much: three'],
  [['write', '--frobnicate', 'one', 'two'], 'frobnicate'],
  [['write', '--zeroes', 'perhaps', '/dev/null', 'two'], '--zeroes is zero, skip, write; not "perhaps"'],
  [['write', '/etc/hostname', '/dev/no-such-disk'], 'there is no device /dev/no-such-disk'],
  [['write', '/etc/hostname', '/dev/null'], '/dev/null is neither a block device nor a regular file'],
  [['write', '/dev/null', '/tmp/nothing'], '/dev/null is neither a file nor a block device'],
  [['write', '--progress=77', '/etc/hostname', '/tmp/nothing'], '--progress wants an open descriptor'],
  [['write', '--format', 'qcow2', '-', '/tmp/nothing'], 'cannot be read from standard input'],
])('usage: %j ends with status 2', async (args, message) => {
  const { status, stdout, stderr } = await cli(args)
  expect({ status, stdout, stderr }).toEqual({ status: 2, stdout: '', stderr: expect.stringContaining(message) })
  expect(stderr).not.toMatch(/^\s+at /m)
})

describe('an interruption', () => {
  const half = randomFillSync(Buffer.alloc(3 * MIB))

  /** Feeds half of an image, and goes on when the target has it. */
  async function stopped(device: string, signal: NodeJS.Signals, ...args: string[]) {
    const at = (offset: number): Buffer => {
      const descriptor = fs.openSync(device, 'r')
      try {
        const found = Buffer.alloc(512)
        fs.readSync(descriptor, found, 0, 512, offset)
        return found
      } finally {
        fs.closeSync(descriptor)
      }
    }
    return cli(['write', '--force', ...args, '-', device], {
      meanwhile: (child) => {
        child.stdin!.write(half)
        const timer = setInterval(() => {
          run('blockdev', '--flushbufs', device)
          // The last chunk that was fed: those before it may still be in flight.
          if (!at(2 * MIB + 512).equals(half.subarray(2 * MIB + 512, 2 * MIB + 1024))) return
          clearInterval(timer)
          setTimeout(() => child.kill(signal), 200)
        }, 50)
      },
    })
  }

  test.skipIf(noLoop !== '')(
    titled('drains, flushes, says what was done, and dies of the signal', noLoop),
    async () => {
      await withLoop(8 * MIB, async (device) => {
        const { status, signal, stdout, stderr } = await stopped(device, 'SIGINT')
        expect({ status, signal, stdout }).toEqual({ status: null, signal: 'SIGINT', stdout: '' })
        expect(stderr).toContain('multiwrite write: interrupted')
        expect(stderr).toContain(`${device}: 3 MiB written and flushed: it holds an incomplete image. Write again`)
        expect(
          contentOf(device)
            .subarray(0, 3 * MIB)
            .equals(half),
        ).toBe(true)
      })
    },
  )

  test.skipIf(noLoop !== '')(
    titled('with --first-last leaves what looks like an empty disk, also by SIGKILL', noLoop),
    async () => {
      for (const how of ['SIGTERM', 'SIGKILL'] as const) {
        await withLoop(8 * MIB, async (device) => {
          const { signal, stderr } = await stopped(device, how, '--first-last')
          expect(signal).toBe(how)
          if (how === 'SIGTERM') expect(stderr).toContain('its first 64 KiB are zeros, so it looks like an empty disk')
          const found = contentOf(device)
          expect(found.subarray(0, FIRST).every((byte) => byte === 0)).toBe(true)
          expect(found.subarray(FIRST, 2 * MIB).equals(half.subarray(FIRST, 2 * MIB))).toBe(true)
        })
      }
    },
  )
})

describe.skipIf(noLoop !== '')(titled('the partitions of what was on a disk before', noLoop), () => {
  /** A disk with a partition that the kernel knows of, and no table that says so. */
  async function withPartition(work: (device: string, partition: string) => Promise<void>): Promise<void> {
    const backing = imageFile('partitioned', Buffer.alloc(8 * MIB))
    const device = run('losetup', '--find', '--show', '--partscan', backing).trim()
    try {
      run('addpart', device, '1', '2048', '4096')
      await work(device, `/sys/block/${path.basename(device)}/${path.basename(device)}p1`)
    } finally {
      spawnSync('delpart', [device, '1'])
      run('losetup', '--detach', device)
      fs.rmSync(backing)
    }
  }
  const image = (): string => imageFile('no table', Buffer.alloc(MIB, 1))

  test('are gone afterwards: the kernel has read the table of the image', async () => {
    await withPartition(async (device, partition) => {
      expect(fs.existsSync(partition)).toBe(true)
      const { status, stdout } = await cli(['write', '--force', image(), device])
      expect({ status, stdout }).toEqual({
        status: 0,
        stdout: expect.stringMatching(/^table {5}the kernel has read the partition table$/m),
      })
      expect(fs.existsSync(partition)).toBe(false)
    })
  })

  test('stay where one of them is open, which is said and is no failure', async () => {
    await withPartition(async (device, partition) => {
      const [major, minor] = fs.readFileSync(path.join(partition, 'dev'), 'utf8').trim().split(':')
      const node = inside('open partition')
      run('mknod', node, 'b', major!, minor!)
      const descriptor = fs.openSync(node, 'r')
      try {
        const { status, stdout } = await cli(['write', '--force', image(), device])
        expect(status).toBe(0)
        expect(stdout.replace(/\s+/g, ' ')).toContain(
          `still has the old partitions: one of the old ones is in use. Close what uses them and run "blockdev --rereadpt ${device}"`,
        )
        expect(fs.existsSync(partition)).toBe(true)
      } finally {
        fs.closeSync(descriptor)
        fs.rmSync(node)
      }
    })
  })

  test('are not spoken of for a device that has none', async () => {
    await withLoop(2 * MIB, async (device) => {
      const { stdout } = await cli(['write', '--force', image(), device])
      expect(stdout).not.toContain('table')
      expect(JSON.parse((await cli(['write', '--force', '--json', image(), device])).stdout).partitionTable).toBe(null)
    })
  })
})

test('SIGUSR1 has it say how far it has come, and it goes on', async () => {
  const image = randomFillSync(Buffer.alloc(4 * MIB))
  let seen = ''
  const { status, stderr } = await cli(['write', '-', inside('asked')], {
    meanwhile: (child) => {
      child.stdin!.write(image.subarray(0, 3 * MIB))
      const timer = setInterval(() => {
        // It has nothing to say before it writes, and the signal would start Node's inspector.
        if (seen.includes('writing\n')) child.kill('SIGUSR1')
      }, 50)
      child.stderr!.on('data', (text: string) => {
        seen += text
        if (!/^writing +3 MiB/m.test(seen)) return
        clearInterval(timer)
        child.stdin!.end(image.subarray(3 * MIB))
      })
    },
  })
  expect({ status, stderr }).toEqual({ status: 0, stderr: expect.not.stringContaining('Debugger') })
  expect(fs.readFileSync(inside('asked')).equals(image)).toBe(true)
})

test('--progress tells other programs of each phase, a line of JSON at a time', async () => {
  let text = ''
  const image = imageFile('image', holey(6 * MIB))
  const { status } = await cli(['write', '--progress=3', image, inside('told')], {
    extra: (piece) => {
      text += piece
    },
  })
  expect(status).toBe(0)
  const states = text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect([...new Set(states.map(({ phase }) => phase))]).toEqual(['writing', 'flushing', 'verifying'])
  expect(states[0]).toEqual({
    phase: 'writing',
    unit: 'bytes',
    done: 0,
    total: 6 * MIB,
    fraction: 0,
    perSecond: 0,
    remainingSeconds: null,
  })
  expect(states.at(-1)).toMatchObject({ phase: 'verifying', done: 6 * MIB, total: 6 * MIB, fraction: 1 })
})

describe.skipIf(noTerminal !== '' || noLoop !== '')(titled('at a terminal of 80 columns', noTerminal || noLoop), () => {
  let image: string
  beforeAll(() => {
    image = imageFile('disk image', randomFillSync(Buffer.alloc(6 * MIB)))
  })

  async function session(
    args: readonly string[],
    work: (terminal: Terminal) => Promise<void>,
    env = {},
  ): Promise<void> {
    const own = temporaryDirectory()
    const terminal = new Terminal(own.path, args, env)
    try {
      await work(terminal)
    } finally {
      terminal.end()
      own.cleanup()
    }
  }

  test('it shows what would be lost, asks, and writes after "yes"', async () => {
    await withLoop(8 * MIB, async (device) => {
      await session(['write', image, device], async (terminal) => {
        const asked = await terminal.shows('to go on:')
        expect(asked.replaceAll('\n', '')).toContain(`${device}, a disk of 8 MiB`)
        expect(asked).toContain('model unknown, serial unknown')
        expect(asked.replaceAll('\n', '')).toContain(`Everything on ${device} will be lost. Type "yes" to go on:`)
        // Red, for what is about to be lost.
        expect(terminal.screen(true)).toContain('\x1b[31m')
        terminal.type('yes')
        const done = await terminal.shows('[status 0]')
        expect(done).toMatch(/^wrote {5}6 MiB in 0:0\d \(.*\/s\), flushed$/m)
        expect(done).toMatch(/^verified {2}6 MiB in .*every byte is right$/m)
        // The line of progress is gone.
        expect(done).not.toMatch(/left|writing|flushing|verifying/)
      })
      expect(
        contentOf(device)
          .subarray(0, 6 * MIB)
          .equals(fs.readFileSync(image)),
      ).toBe(true)
    })
  })

  test.each([
    ['any other word', (terminal: Terminal) => terminal.type('y')],
    ['Ctrl-C', (terminal: Terminal) => terminal.press('C-c')],
    ['Ctrl-D', (terminal: Terminal) => terminal.press('C-d')],
  ])('after %s nothing is written', async (_, answer) => {
    await withLoop(8 * MIB, async (device) => {
      await session(['write', image, device], async (terminal) => {
        await terminal.shows('to go on:')
        answer(terminal)
        expect(await terminal.shows('[status 3]')).toContain('not confirmed; nothing was written')
      })
      expect(contentOf(device).every((byte) => byte === 0xee)).toBe(true)
    })
  })

  test('its line of progress fits, says phase, share, speed and time, and is rewritten in place', async () => {
    const [big, slow] = [inside('big'), inside('slow')]
    fs.writeFileSync(big, randomFillSync(Buffer.alloc(64 * MIB)))
    // An image that comes slowly: the line must be seen.
    const feeder = `for i in $(seq 0 15); do dd if=${big} bs=4M skip=$i count=1 status=none; sleep 0.1; done`
    const own = temporaryDirectory()
    const terminal = new Terminal(own.path, ['write', '--force', '-', slow], {}, `{ ${feeder}; }`)
    try {
      const screen = await terminal.shows(/writing +\d+ MiB +[\d.]+ MiB\/s/)
      expect(screen.split('\n').filter((line) => line.startsWith('writing'))).toHaveLength(1)
      for (const line of screen.split('\n')) expect(line.length).toBeLessThan(80)
      expect(await terminal.shows('[status 0]')).toContain('every byte is right')
    } finally {
      terminal.end()
      own.cleanup()
    }
  })

  test('NO_COLOR leaves the colours out', async () => {
    await withLoop(8 * MIB, async (device) => {
      await session(
        ['write', image, device],
        async (terminal) => {
          await terminal.shows('to go on:')
          expect(terminal.screen(true)).not.toContain('\x1b[')
        },
        { NO_COLOR: '1' },
      )
    })
  })
})
