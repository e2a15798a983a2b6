// A block device that fails on command: memory served by nbdkit, mounted as a file by nbdfuse, below a loop device. It can be
// told to refuse writes, and it can vanish as a pulled disk does. Only root can make one.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { temporaryDirectory } from './targets.ts'

export interface FailingDisk {
  path: string
  /** From now on writes fail with EIO, or no longer do. */
  refuseWrites(refuse: boolean): void
  /** Whatever is served ends here, in the middle of whatever is under way. */
  vanish(): void
  cleanup(): Promise<void>
}

/** Why there can be none here; empty where there can. */
export const noFailingDisk: string = ((): string => {
  if (process.getuid?.() !== 0) return 'skipped: needs root'
  try {
    fs.accessSync('/dev/fuse')
    for (const tool of ['nbdkit', 'nbdfuse', 'losetup']) execFileSync(tool, ['--version'], { stdio: 'pipe' })
    return ''
  } catch (error) {
    return `skipped: needs FUSE, nbdkit and nbdfuse: ${String(error).trim()}`
  }
})()

async function appears(file: string): Promise<void> {
  for (let attempt = 0; attempt < 200; attempt++) {
    if (fs.existsSync(file)) return
    await sleep(50)
  }
  throw new Error(`${file} did not appear`)
}

function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve()
  return new Promise((resolve) => child.once('exit', () => resolve()))
}

/**
 * @param size in bytes
 * @param delayMs how long each write takes
 */
export async function failingDisk(size: number, delayMs: number): Promise<FailingDisk> {
  const directory = temporaryDirectory()
  const inside = (name: string): string => path.join(directory.path, name)
  const [socket, inject, mount] = [inside('socket'), inside('inject'), inside('mount')]
  fs.mkdirSync(mount)
  const children: ChildProcess[] = []
  let mounted = false
  let device: string | undefined

  const vanish = (): void => {
    for (const child of children) child.kill('SIGKILL')
  }
  const cleanup = async (): Promise<void> => {
    vanish()
    await Promise.all(children.map(ended))
    if (device !== undefined) execFileSync('losetup', ['--detach', device], { stdio: 'pipe' })
    if (mounted) execFileSync('umount', ['--lazy', mount], { stdio: 'pipe' })
    directory.cleanup()
  }

  try {
    const failing = ['error-pwrite=EIO', 'error-pwrite-rate=100%', `error-file=${inject}`, `wdelay=${delayMs}ms`]
    const serve = ['-f', '-U', socket, '--filter=error', '--filter=delay', 'memory', String(size), ...failing]
    children.push(spawn('nbdkit', serve, { stdio: 'ignore' }))
    await appears(socket)
    children.push(spawn('nbdfuse', [mount, '--unix', socket], { stdio: 'ignore' }))
    await appears(path.join(mount, 'nbd'))
    mounted = true
    const attach = ['--find', '--show', '--direct-io=on', path.join(mount, 'nbd')]
    device = execFileSync('losetup', attach, { encoding: 'utf8', stdio: 'pipe' }).trim()
  } catch (error) {
    await cleanup()
    throw error
  }
  const refuseWrites = (refuse: boolean): void => {
    if (refuse) fs.writeFileSync(inject, '')
    else fs.rmSync(inject, { force: true })
  }
  return { path: device, refuseWrites, vanish, cleanup }
}
