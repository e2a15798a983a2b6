// A raw file or block device behind a device's face: a guest's offset is the target's, and submissions go to the engine.

import type { Backend } from './backend.ts'
import { Blocks } from './blocks.ts'
import type { EngineInfo } from './choose-engine.ts'
import { Dispatch } from './dispatch.ts'
import type { Engine } from './engine.ts'
import { BlockError } from './errors.ts'
import { GONE } from './isolation.ts'
import type { DeviceLimits } from './limits.ts'
import type { Staging } from './memory.ts'
import { blocking, type Geometry, isFailure } from './native.ts'
import type { CheckedOptions, MergeMode } from './options.ts'
import type { Limits } from './planner/units.ts'
import { Queue } from './queue.ts'
import { Ranges } from './ranges.ts'
import { newCounters, type Stats, snapshot } from './stats.ts'
import type { Target } from './submission.ts'

/** What `open` found. */
export interface Opened {
  file: number
  /** A second descriptor without O_DIRECT, for the partial block at the end of a direct file; -1: none. */
  tailFile: number
  geometry: Geometry
  direct: boolean
  path: string
  engine: EngineInfo
  limits: DeviceLimits
  options: CheckedOptions
}

/** A class, not an object with getters: V8 takes each such object for another kind and looks its properties up anew. */
class RawTarget implements Target {
  readonly file: number
  readonly tailFile: number
  readonly direct: boolean
  readonly alignment: number
  readonly memoryAlignment: number
  readonly kernelMerges: boolean
  readonly #blocks: Blocks

  constructor(blocks: Blocks, { file, tailFile, direct, limits, engine }: Opened) {
    this.file = file
    this.tailFile = tailFile
    this.direct = direct
    this.alignment = limits.alignment
    this.memoryAlignment = limits.memoryAlignment
    // The page cache and threads submit one by one.
    this.kernelMerges = direct && engine.name !== 'threads'
    this.#blocks = blocks
  }

  get tail(): number {
    return this.#blocks.tail
  }

  get size(): number {
    return this.#blocks.growsByWriting ? this.#blocks.size : Number.POSITIVE_INFINITY
  }
}

export class RawBackend implements Backend {
  readonly path: string
  readonly format = 'raw'
  readonly readOnly: boolean
  readonly direct: boolean
  readonly engine: EngineInfo
  readonly limits: DeviceLimits
  readonly mode: MergeMode
  readonly merge: Limits
  readonly blocks: Blocks
  readonly dispatch: Dispatch
  readonly ranges: Ranges
  readonly fixedSize: string | null
  readonly #file: number
  readonly #tailFile: number
  readonly #counters = newCounters()
  readonly #releaseEngine: () => void

  constructor(engine: Engine, staging: Staging, opened: Opened) {
    const { options, limits, geometry, file, tailFile, direct, path } = opened
    const { alignment } = limits
    this.path = path
    this.readOnly = options.readOnly
    this.direct = direct
    this.engine = opened.engine
    this.limits = limits
    this.mode = options.mode
    this.merge = mergeLimits(options, limits)
    this.fixedSize = geometry.blockDevice ? 'the size of a block device is its own: use a file to change it' : null
    this.#file = file
    this.#tailFile = tailFile
    const blocks = new Blocks(alignment, tailFile >= 0, !geometry.blockDevice)
    blocks.size = geometry.size
    this.blocks = blocks
    this.#releaseEngine = () => engine.busyPoll(options.busyPollUs, -1)
    engine.busyPoll(options.busyPollUs, 1)
    const target = new RawTarget(blocks, opened)
    this.dispatch = new Dispatch({
      path,
      engineName: opened.engine.name,
      blocks,
      mode: this.mode,
      merge: this.merge,
      ordered: options.ordered,
      counters: this.#counters,
      queue: (gate, ordered, beforeSending) => {
        const isGone = geometry.blockDevice ? () => deviceIsGone(file) : null
        return new Queue(
          engine,
          staging,
          gate,
          target,
          options.queueDepth,
          ordered,
          this.#counters,
          isGone,
          beforeSending,
        )
      },
      stage: null,
      mayFill: null,
    })
    this.ranges = new Ranges({
      file,
      path,
      engine: opened.engine.name,
      blockDevice: geometry.blockDevice,
      granularity: geometry.blockDevice ? limits.logicalBlockSize : Math.max(geometry.fileBlockSize, alignment),
      blocks,
      dispatch: this.dispatch,
      counters: this.#counters,
    })
  }

  stats(): Stats {
    return snapshot(this.#counters)
  }

  async readSize(): Promise<number> {
    const geometry = await blocking.geometry(this.#file)
    if (!isFailure(geometry)) return geometry.size
    throw new BlockError(geometry.errno, { syscall: geometry.syscall, path: this.path })
  }

  async close(): Promise<BlockError | null> {
    let failure: BlockError | null = null
    this.#releaseEngine()
    for (const file of [this.#tailFile, this.#file]) {
      if (file < 0) continue
      const { errno, syscall } = await blocking.close(file)
      if (errno !== 0) failure ??= new BlockError(errno, { syscall, path: this.path })
    }
    return failure
  }
}

/** Whether a block device was taken away or has no medium. */
async function deviceIsGone(file: number): Promise<boolean> {
  // Who can't be asked counts as there: then each request finds out for itself.
  const geometry = await blocking.geometry(file)
  return isFailure(geometry) ? GONE.has(geometry.errno) : geometry.size === 0
}

function mergeLimits(options: CheckedOptions, limits: DeviceLimits): Limits {
  const maxBytes = options.maxBytes ?? limits.maxBytes
  // A run is cut where direct I/O can go on.
  const whole = maxBytes - (maxBytes % limits.alignment)
  const maxSegments = options.maxSegments ?? limits.maxSegments
  return { maxBytes: Math.max(whole, limits.alignment), maxSegments }
}
