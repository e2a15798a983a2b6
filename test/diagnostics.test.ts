// What `node:diagnostics_channel` tells of batches and submissions, and that it costs nothing when nobody listens.

import diagnostics from 'node:diagnostics_channel'
import fs from 'node:fs'
import path from 'node:path'
import { create, MultiwriteError } from 'multiwrite'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { temporaryDirectory } from './support/targets.ts'

let directory: { path: string; cleanup(): void }
const undo: (() => void)[] = []
beforeEach(() => {
  directory = temporaryDirectory()
})
afterEach(() => {
  for (const leave of undo.splice(0)) leave()
  directory.cleanup()
})

function listen(name: string, heard: (message: object) => void): void {
  const listener = (message: unknown): void => heard(message as object)
  diagnostics.subscribe(name, listener)
  undo.push(() => diagnostics.unsubscribe(name, listener))
}

/** What is told of batches, in order. */
function batches(): [string, Record<string, unknown>][] {
  const told: [string, Record<string, unknown>][] = []
  for (const event of ['start', 'end', 'asyncStart', 'asyncEnd', 'error']) {
    listen(`tracing:multiwrite.batch:${event}`, (message) => told.push([event, { ...message }]))
  }
  return told
}

test('a batch is told from its call to its end, with what came of it', async () => {
  const told = batches()
  const file = path.join(directory.path, 'image')
  const disk = await create(file, { size: 65536, engine: 'threads' })
  await disk.multiwrite([
    { offset: 0, data: Buffer.alloc(1000) },
    { offset: 1000, data: [Buffer.alloc(24), Buffer.alloc(1000)] },
  ])
  const about = { path: file, engine: 'threads', operation: 'write', requests: 2, bytes: 2024 }
  const result = { requests: 2, failed: 0 }
  expect(told.map(([event]) => event)).toEqual(['start', 'end', 'asyncStart', 'asyncEnd'])
  expect(told[0]![1]).toEqual(about)
  expect(told[3]![1]).toEqual({ ...about, result })

  told.length = 0
  await Promise.all([disk.read(0, Buffer.alloc(10)), disk.read(100, Buffer.alloc(10))])
  await disk.close()
  expect(told.map(([event]) => event)).toEqual(['start', 'end', 'asyncStart', 'asyncEnd'])
  expect(told[3]![1]).toEqual({ ...about, operation: 'read', bytes: 20, result })
})

test('a batch that fails is told with its error', async () => {
  const told = batches()
  const file = path.join(directory.path, 'image')
  const disk = await create(file, { size: 65536 })
  // Its end is cut off behind its back: reads past it find nothing.
  fs.truncateSync(file, 0)
  await expect(disk.multiread([{ offset: 0, into: Buffer.alloc(10) }])).rejects.toBeInstanceOf(MultiwriteError)
  await disk.close()
  const error = told.find(([event]) => event === 'error')
  expect(error?.[1].error).toBeInstanceOf(MultiwriteError)
})

test('each merged run is told once, as stats count it', async () => {
  const told: object[] = []
  listen('multiwrite:submission', (message) => told.push({ ...message }))
  const file = path.join(directory.path, 'image')
  const disk = await create(file, { size: 65536, engine: 'threads' })
  await disk.multiwrite([
    { offset: 8192, data: Buffer.alloc(512) },
    { offset: 4096, data: Buffer.alloc(512) },
    { offset: 4608, data: Buffer.alloc(512) },
  ])
  const { write } = disk.stats
  await disk.close()
  const common = { path: file, engine: 'threads', operation: 'write' }
  expect(told).toEqual([
    { ...common, offset: 4096, length: 1024, requests: 2 },
    { ...common, offset: 8192, length: 512, requests: 1 },
  ])
  expect(write.submissions).toBe(2)
})

test('nothing is made for a batch when nobody listens', async () => {
  const disk = await create(path.join(directory.path, 'image'), { size: 65536 })
  const channel = diagnostics.tracingChannel('multiwrite.batch')
  expect(channel.hasSubscribers).toBe(false)
  // Of every tracing channel: the library has an object of its own.
  const all = Object.getPrototypeOf(channel) as { tracePromise: unknown }
  const before = all.tracePromise
  all.tracePromise = () => {
    throw new Error('traced')
  }
  try {
    await disk.multiwrite([{ offset: 0, data: Buffer.alloc(10) }])
    await disk.write(0, Buffer.alloc(10))
  } finally {
    all.tracePromise = before
    await disk.close()
  }
})
