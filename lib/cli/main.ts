#!/usr/bin/env node
// `multiwrite COMMAND`: finds the command, loads it, which no other has to wait for, and runs it.

import { type Command, EXIT, guardOutput, runCommand } from './command.ts'

/** A command, and where it lies. */
interface Entry {
  readonly name: string
  /** One line for the list. */
  readonly summary: string
  load(): Promise<Command>
}

const COMMANDS: readonly Entry[] = [
  {
    name: 'info',
    summary: 'what a device or image is, who uses it, which engine would serve it',
    load: async () => (await import('./info.ts')).infoCommand,
  },
  {
    name: 'write',
    summary: 'writes an image to a disk or file, and verifies it',
    load: async () => (await import('./write.ts')).writeCommand,
  },
  {
    name: 'convert',
    summary: 'makes a qcow2 image of a raw one, or the other way round',
    load: async () => (await import('./convert.ts')).convertCommand,
  },
  {
    name: 'check',
    summary: 'looks for contradictions in the metadata of a qcow2 image',
    load: async () => (await import('./check.ts')).checkCommand,
  },
  {
    name: 'replay',
    summary: 'replays recorded traffic merged, sorted and as given, and proves it',
    load: async () => (await import('./replay-command.ts')).replayCommand,
  },
  {
    name: 'bench',
    summary: 'measures a block device or file, in the words of fio',
    load: async () => (await import('./bench/command.ts')).bench,
  },
]

const USAGE = `usage: multiwrite COMMAND [options]

${COMMANDS.map(({ name, summary }) => `  ${name.padEnd(10)}${summary}`).join('\n')}

"multiwrite COMMAND --help" tells more.
exit status: 0 done, 1 I/O or verification failed, 2 usage, 3 refused for
safety
`

guardOutput()
const [name, ...args] = process.argv.slice(2)
const command = COMMANDS.find((known) => known.name === name)
if (command !== undefined) await runCommand(await command.load(), args)
else if (name === '--help' || name === '-h' || name === 'help') process.stdout.write(USAGE)
else {
  process.stderr.write(name === undefined ? USAGE : `multiwrite: there is no command "${name}"\n\n${USAGE}`)
  process.exitCode = EXIT.usage
}
