// What lies behind a device's face: a raw file or block device (raw.ts), or a format driver above one (format/driven.ts). The face
// checks what users pass, and knows nothing of the difference.

import type { Blocks } from './blocks.ts'
import type { EngineInfo } from './choose-engine.ts'
import type { Dispatch } from './dispatch.ts'
import type { BlockError } from './errors.ts'
import type { CheckResult } from './format/driver.ts'
import type { DeviceLimits } from './limits.ts'
import type { MergeMode } from './options.ts'
import type { Limits } from './planner/units.ts'
import type { Stats } from './stats.ts'

/** What is done to ranges besides reading and writing. Each waits for its turn in the order of calls. */
export interface RangeOperations {
  discard(offset: number, length: number, size: number): Promise<void>
  writeZeroes(offset: number, length: number, size: number, unmap: boolean, fua: boolean): Promise<void>
  /** @param settled called with the outcome while the range is still held */
  truncate(from: number, to: number, settled: (error: BlockError | null) => Promise<void>): Promise<void>
  /** Looks at everything, and mends it; nothing else happens meanwhile. */
  check(repair: boolean): Promise<CheckResult>
}

export interface Backend {
  readonly path: string
  readonly format: string
  readonly readOnly: boolean
  readonly direct: boolean
  readonly engine: EngineInfo
  readonly limits: DeviceLimits
  readonly mode: MergeMode
  readonly merge: Limits
  /** The size that the target has now. */
  readonly blocks: Blocks
  readonly dispatch: Dispatch
  readonly ranges: RangeOperations
  /** Why the size can't be set, in words; `null` where it can. */
  readonly fixedSize: string | null
  stats(): Stats
  /** Reads the size anew. */
  readSize(): Promise<number>
  /** Releases everything; nothing is in flight. Returns what went wrong. */
  close(): Promise<BlockError | null>
}
