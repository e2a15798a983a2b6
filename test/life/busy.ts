// A device under load, and the check of what that load may leave. Each write fills a page with one value, or with zeros, so a
// page that holds two is torn, and one that holds none of those written is wrong.

import type { BlockDevice } from 'multiwrite'

export const page = 4096
const lanes = 10

/**
 * Writes, zeroes, reads and flushes in several lanes for as long as `goOn` says, with memory of all kinds. Does not wait for the last
 * ones.
 *
 * @param value what the pages are filled with
 * @param goOn asked after each step, from a callback or after a promise
 */
export function keepBusy(disk: BlockDevice, value: number, goOn: () => boolean): void {
  const pages = disk.size / page
  const pool = disk.alloc(16 * page).fill(value)
  const into = disk.alloc(4 * page)
  let step = 0
  const place = (length: number): number => ((step * 13) % (pages - length)) * page
  const walk = async (lane: number): Promise<void> => {
    do {
      step++
      const own = Buffer.alloc(page, value)
      const several = 1 + (step % 16)
      if (lane % 5 === 0) {
        await disk.write(place(several), pool.subarray(0, several * page))
      } else if (lane % 5 === 1) {
        await Promise.all([disk.write(place(1), own), disk.write(place(3), [own, own, own]), disk.read(place(4), into)])
      } else if (lane % 5 === 2) {
        await disk.multiwrite(
          Array.from({ length: 32 }, (_, at) => ({ offset: place(32) + (at % 20) * page, data: at % 2 ? own : pool })),
        )
      } else if (lane % 5 === 3) {
        await disk.write(place(1), own)
        await disk.flush()
      } else {
        await disk.writeZeroes(place(several), several * page, { unmap: step % 2 === 0 })
      }
    } while (goOn())
  }
  for (let lane = 0; lane < lanes; lane++) void walk(lane)
}

/** The first page that does not hold one of the values, or zero, throughout, in words; `null` where there is none. */
export function strayPage(content: Buffer, values: ReadonlySet<number>): string | null {
  for (let at = 0; at < content.length; at += page) {
    const value = content[at] as number
    if (value !== 0 && !values.has(value)) return `page ${at / page} holds ${value}`
    if (content.compare(Buffer.alloc(page, value), 0, page, at, at + page) !== 0) return `page ${at / page} is torn`
  }
  return null
}
