// Where the first engine is refused the next one serves, and says why in words that tell what can be done. The refusals are real:
// system calls answered by strace or by a seccomp filter, in processes of their own.

import { execFile } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { gunzipSync } from 'node:zlib'
import { BlockError, open } from 'multiwrite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Plan } from './faults/child.ts'
import { type Outcome, units } from './faults/scenario.ts'
import { runChild } from './support/child.ts'
import { compiled } from './support/compile.ts'
import { noSeccomp, numberOf, type Refuser, refuser } from './support/seccomp.ts'
import { noStrace, runInjected } from './support/strace.ts'
import { bufferedFile, directFile, temporaryDirectory, withTarget } from './support/targets.ts'

/** Opens, writes, reads back and closes; prints which engine did so and why, or the error. */
const script = (options: string): string => `
  import { open, BlockError } from 'multiwrite'
  const print = (value) => console.log(JSON.stringify(value))
  try {
    const disk = await open(process.env.TARGET, ${options})
    const heard = []
    const requests = Array.from({ length: 300 }, (_, at) => ({
      offset: (at * 7 % 300) * 8192,
      data: Buffer.alloc(4096, at + 1),
      callback: (error) => heard.push(error),
    }))
    await disk.multiwrite(requests)
    await disk.flush()
    let wrong = 0
    const into = disk.alloc(4096)
    for (const { offset, data } of requests) {
      await disk.read(offset, into)
      if (!into.equals(data)) wrong++
    }
    await disk.close()
    print({ ...disk.engine, wrong, failed: heard.filter((error) => error !== null).length, heard: heard.length })
  } catch (error) {
    const { name, code, errno, syscall, engine, path, message } = error
    print({ name, code, errno, syscall, engine, path, message, own: error instanceof BlockError })
  }
`
const works = { wrong: 0, failed: 0, heard: 300 }
const size = 300 * 8192

type Printed = Record<string, unknown> & { name: string; reason: string; message: string }

async function injected(injections: readonly string[], options: string): Promise<Printed> {
  return withTarget(directFile, size, async (made) => {
    const child = await runInjected(script(options), injections, { TARGET: made.path })
    expect(child.stderr).toBe('')
    expect(child.code).toBe(0)
    expect(child.injected.length).toBeGreaterThan(0)
    const printed = JSON.parse(child.stdout) as Printed
    if ('path' in printed) expect(printed.path).toBe(made.path)
    return printed
  })
}

const noUring = 'io_uring_setup:error=EPERM'

describe.skipIf(noStrace !== '' || !directFile.available)(`refused by strace${noStrace && ` (${noStrace})`}`, () => {
  test.each([
    ['EPERM', /seccomp.*io_uring_disabled/],
    ['EACCES', /forbidden/],
    ['ENOSYS', /kernel/],
    ['ENOMEM', /locked memory.*ulimit -l/],
    ['EMFILE', /refused/],
  ])('io_uring_setup says %s: aio serves direct I/O, and says why', async (code, remedy) => {
    const { name, reason, ...rest } = await injected([`io_uring_setup:error=${code}`], '{ direct: true }')
    expect(name).toBe('aio')
    expect(rest).toEqual(works)
    expect(reason).toContain(`io_uring_setup: ${code}`)
    expect(reason).toMatch(remedy)
  })

  test('buffered I/O skips aio, and says so', async () => {
    for (const options of ['{ direct: false }', '{}']) {
      const { name, reason, ...rest } = await injected([noUring], options)
      expect(name).toBe('threads')
      expect(rest).toEqual(works)
      expect(reason).toContain('io_uring_setup: EPERM')
      expect(reason).toMatch(/aio.*direct/)
    }
  })

  test.each([
    ['io_setup', 'EAGAIN', /aio-max-nr/],
    ['io_setup', 'ENOSYS', /kernel/],
    ['io_setup', 'EPERM', /seccomp/],
    ['io_submit', 'EPERM', /seccomp/],
    ['io_submit', 'EINVAL', /refused/],
  ])('%s says %s as well: threads serve, and the reason names both', async (call, code, remedy) => {
    const { name, reason, ...rest } = await injected([noUring, `${call}:error=${code}`], '{ direct: true }')
    expect(name).toBe('threads')
    expect(rest).toEqual(works)
    expect(reason).toContain('io_uring_setup: EPERM')
    expect(reason).toContain(`${call}: ${code}`)
    expect(reason.slice(reason.indexOf(call))).toMatch(remedy)
  })

  // A profile may let a ring be made and forbid its use; the first operation tells.
  test.each(['io_uring_enter', 'io_uring_register'])('%s is forbidden: the next engine serves', async (call) => {
    const { name, reason, ...rest } = await injected([`${call}:error=EPERM`], '{ direct: true }')
    expect(name).toBe('aio')
    expect(rest).toEqual(works)
    expect(reason).toContain(`${call}: EPERM`)
  })

  test('no memory for a ring: smaller ones are tried first, and serve', async () => {
    for (const times of ['1', '1..2', '1..5']) {
      const { name, reason, ...rest } = await injected([`io_uring_setup:error=ENOMEM:when=${times}`], '{}')
      expect(name).toBe('io_uring')
      expect(reason).not.toContain('ENOMEM')
      expect(rest).toEqual(works)
    }
  })

  test('flags that an older kernel does not know are left out', async () => {
    for (const times of ['1', '1..2']) {
      const { name, ...rest } = await injected([`io_uring_setup:error=EINVAL:when=${times}`], '{}')
      expect(name).toBe('io_uring')
      expect(rest).toMatchObject(works)
    }
    expect(await injected(['io_uring_setup:error=EINVAL'], '{}')).toMatchObject({ name: 'threads', ...works })
  })

  test('fewer events for aio are asked for when there are not enough for all', async () => {
    const { name, ...rest } = await injected([noUring, 'io_setup:error=EAGAIN:when=1..2'], '{ direct: true }')
    expect(name).toBe('aio')
    expect(rest).toMatchObject(works)
  })

  test.each([
    ['io_uring', 'io_uring_setup', 'EPERM', 1, /seccomp/],
    ['io_uring', 'io_uring_setup', 'ENOSYS', 38, /kernel/],
    ['io_uring', 'io_uring_setup', 'ENOMEM', 12, /ulimit -l/],
    ['io_uring', 'io_uring_enter', 'EPERM', 1, /seccomp/],
    ['aio', 'io_setup', 'EAGAIN', 11, /aio-max-nr/],
    ['aio', 'io_setup', 'ENOSYS', 38, /kernel/],
    ['aio', 'io_submit', 'EPERM', 1, /seccomp/],
  ])('%s, asked for by name, where %s says %s: an error that says so', async (engine, call, code, errno, remedy) => {
    const printed = await injected([`${call}:error=${code}`], `{ direct: true, engine: '${engine}' }`)
    expect(printed).toMatchObject({ name: 'BlockError', own: true, code, errno: -errno, syscall: call, engine })
    expect(printed.message).toContain(code)
    expect(printed.message).toMatch(remedy)
  })

  test('threads, asked for by name, serve whatever is refused to the others', async () => {
    // Something must be answered for the check that anything was.
    const { name, ...rest } = await injected(['fdatasync:error=EINTR:when=1'], `{ engine: 'threads' }`)
    expect(name).toBe('threads')
    expect(rest).toMatchObject(works)
  })

  test.each([
    ['aio', true, [noUring]],
    ['threads', false, [noUring]],
    ['threads', true, [noUring, 'io_setup:error=ENOSYS']],
  ] as const)(
    '%s serves in place of another as well as if it had been asked for (direct: %s)',
    async (engine, direct, refused) => {
      const program = compiled('faults/child.ts')
      try {
        const unit = 1000
        const target = direct ? directFile : bufferedFile
        await withTarget(target, units * unit, async (made) => {
          const plan: Plan = { path: made.path, options: { direct }, unit, runs: [[]] }
          const env = { PLAN: JSON.stringify(plan) }
          const child = await runInjected(`await import(${JSON.stringify(program.path)})`, refused, env)
          expect(child.stderr).toBe('')
          expect(child.code).toBe(0)
          const outcome = JSON.parse(child.stdout) as Outcome
          expect(outcome).toMatchObject({ engine, wrong: [], errors: [], flushes: ['ok', 'ok', 'ok'] })
        })
      } finally {
        program.cleanup()
      }
    },
  )

  test('a refusal leaves nothing open, however often it is met, and other engines go on', async () => {
    const source = `
      import fs from 'node:fs'
      import { open } from 'multiwrite'
      const first = await open(process.env.TARGET, { engine: 'threads' })
      const count = () => fs.readdirSync('/proc/self/fd').length
      const before = count()
      const codes = new Set()
      for (let at = 0; at < 20; at++) {
        for (const engine of ['io_uring', 'aio']) {
          codes.add(await open(process.env.TARGET, { engine, direct: true }).then(() => 'opened', (error) => error.code))
        }
      }
      const after = count()
      await first.write(0, Buffer.alloc(4096, 5))
      await first.close()
      console.log(JSON.stringify({ codes: [...codes], left: after - before }))
    `
    await withTarget(directFile, size, async (made) => {
      const refused = ['io_uring_enter:error=EPERM', 'io_submit:error=ENOSYS']
      const child = await runInjected(source, refused, { TARGET: made.path })
      expect(child.stderr).toBe('')
      expect(JSON.parse(child.stdout)).toEqual({ codes: ['EPERM', 'ENOSYS'], left: 0 })
    })
  })
})

describe('without any refusal', () => {
  test('the first engine serves, and says so', async () => {
    for (const target of [bufferedFile, directFile]) {
      if (!target.available) continue
      await withTarget(target, size, async (made) => {
        const disk = await open(made.path, made.options)
        expect(disk.engine.name).toBe('io_uring')
        expect(disk.engine.reason).not.toBe('')
        // Final: it never changes, and neither does what is told of it.
        expect(disk.engine).toEqual({ ...disk.engine })
        await disk.close()
      })
    }
  })

  test('aio without direct I/O is an argument error that says so', async () => {
    await withTarget(bufferedFile, size, async (made) => {
      for (const options of [{ engine: 'aio' }, { engine: 'aio', direct: false }] as const) {
        const error: unknown = await open(made.path, options).catch((refusal: unknown) => refusal)
        expect(error).toBeInstanceOf(TypeError)
        expect(error).not.toBeInstanceOf(BlockError)
        expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_VALUE' })
        expect((error as Error).message).toContain('options.engine')
        expect((error as Error).message).toContain('direct')
      }
    })
  })

  test('two devices of one process may use different engines at once', async () => {
    if (!directFile.available) return
    await withTarget(directFile, size, async (made) => {
      const disks = await Promise.all(
        (['io_uring', 'aio', 'threads'] as const).map((engine) => open(made.path, { engine, direct: true })),
      )
      await Promise.all(disks.map((disk, at) => disk.write(at * 4096, Buffer.alloc(4096, at + 1))))
      for (const disk of disks) await disk.flush()
      const content = made.readBack()
      expect([0, 1, 2].map((at) => content[at * 4096])).toEqual([1, 2, 3])
      await Promise.all(disks.map((disk) => disk.close()))
    })
  })

  test.skipIf(process.getuid?.() !== 0)('where no thread can be started, threads are refused by name', async () => {
    const source = `
      import { execFileSync } from 'node:child_process'
      import fs from 'node:fs'
      import { open } from 'multiwrite'
      // Node's own pool is there before the limit is.
      await fs.promises.stat('.')
      execFileSync('prlimit', ['--pid', String(process.pid), '--nproc=1:1'])
      process.setgid(65533)
      process.setuid(65533)
      const refused = await open(process.env.TARGET, { engine: 'threads' }).catch((error) => error)
      const { name, code, syscall, message } = refused
      console.log(JSON.stringify({ name, code, syscall, message }))
    `
    await withTarget(bufferedFile, size, async (made) => {
      fs.chmodSync(path.dirname(made.path), 0o755)
      fs.chmodSync(made.path, 0o666)
      const child = await runChild(source, { env: { TARGET: made.path }, silence: 10_000 })
      expect(child.stderr).toBe('')
      const printed = JSON.parse(child.stdout) as Printed
      expect(printed).toMatchObject({ name: 'BlockError', code: 'EAGAIN', syscall: 'pthread_create' })
      expect(printed.message).toContain('ulimit -u')
    })
  })
})

describe.skipIf(noSeccomp !== '')(`under a seccomp filter${noSeccomp && ` (${noSeccomp})`}`, () => {
  const demo = fileURLToPath(new URL('../dist/cli/demo.js', import.meta.url))
  const trace = fileURLToPath(new URL('../bench/traces/ext4-cp.csv.gz', import.meta.url))
  let refuse: Refuser
  beforeAll(() => {
    refuse = refuser()
  })
  afterAll(() => refuse.cleanup())

  test.each([
    ['aio', true, numberOf.io_uring],
    ['threads', false, numberOf.io_uring],
    ['threads', true, [...numberOf.io_uring, ...numberOf.io_setup]],
  ] as const)('%s serves (direct: %s)', async (engine, direct, numbers) => {
    if (direct && !directFile.available) return
    await withTarget(directFile.available ? directFile : bufferedFile, size, async (made) => {
      const wrapper = refuse.wrapper(numbers)
      const child = await runChild(script(`{ direct: ${direct} }`), { env: { TARGET: made.path }, wrapper })
      expect(child.stderr).toBe('')
      const { name, reason, ...rest } = JSON.parse(child.stdout) as Printed
      expect(name).toBe(engine)
      expect(rest).toEqual(works)
      expect(reason).toContain('io_uring_setup: EPERM')
      expect(reason).toContain('seccomp')
    })
  })

  test.each([
    ['threads', [], numberOf.io_uring],
    ['aio', ['--direct'], numberOf.io_uring],
    ['threads', ['--direct'], [...numberOf.io_uring, ...numberOf.io_setup]],
  ] as const)('recorded traffic is replayed by %s, and every byte proved: %j', async (engine, flags, numbers) => {
    if (flags.length > 0 && !directFile.available) return
    const directory = temporaryDirectory(fileURLToPath(new URL('../.cache/tests/', import.meta.url)))
    try {
      // What of it lies on the first megabytes of the disk will do.
      const [header = '', ...lines] = gunzipSync(fs.readFileSync(trace)).toString().trim().split('\n')
      const small = lines.filter((line) => {
        const [, , , offset, length] = line.split(',').map(Number)
        return offset! + length! <= 64 << 20
      })
      expect(small.length).toBeGreaterThan(100)
      const recording = path.join(directory.path, 'small.csv')
      fs.writeFileSync(recording, `${[header, ...small].join('\n')}\n`)
      const [command = '', ...wrapper] = refuse.wrapper(numbers)
      const replay = [demo, '--trace', recording, '--json', ...flags, path.join(directory.path, 'image')]
      const { stdout } = await promisify(execFile)(command, [...wrapper, process.execPath, ...replay])
      const report = JSON.parse(stdout) as Record<string, unknown>
      expect(JSON.stringify(report)).toContain(`"${engine}"`)
      expect(report.verifiedBytes).toBeGreaterThan(0)
    } finally {
      directory.cleanup()
    }
  })
})
