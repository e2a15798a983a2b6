// Every message says what to do next. Each kind of error that can be had without a broken machine is provoked here, and its message
// must name what is meant (the argument, the option, the path) and end, or nearly, with the advice that stands beside it.

import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { gzipSync } from 'node:zlib'
import { type BlockDevice, BlockError, create, type FormatDriver, MultiwriteError, open } from 'multiwrite'
import { plan } from 'multiwrite/planner'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { cli } from './support/cli.ts'
import { temporaryDirectory } from './support/targets.ts'

let directory: { path: string; cleanup(): void }
let file: string
const inside = (name: string): string => path.join(directory.path, name)

beforeAll(() => {
  directory = temporaryDirectory()
  file = inside('image')
  fs.writeFileSync(file, Buffer.alloc(1 << 20))
})
afterAll(() => directory?.cleanup())

/** What a failing call says. */
async function said(call: () => unknown): Promise<string> {
  try {
    await call()
  } catch (error) {
    return (error as Error).message
  }
  throw new Error('it did not fail')
}

async function withDisk(options: object, use: (disk: BlockDevice) => unknown): Promise<void> {
  const disk = await open(file, options)
  try {
    await use(disk)
  } finally {
    await disk.close()
  }
}

const onDisk =
  (use: (disk: BlockDevice) => unknown, options = {}) =>
  () =>
    withDisk(options, use)

async function withQcow2(use: (disk: BlockDevice) => unknown): Promise<void> {
  const disk = await create(inside('image.qcow2'), { format: 'qcow2', size: 1 << 20, overwrite: true })
  try {
    await use(disk)
  } finally {
    await disk.close()
  }
}

/** A qcow2 image with one field of its header changed. */
async function spoilt(change: (header: Buffer) => void): Promise<string> {
  await withQcow2(() => undefined)
  const name = inside('spoilt.qcow2')
  const bytes = fs.readFileSync(inside('image.qcow2'))
  change(bytes)
  fs.writeFileSync(name, bytes)
  return name
}

function gone(): Uint8Array {
  const bytes = new Uint8Array(512)
  structuredClone(bytes, { transfer: [bytes.buffer] })
  return bytes
}

const nothing: FormatDriver = {
  name: 'nothing',
  open: async (host) => ({
    size: host.size,
    read: async () => undefined,
    write: async () => undefined,
    flush: async () => undefined,
    close: async () => undefined,
  }),
}

const unsafe = (value: unknown): never => value as never

/** What is done, what the message names, and its advice. */
const library: Record<string, [call: () => unknown, names: string, advice: string]> = {
  'a path of the wrong type': [() => open(unsafe(7)), '"path"', 'must be of type string or an instance of URL'],
  'an empty path': [() => open(''), "'path'", 'must be a path without null bytes'],
  'a URL of another kind': [() => open(new URL('https://example.org/')), "'path'", 'must be a file: URL'],
  'an option that is unknown': [() => open(file, unsafe({ readonly: true })), 'options.readonly', 'known are format'],
  'an option with an unknown value': [
    () => open(file, unsafe({ engine: 'fast' })),
    'options.engine',
    'must be one of:',
  ],
  'an option of the wrong type': [
    () => open(file, unsafe({ readOnly: 1 })),
    'options.readOnly',
    'must be of type boolean',
  ],
  'an option out of range': [
    () => open(file, { queueDepth: 0 }),
    'options.queueDepth',
    'It must be a whole number >= 1',
  ],
  'aio without direct I/O': [
    () => open(file, { engine: 'aio', direct: false }),
    'options.engine',
    'needs direct: true',
  ],
  'a backing file of a raw image': [
    () => open(file, { backing: unsafe({ path: file, format: 'raw' }) }),
    'options.backing',
    'must be null: a raw image has no backing file',
  ],
  'an option of another format': [
    () => create(inside('new'), { size: 512, clusterSize: 65536 }),
    'options.clusterSize',
    'leave it out, or pass another format',
  ],
  'a new image for reading only': [
    () => create(inside('new'), { size: 512, readOnly: true }),
    'options.readOnly',
    'must be false: a new image is written to',
  ],
  'a size that is none': [() => create(inside('new'), { size: -1 }), 'options.size', 'It must be a whole number >= 0'],
  'a file that exists': [() => create(file, { size: 512 }), '/image', 'pass overwrite: true to lose what is in it'],
  'a file that is not there': [() => open(inside('nowhere')), '/nowhere', 'check the path'],
  'a folder': [() => open(os.tmpdir()), os.tmpdir(), 'name a block device or a file'],
  'a terminal': [() => open('/dev/null'), '/dev/null', 'name one of these'],
  'a folder that is not there': [() => create(inside('no/file'), { size: 512 }), '/no/file', 'check the path'],
  'a request that is none': [onDisk((disk) => disk.multiwrite([unsafe(7)])), 'requests[0]', 'must be of type object'],
  'an offset that is none': [
    onDisk((disk) => disk.write(0.5, Buffer.alloc(1))),
    '"offset"',
    'It must be a whole number >= 0',
  ],
  'an offset past the end': [
    onDisk((disk) => disk.multiwrite([{ offset: 1 << 20, data: Buffer.alloc(1) }])),
    'requests[0].offset',
    'It must be <= 1048576 - 1 (device size - length of the request)',
  ],
  'data of the wrong type': [
    onDisk((disk) => disk.write(0, unsafe('text'))),
    '"data"',
    'must be an instance of Buffer or Uint8Array or an array of these',
  ],
  'memory that is gone': [onDisk((disk) => disk.write(0, gone())), "'data'", 'pass memory that is there'],
  'a callback that is none': [
    onDisk((disk) => disk.multiwrite([{ offset: 0, data: Buffer.alloc(1), callback: unsafe(1) }])),
    'requests[0].callback',
    'must be of type function',
  ],
  'a signal that is none': [
    onDisk((disk) => disk.multiwrite([], { signal: unsafe({}) })),
    'options.signal',
    'must be an instance of AbortSignal',
  ],
  'a call that is aborted': [
    onDisk((disk) => disk.write(0, Buffer.alloc(1), { signal: AbortSignal.abort() })),
    'aborted',
    'what was withdrawn may be submitted again',
  ],
  'memory without a size': [onDisk((disk) => disk.alloc(-1)), '"size"', 'It must be a whole number >= 0'],
  'a write to what is read-only': [
    onDisk((disk) => disk.write(0, Buffer.alloc(1)), { readOnly: true }),
    '/image',
    'open it without readOnly to write',
  ],
  'a device that is closed': [
    async () => {
      const disk = await open(file)
      await disk.close()
      await disk.flush()
    },
    '/image',
    'open it again',
  ],
  'a check of a raw image': [onDisk((disk) => disk.check()), '/image', 'pass the format that it has'],
  'a format that makes no images': [
    () => create(inside('new'), { format: nothing, size: 512 }),
    'format nothing',
    'open one that is there',
  ],
  'a format without discard': [
    onDisk((disk) => disk.discard(0, 512), { format: nothing }),
    'format nothing has no discard',
    'do without it',
  ],
  'a format of one size': [
    onDisk((disk) => disk.truncate(512), { format: nothing }),
    "format nothing can't change its size",
    'make a new image and copy',
  ],
  'what is no qcow2 image': [
    () => open(file, { format: 'qcow2' }),
    '/image',
    'check that it is one, and that it was copied whole',
  ],
  'an encrypted image': [
    async () => open(await spoilt((header) => header.writeUInt32BE(1, 32)), { format: 'qcow2' }),
    'encryption',
    '"qemu-img convert" makes an image of it that has none of this',
  ],
  'an image that names what lies below': [
    async () =>
      open(
        await spoilt((header) => {
          header.writeBigUInt64BE(512n, 8)
          header.writeUInt32BE(4, 16)
          header.write('base', 512)
        }),
        { format: 'qcow2' },
      ),
    '"base"',
    'say with the option `backing` what lies below it, or null',
  ],
  'an image that is marked as corrupt': [
    async () => open(await spoilt((header) => header.writeUInt8(2, 79)), { format: 'qcow2' }),
    'spoilt.qcow2',
    'it can be opened with readOnly: true',
  ],
  'an image whose tables contradict each other': [
    async () => {
      const name = await spoilt((bytes) => bytes.writeBigUInt64BE(1n << 40n, Number(bytes.readBigUInt64BE(40))))
      const disk = await open(name, { format: 'qcow2', readOnly: true })
      await disk.read(0, Buffer.alloc(512)).finally(() => disk.close().catch(() => undefined))
    },
    'the qcow2 image is corrupt',
    'close it, and have check({ repair: true }) mend a copy',
  ],
  'an image that shall shrink': [
    () => withQcow2((disk) => disk.truncate(512)),
    'image.qcow2',
    'make a small one and copy',
  ],
  'an image of an odd size': [() => withQcow2((disk) => disk.truncate((1 << 20) + 1)), 'image.qcow2', 'round it up'],
  'a plan of nothing': [
    () => plan(unsafe(1), { maxBytes: 1, maxSegments: 1 }),
    '"requests"',
    'must be an instance of Array',
  ],
  'a plan without limits': [
    () => plan([], unsafe({ maxBytes: 0, maxSegments: 1 })),
    'limits.maxBytes',
    'It must be a whole number >= 1',
  ],
}

test.each(Object.entries(library))(
  'the library says of %s what is meant and what to do',
  async (_, [call, names, advice]) => {
    const message = await said(call)
    expect(message).toContain(names)
    expect(message.replaceAll('\n', ' ')).toContain(advice)
  },
)

test('whatever the system refuses a request with, its error ends with an advice, and so does that of its batch', () => {
  const detail = { syscall: 'write', path: '/dev/sdx', offset: 512, length: 512, engine: 'threads' }
  for (const [code, errno] of Object.entries(os.constants.errno)) {
    const error = new BlockError(errno, detail)
    expect(error.message, code).toMatch(/^E.*: .+, write of 512 bytes at 512 '\/dev\/sdx'; \S.{10,}$/)
    expect(new MultiwriteError([error], [0]).message).toContain(error.message)
  }
  // Who gives a reason gives the advice with it.
  expect(new BlockError(5, { ...detail, reason: 'the lid is open: close it' }).message).toMatch(/'\/dev\/sdx'$/)
})

/** Arguments, exit status, what is named, and the advice. */
const commands: Record<string, [args: () => string[], status: number, names: string, advice: string]> = {
  nothing: [() => [], 2, 'usage: multiwrite COMMAND', '"multiwrite COMMAND --help" tells more'],
  'an unknown command': [() => ['erase'], 2, '"erase"', 'usage: multiwrite COMMAND'],
  'an argument too few': [() => ['write', file], 2, 'TARGET missing', 'usage: multiwrite write'],
  'an argument too many': [() => ['info', file, 'b'], 2, 'too much: b', 'usage: multiwrite info'],
  'an unknown option': [() => ['check', '--mend', file], 2, '--mend', 'usage: multiwrite check'],
  'an unknown word': [() => ['write', '--zeroes=x', file, inside('t')], 2, '--zeroes', 'is zero, skip, write; not "x"'],
  'a descriptor that is not open': [
    () => ['write', '--progress=99', file, inside('t')],
    2,
    '99',
    'as in --progress=3 3>file',
  ],
  'an image that is not there': [() => ['write', inside('nowhere'), inside('t')], 1, '/nowhere', 'check the path'],
  'an image that is a folder': [() => ['write', os.tmpdir(), inside('t')], 2, os.tmpdir(), 'name an image'],
  'a target that is a terminal': [() => ['write', file, '/dev/null'], 2, '/dev/null', 'name one of these'],
  'a disk that is not there': [
    () => ['write', file, '/dev/sdzz9'],
    2,
    '/dev/sdzz9',
    '"lsblk" lists those that there are',
  ],
  'a target in a folder that is not there': [() => ['write', file, inside('no/t')], 1, '/no/t', 'check the path'],
  'a file that exists': [() => ['write', file, inside('there')], 3, '/there', '--force allows it'],
  'an image on itself': [() => ['write', '--force', file, file], 3, '/image', 'Copy it elsewhere first'],
  'a qcow2 image that nobody called one': [() => ['write', inside('q'), inside('t')], 3, '/q', 'say --format qcow2'],
  'a qcow2 image on standard input': [() => ['write', '--format=qcow2', '-', inside('t')], 2, 'qcow2', 'name a file'],
  'a damaged image': [
    () => ['write', inside('bad.gz'), inside('t')],
    1,
    'unpacked',
    'It is damaged or not whole: get it again',
  ],
  'a backing file of a raw image': [
    () => ['convert', '--backing=x', file, inside('t')],
    2,
    'backing',
    'say --from qcow2',
  ],
  'a packed image to qcow2': [() => ['convert', inside('good.gz'), inside('t')], 2, 'size', 'unpack the image first'],
  'what is no qcow2 image': [() => ['info', '--format=qcow2', file], 1, '/image', 'leave out --format'],
  'a check of what is no image': [() => ['check', file], 1, '/image', 'check that it is one'],
  'a trace that is not there': [() => ['replay', inside('nowhere'), inside('t')], 2, '/nowhere', 'name a recording'],
  'a trace that is none': [() => ['replay', file, inside('t')], 2, '/image', 'the first line should be'],
  'a benchmark of nothing': [() => ['bench'], 2, '--filename', 'which device or file?'],
  'a benchmark of what is not there': [
    () => ['bench', `--filename=${inside('nowhere')}`],
    2,
    '/nowhere',
    '--size says how large',
  ],
}

describe('the command line', () => {
  beforeAll(() => {
    fs.writeFileSync(inside('there'), 'something')
    fs.writeFileSync(inside('q'), Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(512)]))
    const packed = gzipSync(Buffer.alloc(1 << 20, 'some words'))
    fs.writeFileSync(inside('good.gz'), packed)
    fs.writeFileSync(inside('bad.gz'), packed.subarray(0, packed.length - 100))
  })

  test.each(Object.entries(commands))(
    'says of %s what is meant and what to do',
    async (_, [args, status, names, advice]) => {
      const ended = await cli(args())
      expect(ended.status).toBe(status)
      expect(ended.stderr).toContain(names)
      expect(ended.stderr).toContain(advice)
      // A stack is for mistakes of ours.
      expect(ended.stderr).not.toMatch(/^\s+at /m)
    },
  )
})
