// The prebuilt addons: one binary per architecture that needs nothing of its system but a libc of any kind. Each is made here,
// looked at, and put to work: on every supported Node, beside musl, and on the other architecture under an emulator.

import { type ExecFileSyncOptionsWithStringEncoding, execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
// @ts-expect-error: a script in plain JavaScript, without types.
import { problemsOf as untypedProblemsOf } from '../scripts/elf.mjs'
import type { Context, Result } from './matrix/suite.ts'
import { compiled } from './support/compile.ts'
import { nodeBinary, notFetched } from './support/nodes.ts'
import { bufferedFile, directFile, engineNames, loop512, type Target, temporaryDirectory } from './support/targets.ts'

const problemsOf = untypedProblemsOf as (bytes: Buffer, arch: string) => string[]

const root = fileURLToPath(new URL('../', import.meta.url))
const minutes = 60_000
const inRoot: ExecFileSyncOptionsWithStringEncoding = { cwd: root, encoding: 'utf8', stdio: 'pipe' }

const binary = (arch: string): string => path.join(root, `build-prebuild/linux-${arch}/multiwrite.node`)
const missing = (command: string): boolean => spawnSync('sh', ['-c', `command -v ${command}`]).status !== 0

/** The compilers; without one there is no binary of that architecture. */
const compilers: Record<string, string> = { x64: 'g++', arm64: 'aarch64-linux-gnu-g++' }

beforeAll(() => {
  execFileSync(process.execPath, ['scripts/prebuilds.mjs'], inRoot)
}, 5 * minutes)

describe.each(Object.entries(compilers))('the binary for %s', (arch, compiler) => {
  const absent = missing(compiler)

  test.skipIf(absent)(`needs no library and no symbol version${absent ? ` (skipped: no ${compiler})` : ''}`, () => {
    expect(problemsOf(fs.readFileSync(binary(arch)), arch)).toEqual([])
  })

  test.skipIf(absent || missing('readelf'))('says the same to binutils', () => {
    const dynamic = execFileSync('readelf', ['--wide', '--dynamic', binary(arch)], inRoot)
    expect(dynamic).toContain('NODELETE')
    expect(dynamic).not.toMatch(/NEEDED|VERNEED|VERSYM|RPATH|RUNPATH/)
    const symbols = execFileSync('readelf', ['--wide', '--dyn-syms', binary(arch)], inRoot)
    expect(symbols).toContain('napi_register_module_v1')
    expect(symbols).not.toMatch(/@|GLIBC|CXX/)
  })
})

test('the check of a binary finds what an ordinary build needs', () => {
  const problems = problemsOf(fs.readFileSync(path.join(root, 'build/Release/multiwrite.node')), 'arm64').join('\n')
  expect(problems).toContain(`it is for ${process.arch}`)
  expect(problems).toContain('it needs libc.so.6')
  expect(problems).toContain('it needs symbol versions')
  expect(() => problemsOf(Buffer.alloc(100), 'x64')).toThrow('not a 64-bit little-endian ELF file')
})

test('the check finds condition variables, which glibc has in two kinds under one name', () => {
  // An unversioned reference gets the old kind on x86-64, so the thread pool must not use them.
  const directory = temporaryDirectory()
  try {
    const [source, made] = ['c', 'node'].map((kind) => path.join(directory.path, `x.${kind}`)) as [string, string]
    fs.writeFileSync(
      source,
      `#include <pthread.h>
      void napi_register_module_v1(pthread_cond_t* c) { pthread_cond_signal(c); }
      int node_api_module_get_api_version_v1(void) { return 8; }`,
    )
    execFileSync('gcc', ['-shared', '-fPIC', '-nodefaultlibs', source, '-o', made], inRoot)
    const [arch] = process.arch === 'arm64' ? ['arm64'] : ['x64']
    expect(problemsOf(fs.readFileSync(made), arch!)).toEqual([
      'it needs pthread_cond_signal, which not every libc has alike',
    ])
  } finally {
    directory.cleanup()
  }
})

const noMusl = missing('musl-gcc') ? 'skipped: no musl-gcc' : process.arch === 'x64' ? '' : 'skipped: not on x64'

describe.skipIf(noMusl !== '')(`beside musl${noMusl && ` (${noMusl})`}`, () => {
  let directory: { path: string; cleanup(): void }
  beforeAll(() => {
    directory = temporaryDirectory()
    const headers = path.join(root, 'node_modules/node-api-headers/include')
    const flags = ['-rdynamic', '-Wall', '-I', headers, 'test/native/musl_host.c', '-o', host()]
    execFileSync('musl-gcc', flags, inRoot)
  })
  afterAll(() => directory?.cleanup())
  const host = (): string => path.join(directory.path, 'host')

  test.each(engineNames.map((name, number) => ({ name, number })))('it loads, and $name writes', ({ number }) => {
    const file = path.join(directory.path, `file-${number}`)
    fs.writeFileSync(file, Buffer.alloc(65536))
    const { status, stdout, stderr } = spawnSync(host(), [binary('x64'), file, String(number)], { encoding: 'utf8' })
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: 'written and read back\n', stderr: '' })
    expect(fs.readFileSync(file)).toEqual(
      Buffer.from(Uint8Array.from({ length: 65536 }, (_, at) => at * 31 + (at >> 8))),
    )
  })

  test('an ordinary build does not load there, so the test can fail', () => {
    const file = path.join(directory.path, 'file')
    const ordinary = path.join(root, 'build/Release/multiwrite.node')
    const { status, stderr } = spawnSync(host(), [ordinary, file, '2'], { encoding: 'utf8' })
    expect(status).toBe(1)
    expect(stderr).toContain('needed by')
  })
})

const arm64Node = nodeBinary('arm64', 22)
const noArm64 = missing('qemu-aarch64') ? 'skipped: no qemu-aarch64' : arm64Node === null ? notFetched : ''

test.skipIf(noArm64 !== '' || missing(compilers.arm64!))(
  `the binary for arm64 writes by its threads, under an emulator${noArm64 && ` (${noArm64})`}`,
  () => {
    const command = ['-L', '/usr/aarch64-linux-gnu', arm64Node!, 'scripts/smoke.mjs']
    const options = { ...inRoot, env: { ...process.env, MULTIWRITE_ADDON: binary('arm64') } }
    expect(execFileSync('qemu-aarch64', command, options)).toMatch(
      /^Node 22\.\S+ on arm64 with glibc \S+: .*threads work$/m,
    )
  },
  2 * minutes,
)

// The behaviour itself, case by case, as test/matrix.test.ts has it on one Node and the ordinary build: every Node must tell the
// same of every case, and have left the same bytes.
describe.each([20, 22, 24, 26])('the binary on Node %i', (major) => {
  const node = nodeBinary('x64', major)
  const absent = node === null || process.arch !== 'x64'
  let program: ReturnType<typeof compiled>
  beforeAll(() => {
    program = compiled('matrix/elsewhere.ts')
  })
  afterAll(() => program?.cleanup())

  const run = (binary: string, target: Target, engine: (typeof engineNames)[number]): Result[] => {
    const made = target.make(64 * 4096)
    try {
      const context: Context = { path: made.path, options: { ...made.options, engine }, sectorSize: made.sectorSize }
      const addon = path.join(root, `build-prebuild/linux-${process.arch}/multiwrite.node`)
      const env = { ...process.env, CONTEXT: JSON.stringify(context), MULTIWRITE_ADDON: addon }
      const results = JSON.parse(execFileSync(binary, [program.path], { ...inRoot, env })) as Result[]
      return results.map((result) => JSON.parse(JSON.stringify(result).replaceAll(made.path, 'PATH')) as Result)
    } finally {
      made.cleanup()
    }
  }

  for (const target of [bufferedFile, directFile, loop512]) {
    for (const engine of engineNames) {
      if (engine === 'aio' && !target.direct) continue
      const why = absent ? notFetched : target.reason
      test.skipIf(absent || !target.available)(`${engine}, ${target.name}${why && ` (${why})`}`, () => {
        const results = run(node!, target, engine)
        expect(results.length).toBeGreaterThan(15)
        expect(results.filter(({ failure }) => failure !== undefined)).toEqual([])
        expect(results).toEqual(run(process.execPath, target, engine))
      })
    }
  }
})
