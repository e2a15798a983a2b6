// What every command of the command line has in common: its face, its exit statuses, and how it ends with a message.

/** Exit statuses. */
export const EXIT = { done: 0, failed: 1, usage: 2, refused: 3 } as const
export type ExitStatus = (typeof EXIT)[keyof typeof EXIT]

/** A command of `multiwrite`. Results go to standard output, messages to standard error. */
export interface Command {
  readonly name: string
  /** One line for the list of commands. */
  readonly summary: string
  /** @param args what follows the command's name */
  run(args: readonly string[]): Promise<ExitStatus>
}

/** Ends the command with a message and no stack. */
export class Stop extends Error {
  readonly status: ExitStatus

  constructor(status: ExitStatus, message: string) {
    super(message)
    this.status = status
  }
}
