// Sizes, times and rates as fio's users write them, and as fio writes them back.

const SIZE_UNITS: Record<string, number> = { '': 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3, t: 1024 ** 4, p: 1024 ** 5 }
const TIME_UNITS_MS: Record<string, number> = {
  us: 1e-3,
  usec: 1e-3,
  ms: 1,
  msec: 1,
  '': 1e3,
  s: 1e3,
  m: 60e3,
  h: 3600e3,
  d: 86400e3,
}

/**
 * `4k`, `4K`, `4kb`, `4KiB`, `4096`: in bytes. A unit is always a power of 1024, as it is for fio by default; only fio's
 * reading of `Ki` as 1000 is not shared.
 *
 * @returns `null` if it is none, or not a whole number of bytes
 */
export function parseSize(text: string): number | null {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?$/i.exec(text.trim())
  if (match === null) return null
  const bytes = Number(match[1]) * SIZE_UNITS[match[2]!.toLowerCase()]!
  return Number.isSafeInteger(bytes) ? bytes : null
}

/** `30`, `30s`, `500ms`, `2m`: in milliseconds; seconds without a unit. `null` if it is none. */
export function parseTime(text: string): number | null {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim())
  const unit = match === null ? undefined : TIME_UNITS_MS[match[2]!.toLowerCase()]
  return unit === undefined ? null : Number(match![1]) * unit
}

/** The shortest spelling that `parseSize` reads: `4k`, `1M`, `512`. */
export function sizeWord(bytes: number): string {
  for (const [unit, size] of [
    ['T', 1024 ** 4],
    ['G', 1024 ** 3],
    ['M', 1024 ** 2],
    ['k', 1024],
  ] as const) {
    if (bytes >= size && bytes % size === 0) return `${bytes / size}${unit}`
  }
  return String(bytes)
}

/** Three digits and a unit of 1000, as fio writes IOPS: `303k`, `1.25M`, `512`. */
export function countWord(count: number): string {
  return scaled(count, 1000, ['', 'k', 'M', 'G'])
}

/** `1184MiB`: with a power of 1024. */
export function binaryWord(bytes: number): string {
  return scaled(bytes, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'])
}

/** `1242MB`: with a power of 1000. */
export function decimalWord(bytes: number): string {
  return scaled(bytes, 1000, ['B', 'kB', 'MB', 'GB', 'TB', 'PB'])
}

function scaled(value: number, step: number, units: readonly string[]): string {
  let unit = 0
  let scaled = value
  // Rounded as well: 999.6 is 1.00k, not 1000.
  while (unit < units.length - 1 && Math.max(scaled, Number(scaled.toPrecision(3))) >= step) {
    scaled /= step
    unit++
  }
  const digits = scaled >= 100 || (unit === 0 && Number.isInteger(scaled)) ? 0 : scaled >= 10 ? 1 : 2
  return `${scaled.toFixed(digits)}${units[unit]}`
}

/** Nanoseconds with three digits and the unit that suits: `950 ns`, `12.3 us`, `4.10 ms`, `1.20 s`. */
export function latencyWord(ns: number): string {
  for (const [unit, size] of [
    ['s', 1e9],
    ['ms', 1e6],
    ['us', 1e3],
  ] as const) {
    if (ns >= size * 0.9995) {
      const value = ns / size
      return `${value.toFixed(value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2)} ${unit}`
    }
  }
  return `${Math.round(ns)} ns`
}
