// System calls that fail on command: strace answers them in the kernel's place.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { type ChildResult, runChild } from './child.ts'
import { temporaryDirectory } from './targets.ts'

/** Why strace cannot be used here; empty where it can. */
export const noStrace: string = ((): string => {
  try {
    execFileSync('strace', ['-f', '-qq', '-o', '/dev/null', '-e', 'inject=sync:error=EIO', 'true'], { stdio: 'pipe' })
    return ''
  } catch (error) {
    return `skipped: needs strace: ${String(error).trim()}`
  }
})()

/**
 * Runs a script with system calls answered by strace.
 *
 * @param injections as strace's option `inject` has them, such as `'io_uring_enter:error=EAGAIN:when=2'`
 * @param on where given, calls on this file only; the dynamic loader reads and writes files too
 * @returns also all calls of those kinds, one a line, and those of them that were answered so
 */
export async function runInjected(
  script: string,
  injections: readonly string[],
  env: Record<string, string> = {},
  on?: string,
): Promise<ChildResult & { calls: string[]; injected: string[] }> {
  const directory = temporaryDirectory()
  try {
    const log = path.join(directory.path, 'log')
    const names = injections.map((injection) => injection.split(':')[0])
    const options = ['-f', '--seccomp-bpf', '-qq', '-o', log, '-e', `trace=${names.join(',')}`]
    if (on !== undefined) options.push('-P', on)
    const wrapper = ['strace', ...options, ...injections.flatMap((injection) => ['-e', `inject=${injection}`])]
    // Node's own file operations stay out of it.
    const child = await runChild(script, { env: { UV_USE_IO_URING: '0', ...env }, wrapper, silence: 20_000 })
    const lines = fs.readFileSync(log, 'utf8').split('\n')
    // A call that another thread's stop came between takes two lines, and the result is on the second.
    const injected = lines.filter((line) => line.includes('(INJECTED)'))
    return { ...child, calls: lines.filter((line) => /\w\(/.test(line)), injected }
  } finally {
    directory.cleanup()
  }
}
