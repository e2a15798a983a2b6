// The public face: `open`, `create`, `holdersOf`, the errors, and the types of what they take and give.

export type { EngineInfo } from './choose-engine.ts'
export type { BlockDevice } from './device.ts'
export type { BatchResult } from './dispatch.ts'
export { AbortError, BlockError, MultiwriteError } from './errors.ts'
export type {
  CheckResult,
  FormatBacking,
  FormatCreateOptions,
  FormatDriver,
  FormatHost,
  FormatImage,
  FormatOptions,
  Range,
} from './format/driver.ts'
export { holdersOf } from './holders.ts'
export type { DeviceLimits } from './limits.ts'
export { create, open } from './open.ts'
export type {
  Backing,
  BackingFile,
  BatchOptions,
  CheckOptions,
  CreateOptions,
  MergeMode,
  MergeOptions,
  OpenOptions,
  ReadOptions,
  WriteOptions,
  ZeroOptions,
} from './options.ts'
export type { Data, ReadRequest, WriteRequest } from './requests.ts'
export type { Stats } from './stats.ts'
