// The prebuilt addons of the package: one binary per architecture, which loads beside glibc and musl of any age.
//
//   npm run prebuilds              builds what is missing or older than its sources, into build-prebuild/
//   npm run prebuilds -- --stage   that, and copies it to prebuilds/, as `npm pack` does by the script `prepack`
//
// The compiler is called as it is, without node-gyp: what matters here is what is NOT linked (native/freestanding.cc tells why),
// and a cross compiler needs nothing but its name. Each binary is read back and refused if it asks for a library or a symbol
// version (elf.mjs). What was made, by what, and what could not be made or run here stands in build-prebuild/NOTES.md.

import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { problemsOf } from './elf.mjs'

const root = fileURLToPath(new URL('../', import.meta.url))
const require = createRequire(import.meta.url)
const BUILT = join(root, 'build-prebuild')
const STAGED = join(root, 'prebuilds')

const host = process.arch
const ARCHITECTURES = [
  {
    arch: 'x64',
    compiler: process.env.CXX_X64 ?? (host === 'x64' ? 'g++' : 'x86_64-linux-gnu-g++'),
    emulator: 'qemu-x86_64',
    flags: [],
  },
  {
    arch: 'arm64',
    compiler: process.env.CXX_ARM64 ?? (host === 'arm64' ? 'g++' : 'aarch64-linux-gnu-g++'),
    emulator: 'qemu-aarch64',
    // Atomics in place: the compiler's helpers for them ask glibc about the processor.
    flags: ['-mno-outline-atomics'],
  },
]

const DEFINES = [
  'NAPI_VERSION=8',
  'NAPI_DISABLE_CPP_EXCEPTIONS',
  'NODE_API_NO_EXTERNAL_BUFFERS_ALLOWED',
  'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
  'BUILDING_NODE_EXTENSION',
  'MULTIWRITE_FREESTANDING',
]

const COMPILE = [
  ...['-std=c++17', '-O2', '-fPIC', '-fno-exceptions', '-fno-rtti', '-fvisibility=hidden'],
  ...['-Wall', '-Wextra', '-Wconversion', '-ffunction-sections', '-fdata-sections'],
  // Both would call into libc by names that only glibc has.
  ...['-fno-stack-protector', '-U_FORTIFY_SOURCE'],
]

const LINK = [
  ...['-shared', '-nodefaultlibs', '-s', '-Wl,-soname,multiwrite.node', '-Wl,--gc-sections', '-Wl,--build-id=sha1'],
  ...['-Wl,-z,nodelete', '-Wl,-z,relro', '-Wl,-z,now', '-Wl,-Bsymbolic', '-Wl,--version-script=native/prebuild.map'],
]

const sources = readdirSync(join(root, 'native')).sort()

/** A binary is as old as what it was made of: sources, headers, flags. */
function fingerprint(flags) {
  const hash = createHash('sha256').update([...DEFINES, ...COMPILE, ...LINK, ...flags].join(' '))
  for (const name of sources) hash.update(name).update(readFileSync(join(root, 'native', name)))
  return hash.digest('hex')
}

function versionOf(command) {
  const { status, stdout } = spawnSync(command, ['--version'], { encoding: 'utf8' })
  return status === 0 ? stdout.split('\n')[0] : null
}

/** Builds one architecture if need be; returns a line for the notes. */
function build({ arch, compiler, flags }) {
  const folder = join(BUILT, `linux-${arch}`)
  const file = join(folder, 'multiwrite.node')
  const stamp = join(folder, 'source.sha256')
  const wanted = fingerprint(flags)
  if (!existsSync(file) || !existsSync(stamp) || readFileSync(stamp, 'utf8') !== wanted) {
    rmSync(folder, { recursive: true, force: true })
    const version = versionOf(compiler)
    if (version === null) return `- linux-${arch}: NOT built: there is no compiler ${compiler} here`
    mkdirSync(folder, { recursive: true })
    const nodeAddonApi = dirname(require.resolve('node-addon-api/package.json'))
    const headers = require('node-api-headers').include_dir
    const files = sources.filter((name) => name.endsWith('.cc')).map((name) => join('native', name))
    const includes = [nodeAddonApi, headers].flatMap((path) => ['-isystem', path])
    const defines = DEFINES.map((define) => `-D${define}`)
    execFileSync(compiler, [...COMPILE, ...flags, ...defines, ...includes, ...files, ...LINK, '-o', file], {
      cwd: root,
      stdio: 'inherit',
    })
    writeFileSync(join(folder, 'compiler'), version)
    writeFileSync(stamp, wanted)
  }
  const bytes = readFileSync(file)
  const problems = problemsOf(bytes, arch)
  if (problems.length > 0) throw new Error(`${file} would not load everywhere: ${problems.join('; ')}`)
  const sum = createHash('sha256').update(bytes).digest('hex')
  const made = readFileSync(join(folder, 'compiler'), 'utf8')
  return `- linux-${arch}: ${bytes.length} bytes, sha256 ${sum}, by ${made}; no library, no symbol version`
}

/** Loads a binary and writes with it; returns a line for the notes. */
function tryOut({ arch, emulator }) {
  const file = join(BUILT, `linux-${arch}`, 'multiwrite.node')
  if (!existsSync(file)) return `- linux-${arch}: not tried`
  const fetched = join(root, `.cache/nodes/${arch}-22/node_modules/node-linux-${arch}/bin/node`)
  const node = arch === host ? process.execPath : (process.env[`NODE_${arch.toUpperCase()}`] ?? fetched)
  if (!existsSync(node)) {
    return `- linux-${arch}: NOT run here: no Node for it; see scripts/fetch-nodes.mjs`
  }
  const library =
    process.env[`SYSROOT_${arch.toUpperCase()}`] ?? `/usr/${arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`
  const command = arch === host ? [node] : [emulator, '-L', library, node]
  const [program, ...before] = command
  const { status, stdout, stderr, error } = spawnSync(program, [...before, join(root, 'scripts/smoke.mjs')], {
    encoding: 'utf8',
    env: { ...process.env, MULTIWRITE_ADDON: file },
  })
  if (status === 0) return `- linux-${arch}: ${stdout.trim()}${arch === host ? '' : `, under ${emulator}`}`
  throw new Error(`linux-${arch} does not work: ${error?.message ?? (stderr || `status ${status}`)}`)
}

const NOT_HERE = `- Debian 11, RHEL 8 and Alpine themselves: not run here. The binaries need nothing of them that these lack (above); loading
  beside musl is tested with a host program in C (test/prebuild.test.ts), since no Node for musl can be had by this script.`

function main(args) {
  if (process.platform !== 'linux') throw new Error('prebuilt addons are made on Linux')
  const built = ARCHITECTURES.map(build)
  const tried = existsSync(join(root, 'dist/index.js'))
    ? ARCHITECTURES.map(tryOut)
    : ['- not run: build the library first']
  const notes = ['# Prebuilt addons', '', 'Built:', ...built, '', 'Run:', ...tried, NOT_HERE, ''].join('\n')
  writeFileSync(join(BUILT, 'NOTES.md'), notes)
  process.stderr.write(notes)
  if (!args.includes('--stage')) return
  rmSync(STAGED, { recursive: true, force: true })
  for (const { arch } of ARCHITECTURES) {
    const from = join(BUILT, `linux-${arch}`, 'multiwrite.node')
    if (existsSync(from)) cpSync(from, join(STAGED, `linux-${arch}`, 'multiwrite.node'))
  }
}

main(process.argv.slice(2))
