// The peer in node:fs: a call for each request, as many at a time as the depth says, on Node's thread pool, whose size is the
// user's choice (UV_THREADPOOL_SIZE, 4 by default).

import fs from 'node:fs'
import { type BlockDevice, open } from '../../index.ts'
import type { Request, Target, TargetOptions } from './target.ts'

const { O_DIRECT, O_RDONLY, O_RDWR } = fs.constants

export async function openFs({ path, readOnly, direct }: TargetOptions): Promise<Target> {
  // node:fs has no memory that direct I/O could take; this library's does for both.
  const memory = await open(path, { readOnly: true, direct })
  return new Fs(fs.openSync(path, (readOnly ? O_RDONLY : O_RDWR) | (direct ? O_DIRECT : 0)), memory)
}

class Fs implements Target {
  readonly #file: number
  readonly #memory: BlockDevice

  constructor(file: number, memory: BlockDevice) {
    this.#file = file
    this.#memory = memory
  }

  write(requests: readonly Request[]): void {
    for (const request of requests) {
      const { data, offset } = request
      fs.write(this.#file, data, 0, data.length, offset, (error, done) => end(request, error, done, 'fs.write'))
    }
  }

  read(requests: readonly Request[]): void {
    for (const request of requests) {
      const { into, offset } = request
      fs.read(this.#file, into, 0, into.length, offset, (error, done) => end(request, error, done, 'fs.read'))
    }
  }

  flush(): Promise<void> {
    return new Promise((resolve, reject) =>
      fs.fdatasync(this.#file, (error) => (error === null ? resolve() : reject(error))),
    )
  }

  alloc(size: number): Buffer {
    return this.#memory.alloc(size)
  }

  submissions(): null {
    return null
  }

  async close(): Promise<void> {
    fs.closeSync(this.#file)
    await this.#memory.close()
  }
}

function end(request: Request, error: NodeJS.ErrnoException | null, done: number, call: string): void {
  const short = done !== request.data.length
  request.callback(error ?? (short ? new Error(`${call} did ${done} of ${request.data.length} bytes`) : null))
}
