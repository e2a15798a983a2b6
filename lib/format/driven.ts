// A format driver behind a device's face: requests are checked, ordered and merged by guest offset, and the runs go to the
// driver, which carries them out on a raw device of its own, where they are merged again by host offset.

import { constants } from 'node:os'
import type { Backend, RangeOperations } from '../backend.ts'
import { Blocks } from '../blocks.ts'
import type { EngineInfo } from '../choose-engine.ts'
import { Dispatch } from '../dispatch.ts'
import { BlockError } from '../errors.ts'
import type { DeviceLimits } from '../limits.ts'
import { MAX_BYTES } from '../native.ts'
import type { CheckedOptions, MergeMode } from '../options.ts'
import type { Limits } from '../planner/units.ts'
import { newCounters, type Stats, snapshot } from '../stats.ts'
import { DrivenQueue, errnoOf } from './driven-queue.ts'
import { DrivenRanges } from './driven-ranges.ts'
import type { FormatHost, FormatImage } from './driver.ts'
import { Stage } from './stage.ts'

const { EIO } = constants.errno

/** A run of guest ranges costs one call of the driver; the host cuts it to what the kernel takes. Longer ones would be answered late. */
const RUN_BYTES_MAX = 8 << 20
const RUN_SEGMENTS_MAX = 4096

/** The host as the device above a driver sees it. */
export interface DrivenHost extends FormatHost {
  readonly direct: boolean
  readonly engine: EngineInfo
  readonly stats: Stats
  readonly merge: Limits
  close(): Promise<void>
}

export class DrivenBackend implements Backend {
  readonly path: string
  readonly format: string
  readonly readOnly: boolean
  readonly direct: boolean
  readonly engine: EngineInfo
  readonly limits: DeviceLimits
  readonly mode: MergeMode
  readonly merge: Limits
  readonly blocks: Blocks
  readonly dispatch: Dispatch
  readonly ranges: RangeOperations
  readonly fixedSize: string | null
  readonly #image: FormatImage
  readonly #host: DrivenHost
  readonly #counters = newCounters()
  readonly #release: () => Promise<void>

  /**
   * @param format the driver's name
   * @param release closes what was opened for the image besides the host
   */
  constructor(
    format: string,
    image: FormatImage,
    host: DrivenHost,
    options: CheckedOptions,
    release: () => Promise<void>,
  ) {
    this.path = host.path
    this.format = format
    this.readOnly = options.readOnly
    this.direct = host.direct
    this.engine = host.engine
    this.limits = host.limits
    this.mode = options.mode
    this.merge = { maxBytes: host.merge.maxBytes, maxSegments: host.merge.maxSegments }
    this.fixedSize =
      image.truncate === undefined ? `the format ${format} can't change its size: make a new image and copy` : null
    this.#image = image
    this.#host = host
    this.#release = release
    this.blocks = new Blocks(1, false, true)
    this.blocks.size = image.size
    const stage = new Stage(image)
    const queue = {
      path: host.path,
      engine: host.engine.name,
      image,
      stage,
      blocks: this.blocks,
      depth: options.queueDepth,
      direct: host.direct,
      counters: this.#counters,
    }
    this.dispatch = new Dispatch({
      path: host.path,
      engineName: host.engine.name,
      blocks: this.blocks,
      mode: options.mode,
      merge: {
        maxBytes: Math.min(MAX_BYTES, Math.max(RUN_BYTES_MAX, this.merge.maxBytes)),
        maxSegments: Math.max(RUN_SEGMENTS_MAX, this.merge.maxSegments),
      },
      // A driver's tables change with writes and discards alike: who overlaps waits in any case.
      ordered: true,
      counters: this.#counters,
      queue: (gate, _, beforeSending) => new DrivenQueue(gate, queue, beforeSending),
      stage,
      mayFill: image.mergeRequests === undefined ? null : (run, next) => image.mergeRequests!(run, next),
    })
    this.ranges = new DrivenRanges({ ...queue, format, dispatch: this.dispatch })
  }

  /** Requests and runs are those of the guest; what only the host can know is the host's. */
  stats(): Stats {
    const own = snapshot(this.#counters)
    const { flushes, bounced, rmw, resubmitted } = this.#host.stats
    const { submissions = 0, bytes = 0 } = this.#image.metadata ?? {}
    return { ...own, metadata: { submissions, bytes }, flushes, bounced, rmw, resubmitted }
  }

  async readSize(): Promise<number> {
    return this.#image.size
  }

  async close(): Promise<BlockError | null> {
    let failure: BlockError | null = null
    for (const step of [() => this.#image.close(), () => this.#host.close(), this.#release]) {
      try {
        await step()
      } catch (error) {
        failure ??= asBlockError(error, 'close', this.path)
      }
    }
    return failure
  }
}

/** What a driver rejects with, as an error of the device. */
export function asBlockError(error: unknown, syscall: string, path: string): BlockError {
  if (error instanceof BlockError) return error
  const reason = error instanceof Error ? error.message : 'the format driver failed'
  return new BlockError(errnoOf(error) || EIO, { syscall, path, reason, cause: error })
}
