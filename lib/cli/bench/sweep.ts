// Every size at every depth, one load after another, and the tables of what came out.

import { formatTable } from '../report.ts'
import type { Job, Sweep } from './job.ts'
import type { Progress } from './progress.ts'
import { bandwidthOf, iopsOf, type Result, type Setting, totalOf } from './results.ts'
import { runLoad } from './run.ts'
import { binaryWord, countWord, latencyWord, sizeWord } from './units.ts'

/** @returns a result per load, sizes within depths; fewer if it was stopped or something failed */
export async function runSweep(
  job: Job,
  { depths, sizes }: Sweep,
  setting: Setting,
  stop: Int32Array,
  progress: Progress,
): Promise<Result[]> {
  const results: Result[] = []
  const total = depths.length * sizes.length
  for (const iodepth of depths) {
    for (const bs of sizes) {
      if (stop[0] !== 0 || results.at(-1)?.failed) return results
      progress.label = `${results.length + 1} of ${total}, iodepth=${iodepth} bs=${sizeWord(bs)}: `
      progress.say(progress.label)
      const name = `${job.name}-iodepth${iodepth}-bs${sizeWord(bs)}`
      // A batch is as large as the depth allows, as for a single load.
      const batch = Math.min(job.batch, iodepth)
      const one = { ...job, name, iodepth, bs, batch, batchComplete: Math.min(job.batchComplete, batch) }
      results.push(await runLoad(one, setting, stop, progress))
      progress.clear()
    }
  }
  progress.label = ''
  return results
}

/** A cell of the sweep. */
export function cellOf(results: readonly Result[], iodepth: number, bs: number): Result | undefined {
  return results.find(({ job }) => job.iodepth === iodepth && job.bs === bs)
}

export function formatSweep(results: readonly Result[], { depths, sizes }: Sweep): string {
  const table = (title: string, of: (result: Result) => string): string => {
    const rows = [[title, ...depths.map((depth) => `depth ${depth}`)]]
    for (const bs of sizes) {
      const cells = depths.map((depth) => {
        const cell = cellOf(results, depth, bs)
        return cell === undefined ? '-' : of(cell)
      })
      rows.push([sizeWord(bs), ...cells])
    }
    return formatTable(rows)
  }
  return [
    table('IOPS', (result) => countWord(iopsOf(totalOf(result), result.elapsed))),
    table('BW', (result) => `${binaryWord(bandwidthOf(totalOf(result), result.elapsed))}/s`),
    table('lat p50', (result) => latencyWord(totalOf(result).lat.percentile(50))),
    table('lat p99', (result) => latencyWord(totalOf(result).lat.percentile(99))),
  ].join('\n\n')
}
