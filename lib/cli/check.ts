// `multiwrite check IMAGE`: whether the metadata of a qcow2 image contradicts itself, and mends it if asked to.

import { type CheckResult, open } from '../index.ts'
import { type Command, EXIT, type ExitStatus, oneOf, parseArguments } from './command.ts'
import { formatBytes, formatCount, formatField } from './report.ts'
import { styleOf } from './style.ts'
import { asRefusal } from './target.ts'

const USAGE = `usage: multiwrite check [options] IMAGE

Looks at all metadata of IMAGE, a qcow2 image, and tells what contradicts
itself. The content is not looked at. Without --repair nothing is written.

  --repair   mends what can be mended; have a copy
  --json     the result as JSON
  --help

exit status: 0 sound (leaked clusters are lost space, no danger), 1 corrupt or
it can't be looked at, 2 usage, 3 refused for safety
`

const OPTIONS = {
  repair: { type: 'boolean' },
  format: { type: 'string' },
  json: { type: 'boolean' },
} as const

async function run(args: readonly string[]): Promise<ExitStatus> {
  const parsed = parseArguments(args, { usage: USAGE, options: OPTIONS, operands: ['IMAGE'] })
  if (parsed === null) return EXIT.done
  const { values, operands } = parsed
  const path = operands[0]!
  oneOf(values.format, 'format', ['qcow2'], USAGE)
  const repair = values.repair ?? false
  // What may lie below has no part in the metadata, and is not needed.
  const disk = await open(path, { format: 'qcow2', readOnly: !repair, backing: null }).catch((error: unknown) => {
    throw asRefusal(error)
  })
  let found: CheckResult
  try {
    found = await disk.check({ repair })
  } finally {
    await disk.close()
  }
  process.stdout.write(values.json ? `${JSON.stringify({ path, ...found }, null, 2)}\n` : `${asText(path, found)}\n`)
  return found.corruptions > 0 || found.checkErrors > 0 ? EXIT.failed : EXIT.done
}

function asText(path: string, found: CheckResult): string {
  const { bold, danger } = styleOf(process.stdout)
  const { leaks, corruptions, checkErrors, leaksFixed, corruptionsFixed } = found
  const count = (value: number, one: string, many: string): string =>
    `${formatCount(value)} ${value === 1 ? one : many}`
  const bad = [
    ...(corruptions > 0 ? [count(corruptions, 'corruption', 'corruptions')] : []),
    ...(checkErrors > 0 ? [`${count(checkErrors, 'thing', 'things')} that could not be looked at`] : []),
  ]
  const fixed = [
    ...(corruptionsFixed > 0 ? [count(corruptionsFixed, 'corruption', 'corruptions')] : []),
    ...(leaksFixed > 0 ? [count(leaksFixed, 'leaked cluster', 'leaked clusters')] : []),
  ]
  const verdict = bad.length > 0 ? danger(`${bad.join(', ')}: --repair mends what can be mended`) : 'sound'
  return [
    formatField('image', path).replace(path, bold(path)),
    formatField('metadata', verdict),
    ...(fixed.length > 0 ? [formatField('mended', fixed.join(', '))] : []),
    ...(leaks > 0
      ? [formatField('leaked', `${count(leaks, 'cluster', 'clusters')} of lost space; --repair gives it back`)]
      : []),
    formatField(
      'clusters',
      `${formatCount(found.allocatedClusters)} of ${formatCount(found.totalClusters)} allocated, ` +
        `${formatCount(found.fragmentedClusters)} out of order, ${formatCount(found.compressedClusters)} compressed`,
    ),
    formatField('end', `the last byte in use ends at ${formatBytes(found.imageEndOffset)}`),
  ].join('\n')
}

export const checkCommand: Command = {
  name: 'check',
  run,
}
