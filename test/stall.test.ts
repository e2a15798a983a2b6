// One request at a time and nothing else in the event loop: where a completion is not announced, nothing ever wakes it up
// again. So each write and each read is awaited in a process that has no timer and no other handle; progress is watched from
// here, because a watchdog inside would be the very thing that wakes the loop.

import { expect, test } from 'vitest'
import { runChild } from './support/child.ts'
import { difference } from './support/model.ts'
import { bufferedFile, directFile, engines, loop512, withTarget } from './support/targets.ts'

const count = 20_000

const script = (engine: string, direct: boolean): string => `
  import fs from 'node:fs'
  import { open } from 'multiwrite'
  const disk = await open(process.env.TARGET, { engine: '${engine}', direct: ${direct} })
  const page = disk.alloc(4096)
  for (let done = 0; done < ${count}; done++) {
    page.writeUInt32LE(done, 0)
    const offset = (done % 64) * 4096
    if (done % 4 === 3) await disk.read(offset - 4096, page)
    else await disk.write(offset, page)
    // Synchronous: an ordinary write to the pipe would put another handle into the loop.
    if (done % 50 === 49) fs.writeSync(1, '.')
  }
  fs.writeSync(1, 'done')
  await disk.close()
`

for (const engine of engines) {
  const scarce = loop512.available ? loop512 : directFile
  for (const target of [scarce, bufferedFile]) {
    if (engine === 'aio' && !target.direct) continue
    test.skipIf(!target.available)(
      `${engine}, ${target.name}: ${count} requests, each awaited, never stall`,
      async () => {
        await withTarget(target, 64 * 4096, async (made) => {
          const env = { TARGET: made.path }
          const child = await runChild(script(engine, target.direct), { env, silence: 2000 })
          expect(child.stderr).toBe('')
          expect(child.stdout).toBe(`${'.'.repeat(count / 50)}done`)
          expect(child.code).toBe(0)
          // The last write to the second page: what was counted was really done.
          const last = Array.from({ length: count }, (_, done) => done)
            .filter((done) => done % 64 === 1)
            .at(-1) as number
          const expected = Buffer.alloc(4)
          expected.writeUInt32LE(last)
          expect(difference(made.readBack().subarray(4096, 4100), expected)).toBeNull()
        })
      },
      300_000,
    )
  }
}

// Looking for completions goes on as long as they come in time: it must not keep the rest of the event loop from its turn.
test.each(engines.filter((engine) => engine !== 'aio'))(
  '%s: timers run while completions are polled for, and the process ends',
  async (engine) => {
    const polled = `
    import { open } from 'multiwrite'
    const disk = await open(process.env.TARGET, { engine: '${engine}', busyPollUs: 1_000_000 })
    const page = disk.alloc(4096)
    let fired = false
    setTimeout(() => { fired = true }, 1)
    for (let done = 0; !fired; done++) {
      if (done === 1_000_000) throw new Error('the timer never ran')
      await disk.write(0, page)
    }
    console.log('fired')
  `
    await withTarget(bufferedFile, 4096, async (made) => {
      const child = await runChild(polled, { env: { TARGET: made.path }, silence: 20_000 })
      expect(child).toEqual({ code: 0, signal: null, stdout: 'fired\n', stderr: '' })
    })
  },
)
