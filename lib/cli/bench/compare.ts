// The same load by this library and by its peers, taking turns: A B C, A B C. What else happens on the machine meets all of
// them alike. Ratios are taken within a round, and the median of them is told.

import { EXIT, Stop } from '../command.ts'
import { formatTable } from '../report.ts'
import type { Arguments, Job, Peer } from './job.ts'
import { fioVersion, runFio } from './peer-fio.ts'
import type { Progress } from './progress.ts'
import { bandwidthOf, iopsOf, type Result, type Round, type Setting, totalOf } from './results.ts'
import { runLoad } from './run.ts'
import { binaryWord, countWord, latencyWord } from './units.ts'

interface Spread {
  min: number
  median: number
  max: number
}

interface Contender {
  name: string
  rounds: Round[]
  spread: Record<keyof Round, Spread>
  /** Ours as a multiple of this one, round by round: requests a second, and latencies. */
  ratio: Record<'iops' | 'p50_ns' | 'p99_ns', Spread> | null
}

export interface Comparison {
  contenders: Contender[]
  /** Peers that there are not, and why. */
  missing: Record<string, string>
}

/** @returns the comparison, `null` if it was ended in its first round; and our own last round in full */
export async function compare(
  args: Arguments,
  setting: Setting,
  stop: Int32Array,
  progress: Progress,
): Promise<{ comparison: Comparison | null; result: Result }> {
  const { job, rounds } = args
  const missing: Record<string, string> = {}
  const peers = args.compare.filter((peer) => {
    const reason = whyNot(peer, job)
    if (reason !== null) missing[peer] = reason
    return reason === null
  })
  if (peers.length === 0)
    throw new Stop(
      EXIT.failed,
      `nothing to compare with: ${Object.values(missing).join('; ')}. Leave out --compare, or change that`,
    )
  const names = ['multiwrite', ...peers]
  const measured = names.map((): Round[] => [])
  let result: Result | null = null
  turns: for (let round = 1; round <= rounds; round++) {
    for (const [index, name] of names.entries()) {
      progress.label = `round ${round} of ${rounds}, ${name}: `
      progress.say(progress.label)
      const ours =
        name === 'fio' ? null : await runLoad(job, setting, stop, progress, name === 'fs' ? 'fs' : 'multiwrite')
      if (ours?.failed) throw new Stop(EXIT.failed, `${name}: ${ours.failed.message}`)
      if (name === 'multiwrite') result = ours
      const one = ours === null ? await runFio(job, setting, stop) : roundOf(ours)
      progress.clear()
      // What was ended early can't be compared.
      if (stop[0] !== 0) break turns
      measured[index]!.push(one)
    }
  }
  progress.label = ''
  const whole = Math.min(...measured.map((each) => each.length))
  if (whole === 0) return { comparison: null, result: result! }
  const [ours] = measured
  const contenders = names.map((name, index) =>
    contender(name, measured[index]!.slice(0, whole), index === 0 ? null : ours!.slice(0, whole)),
  )
  return { comparison: { contenders, missing }, result: result! }
}

function whyNot(peer: Peer, job: Job): string | null {
  if (peer === 'fio' && fioVersion() === null) return 'fio is not installed'
  if (peer === 'fs' && job.batchComplete > 1) return 'node:fs has no batches to wait for'
  return null
}

function roundOf(result: Result): Round {
  const total = totalOf(result)
  const { spent, elapsed } = result
  return {
    iops: iopsOf(total, elapsed),
    bytesPerSecond: bandwidthOf(total, elapsed),
    mean_ns: total.lat.mean,
    p50_ns: total.lat.percentile(50),
    p99_ns: total.lat.percentile(99),
    user_us: spent.user_us / Math.max(1, total.requests),
    system_us: spent.system_us / Math.max(1, total.requests),
  }
}

function contender(name: string, rounds: Round[], ours: Round[] | null): Contender {
  const of = (key: keyof Round): Spread => spreadOf(rounds.map((round) => round[key]))
  const ratio = (key: 'iops' | 'p50_ns' | 'p99_ns'): Spread =>
    spreadOf(rounds.map((round, i) => (ours![i]?.[key] ?? Number.NaN) / round[key]))
  return {
    name,
    rounds,
    spread: {
      iops: of('iops'),
      bytesPerSecond: of('bytesPerSecond'),
      mean_ns: of('mean_ns'),
      p50_ns: of('p50_ns'),
      p99_ns: of('p99_ns'),
      user_us: of('user_us'),
      system_us: of('system_us'),
    },
    ratio: ours === null ? null : { iops: ratio('iops'), p50_ns: ratio('p50_ns'), p99_ns: ratio('p99_ns') },
  }
}

export function spreadOf(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
  return { min: sorted[0]!, median, max: sorted.at(-1)! }
}

export function formatComparison({ contenders, missing }: Comparison): string {
  const times = (ratio: Spread): string => `${ratio.median.toFixed(2)}x`
  const rows = [['', 'IOPS', 'BW', 'p50', 'p99', 'CPU us/request', 'IOPS ratio', 'p50 ratio', 'p99 ratio']]
  for (const { name, spread, ratio } of contenders) {
    rows.push([
      contenderName(name),
      countWord(spread.iops.median),
      `${binaryWord(spread.bytesPerSecond.median)}/s`,
      latencyWord(spread.p50_ns.median),
      latencyWord(spread.p99_ns.median),
      `${spread.user_us.median.toFixed(2)} + ${spread.system_us.median.toFixed(2)}`,
      ...(ratio === null ? ['', '', ''] : [times(ratio.iops), times(ratio.p50_ns), times(ratio.p99_ns)]),
    ])
  }
  const lines = [
    formatTable(rows),
    '',
    `Medians of ${contenders[0]!.rounds.length} rounds, taking turns; a ratio is multiwrite's figure over the peer's in the same round.`,
    'CPU is user + system.',
  ]
  for (const [peer, reason] of Object.entries(missing)) lines.push(`${peer} is left out: ${reason}`)
  return lines.join('\n')
}

/** As the reports call it. */
export function contenderName(name: string): string {
  return name === 'fs' ? `node:fs (${process.env.UV_THREADPOOL_SIZE ?? 4} threads)` : name
}
