// The suite in a process of its own, on whatever Node runs it.

import { type Context, runAll } from './suite.ts'

process.stdout.write(JSON.stringify(await runAll(JSON.parse(process.env.CONTEXT ?? '') as Context)))
