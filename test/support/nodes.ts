// Other Nodes than the one that runs the tests: those that scripts/fetch-nodes.mjs has put aside.

import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** The path of a Node binary, or `null` where it was not fetched. */
export function nodeBinary(arch: 'x64' | 'arm64', major: number): string | null {
  const inside = `${arch}-${major}/node_modules/node-linux-${arch}/bin/node`
  const path = fileURLToPath(new URL(`../../.cache/nodes/${inside}`, import.meta.url))
  return existsSync(path) ? path : null
}

/** For the title of what is skipped. */
export const notFetched = 'skipped: not fetched; run node scripts/fetch-nodes.mjs'
