// Where the addon lies, and what to tell people when none loads. Called by native.ts, which alone uses what it finds.
//
// In order: the one that MULTIWRITE_ADDON names (whoever names one wants that one, or an error), one that was built in the package
// folder, the prebuilt one that came with the package. A prebuilt binary serves every libc of its architecture, so there is one
// to look for and no guess about the system. Nothing is downloaded and nothing is built here.

import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)))
const BUILD = 'npm install --omit=dev --save-prod --no-save --ignore-scripts node-addon-api && npm run build:native'

/** An addon that may be there, and how it came there. */
export interface Candidate {
  readonly path: string
  readonly origin: 'named by MULTIWRITE_ADDON' | 'built here' | 'prebuilt'
}

/** Paths to try, best first. */
export function candidates(): readonly Candidate[] {
  const named = process.env.MULTIWRITE_ADDON
  if (named) return [{ path: named, origin: 'named by MULTIWRITE_ADDON' }]
  return [
    { path: join(ROOT, 'build', 'Release', 'multiwrite.node'), origin: 'built here' },
    { path: join(ROOT, 'build-cmake', 'Release', 'multiwrite.node'), origin: 'built here' },
    { path: join(ROOT, 'prebuilds', `${process.platform}-${process.arch}`, 'multiwrite.node'), origin: 'prebuilt' },
  ]
}

/**
 * Loads the first candidate that loads.
 *
 * @param load makes an addon of a path, or throws
 * @throws an `Error` with code `ERR_DLOPEN_FAILED` that names the system, each path with what became of it, and the remedy;
 *   with code `ENOMEM` where the addon is right and there is no memory for it now
 */
export function loadFirst<T>(load: (path: string) => T): T {
  const tried: string[] = []
  let cause: unknown
  for (const { path, origin } of candidates()) {
    if (!existsSync(path)) {
      tried.push(`${path} (${origin}): not there`)
      continue
    }
    try {
      return load(path)
    } catch (error) {
      // Another one would find no memory either.
      if ((error as NodeJS.ErrnoException | null)?.code === 'ENOMEM') throw error
      cause ??= error
      tried.push(`${path} (${origin}): ${error instanceof Error ? error.message : String(error)}`)
    }
  }
  const error = new Error(
    [
      `multiwrite: no native addon loads on ${process.platform}-${process.arch} (${libc()}, Node ${process.versions.node}). Tried:`,
      ...tried.map((one) => `  - ${one}`),
      remedy(),
    ].join('\n'),
    { cause },
  )
  throw Object.assign(error, { code: 'ERR_DLOPEN_FAILED' })
}

function remedy(): string {
  if (process.env.MULTIWRITE_ADDON)
    return 'Unset MULTIWRITE_ADDON to use the addon of the package, or name a file that loads.'
  return `Install the package again, or build the addon (it needs a C++ compiler, make and Python): cd "${ROOT}" && ${BUILD}`
}

/** The C library in words. */
function libc(): string {
  // Names of network interfaces are none of our business, and looking them up can be slow.
  const report = process.report as typeof process.report & { excludeNetwork?: boolean }
  const before = report.excludeNetwork
  report.excludeNetwork = true
  const { header } = report.getReport() as unknown as { header: { glibcVersionRuntime?: string } }
  if (before !== undefined) report.excludeNetwork = before
  return header.glibcVersionRuntime === undefined
    ? 'a libc other than glibc, such as musl'
    : `glibc ${header.glibcVersionRuntime}`
}
