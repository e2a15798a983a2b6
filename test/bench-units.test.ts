// The parts of `multiwrite bench` that need no target: words, histograms, offsets, contents, intervals.

import { describe, expect, test } from 'vitest'
import { binsByLimit, LATENCY_MS, LATENCY_US, shareOf } from '../lib/cli/bench/buckets.ts'
import { bucketOf, Histogram, rangeOf } from '../lib/cli/bench/histogram.ts'
import { type Arguments, parseArguments } from '../lib/cli/bench/job.ts'
import { Offsets } from '../lib/cli/bench/offsets.ts'
import { checkBlock, fillBlock } from '../lib/cli/bench/pattern.ts'
import { percentileOf, Series } from '../lib/cli/bench/series.ts'
import { linearScale, logScale } from '../lib/cli/bench/svg.ts'
import { binaryWord, countWord, latencyWord, parseSize, parseTime, sizeWord } from '../lib/cli/bench/units.ts'
import { EXIT, Stop } from '../lib/cli/command.ts'

function parsed(...words: string[]): Arguments {
  const args = parseArguments(['--filename=/dev/x', ...words])
  if (args === 'help') throw new Error('help')
  return args
}

describe('words', () => {
  test('sizes take fio’s suffixes and those of IEC', () => {
    expect(['512', '4k', '4K', '4kb', '4KiB', '1m', '1.5M', '2GiB', '1t'].map(parseSize)).toEqual([
      512,
      4096,
      4096,
      4096,
      4096,
      2 ** 20,
      1.5 * 2 ** 20,
      2 ** 31,
      2 ** 40,
    ])
    for (const wrong of ['', 'k', '4x', '-1', '0.3', '1e3', '4 4k']) expect(parseSize(wrong)).toBe(null)
  })

  test('times take fio’s suffixes, and are seconds without one', () => {
    expect(['30', '30s', '500ms', '250us', '2m', '1.5h', '1d'].map(parseTime)).toEqual([
      30e3, 30e3, 500, 0.25, 120e3, 5400e3, 86400e3,
    ])
    for (const wrong of ['', 's', '3y', '-1']) expect(parseTime(wrong)).toBe(null)
  })

  test('numbers are written as fio writes them', () => {
    expect([0, 512, 999, 999.6, 1234, 302_000, 1.25e6].map(countWord)).toEqual([
      '0',
      '512',
      '999',
      '1.00k',
      '1.23k',
      '302k',
      '1.25M',
    ])
    expect([0, 512, 1023, 2048, 1536 * 1024, 2 ** 20].map(binaryWord)).toEqual([
      '0B',
      '512B',
      '1023B',
      '2.00KiB',
      '1.50MiB',
      '1.00MiB',
    ])
    expect([0, 950, 12_340, 999_600, 4.1e6, 2e9].map(latencyWord)).toEqual([
      '0 ns',
      '950 ns',
      '12.3 us',
      '1.00 ms',
      '4.10 ms',
      '2.00 s',
    ])
    for (const word of ['512', '4k', '1M', '10G', '3T']) expect(sizeWord(parseSize(word)!)).toBe(word)
  })

  test('a job is what its words say', () => {
    const { job, force, json, html } = parsed(
      ...['--rw=randrw', '--bs=8k', '--iodepth=32', '--batch=8', '--size=1G', '--runtime=2m', '--ramp=500ms'],
      ...['--direct=0', '--engine=threads', '--merge=sort', '--busy-poll=20', '--rate-iops=1000', '--fdatasync=64'],
      ...['--numjobs=4', '--rwmixread=70', '--seed=7', '--force', '--json', '--html=/tmp/x.html'],
    )
    expect(job).toMatchObject({
      rw: 'randrw',
      bs: 8192,
      iodepth: 32,
      batch: 8,
      batchComplete: 1,
      size: 2 ** 30,
      runtime: 120e3,
      ramp: 500,
      direct: false,
      engine: 'threads',
      merge: 'sort',
      busyPollUs: 20,
      rateIops: 1000,
      fdatasync: 64,
      numjobs: 4,
      rwmixread: 70,
      seed: 7,
    })
    expect({ force, json, html }).toEqual({ force: true, json: '-', html: '/tmp/x.html' })
  })

  test('fio’s spellings mean the same', () => {
    const { job } = parsed(
      ...['--readwrite=write', '--blocksize=64KiB', '--ioengine=libaio', '--iodepth=16', '--iodepth_batch=4'],
      ...['--ramp_time=1s', '--runtime=2', '--rate_iops=10', '--randseed=3', '--iodepth_batch_complete_min=2'],
    )
    expect(job).toMatchObject({
      rw: 'write',
      bs: 65536,
      engine: 'aio',
      batch: 4,
      batchComplete: 2,
      ramp: 1000,
      rateIops: 10,
      seed: 3,
    })
  })

  test('by default each request is a call of its own, as for fio', () => {
    expect(parsed('--iodepth=32').job).toMatchObject({
      rw: 'read',
      bs: 4096,
      batch: 1,
      batchComplete: 1,
      merge: 'full',
    })
  })

  test('a sweep has depths and sizes', () => {
    expect(parsed('--sweep=32,1,8x64k,4k').sweep).toEqual({ depths: [1, 8, 32], sizes: [4096, 65536] })
    expect(parsed('--sweep').sweep).toMatchObject({ depths: [1, 2, 4, 8, 16, 32, 64, 128] })
    expect(parsed('--sweep=1,64x4k', '--batch=32').job.batch).toBe(32)
  })

  test.each([
    [['--rw=trim'], '--rw=trim: must be one of read,'],
    [['--bs=0'], '--bs=0: must be a size'],
    [['--iodepth=0'], '--iodepth=0: must be a whole number from 1'],
    [['--runtime=soon'], '--runtime=soon: must be a time'],
    [['--frobnicate'], 'frobnicate'],
    [['--verify', '--rw=write', '--numjobs=2'], '--verify goes with one job only'],
    [['--sweep', '--compare=fs'], '--sweep and --compare do not go together'],
    [['--compare=dd'], '--compare=dd: must be of fs, fio'],
    [['--sweep=4k'], 'depths, an x and sizes'],
    [['--ramp=1'], '--ramp needs a --runtime'],
    [['--iodepth=8', '--batch=2', '--batch-complete=4'], '--batch-complete must not be more than --batch'],
  ])('%j is refused as wrong usage', (words, message) => {
    expect(() => parsed(...words)).toThrow(message)
    try {
      parsed(...words)
    } catch (error) {
      expect((error as Stop).status).toBe(EXIT.usage)
    }
  })

  test('a target must be named', () => {
    expect(() => parseArguments([])).toThrow(Stop)
    expect(parseArguments(['--help'])).toBe('help')
  })
})

describe('a histogram', () => {
  test('keeps three significant digits from a nanosecond to an hour', () => {
    for (let value = 1; value < 3600e9; value = Math.ceil(value * 1.0137)) {
      const { start, width } = rangeOf(bucketOf(value))
      expect(value).toBeGreaterThanOrEqual(start)
      expect(value).toBeLessThan(start + width)
      const told = start + (width - 1) / 2
      expect(Math.abs(told - value) / value).toBeLessThan(0.0005)
    }
  })

  test('has no gap and no overlap between its buckets', () => {
    let next = 0
    for (let bucket = 0; bucket <= bucketOf(2 ** 40); bucket++) {
      const { start, width } = rangeOf(bucket)
      expect(start).toBe(next)
      expect(bucketOf(start)).toBe(bucket)
      next = start + width
    }
  })

  test('tells percentiles, mean and deviation of what was recorded', () => {
    const histogram = new Histogram()
    for (let value = 1; value <= 1000; value++) histogram.record(value)
    expect([1, 50, 99, 99.9, 100].map((percent) => histogram.percentile(percent))).toEqual([10, 500, 990, 999, 1000])
    expect(histogram.mean).toBe(500.5)
    expect(histogram.stddev).toBeCloseTo(288.675, 3)
    expect([histogram.count, histogram.min, histogram.max]).toEqual([1000, 1, 1000])
  })

  test('never tells less than the smallest nor more than the largest', () => {
    const histogram = new Histogram()
    histogram.record(1_000_001)
    expect([0, 50, 100].map((percent) => histogram.percentile(percent))).toEqual([1_000_001, 1_000_001, 1_000_001])
    expect(new Histogram().percentile(50)).toBe(0)
  })

  test('adds up what several threads have recorded', () => {
    const [a, b, all] = [new Histogram(), new Histogram(), new Histogram()]
    for (let i = 1; i < 5000; i++) {
      const value = (i * 7919) % 1_000_003
      ;(i % 3 === 0 ? a : b).record(value)
      all.record(value)
    }
    const sum = new Histogram(structuredClone(a.data))
    sum.add(new Histogram(structuredClone(b.data)))
    expect(sum.data).toEqual(all.data)
    expect(sum.count).toBe(all.count)
  })

  test('divides into fio’s tables', () => {
    const histogram = new Histogram()
    for (const value of [500, 1500, 3000, 60_000, 999_000, 1_500_000, 3e9]) histogram.record(value)
    const us = binsByLimit(histogram, LATENCY_US)
    const ms = binsByLimit(histogram, LATENCY_MS)
    const one = 100 / 7
    expect([us[2], us[4], us[100], us[1000], us[20]]).toEqual([one, one, one, one, 0])
    expect([ms[2], ms['>=2000'], ms[4]]).toEqual([one, one, 0])
    expect(shareOf(new Float64Array([0, 1, 1, 0, 0, 0, 0, 0, 2]), 1)).toMatchObject({ 1: 25, 2: 25, 8: 50 })
    expect(shareOf(new Float64Array([0, 1, 0, 0, 1, 2]), 0)).toMatchObject({ 4: 50, 8: 50 })
  })
})

describe('offsets', () => {
  test.each([1, 2, 3, 17, 64, 1000, 4097])('at random visit each of %i blocks once in every pass', (blocks) => {
    const offsets = new Offsets(blocks, true, 5)
    const passes = [0, 1].map(() => Array.from({ length: blocks }, () => offsets.next()))
    const inOrder = Array.from({ length: blocks }, (_, block) => block)
    for (const pass of passes) expect([...pass].sort((a, b) => a - b)).toEqual(inOrder)
    if (blocks > 64) {
      expect(passes[0]).not.toEqual(passes[1])
      expect(passes[0]).not.toEqual(inOrder)
    }
  })

  test('depend on the seed alone', () => {
    const first = (seed: number): number[] => {
      const offsets = new Offsets(1_000_000, true, seed)
      return Array.from({ length: 50 }, () => offsets.next())
    }
    expect(first(1)).toEqual(first(1))
    expect(first(1)).not.toEqual(first(2))
  })

  test('at random are spread over devices of any size, and rarely follow each other', () => {
    for (const blocks of [1000, 2 ** 33 + 5, 2 ** 45]) {
      const offsets = new Offsets(blocks, true, 9)
      const quarters = [0, 0, 0, 0]
      let following = 0
      let before = -2
      for (let i = 0; i < 1000; i++) {
        const block = offsets.next()
        expect(block).toBeGreaterThanOrEqual(0)
        expect(block).toBeLessThan(blocks)
        quarters[Math.floor((block / blocks) * 4)]!++
        if (block === before + 1) following++
        before = block
      }
      for (const quarter of quarters) expect(Math.abs(quarter - 250)).toBeLessThan(70)
      expect(following).toBeLessThan(20)
    }
  })

  test('in sequence go on from the start when the end is reached', () => {
    const offsets = new Offsets(3, false, 1)
    expect(Array.from({ length: 7 }, () => offsets.next())).toEqual([0, 1, 2, 0, 1, 2, 0])
  })
})

describe('contents', () => {
  const block = (offset: number, seed: number, generation: number): Uint32Array => {
    const words = new Uint32Array(1024)
    fillBlock(words, offset, seed, generation)
    return words
  }

  test('are right where they were written, and wrong elsewhere, with another seed, or from an earlier write', () => {
    for (const offset of [0, 4096, 2 ** 32, 2 ** 45 + 4096]) {
      const words = block(offset, 3, 8)
      expect(checkBlock(words, offset, 3, 8)).toBe(null)
      expect(checkBlock(words, offset, 3, null)).toBe(null)
      expect(checkBlock(words, offset + 4096, 3, null)?.offset).toBe(offset + 4096)
      expect(checkBlock(words, offset, 4, null)).not.toBe(null)
      expect(checkBlock(words, offset, 3, 9)).not.toBe(null)
    }
    expect(checkBlock(block(2 ** 32, 3, 8), 0, 3, 8)).not.toBe(null)
    expect(checkBlock(new Uint32Array(1024), 0, 3, null)).not.toBe(null)
  })

  test('tell the first byte that is wrong', () => {
    for (const at of [3, 4, 5, 1000, 4095]) {
      const words = block(8192, 3, 8)
      const bytes = new Uint8Array(words.buffer)
      const expected = bytes[at]!
      bytes[at]! ^= 0x10
      const mismatch = { offset: 8192 + at, expected, found: expected ^ 0x10 }
      expect(checkBlock(words, 8192, 3, 8)).toEqual(mismatch)
      if (at > 7) expect(checkBlock(words, 8192, 3, null)).toEqual(mismatch)
    }
  })
})

describe('intervals', () => {
  test('become longer when there are too many, and lose nothing', () => {
    const series = new Series()
    for (let at = 0; at < 100_000; at += 10) series.record(at, at % 20 === 0, 4096, 1000 + at)
    const { interval_ms, intervals } = series.data
    expect(intervals.length).toBeLessThanOrEqual(480)
    expect(interval_ms * intervals.length).toBeGreaterThanOrEqual(100_000)
    expect(intervals.reduce((sum, { reads, writes }) => sum + reads + writes, 0)).toBe(10_000)
    expect(intervals.at(-1)!.max).toBe(100_990)
  })

  test('of threads are added up, whatever their lengths', () => {
    const [short, long] = [new Series(), new Series()]
    for (let at = 0; at < 1000; at += 10) short.record(at, true, 1, 5000)
    for (let at = 0; at < 60_000; at += 10) long.record(at, false, 1, 7000)
    short.add(long)
    const { intervals } = short.data
    expect(intervals.reduce((sum, { reads }) => sum + reads, 0)).toBe(100)
    expect(intervals.reduce((sum, { writes }) => sum + writes, 0)).toBe(6000)
    expect(Math.abs(percentileOf(intervals.at(-1)!, 50) / 7000 - 1)).toBeLessThan(0.05)
  })

  test('make windows of half a second, and a last one that is not whole is left out', () => {
    const series = new Series()
    for (let at = 0; at < 1200; at += 10) series.record(at, false, 100, 5000)
    const { window_ms, sums } = series.windows(500, 1200)
    expect(window_ms).toBe(500)
    expect(sums.map(({ writes }) => writes)).toEqual([50, 50])
  })
})

describe('axes', () => {
  test('have round ticks inside of their range', () => {
    const linear = linearScale([0, 437], [0, 640], String)
    expect(linear.ticks.map(({ value }) => value)).toEqual([0, 100, 200, 300, 400])
    expect([linear.at(0), linear.at(437)]).toEqual([0, 640])
    const log = logScale([8, 2000], [0, 640], String)
    expect(log.ticks.filter(({ label }) => label !== '').map(({ label }) => label)).toEqual(
      expect.arrayContaining(['10', '100', '1000']),
    )
    for (const { value } of log.ticks) {
      expect(value).toBeGreaterThanOrEqual(8)
      expect(value).toBeLessThanOrEqual(2000)
    }
  })
})
