// Runs a script in a process of its own: for what ends a process, for limits that only a whole process can have, and for an
// event loop in which nothing else happens. The script is an ES module that may import 'multiwrite'.

import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../../', import.meta.url))

export interface ChildResult {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

export interface ChildOptions {
  env?: Record<string, string>
  /** A command that starts its arguments as a command: `['strace', '-o', file]`. */
  wrapper?: readonly string[]
  /** Kills the child when it has printed nothing for this many milliseconds. */
  silence?: number
}

export function runChild(script: string, { env = {}, wrapper = [], silence }: ChildOptions = {}): Promise<ChildResult> {
  const [command = process.execPath, ...args] = [...wrapper, process.execPath, '--input-type=module', '--eval', script]
  return new Promise((resolve, reject) => {
    // Standard input is nothing at all: a pipe would be one more thing in the child's event loop.
    const child = spawn(command, args, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      // A group of its own, so that the watchdog gets the script too when a wrapper runs it.
      detached: true,
    })
    let stdout = ''
    let stderr = ''
    const kill = (): void => {
      stderr += `\nkilled: no progress for ${silence} ms`
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
    }
    let watchdog = silence === undefined ? undefined : setTimeout(kill, silence + 10_000)
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
      if (watchdog === undefined) return
      clearTimeout(watchdog)
      watchdog = setTimeout(kill, silence)
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    child.on('error', reject)
    child.on('close', (code, signal) => {
      clearTimeout(watchdog)
      resolve({ code, signal, stdout, stderr })
    })
  })
}
