// Does an addon load, and do its engines write what they are given? For the binary that MULTIWRITE_ADDON names, on a Node of any
// version and, under an emulator, of any architecture: there io_uring and AIO are often missing, and the threads serve.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { create } from '../dist/index.js'

const folder = mkdtempSync(join(tmpdir(), 'multiwrite-smoke-'))
try {
  const engines = []
  for (const engine of ['auto', 'threads']) {
    const path = join(folder, engine)
    const disk = await create(path, { size: 1 << 20, engine })
    const expected = Buffer.alloc(1 << 20)
    const requests = Array.from({ length: 100 }, (_, index) => {
      const data = Buffer.alloc(5000, index + 1)
      const offset = (index * 7919) % (expected.length - data.length)
      data.copy(expected, offset)
      return { offset, data }
    })
    await disk.multiwrite(requests)
    const into = disk.alloc(expected.length)
    await disk.read(0, into)
    await disk.close()
    if (!into.equals(expected) || !readFileSync(path).equals(expected))
      throw new Error(`${disk.engine.name} wrote wrong bytes`)
    engines.push(disk.engine.name)
  }
  const { glibcVersionRuntime } = process.report.getReport().header
  const libc = glibcVersionRuntime === undefined ? 'no glibc' : `glibc ${glibcVersionRuntime}`
  console.log(`Node ${process.versions.node} on ${process.arch} with ${libc}: ${[...new Set(engines)].join(', ')} work`)
} finally {
  rmSync(folder, { recursive: true, force: true })
}
