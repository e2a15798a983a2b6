// What charts are made of: scales with their ticks, a frame with axes, lines and steps, as the text of an SVG. It knows nothing
// of latencies.
//
// Colours, fonts and strokes are the style sheet's, by class, so that a chart follows the page from light to dark.

/** Pixels of the drawing; the page scales it as a whole. */
export const WIDTH = 720
export const HEIGHT = 320
// A label of the last tick reaches beyond it.
const MARGIN = { left: 72, right: 34, top: 16, bottom: 48 }
/** The area of the values. */
export const PLOT: { left: number; right: number; top: number; bottom: number } = {
  left: MARGIN.left,
  right: WIDTH - MARGIN.right,
  top: MARGIN.top,
  bottom: HEIGHT - MARGIN.bottom,
}

export interface Tick {
  value: number
  /** Empty: a grid line only. */
  label: string
}

export interface Scale {
  /** Where a value lies, in pixels. */
  at(value: number): number
  ticks: Tick[]
}

type Range = readonly [from: number, to: number]

/** Pixels from one labelled tick to the next, at least: on a horizontal axis, and on a vertical one. */
const LABEL_PX = 56
const LABEL_HEIGHT_PX = 34

export function linearScale([from, to]: Range, [start, end]: Range, format: (value: number) => string): Scale {
  const span = to - from || 1
  const at = (value: number): number => start + ((value - from) / span) * (end - start)
  // Pixels grow downwards, so a vertical axis runs backwards.
  const room = Math.max(2, Math.min(8, Math.floor(Math.abs(end - start) / (end < start ? LABEL_HEIGHT_PX : LABEL_PX))))
  const step = niceStep(span / room)
  const ticks: Tick[] = []
  // Adding 0 makes 0 of -0.
  for (let i = Math.ceil(from / step - 1e-9) + 0; i * step <= to + step * 1e-9; i++) {
    ticks.push({ value: i * step, label: format(i * step) })
  }
  return { at, ticks }
}

/** The next of 1, 2, 5, 10, 20 ... */
function niceStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(least))
  return power * ([1, 2, 5].find((factor) => factor * power >= least * 0.9999) ?? 10)
}

/** Decades are labelled; with few of them on the axis, 2 and 5 as well. The other whole multiples have grid lines. */
export function logScale([from, to]: Range, [start, end]: Range, format: (value: number) => string): Scale {
  const low = Math.log10(from)
  const span = Math.log10(to) - low || 1
  const at = (value: number): number => start + ((Math.log10(Math.max(value, from)) - low) / span) * (end - start)
  const pixelsPerDecade = Math.abs(end - start) / span
  const labelled = pixelsPerDecade > 4 * LABEL_PX ? [1, 2, 5] : [1]
  const every = Math.max(1, Math.ceil(LABEL_PX / 2 / pixelsPerDecade))
  const ticks: Tick[] = []
  for (let decade = Math.floor(low); decade <= Math.ceil(low + span); decade++) {
    for (let factor = 1; factor < 10; factor++) {
      const value = factor * 10 ** decade
      if (value < from * 0.9999 || value > to * 1.0001) continue
      const shown = labelled.includes(factor) && decade % every === 0
      if (shown || pixelsPerDecade > LABEL_PX) ticks.push({ value, label: shown ? format(value) : '' })
    }
  }
  return { at, ticks }
}

export function escapeMarkup(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')
}

export function px(value: number): string {
  return Number(value.toFixed(1)).toString()
}

export function text(x: number, y: number, content: string, className: string, anchor = 'middle'): string {
  return `<text x="${px(x)}" y="${px(y)}" class="${className}" text-anchor="${anchor}">${escapeMarkup(content)}</text>`
}

export function line(x1: number, y1: number, x2: number, y2: number, className: string): string {
  return `<line x1="${px(x1)}" y1="${px(y1)}" x2="${px(x2)}" y2="${px(y2)}" class="${className}"/>`
}

/** A chart: the frame and what stands in it. */
export function chart(
  title: string,
  x: Scale,
  y: Scale,
  labels: { x: string; y: string },
  content: readonly string[],
): string {
  const parts: string[] = []
  for (const { value, label } of y.ticks) {
    const at = y.at(value)
    parts.push(line(PLOT.left, at, PLOT.right, at, label === '' ? 'grid minor' : 'grid'))
    if (label !== '') parts.push(text(PLOT.left - 8, at + 4, label, 'tick', 'end'))
  }
  for (const { value, label } of x.ticks) {
    const at = x.at(value)
    parts.push(line(at, PLOT.top, at, PLOT.bottom, label === '' ? 'grid minor' : 'grid'))
    if (label !== '') parts.push(text(at, PLOT.bottom + 18, label, 'tick'))
  }
  const middle = (PLOT.top + PLOT.bottom) / 2
  parts.push(
    ...content,
    line(PLOT.left, PLOT.bottom, PLOT.right, PLOT.bottom, 'axis'),
    text((PLOT.left + PLOT.right) / 2, HEIGHT - 8, labels.x, 'label'),
    `<g transform="rotate(-90 14 ${middle})">${text(14, middle, labels.y, 'label')}</g>`,
  )
  return drawing(title, HEIGHT, parts)
}

export function drawing(title: string, height: number, parts: readonly string[]): string {
  const head = `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escapeMarkup(title)}">`
  return `${head}\n${parts.join('\n')}\n</svg>`
}

export type Point = readonly [x: number, y: number]

/** Points nearer than this to the one before are left out: nobody sees them, and a report has thousands. */
const POINT_PX = 0.4

/** A line through points in pixels; `null` interrupts it. */
export function path(points: readonly (Point | null)[], className: string): string {
  let moves = ''
  let pen = false
  let last: Point = [Number.NEGATIVE_INFINITY, 0]
  for (const point of points) {
    if (point === null) {
      pen = false
      continue
    }
    if (pen && Math.abs(point[0] - last[0]) < POINT_PX && Math.abs(point[1] - last[1]) < POINT_PX) continue
    last = point
    moves += `${pen ? 'L' : 'M'}${px(point[0])} ${px(point[1])}`
    pen = true
  }
  return moves === '' ? '' : `<path d="${moves}" class="${className}"/>`
}

/** The area below a line, down to the axis. */
export function area(points: readonly Point[], className: string): string {
  const first = points[0]
  const last = points.at(-1)
  if (first === undefined || last === undefined) return ''
  const top = points.map(([x, y]) => `L${px(x)} ${px(y)}`).join('')
  return `<path d="M${px(first[0])} ${PLOT.bottom}${top}L${px(last[0])} ${PLOT.bottom}Z" class="${className}"/>`
}
