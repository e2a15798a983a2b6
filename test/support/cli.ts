// The command line as a person or a program runs it: as a process of its own, with or without a terminal.

import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

export const commandLine: string = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))

export interface Ended {
  status: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

export interface CliOptions {
  /** What stands at standard input; nothing if it is left out. */
  input?: Uint8Array
  env?: Record<string, string>
  /** Called with the child as soon as it runs. Standard input is then an open pipe. */
  meanwhile?: (child: ChildProcess) => void
  /** A descriptor 3, read into the result. */
  extra?: (text: string) => void
}

/** Runs a command to its end. */
export function cli(args: readonly string[], { input, env = {}, meanwhile, extra }: CliOptions = {}): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [commandLine, ...args], {
      env: { ...process.env, ...env },
      stdio: [input || meanwhile ? 'pipe' : 'ignore', 'pipe', 'pipe', extra ? 'pipe' : 'ignore'],
    })
    let [stdout, stderr] = ['', '']
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
    })
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    if (extra) (child.stdio[3] as NodeJS.ReadableStream).setEncoding('utf8').on('data', extra)
    child.on('error', reject)
    child.on('close', (status, signal) => resolve({ status, signal, stdout, stderr }))
    // A command that refuses before it has read everything is no error of the test.
    child.stdin?.on('error', () => undefined)
    if (input) child.stdin!.end(input)
    meanwhile?.(child)
  })
}

/** Why there can be no terminal; empty where there can. */
export const noTerminal: string = spawnSync('tmux', ['-V']).status === 0 ? '' : 'skipped: needs tmux'

/** A command in a terminal of 80 columns, and what a person sees of it. */
export class Terminal {
  readonly #socket: string

  /**
   * @param directory for the terminal's own files
   * @param feeder a shell command whose output is the command's standard input
   */
  constructor(directory: string, args: readonly string[], env: Record<string, string> = {}, feeder = '') {
    this.#socket = path.join(directory, 'terminal')
    const quoted = [process.execPath, commandLine, ...args].map((word) => `'${word}'`).join(' ')
    const setting = Object.entries(env).map(([name, value]) => `${name}=${value} `)
    this.#tmux(
      'new-session',
      '-d',
      '-x',
      '80',
      '-y',
      '40',
      `${feeder && `${feeder} | `}${setting.join('')}${quoted}; echo "[status $?]"; sleep 60`,
    )
  }

  /** The screen; with `colours`, its escape sequences as well. */
  screen(colours = false): string {
    return this.#tmux('capture-pane', '-p', ...(colours ? ['-e'] : []))
  }

  type(text: string): void {
    this.#tmux('send-keys', text, 'Enter')
  }

  press(key: string): void {
    this.#tmux('send-keys', key)
  }

  /** The screen as soon as it shows something. */
  async shows(what: string | RegExp): Promise<string> {
    for (let attempt = 0; attempt < 800; attempt++) {
      const screen = this.screen()
      if (typeof what === 'string' ? screen.includes(what) : what.test(screen)) return screen
      await sleep(25)
    }
    throw new Error(`the terminal does not show ${what}:\n${this.screen()}`)
  }

  end(): void {
    spawnSync('tmux', ['-S', this.#socket, 'kill-server'])
  }

  #tmux(...args: string[]): string {
    return execFileSync('tmux', ['-S', this.#socket, '-f', '/dev/null', ...args], { encoding: 'utf8' })
  }
}
