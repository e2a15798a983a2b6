// Recorded block traffic (traces/README.md), and how many writes are left of it: by this library's planner, by QEMU and by the
// kernel, which were given the same batches.

import fs from 'node:fs'
import { gunzipSync } from 'node:zlib'
import { planMerged } from '../dist/planner/merge.js'

const TRACES = new URL('./traces/', import.meta.url)

/** QEMU's own bounds on one write, its 1024 vectors among them. */
const QEMU_LIMITS = { maxBytes: 32 * 2 ** 20, maxSegments: 1024 }
/** A loop device takes 128 segments; beyond 1 MiB the kernel hands a request to a worker. */
const LOOP_LIMITS = { maxBytes: 2 ** 20, maxSegments: 128 }

/** @typedef {{ batch: number, op: string, offset: number, length: number }} Row */

/** @param {string} name @returns {Row[]} */
function read(name) {
  const [header, ...lines] = gunzipSync(fs.readFileSync(new URL(name, TRACES)))
    .toString()
    .trimEnd()
    .split('\n')
  const columns = header.split(',')
  const [batch, op, offset, length] = ['batch', 'op', 'offset', 'length'].map((column) => columns.indexOf(column))
  return lines.map((line) => {
    const fields = line.split(',')
    return {
      batch: Number(fields[batch]),
      op: fields[op],
      offset: Number(fields[offset]),
      length: Number(fields[length]),
    }
  })
}

/**
 * The writes of each batch that stand between two other operations: what may be planned together.
 * @param {Row[]} rows
 */
function groupsOf(rows) {
  /** @type {Row[][]} */
  const groups = []
  for (const [i, row] of rows.entries()) {
    if (row.op !== 'W') continue
    const before = rows[i - 1]
    if (before === undefined || before.batch !== row.batch || before.op !== 'W') groups.push([])
    groups.at(-1)?.push(row)
  }
  return groups
}

/** @param {Row[]} rows @param {{ maxBytes: number, maxSegments: number }} limits */
function submissionsOf(rows, limits) {
  let submissions = 0
  for (const group of groupsOf(rows)) {
    const offset = Float64Array.from(group, (row) => row.offset)
    const length = Float64Array.from(group, (row) => row.length)
    submissions += planMerged({ count: group.length, offset, length, fua: null }, limits).count
  }
  return submissions
}

/** @param {string} name */
const writesIn = (name) => read(name).filter(({ op }) => op === 'W').length

/**
 * @typedef {object} Comparison
 * @property {string} name of the trace
 * @property {number} requests writes before merging
 * @property {number} ours writes after it
 * @property {number} theirs
 */

/** @returns {Comparison[]} */
export function besideQemu() {
  return fs
    .readdirSync(TRACES)
    .filter((name) => name.endsWith('.merge-on.csv.gz'))
    .map((file) => {
      const name = file.replace('.csv.gz', '')
      const rows = read(file)
      return {
        name,
        requests: writesIn(file),
        ours: submissionsOf(rows, QEMU_LIMITS),
        theirs: writesIn(`${name}.qemu-submits.csv.gz`),
      }
    })
}

/** @returns {Comparison} */
export function besideKernel() {
  const name = 'host-loop-ext4-cp'
  const rows = read(`${name}.csv.gz`)
  return {
    name,
    requests: writesIn(`${name}.csv.gz`),
    ours: submissionsOf(rows, LOOP_LIMITS),
    theirs: writesIn(`${name}.kernel-issues.csv.gz`),
  }
}
