import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'

const built = (file: string): string => fileURLToPath(new URL(`./dist/${file}`, import.meta.url))

export default defineConfig({
  resolve: {
    alias: [
      { find: /^multiwrite\/planner$/, replacement: built('planner.js') },
      { find: /^multiwrite$/, replacement: built('index.js') },
    ],
  },
  test: {
    include: ['test/**/*.test.ts'],
    // Worker threads would load and unload the addon once per file: that is a test of its own, not the way to run the others.
    pool: 'forks',
    fileParallelism: false,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    reporters: ['default', './test/support/tally.ts'],
  },
})
