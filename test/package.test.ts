// The package as npm sees it and as a new user gets it: what is in the tarball, that it installs into an empty folder without a
// single script, and that it then works by `import` and by `require` on every supported Node; what it says where no addon loads.

import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { nodeBinary, notFetched } from './support/nodes.ts'
import { temporaryDirectory } from './support/targets.ts'

const root = fileURLToPath(new URL('../', import.meta.url))
const minutes = 60_000

let directory: { path: string; cleanup(): void }
let tarball: string
let files: string[]
let folder: string

const npm = (cwd: string, ...args: string[]): string =>
  execFileSync('npm', [...args, '--no-audit', '--no-fund'], {
    cwd,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  })

beforeAll(() => {
  directory = temporaryDirectory()
  // What `prepack` does, without building the library under the other tests' feet.
  execFileSync(process.execPath, ['scripts/prebuilds.mjs', '--stage'], { cwd: root, stdio: 'pipe' })
  const [packed] = JSON.parse(npm(root, 'pack', '--ignore-scripts', '--json', '--pack-destination', directory.path))
  tarball = path.join(directory.path, packed.filename)
  files = packed.files.map((file: { path: string }) => file.path)
  folder = path.join(directory.path, 'new user')
  fs.mkdirSync(folder)
  fs.writeFileSync(path.join(folder, 'package.json'), '{ "private": true }')
  npm(folder, 'install', '--ignore-scripts', '--offline', tarball)
}, 5 * minutes)
afterAll(() => directory?.cleanup())

/** Runs a program in the folder of the new user. */
function run(script: string, { node = process.execPath, env = {}, kind = 'module' } = {}) {
  const args = [`--input-type=${kind}`, '--no-warnings', '--eval', script]
  // The tests' own choice of an addon is not the user's.
  const { MULTIWRITE_ADDON: _, ...clean } = process.env
  return spawnSync(node, args, { cwd: folder, encoding: 'utf8', env: { ...clean, ...env } })
}

test('the tarball holds what is needed and nothing else', () => {
  const allowed = [
    /^dist\/[a-z0-9/-]+\.js$/,
    // Types of what can be imported; nobody imports the command line.
    /^dist\/(?!cli\/)[a-z0-9/-]+\.d\.ts$/,
    /^prebuilds\/linux-(x64|arm64)\/multiwrite\.node$/,
    // To build the addon where no prebuilt one serves.
    /^native\/[a-z_]+\.(cc|h|map)$/,
    /^binding\.gyp$/,
    // What `multiwrite replay` shows when it is given no trace.
    /^bench\/traces\/ext4-cp-64k\.merge-on\.(qemu-submits\.)?csv\.gz$/,
    // Whatever the README shows or points at; see below.
    /^docs\/([a-z-]+\/)?[a-z-]+\.(md|svg)$/,
    /^docs\/README\.md$/,
    /^examples\/[a-z-]+\.mjs$/,
    /^(package\.json|README\.md|LICENSE|CHANGELOG\.md|SECURITY\.md)$/,
  ]
  expect(files.filter((file) => !allowed.some((pattern) => pattern.test(file)))).toEqual([])
  for (const needed of [
    'dist/index.js',
    'dist/index.d.ts',
    'dist/planner.js',
    'dist/planner.d.ts',
    'dist/cli/main.js',
  ]) {
    expect(files).toContain(needed)
  }
  expect(files.filter((file) => file.startsWith('prebuilds/'))).toContain(
    `prebuilds/linux-${process.arch}/multiwrite.node`,
  )
})

test('what the README shows and points at is in the tarball', () => {
  const readme = fs.readFileSync(path.join(folder, 'node_modules/multiwrite/README.md'), 'utf8')
  const links = [...readme.matchAll(/\]\((?!https?:)([^)#]+)/g)].map(([, link]) => link!)
  expect(links).toContain('docs/merging.svg')
  for (const link of links) {
    expect(
      files.some((file) => file === link || file.startsWith(link)),
      link,
    ).toBe(true)
  }
})

test('no script runs for whoever depends on it, and nothing else is installed', () => {
  const manifest = JSON.parse(fs.readFileSync(path.join(folder, 'node_modules/multiwrite/package.json'), 'utf8'))
  for (const script of ['preinstall', 'install', 'postinstall']) expect(manifest.scripts).not.toHaveProperty(script)
  expect(manifest.gypfile).toBe(false)
  expect(manifest.dependencies ?? {}).toEqual({})
  expect(fs.readdirSync(path.join(folder, 'node_modules')).filter((name) => !name.startsWith('.'))).toEqual([
    'multiwrite',
  ])
})

test('publint finds nothing to complain of', () => {
  const tool = path.join(root, 'node_modules/publint/src/cli.js')
  const { status, stdout, stderr } = spawnSync(process.execPath, [tool, 'run', tarball, '--strict'], {
    encoding: 'utf8',
  })
  expect({ status, stderr, good: stdout.includes('All good!') }).toEqual({ status: 0, stderr: '', good: true })
})

test('the types resolve in every way that TypeScript has, and are those of what is loaded', () => {
  const tool = path.join(root, 'node_modules/@arethetypeswrong/cli/dist/index.js')
  const { stdout, stderr } = spawnSync(process.execPath, [tool, tarball, '--format', 'json'], { encoding: 'utf8' })
  const { problems, analysis } = JSON.parse(stdout || stderr)
  expect(Object.keys(analysis.entrypoints)).toEqual(['.', './planner', './package.json'])
  const seen = Object.values(problems as Record<string, { kind: string }[]>).flat()
  // It holds that `require` of an ES module is an error, which it is on no Node from 20.19 on (each is tried below). Only a second
  // build, for CommonJS, would please it, and then `import` and `require` would give different objects.
  expect(seen.filter(({ kind }) => kind !== 'CJSResolvesToESM')).toEqual([])
})

const WRITES = `
const { create, BlockError } = multiwrite
const { plan } = planner
const { writeFileSync, readFileSync } = process.getBuiltinModule?.('node:fs') ?? fs
async function main() {
  const disk = await create(process.env.TARGET, { size: 65536, overwrite: true })
  await disk.multiwrite([{ offset: 4096, data: Buffer.from('second') }, { offset: 0, data: Buffer.from('first') }])
  await disk.close()
  const bytes = readFileSync(process.env.TARGET)
  const { submissions } = plan([{ offset: 0, length: 1 }, { offset: 1, length: 1 }], { maxBytes: 10, maxSegments: 10 })
  console.log(bytes.toString('latin1', 0, 5), bytes.toString('latin1', 4096, 4102), submissions.length)
}
main()`
const BY_IMPORT = `import * as multiwrite from 'multiwrite'; import * as planner from 'multiwrite/planner'; import * as fs from 'node:fs'`
const BY_REQUIRE = `const multiwrite = require('multiwrite'), planner = require('multiwrite/planner'), fs = require('node:fs')`

describe.each([20, 22, 24, 26])('installed without scripts, on Node %i', (major) => {
  const node = nodeBinary('x64', major)
  const skipped = node === null ? ` (${notFetched})` : ''

  test.skipIf(node === null)(`it works by import and by require, with the prebuilt addon${skipped}`, () => {
    for (const [kind, prologue] of [
      ['module', BY_IMPORT],
      ['commonjs', BY_REQUIRE],
    ] as const) {
      const env = { TARGET: path.join(directory.path, `image-${major}`) }
      const { status, stdout, stderr } = run(`${prologue}\n${WRITES}`, { node: node!, env, kind })
      expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: 'first second 1\n', stderr: '' })
    }
  })

  test.skipIf(node === null)(`the command line answers${skipped}`, () => {
    const command = path.join(folder, 'node_modules/.bin/multiwrite')
    const { status, stdout } = spawnSync(node!, [command, '--help'], { cwd: folder, encoding: 'utf8' })
    expect({ status, usage: stdout.split('\n')[0] }).toEqual({
      status: 0,
      usage: 'usage: multiwrite COMMAND [options]',
    })
  })
})

test('each example and each command runs from the installed package alone', () => {
  const folderOf = (name: string): string => path.join(folder, name)
  fs.cpSync(path.join(root, 'examples'), folderOf('examples'), { recursive: true })
  const clean = { ...process.env }
  delete clean.MULTIWRITE_ADDON
  const ran = (file: string, ...args: string[]): string => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [folderOf(file), ...args], {
      cwd: folder,
      encoding: 'utf8',
      env: clean,
    })
    expect({ file, args, status, stderr: status === 0 ? '' : stderr }).toEqual({ file, args, status: 0, stderr: '' })
    return stdout
  }
  ran('examples/vm-image.mjs', 'vm.img')
  ran('examples/flash.mjs', 'vm.img', 'flashed.img')
  ran('examples/latency.mjs', 'probe', '20')
  expect(ran('examples/prometheus.mjs')).toContain('multiwrite_requests_total')
  const command = 'node_modules/.bin/multiwrite'
  expect(ran(command, 'info', 'vm.img')).toContain('a file of 64 MiB')
  expect(ran(command, 'write', 'vm.img', 'written.img')).toContain('every byte is right')
  expect(fs.readFileSync(folderOf('written.img')).equals(fs.readFileSync(folderOf('vm.img')))).toBe(true)
  expect(ran(command, 'replay')).toContain('Every byte is right')
})

test('import and require give the same objects', () => {
  const { stdout, stderr } = run(`
    import { createRequire } from 'node:module'
    import * as imported from 'multiwrite'
    import * as importedPlanner from 'multiwrite/planner'
    const require = createRequire(import.meta.url)
    const required = require('multiwrite')
    const names = Object.keys(imported)
    console.log(names.sort().join(), names.every((name) => required[name] === imported[name]))
    console.log(require('multiwrite/planner').plan === importedPlanner.plan)
    console.log(require('multiwrite/package.json').name)`)
  expect({ stdout, stderr }).toEqual({
    stdout: 'AbortError,BlockError,MultiwriteError,create,holdersOf,open true\ntrue\nmultiwrite\n',
    stderr: '',
  })
})

const OPENS = `
import { open } from 'multiwrite'
await open(process.execPath, { readOnly: true }).then(
  () => console.log('opened'),
  (error) => console.log(JSON.stringify([error.name, error.code, error.message])),
)`

test.each(['darwin', 'win32', 'freebsd'])(
  'on %s it loads, the planner works, and open says why it does not',
  (platform) => {
    const { stdout, stderr } = run(`
    Object.defineProperty(process, 'platform', { value: '${platform}' })
    const { open, create } = await import('multiwrite')
    const { plan } = await import('multiwrite/planner')
    console.log(plan([{ offset: 512, length: 512 }], { maxBytes: 4096, maxSegments: 8 }).submissions.length)
    for (const promise of [open('x'), create('x', { size: 1 })]) {
      await promise.catch((error) => console.log(error.code, error.message))
    }`)
    const why = `ERR_FEATURE_UNAVAILABLE_ON_PLATFORM multiwrite opens devices on Linux only; this is ${platform}`
    const next = 'the planner (multiwrite/planner) works everywhere'
    expect({ stdout, stderr }).toEqual({ stdout: `1\n${why}: ${next}\n${why}: ${next}\n`, stderr: '' })
  },
)

describe('where no addon loads', () => {
  const installed = (): string => path.join(folder, 'node_modules/multiwrite/prebuilds')
  const aside = (): string => path.join(directory.path, 'aside')

  /** What `open` says with the prebuilt addons changed. */
  function complaint(change: () => void, env: Record<string, string> = {}): string {
    fs.cpSync(installed(), aside(), { recursive: true })
    try {
      change()
      const { stdout, stderr } = run(OPENS, { env })
      expect(stderr).toBe('')
      const [name, code, message] = JSON.parse(stdout)
      expect([name, code]).toEqual(['Error', 'ERR_DLOPEN_FAILED'])
      return message
    } finally {
      fs.rmSync(installed(), { recursive: true, force: true })
      fs.renameSync(aside(), installed())
    }
  }

  test('the error names the system, its libc, the paths tried and the remedy', () => {
    const message = complaint(() => fs.rmSync(installed(), { recursive: true }))
    const home = fs.realpathSync(path.join(folder, 'node_modules/multiwrite'))
    expect(message.split('\n')).toEqual([
      expect.stringMatching(
        new RegExp(
          `^multiwrite: no native addon loads on linux-${os.arch()} \\(.*(glibc|musl).*, Node ${process.versions.node}\\). Tried:$`,
        ),
      ),
      `  - ${home}/build/Release/multiwrite.node (built here): not there`,
      `  - ${home}/build-cmake/Release/multiwrite.node (built here): not there`,
      `  - ${home}/prebuilds/linux-${os.arch()}/multiwrite.node (prebuilt): not there`,
      expect.stringContaining(`cd "${home}" && npm install`),
    ])
  })

  test('one that is broken is named with what the loader says of it', () => {
    const message = complaint(() =>
      fs.writeFileSync(path.join(installed(), `linux-${os.arch()}/multiwrite.node`), 'nonsense'),
    )
    expect(message).toMatch(/prebuilds.*\(prebuilt\): .*(invalid ELF header|file too short)/)
  })

  test('the one that MULTIWRITE_ADDON names is the only one tried', () => {
    const message = complaint(() => {}, { MULTIWRITE_ADDON: '/nowhere/multiwrite.node' })
    expect(message).toContain('/nowhere/multiwrite.node (named by MULTIWRITE_ADDON): not there')
    expect(message).toContain('Unset MULTIWRITE_ADDON')
    expect(message).not.toContain('prebuilds')
  })
})

test('an addon that was built in the package folder goes before the prebuilt one', () => {
  const build = path.join(folder, 'node_modules/multiwrite/build/Release')
  fs.mkdirSync(build, { recursive: true })
  try {
    fs.cpSync(path.join(root, 'build/Release/multiwrite.node'), path.join(build, 'multiwrite.node'))
    const { stdout } = run(`${OPENS}
      console.log(process.report.getReport().sharedObjects.filter((path) => path.endsWith('multiwrite.node')).join())`)
    expect(stdout).toBe(`opened\n${fs.realpathSync(build)}/multiwrite.node\n`)
    // One that does not load is passed over: the prebuilt one is as good.
    fs.writeFileSync(path.join(build, 'multiwrite.node'), 'nonsense')
    expect(run(OPENS).stdout).toBe('opened\n')
  } finally {
    fs.rmSync(path.dirname(build), { recursive: true })
  }
})
