// The replay of recorded traffic: its parser, its model of what a disk must hold, and the command as a user runs it.
//
// The judge is tested harder than the judged: a model that forgives would make every proof worthless. So each way in which a
// write can go wrong is done to an image here, and must be found at the right byte. The command itself runs as a child process
// on traces of a few hundred kilobytes.

import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { fillContent, Model, type ReadAt, survey, verify } from '../lib/cli/content.ts'
import { formatBytes, formatDifference, formatDuration, formatTable } from '../lib/cli/report.ts'
import { parseTrace, readTrace, type Trace } from '../lib/cli/trace.ts'

const MIB = 1024 * 1024
const HEADER = 'batch,time_us,op,offset,length'
const SEED = 0x5eed
const DEMO = fileURLToPath(new URL('../dist/cli/demo.js', import.meta.url))
const TRACES = fileURLToPath(new URL('../bench/traces/', import.meta.url))

const trace = (...rows: string[]): Trace => parseTrace(`${[HEADER, ...rows].join('\n')}\n`, 'small.csv')

/** Carries a trace out one request after another, on an image in memory. */
function carryOut(recording: Trace, image: Buffer, model: Model, positionBase = 0): void {
  for (const { op, line, offset, length } of recording.batches.flat()) {
    if (op === 'W') {
      image.set(content(offset, length, positionBase + line), offset)
      model.wrote(offset, length, positionBase + line)
    } else if (op === 'Z') {
      image.fill(0, offset, offset + length)
      model.zeroed(offset, length)
    }
  }
}

function content(offset: number, length: number, position: number): Uint8Array {
  const words = new Uint32Array(length / 4)
  fillContent(words, offset / 512, position, SEED)
  return new Uint8Array(words.buffer)
}

const readerOf =
  (image: Buffer): ReadAt =>
  async (offset, into) => {
    expect(image.copy(into, 0, offset)).toBe(into.length)
  }

describe('a trace', () => {
  test('keeps requests of one batch number together, in order', () => {
    const { batches, counts, bytes, end, diskEnd, lines } = trace(
      '0,10,W,4096,1024',
      '0,11,R,0,512',
      '1,12,F,0,0',
      '7,13,Z,8192,512',
      '7,14,D,0,65536',
    )
    expect(batches.map((batch) => batch.map(({ op, line }) => `${op}${line}`))).toEqual([
      ['W2', 'R3'],
      ['F4'],
      ['Z5', 'D6'],
    ])
    expect(batches[0]![0]).toEqual({ line: 2, op: 'W', offset: 4096, length: 1024 })
    expect(counts).toEqual({ W: 1, R: 1, F: 1, D: 1, Z: 1 })
    expect(bytes.W).toBe(1024)
    expect([end, diskEnd, lines]).toEqual([8704, 65536, 6])
  })

  test.each([
    ['0,1,W,abc,512', 'small.csv:3: offset "abc" is not a whole number'],
    ['0,1,W,-512,512', 'small.csv:3: offset "-512" is not a whole number'],
    ['0,1,W,1e3,512', 'small.csv:3: offset "1e3" is not a whole number'],
    ['-2,1,W,0,512', 'small.csv:3: batch "-2" is not a whole number'],
    ['0,1,X,0,512', 'small.csv:3: op "X" is none of W, R, F, D, Z'],
    ['0,1,WR,0,512', 'small.csv:3: op "WR" is none of W, R, F, D, Z'],
    ['0,1,W,0', 'small.csv:3: 4 of the 5 fields'],
    ['', 'small.csv:3: 1 of the 5 fields'],
    ['0,1,W,0,0', 'small.csv:3: length is 0'],
    ['0,1,W,100,512', 'small.csv:3: offset 100 is not a multiple of 512'],
    ['0,1,R,0,100', 'small.csv:3: length 100 is not a multiple of 512'],
    ['0,1,W,9007199254740480,1024', 'small.csv:3: the end of the range is above 2^53'],
  ])('with the line "%s" is refused, and the message names the line', (row, message) => {
    expect(() => trace('0,0,W,0,512', row, '1,2,F,0,0')).toThrow(message)
  })

  test('without a header, or without requests, is refused', () => {
    expect(() => parseTrace('0,0,W,0,512\n', 'x.csv')).toThrow('x.csv:1: not a trace')
    expect(() => parseTrace('', 'x.csv')).toThrow('x.csv:1: not a trace')
    expect(() => parseTrace(`${HEADER}\n`, 'x.csv')).toThrow('x.csv: no requests')
  })

  test('may have Windows line ends, more columns, and no last line end', () => {
    const { batches } = parseTrace(`${HEADER},nreq\r\n0,0,W,0,512,1\r\n0,0,W,512,512,2`, 'x.csv')
    expect(batches).toHaveLength(1)
    expect(batches[0]).toHaveLength(2)
  })

  test('has requests that reached the device alone: each of them is a batch', () => {
    const { batches } = trace('-1,0,W,0,512', '-1,1,W,512,512', '3,2,W,1024,512', '-1,3,F,0,0', '3,4,W,1536,512')
    expect(batches.map((batch) => batch.map(({ line }) => line))).toEqual([[2], [3], [4], [5], [6]])
  })

  test.each(readdirSync(TRACES).filter((name) => name.endsWith('.csv.gz')))('%s can be read', async (name) => {
    const { batches, counts } = await readTrace(join(TRACES, name))
    const requests = batches.reduce((sum, batch) => sum + batch.length, 0)
    expect(requests).toBe(Object.values(counts).reduce((sum, count) => sum + count))
    expect(batches.every((batch) => batch.length > 0)).toBe(true)
  })

  test('that was recorded reads as its description says', async () => {
    const { counts, batches, diskEnd } = await readTrace(join(TRACES, 'ext4-cp-64k.merge-on.csv.gz'))
    expect(counts).toEqual({ W: 5510, R: 76, F: 49, D: 3, Z: 20 })
    expect(batches).toHaveLength(630)
    expect(diskEnd).toBe(2 ** 31)
  })
})

describe('made content', () => {
  test('differs between sectors, between requests and between seeds, in every word', () => {
    const make = (sector: number, position: number, seed: number): Uint32Array => {
      const words = new Uint32Array(128)
      fillContent(words, sector, position, seed)
      return words
    }
    const one = make(7, 3, SEED)
    for (const other of [make(8, 3, SEED), make(7, 4, SEED), make(7, 3, SEED + 1), make(7 + 2 ** 32, 3, SEED)]) {
      expect(one.every((word, index) => word !== other[index])).toBe(true)
    }
    expect(new Set(one).size).toBe(128)
  })

  test('of many sectors is that of the single ones', () => {
    const together = content(512 * 1000, 512 * 64, 5)
    for (let sector = 0; sector < 64; sector++) {
      expect(together.subarray(sector * 512, (sector + 1) * 512)).toEqual(content(512 * (1000 + sector), 512, 5))
    }
  })

  test('has no two equal sectors in 64 MiB', () => {
    const words = new Uint32Array(16 * MIB)
    fillContent(words, 0, 1, SEED)
    const seen = new Set<number>()
    for (let at = 0; at < words.length; at += 128) seen.add(words[at]! * 2 ** 20 + (words[at + 1]! & 0xfffff))
    expect(seen.size).toBe(words.length / 128)
  })
})

describe('the comparison with the model', () => {
  const size = 3 * MIB + 4096
  // Overlaps, chunk borders, a rewrite, zeros over data, data over zeros, and the very last sector.
  const recording = trace(
    '0,0,W,0,8192',
    '0,0,W,4096,8192',
    `1,0,W,${MIB - 1024},4096`,
    `1,0,Z,${MIB},1024`,
    '2,0,W,65536,65536',
    '2,0,W,65536,512',
    `3,0,Z,${MIB + 512},${MIB}`,
    `3,0,W,${MIB + 700 * 1024},512`,
    `4,0,W,${size - 512},512`,
  )

  function written(): { image: Buffer; model: Model } {
    const image = Buffer.alloc(size)
    const model = new Model(SEED)
    carryOut(recording, image, model)
    return { image, model }
  }

  test('finds nothing wrong with a right image', async () => {
    const { image, model } = written()
    const seen: number[] = []
    expect(await verify(readerOf(image), size, model, (bytes) => seen.push(bytes))).toBe(null)
    expect(seen).toEqual([MIB, 2 * MIB, 3 * MIB, size])
  })

  test.each([
    0,
    511,
    4095,
    4096,
    12287,
    12288,
    65536,
    66047,
    66048,
    131071,
    131072,
    MIB - 1025,
    MIB - 1024,
    MIB - 1,
    MIB,
    MIB + 1023,
    MIB + 1024,
    MIB + 3071,
    MIB + 700 * 1024,
    2 * MIB,
    3 * MIB - 1,
    3 * MIB,
    size - 513,
    size - 512,
    size - 1,
  ])('finds one flipped bit at %i, at that byte', async (offset) => {
    const { image, model } = written()
    const expected = image[offset]!
    image[offset] = expected ^ 0x10
    expect(await verify(readerOf(image), size, model)).toMatchObject({
      offset,
      length: 1,
      expected,
      found: expected ^ 0x10,
    })
  })

  test('names the first of several', async () => {
    const { image, model } = written()
    for (const offset of [2 * MIB + 5, 70_000, MIB - 7]) image[offset]! ^= 1
    expect((await verify(readerOf(image), size, model))?.offset).toBe(70_000)
  })

  test('finds the loser of an overlap, a lost zeroing, a torn and a misplaced write', async () => {
    const loser = written()
    loser.image.set(content(4096, 4096, 2), 4096)
    expect(await verify(readerOf(loser.image), size, loser.model)).toMatchObject({ offset: 4096, position: 3 })

    const unzeroed = written()
    unzeroed.image.set(content(MIB, 512, 4), MIB)
    expect(await verify(readerOf(unzeroed.image), size, unzeroed.model)).toMatchObject({ offset: MIB, position: -1 })

    const torn = written()
    torn.image.fill(0, 100_000, 100_352)
    expect(await verify(readerOf(torn.image), size, torn.model)).toMatchObject({ offset: 100_000, found: 0 })

    const misplaced = written()
    misplaced.image.copyWithin(80_000 - (80_000 % 512) + 512, 80_000 - (80_000 % 512), 90_112)
    expect((await verify(readerOf(misplaced.image), size, misplaced.model))?.offset).toBe(80_384)
  })

  test('passes on a failure to read', async () => {
    const { model } = written()
    await expect(verify(() => Promise.reject(new Error('gone')), size, model)).rejects.toThrow('gone')
    // The second chunk is being read when the first proves wrong: its failure must not surface as an unhandled one.
    const second: ReadAt = (offset, into) =>
      offset === 0 ? Promise.resolve(void into.fill(1)) : Promise.reject(new Error('gone'))
    expect(await verify(second, size, new Model(SEED))).toMatchObject({ offset: 0, found: 1 })
  })

  test('of a read uses what was written before it, and nothing later', () => {
    const model = new Model(SEED)
    model.wrote(MIB - 512, 1024, 2)
    const marks = model.marks(MIB - 1024, 2048)
    model.wrote(MIB - 1024, 2048, 3)
    const bytes = Buffer.alloc(2048)
    bytes.set(content(MIB - 512, 1024, 2), 512)
    expect(model.compare(bytes, MIB - 1024, marks)).toBe(null)
    bytes[512]! ^= 1
    expect(model.compare(bytes, MIB - 1024, marks)).toMatchObject({ offset: MIB - 512, position: 2 })
  })

  test('of a disk with former content includes what the trace leaves alone', async () => {
    const former = Buffer.alloc(size + 100)
    for (let at = 0; at < former.length; at += 3) former[at] = at % 251
    former.fill(0, 2 * MIB, 3 * MIB)
    const prior = await survey(readerOf(former), former.length, recording)
    // A second replay goes on with the model of the first.
    const image = Buffer.from(former)
    const model = new Model(SEED, prior)
    carryOut(recording, image, model)
    expect(await verify(readerOf(image), image.length, model)).toBe(null)
    carryOut(recording, image, model, 100)
    expect(await verify(readerOf(image), image.length, model)).toBe(null)

    for (const [offset, piece] of [
      [20_001, 20_001 - (20_001 % 512)],
      [2 * MIB + 5000, 2 * MIB + 5000],
      [size + 50, size],
    ] as const) {
      const wrong = Buffer.from(image)
      wrong[offset]! ^= 1
      expect((await verify(readerOf(wrong), wrong.length, model))?.offset).toBe(piece)
    }
  })

  test('of a disk with former content keeps coarse checksums where the trace never goes', async () => {
    const former = Buffer.alloc(4 * MIB, 1)
    const prior = await survey(readerOf(former), former.length, trace('0,0,W,0,512', `0,0,R,${2 * MIB},512`))
    expect([...prior].map(([chunk, sums]) => [chunk, sums.length])).toEqual([
      [0, 2048],
      [1, 16],
      [2, 2048],
      [3, 16],
    ])
    const model = new Model(SEED, prior)
    expect(model.compareChunk(former.subarray(MIB, 2 * MIB), MIB)).toBe(null)
    former[MIB + 70_000] = 2
    expect(model.compareChunk(former.subarray(MIB, 2 * MIB), MIB)).toMatchObject({
      offset: MIB + 65_536,
      length: 65_536,
    })
  })
})

describe('what is printed', () => {
  test('says sizes and times in units that suit', () => {
    expect([0, 1, 512, 1024, 1536, MIB, 2 ** 31, 2 ** 40, 100_663_296].map(formatBytes)).toEqual([
      '0 bytes',
      '1 byte',
      '512 bytes',
      '1 KiB',
      '1.5 KiB',
      '1 MiB',
      '2 GiB',
      '1 TiB',
      '96 MiB',
    ])
    expect([999, 1000, 12_345, 123_456, 1_234_567, 2e9].map(formatDuration)).toEqual([
      '999 ns',
      '1.00 us',
      '12.3 us',
      '123 us',
      '1.23 ms',
      '2.00 s',
    ])
  })

  test('lines its columns up', () => {
    expect(
      formatTable([
        ['', 'n'],
        ['merged', '1'],
        ['off', '100'],
      ]),
    ).toBe('          n\nmerged    1\noff     100')
  })

  test('tells what a difference means', () => {
    const difference = { offset: 4096, length: 1, position: 23, expected: 0xab, found: 0 }
    expect(formatDifference(difference, 20)).toBe(
      'first wrong offset 4096: found 0x00 where line 3 of the trace wrote 0xab',
    )
    expect(formatDifference({ ...difference, position: -1 }, 20)).toContain('zeros were written last')
    expect(formatDifference({ ...difference, position: 0, expected: null, length: 512 }, 20)).toContain('the 512 bytes')
  })
})

describe('the command', () => {
  let directory: string
  let small: string

  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), 'multiwrite-demo-test-'))
    small = join(directory, 'small.csv.gz')
    const rows: string[] = []
    for (let batch = 0; batch < 40; batch++) {
      for (let index = 0; index < 8; index++) rows.push(`${batch},0,W,${(batch * 5 + index) * 4096},4096`)
      rows.push(`${batch},0,R,${batch * 20480},8192`)
      if (batch % 7 === 3) rows.push(`${batch},0,Z,${batch * 20480 + 512},2560`)
      if (batch % 10 === 9) rows.push(`${batch},0,F,0,0`)
    }
    rows.push('40,0,D,0,2097152', '41,0,Z,1048576,524288')
    writeFileSync(small, gzipSync(`${[HEADER, ...rows].join('\n')}\n`))
    writeFileSync(
      join(directory, 'small.qemu-submits.csv'),
      `${HEADER},nreq\n${'0,0,W,0,32768,8\n'.repeat(47)}0,0,Z,0,512,1\n`,
    )
    writeFileSync(
      join(directory, 'small.qemu-submits.csv.gz'),
      gzipSync(readFileSync(join(directory, 'small.qemu-submits.csv'))),
    )
  })

  afterAll(() => rmSync(directory, { recursive: true, force: true }))

  interface Ended {
    status: number | null
    stdout: string
    stderr: string
  }

  const run = (...args: string[]): Promise<Ended> =>
    new Promise((resolve) => {
      const child: ChildProcess = execFile(
        process.execPath,
        [DEMO, ...args],
        { env: { ...process.env, TMPDIR: scratch() } },
        (_error, stdout, stderr) => resolve({ status: child.exitCode, stdout, stderr }),
      )
    })

  /** An empty directory, so that what is left behind shows. */
  function scratch(): string {
    return mkdtempSync(join(directory, 'scratch-'))
  }

  const leftBehind = (): string[] =>
    readdirSync(directory)
      .filter((name) => name.startsWith('scratch-'))
      .flatMap((name) => readdirSync(join(directory, name)))

  test('replays on a file of its own, proves it and removes it', async () => {
    const { status, stdout, stderr } = await run('--trace', small)
    expect(stderr).not.toContain('multiwrite replay:')
    expect(status).toBe(0)
    for (const word of ['merged', 'sorted', 'as given', 'Every byte is right', 'engine', '47']) {
      expect(stdout).toContain(word)
    }
    expect(leftBehind()).toEqual([])
  })

  test('prints JSON if asked, with fewer submissions merged than not', async () => {
    const { status, stdout } = await run('--trace', small, '--json')
    expect(status).toBe(0)
    const report = JSON.parse(stdout)
    expect(report).toMatchObject({
      trace: { batches: 42, counts: { W: 320, R: 40, Z: 7, F: 4, D: 1 } },
      target: { kind: 'temporary file', size: 2 * MIB },
      qemuSubmissions: 47,
      verifiedBytes: 2 * MIB,
    })
    const { full, sort, off } = report.modes
    expect(full.requests).toBe(327)
    expect(full.reads).toBe(40)
    expect(full.flushes).toBe(5)
    // One per batch and zeroing, and a second where a batch waits in part for the overlapping one before it.
    expect(full.submissions).toBeLessThanOrEqual(40 + 40 + 7)
    expect(sort.submissions).toBeGreaterThanOrEqual(327)
    expect(off.submissions).toBeGreaterThanOrEqual(327)
    expect(full.latency.p50).toBeGreaterThan(0)
    expect(full.latency.p999).toBeGreaterThanOrEqual(full.latency.p99)
  })

  test('replays twice what its ring of memory holds, batches ending exactly at the end of the ring', async () => {
    const { status, stdout } = await run('--trace', join(TRACES, 'fio-4k-seq-batch.merge-on.csv.gz'), '--json')
    expect(status).toBe(0)
    expect(JSON.parse(stdout).modes.full.bytes).toBe(64 * MIB)
  })

  test('makes the file that is named and leaves it there', async () => {
    const path = join(directory, 'new.img')
    expect(await run('--trace', small, path)).toMatchObject({ status: 0 })
    expect(readFileSync(path)).toHaveLength(2 * MIB)
  })

  test('refuses a file that exists, and does not touch it', async () => {
    const path = join(directory, 'precious.img')
    writeFileSync(path, Buffer.alloc(2 * MIB, 7))
    const { status, stdout, stderr } = await run('--trace', small, path)
    expect(status).toBe(3)
    expect(stdout).toBe('')
    expect(stderr).toContain(`${path} is an existing file whose content would be overwritten; --yes allows that`)
    expect(readFileSync(path).equals(Buffer.alloc(2 * MIB, 7))).toBe(true)
  })

  test('overwrites it with --yes, but only where the trace writes', async () => {
    const path = join(directory, 'given.img')
    writeFileSync(path, Buffer.alloc(3 * MIB + 100, 7))
    const { status, stdout } = await run('--trace', small, '--yes', path)
    expect(status).toBe(0)
    expect(stdout).toContain('Every byte is right')
    const image = readFileSync(path)
    expect(image).toHaveLength(3 * MIB + 100)
    expect(image.subarray(2 * MIB).equals(Buffer.alloc(MIB + 100, 7))).toBe(true)
    expect(image.subarray(MIB, MIB + 524_288).equals(Buffer.alloc(524_288))).toBe(true)
    expect(image.subarray(0, 4096).equals(Buffer.alloc(4096, 7))).toBe(false)
  })

  test('refuses a target that is too small for the trace, and does not touch it', async () => {
    const path = join(directory, 'short.img')
    writeFileSync(path, Buffer.alloc(4096, 7))
    const { status, stderr } = await run('--trace', small, '--yes', path)
    expect(status).toBe(2)
    expect(stderr).toContain(`${path} has 4,096 bytes and the trace needs 1,572,864`)
    expect(readFileSync(path).equals(Buffer.alloc(4096, 7))).toBe(true)
  })

  test.each([
    [['--frobnicate'], 'frobnicate'],
    [['one', 'two'], 'too much: two'],
    [['--engine', 'steam'], 'steam'],
    [['--trace', '/nonexistent/trace.csv'], 'cannot be read'],
    [['--trace', DEMO], 'not a trace'],
    [['--yes', tmpdir()], 'neither a file nor a block device'],
  ])('ends with status 2 on %j', async (args, message) => {
    const { status, stdout, stderr } = await run(...args)
    expect(status).toBe(2)
    expect(stdout).toBe('')
    expect(stderr).toContain(message)
    expect(stderr).not.toMatch(/^\s+at /m)
  })

  test('fails with a message and no stack where it cannot write', async () => {
    const { status, stderr } = await run('--trace', small, '/nonexistent/disk.img')
    expect(status).toBe(1)
    expect(stderr).toContain('/nonexistent')
    expect(stderr).not.toMatch(/^\s+at /m)
  })

  test('shows its usage', async () => {
    const { status, stdout } = await run('--help')
    expect(status).toBe(0)
    expect(stdout).toContain('usage: npm start')
  })

  test('removes its file when it is interrupted, and dies of the signal', async () => {
    const own = scratch()
    const child = spawn(process.execPath, [DEMO], {
      env: { ...process.env, TMPDIR: own },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    await new Promise((resolve) => child.stderr.once('data', resolve))
    expect(readdirSync(own)).toHaveLength(1)
    const ended = new Promise((resolve) => child.once('exit', (_code, signal) => resolve(signal)))
    child.kill('SIGINT')
    expect(await ended).toBe('SIGINT')
    expect(readdirSync(own)).toEqual([])
    expect(existsSync(own)).toBe(true)
  })
})
