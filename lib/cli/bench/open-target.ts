// Opens what a load runs against.

import { type BlockDevice, open } from '../../index.ts'
import type { Kind, Request, Submissions, Target, TargetOptions } from './target.ts'
import { openFs } from './target-fs.ts'

export async function openTarget(kind: Kind, options: TargetOptions): Promise<Target> {
  return kind === 'fs' ? openFs(options) : openOurs(options)
}

async function openOurs({ path, merge, ...options }: TargetOptions): Promise<Target> {
  // The command itself holds the claim on the device while its workers run.
  return new Ours(await open(path, { ...options, exclusive: false, merge: { mode: merge } }))
}

class Ours implements Target {
  readonly #disk: BlockDevice

  constructor(disk: BlockDevice) {
    this.#disk = disk
  }

  // Every request has a callback, which owns its error; the promise only repeats what the callbacks have told.
  write(requests: readonly Request[]): void {
    this.#disk.multiwrite(requests)
  }

  read(requests: readonly Request[]): void {
    this.#disk.multiread(requests)
  }

  flush(): Promise<void> {
    return this.#disk.flush()
  }

  alloc(size: number): Buffer {
    return this.#disk.alloc(size)
  }

  submissions(): Submissions {
    const { read, write, flushes, bounced, rmw, resubmitted } = this.#disk.stats
    return {
      readSubmissions: read.submissions,
      writeSubmissions: write.submissions,
      flushes,
      bounced,
      rmw,
      resubmitted,
    }
  }

  close(): Promise<void> {
    return this.#disk.close()
  }
}
