#!/usr/bin/env node
// `multiwrite COMMAND`: finds the command, runs it, and turns what it throws into a message and an exit status.

import { type Command, EXIT, type ExitStatus, explain, Stop, statusOf } from './command.ts'
import { writeCommand } from './write.ts'

const COMMANDS: readonly Command[] = [writeCommand]

const USAGE = `usage: multiwrite COMMAND [options]

${COMMANDS.map(({ name, summary }) => `  ${name.padEnd(10)}${summary}`).join('\n')}

"multiwrite COMMAND --help" tells more.
exit status: 0 done, 1 I/O or verification failed, 2 usage, 3 refused for safety
`

async function run([name, ...args]: readonly string[]): Promise<ExitStatus> {
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    ;(name === undefined ? process.stderr : process.stdout).write(USAGE)
    return name === undefined ? EXIT.usage : EXIT.done
  }
  const command = COMMANDS.find((known) => known.name === name)
  if (command === undefined) throw new Stop(EXIT.usage, `there is no command "${name}"; "multiwrite --help" lists them`)
  return command.run(args)
}

const [name, ...args] = process.argv.slice(2)
try {
  process.exitCode = await run(name === undefined ? [] : [name, ...args])
} catch (error) {
  const known = COMMANDS.some((command) => command.name === name)
  process.stderr.write(`multiwrite${known ? ` ${name}` : ''}: ${explain(error)}\n`)
  process.exitCode = statusOf(error)
}
