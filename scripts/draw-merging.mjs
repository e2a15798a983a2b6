// docs/merging.svg: what merging does to the traffic of a real guest. Above, one batch as it came and what became of it, by the
// planner itself; below, the writes of the whole recording that reached the kernel, by three replays that were just made.
//
//     node scripts/draw-merging.mjs

import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { readTrace } from '../dist/cli/trace.js'
import { plan } from '../dist/planner.js'

const at = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url))
const TRACE = at('bench/traces/ext4-cp-64k.merge-on.csv.gz')

const report = JSON.parse(
  execFileSync(process.execPath, [at('dist/cli/main.js'), 'replay', '--json', TRACE], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  }),
)
const { batches } = await readTrace(TRACE)

/** The batch to show: many writes that came out of order, few enough to be seen. */
const limits = { maxBytes: report.limits.maxBytes, maxSegments: report.limits.maxSegments }
const outOfOrder = (requests) =>
  requests.filter(({ offset }, index) => index > 0 && offset < requests[index - 1].offset).length
const candidates = batches
  .map((batch) => batch.filter(({ op }) => op === 'W'))
  .filter((batch) => batch.length >= 12 && batch.length <= 40)
  .map((batch) => ({ batch, runs: plan(batch, limits).submissions }))
  .filter(({ runs }) => runs.length >= 2 && runs.length <= 5)
const best = candidates.sort((a, b) => outOfOrder(b.batch) - outOfOrder(a.batch) || b.batch.length - a.batch.length)[0]

const WIDTH = 760
const LEFT = 20
const INNER = WIDTH - 2 * LEFT
const shapes = []
const text = (x, y, content, { size = 13, fill = '#24292f', anchor = 'start', weight = 'normal' } = {}) =>
  shapes.push(
    `<text x="${x}" y="${y}" font-size="${size}" fill="${fill}" text-anchor="${anchor}" font-weight="${weight}">${content}</text>`,
  )
const box = (x, y, width, height, fill, label) =>
  shapes.push(
    `<rect x="${x.toFixed(1)}" y="${y}" width="${Math.max(width, 1.5).toFixed(1)}" height="${height}" rx="2" fill="${fill}">${label ? `<title>${label}</title>` : ''}</rect>`,
  )

// Ranges that are far from each other are drawn near: a gap is a gap, whatever its length.
const GAP = 28
const runs = best.runs
const total = runs.reduce((sum, { length }) => sum + length, 0)
const scale = (INNER - GAP * (runs.length - 1)) / total
const starts = []
runs.reduce((x, { length }) => {
  starts.push(x)
  return x + length * scale + GAP
}, LEFT)
const placeOf = (offset) => {
  const index = runs.findIndex((run) => offset >= run.offset && offset < run.offset + run.length)
  return starts[index] + (offset - runs[index].offset) * scale
}
const colourOf = (index) => `hsl(${Math.round(205 + (110 * index) / best.batch.length)} 65% 52%)`
const kib = (bytes) => `${bytes / 1024} KiB`

text(LEFT, 28, `One batch of a guest that copies files: ${best.batch.length} writes in the order in which they came`, {
  weight: 'bold',
})
const ROW = 7
let y = 42
best.batch.forEach(({ offset, length }, index) => {
  box(
    placeOf(offset),
    y + index * ROW,
    length * scale,
    ROW - 2,
    colourOf(index),
    `write ${index + 1}: ${kib(length)} at ${offset}`,
  )
})
y += best.batch.length * ROW + 16
text(LEFT, y, 'offset on the disk, gaps shortened', { size: 11, fill: '#57606a' })
text(LEFT, y + 28, `What goes to the kernel: ${runs.length} writes`, { weight: 'bold' })
y += 40
for (const [index, run] of runs.entries()) {
  box(starts[index], y, run.length * scale, 24, '#1f6feb', `${kib(run.length)} at ${run.offset}`)
  const { length } = run.segments
  if (run.length * scale > 90)
    text(starts[index] + (run.length * scale) / 2, y + 16, `${kib(run.length)} of ${length}`, {
      size: 11,
      fill: '#fff',
      anchor: 'middle',
    })
}
y += 60
const counts = [
  ['as given', report.modes.off],
  ['sorted', report.modes.sort],
  ['merged', report.modes.full],
]
const { requests } = report.modes.full
text(
  LEFT,
  y,
  `The whole recording: ${requests.toLocaleString('en-US')} writes, and how many of them reach the kernel`,
  { weight: 'bold' },
)
y += 14
const most = Math.max(...counts.map(([, { submissions }]) => submissions))
for (const [name, { submissions }] of counts) {
  const width = (submissions / most) * (INNER - 150)
  text(LEFT, y + 15, name)
  box(LEFT + 70, y, width, 20, name === 'merged' ? '#1f6feb' : '#8c959f')
  text(LEFT + 78 + width, y + 15, submissions.toLocaleString('en-US'))
  y += 27
}
y += 4
text(
  LEFT,
  y + 8,
  `${report.trace.path.split('/').at(-1)}, runs of up to ${limits.maxBytes / 1024} KiB; every byte proved after each replay; long zeroings are cut`,
  { size: 11, fill: '#57606a' },
)

const height = y + 24
writeFileSync(
  at('docs/merging.svg'),
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" font-family="system-ui, sans-serif" role="img" aria-label="Merging at work">
<rect width="${WIDTH}" height="${height}" fill="#fff"/>
${shapes.join('\n')}
</svg>
`,
)
console.log(
  `${best.batch.length} writes of one batch in ${runs.length}; ${requests} of the whole in ${report.modes.full.submissions}`,
)
