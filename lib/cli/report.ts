// What a replay says at its end: tables and sentences for people, or JSON; and numbers in words, for all commands.
//
// Only formatting lives here: nothing measures and nothing decides.

import { basename } from 'node:path'
import type { MergeMode } from '../index.ts'
import type { Difference } from './content.ts'
import type { Latency, ReplayResult } from './replay.ts'
import type { Trace } from './trace.ts'

/** A finished replay, in each mode that was asked for, every byte having been compared. */
export interface Report {
  trace: Trace
  target: {
    path: string
    kind: 'temporary file' | 'new file' | 'existing file' | 'block device'
    /** In bytes. */
    size: number
    direct: boolean
  }
  engine: { name: string; reason: string }
  limits: { maxBytes: number; maxSegments: number }
  /** What QEMU made of the writes of the same batches, as a trace of its own; `null` if nobody recorded it. */
  qemu: Trace | null
  modes: Partial<Record<MergeMode, ReplayResult>>
}

const MIB = 1024 * 1024

/** `1,234,567`. By hand: to make an `Intl.NumberFormat` takes longer than all else that a command does before it begins. */
export function formatCount(count: number): string {
  return Math.round(count)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, ',')
}

/** `2 GiB`, `64 KiB`, `1,000 bytes`: the largest unit that needs no more than one decimal. */
export function formatBytes(bytes: number): string {
  for (const [unit, size] of [
    ['TiB', 1024 ** 4],
    ['GiB', 1024 ** 3],
    ['MiB', MIB],
    ['KiB', 1024],
  ] as const) {
    if (bytes >= size && (unit !== 'TiB' || bytes % size === 0)) {
      const value = bytes / size
      return `${Number.isInteger(value) ? formatCount(value) : value.toFixed(1)} ${unit}`
    }
  }
  return `${formatCount(bytes)} ${bytes === 1 ? 'byte' : 'bytes'}`
}

/** Three digits that matter, in the unit that suits. */
export function formatDuration(ns: number): string {
  for (const [unit, size] of [
    ['s', 1e9],
    ['ms', 1e6],
    ['us', 1e3],
  ] as const) {
    if (ns >= size) {
      const value = ns / size
      return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ${unit}`
    }
  }
  return `${ns} ns`
}

/** Columns two spaces apart, the first to the left, the others to the right. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const widths: number[] = []
  for (const row of rows) {
    row.forEach((cell, column) => {
      widths[column] = Math.max(widths[column] ?? 0, cell.length)
    })
  }
  const line = (row: readonly string[]): string =>
    row.map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!))).join('  ')
  return rows.map((row) => line(row).trimEnd()).join('\n')
}

/** Lines for a terminal of 80 columns. */
const COLUMNS = 79
const LABEL_COLUMNS = 10

/** Text in lines that fit a terminal, each behind `indent`; words longer than a line stay whole. */
export function wrap(text: string, indent = ''): string {
  const lines: string[] = []
  let line = indent
  for (const word of text.split(' ')) {
    const longer = line === indent ? line + word : `${line} ${word}`
    if (longer.length <= COLUMNS || line === indent) line = longer
    else {
      lines.push(line)
      line = indent + word
    }
  }
  return [...lines, line].join('\n')
}

/** A name and what there is to say of it. */
export function formatField(label: string, text: string): string {
  return label.padEnd(LABEL_COLUMNS) + wrap(text, ' '.repeat(LABEL_COLUMNS)).slice(LABEL_COLUMNS)
}

const MODE_NAMES: Record<MergeMode, string> = { full: 'merged', sort: 'sorted', off: 'as given' }

/** Everything there is to say, for people. */
export function formatReport({ trace, target, engine, limits, qemu, modes }: Report): string {
  const removed = target.kind === 'temporary file' ? ', removed afterwards' : ''
  const qemuSays = qemu === null ? '' : `${compareWithQemu(trace, qemu, limits.maxBytes).join(' ')} `
  const reads = trace.counts.R > 0 ? ' Its reads saw what had been written before.' : ''
  return [
    formatField('trace', `${basename(trace.path)}: ${formatTrace(trace)}`),
    formatField('target', `${target.path}: ${withArticle(target.kind)} of ${formatBytes(target.size)}${removed}`),
    formatField('engine', `${engine.name}: ${engine.reason}`),
    formatField('direct', target.direct ? 'yes, O_DIRECT' : 'no, through the page cache'),
    formatField(
      'merging',
      `runs of up to ${formatBytes(limits.maxBytes)} and ${formatCount(limits.maxSegments)} segments`,
    ),
    '',
    formatModes(modes, qemu),
    '',
    wrap(
      `${qemuSays}Latency is from the call to a request's own callback; the clock stops after a last flush. ` +
        'One replay went before these and is not counted.',
    ),
    '',
    wrap(
      `Every byte is right: after each replay all ${formatCount(target.size)} bytes were read back, by the operating ` +
        "system's own calls and through the page cache, and are what the trace leaves if its requests are carried out " +
        `one after another.${reads}`,
    ),
  ].join('\n')
}

/** The same for programs; times of single requests in nanoseconds. */
export function reportAsJson({ trace, target, qemu, ...rest }: Report): string {
  const { path, batches, counts, bytes } = trace
  const described = { path, batches: batches.length, counts, bytes }
  const qemuSubmissions = qemu?.counts.W ?? null
  return JSON.stringify({ trace: described, target, ...rest, qemuSubmissions, verifiedBytes: target.size }, null, 2)
}

/** Why the two counts are not quite of the same thing. */
function compareWithQemu(trace: Trace, qemu: Trace, maxBytes: number): string[] {
  const longer = qemu.batches.flat().filter(({ op, length }) => op === 'W' && length > maxBytes).length
  const lines = [`QEMU's count is for the ${plural(trace.counts.W, 'write')}.`]
  if (longer > 0)
    lines.push(`${formatCount(longer)} of its runs are longer than ${formatBytes(maxBytes)}, at which a run ends here.`)
  if (trace.counts.Z > 0) {
    const zeroRuns = trace.batches
      .flat()
      .reduce((runs, { op, length }) => runs + (op === 'Z' ? Math.ceil(length / maxBytes) : 0), 0)
    lines.push(
      `It passed the ${plural(trace.counts.Z, 'zeroing')} on as such; here they are ${formatBytes(trace.bytes.Z)} of written zeros,`,
      `in about ${plural(zeroRuns, 'submission')}.`,
    )
  }
  return lines
}

export function withArticle(noun: string): string {
  return `${/^[aeiou]/.test(noun) ? 'an' : 'a'} ${noun}`
}

function formatModes(modes: Report['modes'], qemu: Trace | null): string {
  const rows: string[][] = [['', 'requests', 'submissions', 'QEMU', 'req/s', 'MiB/s', 'p50', 'p99', 'p99.9']]
  for (const [mode, result] of Object.entries(modes) as [MergeMode, ReplayResult][]) {
    rows.push([
      MODE_NAMES[mode],
      formatCount(result.requests),
      formatCount(result.submissions),
      mode === 'full' && qemu !== null ? formatCount(qemu.counts.W) : '-',
      formatCount(result.requestsPerSecond),
      formatCount(result.bytesPerSecond / MIB),
      ...formatLatency(result.latency),
    ])
  }
  return formatTable(rows)
}

function formatLatency({ p50, p99, p999 }: Latency): string[] {
  return [p50, p99, p999].map(formatDuration)
}

/** The requests of a trace in words. */
function formatTrace({ counts, batches }: Trace): string {
  const flushes = counts.F === 1 ? '1 flush' : `${formatCount(counts.F)} flushes`
  const kinds = [
    plural(counts.W, 'write'),
    counts.Z > 0 ? plural(counts.Z, 'zeroing') : '',
    counts.R > 0 ? plural(counts.R, 'read') : '',
    counts.F > 0 ? flushes : '',
  ].filter((kind) => kind !== '')
  const discards = counts.D === 0 ? '' : ` (${plural(counts.D, 'discard')} left out)`
  return `${kinds.join(', ')} in ${batches.length === 1 ? '1 batch' : `${formatCount(batches.length)} batches`}${discards}`
}

function plural(count: number, word: string): string {
  return `${formatCount(count)} ${word}${count === 1 ? '' : 's'}`
}

/**
 * What a difference means.
 *
 * @param linesPerReplay positions grow by this much from one replay to the next.
 */
export function formatDifference(difference: Difference, linesPerReplay: number): string {
  const { offset, length, position, expected, found } = difference
  if (expected === null) {
    return `first wrong offset ${offset}: the ${length} bytes from there changed, and nothing was written to them`
  }
  const who =
    position > 0
      ? `line ${position % linesPerReplay} of the trace wrote ${hex(expected)}`
      : position === 0
        ? `nothing was written and ${hex(expected)} should be`
        : `zeros were written last`
  return `first wrong offset ${offset}: found ${hex(found)} where ${who}`
}

const hex = (byte: number): string => `0x${byte.toString(16).padStart(2, '0')}`
