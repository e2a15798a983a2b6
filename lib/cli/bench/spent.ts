// What the process has spent so far, and since a moment.

import type { Spent } from './results.ts'

export interface SpentAt {
  cpu: NodeJS.CpuUsage
  usage: NodeJS.ResourceUsage
}

export function spentAt(): SpentAt {
  return { cpu: process.cpuUsage(), usage: process.resourceUsage() }
}

export function spentSince(before: SpentAt): Spent {
  const { user, system } = process.cpuUsage(before.cpu)
  const now = process.resourceUsage()
  const { usage } = before
  return {
    user_us: user,
    system_us: system,
    contextSwitches:
      now.voluntaryContextSwitches +
      now.involuntaryContextSwitches -
      usage.voluntaryContextSwitches -
      usage.involuntaryContextSwitches,
    majorFaults: now.majorPageFault - usage.majorPageFault,
    minorFaults: now.minorPageFault - usage.minorPageFault,
  }
}
