// Places to write to: a loop device over tmpfs, a file on ext4, a file on tmpfs, a device that takes its time. Every backing
// file is written in full first, so that no measured write has to allocate.
//
// Whatever is made here is taken away again: by `remove`, or when the process ends, an error and a signal included. Devices
// and mounts are released by their own names only.

import { execFileSync, spawn } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const SHARED_MEMORY = '/dev/shm'
/** From statfs(2): what the magic number of an ext2, ext3 or ext4 file system is. */
const EXT4_MAGIC = 0xef53
const TMPFS_MAGIC = 0x01021994
const FILL_BYTES = 1 << 20
/** What ext4 takes for itself (journal, inode tables), and some slack. */
const EXT4_OVERHEAD_BYTES = 64 << 20
const EXT4_OVERHEAD_PART = 1 / 16

/**
 * A place to write to.
 * @typedef {object} Target
 * @property {string} name
 * @property {string} path
 * @property {number} size bytes that may be overwritten
 * @property {boolean} direct whether it is to be opened with O_DIRECT
 * @property {() => void} remove close it first
 */

/** What can't be had on this machine, and why. */
export class Unavailable extends Error {}

/** @type {Set<() => void>} in the order of making; undone in the opposite one */
const undoes = new Set()

function undoAll() {
  for (const undo of [...undoes].reverse()) undo()
}

process.once('exit', undoAll)
for (const [signal, number] of /** @type {const} */ ([
  ['SIGINT', 2],
  ['SIGTERM', 15],
  ['SIGHUP', 1],
])) {
  process.once(signal, () => process.exit(128 + number))
}

/**
 * `undo`, run once: by the caller, or at the end of the process.
 * @param {() => void} undo
 */
export function atTheLatestAtExit(undo) {
  const once = () => {
    if (!undoes.delete(once)) return
    try {
      undo()
    } catch (error) {
      // The others must be undone all the same.
      console.error(`left behind: ${error instanceof Error ? error.message : error}`)
    }
  }
  undoes.add(once)
  return once
}

/** Why loop devices and mounts can't be made; empty where they can. */
export function noLoop() {
  if (process.getuid?.() !== 0) return 'loop devices need root'
  if (!fs.existsSync('/dev/loop-control')) return 'this kernel has no loop devices'
  return ''
}

/** @param {string} command @param {string[]} args */
function run(command, args) {
  try {
    return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim()
  } catch (error) {
    const { code, stderr } = /** @type {{ code?: string, stderr?: string }} */ (error)
    throw new Unavailable(code === 'ENOENT' ? `${command} is not installed` : `${command}: ${stderr?.trim()}`)
  }
}

/** @param {string} parent */
export function temporaryDirectory(parent) {
  const directory = fs.mkdtempSync(path.join(parent, 'multiwrite-bench-'))
  return { directory, remove: atTheLatestAtExit(() => fs.rmSync(directory, { recursive: true, force: true })) }
}

/** @param {string} file @param {number} size */
function fill(file, size) {
  const descriptor = fs.openSync(file, 'wx', 0o600)
  try {
    const piece = Buffer.alloc(FILL_BYTES, 0xee)
    for (let done = 0; done < size; done += piece.length) {
      fs.writeSync(descriptor, piece, 0, Math.min(piece.length, size - done))
    }
    // Dirty pages of the filling must not be written back while something is measured.
    fs.fsyncSync(descriptor)
  } finally {
    fs.closeSync(descriptor)
  }
}

/** Where files lie in memory. */
export function memoryDirectory() {
  if (!fs.existsSync(SHARED_MEMORY) || fs.statfsSync(SHARED_MEMORY).type !== TMPFS_MAGIC) {
    throw new Unavailable(`${SHARED_MEMORY} is no tmpfs`)
  }
  return SHARED_MEMORY
}

/** @param {number} size @param {string} parent where its blocks lie */
function attachLoop(size, parent = memoryDirectory()) {
  const reason = noLoop()
  if (reason !== '') throw new Unavailable(reason)
  const { directory, remove: removeDirectory } = temporaryDirectory(parent)
  try {
    const image = path.join(directory, 'image')
    fill(image, size)
    // Without direct I/O every write would pass through a second page cache. Kernels whose tmpfs refuses O_DIRECT (before
    // 6.6) go on without.
    const flags = ['--find', '--show', '--direct-io=on']
    const device = run('losetup', [...flags, image])
    // A device that is still open is released by the kernel with its last descriptor.
    const detach = atTheLatestAtExit(() => run('losetup', ['--detach', device]))
    const remove = () => {
      detach()
      removeDirectory()
    }
    return { device, remove }
  } catch (error) {
    removeDirectory()
    throw error
  }
}

/**
 * A block device whose blocks lie in memory, or in a file of a folder, opened with O_DIRECT.
 * @param {number} size
 * @param {string} [folder]
 * @returns {Target}
 */
export function loopDevice(size, folder) {
  const { device, remove } = attachLoop(size, folder)
  return { name: `loop device on ${folder ?? 'tmpfs'}, direct`, path: device, size, direct: true, remove }
}

/**
 * A place for files that grow.
 * @typedef {object} Folder
 * @property {string} name
 * @property {string} path
 * @property {boolean} direct whether files in it are to be opened with O_DIRECT
 * @property {() => void} remove close its files first
 */

/**
 * A folder on ext4, with room for so many bytes: see `ext4File`.
 * @param {number} size
 * @returns {Folder}
 */
export function ext4Folder(size) {
  const { mount, below, remove } = noLoop() === '' ? mountExt4(size + EXT4_OVERHEAD_BYTES) : ownExt4()
  return { name: `ext4 on ${below}, direct`, path: mount, direct: true, remove }
}

/**
 * A folder whose files are page cache and nothing else.
 * @returns {Folder}
 */
export function tmpfsFolder() {
  const { directory, remove } = temporaryDirectory(memoryDirectory())
  return { name: 'tmpfs, buffered', path: directory, direct: false, remove }
}

/**
 * A file on ext4. With root it lies on a loop device over tmpfs, so that no real disk is measured; else on the file system of
 * the temporary directory, if that is ext4.
 * @param {number} size
 * @param {boolean} direct
 * @returns {Target}
 */
export function ext4File(size, direct) {
  const { mount, below, remove: removeMount } = noLoop() === '' ? mountExt4(size) : ownExt4()
  try {
    const file = path.join(mount, 'image')
    fill(file, size)
    const name = `file on ext4 on ${below}, ${direct ? 'direct' : 'buffered'}`
    return { name, path: file, size, direct, remove: removeMount }
  } catch (error) {
    removeMount()
    throw error
  }
}

/** @param {number} size */
function mountExt4(size) {
  const { device, remove: detach } = attachLoop(Math.ceil(size * (1 + EXT4_OVERHEAD_PART)) + EXT4_OVERHEAD_BYTES)
  try {
    // The inode tables are written now, not by a kernel thread during the first minutes of the mount.
    run('mkfs.ext4', ['-q', '-E', 'lazy_itable_init=0,lazy_journal_init=0', device])
    const { directory, remove: removeDirectory } = temporaryDirectory(os.tmpdir())
    run('mount', ['-t', 'ext4', device, directory])
    const unmount = atTheLatestAtExit(() => {
      try {
        run('umount', [directory])
      } catch {
        // A file in it is still open, when a signal ends the process: it goes with the process.
        run('umount', ['--lazy', directory])
      }
    })
    const remove = () => {
      unmount()
      removeDirectory()
      detach()
    }
    return { mount: directory, below: 'loop on tmpfs', remove }
  } catch (error) {
    detach()
    throw error
  }
}

function ownExt4() {
  if (fs.statfsSync(os.tmpdir()).type !== EXT4_MAGIC) {
    throw new Unavailable(`${os.tmpdir()} is not on ext4, and ${noLoop()}`)
  }
  const { directory, remove } = temporaryDirectory(os.tmpdir())
  return { mount: directory, below: "this machine's disk", remove }
}

/**
 * A file on tmpfs, by way of the page cache that it consists of.
 * @param {number} size
 * @returns {Target}
 */
export function tmpfsFile(size) {
  const { directory, remove } = temporaryDirectory(memoryDirectory())
  try {
    const file = path.join(directory, 'image')
    fill(file, size)
    return { name: 'file on tmpfs, buffered', path: file, size, direct: false, remove }
  } catch (error) {
    remove()
    throw error
  }
}

/**
 * A file that answers each request after so many milliseconds.
 * @param {number} size
 * @param {number} delay_ms
 * @returns {Target}
 */
export function delayedFile(size, delay_ms) {
  const delays = [`delay-read=${delay_ms}ms`, `delay-write=${delay_ms}ms`]
  return slowFile(size, `file that answers after ${delay_ms} ms (nbdkit), direct`, 'delay', delays)
}

/**
 * A file that answers as a disk does, sooner and later: after a least time and, on top of it, one that is drawn anew for each
 * request, with a mean and a long tail (see vary-delay.c).
 * @param {number} size
 * @param {number} least_ms
 * @param {number} mean_ms
 * @returns {Target}
 */
export function varyingFile(size, least_ms, mean_ms) {
  const { directory, remove: removeDirectory } = temporaryDirectory(os.tmpdir())
  try {
    const filter = compile('vary-delay', directory, ['-lm'])
    const delays = [`vary-least=${least_ms * 1e3}`, `vary-mean=${mean_ms * 1e3}`]
    const name = `file that answers after ${least_ms} ms and a random time of ${mean_ms} ms on average (nbdkit), direct`
    const target = slowFile(size, name, filter, delays)
    const remove = () => {
      target.remove()
      removeDirectory()
    }
    return { ...target, remove }
  } catch (error) {
    removeDirectory()
    throw error
  }
}

/**
 * A shared library of `bench/native`, built into a folder.
 * @param {string} name
 * @param {string} directory
 * @param {string[]} [libraries]
 */
export function compile(name, directory, libraries = []) {
  const library = path.join(directory, `${name}.so`)
  const source = fileURLToPath(new URL(`./native/${name}.c`, import.meta.url))
  run('cc', ['-O2', '-fPIC', '-shared', '-o', library, source, ...libraries])
  return library
}

/**
 * Memory served by nbdkit behind a filter that takes its time, mounted by nbdfuse. Ten requests at a time wait beside each
 * other, which is what nbdfuse has threads for; a request needs a connection to itself, of which there are four if nobody asks
 * for more. A sleep would end up to 50 us late, sooner if another timer happens to be due (prctl(2), PR_SET_TIMERSLACK):
 * whoever sets timers of his own would find a faster device.
 * @param {number} size
 * @param {string} name
 * @param {string} filter its name, or where it lies
 * @param {string[]} delays what it is told
 * @returns {Target}
 */
function slowFile(size, name, filter, delays) {
  for (const tool of ['nbdkit', 'nbdfuse', 'fusermount3']) run(tool, ['--version'])
  const { directory, remove: removeDirectory } = temporaryDirectory(os.tmpdir())
  const [socket, file] = [path.join(directory, 'socket'), path.join(directory, 'disk')]
  const memory = ['memory', String(size)]
  const server = ['--foreground', '--unix', socket, '--threads=32', `--filter=${filter}`, ...memory, ...delays]
  const punctual = ['-c', 'echo 1 > /proc/self/timerslack_ns; exec "$@"', 'sh']
  const started = [start('sh', [...punctual, 'nbdkit', ...server])]
  const end = atTheLatestAtExit(() => {
    for (const child of started) child.kill()
  })
  try {
    waitFor(() => fs.existsSync(socket), 'nbdkit')
    fs.writeFileSync(file, '')
    started.push(start('nbdfuse', ['--connections=16', file, '--unix', socket]))
    const unmount = atTheLatestAtExit(() => run('fusermount3', ['-u', '-z', file]))
    waitFor(() => fs.statSync(file).size === size, 'nbdfuse')
    const remove = () => {
      unmount()
      end()
      removeDirectory()
    }
    return { name, path: file, size, direct: true, remove }
  } catch (error) {
    end()
    removeDirectory()
    throw error
  }
}

/** @param {string} command @param {string[]} args */
function start(command, args) {
  const child = spawn(command, args, { stdio: 'ignore' })
  child.unref()
  return child
}

const PATIENCE_MS = 5000
const LOOK_MS = 20

/** @param {() => boolean} isThere @param {string} what */
function waitFor(isThere, what) {
  for (let waited = 0; !isThere(); waited += LOOK_MS) {
    if (waited > PATIENCE_MS) throw new Unavailable(`${what} does not start here`)
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, LOOK_MS)
  }
}
