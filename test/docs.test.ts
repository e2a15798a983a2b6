// The documents belong to the code: every exported name has a comment, the API page is made of those, links lead somewhere, and
// the files that are named exist.

import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import * as multiwrite from 'multiwrite'
import * as planner from 'multiwrite/planner'
import { expect, test } from 'vitest'
import { cli } from './support/cli.ts'

const root = fileURLToPath(new URL('../', import.meta.url))
const read = (file: string): string => fs.readFileSync(path.join(root, file), 'utf8')
const pages = fs.readdirSync(path.join(root, 'docs')).filter((name) => name.endsWith('.md'))

test('the API page is of this code, and every exported name has a comment', () => {
  const { status, stderr } = spawnSync(process.execPath, ['scripts/api.mjs', '--check'], {
    cwd: root,
    encoding: 'utf8',
  })
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  const page = read('docs/api.md')
  for (const name of [...Object.keys(multiwrite), ...Object.keys(planner)]) expect(page).toContain(`### ${name}\n`)
})

test('links between the documents lead somewhere', () => {
  expect(pages.length).toBeGreaterThan(6)
  for (const page of pages) {
    for (const [, link] of read(`docs/${page}`).matchAll(/\]\((?!https?:)([^)#]+)/g)) {
      expect(fs.existsSync(path.join(root, 'docs', link!)), `${page} links to ${link}`).toBe(true)
    }
  }
  for (const page of pages.filter((name) => name !== 'README.md')) expect(read('docs/README.md')).toContain(`(${page})`)
})

test('the files that the architecture names are there', () => {
  const text = read('docs/architecture.md')
  const named = [...text.matchAll(/`(?:lib\/|native\/|planner\/)?([a-z_-]+\.(?:ts|cc|h))`/g)].map(([, name]) => name!)
  const there = ['lib', 'native', 'lib/cli', 'lib/format', 'lib/format/qcow2'].flatMap((folder) =>
    fs.readdirSync(path.join(root, folder)),
  )
  expect(named.filter((name) => !there.includes(name))).toEqual([])
})

test('the tools page has a section for each command', async () => {
  const { stdout } = await cli(['--help'])
  const headings = [...read('docs/tools.md').matchAll(/^## (.*)$/gm)].map(([, heading]) => heading!).join(' ')
  for (const [, name] of stdout.matchAll(/^ {2}(\w+) /gm)) expect(headings).toContain(name)
})
