// Makes plain JavaScript of test code that runs outside of the test runner: in worker threads and in processes of their own.
// What is compiled may import 'multiwrite', Node's own modules, and its neighbours; never vitest.

import { execFileSync } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { temporaryDirectory } from './targets.ts'

const root = fileURLToPath(new URL('../../', import.meta.url))
const compiler = path.join(root, 'node_modules/typescript/bin/tsc')

/**
 * @param program a file below `test/`, such as `'matrix/worker.ts'`; what it imports is compiled with it
 * @returns the path of its JavaScript, and what removes it
 */
export function compiled(program: string): { path: string; cleanup(): void } {
  // Inside the package, so that its own name leads to the built library.
  const { path: directory, cleanup } = temporaryDirectory(path.join(root, '.cache/tests'))
  try {
    // Types are checked with all the others (tsconfig.test.json); here only JavaScript is wanted.
    const language = ['--ignoreConfig', '--noCheck', '--target', 'es2022', '--module', 'nodenext', '--types', 'node']
    const files = ['--rewriteRelativeImportExtensions', '--rootDir', path.join(root, 'test'), '--outDir', directory]
    execFileSync(process.execPath, [compiler, ...language, ...files, path.join(root, 'test', program)], {
      cwd: root,
      stdio: 'pipe',
    })
    return { path: path.join(directory, program.replace(/\.ts$/, '.js')), cleanup }
  } catch (error) {
    cleanup()
    throw error
  }
}
