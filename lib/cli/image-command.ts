// What `write` and `convert` take alike, and the way that both go: image, target and all refusals, the question, and only then is
// anything written (job.ts).

import { type BlockDevice, BlockError, type CreateOptions, create, type OpenOptions } from '../index.ts'
import { ENGINES, type ExitStatus, oneOf } from './command.ts'
import { type Job, runJob, showJob } from './job.ts'
import { progressDescriptor } from './progress.ts'
import { type Backing, type Format, openSource, type Source } from './source.ts'
import { confirm, examine, refuseOwnGround, type Target } from './target.ts'

/** For a command's own options to be added to. */
export const IMAGE_OPTIONS = {
  force: { type: 'boolean' },
  'no-verify': { type: 'boolean' },
  engine: { type: 'string' },
  progress: { type: 'string' },
  json: { type: 'boolean' },
} as const

/** What was given for them. */
type ImageValues = { [name in 'force' | 'no-verify' | 'json']?: boolean } & { [name in 'engine' | 'progress']?: string }

/** What was asked for, read and found possible. */
export interface ImageSettings extends Pick<Job, 'verify' | 'json' | 'descriptor'> {
  readonly force: boolean
  readonly engine: NonNullable<OpenOptions['engine']>
}

/** @throws Stop for what the command does not take */
export function imageSettings(values: ImageValues, usage: string): ImageSettings {
  return {
    force: values.force ?? false,
    verify: !values['no-verify'],
    engine: oneOf(values.engine, 'engine', ENGINES, usage),
    descriptor: progressDescriptor(values.progress),
    json: values.json ?? false,
  }
}

/** An image and where it is to go, as they were named. */
export interface Order {
  readonly command: string
  /** `-` is standard input. */
  readonly image: string
  /** `undefined` if nobody has said. */
  readonly format: Format | undefined
  readonly backing?: Backing | undefined
  readonly path: string
}

/**
 * Carries an image to a target.
 *
 * @param plan how the command does it, once it is known what the two are; throws `Stop` for what the command refuses
 */
export async function carryImage(
  { command, image, format, backing, path }: Order,
  settings: ImageSettings,
  plan: (source: Source, target: Target) => Pick<Job, 'zeroes' | 'firstLast' | 'open' | 'reopen'>,
): Promise<ExitStatus> {
  const { verify, json, descriptor, force } = settings
  const source = await openSource(image, format, backing)
  try {
    const target = await examine(path)
    const how = plan(source, target)
    if (image !== '-') await refuseOwnGround(image, target)
    showJob(source, target, image)
    await confirm(target, force, image !== '-')
    return await runJob({ command, image, source, target, verify, json, descriptor, ...how })
  } finally {
    await source.close()
  }
}

/**
 * A new raw file, written past the page cache where its file system lets that be: nothing is copied twice, and nobody else's pages
 * are driven out.
 */
export function createDirect(path: string, options: Omit<CreateOptions, 'direct' | 'format'>): Promise<BlockDevice> {
  return create(path, { ...options, direct: true }).catch((error: unknown) => {
    if (error instanceof BlockError && error.code === 'EINVAL') return create(path, options)
    throw error
  })
}
