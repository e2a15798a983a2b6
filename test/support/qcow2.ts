// What the tests of qcow2 share: images in a directory of their own, QEMU's tools as the judge of what is in them, and a host
// that records what the driver does to it, and fails when told to.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import type { FormatCreateOptions, FormatDriver, FormatHost, FormatImage, FormatOptions } from 'multiwrite'
import { BlockError } from 'multiwrite'
import { qcow2 } from '../../dist/format/qcow2/driver.js'
import { temporaryDirectory } from './targets.ts'

const version = spawnSync('qemu-img', ['--version'], { encoding: 'utf8' })

/** Why QEMU's tools can't be asked; empty where they can. */
export const noQemu: string = version.status === 0 ? '' : 'qemu-img is not installed'

/** For the titles of what is skipped without them. */
export const withQemu: string = noQemu === '' ? '' : ` (skipped: ${noQemu})`

export async function inDirectory(work: (directory: string) => Promise<void>): Promise<void> {
  const directory = temporaryDirectory(fs.existsSync('/dev/shm') ? '/dev/shm' : undefined)
  try {
    await work(directory.path)
  } finally {
    directory.cleanup()
  }
}

export function qemuImg(...args: string[]): string {
  return execFileSync('qemu-img', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}

/** Runs commands of qemu-io on an image. */
export function qemuIo(image: string, ...commands: string[]): string {
  const args = ['-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), image]
  return execFileSync('qemu-io', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}

/** The exit status of `qemu-img check`: 0 in order, 2 corrupt, 3 leaks only; and its figures. */
export function qemuCheck(image: string): { status: number; figures: Record<string, number>; text: string } {
  const run = spawnSync('qemu-img', ['check', '-f', 'qcow2', '--output=json', image], { encoding: 'utf8' })
  const text = run.stdout + run.stderr
  return { status: run.status ?? -1, figures: run.status === 1 ? {} : JSON.parse(run.stdout), text }
}

/** What the guest of an image sees, by QEMU. */
export function qemuContent(image: string): Buffer {
  const raw = `${image}.content`
  qemuImg('convert', '-f', 'qcow2', '-O', 'raw', image, raw)
  const bytes = fs.readFileSync(raw)
  fs.rmSync(raw)
  return bytes
}

/** Of an L1 or L2 table; a write of less, within one sector, is there or is not. */
const ENTRY_BYTES = 8

/** Something that was done to a host. */
export type Step =
  | { kind: 'write'; offset: number; bytes: Buffer }
  | { kind: 'truncate'; size: number }
  | { kind: 'flush'; covers: number }
  | { kind: 'discard'; offset: number; length: number }
  | { kind: 'mark'; name: number }

/** Records what a driver does to its host, and fails it. */
export class Recorder {
  steps: Step[] = []
  /** Operations so far: those that may fail. */
  operations = 0
  /**
   * Operations that fail, by number, kind and what is written, and how: without effect, after half of it, or after all of it. The
   * half ends at an entry of a table: no disk and no page cache cuts inside of one, and no driver could survive that.
   */
  fails: ((operation: number, kind: string, bytes: Buffer | null) => 'before' | 'half' | 'after' | null) | null = null
  recording = true

  mark(name: number): void {
    this.steps.push({ kind: 'mark', name })
  }

  async run(kind: string, act: (part: 'all' | 'half') => Promise<void>, bytes: Buffer | null = null): Promise<void> {
    const how = this.fails?.(this.operations++, kind, bytes) ?? null
    if (how === null) return act('all')
    if (how === 'half') await act('half')
    if (how === 'after') await act('all')
    throw new BlockError(5, { syscall: kind, path: 'host', offset: 0, length: 0 })
  }

  /** A qcow2 driver whose host is recorded. */
  driver(): FormatDriver {
    const wrap = (host: FormatHost): FormatHost => new RecordedHost(host, this)
    return {
      name: 'qcow2',
      open: (host: FormatHost, options: FormatOptions): Promise<FormatImage> => qcow2.open(wrap(host), options),
      create: (host: FormatHost, options: FormatCreateOptions): Promise<void> => qcow2.create!(host, options),
    }
  }
}

class RecordedHost implements FormatHost {
  readonly #host: FormatHost
  readonly #recorder: Recorder

  constructor(host: FormatHost, recorder: Recorder) {
    this.#host = host
    this.#recorder = recorder
  }

  get path(): string {
    return this.#host.path
  }

  get size(): number {
    return this.#host.size
  }

  get readOnly(): boolean {
    return this.#host.readOnly
  }

  get limits(): FormatHost['limits'] {
    return this.#host.limits
  }

  write(offset: number, data: Uint8Array | readonly Uint8Array[], options = {}): Promise<void> {
    const bytes = data instanceof Uint8Array ? Buffer.from(data) : Buffer.concat(data as Uint8Array[])
    const act = (part: 'all' | 'half'): Promise<void> => {
      const half = Math.floor(bytes.length / 2 / ENTRY_BYTES) * ENTRY_BYTES
      const written = part === 'all' ? bytes : bytes.subarray(0, half)
      if (written.length === 0 && bytes.length > 0) return Promise.resolve()
      if (this.#recorder.recording) this.#recorder.steps.push({ kind: 'write', offset, bytes: Buffer.from(written) })
      return this.#host.write(offset, part === 'all' ? data : written, options)
    }
    return this.#recorder.run('write', act, bytes)
  }

  read(offset: number, into: Uint8Array | readonly Uint8Array[]): Promise<void> {
    return this.#recorder.run('read', () => this.#host.read(offset, into))
  }

  flush(): Promise<void> {
    return this.#recorder.run('flush', async () => {
      const covers = this.#recorder.steps.length
      await this.#host.flush()
      if (this.#recorder.recording) this.#recorder.steps.push({ kind: 'flush', covers })
    })
  }

  discard(offset: number, length: number): Promise<void> {
    return this.#recorder.run('discard', () => {
      if (this.#recorder.recording) this.#recorder.steps.push({ kind: 'discard', offset, length })
      return this.#host.discard(offset, length)
    })
  }

  writeZeroes(offset: number, length: number): Promise<void> {
    return this.#host.writeZeroes(offset, length)
  }

  truncate(size: number): Promise<void> {
    return this.#recorder.run('truncate', () => {
      if (this.#recorder.recording) this.#recorder.steps.push({ kind: 'truncate', size })
      return this.#host.truncate(size)
    })
  }

  alloc(size: number): Buffer {
    return this.#host.alloc(size)
  }
}

/**
 * A host after a crash: what was flushed is there, of what came after it what `keeps` says, sector by sector.
 *
 * @param upTo steps that had been begun when it happened
 */
export function crashed(base: Buffer, steps: readonly Step[], upTo: number, keeps: () => boolean): Buffer {
  let flushed = 0
  for (let n = 0; n < upTo; n++) {
    const step = steps[n]!
    if (step.kind === 'flush') flushed = Math.max(flushed, step.covers)
  }
  let content = Buffer.from(base)
  const resize = (size: number): void => {
    if (size <= content.length) content = content.subarray(0, size)
    else content = Buffer.concat([content, Buffer.alloc(size - content.length)])
  }
  for (let n = 0; n < upTo; n++) {
    const step = steps[n]!
    if (step.kind === 'truncate' && (n < flushed || keeps())) {
      if (n < flushed || step.size > content.length) resize(step.size)
    } else if (step.kind === 'discard' && (n < flushed || keeps())) {
      // A file has zeros there afterwards; what a block device has there nobody promises.
      const end = Math.min(step.offset + step.length, content.length)
      if (step.offset < end) content.fill(0xdd, step.offset, end)
    } else if (step.kind === 'write') {
      const whole = n < flushed || keeps()
      for (let at = 0; at < step.bytes.length; ) {
        const length = Math.min(512 - ((step.offset + at) % 512), step.bytes.length - at)
        if (whole || (step.bytes.length > 512 && keeps())) {
          const end = step.offset + at + length
          if (end > content.length) resize(end)
          step.bytes.copy(content, step.offset + at, at, at + length)
        }
        at += length
      }
    }
  }
  return content
}

/** Numbers from 0 up to 1, the same for the same seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = (seed * 0x9e3779b1) >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

export function imageIn(directory: string): string {
  return path.join(directory, 'image.qcow2')
}
