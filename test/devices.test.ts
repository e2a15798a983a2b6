// Devices as they are found on machines: mounted, used as swap, partitioned, held by somebody, read-only, resized, and of every
// kind of file system. What may not be written to is refused, and the refusal says who is in the way.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { type BlockDevice, BlockError, create, holdersOf, open } from 'multiwrite'
import { describe, expect, test } from 'vitest'
import { difference, Model, pattern } from './support/model.ts'
import {
  attachLoop,
  background,
  engineNames,
  loop512,
  loop4096,
  loopOnFile,
  noLoop,
  patience,
  temporaryDirectory,
  tmpfsFile,
  withTarget,
} from './support/targets.ts'

const MIB = 1 << 20

function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: 'pipe' })
}

/** Why some of the tools or loop devices cannot be had; empty where they can. */
function lacking(...tools: string[]): string {
  if (noLoop !== '') return noLoop
  const missing = tools.filter((tool) => spawnSync('sh', ['-c', `command -v ${tool}`]).status !== 0)
  return missing.length === 0 ? '' : `skipped: needs ${missing.join(', ')}`
}

function titled(title: string, reason: string): string {
  return reason === '' ? title : `${title} (${reason})`
}

async function withLoop(
  size: number,
  work: (device: string) => Promise<void>,
  sectorSize: 512 | 4096 = 512,
): Promise<void> {
  const { path: device, cleanup } = attachLoop(size, { sectorSize, backing: os.tmpdir(), directIo: false })
  try {
    await work(device)
  } finally {
    cleanup()
  }
}

async function withMount(
  device: string,
  work: (directory: string) => Promise<void>,
  ...options: string[]
): Promise<void> {
  const { path: directory, cleanup } = temporaryDirectory()
  // A blank, to see that names are told as they are.
  const mountPoint = path.join(directory, 'mount point')
  fs.mkdirSync(mountPoint)
  try {
    run('mount', ...options, device, mountPoint)
    try {
      await work(mountPoint)
    } finally {
      run('umount', mountPoint)
    }
  } finally {
    cleanup()
  }
}

/** Closes the disk also if the work fails: what lies below could not be cleaned up else. */
async function using(opening: Promise<BlockDevice>, work: (disk: BlockDevice) => Promise<void>): Promise<void> {
  const disk = await opening
  try {
    await work(disk)
  } finally {
    await disk.close()
  }
}

async function refusal(promise: Promise<BlockDevice>): Promise<Error> {
  const opened = await promise.then(
    (disk) => disk,
    (error: unknown) => error,
  )
  expect(opened).toBeInstanceOf(Error)
  return opened as Error
}

/** Requests of any offset and length, on a target of any kind, read back in two ways. */
async function exercise(disk: BlockDevice, size: number, model: Model, rounds: number): Promise<void> {
  let state = 12_345
  const random = (below: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
  for (let round = 0; round < rounds; round++) {
    const requests = Array.from({ length: 1 + random(20) }, (_, at) => {
      const length = 1 + random(random(4) === 0 ? 100_000 : 3000)
      const request = { offset: random(size - length), data: pattern(round * 31 + at, length), fua: random(8) === 0 }
      model.write(request.offset, request.data)
      return request
    })
    await disk.multiwrite(requests)
    const offset = random(size - 70_000)
    const into = Buffer.alloc(1 + random(70_000))
    await disk.read(offset, into)
    expect(difference(into, model.read(offset, into.length))).toBeNull()
  }
  await disk.flush()
  const content = Buffer.alloc(size)
  await disk.read(0, content)
  expect(difference(content, model.bytes)).toBeNull()
}

test('who holds a file is nobody; a path that is not there, or is none, is an error that names it', async () => {
  expect(await holdersOf(new URL(import.meta.url))).toEqual([])
  const missing = await holdersOf('/dev/no such disk').catch((error: unknown) => error)
  expect(missing).toBeInstanceOf(BlockError)
  expect(missing).toMatchObject({ code: 'ENOENT', syscall: 'stat', path: '/dev/no such disk' })
  await expect(holdersOf(7 as never)).rejects.toMatchObject({ code: 'ERR_INVALID_ARG_TYPE' })
})

describe('a device in use', () => {
  const noExt4 = lacking('mkfs.ext4')
  test.skipIf(noExt4 !== '').each(['mkfs.ext4', 'mkfs.xfs', 'mkfs.btrfs'])(
    titled('that is mounted (%s) is refused, and the message names the mount point', noExt4),
    async (mkfs) => {
      if (lacking(mkfs) !== '') return
      await withLoop(320 * MIB, async (device) => {
        run(mkfs, ...(mkfs === 'mkfs.ext4' ? ['-q', '-F'] : ['-q', '-f']), device)
        await withMount(device, async (mountPoint) => {
          const error = await refusal(open(device))
          expect(error).toBeInstanceOf(BlockError)
          expect(error).toMatchObject({ code: 'EBUSY', syscall: 'open', path: device })
          expect(error.message).toContain(`mounted on ${mountPoint}`)
          expect(await holdersOf(device)).toEqual([`mounted on ${mountPoint}`])
          const made = await refusal(create(device, { format: 'raw', size: MIB, overwrite: true }))
          expect(made).toMatchObject({ code: 'EBUSY' })
          // Who asks for it gets it; who only reads is no danger.
          const reader = await open(device, { readOnly: true })
          await reader.read(0, Buffer.alloc(4096))
          await reader.close()
          const careless = await open(device, { exclusive: false })
          await careless.close()
          expect(await refusal(open(device, { readOnly: true, exclusive: true }))).toMatchObject({ code: 'EBUSY' })
        })
        await (await open(device)).close()
      })
    },
  )

  const noSwap = lacking('mkswap', 'swapon', 'swapoff')
  test.skipIf(noSwap !== '')(titled('as swap is refused, and the message says so', noSwap), async () => {
    await withLoop(16 * MIB, async (device) => {
      run('mkswap', device)
      run('swapon', device)
      try {
        const error = await refusal(open(device))
        expect(error).toMatchObject({ code: 'EBUSY' })
        expect(error.message).toContain('used as swap')
      } finally {
        run('swapoff', device)
      }
      await (await open(device)).close()
    })
  })

  const noBtrfs = lacking('mkfs.btrfs')
  test.skipIf(noBtrfs !== '')(
    titled('as the second half of a mounted file system is refused, and the message names the mount point', noBtrfs),
    async () => {
      await withLoop(128 * MIB, async (first) => {
        await withLoop(128 * MIB, async (second) => {
          run('mkfs.btrfs', '-q', '-f', first, second)
          await withMount(first, async (mountPoint) => {
            for (const device of [first, second]) {
              const error = await refusal(open(device))
              expect(error).toMatchObject({ name: 'BlockError', code: 'EBUSY', path: device })
              // The mount's source is one of the two only.
              expect(error.message).toContain(`in use: mounted on ${mountPoint},`)
            }
          })
          await (await open(second)).close()
        })
      })
    },
  )

  test.skipIf(noLoop !== '')(
    titled('by somebody who cannot be seen is tried again until it is free', noLoop),
    async () => {
      await withLoop(MIB, async (device) => {
        const first = await open(device)
        setTimeout(() => void first.close(), 200)
        const second = await open(device)
        await second.write(0, pattern(1, 4096))
        await second.close()
      })
    },
  )

  test.skipIf(noLoop !== '')(
    titled('by somebody who does not leave is refused in the end, and told where it is open', noLoop),
    async () => {
      await withLoop(MIB, async (device) => {
        const first = await open(device)
        const error = await refusal(open(device))
        expect(error).toBeInstanceOf(BlockError)
        expect(error).toMatchObject({ code: 'EBUSY', syscall: 'open', path: device })
        expect(error.message).toContain(`in use: somebody holds the device; it is open in process ${process.pid} (`)
        const beside = await open(device, { exclusive: false })
        await beside.close()
        await first.close()
        await (await open(device)).close()
      })
    },
  )

  test.skipIf(noLoop !== '')(
    titled('is held by a writer alone, by default: a reader asks for nothing', noLoop),
    async () => {
      await withLoop(MIB, async (device) => {
        const reader = await open(device, { readOnly: true })
        const writer = await open(device)
        await writer.write(0, pattern(1, 4096), { fua: true })
        const into = Buffer.alloc(4096)
        await reader.read(0, into)
        expect(difference(into, pattern(1, 4096))).toBeNull()
        await writer.close()
        await reader.close()
      })
    },
  )
})

describe('partitions', () => {
  const reason = lacking('sfdisk', 'addpart', 'delpart')
  const start = 2048 * 512
  const length = 20_480 * 512

  /** One partition of ten MiB on a disk of 32, made known to the kernel whether or not that reads partition tables. */
  async function withPartition(work: (disk: string, partition: string) => Promise<void>): Promise<void> {
    await withLoop(32 * MIB, async (device) => {
      execFileSync('sfdisk', ['--quiet', device], { input: 'label: gpt\nstart=2048, size=20480\n', stdio: 'pipe' })
      const partition = `${device}p1`
      const sysfs = `/sys/class/block/${path.basename(partition)}`
      if (!fs.existsSync(sysfs)) run('addpart', device, '1', '2048', '20480')
      try {
        for (let attempt = 0; !fs.existsSync(partition) && attempt < 20; attempt++) {
          await new Promise((resolve) => setTimeout(resolve, 50))
        }
        let own = false
        if (!fs.existsSync(partition)) {
          // Nobody makes the nodes here.
          const [major, minor] = fs.readFileSync(`${sysfs}/dev`, 'utf8').trim().split(':') as [string, string]
          run('mknod', partition, 'b', major, minor)
          own = true
        }
        try {
          await work(device, partition)
        } finally {
          if (own) fs.rmSync(partition)
        }
      } finally {
        run('delpart', device, '1')
      }
    })
  }

  test.skipIf(reason !== '')(titled('have the size of their own, and the limits of their disk', reason), async () => {
    await withPartition(async (device, partition) => {
      const whole = await open(device, { exclusive: false })
      const part = await open(partition)
      expect(part.size).toBe(length)
      expect(part.limits).toEqual(whole.limits)
      expect(part.limits.maxSegments).toBeGreaterThan(1)
      await part.close()
      await whole.close()
    })
  })

  test.skipIf(reason !== '').each(engineNames)(
    titled('are written to at their place of the disk, and nowhere else, by %s', reason),
    async (engine) => {
      await withPartition(async (device, partition) => {
        const wide = { direct: true, exclusive: false } as const
        const whole = await open(device, wide)
        const before = Buffer.alloc(whole.size)
        await whole.read(0, before)
        const model = new Model(length)
        before.copy(model.bytes, 0, start, start + length)
        const part = await open(partition, { engine })
        await exercise(part, length, model, 10)
        await expect(part.write(length, pattern(1, 512))).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' })
        await part.writeZeroes(length - 5000, 5000)
        model.bytes.fill(0, length - 5000)
        await part.close()
        const after = Buffer.alloc(whole.size)
        await whole.read(0, after)
        model.bytes.copy(before, start)
        expect(difference(after, before)).toBeNull()
        await whole.close()
      })
    },
  )

  const noMount = reason || lacking('mkfs.ext4')
  test.skipIf(noMount !== '')(
    titled('that are mounted make the whole disk busy, and the message names the partition', noMount),
    async () => {
      await withPartition(async (device, partition) => {
        run('mkfs.ext4', '-q', '-F', partition)
        await withMount(partition, async (mountPoint) => {
          const whole = await refusal(open(device))
          expect(whole).toMatchObject({ code: 'EBUSY', path: device })
          expect(whole.message).toContain(`partition ${path.basename(partition)} is mounted on ${mountPoint}`)
          const part = await refusal(open(partition))
          expect(part).toMatchObject({ code: 'EBUSY', path: partition })
          expect(part.message).toContain(`mounted on ${mountPoint}`)
          expect(part.message).not.toContain('partition ')
        })
        await (await open(device)).close()
      })
    },
  )

  test.skipIf(noMount !== '')(
    titled('are busy where the whole disk is mounted, and the message names the disk', noMount),
    async () => {
      await withPartition(async (device, partition) => {
        run('mkfs.ext4', '-q', '-F', device)
        await withMount(device, async (mountPoint) => {
          const error = await refusal(open(partition))
          expect(error).toMatchObject({ code: 'EBUSY', path: partition })
          expect(error.message).toContain(`its disk ${path.basename(device)} is mounted on ${mountPoint}`)
        })
        await (await open(partition)).close()
      })
    },
  )

  const noSwap = reason || lacking('mkswap', 'swapon', 'swapoff')
  test.skipIf(noSwap !== '')(
    titled('that are used as swap make the whole disk busy, and are named', noSwap),
    async () => {
      await withPartition(async (device, partition) => {
        run('mkswap', partition)
        run('swapon', partition)
        try {
          const whole = await refusal(open(device))
          expect(whole).toMatchObject({ code: 'EBUSY' })
          expect(whole.message).toContain(`partition ${path.basename(partition)} is used as swap`)
        } finally {
          run('swapoff', partition)
        }
      })
    },
  )
})

describe('a read-only device', () => {
  test.skipIf(noLoop !== '')(titled('opens for reading, and for nothing else', noLoop), async () => {
    const { path: directory, cleanup } = temporaryDirectory()
    const image = path.join(directory, 'image')
    fs.writeFileSync(image, Buffer.alloc(MIB, background))
    const device = run('losetup', '--find', '--show', '--read-only', image).trim()
    try {
      const disk = await open(device, { readOnly: true })
      const into = Buffer.alloc(5000)
      await disk.read(100, into)
      expect(into.every((byte) => byte === background)).toBe(true)
      await expect(disk.write(0, pattern(1, 4096))).rejects.toMatchObject({ name: 'BlockError', code: 'EROFS' })
      await disk.flush()
      await disk.close()
      // Not by its first write: that would be a surprise, and EPERM.
      const error = await refusal(open(device))
      expect(error).toBeInstanceOf(BlockError)
      expect(error).toMatchObject({ code: 'EROFS', syscall: 'open', path: device })
      expect(error.message).toContain('readOnly: true')
      const made = await refusal(create(device, { format: 'raw', size: MIB, overwrite: true }))
      expect(made).toMatchObject({ code: 'EROFS' })
      expect(fs.readFileSync(image).every((byte) => byte === background)).toBe(true)
    } finally {
      run('losetup', '--detach', device)
      cleanup()
    }
  })
})

describe('an image on a device', () => {
  test.skipIf(noLoop !== '')(titled('needs a device that holds it', noLoop), async () => {
    await withLoop(MIB, async (device) => {
      const raw = { format: 'raw', overwrite: true } as const
      const error = await refusal(create(device, { ...raw, size: MIB + 1 }))
      expect(error).toMatchObject({ name: 'RangeError', code: 'ERR_OUT_OF_RANGE' })
      expect(error.message).toContain(device)
      const disk = await create(device, { ...raw, size: MIB })
      expect(disk.size).toBe(MIB)
      await disk.close()
    })
  })
})

describe('every kind of block device and file system', () => {
  const rounds = 15 * Math.min(patience, 5)

  describe.each([
    [loop512, 512],
    [loop4096, 4096],
    [loopOnFile, 512],
  ] as const)('$name', (target, sector) => {
    test.skipIf(!target.available).each([true, false])(
      titled('takes requests of any offset and length, direct: %s', target.reason),
      async (direct) => {
        for (const engine of engineNames) {
          if (engine === 'aio' && !direct) continue
          await withTarget(target, 2 * MIB, async (made) => {
            const model = new Model(2 * MIB)
            await using(open(made.path, { direct, engine }), async (disk) => {
              expect(disk.limits).toMatchObject({ logicalBlockSize: sector, alignment: direct ? sector : 1 })
              await exercise(disk, 2 * MIB, model, rounds)
            })
            expect(difference(made.readBack(), model.bytes)).toBeNull()
          })
        }
      },
    )
  })

  const kinds = [
    ['ext4', 64, ['-q', '-F']],
    ['ext4 of 1 KiB blocks', 64, ['-q', '-F', '-b', '1024']],
    ['xfs', 320, ['-q', '-f']],
    ['btrfs', 256, ['-q', '-f']],
  ] as const
  for (const [name, mebibytes, options] of kinds) {
    const kind = name.split(' ')[0]!
    const reason = lacking(`mkfs.${kind}`)
    test.skipIf(reason !== '').each([true, false])(
      titled(`${name}: takes requests of any offset and length, direct: %s`, reason),
      async (direct) => {
        await withLoop(mebibytes * MIB, async (device) => {
          run(`mkfs.${kind}`, ...options, device)
          await withMount(device, async (mountPoint) => {
            for (const engine of engineNames) {
              if (engine === 'aio' && !direct) continue
              // An end inside a block.
              const size = 2 * MIB + 777
              const file = path.join(mountPoint, engine)
              const model = zeros(size)
              await using(create(file, { format: 'raw', size, direct, engine }), async (disk) => {
                expect(disk.direct).toBe(direct)
                await exercise(disk, size, model, rounds)
                await disk.discard(100_000, 300_000)
                await forget(disk, 100_000, 300_000, model)
                await disk.writeZeroes(1_000_001, 200_000, { unmap: true })
                model.bytes.fill(0, 1_000_001, 1_200_001)
                await disk.truncate(size - 100_000)
              })
              expect(difference(fs.readFileSync(file), model.bytes.subarray(0, size - 100_000))).toBeNull()
            }
          })
        })
      },
    )
  }

  test.skipIf(!tmpfsFile.available).each([true, false])(
    titled('tmpfs: takes requests of any offset and length, direct: %s', tmpfsFile.reason),
    async (direct) => {
      await withTarget(tmpfsFile, 2 * MIB, async (made) => {
        const disk = await open(made.path, { direct }).catch((error: BlockError) => error)
        if (disk instanceof BlockError) {
          // Kernels before 6.6.
          expect(disk).toMatchObject({ code: 'EINVAL' })
          return
        }
        const model = new Model(2 * MIB)
        await exercise(disk, 2 * MIB, model, rounds)
        await disk.close()
        expect(difference(made.readBack(), model.bytes)).toBeNull()
      })
    },
  )

  const zram = '/sys/block/zram0'
  const noZram = ((): string => {
    if (process.getuid?.() !== 0) return 'skipped: needs root'
    if (!fs.existsSync(zram) || !fs.existsSync('/dev/zram0')) return 'skipped: needs zram'
    return fs.readFileSync(`${zram}/disksize`, 'utf8').trim() === '0' ? '' : 'skipped: zram0 is in use'
  })()
  test.skipIf(noZram !== '')(titled('zram: has blocks of 4096, and takes requests of any offset', noZram), async () => {
    fs.writeFileSync(`${zram}/disksize`, String(8 * MIB))
    try {
      for (const engine of engineNames) {
        await using(open('/dev/zram0', { engine }), async (disk) => {
          expect(disk.size).toBe(8 * MIB)
          expect(disk.limits).toMatchObject({ logicalBlockSize: 4096, alignment: 4096 })
          await disk.writeZeroes(0, 8 * MIB)
          const model = zeros(8 * MIB)
          // It takes memory from the start of its first page on, wherever in the page it was told to start.
          for (const [place, skew] of [512, 1536, 4095].entries()) {
            const data = disk.alloc(skew + MIB).subarray(skew)
            data.set(pattern(skew, MIB))
            await disk.write(place * MIB, data)
            model.write(place * MIB, data)
            const into = disk.alloc(skew + MIB).subarray(skew)
            await disk.read(place * MIB, into)
            expect(difference(into, data)).toBeNull()
          }
          const content = Buffer.alloc(8 * MIB)
          await disk.read(0, content)
          expect(difference(content, model.bytes)).toBeNull()
          await exercise(disk, 8 * MIB, model, rounds)
          await disk.discard(4096, MIB)
        })
      }
    } finally {
      fs.writeFileSync(`${zram}/reset`, '1')
    }
  })
})

/** A model of what reads as zeros at first. */
function zeros(size: number): Model {
  const model = new Model(size)
  model.bytes.fill(0)
  return model
}

/** Checks that a discarded range is zeros or as it was, and tells the model which. */
async function forget(disk: BlockDevice, offset: number, length: number, model: Model): Promise<void> {
  const content = Buffer.alloc(model.bytes.length)
  await disk.read(0, content)
  for (let at = offset; at < offset + length; at++) if (content[at] === 0) model.bytes[at] = 0
  expect(difference(content, model.bytes)).toBeNull()
}
