// A block device whose every request passes through a node of qemu-storage-daemon: one that records what arrives, or one that
// fails on command. nbdfuse makes a file of what it serves; a loop device lies on that. Only root can make one.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { background, noLoop, temporaryDirectory } from './targets.ts'

/** Why there can be none here; empty where there can. */
export const noServedDisk: string = ((): string => {
  if (noLoop !== '') return noLoop
  try {
    fs.accessSync('/dev/fuse')
    for (const tool of ['qemu-storage-daemon', 'nbdfuse']) execFileSync(tool, ['--version'], { stdio: 'pipe' })
    return ''
  } catch (error) {
    return `skipped: needs FUSE, qemu-storage-daemon and nbdfuse: ${String(error).trim()}`
  }
})()

export interface ServedDisk {
  /** The loop device. */
  path: string
  size: number
  /** The log of a recording disk; survives until the clean-up. */
  log: string
  cleanup(): void
}

/** @param above the nodes above the node `content`; the one named `top` is served */
async function servedDisk(size: number, above: (log: string) => readonly object[]): Promise<ServedDisk> {
  const directory = temporaryDirectory()
  const inside = (name: string): string => path.join(directory.path, name)
  const [image, log, socket, mount] = [inside('content'), inside('log'), inside('socket'), inside('mount')]
  const served = path.join(mount, 'nbd')
  fs.writeFileSync(image, Buffer.alloc(size, background))
  fs.writeFileSync(log, '')
  fs.mkdirSync(mount)
  const nodes = [
    { driver: 'file', filename: image, 'node-name': 'file' },
    { driver: 'raw', file: 'file', 'node-name': 'content' },
    ...above(log),
  ]
  const children: ChildProcess[] = []
  let complaints = ''
  const serve = (command: string, ...args: string[]): void => {
    // It must not outlive a test run that is killed.
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', command, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      complaints += text
    })
    children.push(child)
  }
  const appears = async (file: string): Promise<void> => {
    for (let attempt = 0; !fs.existsSync(file); attempt++) {
      const gone = children.some((child) => child.exitCode !== null)
      if (gone || attempt === 400) throw new Error(`${file} did not appear: ${complaints}`)
      await sleep(25)
    }
  }

  let device: string | undefined
  let mounted = false
  const cleanup = owned(() => {
    try {
      if (device !== undefined) execFileSync('losetup', ['--detach', device], { stdio: 'pipe' })
    } finally {
      if (mounted) execFileSync('umount', ['--lazy', mount], { stdio: 'pipe' })
      for (const child of children) child.kill('SIGKILL')
      directory.cleanup()
    }
  })

  try {
    // By way of NBD: the daemon's own FUSE export (7.2) mixes up the data of writes that are under way together.
    serve(
      'qemu-storage-daemon',
      ...nodes.flatMap((node) => ['--blockdev', JSON.stringify(node)]),
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--export', 'type=nbd,id=disk,node-name=top,name=,writable=on'],
    )
    await appears(socket)
    serve('nbdfuse', mount, '--unix', socket)
    await appears(served)
    mounted = true
    const attach = ['--find', '--show', '--direct-io=on', served]
    device = execFileSync('losetup', attach, { encoding: 'utf8', stdio: 'pipe' }).trim()
  } catch (error) {
    cleanup()
    throw error
  }
  return { path: device, size, log, cleanup }
}

/** `cleanup`, run once: by the caller, or by the end of the process. */
function owned(cleanup: () => void): () => void {
  const once = (): void => {
    process.off('exit', once)
    cleanup()
  }
  process.once('exit', once)
  return once
}

/** A disk that refuses one flush with EIO: the first after the first write. All other requests work. */
export function flushFailingDisk(size: number): Promise<ServedDisk> {
  // Attaching flushes too, so the rule becomes active with a write.
  const rules = { 'inject-error': [{ event: 'pwritev', iotype: 'flush', errno: 5, once: true }] }
  return servedDisk(size, () => [{ driver: 'blkdebug', image: 'content', 'node-name': 'top', ...rules }])
}

/** A disk that records its writes and flushes in the order of their arrival. */
export function recordingDisk(size: number): Promise<ServedDisk> {
  return servedDisk(size, (log) => [
    { driver: 'file', filename: log, 'node-name': 'log' },
    { driver: 'blklogwrites', file: 'content', log: 'log', 'node-name': 'top', 'log-sector-size': logSector },
  ])
}

const logSector = 512
/** The layout is that of Linux' Documentation/admin-guide/device-mapper/log-writes.rst; all numbers are little-endian. */
const logMagic = 0x6a736677736872n
const logFlush = 1
const logFua = 2
const logDiscard = 4

/** One request as it arrived. */
export interface Logged {
  /** Bytes. */
  offset: number
  length: number
  flush: boolean
  fua: boolean
  discard: boolean
  /** Empty for flushes and discards. */
  data: Buffer
}

/** How many requests have been recorded. Exact when a flush has just been answered: each one writes the count. */
export function loggedCount(log: string): number {
  const header = Buffer.alloc(28)
  const descriptor = fs.openSync(log, 'r')
  try {
    if (fs.readSync(descriptor, header, 0, 28, 0) < 28) return 0
  } finally {
    fs.closeSync(descriptor)
  }
  return Number(header.readBigUInt64LE(16))
}

/** All that has been recorded. The disk must be closed and at rest. */
export function readLog(log: string): Logged[] {
  const bytes = fs.readFileSync(log)
  if (bytes.readBigUInt64LE(0) !== logMagic) throw new Error(`${log} is no log of writes`)
  const count = Number(bytes.readBigUInt64LE(16))
  const size = bytes.readUInt32LE(24)
  const entries: Logged[] = []
  let place = size
  while (entries.length < count) {
    const [sector, sectors, flags] = [0, 8, 16].map((at) => Number(bytes.readBigUInt64LE(place + at))) as [
      number,
      number,
      number,
    ]
    place += size
    const discard = (flags & logDiscard) !== 0
    const data = discard ? Buffer.alloc(0) : bytes.subarray(place, place + sectors * size)
    place += data.length
    entries.push({
      offset: sector * size,
      length: sectors * size,
      flush: (flags & logFlush) !== 0,
      fua: (flags & logFua) !== 0,
      discard,
      data,
    })
  }
  return entries
}
