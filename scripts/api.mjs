// docs/api.md from the declarations that the compiler makes of the library: every exported name with its comment and its type.
// (typedoc wants the compiler as a JavaScript library, which this version of TypeScript is not.)
//
//     npm run docs              writes it
//     node scripts/api.mjs --check    ends with 1 if it is not what it would write, or a name has no comment

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../', import.meta.url))
const page = join(root, 'docs/api.md')
const ENTRIES = [
  ['multiwrite', 'dist/index.d.ts'],
  ['multiwrite/planner', 'dist/planner.d.ts'],
]
/** Made by the library and by nobody else. */
const HIDDEN = [/^ {4}constructor\(/, /^ {4}#private;/, /^ {4}private /]

/** Names that a file exports, and the file that each is declared in. */
function exportsOf(file) {
  const text = readFileSync(join(root, file), 'utf8')
  const found = []
  for (const [, names, from] of text.matchAll(/^export (?:type )?\{([^}]*)\} from '(.*)';$/gm)) {
    const declared = join(dirname(file), from.replace(/\.[jt]s$/, '.d.ts'))
    for (const name of names
      .split(',')
      .map((one) => one.trim())
      .filter(Boolean))
      found.push([name, declared])
  }
  for (const [, name] of text.matchAll(/^export (?:declare )?(?:class|interface|type|function|const) (\w+)/gm)) {
    found.push([name, file])
  }
  return found
}

/** A declaration and the comment before it. */
function declarationOf(name, file) {
  const path = join(root, file)
  if (!existsSync(path)) throw new Error(`${file} is missing: npm run build:lib`)
  const lines = readFileSync(path, 'utf8').split('\n')
  const start = lines.findIndex((line) =>
    new RegExp(`^export (?:declare )?(?:class|interface|type|function|const) ${name}\\b`).test(line),
  )
  if (start < 0) {
    // Passed on from another file.
    for (const [, names, from] of lines
      .join('\n')
      .matchAll(/^(?:import|export) (?:type )?\{([^}]*)\} from '(.*)';$/gm)) {
      const passedOn = names.split(',').some((one) => one.trim().replace(/^type /, '') === name)
      if (passedOn) return declarationOf(name, join(dirname(file), from.replace(/\.[jt]s$/, '.d.ts')))
    }
    throw new Error(`${name} is not declared in ${file}`)
  }
  let end = start
  // A block ends with a brace at the margin, anything else with its semicolon.
  if (/\{$/.test(lines[start])) while (!/^\}/.test(lines[end])) end++
  else while (!/;$/.test(lines[end])) end++
  let first = start
  if (/\*\/$/.test(lines[start - 1] ?? '')) {
    first = start - 1
    while (!/^\/\*\*/.test(lines[first])) first--
  }
  return { comment: textOf(lines.slice(first, start)), lines: lines.slice(start, end + 1) }
}

/** A comment without its stars, its tags as a list. */
function textOf(lines) {
  const text = lines
    .join('\n')
    .replace(/^\/\*\*\s?|\s*\*\/$/g, '')
    .replace(/^ \* ?/gm, '')
    .trim()
  return text.replace(/^@param (\w+) /gm, '- `$1`: ').replace(/^@(returns|throws) /gm, '- $1: ')
}

/** Members without those that are nobody's business, with their comments. */
function membersOf(lines) {
  const kept = []
  let pending = []
  for (const line of lines) {
    const inComment = /^ {4}(\/\*\*| \*)/.test(line)
    if (inComment) pending.push(line)
    else {
      if (!HIDDEN.some((pattern) => pattern.test(line))) kept.push(...pending, line)
      pending = []
    }
  }
  return kept
}

const undocumented = []

function section([title, file]) {
  const parts = [`## \`${title}\``]
  for (const [name, declared] of exportsOf(file).sort(([a], [b]) => a.localeCompare(b))) {
    const { comment, lines } = declarationOf(name, declared)
    if (comment === '') undocumented.push(name)
    const members = membersOf(lines)
    parts.push(
      `### ${name}`,
      comment,
      `\`\`\`ts\n${members.join('\n').replaceAll('export declare ', '').replaceAll('export ', '')}\n\`\`\``,
    )
  }
  return parts.filter(Boolean).join('\n\n')
}

const text = `# API

Made of the comments in the code by \`npm run docs\`; do not edit. What holds of all of it stands in [guarantees](guarantees.md).

${ENTRIES.map(section).join('\n\n')}
`

if (undocumented.length > 0) {
  console.error(`without a comment: ${undocumented.join(', ')}`)
  process.exitCode = 1
}
if (process.argv.includes('--check')) {
  if (!existsSync(page) || readFileSync(page, 'utf8') !== text) {
    console.error('docs/api.md is not of this code: npm run docs')
    process.exitCode = 1
  }
} else writeFileSync(page, text)
