// `multiwrite bench`: reads the words, makes the target ready, measures, and prints.

import { writeFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { type Command, EXIT, type ExitStatus, Stop } from '../command.ts'
import { Interrupt } from '../interrupt.ts'
import { progressDescriptor } from '../progress.ts'
import { type Comparison, compare, formatComparison } from './compare.ts'
import { type Arguments, parseArguments } from './job.ts'
import { formatHtml } from './output-html.ts'
import { formatResult } from './output-human.ts'
import { formatJson } from './output-json.ts'
import { prepare } from './prepare.ts'
import { Progress } from './progress.ts'
import type { Result } from './results.ts'
import { runLoad } from './run.ts'
import { formatSweep, runSweep } from './sweep.ts'
import { USAGE } from './usage.ts'

export const bench: Command = {
  name: 'bench',
  run,
}

async function run(argv: readonly string[]): Promise<ExitStatus> {
  const args = parseArguments(argv)
  if (args === 'help') {
    process.stdout.write(USAGE)
    return EXIT.done
  }
  const progress = new Progress(process.stderr, progressDescriptor(args.progress))
  const stop = new Int32Array(new SharedArrayBuffer(4))
  try {
    for (const file of [args.json, args.html]) checkOutput(file, args.job.filename)
    const { setting, release } = await prepare(args.job, args.force, progress)
    let outcome: Outcome
    const interrupt = new Interrupt()
    // What other threads can see.
    interrupt.signal.addEventListener('abort', () => {
      stop[0] = 1
    })
    try {
      outcome = await measure(args, setting, stop, progress)
    } finally {
      interrupt.stop()
      await release()
    }
    report(args, outcome)
    if (interrupt.signal.aborted) interrupt.die()
    const bad = outcome.results.some(({ failed, verified }) => failed !== null || verified?.mismatch)
    return bad ? EXIT.failed : EXIT.done
  } finally {
    progress.clear()
  }
}

/** A file for results that can't be written to is told before anything is measured, not after. */
function checkOutput(file: string | null, target: string): void {
  if (file === null || file === '-') return
  if (resolve(file) === resolve(target))
    throw new Stop(EXIT.usage, `${file} is what is measured: name another file for the results`)
  try {
    writeFileSync(file, '')
  } catch (error) {
    throw new Stop(EXIT.usage, `${(error as Error).message}: name a file that can be written`)
  }
}

interface Outcome {
  results: Result[]
  comparison: Comparison | null
}

async function measure(
  args: Arguments,
  setting: Result['setting'],
  stop: Int32Array,
  progress: Progress,
): Promise<Outcome> {
  const { job, sweep } = args
  if (sweep !== null) return { results: await runSweep(job, sweep, setting, stop, progress), comparison: null }
  if (args.compare.length === 0) {
    return { results: [await runLoad(job, setting, stop, progress)], comparison: null }
  }
  const { comparison, result } = await compare(args, setting, stop, progress)
  return { results: [result], comparison }
}

function report(args: Arguments, { results, comparison }: Outcome): void {
  if (args.html !== null) writeFileSync(args.html, formatHtml(results, args.sweep, comparison))
  const json = args.json === null ? null : `${formatJson(results, args.given, comparison)}\n`
  if (json !== null && args.json !== '-') writeFileSync(args.json!, json)
  if (args.json === '-') {
    process.stdout.write(json!)
    return
  }
  const parts = args.sweep === null ? results.map(formatResult) : [formatSweep(results, args.sweep)]
  if (comparison !== null) parts.push(formatComparison(comparison))
  for (const { failed } of args.sweep === null ? [] : results)
    if (failed) parts.push(`ended by an error: ${failed.message}`)
  process.stdout.write(`${parts.join('\n\n')}\n`)
}
