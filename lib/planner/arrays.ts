// Typed arrays for one batch. An array of more than 64 bytes gets memory of its own outside the heap of JavaScript, and asking
// for that costs twenty times as much as the array itself: for a batch of some dozens of requests, more than all the rest. So
// the arrays of many batches are cut from one larger piece. What has been cut is never handed out again: a piece goes when
// the last array on it is gone.

/** V8 keeps arrays up to this size in its own heap, and they are cheap as they are. */
const IN_HEAP_BYTES = 64
/** Cut from one piece until it has no room left; what is longer than a part of it stands alone. */
const PIECE_BYTES = 64 << 10
const CUT_BYTES_MAX = PIECE_BYTES / 8

let piece = new ArrayBuffer(0)
let used = 0

/** Where the next `bytes` lie in `piece`; zeroed, at a multiple of eight. */
function cut(bytes: number): number {
  if (used + bytes > piece.byteLength) {
    piece = new ArrayBuffer(PIECE_BYTES)
    used = 0
  }
  const at = used
  used += (bytes + 7) & ~7
  return at
}

let zeroList = new Float64Array(0)
let zeroFlags = new Uint8Array(0)
let ascendingList = new Int32Array(0)

/** At least `count` zeros. Everybody shares them: they are not to be written to. */
export function zeros(count: number): Float64Array {
  if (zeroList.length < count) zeroList = new Float64Array(Math.max(1024, count * 2))
  return zeroList
}

/** At least `count` flags that are not set; shared as well. */
export function noFlags(count: number): Uint8Array {
  if (zeroFlags.length < count) zeroFlags = new Uint8Array(Math.max(1024, count * 2))
  return zeroFlags
}

/** A list that begins with the numbers from 0 to `count` - 1; shared as well. */
export function ascending(count: number): Int32Array {
  if (ascendingList.length < count) ascendingList = Int32Array.from({ length: Math.max(1024, count * 2) }, (_, i) => i)
  return ascendingList
}

/** As `new Float64Array(length)`. */
export function float64s(length: number): Float64Array {
  const bytes = length * Float64Array.BYTES_PER_ELEMENT
  if (bytes <= IN_HEAP_BYTES || bytes > CUT_BYTES_MAX) return new Float64Array(length)
  const at = cut(bytes)
  return new Float64Array(piece, at, length)
}

/** As `new Int32Array(length)`. */
export function int32s(length: number): Int32Array {
  const bytes = length * Int32Array.BYTES_PER_ELEMENT
  if (bytes <= IN_HEAP_BYTES || bytes > CUT_BYTES_MAX) return new Int32Array(length)
  const at = cut(bytes)
  return new Int32Array(piece, at, length)
}

/** As `new Uint8Array(length)`. */
export function uint8s(length: number): Uint8Array {
  if (length <= IN_HEAP_BYTES || length > CUT_BYTES_MAX) return new Uint8Array(length)
  const at = cut(length)
  return new Uint8Array(piece, at, length)
}
