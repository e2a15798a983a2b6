// What can come between while a device is opened, besides the device: no descriptor to read its limits with, a name that goes.

import { describe, expect, test } from 'vitest'
import { runChild } from './support/child.ts'
import { directFile, loop512, loop4096, type Target, withTarget } from './support/targets.ts'

const titled = (title: string, { name, reason }: Target): string => `${title} (${name}${reason && `, ${reason}`})`

describe('no descriptors are left', () => {
  // Limits that could not be read were taken for limits that are not stated, and a default stood for them: direct I/O that is
  // not aligned, runs of more segments than the device takes.
  for (const target of [loop512, loop4096, directFile]) {
    test.skipIf(!target.available)(
      titled('however few there are, open says so or knows the true limits, and leaves none open', target),
      async () => {
        const script = `
          import fs from 'node:fs'
          import { open } from 'multiwrite'
          const options = { direct: true, readOnly: true, engine: 'threads' }
          const whole = await open(process.env.TARGET, options)
          await whole.close()
          const limits = JSON.stringify(whole.limits)
          const taken = []
          const take = () => {
            try {
              for (;;) taken.push(fs.openSync('/dev/null', 'r'))
            } catch (error) {
              if (error.code !== 'EMFILE') throw error
            }
          }
          const came = []
          for (let left = 0; left < 8; left++) {
            take()
            for (let i = 0; i < left; i++) fs.closeSync(taken.pop())
            const told = await open(process.env.TARGET, options).then(
              async (disk) => {
                const same = JSON.stringify(disk.limits) === limits
                await disk.close()
                return same ? 'ok' : JSON.stringify(disk.limits)
              },
              (error) => [error.name, error.code, error.path === process.env.TARGET].join(' '),
            )
            const before = taken.length
            take()
            came.push({ told, left: taken.length - before - left })
          }
          fs.writeSync(1, JSON.stringify(came))
        `
        await withTarget(target, 1 << 20, async (made) => {
          const wrapper = ['prlimit', '--nofile=100:100']
          const child = await runChild(script, { wrapper, env: { TARGET: made.path }, silence: 20_000 })
          expect(child).toMatchObject({ stderr: '', code: 0 })
          const came = JSON.parse(child.stdout) as { told: string; left: number }[]
          expect(came.filter(({ told }) => told !== 'ok' && told !== 'BlockError EMFILE true')).toEqual([])
          expect(came.map(({ left }) => left)).toEqual(came.map(() => 0))
          // From too few to enough: the one that fails while it reads the limits is between.
          expect(came[0]?.told).toBe('BlockError EMFILE true')
          expect(came.at(-1)?.told).toBe('ok')
        })
      },
    )
  }
})

describe('no descriptors are left to look with', () => {
  // It was told that nobody holds it.
  test.skipIf(!loop512.available)(titled('who holds a device is not known', loop512), async () => {
    const script = `
      import fs from 'node:fs'
      import { holdersOf, open } from 'multiwrite'
      const before = await holdersOf(process.env.TARGET)
      try {
        for (;;) fs.openSync('/dev/null', 'r')
      } catch {}
      const told = await holdersOf(process.env.TARGET).catch((error) => [error.name, error.code, error.message].join(' '))
      fs.writeSync(1, JSON.stringify({ before, told }))
    `
    await withTarget(loop512, 1 << 20, async (made) => {
      const wrapper = ['prlimit', '--nofile=100:100']
      const child = await runChild(script, { wrapper, env: { TARGET: made.path }, silence: 20_000 })
      expect(child).toMatchObject({ stderr: '', code: 0 })
      const { before, told } = JSON.parse(child.stdout) as { before: string[]; told: string }
      expect(before).toEqual([])
      expect(told).toContain('BlockError EMFILE')
      expect(told).toContain('who holds the device could not be found out')
    })
  })
})

describe('a busy device', () => {
  // It rejected with an error of Node's.
  test.skipIf(!loop512.available)(
    titled('whose name goes before it is looked for who holds it is busy', loop512),
    async () => {
      const script = `
        import fs from 'node:fs'
        import { syncBuiltinESMExports } from 'node:module'
        import { open } from 'multiwrite'
        const path = process.env.TARGET
        const holder = await open(path)
        const stat = fs.promises.stat
        let asked = 0
        fs.promises.stat = async (name, ...more) => {
          if (name === path && ++asked > 1) throw Object.assign(new Error('gone'), { code: 'ENOENT', errno: -2, syscall: 'stat' })
          return stat(name, ...more)
        }
        syncBuiltinESMExports()
        const told = await open(path).then(() => 'opened', ({ name, code, syscall, path }) => ({ name, code, syscall, path }))
        await holder.close()
        console.log(JSON.stringify({ asked, told }))
      `
      await withTarget(loop512, 1 << 20, async (made) => {
        const child = await runChild(script, { env: { TARGET: made.path }, silence: 10_000 })
        expect(child).toMatchObject({ stderr: '', code: 0 })
        const told = { name: 'BlockError', code: 'EBUSY', syscall: 'open', path: made.path }
        expect(JSON.parse(child.stdout)).toEqual({ asked: 2, told })
      })
    },
  )
})
