// The last line of a test run, for people and scripts that read nothing else: `N passed, N failed`, and `, N skipped` where
// some were. It is written when the process exits, so that nothing comes after it: not the default reporter's summary, which
// is printed before, nor a late warning about what keeps the process open.
//
// Counted as failed besides failed tests: a file or a suite that could not be loaded or set up, a test that never ended, and
// an error that belongs to no test. So the line says `0 failed` only where the run succeeds.

import type { Reporter, TestModule, TestRunEndReason, Vitest } from 'vitest/node'

export default class Tally implements Reporter {
  #line = '0 passed, 0 failed'
  #watching = false

  onInit(vitest: Vitest): void {
    this.#watching = vitest.config.watch
    if (!this.#watching) process.once('exit', () => process.stdout.write(`${this.#line}\n`))
  }

  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly unknown[], reason: TestRunEndReason): void {
    let passed = 0
    let skipped = 0
    let failed = unhandledErrors.length
    for (const module of modules) {
      if (module.errors().length > 0) failed += 1
      for (const suite of module.children.allSuites()) {
        if (suite.errors().length > 0) failed += 1
      }
      for (const test of module.children.allTests()) {
        const { state } = test.result()
        if (state === 'passed') passed += 1
        else if (state === 'skipped') skipped += 1
        else if (state === 'failed' || reason !== 'interrupted') failed += 1
      }
    }
    this.#line = `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`
    if (this.#watching) process.stdout.write(`${this.#line}\n`)
  }
}
