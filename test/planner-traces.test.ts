// Recorded traffic of real guests and programs, planned: never more submissions than QEMU made of the same batches, and far
// fewer requests than the kernel's block layer issued for what it was given.

import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { gunzipSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { planMerged } from '../lib/planner/merge.ts'
import type { Limits, Units } from '../lib/planner/units.ts'

const TRACES = new URL('../bench/traces/', import.meta.url)
const PAGE = 4096

/** QEMU's own bounds on one write, its 1024 vectors among them. */
const QEMU_LIMITS: Limits = { maxBytes: 32 * 2 ** 20, maxSegments: 1024 }
/** A loop device takes 128 segments; beyond 1 MiB the kernel hands a request to a worker. */
const LOOP_LIMITS: Limits = { maxBytes: 2 ** 20, maxSegments: 128 }

interface Row {
  batch: number
  op: string
  offset: number
  length: number
}

function read(name: string): Row[] {
  const text = gunzipSync(fs.readFileSync(new URL(name, TRACES))).toString()
  const lines = text.trimEnd().split('\n')
  const columns = lines[0]!.split(',')
  const [batch, op, offset, length] = ['batch', 'op', 'offset', 'length'].map((column) => columns.indexOf(column))
  return lines.slice(1).map((line) => {
    const fields = line.split(',')
    return {
      batch: Number(fields[batch!]),
      op: fields[op!]!,
      offset: Number(fields[offset!]),
      length: Number(fields[length!]),
    }
  })
}

/** The writes of each batch; with `parted`, only those between two other operations stand together. */
function writesOf(rows: Row[], parted: boolean): Map<number, Row[][]> {
  const batches = new Map<number, Row[][]>()
  for (const [i, row] of rows.entries()) {
    let groups = batches.get(row.batch)
    if (groups === undefined) {
      groups = []
      batches.set(row.batch, groups)
    }
    if (row.op !== 'W') continue
    const before = rows[i - 1]
    const follows = before !== undefined && before.batch === row.batch && before.op === 'W'
    if (groups.length === 0 || (parted && !follows)) groups.push([])
    groups.at(-1)!.push(row)
  }
  return batches
}

/** One unit a write, or one for each `pieceBytes` of it. */
function toUnits(writes: Row[], pieceBytes = Number.POSITIVE_INFINITY): Units {
  const offsets: number[] = []
  const lengths: number[] = []
  for (const { offset, length } of writes) {
    for (let done = 0; done < length; done += pieceBytes) {
      offsets.push(offset + done)
      lengths.push(Math.min(pieceBytes, length - done))
    }
  }
  return { count: offsets.length, offset: Float64Array.from(offsets), length: Float64Array.from(lengths), fua: null }
}

function countSubmissions(batches: Map<number, Row[][]>, limits: Limits, pieceBytes?: number): number {
  let submissions = 0
  for (const groups of batches.values()) {
    for (const writes of groups) submissions += planMerged(toUnits(writes, pieceBytes), limits).count
  }
  return submissions
}

const recorded = fs
  .readdirSync(fileURLToPath(TRACES))
  .filter((name) => name.endsWith('.merge-on.csv.gz'))
  .map((name) => name.replace('.csv.gz', ''))

describe('what QEMU was given', () => {
  test('was recorded', () => {
    expect(recorded).toEqual([
      'ext4-cp-64k.merge-on',
      'ext4-cp.merge-on',
      'fio-4k-4streams.merge-on',
      'fio-4k-seq-batch.merge-on',
    ])
  })

  test.each(recorded)('%s: no batch needs more writes than QEMU made of it', (name) => {
    const batches = writesOf(read(`${name}.csv.gz`), true)
    const qemu = new Map<number, number>()
    for (const { batch, op } of read(`${name}.qemu-submits.csv.gz`)) {
      if (op === 'W') qemu.set(batch, (qemu.get(batch) ?? 0) + 1)
    }
    expect(qemu.size).toBeGreaterThan(100)
    let total = 0
    for (const [batch, groups] of batches) {
      const made = countSubmissions(new Map([[batch, groups]]), QEMU_LIMITS)
      const madeByQemu = qemu.get(batch) ?? 0
      expect(made, `batch ${batch}`).toBeLessThanOrEqual(madeByQemu)
      total += made
    }
    expect(total).toBeGreaterThan(0)
  })
})

describe('what the kernel was given for a loop device', () => {
  const rows = read('host-loop-ext4-cp.csv.gz')
  const issued = read('host-loop-ext4-cp.kernel-issues.csv.gz').filter(({ op }) => op === 'W').length

  // In page-aligned memory a write is one vector however long it is, as the pages of one buffer follow each other.
  test('makes at most 0.7 of its write requests', () => {
    const parted = countSubmissions(writesOf(rows, true), LOOP_LIMITS)
    const whole = countSubmissions(writesOf(rows, false), LOOP_LIMITS)
    expect(issued).toBe(1365)
    expect(whole).toBeLessThanOrEqual(parted)
    expect(parted).toBeLessThanOrEqual(0.7 * issued)
  })

  // Where every page is a segment of its own, 128 segments are 512 KiB: half of what one request may carry.
  test('makes at most 0.7 of its write requests even if every page is a segment', () => {
    const parted = countSubmissions(writesOf(rows, true), LOOP_LIMITS, PAGE)
    expect(parted).toBeLessThanOrEqual(0.7 * issued)
  })
})
