// What a block device is really asked to do, from the kernel's own trace of the block layer: a private tracing instance,
// filtered by device, read when the work is done. Only root has it.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { temporaryDirectory } from './targets.ts'

function withTracefs<T>(use: (tracefs: string) => T): { value: T; unmount(): void } {
  if (fs.existsSync('/sys/kernel/tracing/instances')) {
    return { value: use('/sys/kernel/tracing'), unmount: () => {} }
  }
  const directory = temporaryDirectory()
  execFileSync('mount', ['-t', 'tracefs', 'tracefs', directory.path], { stdio: 'pipe' })
  const unmount = (): void => {
    execFileSync('umount', [directory.path], { stdio: 'pipe' })
    directory.cleanup()
  }
  try {
    return { value: use(directory.path), unmount }
  } catch (error) {
    unmount()
    throw error
  }
}

/** Why the block layer cannot be traced here; empty where it can. */
export const noTrace: string = (() => {
  if (process.getuid?.() !== 0) return 'skipped: needs root'
  try {
    const { unmount } = withTracefs((tracefs) =>
      fs.accessSync(path.join(tracefs, 'events/block/block_bio_queue/filter')),
    )
    unmount()
    return ''
  } catch (error) {
    return `skipped: needs the block layer's trace events: ${String(error).trim()}`
  }
})()

/** What a block device was asked to do. */
export interface Trace {
  /** `[offset, length]` in bytes of each write that entered the block layer, ascending. */
  writes: [offset: number, length: number][]
  /** How many requests, of any kind, the block layer had to split. */
  splits: number
}

/** Runs `work` and gives what the block device at `device` was asked to do meanwhile. */
export async function traced(device: string, work: () => Promise<unknown>): Promise<Trace> {
  const { rdev } = fs.statSync(device)
  // The kernel's own numbering of devices in a filter: the major number above twenty bits of minor number.
  const major = (rdev >> 8) & 0xfff
  const minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00)
  const { value: instance, unmount } = withTracefs((tracefs) => {
    const directory = path.join(tracefs, 'instances', `multiwrite-${process.pid}`)
    fs.mkdirSync(directory)
    return directory
  })
  const events = ['block_bio_queue', 'block_split'].map((event) => path.join(instance, 'events/block', event))
  const enable = (on: '0' | '1'): void => {
    for (const event of events) fs.writeFileSync(path.join(event, 'enable'), on)
  }
  try {
    for (const event of events) fs.writeFileSync(path.join(event, 'filter'), `dev == ${(major << 20) | minor}`)
    enable('1')
    await work()
    enable('0')
    const trace: Trace = { writes: [], splits: 0 }
    for (const line of fs.readFileSync(path.join(instance, 'trace'), 'utf8').split('\n')) {
      // ... block_bio_queue: 7,0 WS 128 + 8 [node]
      const write = /block_bio_queue: \S+ \w*W\w* (\d+) \+ (\d+) /.exec(line)
      if (write) trace.writes.push([Number(write[1]) * 512, Number(write[2]) * 512])
      if (line.includes('block_split:')) trace.splits += 1
    }
    trace.writes.sort(([a], [b]) => a - b)
    return trace
  } finally {
    enable('0')
    fs.rmdirSync(instance)
    unmount()
  }
}
