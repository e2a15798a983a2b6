// The benchmark suite: what a request costs here, beside Node's own calls and beside fio.
//
//     npm run bench                        several minutes
//     npm run bench -- --quick             under a minute
//     npm run bench -- --section random --contender 'write|fio' --rounds 5 --seconds 2
//     npm run bench -- --json results.json
//
// Loop devices need root; fio is used where it is installed. What can't be had is said and left out.

import fs from 'node:fs'
import os from 'node:os'
import { parseArgs } from 'node:util'
import { fioVersion } from './peers.mjs'
import { sections } from './suite.mjs'
import { Unavailable } from './targets.mjs'
import { REQUEST_BYTES } from './workload.mjs'

/** @typedef {import('./measure.mjs').Result} Result */
/** @typedef {import('./suite.mjs').Table} Table */

const HOW = { rounds: 7, seconds: 1 }
const QUICK = { rounds: 3, seconds: 0.1 }

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    json: { type: 'string' },
    section: { type: 'string', multiple: true },
    contender: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
})

if (values.help) {
  console.log(`node bench/run.mjs [options]

  --quick            short rounds and fewer contenders: under a minute
  --json FILE        also writes the results there, with a description of the machine
  --section NAME     only this one, may be repeated: ${sections.map(({ name }) => name).join(', ')}
  --contender REGEX  only those whose names match
  --rounds N         rounds that count (${HOW.rounds}; quick: ${QUICK.rounds})
  --seconds S        length of a round (${HOW.seconds}; quick: ${QUICK.seconds})`)
  process.exit(0)
}

/** @param {'rounds' | 'seconds'} name */
function positive(name) {
  const given = values[name]
  const value = given === undefined ? (values.quick ? QUICK : HOW)[name] : Number(given)
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
    threadPool: Number(process.env.UV_THREADPOOL_SIZE ?? 4),
    fio: fioVersion(),
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
    result.requestsPerSubmission === null ? '' : decimal(result.requestsPerSubmission.median),
    ...(latency ? [result.p50_us, result.p99_us].map((spread) => (spread === null ? '' : decimal(spread.median))) : []),
    ...peers.map((peer) => (result.ratio[peer] === undefined ? '' : decimal(result.ratio[peer].median))),
  ])
  const widths = header.map((name, column) => Math.max(name.length, ...rows.map((row) => row[column].length)))
  for (const row of [header, ...rows]) {
    console.log(`  ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ')}`)
  }
}

const machine = describeMachine()
const settings = {
  quick: values.quick,
  fio: machine.fio !== null,
  only: values.contender === undefined ? null : new RegExp(values.contender),
  rounds: positive('rounds'),
  duration_ms: positive('seconds') * 1000,
}
const wanted = values.section ?? sections.map(({ name }) => name)
for (const name of wanted) {
  if (!sections.some((section) => section.name === name)) throw new RangeError(`--section ${name} is not known`)
}

console.log(`${machine.kernel} ${machine.architecture}, ${machine.cores} x ${machine.processor}, node ${machine.node}, \
${machine.fio ?? 'no fio: its contenders are left out'}, load ${machine.load[0].toFixed(1)};
medians of ${settings.rounds} rounds of ${settings.duration_ms} ms, the contenders in turns; node:fs on ${machine.threadPool} threads; CPU time per request;
"merged": requests per submission; "x A": requests/s as a multiple of A's, the median over the rounds. Ratios within a table
can be compared; absolute figures mean little on a machine that does other things too, and none of this is a real disk.`)

/** @type {(Table & { section: string })[]} */
const tables = []
/** @type {{ section: string, reason: string }[]} */
const skipped = []
for (const { name, tables: tablesOf } of sections.filter(({ name }) => wanted.includes(name))) {
  try {
    for await (const table of tablesOf(settings)) {
      if (table.results.length === 0) continue
      print(table)
      tables.push({ section: name, ...table })
    }
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error
    console.log(`\n${name}: skipped, ${error.message}`)
    skipped.push({ section: name, reason: error.message })
  }
}

if (values.json !== undefined) {
  const { rounds, duration_ms, quick } = settings
  const report = { date: new Date().toISOString(), machine, settings: { rounds, duration_ms, quick }, tables, skipped }
  fs.writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`)
}
