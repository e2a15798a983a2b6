// The charts of a report: latency distribution, percentiles, latency and throughput over time, and the heat maps of a sweep.

import type { Histogram } from './histogram.ts'
import type { Sweep } from './job.ts'
import { DIRECTIONS, type Result } from './results.ts'
import { type Interval, percentileOf } from './series.ts'
import {
  area,
  chart,
  drawing,
  escapeMarkup,
  line,
  linearScale,
  logScale,
  PLOT,
  type Point,
  path,
  px,
  text,
} from './svg.ts'
import { cellOf } from './sweep.ts'
import { countWord, latencyWord, sizeWord } from './units.ts'

const X: readonly [number, number] = [PLOT.left, PLOT.right]
const Y: readonly [number, number] = [PLOT.bottom, PLOT.top]

/** A line of a chart and its place in the legend. */
export interface Line {
  name: string
  /** `a`, `b`, `c`: the colours of the style sheet. */
  colour: string
}

/** `10 us`, `200 ns`: the ticks of a latency axis. */
function latencyTick(ns: number): string {
  return latencyWord(ns).replace(/\.0+(?= )/, '')
}

/** `50k`, `1.5M`. */
function countTick(count: number): string {
  return countWord(count).replace(/\.(\d*?)0+(?!\d)/, (_, kept: string) => (kept === '' ? '' : `.${kept}`))
}

const BINS_PER_DECADE = 40

/** How often each latency came: both axes logarithmic, so that a tail of few shows beside a bulk of many. */
export function distributionChart(title: string, lines: readonly (Line & { latency: Histogram })[]): string {
  const known = lines.filter(({ latency }) => latency.count > 0)
  const low = Math.max(1, Math.min(...known.map(({ latency }) => latency.min)))
  const high = Math.max(low * 1.1, ...known.map(({ latency }) => latency.max))
  const counted = known.map(({ latency }) => logBins(latency))
  const most = Math.max(...counted.flatMap((bins) => [...bins.values()]))
  const x = logScale([low / 1.1, high * 1.1], X, latencyTick)
  const y = logScale([0.7, Math.max(10, most * 1.5)], Y, countTick)
  const under: string[] = []
  const parts: string[] = []
  for (const [index, { colour }] of known.entries()) {
    const steps = stepsOf(counted[index]!, x.at, y.at)
    if (index === 0) under.push(area(steps, `area ${colour}`))
    parts.push(path(steps, `line ${colour}`))
  }
  // The first one, which the others are parts of, lies on top.
  parts.reverse().unshift(...under)
  const total = known[0]!.latency
  const marks = [50, 99, 99.9].map((percent) => ({ percent, at: x.at(total.percentile(percent)) }))
  for (const [index, { percent, at }] of marks.entries()) {
    parts.push(line(at, PLOT.top, at, PLOT.bottom, 'mark'))
    // Marks beside each other have their names below each other.
    const crowded = index > 0 && at - marks[index - 1]!.at < 44
    parts.push(text(at + 4, PLOT.top + 12 + (crowded ? 14 * index : 0), `p${percent}`, 'note', 'start'))
  }
  return chart(title, x, y, { x: 'latency', y: 'requests (bins of 6 %)' }, parts)
}

/** Counts by the number of the bin, counted from 1 ns. */
function logBins(latency: Histogram): Map<number, number> {
  const bins = new Map<number, number>()
  for (const { value, count } of latency.bins()) {
    const bin = Math.floor(Math.log10(Math.max(1, value)) * BINS_PER_DECADE)
    bins.set(bin, (bins.get(bin) ?? 0) + count)
  }
  return bins
}

function stepsOf(bins: Map<number, number>, x: (value: number) => number, y: (value: number) => number): Point[] {
  const numbers = [...bins.keys()].sort((a, b) => a - b)
  const points: Point[] = []
  for (let bin = numbers[0]!; bin <= numbers.at(-1)!; bin++) {
    const top = y(bins.get(bin) ?? 0)
    const edges = [bin, bin + 1].map((each) =>
      Math.min(PLOT.right, Math.max(PLOT.left, x(10 ** (each / BINS_PER_DECADE)))),
    )
    points.push([edges[0]!, top], [edges[1]!, top])
  }
  return points
}

/** Latency by percentile, stretched towards 100 %: each step to the right is a tenth of what is left. */
export function percentileChart(title: string, lines: readonly (Line & { latency: Histogram })[]): string {
  const known = lines.filter(({ latency }) => latency.count > 0)
  const most = Math.max(...known.map(({ latency }) => latency.count))
  const nines = Math.max(2, Math.min(6, Math.log10(most)))
  const x = logScale(
    [1, 10 ** nines],
    X,
    (odds) => `${Number((100 - 100 / odds).toPrecision(Math.max(2, Math.round(Math.log10(odds)) + 1)))} %`,
  )
  const low = Math.max(1, Math.min(...known.map(({ latency }) => latency.min)))
  const high = Math.max(...known.map(({ latency }) => latency.max))
  const y = logScale([low / 1.1, high * 1.2], Y, latencyTick)
  const parts = known.map(({ colour, latency }) => {
    const points: Point[] = []
    let seen = 0
    for (const { value, count } of latency.bins()) {
      const odds = latency.count / (latency.count - seen)
      seen += count
      points.push([x.at(Math.min(odds, 10 ** nines)), y.at(value)])
      if (odds > 10 ** nines) break
    }
    return path(points, `line ${colour}`)
  })
  return chart(title, x, y, { x: 'requests that took no longer', y: 'latency' }, parts.reverse())
}

const LATENCY_LINES = [
  { name: 'p50', colour: 'a', of: (interval: Interval) => percentileOf(interval, 50) },
  { name: 'p99', colour: 'b', of: (interval: Interval) => percentileOf(interval, 99) },
  { name: 'max', colour: 'c', of: (interval: Interval) => interval.max },
] as const
export const LATENCY_LEGEND: readonly Line[] = LATENCY_LINES

/** Latency over time: median, 99th percentile and maximum of each interval. */
export function latencyChart(title: string, result: Result): string {
  const { interval_ms, intervals } = wholeIntervals(result)
  const values = intervals.map((interval) => LATENCY_LINES.map(({ of }) => of(interval)))
  const known = values.flat().filter((value) => value > 0)
  const y = logScale([Math.min(...known, 1e9) / 1.2, Math.max(...known, 1) * 1.2], Y, latencyTick)
  const x = timeScale(result)
  const parts = LATENCY_LINES.map(({ colour }, index) =>
    path(
      values.map((each, i) => (each[index] === 0 ? null : [x.at(((i + 0.5) * interval_ms) / 1e3), y.at(each[index]!)])),
      `line ${colour}`,
    ),
  )
  return chart(title, x, y, { x: 'seconds', y: 'latency' }, parts.reverse())
}

/** The directions that a load has, with their colours. */
export function directionLegend(result: Result): Line[] {
  return DIRECTIONS.filter((direction) => result[direction].requests > 0).map((direction) => ({
    name: direction,
    colour: direction === 'read' ? 'b' : 'a',
  }))
}

/** Requests a second over time. */
export function throughputChart(title: string, result: Result): string {
  const { interval_ms, intervals } = wholeIntervals(result)
  const lines = directionLegend(result).map(({ name, colour }) => ({
    colour,
    values: intervals.map((interval) => ((name === 'read' ? interval.reads : interval.writes) * 1e3) / interval_ms),
  }))
  const most = Math.max(1, ...lines.flatMap(({ values }) => values))
  const x = timeScale(result)
  const y = linearScale([0, most * 1.1], Y, countTick)
  const parts = lines.flatMap(({ colour, values }) => {
    const points = values.map((value, i): Point => [x.at(((i + 0.5) * interval_ms) / 1e3), y.at(value)])
    const line = path(points, `line ${colour}`)
    // Two areas would mix their colours.
    return lines.length > 1 ? [line] : [area(points, `area ${colour}`), line]
  })
  return chart(title, x, y, { x: 'seconds', y: 'requests per second' }, parts)
}

/** A last interval that is not whole would look like a slump. */
function wholeIntervals({ series, elapsed }: Result): { interval_ms: number; intervals: Interval[] } {
  const { interval_ms, intervals } = series.data
  const whole = Math.floor(elapsed / interval_ms)
  return { interval_ms, intervals: whole === 0 ? intervals : intervals.slice(0, whole) }
}

function timeScale({ elapsed }: Result): ReturnType<typeof linearScale> {
  return linearScale([0, Math.max(elapsed, 1) / 1e3], X, (value) => String(Number(value.toFixed(3))))
}

const ROW_PX = 44
const HEAD_PX = 12
const FOOT_PX = 52
/** From here on a cell is so dark, or on dark ground so bright, that its text must be the other way. */
const STRONG_HEAT = 0.72

/** Block size against depth: a cell per load, the darker the more. */
export function heatMap(
  title: string,
  results: readonly Result[],
  { depths, sizes }: Sweep,
  colour: string,
  of: (result: Result) => number,
  format: (value: number) => string,
): string {
  const cells = sizes.map((bs) => depths.map((depth) => cellOf(results, depth, bs)))
  const values = cells.flat().flatMap((cell) => (cell === undefined ? [] : [of(cell)]))
  const low = Math.log(Math.max(1e-9, Math.min(...values)))
  const span = Math.log(Math.max(1e-9, ...values)) - low
  const width = (PLOT.right - PLOT.left) / depths.length
  const parts: string[] = []
  for (const [row, bs] of sizes.entries()) {
    // The smallest at the bottom, as on an axis.
    const top = HEAD_PX + (sizes.length - 1 - row) * ROW_PX
    parts.push(text(PLOT.left - 8, top + ROW_PX / 2 + 4, sizeWord(bs), 'tick', 'end'))
    for (const [column, depth] of depths.entries()) {
      const cell = cells[row]![column]
      if (cell === undefined) continue
      const value = of(cell)
      const heat = span === 0 ? 0.5 : (Math.log(Math.max(1e-9, value)) - low) / span
      const left = PLOT.left + column * width
      const tip = `${sizeWord(bs)} at depth ${depth}: ${format(value)}`
      parts.push(
        `<g><title>${escapeMarkup(tip)}</title><rect x="${px(left + 1)}" y="${px(top + 1)}" width="${px(width - 2)}" height="${ROW_PX - 2}" rx="3" class="heat ${colour}" fill-opacity="${(0.08 + 0.92 * heat).toFixed(3)}"/>`,
        `${text(left + width / 2, top + ROW_PX / 2 + 4, format(value), heat > STRONG_HEAT ? 'cell strong' : 'cell')}</g>`,
      )
    }
  }
  const bottom = HEAD_PX + sizes.length * ROW_PX
  for (const [column, depth] of depths.entries()) {
    parts.push(text(PLOT.left + (column + 0.5) * width, bottom + 18, String(depth), 'tick'))
  }
  const middle = (HEAD_PX + bottom) / 2
  parts.push(
    text((PLOT.left + PLOT.right) / 2, bottom + 42, 'requests in flight', 'label'),
    `<g transform="rotate(-90 14 ${middle})">${text(14, middle, 'block size', 'label')}</g>`,
  )
  return drawing(title, bottom + FOOT_PX, parts)
}
