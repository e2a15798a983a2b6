// Which engine serves a device: the one that was asked for, or the first that works here. Each is set up and does one real
// operation before it counts as working; why another one serves is said in words that tell what to do.

import { constants } from 'node:os'
import type { Engine, EngineName } from './engine.ts'
import { BlockError, errnoName } from './errors.ts'
import { invalidValue } from './errors-argument.ts'
import type { Failure } from './native.ts'

/** The engine that serves a device, and in words why this one. */
export interface EngineInfo {
  readonly name: EngineName
  readonly reason: string
}

/** In the order of preference. */
const ENGINES: readonly EngineName[] = ['io_uring', 'aio', 'threads']
const WORKS = 'set up and tried with one operation'
const AIO_NEEDS_DIRECT = 'aio is asynchronous for direct I/O only'

/**
 * @param asked the option `engine`
 * @param direct whether the device will be opened with O_DIRECT
 */
export function chooseEngine(engine: Engine, asked: 'auto' | EngineName, direct: boolean, path: string): EngineInfo {
  if (asked !== 'auto') {
    if (asked === 'aio' && !direct) {
      throw invalidValue('options.engine', asked, `needs direct: true, since ${AIO_NEEDS_DIRECT}`)
    }
    const failure = engine.start(asked)
    if (failure === undefined) return { name: asked, reason: `asked for; ${WORKS}` }
    throw new BlockError(failure.errno, {
      syscall: failure.syscall,
      path,
      engine: asked,
      reason: why(asked, failure),
      advice: "or leave options.engine out: 'auto' takes the first that works",
    })
  }
  const refused: string[] = []
  let last: Failure = { errno: constants.errno.ENOSYS, syscall: 'open' }
  for (const name of ENGINES) {
    if (name === 'aio' && !direct) {
      refused.push(AIO_NEEDS_DIRECT)
      continue
    }
    const failure = engine.start(name)
    if (failure === undefined) {
      if (refused.length === 0) return { name, reason: `the first choice; ${WORKS}` }
      return { name, reason: `${refused.join('; ')}; ${name}: ${WORKS}` }
    }
    last = failure
    refused.push(why(name, failure))
  }
  throw new BlockError(last.errno, {
    syscall: last.syscall,
    path,
    reason: `no engine works: ${refused.join('; ')}`,
    advice: 'one of them must be allowed',
  })
}

/** What a refusal means, and what can be done about it. */
function why(name: EngineName, { errno, syscall }: Failure): string {
  const code = errnoName(errno)
  return `${name} does not work here (${syscall}: ${code}): ${remedy(name, code)}`
}

function remedy(name: EngineName, code: string): string {
  switch (name) {
    case 'io_uring':
      if (code === 'EPERM' || code === 'EACCES') {
        return 'it is forbidden, by a seccomp profile (containers have one by default) or by sysctl kernel.io_uring_disabled: allow it there'
      }
      if (code === 'ENOSYS') return 'the kernel has none, or one older than 5.6, or a seccomp profile hides it'
      if (code === 'ENOMEM') return 'no memory for a ring; raise the limit on locked memory (ulimit -l)'
      break
    case 'aio':
      if (code === 'EAGAIN') return 'all events are in use; raise sysctl fs.aio-max-nr'
      if (code === 'EPERM') return 'it is forbidden by a seccomp profile'
      if (code === 'ENOSYS') return 'the kernel has none, or a seccomp profile hides it'
      break
    case 'threads':
      if (code === 'EAGAIN') return 'no thread can be started; raise the limit on processes (ulimit -u)'
      break
  }
  return 'the kernel refused it'
}
