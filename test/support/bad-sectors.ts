// A block device with bad sectors: some refuse to be written, some to be read, all others work. A server of our own
// (bad-sectors-server.ts) serves a file so, nbdfuse makes a file of that, and a loop device lies on it. Only root can make one.

import { execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Service } from './bad-sectors-server.ts'
import { compiled } from './compile.ts'
import { background, noLoop, temporaryDirectory } from './targets.ts'

/** Bytes of a sector of the file below, whatever the sectors of the loop device are. */
export const sector = 512

export interface BadDisk {
  path: string
  size: number
  /** What is on it, by way of the file below: bad sectors are no obstacle. Only what was written around the page cache. */
  readBack(): Buffer
  /** Makes the content what it was at first, or what is given. */
  fill(content?: Uint8Array): void
  cleanup(): Promise<void>
}

export interface BadDiskOptions {
  /** Bytes. */
  size: number
  /** Of the loop device. */
  sectorSize?: 512 | 4096
  /** Sectors (of 512 bytes) that refuse to be written. */
  writes?: readonly number[]
  /** Those that refuse to be read. */
  reads?: readonly number[]
  /** Those that store a wrong first byte and say nothing. */
  flips?: readonly number[]
  /** Whether the kernel may merge neighbours that are sent together: then one fails with the other. */
  kernelMerges?: boolean
}

/** Why there can be none here; empty where there can. */
export const noBadDisk: string = ((): string => {
  if (noLoop !== '') return noLoop
  try {
    fs.accessSync('/dev/fuse')
    for (const tool of ['nbdfuse', 'setpriv']) execFileSync(tool, ['--version'], { stdio: 'pipe' })
    return ''
  } catch (error) {
    return `skipped: needs FUSE and nbdfuse: ${String(error).trim()}`
  }
})()

/** A server that does not outlive a test run that is killed. */
class Server {
  readonly #child
  #complaints = ''
  readonly ended: Promise<void>

  constructor(command: string, args: readonly string[]) {
    const all = ['--pdeathsig', 'KILL', command, ...args]
    this.#child = spawn('setpriv', all, { stdio: ['ignore', 'ignore', 'pipe'] })
    this.#child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#complaints += text
    })
    this.ended = new Promise((resolve) => {
      this.#child.once('exit', () => resolve())
      this.#child.once('error', () => resolve())
    })
  }

  async makes(file: string): Promise<void> {
    for (let attempt = 0; attempt < 400; attempt++) {
      if (fs.existsSync(file)) return
      if (this.#child.exitCode !== null) break
      await sleep(25)
    }
    throw new Error(`${file} did not appear: ${this.#complaints}`)
  }

  end(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }
}

export async function badDisk(options: BadDiskOptions): Promise<BadDisk> {
  const { size, sectorSize = 512, writes = [], reads = [], flips = [], kernelMerges = false } = options
  const directory = temporaryDirectory()
  const inside = (name: string): string => path.join(directory.path, name)
  const [content, socket, mount] = [inside('content'), inside('socket'), inside('mount')]
  const fill = (bytes: Uint8Array = Buffer.alloc(size, background)): void => {
    fs.writeFileSync(content, bytes, { flag: fs.existsSync(content) ? 'r+' : 'w' })
  }
  fill()
  fs.mkdirSync(mount)

  const program = compiled('support/bad-sectors-server.ts')
  const servers: Server[] = []
  let device: string | undefined
  let mounted = false

  const detach = (): void => {
    if (device === undefined) return
    fs.writeFileSync(path.join('/sys/block', path.basename(device), 'queue/nomerges'), '0')
    execFileSync('losetup', ['--detach', device], { stdio: 'pipe' })
    device = undefined
  }
  const leave = (): void => {
    try {
      detach()
    } finally {
      for (const server of servers) server.end('SIGKILL')
      if (mounted) execFileSync('umount', ['--lazy', mount], { stdio: 'pipe' })
    }
  }
  process.once('exit', leave)
  const cleanup = async (): Promise<void> => {
    process.off('exit', leave)
    leave()
    await Promise.all(servers.map(({ ended }) => ended))
    directory.cleanup()
    program.cleanup()
  }

  try {
    const ascending = (sectors: readonly number[]): number[] => [...sectors].sort((a, b) => a - b)
    const service: Service = {
      socket,
      content,
      size,
      sector,
      writes: ascending(writes),
      reads: ascending(reads),
      flips: [...flips],
    }
    servers.push(new Server(process.execPath, [program.path, JSON.stringify(service)]))
    await servers[0]!.makes(socket)
    servers.push(new Server('nbdfuse', [mount, '--unix', socket]))
    await servers[1]!.makes(path.join(mount, 'nbd'))
    mounted = true
    const attach = ['--find', '--show', '--direct-io=on', '--sector-size', String(sectorSize), path.join(mount, 'nbd')]
    device = execFileSync('losetup', attach, { encoding: 'utf8', stdio: 'pipe' }).trim()
    // A loop device is made once and then used again and again, with what was set before.
    const nomerges = kernelMerges ? '0' : '2'
    fs.writeFileSync(path.join('/sys/block', path.basename(device), 'queue/nomerges'), nomerges)
  } catch (error) {
    await cleanup()
    throw error
  }
  return { path: device, size, readBack: () => fs.readFileSync(content), fill, cleanup }
}
