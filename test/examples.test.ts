// Every example runs, and does what it says.

import { execFileSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { temporaryDirectory } from './support/targets.ts'

const examples = fileURLToPath(new URL('../examples/', import.meta.url))

let directory: { path: string; cleanup(): void }
beforeAll(() => {
  directory = temporaryDirectory()
})
afterAll(() => directory?.cleanup())
const inside = (name: string): string => path.join(directory.path, name)
const run = (name: string, ...args: string[]): string =>
  execFileSync(process.execPath, [path.join(examples, name), ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  })

test('vm-image: a thousand pieces become a few writes, each at its place', () => {
  const text = run('vm-image.mjs', inside('vm.img'))
  const [, pieces, writes] = /^(\d+) pieces in (\d+) writes/.exec(text) ?? []
  expect(Number(pieces)).toBe(1001)
  expect(Number(writes)).toBeLessThan(20)
  const image = fs.readFileSync(inside('vm.img'))
  expect([image[510], image[511]]).toEqual([0x55, 0xaa])
  for (const file of [0, 1, 500, 999]) {
    const at = (1 << 20) + file * 8192
    expect(image.toString('latin1', at, at + 12)).toBe(`file ${file} `.padEnd(12, '.'))
  }
})

test('flash: the target is the image', () => {
  fs.writeFileSync(inside('image'), randomFillSync(Buffer.alloc((5 << 20) + 77)))
  expect(run('flash.mjs', inside('image'), inside('flashed'))).toContain(`${(5 << 20) + 77} bytes are on`)
  expect(fs.readFileSync(inside('flashed')).equals(fs.readFileSync(inside('image')))).toBe(true)
})

test('latency: tells percentiles with and without durability, and leaves nothing', () => {
  const text = run('latency.mjs', inside('probe'), '20')
  expect(text).toMatch(/^written: p50 [\d.]+ us, p99 [\d.]+ us, of 20 writes\ndurable: p50 [\d.]+ us/)
  expect(fs.existsSync(inside('probe'))).toBe(false)
})

test('prometheus: a scrape that its text format allows, with the true counts', () => {
  const text = run('prometheus.mjs', inside('scraped'))
  for (const line of text.trim().split('\n')) {
    expect(line).toMatch(/^(# (HELP|TYPE) multiwrite_\w+ .+|multiwrite_\w+\{(\w+="[^"]*",?)+\} [\d.e+-]+)$/)
  }
  const label = `path="${inside('scraped')}",operation="write"`
  expect(text).toContain(`multiwrite_requests_total{${label}} 3200\n`)
  expect(text).toContain(`multiwrite_submissions_total{${label}} 50\n`)
  expect(text).toMatch(/multiwrite_batch_seconds\{[^}]*quantile="0.99"\} 0\.\d+/)
})

// That of window.mjs, a format driver, stands with the tests of drivers.
test('there is a test for each', () => {
  expect(fs.readdirSync(examples).sort()).toEqual([
    'flash.mjs',
    'latency.mjs',
    'prometheus.mjs',
    'vm-image.mjs',
    'window.mjs',
  ])
})
