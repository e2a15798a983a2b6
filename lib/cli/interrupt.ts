// A command that is interrupted ends in good order: nothing new is started, what is in flight is finished, what was done is said.
// Then the process ends by the signal, so that whoever waits for it sees that. A second signal ends it at once.

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

export class Interrupt {
  readonly #controller = new AbortController()
  readonly #listeners = new Map<NodeJS.Signals, () => void>()
  #signal: NodeJS.Signals | null = null

  constructor() {
    for (const name of SIGNALS) {
      const listener = (): void => {
        this.#signal ??= name
        this.#controller.abort()
        // The next one finds no listener and does what it always does.
        this.stop()
      }
      this.#listeners.set(name, listener)
      process.on(name, listener)
    }
  }

  /** Raised by the first signal. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Signals do again what they always do. */
  stop(): void {
    for (const [name, listener] of this.#listeners) process.off(name, listener)
    this.#listeners.clear()
  }

  /** Ends the process by the signal that came. */
  die(): void {
    this.stop()
    process.kill(process.pid, this.#signal ?? 'SIGINT')
  }
}
