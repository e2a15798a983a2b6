// What an addon asks of the process that loads it, read from its dynamic section: libraries, symbol versions, names. A small
// reader of 64-bit little-endian ELF files, so that the check of a prebuilt binary needs no tool.

const SHT_DYNAMIC = 6
const SHT_DYNSYM = 11
const SHT_GNU_VERNEED = 0x6ffffffe
const STT_SECTION = 3
const DT_NEEDED = 1n
const DT_RPATH = 15n
const DT_RUNPATH = 29n
const MACHINES = new Map([
  [62, 'x64'],
  [183, 'arm64'],
])

/**
 * @param {Buffer} bytes the file
 * @returns {{arch: string, needed: string[], paths: string[], versions: number, wanted: string[], weak: string[],
 *   offered: string[]}} `needed`: libraries; `paths`: where it would look for them; `versions`: how many entries of the version
 *   table there are; `wanted` and `weak`: undefined names; `offered`: defined ones
 */
export function readElf(bytes) {
  const magic = bytes.length > 64 && bytes.readUInt32BE(0) === 0x7f454c46
  if (!magic || bytes[4] !== 2 || bytes[5] !== 1) throw new Error('not a 64-bit little-endian ELF file')
  const arch = MACHINES.get(bytes.readUInt16LE(18)) ?? `machine ${bytes.readUInt16LE(18)}`
  const table = Number(bytes.readBigUInt64LE(40))
  const [size, count] = [bytes.readUInt16LE(58), bytes.readUInt16LE(60)]
  const sections = Array.from({ length: count }, (_, index) => {
    const at = table + index * size
    const [type, link] = [bytes.readUInt32LE(at + 4), bytes.readUInt32LE(at + 40)]
    const [offset, length] = [Number(bytes.readBigUInt64LE(at + 24)), Number(bytes.readBigUInt64LE(at + 32))]
    return { type, link, content: bytes.subarray(offset, offset + length) }
  })
  const text = (strings, at) => strings.toString('latin1', at, strings.indexOf(0, at))
  const found = { arch, needed: [], paths: [], versions: 0, wanted: [], weak: [], offered: [] }
  for (const { type, link, content } of sections) {
    const strings = sections[link]?.content
    if (type === SHT_GNU_VERNEED) found.versions += content.length / 16
    if (type === SHT_DYNAMIC) {
      for (let at = 0; at + 16 <= content.length; at += 16) {
        const tag = content.readBigInt64LE(at)
        const value = Number(content.readBigUInt64LE(at + 8))
        if (tag === DT_NEEDED) found.needed.push(text(strings, value))
        if (tag === DT_RPATH || tag === DT_RUNPATH) found.paths.push(text(strings, value))
      }
    }
    if (type === SHT_DYNSYM) {
      // The first entry is empty.
      for (let at = 24; at + 24 <= content.length; at += 24) {
        if ((content[at + 4] & 15) === STT_SECTION) continue
        const name = text(strings, content.readUInt32LE(at))
        const isWeak = content[at + 4] >> 4 === 2
        if (content.readUInt16LE(at + 6) !== 0) found.offered.push(name)
        else if (isWeak) found.weak.push(name)
        else found.wanted.push(name)
      }
    }
  }
  return found
}

/** What Node looks up in an addon; all that it may show. */
const ENTRIES = ['napi_register_module_v1', 'node_api_module_get_api_version_v1']

/**
 * Names that glibc (2.28, which Node 20 itself needs) and musl both have. On x86-64, glibc keeps an old and a new function under
 * some names, and who asks without a version gets the old one: `pthread_cond_*` are such, so they are missing here on purpose.
 */
const LIBC = new Set(
  `__errno_location abort calloc clock_gettime close eventfd fallocate fdatasync free ftruncate getenv ioctl madvise malloc
  memcpy memmove memset mmap munmap open poll pread preadv pthread_attr_destroy pthread_attr_init pthread_attr_setstacksize
  pthread_create pthread_join pthread_mutex_lock pthread_mutex_unlock pthread_sigmask pwrite pwritev read sched_yield
  sigfillset strlen syscall write`.split(/\s+/),
)

/** Reasons why a binary would not load everywhere; none if it does. */
export function problemsOf(bytes, arch) {
  const elf = readElf(bytes)
  const problems = []
  if (elf.arch !== arch) problems.push(`it is for ${elf.arch}`)
  for (const library of elf.needed) problems.push(`it needs ${library}`)
  for (const path of elf.paths) problems.push(`it looks for libraries in ${path}`)
  if (elf.versions > 0) problems.push(`it needs symbol versions (${elf.versions} entries)`)
  for (const name of elf.wanted) {
    if (!/^(napi|uv)_/.test(name) && !LIBC.has(name)) problems.push(`it needs ${name}, which not every libc has alike`)
  }
  const missing = ENTRIES.filter((name) => !elf.offered.includes(name))
  if (missing.length > 0) problems.push(`it lacks ${missing.join(' and ')}`)
  const extra = elf.offered.filter((name) => !ENTRIES.includes(name))
  if (extra.length > 0) problems.push(`it shows ${extra.join(', ')} to others`)
  return problems
}
