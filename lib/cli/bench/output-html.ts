// A report with charts as one HTML file: nothing is loaded from elsewhere, there is no script, and it follows the reader's
// choice of light or dark.

import {
  directionLegend,
  distributionChart,
  heatMap,
  LATENCY_LEGEND,
  type Line,
  latencyChart,
  percentileChart,
  throughputChart,
} from './charts.ts'
import { type Comparison, contenderName } from './compare.ts'
import { PAGE_STYLE } from './html-style.ts'
import type { Sweep } from './job.ts'
import { bandwidthOf, DIRECTIONS, type Direction, iopsOf, type Result, totalOf } from './results.ts'
import { escapeMarkup } from './svg.ts'
import { binaryWord, countWord, latencyWord, sizeWord } from './units.ts'

export function formatHtml(results: readonly Result[], sweep: Sweep | null, comparison: Comparison | null): string {
  const first = results[0]!
  const { job } = first
  const what = sweep === null ? `${job.rw} ${sizeWord(job.bs)}, depth ${job.iodepth}` : `${job.rw}, sweep`
  const title = `${what} on ${job.filename}`
  const parts = [
    `<header><h1>${escapeMarkup(what)} <small>on ${escapeMarkup(job.filename)}</small></h1>`,
    `<p class="conditions">${conditions(results.at(-1)!, sweep === null)}</p></header>`,
  ]
  if (sweep !== null) parts.push(...sweepParts(results, sweep))
  else parts.push(...loadParts(first))
  if (comparison !== null) parts.push(comparisonPart(comparison))
  parts.push(footer(first))
  return page(title, parts)
}

function page(title: string, parts: readonly string[]): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeMarkup(title)}</title>
<style>${PAGE_STYLE}</style>
</head>
<body>
<main>
${parts.join('\n')}
</main>
</body>
</html>
`
}

function conditions({ job, setting, started, elapsed }: Result, single: boolean): string {
  const words = [
    new Date(started).toISOString().replace('T', ' ').replace(/\..*/, ' UTC'),
    `${binaryWord(setting.size)} of a ${setting.blockDevice ? 'block device' : 'file'}`,
    setting.direct ? 'direct' : 'through the page cache',
    setting.engine.name,
    `merge ${job.merge}`,
    `batch ${job.batch}`,
    ...(job.numjobs > 1 ? [`${job.numjobs} jobs`] : []),
    ...(job.rateIops === null
      ? []
      : [`${countWord(job.rateIops)} requests/s and job, measured from the intended start`]),
    ...(job.fdatasync === 0 ? [] : [`a flush after every ${job.fdatasync} writes`]),
    ...(single ? [`${(elapsed / 1e3).toFixed(2)} s measured`] : []),
    ...(job.ramp === 0 ? [] : [`after ${job.ramp / 1e3} s of ramp`]),
  ]
  return words.map(escapeMarkup).join(' &middot; ')
}

function loadParts(result: Result): string[] {
  const { read, write, elapsed } = result
  const parts = [notices(result), tiles(result)]
  const charts: string[] = []
  for (const direction of DIRECTIONS) {
    const { slat, clat, lat, requests } = result[direction]
    if (requests === 0) continue
    const name = read.requests > 0 && write.requests > 0 ? ` of ${direction}s` : ''
    const lines = [
      { name: 'lat (total)', colour: 'a', latency: lat },
      { name: 'clat (completion)', colour: 'b', latency: clat },
      { name: 'slat (submission)', colour: 'c', latency: slat },
    ]
    charts.push(
      figure(`Latency distribution${name}`, lines, distributionChart(`latency distribution${name}`, lines)),
      figure(`Latency by percentile${name}`, lines, percentileChart(`latency by percentile${name}`, lines)),
    )
  }
  charts.push(
    figure('Latency over time', LATENCY_LEGEND, latencyChart('latency over time', result)),
    figure('Throughput over time', directionLegend(result), throughputChart('throughput over time', result)),
  )
  parts.push(`<div class="charts">${charts.join('\n')}</div>`)
  for (const direction of DIRECTIONS) {
    if (result[direction].requests > 0) parts.push(latencyTable(result, direction))
  }
  return elapsed === 0 ? parts.slice(0, 1) : parts
}

/** What a reader must know before the figures. */
function notices({ failed, interrupted, unstarted, verified }: Result): string {
  const lines = [
    ...(failed === null ? [] : [`Ended by an error: ${failed.message}`]),
    ...(interrupted ? ['Ended early, by a signal.'] : []),
    ...(unstarted === 0
      ? []
      : [
          `${countWord(unstarted)} requests were due and never started: the target can't keep this rate at this depth.`,
        ]),
    ...(verified?.mismatch ? [`The content is wrong from offset ${verified.mismatch.offset} on.`] : []),
  ]
  return lines.map((each) => `<p class="notice">${escapeMarkup(each)}</p>`).join('\n')
}

function tiles(result: Result): string {
  const total = totalOf(result)
  const { elapsed, spent, submissions } = result
  const cpu = (spent.user_us + spent.system_us) / Math.max(1, total.requests)
  const made = submissions === null ? 0 : submissions.readSubmissions + submissions.writeSubmissions
  const shown: [string, string, string][] = [
    ['IOPS', countWord(iopsOf(total, elapsed)), `${countWord(total.requests)} requests`],
    ['Bandwidth', `${binaryWord(bandwidthOf(total, elapsed))}/s`, binaryWord(total.bytes)],
    ['p50', latencyWord(total.lat.percentile(50)), 'total latency'],
    ['p99', latencyWord(total.lat.percentile(99)), 'total latency'],
    ['p99.9', latencyWord(total.lat.percentile(99.9)), `max ${latencyWord(total.lat.max)}`],
    ['CPU', `${cpu.toFixed(2)} us`, 'per request, user + system'],
    ...(made === 0
      ? []
      : ([['Merged', `${(total.requests / made).toFixed(2)}`, `requests per submission`]] as [
          string,
          string,
          string,
        ][])),
  ]
  const tile = ([name, value, note]: [string, string, string]): string =>
    `<div class="tile"><span>${escapeMarkup(name)}</span><b>${escapeMarkup(value)}</b><small>${escapeMarkup(note)}</small></div>`
  return `<section class="tiles">${shown.map(tile).join('')}</section>`
}

function figure(title: string, lines: readonly Line[], drawing: string): string {
  const legend = lines.map(({ name, colour }) => `<span><i class="${colour}"></i>${escapeMarkup(name)}</span>`).join('')
  const caption = lines.length > 1 ? `<span class="legend">${legend}</span>` : ''
  return `<figure><figcaption><b>${escapeMarkup(title)}</b>${caption}</figcaption>${drawing}</figure>`
}

const TABLE_PERCENTILES = [1, 10, 50, 90, 99, 99.9, 99.99]

function latencyTable(result: Result, direction: Direction): string {
  const rows = (['slat', 'clat', 'lat'] as const).map((name) => {
    const latency = result[direction][name]
    const cells = [
      latency.min,
      latency.mean,
      ...TABLE_PERCENTILES.map((percent) => latency.percentile(percent)),
      latency.max,
    ]
    return [name, ...cells.map(latencyWord)]
  })
  return table(`Latency of ${direction}s`, ['', 'min', 'mean', ...TABLE_PERCENTILES.map((p) => `p${p}`), 'max'], rows)
}

function sweepParts(results: readonly Result[], sweep: Sweep): string[] {
  const maps: [string, string, (result: Result) => number, (value: number) => string][] = [
    ['Latency, median', 'b', (result) => totalOf(result).lat.percentile(50), latencyWord],
    ['Latency, 99th percentile', 'b', (result) => totalOf(result).lat.percentile(99), latencyWord],
    ['Throughput, requests per second', 'a', (result) => iopsOf(totalOf(result), result.elapsed), countWord],
    [
      'Throughput, bytes per second',
      'a',
      (result) => bandwidthOf(totalOf(result), result.elapsed),
      (value) => `${binaryWord(value)}/s`,
    ],
  ]
  const figures = maps.map(([title, colour, of, format]) =>
    figure(title, [], heatMap(title, results, sweep, colour, of, format)),
  )
  const failed = results.find((result) => result.failed !== null)
  return [failed === undefined ? '' : notices(failed), `<div class="charts">${figures.join('\n')}</div>`]
}

function comparisonPart({ contenders, missing }: Comparison): string {
  const rows = contenders.map(({ name, spread, ratio }) => [
    contenderName(name),
    countWord(spread.iops.median),
    `${countWord(spread.iops.min)} to ${countWord(spread.iops.max)}`,
    `${binaryWord(spread.bytesPerSecond.median)}/s`,
    latencyWord(spread.p50_ns.median),
    latencyWord(spread.p99_ns.median),
    `${(spread.user_us.median + spread.system_us.median).toFixed(2)} us`,
    ratio === null ? '' : `${ratio.iops.median.toFixed(2)}x`,
  ])
  const heads = ['', 'IOPS', 'spread', 'BW', 'p50', 'p99', 'CPU per request', 'multiwrite over it']
  const left = Object.entries(missing).map(
    ([peer, reason]) => `<p>${escapeMarkup(peer)} is left out: ${escapeMarkup(reason)}</p>`,
  )
  const rounds = contenders[0]!.rounds.length
  const title = rounds === 1 ? 'Comparison, one round' : `Comparison, medians of ${rounds} rounds`
  return `${table(title, heads, rows)}${left.join('')}`
}

function table(title: string, heads: readonly string[], rows: readonly (readonly string[])[]): string {
  const cells = (row: readonly string[], tag: string): string =>
    `<tr>${row.map((cell) => `<${tag}>${escapeMarkup(cell)}</${tag}>`).join('')}</tr>`
  const body = rows.map((row) => cells(row, 'td')).join('')
  return `<section><h2>${escapeMarkup(title)}</h2><div class="wide"><table><thead>${cells(heads, 'th')}</thead><tbody>${body}</tbody></table></div></section>`
}

function footer({ setting }: Result): string {
  return `<footer><p>slat is the time of the call that hands a request over; clat from its return to the request's own callback; lat
from the start, or with a fixed rate from the intended start, to the callback. The clock is CLOCK_MONOTONIC.</p>
<p>Engine ${escapeMarkup(setting.engine.name)}: ${escapeMarkup(setting.engine.reason)}. Node ${process.version}.</p></footer>`
}
