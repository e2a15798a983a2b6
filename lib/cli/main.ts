#!/usr/bin/env node

// `multiwrite COMMAND`: finds the command and runs it.

import { bench } from './bench/command.ts'
import { checkCommand } from './check.ts'
import { type Command, EXIT, runCommand } from './command.ts'
import { convertCommand } from './convert.ts'
import { infoCommand } from './info.ts'
import { replayCommand } from './replay-command.ts'
import { writeCommand } from './write.ts'

const COMMANDS: readonly Command[] = [infoCommand, writeCommand, convertCommand, checkCommand, replayCommand, bench]

const USAGE = `usage: multiwrite COMMAND [options]

${COMMANDS.map(({ name, summary }) => `  ${name.padEnd(10)}${summary}`).join('\n')}

"multiwrite COMMAND --help" tells more.
exit status: 0 done, 1 I/O or verification failed, 2 usage, 3 refused for
safety
`

const [name, ...args] = process.argv.slice(2)
const command = COMMANDS.find((known) => known.name === name)
if (command !== undefined) await runCommand(command, args)
else if (name === '--help' || name === '-h' || name === 'help') process.stdout.write(USAGE)
else {
  process.stderr.write(name === undefined ? USAGE : `multiwrite: there is no command "${name}"\n\n${USAGE}`)
  process.exitCode = EXIT.usage
}
