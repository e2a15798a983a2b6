// `npm start`: what `multiwrite replay` does, with a trace of its own unless `--trace` names another, so that somebody who has
// just cloned the repository sees something happen.

import { type Command, ENGINES, EXIT, guardOutput, oneOf, parseArguments, runCommand } from './command.ts'
import { DEFAULT_TRACE, replayAs } from './replay-command.ts'

const USAGE = `usage: npm start -- [options] [TARGET]

Replays recorded block traffic on TARGET (a file or block device; without one,
on a file that is made for it and removed afterwards): merged, sorted only, and
as given. Then compares every byte of it with what must be there.

  --trace FILE    the recording: CSV, gzip'd or not,
                  "batch,time_us,op,offset,length"
  --yes           overwrite TARGET if it exists
  --direct        O_DIRECT on a file as well (block devices always)
  --engine NAME   io_uring, aio or threads instead of the first that works
  --json          the results as JSON
  --help

exit status: 0 done and every byte right, 1 failed, 2 usage, 3 refused
`

const OPTIONS = {
  trace: { type: 'string' },
  yes: { type: 'boolean' },
  direct: { type: 'boolean' },
  engine: { type: 'string' },
  json: { type: 'boolean' },
} as const

const demo: Command = {
  name: 'replay',
  async run(args) {
    const parsed = parseArguments(args, { usage: USAGE, options: OPTIONS, operands: ['TARGET'], optional: 1 })
    if (parsed === null) return EXIT.done
    const { values, operands } = parsed
    return replayAs({
      trace: values.trace ?? DEFAULT_TRACE,
      target: operands[0],
      force: values.yes ?? false,
      forceOption: '--yes',
      direct: values.direct ?? false,
      engine: oneOf(values.engine, 'engine', ENGINES, USAGE),
      progress: undefined,
      json: values.json ?? false,
    })
  },
}

guardOutput()
await runCommand(demo, process.argv.slice(2))
