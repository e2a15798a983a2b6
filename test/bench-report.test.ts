// The report with charts: that it stands alone, and that a real browser shows what it should, light and dark.

import fs from 'node:fs'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { evaluate, noBrowser, screenshot } from './support/browser.ts'
import { cli } from './support/cli.ts'
import { type Picture, readPng } from './support/png.ts'
import { temporaryDirectory } from './support/targets.ts'

let directory: { path: string; cleanup(): void }
let single: string
let sweep: string

beforeAll(async () => {
  directory = temporaryDirectory()
  const words = [`--filename=${path.join(directory.path, 'disk')}`, '--size=4M', '--rw=randrw']
  single = path.join(directory.path, 'single.html')
  sweep = path.join(directory.path, 'sweep.html')
  const compared = ['--iodepth=8', '--runtime=0.6', '--ramp=0', '--compare=fs', '--rounds=1']
  expect(await cli(['bench', ...words, ...compared, `--html=${single}`])).toMatchObject({ status: 0 })
  const swept = ['--sweep=1,2,4,8,16,32,64,128x4k,16k,64k,256k', '--runtime=0.02', '--ramp=0']
  expect(await cli(['bench', ...words, ...swept, `--html=${sweep}`])).toMatchObject({ status: 0 })
})
afterAll(() => directory.cleanup())

test('a report loads nothing and runs nothing', () => {
  for (const file of [single, sweep]) {
    const html = fs.readFileSync(file, 'utf8')
    expect(html).not.toMatch(/<script|<link|<img|<iframe|@import|url\(|https?:|\bsrc=|\bhref=/i)
    expect(html.length).toBeLessThan(300_000)
  }
})

test('a report has its charts and tables', () => {
  const html = fs.readFileSync(single, 'utf8')
  for (const title of [
    'Latency distribution of reads',
    'Latency distribution of writes',
    'Latency by percentile of reads',
  ]) {
    expect(html).toContain(`<b>${title}</b>`)
  }
  for (const title of ['Latency over time', 'Throughput over time']) expect(html).toContain(`<b>${title}</b>`)
  expect(html).toContain('Comparison, one round')
  expect(html).not.toMatch(/NaN|Infinity|undefined/)
})

test('a sweep has a cell for each depth and size in each of its heat maps', () => {
  const html = fs.readFileSync(sweep, 'utf8')
  expect(html.match(/<title>4k at depth 8: /g)).toHaveLength(4)
  expect(html.match(/class="heat /g)).toHaveLength(4 * 8 * 4)
  expect(html).not.toMatch(/NaN|Infinity|undefined/)
})

describe.skipIf(noBrowser !== '')(`in a browser ${noBrowser}`, () => {
  /** Pixels of a colour, to the unit: what is drawn with it without being mixed with what lies below. */
  const pixels = (picture: Picture, colour: string): number => picture.colours.get(colour) ?? 0

  test('is drawn in its colours, light and dark', () => {
    for (const [dark, ground, card, a, b, c] of [
      [false, '#f6f6f3', '#ffffff', '#2a78d6', '#d9601f', '#1a9a6c'],
      [true, '#121211', '#1c1c1a', '#4b93ea', '#ee7b3c', '#2bb583'],
    ] as const) {
      const picture = readPng(screenshot(single, { width: 1280, height: 1600, dark }))
      expect(picture.width).toBe(1280)
      expect(picture.colourAt(3, 3)).toBe(ground)
      expect(pixels(picture, card)).toBeGreaterThan(300_000)
      for (const line of [a, b, c]) expect(pixels(picture, line), line).toBeGreaterThan(200)
    }
    const picture = readPng(screenshot(sweep, { width: 1280, height: 900, dark: false }))
    expect(picture.colourAt(3, 3)).toBe('#f6f6f3')
    // The hottest cell of each map has the full colour.
    expect(pixels(picture, '#2a78d6')).toBeGreaterThan(1000)
    expect(pixels(picture, '#d9601f')).toBeGreaterThan(1000)
  })

  test('has no text that overlaps another one, or leaves its drawing or its card', () => {
    const script = `
      const found = []
      for (const svg of document.querySelectorAll('svg')) {
        const frame = svg.getBoundingClientRect()
        const texts = [...svg.querySelectorAll('text')]
        const boxes = texts.map((each) => each.getBoundingClientRect())
        boxes.forEach((box, i) => {
          const name = svg.getAttribute('aria-label') + ': ' + texts[i].textContent
          if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
            found.push(name + ' leaves the drawing')
          for (let j = i + 1; j < boxes.length; j++) {
            const other = boxes[j]
            const apart = box.right <= other.left || other.right <= box.left || box.bottom - 3 <= other.top || other.bottom - 3 <= box.top
            if (!apart) found.push(name + ' overlaps ' + texts[j].textContent)
          }
        })
      }
      if (document.documentElement.scrollWidth > innerWidth) found.push('the page is wider than the window')
      return { found, texts: document.querySelectorAll('svg text').length }`
    for (const page of [single, sweep]) {
      const { found, texts } = evaluate(page, script) as { found: string[]; texts: number }
      expect(texts).toBeGreaterThan(50)
      expect(found).toEqual([])
    }
  })
})
