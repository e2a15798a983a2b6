// One line chart as SVG: a logarithmic or linear axis across, a linear one from zero up, a line per series. For the pages under
// docs/; text takes the colour of the page it stands in, so that it can be read on dark ones, too.

const WIDTH = 720
const HEIGHT = 320
const MARGIN = { left: 70, right: 20, top: 34, bottom: 46 }
const COLOURS = ['#3b7dd8', '#d8693b', '#3b9e5f', '#8a56c2']
const TICKS = 5

/** @param {string} text */
const escaped = (text) => text.replace(/&/g, '&amp;').replace(/</g, '&lt;')

/** @param {number} value The next of 1, 2, 2.5, 5 times a power of ten that is not below it. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value))
  return ([1, 2, 2.5, 5].find((step) => step * power >= value) ?? 10) * power
}

/**
 * @typedef {object} Chart
 * @property {string} title
 * @property {string} across what the axis shows
 * @property {string} up
 * @property {string[]} ticks of the axis across: one per point, evenly spaced, since points are chosen by factors
 * @property {{ name: string, values: number[] }[]} series one value per tick
 */

/** @param {Chart} chart @returns {string} */
export function plot({ title, across, up, ticks, series }) {
  const highest = roundUp(Math.max(...series.flatMap(({ values }) => values)))
  const [right, bottom] = [WIDTH - MARGIN.right, HEIGHT - MARGIN.bottom]
  /** @param {number} i */
  const x = (i) => MARGIN.left + (ticks.length === 1 ? 0 : (i * (right - MARGIN.left)) / (ticks.length - 1))
  /** @param {number} value */
  const y = (value) => bottom - (value / highest) * (bottom - MARGIN.top)
  /** @param {number} atX @param {number} atY @param {string} text @param {string} [more] */
  const label = (atX, atY, text, more = '') =>
    `<text x="${atX.toFixed(1)}" y="${atY.toFixed(1)}" ${more}>${escaped(text)}</text>`
  const parts = [label(MARGIN.left, 18, title, 'font-weight="bold"')]
  for (let i = 0; i <= TICKS; i++) {
    const value = (highest * i) / TICKS
    parts.push(
      `<path d="M${MARGIN.left} ${y(value).toFixed(1)}H${right}" stroke="#8886" fill="none"/>`,
      label(MARGIN.left - 8, y(value) + 4, String(Number(value.toPrecision(3))), 'text-anchor="end"'),
    )
  }
  for (const [i, tick] of ticks.entries()) parts.push(label(x(i), bottom + 18, tick, 'text-anchor="middle"'))
  parts.push(
    label((MARGIN.left + right) / 2, HEIGHT - 8, across, 'text-anchor="middle"'),
    label(-(MARGIN.top + bottom) / 2, 16, up, 'text-anchor="middle" transform="rotate(-90)"'),
  )
  for (const [n, { name, values }] of series.entries()) {
    const colour = COLOURS[n % COLOURS.length]
    const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`)
    parts.push(
      `<polyline points="${points.join(' ')}" fill="none" stroke="${colour}" stroke-width="2"/>`,
      ...points.map(
        (point) => `<circle cx="${point.split(',')[0]}" cy="${point.split(',')[1]}" r="3" fill="${colour}"/>`,
      ),
      label(right - 4, MARGIN.top + 4 + n * 16, name, `text-anchor="end" style="fill:${colour}"`),
    )
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">
<style>text { fill: #444 } @media (prefers-color-scheme: dark) { text { fill: #ccc } }</style>
${parts.join('\n')}
</svg>
`
}
