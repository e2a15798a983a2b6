// Makes the target ready and finds out what it is: refuses what must not be written to, makes and fills a file that is not
// there or too short, and keeps the target open until the last load has ended.

import { stat } from 'node:fs/promises'
import { type BlockDevice, create, open } from '../../index.ts'
import { EXIT, Stop } from '../command.ts'
import { type Job, writes } from './job.ts'
import { Random } from './offsets.ts'
import type { Progress } from './progress.ts'
import type { Setting } from './results.ts'
import { claim } from './safety.ts'

/** Written at a time when a file is filled. */
const FILL_BYTES = 1 << 20

export interface Prepared {
  setting: Setting
  /** Lets the target go. */
  release(): Promise<void>
}

export async function prepare(job: Job, force: boolean, progress: Progress): Promise<Prepared> {
  const { filename, size: wanted } = job
  const options = { engine: job.engine, ...(job.direct === null ? {} : { direct: job.direct }) }
  const found = await stat(filename).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
    return null
  })
  if (found === null && wanted === null) {
    throw new Stop(EXIT.usage, `${filename} does not exist; --size says how large a file to make`)
  }
  const blockDevice = found?.isBlockDevice() ?? false
  if (wanted !== null && !blockDevice && (found === null || found.size < wanted)) {
    await layOut(filename, found?.size ?? null, wanted, options, progress)
  }

  const disk = writes(job.rw)
    ? await claim(filename, force, options)
    : await open(filename, { ...options, readOnly: true })
  try {
    if (wanted !== null && wanted > disk.size) {
      throw new Stop(EXIT.usage, `${filename} has ${disk.size} bytes; --size asks for ${wanted}: ask for less`)
    }
    const { alignment } = disk.limits
    if (disk.direct && job.bs % alignment !== 0) {
      throw new Stop(EXIT.usage, `with direct I/O, --bs must be a multiple of ${alignment} on ${filename}`)
    }
    const setting = { size: wanted ?? disk.size, blockDevice, direct: disk.direct, engine: disk.engine }
    return { setting, release: () => disk.close() }
  } catch (error) {
    await disk.close().catch(() => {})
    throw error
  }
}

/**
 * Makes a file as long as it must be and writes all that is new of it: reads of a hole would measure nothing, and writes to
 * one measure the file system's allocation.
 */
async function layOut(
  path: string,
  from: number | null,
  size: number,
  options: { engine: Job['engine']; direct?: boolean },
  progress: Progress,
): Promise<void> {
  let disk: BlockDevice
  if (from === null) {
    disk = await create(path, { format: 'raw', size, ...options })
  } else {
    disk = await claim(path, false, options)
    await disk.truncate(size)
  }
  try {
    const data = disk.alloc(FILL_BYTES)
    const random = new Random(size)
    for (let at = 0; at < data.length; at += 4) data.writeUInt32LE(random.next(), at)
    for (let offset = from ?? 0; offset < size; offset += FILL_BYTES) {
      progress.say(`laying out ${path}: ${Math.floor((100 * offset) / size)} %`)
      await disk.write(offset, data.subarray(0, Math.min(FILL_BYTES, size - offset)))
    }
    await disk.flush()
  } finally {
    progress.clear()
    await disk.close()
  }
}
