import type { Comparison } from './compare.ts'
import type { Sweep } from './job.ts'
import type { Result } from './results.ts'
export function formatHtml(_r: readonly Result[], _s: Sweep | null, _c: Comparison | null): string {
  return ''
}
