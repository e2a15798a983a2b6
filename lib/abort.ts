// Listening to AbortSignals: one listener per signal, however many requests it was given with.

import { AbortError } from './errors.ts'
import { invalidType } from './errors-argument.ts'

/** What runs when a signal is raised, and the listener that runs it. */
interface Listening {
  readonly runs: Set<() => void>
  readonly listener: () => void
}

const listening = new WeakMap<AbortSignal, Listening>()

/** Checks the option `signal`. */
export function readSignal(signal: unknown): AbortSignal | undefined {
  if (signal === undefined || signal instanceof AbortSignal) return signal
  throw invalidType('options.signal', 'AbortSignal', signal)
}

/** Throws if the signal has been raised already: then nothing is done and no callback called. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new AbortError(signal.reason)
}

/** Calls `run` when the signal is raised, unless the returned function was called before. */
export function onAbort(signal: AbortSignal, run: () => void): () => void {
  const current = listening.get(signal) ?? listen(signal)
  current.runs.add(run)
  return () => {
    current.runs.delete(run)
    if (current.runs.size > 0 || listening.get(signal) !== current) return
    // A signal that is listened to is kept alive until it is raised, which may be never.
    listening.delete(signal)
    signal.removeEventListener('abort', current.listener)
  }
}

function listen(signal: AbortSignal): Listening {
  const runs = new Set<() => void>()
  const listener = (): void => {
    listening.delete(signal)
    for (const run of [...runs]) run()
  }
  const current = { runs, listener }
  listening.set(signal, current)
  signal.addEventListener('abort', listener, { once: true })
  return current
}
