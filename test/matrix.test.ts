// One behaviour: the same suite on every engine, on every kind of target, in the main thread and in a worker. Each case must hold
// everywhere, and on one kind of target its report must be the same, byte for byte and word for word.

import { createHash } from 'node:crypto'
import { Worker } from 'node:worker_threads'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Context, cases, type Result, runAll, size } from './matrix/suite.ts'
import { compiled } from './support/compile.ts'
import {
  bufferedFile,
  directFile,
  type EngineName,
  engineNames,
  loop512,
  loop4096,
  type Target,
  tmpfsFile,
} from './support/targets.ts'

const entries = ['main thread', 'worker'] as const

let program: ReturnType<typeof compiled>
beforeAll(() => {
  program = compiled('matrix/worker.ts')
})
afterAll(() => program.cleanup())

/** The suite in a worker; resolves when the worker has ended. */
function inWorker(context: Context): Promise<Result[]> {
  return new Promise((resolve, reject) => {
    let results: Result[] | undefined
    const worker = new Worker(program.path, { workerData: context })
    worker.on('message', (message: Result[]) => {
      results = message
    })
    worker.on('error', reject)
    worker.on('exit', (code) => {
      if (results !== undefined && code === 0) resolve(results)
      else reject(new Error(`the worker ended with ${code}, ${results === undefined ? 'without' : 'with'} results`))
    })
  })
}

describe.each(
  [bufferedFile, directFile, loop512, loop4096, tmpfsFile].map((target) => ({ target, name: target.name })),
)('$name', ({ target }) => {
  /** What came of the first run of all: every other one is compared with it. */
  let reference: Map<string, Result> | undefined

  for (const engine of engineNames) {
    if (engine === 'aio' && !target.direct) continue
    describe.skipIf(!target.available).each(entries)(
      `${engine} in the %s${target.reason && ` (${target.reason})`}`,
      (entry) => {
        const results = new Map<string, Result>()

        beforeAll(async () => {
          for (const result of await run(target, engine, entry)) results.set(result.name, result)
          reference ??= results
        })

        test.each([...Object.keys(cases), 'the content in the end'])('%s', (name) => {
          const result = results.get(name)
          expect(result?.failure).toBeUndefined()
          expect(result?.report).toBeDefined()
          expect(result?.report).toEqual(reference?.get(name)?.report)
        })
      },
    )
  }
})

async function run(target: Target, engine: EngineName, entry: (typeof entries)[number]): Promise<Result[]> {
  const made = target.make(size)
  try {
    const context: Context = { path: made.path, options: { ...made.options, engine }, sectorSize: made.sectorSize }
    const results = entry === 'worker' ? await inWorker(context) : await runAll(context)
    // As it was sent between threads: what is undefined is left out.
    const plain = JSON.parse(JSON.stringify(results)) as Result[]
    const report = createHash('sha256').update(made.readBack()).digest('hex')
    return [...plain, { name: 'the content in the end', report }]
  } finally {
    made.cleanup()
  }
}
