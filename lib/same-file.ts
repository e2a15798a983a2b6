// Which file or device something is, whatever it is called: an image must not lie below itself, by its own name, by a link, or by
// way of what lies below it. `open` and `create` ask here before they open anything, and note what each device consists of.
//
// A loop device is not the file behind it here: who hides a file that well is not found out.

import { stat } from 'node:fs/promises'
import { invalidValue } from './errors-argument.ts'
import type { CheckedBacking, CheckedOptions } from './options.ts'

/** The files of an image: that which holds it and those of everything below it, each with how deep it lies, from 0. */
export type Files = ReadonlyMap<string, number>

type Below = CheckedOptions['backing']

const filesByDevice = new WeakMap<object, Files>()

/** Notes what an open device consists of. */
export function noteFiles(device: object, files: Files): void {
  filesByDevice.set(device, files)
}

/** Whether what lies below an image is a path that is to be opened, not something open. */
export function isPath(backing: Below): backing is CheckedBacking {
  return typeof backing === 'object' && backing !== null && 'options' in backing
}

/**
 * What an image and all that lies below it consist of; what can't be found is left out, as opening it tells why. Throws if the
 * image's own file is among what lies below it, naming the option that says so: a write to it would change what lies below.
 */
export async function filesOf(path: string, backing: Below, name = 'options.backing'): Promise<Files> {
  const own = await fileAt(path)
  const below = await filesBelow(backing, name)
  const depth = own === null ? undefined : below.get(own)
  if (depth !== undefined) throw selfBacking(path, backing, name, depth)
  const files = new Map<string, number>()
  for (const [file, at] of below) files.set(file, at + 1)
  if (own !== null) files.set(own, 0)
  return files
}

function filesBelow(backing: Below, name: string): Promise<Files> | Files {
  if (backing === undefined || backing === null) return new Map()
  if (isPath(backing)) return filesOf(backing.path, backing.options.backing, `${name}.backing`)
  return filesByDevice.get(backing) ?? new Map()
}

/** @param depth how far below the option the image itself lies */
function selfBacking(path: string, backing: Below, name: string, depth: number): TypeError {
  let [one, at, rest] = [backing, name, depth]
  for (; rest > 0 && isPath(one); rest--) {
    one = one.options.backing
    at = `${at}.backing`
  }
  // What was passed open may lie above the image by way of what it was opened with.
  const where = rest > 0 ? `lies above ${path}` : `is ${path}`
  return invalidValue(at, one?.path, `${where}, which can not lie below itself`)
}

/** The file or device that a path leads to; `null`: none. */
async function fileAt(path: string): Promise<string | null> {
  try {
    const found = await stat(path, { bigint: true })
    return found.isBlockDevice() ? `device ${found.rdev}` : `file ${found.dev}:${found.ino}`
  } catch {
    return null
  }
}
