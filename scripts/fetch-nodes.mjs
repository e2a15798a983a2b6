// Other Nodes to test the prebuilt addon on: each major version for x64, and one for arm64, from the npm packages that carry
// Node's own binaries. They go to .cache/nodes/, where the tests look; what is there already is not fetched again.
//
//   node scripts/fetch-nodes.mjs

import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const folder = fileURLToPath(new URL('../.cache/nodes/', import.meta.url))

for (const [arch, version] of [
  ['x64', 20],
  ['x64', 22],
  ['x64', 24],
  ['x64', 26],
  ['arm64', 22],
]) {
  const prefix = join(folder, `${arch}-${version}`)
  const name = `node-linux-${arch}`
  if (existsSync(join(prefix, 'node_modules', name, 'bin/node'))) continue
  mkdirSync(prefix, { recursive: true })
  // Forced: a Node for another architecture is for an emulator.
  const options = ['--prefix', prefix, '--no-save', '--ignore-scripts', '--no-audit', '--no-fund', '--force']
  execFileSync('npm', ['install', ...options, `${name}@${version}`], { stdio: ['ignore', 'ignore', 'inherit'] })
}
