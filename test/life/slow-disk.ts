// A block device that takes its time: every read and every write lasts as long as it is told to, so that there is something in
// flight at any moment of one's choice. nbdkit keeps the bytes in memory and waits, nbdfuse makes a file of that, and a loop
// device lies on the file. Only root can make one.

import { execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { noLoop, temporaryDirectory } from '../support/targets.ts'

/** Why there can be none here; empty where there can. */
export const noSlowDisk: string = ((): string => {
  if (noLoop !== '') return noLoop
  try {
    fs.accessSync('/dev/fuse')
    for (const tool of ['nbdkit', 'nbdfuse', 'setpriv']) execFileSync(tool, ['--version'], { stdio: 'pipe' })
    return ''
  } catch (error) {
    return `skipped: needs FUSE, nbdkit and nbdfuse: ${String(error).trim()}`
  }
})()

export interface SlowDisk {
  path: string
  /** Reads and writes that the device has been given and has not answered. */
  inFlight(): number
  /** The whole content, read from the device. */
  readBack(): Buffer
  cleanup(): Promise<void>
}

export async function slowDisk(size: number, delay_ms: number): Promise<SlowDisk> {
  const directory = temporaryDirectory()
  const file = path.join(directory.path, 'disk')
  fs.writeFileSync(file, '')
  // The server ends with this process, whatever happens to it.
  const kit = ['nbdkit', '-s', '--exit-with-parent', '--filter=delay', 'memory', String(size)]
  const delays = [`delay-read=${delay_ms}ms`, `delay-write=${delay_ms}ms`]
  const command = ['--pdeathsig', 'KILL', 'nbdfuse', file, '--command', ...kit, ...delays]
  const server = spawn('setpriv', command, { stdio: ['ignore', 'ignore', 'pipe'] })
  const ended = new Promise<void>((resolve) => {
    server.once('exit', () => resolve())
  })
  let complaints = ''
  server.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaints += text
  })
  let device: string | undefined

  const leave = (): void => {
    try {
      if (device !== undefined) execFileSync('losetup', ['--detach', device], { stdio: 'pipe' })
      device = undefined
    } finally {
      if (fs.statSync(file).size > 0) execFileSync('umount', ['--lazy', file], { stdio: 'pipe' })
      server.kill('SIGTERM')
    }
  }
  process.once('exit', leave)
  const cleanup = async (): Promise<void> => {
    process.off('exit', leave)
    leave()
    await ended
    directory.cleanup()
  }

  try {
    for (let attempt = 0; fs.statSync(file).size === 0; attempt++) {
      if (attempt === 400 || server.exitCode !== null) throw new Error(`no slow disk: ${complaints}`)
      await sleep(25)
    }
    const attach = ['--find', '--show', '--direct-io=on', file]
    device = execFileSync('losetup', attach, { encoding: 'utf8', stdio: 'pipe' }).trim()
  } catch (error) {
    await cleanup()
    throw error
  }
  const made = device
  return {
    path: made,
    inFlight: () => {
      const counts = fs
        .readFileSync(`/sys/block/${path.basename(made)}/inflight`, 'latin1')
        .trim()
        .split(/\s+/)
      return counts.reduce((sum, count) => sum + Number(count), 0)
    },
    readBack: () => {
      execFileSync('blockdev', ['--flushbufs', made])
      return fs.readFileSync(made)
    },
    cleanup,
  }
}
