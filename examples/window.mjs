// A format driver of one's own: a window into a bigger disk, such as a partition that nobody has to tell the kernel of.
//
//     node examples/window.mjs disk.img 1048576 4096
//
// prints the first bytes of the window of 4096 bytes that begins at byte 1048576.

import { pathToFileURL } from 'node:url'
import { open } from 'multiwrite'

/**
 * @param {number} start where the window begins, in bytes
 * @param {number} length how long it is, in bytes
 * @returns {import('multiwrite').FormatDriver}
 */
export function windowOf(start, length) {
  return {
    name: 'window',
    async open(host) {
      if (start + length > host.size)
        throw new RangeError(`the window ends after ${host.path}, which has ${host.size} bytes`)
      return {
        size: length,
        // Guest bytes of one run follow each other on the host too, so a run goes on as it is.
        read: (offset, into) => host.read(start + offset, into),
        write: (offset, data, options) => host.write(start + offset, data, options),
        flush: () => host.flush(),
        discard: (offset, bytes) => host.discard(start + offset, bytes),
        writeZeroes: (offset, bytes, options) => host.writeZeroes(start + offset, bytes, options),
        // There is nothing of its own to write; the host is closed by who opened it.
        close: async () => {},
      }
    },
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [path, start, length] = process.argv.slice(2)
  if (path === undefined || !Number(length)) {
    console.error('usage: node examples/window.mjs PATH START LENGTH, the last two in bytes')
    process.exit(2)
  }
  const disk = await open(path, { format: windowOf(Number(start), Number(length)), readOnly: true })
  const head = disk.alloc(64)
  await disk.read(0, head)
  console.log(`${disk.size} bytes, which begin with ${head.toString('hex')}`)
  await disk.close()
}
