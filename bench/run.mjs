// The benchmark suite: what a request costs here, beside Node's own calls and beside fio; and whether the goals are met.
//
//     npm run bench                        all of it: some nine minutes
//     npm run bench -- --quick             about a minute, without the goals
//     npm run bench -- --section goals     all goals; --section p5: one of them
//     npm run bench -- --section random --contender 'write|fio' --rounds 5 --seconds 2
//     npm run bench -- --json results.json
//     npm run bench -- --may-sleep         does not keep the processors awake: see awake.mjs
//
// Loop devices need root; fio is used where it is installed. What can't be had is said and left out.

import fs from 'node:fs'
import os from 'node:os'
import { parseArgs } from 'node:util'
import { keepAwake } from './awake.mjs'
import { costSections } from './costs.mjs'
import { goals } from './goals.mjs'
import { roundsSoFar } from './measure.mjs'
import { fioVersion } from './peers.mjs'
import { qemuVersion } from './qemu.mjs'
import { sections } from './suite.mjs'
import { Unavailable } from './targets.mjs'
import { REQUEST_BYTES } from './workload.mjs'

/** @typedef {import('./measure.mjs').Result} Result */
/** @typedef {import('./suite.mjs').Table} Table */

const HOW = { rounds: 5, seconds: 0.15 }
const QUICK = { rounds: 3, seconds: 0.1 }
/** A goal asks for at least five rounds. Many short ones stand closer to each other than few long ones. */
const GOAL = { rounds: 9, seconds: 0.25 }
const GOALS = 'goals'

const names = [GOALS, ...goals.map(({ name }) => name), ...[...sections, ...costSections].map(({ name }) => name)]

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    json: { type: 'string' },
    section: { type: 'string', multiple: true },
    contender: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    'may-sleep': { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})

if (values.help) {
  console.log(`node bench/run.mjs [options]

  --quick            short rounds, fewer contenders, no goals: about a minute
  --json FILE        also writes the results there, with a description of the machine
  --section NAME     only this one, may be repeated: ${names.join(', ')}
  --contender REGEX  only those whose names match
  --rounds N         rounds that count (${HOW.rounds}; quick: ${QUICK.rounds}; goals: ${GOAL.rounds})
  --seconds S        length of a round (${HOW.seconds}; quick: ${QUICK.seconds}; goals: ${GOAL.seconds})
  --may-sleep        does not keep the processors awake while it measures`)
  process.exit(0)
}

/** @param {'rounds' | 'seconds'} name @param {typeof HOW} otherwise */
function positive(name, otherwise) {
  const given = values[name]
  const value = given === undefined ? otherwise[name] : Number(given)
  if (!(value > 0 && Number.isFinite(value)) || (name === 'rounds' && !Number.isInteger(value))) {
    throw new RangeError(`--${name} must be a positive number, not ${given}`)
  }
  return value
}

function describeMachine() {
  const cpus = os.cpus()
  return {
    kernel: `${os.type()} ${os.release()}`,
    architecture: os.arch(),
    processor: cpus[0]?.model.trim() ?? 'unknown',
    cores: cpus.length,
    memory_bytes: os.totalmem(),
    load: os.loadavg(),
    node: process.version,
    processors: values['may-sleep'] ? 'may sleep' : keepAwake(),
    threadPool: Number(process.env.UV_THREADPOOL_SIZE ?? 4),
    fio: fioVersion(),
    qemu: qemuVersion(),
  }
}

/** @param {number} value */
const count = (value) => Math.round(value).toLocaleString('en-US')
/** @param {number} value */
const decimal = (value) => (value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0))

/** @param {Table} table */
function print({ title, latency, results }) {
  console.log(`\n${title}\n`)
  const peers = [...new Set(results.flatMap(({ ratio }) => Object.keys(ratio)))]
  const letters = new Map(peers.map((peer, i) => [peer, String.fromCharCode(65 + i)]))
  const header = [
    '',
    'requests/s',
    'min',
    'max',
    'MiB/s',
    'user us',
    'system us',
    'gc us',
    'merged',
    ...(latency ? ['p50 us', 'p99 us'] : []),
    ...peers.map((peer) => `x ${letters.get(peer)}`),
  ]
  const rows = results.map((result) => [
    (letters.has(result.name) ? `${letters.get(result.name)} = ` : '') + result.name,
    count(result.perSecond.median),
    count(result.perSecond.min),
    count(result.perSecond.max),
    count((result.perSecond.median * REQUEST_BYTES) / 2 ** 20),
    decimal(result.userPerRequest_us.median),
    decimal(result.systemPerRequest_us.median),
    result.collectionPerRequest_us === null ? '' : result.collectionPerRequest_us.median.toFixed(3),
    result.requestsPerSubmission === null ? '' : decimal(result.requestsPerSubmission.median),
    ...(latency ? [result.p50_us, result.p99_us].map((spread) => (spread === null ? '' : decimal(spread.median))) : []),
    ...peers.map((peer) => (result.ratio[peer] === undefined ? '' : decimal(result.ratio[peer].median))),
  ])
  printRows([header, ...rows])
}

/** @param {string[][]} rows the first of them the header */
function printRows(rows) {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)))
  for (const row of rows) {
    console.log(`  ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ')}`)
  }
}

/** @param {import('./costs.mjs').CostTable} table */
function printCosts({ title, costs }) {
  console.log(`\n${title}\n`)
  const columns = [...new Set(costs.flatMap(({ figures }) => Object.keys(figures)))]
  /** @param {number | null | undefined} value */
  const cell = (value) =>
    value === undefined ? '' : value === null ? '?' : value < 100 ? value.toFixed(3) : count(value)
  printRows([
    ['', ...columns],
    ...costs.map(({ name, figures }) => [name, ...columns.map((key) => cell(figures[key]))]),
  ])
}

/** @param {import('./goals.mjs').Figure} figure */
function isMet({ spread, is, bound, met }) {
  if (met !== undefined) return met
  if (is === '~') return Math.abs(spread.median - 1) <= bound
  return is === '>=' ? spread.median >= bound : spread.median <= bound
}

/** @param {string} name of the goal @param {import('./goals.mjs').Figure} figure */
function printFigure(name, figure) {
  const { measure, spread, is, bound, note = '' } = figure
  const range = spread.min === spread.max ? '' : `(${decimal(spread.min)}-${decimal(spread.max)})`
  const cells = [
    name.toUpperCase().padEnd(3),
    isMet(figure) ? 'met   ' : 'MISSED',
    decimal(spread.median).padStart(6),
    range.padEnd(13),
    `${is} ${bound}`.padEnd(7),
    measure.padEnd(66),
    note,
  ]
  console.log(`  ${cells.join('  ')}`.trimEnd())
}

const machine = describeMachine()
const { quick } = values
/** @param {typeof HOW} otherwise */
const settingsFor = (otherwise) => ({
  quick,
  fio: machine.fio !== null,
  qemu: machine.qemu !== null,
  only: values.contender === undefined ? null : new RegExp(values.contender),
  rounds: positive('rounds', otherwise),
  duration_ms: positive('seconds', otherwise) * 1000,
})
const settings = settingsFor(quick ? QUICK : HOW)
const goalSettings = settingsFor(GOAL)
const wanted = new Set(values.section ?? (quick ? sections.map(({ name }) => name) : names))
for (const name of wanted) {
  if (!names.includes(name)) throw new RangeError(`--section ${name} is not known; there are ${names.join(', ')}`)
}
if (wanted.has(GOALS)) for (const { name } of goals) wanted.add(name)

console.log(`${machine.kernel} ${machine.architecture}, ${machine.cores} x ${machine.processor}, node ${machine.node}, \
${machine.fio ?? 'no fio: its contenders are left out'}, load ${machine.load[0].toFixed(1)}; processors ${machine.processors};
medians of rounds, the contenders in turns; node:fs on ${machine.threadPool} threads; fio's CPU time is without io_uring's workers. Ratios within a table can be compared;
absolute figures mean little on a machine that does other things too, and none of this is a real disk.`)

/** @type {{ section: string, reason: string }[]} */
const skipped = []

/**
 * What a section yields; nothing more once it turns out that its target or peer can't be had.
 * @template T
 * @param {string} section
 * @param {AsyncGenerator<T>} yielded
 * @returns {AsyncGenerator<T>}
 */
async function* had(section, yielded) {
  try {
    yield* yielded
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error
    console.log(`\n${section}: skipped, ${error.message}`)
    skipped.push({ section, reason: error.message })
  }
}

/** @type {(import('./goals.mjs').Figure & { goal: string, title: string, met: boolean })[]} */
const figures = []
const wantedGoals = goals.filter(({ name }) => wanted.has(name))
if (wantedGoals.length > 0) {
  console.log(
    `\ngoals; ${goalSettings.rounds} rounds of ${goalSettings.duration_ms} ms; the last column: ours | the peer's\n`,
  )
}
for (const { name, title, figures: figuresOf } of wantedGoals) {
  console.log(`  ${name.toUpperCase().padEnd(3)}  ${title}`)
  for await (const figure of had(name, figuresOf(goalSettings))) {
    printFigure(name, figure)
    figures.push({ goal: name, title, ...figure, met: isMet(figure) })
  }
}

/** @type {(Table & { section: string })[]} */
const tables = []
const wantedSections = sections.filter(({ name }) => wanted.has(name))
if (wantedSections.length > 0) {
  console.log(`
tables; ${settings.rounds} rounds of ${settings.duration_ms} ms; CPU time per request; "gc": its garbage collection; "merged": requests per submission; "x A": requests/s as
a multiple of A's, the median over the rounds`)
}
for (const { name, tables: tablesOf } of wantedSections) {
  for await (const table of had(name, tablesOf(settings))) {
    if (table.results.length === 0) continue
    print(table)
    if (table.costs !== undefined) printCosts(table.costs)
    tables.push({ section: name, ...table })
  }
}

/** @type {(import('./costs.mjs').CostTable & { section: string })[]} */
const costs = []
for (const { name, tables: tablesOf } of costSections.filter(({ name }) => wanted.has(name))) {
  for await (const table of had(name, tablesOf(settings))) {
    printCosts(table)
    costs.push({ section: name, ...table })
  }
}

const { measured, dropped } = roundsSoFar
if (dropped > 0) console.log(`\n${dropped} of ${measured} rounds do not count: other programs took part in them`)

if (values.json !== undefined) {
  const { rounds, duration_ms } = settings
  const report = {
    date: new Date().toISOString(),
    machine,
    settings: { rounds, duration_ms, quick },
    rounds: roundsSoFar,
    goals: figures,
    tables,
    costs,
    skipped,
  }
  fs.writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`)
}
