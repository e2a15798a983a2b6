// A real browser without a window: pictures of pages, and what a page has become after it was laid out.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { temporaryDirectory } from './targets.ts'

const NAMES = ['chromium', 'chromium-browser', 'google-chrome']

function found(): string | null {
  for (const name of NAMES) {
    try {
      execFileSync(name, ['--version'], { stdio: 'pipe' })
      return name
    } catch {
      // The next one.
    }
  }
  return null
}

const browser = found()

/** Why there can be none here; empty where there can. */
export const noBrowser: string = browser === null ? 'skipped: needs Chromium' : ''

/** Nothing of it may go out to the network, nor into a profile of the user's. */
const FLAGS = [
  ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--hide-scrollbars'],
  ...['--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-extensions'],
]

function run(args: readonly string[]): Buffer {
  const profile = temporaryDirectory()
  try {
    const all = [...FLAGS, `--user-data-dir=${profile.path}`, ...args]
    return execFileSync(browser!, all, { stdio: ['ignore', 'pipe', 'pipe'], timeout: 50_000, maxBuffer: 64 << 20 })
  } finally {
    profile.cleanup()
  }
}

/** A picture of a page, as a PNG. */
export function screenshot(
  page: string,
  { width, height, dark }: { width: number; height: number; dark: boolean },
): Buffer {
  const directory = temporaryDirectory()
  try {
    const picture = path.join(directory.path, 'page.png')
    const theme = dark ? ['--blink-settings=preferredColorScheme=0'] : ['--blink-settings=preferredColorScheme=1']
    run([`--window-size=${width},${height}`, ...theme, `--screenshot=${picture}`, `file://${page}`])
    return fs.readFileSync(picture)
  } finally {
    directory.cleanup()
  }
}

/**
 * Lays a page out and runs `script` in it.
 *
 * @param script JavaScript whose value is sent back as JSON
 */
export function evaluate(page: string, script: string): unknown {
  const directory = temporaryDirectory()
  try {
    const copy = path.join(directory.path, 'page.html')
    const probe = `<script>document.body.dataset.answer = encodeURIComponent(JSON.stringify((() => { ${script} })()))</script>`
    fs.writeFileSync(
      copy,
      fs.readFileSync(page, 'utf8').replace('</body>', () => `${probe}</body>`),
    )
    const dom = run(['--window-size=1280,2000', '--dump-dom', `file://${copy}`]).toString()
    const answer = /data-answer="([^"]*)"/.exec(dom)?.[1]
    if (answer === undefined) throw new Error('the page has not answered')
    return JSON.parse(decodeURIComponent(answer))
  } finally {
    directory.cleanup()
  }
}
