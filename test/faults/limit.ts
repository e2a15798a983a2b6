// Writes of a process whose files may grow to a certain size only, for every size that cuts the write somewhere: the kernel
// writes up to the limit, says how much that was, and refuses the rest.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { type OpenOptions, open } from 'multiwrite'
import { codeOf } from './scenario.ts'

export interface Plan {
  path: string
  options: OpenOptions
  offset: number
  /** Lengths of the pieces of which the write consists, in bytes. */
  lengths: number[]
  /** File sizes to be the limit. */
  limits: number[]
}

/** What came of one limit. */
export interface Line {
  limit: number
  code: string
  /** How many bytes of the write are on disk, from its start on without a gap. */
  written: number
  /** Whether what follows them is what was there before. */
  untouched: boolean
  resubmitted: number
}

const { path, options, offset, lengths, limits } = JSON.parse(process.env.PLAN ?? '') as Plan
const total = lengths.reduce((sum, length) => sum + length, 0)
const disk = await open(path, options)
const setLimit = (limit: number | 'unlimited'): void => {
  execFileSync('prlimit', ['--pid', String(process.pid), `--fsize=${limit}:unlimited`])
}

for (const [run, limit] of limits.entries()) {
  const before = fs.readFileSync(path)
  // No byte is what it was before.
  const half = run % 2 === 0 ? 0 : 0x80
  const bytes = Uint8Array.from({ length: total }, (_, at) => half | ((run * 61 + at * 7 + (at >> 8) * 31) & 0x7f))
  const data = lengths.map((length, piece) => {
    const start = lengths.slice(0, piece).reduce((sum, each) => sum + each, 0)
    const part = disk.alloc(length)
    part.set(bytes.subarray(start, start + length))
    return part
  })
  const { resubmitted } = disk.stats
  setLimit(limit)
  const code = await disk.write(offset, data).then(() => 'ok', codeOf)
  setLimit('unlimited')
  const after = fs.readFileSync(path)
  let written = 0
  while (written < total && after[offset + written] === bytes[written]) written++
  const line: Line = {
    limit,
    code,
    written,
    untouched: after.subarray(offset + written).equals(before.subarray(offset + written)),
    resubmitted: disk.stats.resubmitted - resubmitted,
  }
  fs.writeSync(1, `${JSON.stringify(line)}\n`)
}
await disk.close()
