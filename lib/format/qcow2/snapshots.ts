// The table of internal snapshots: read for what it refers to, never changed.

import type { Header } from './header.ts'
import { invalid, L1_BYTES_MAX, readU64, SNAPSHOT_EXTRA_MAX, SNAPSHOT_TABLE_BYTES_MAX } from './layout.ts'
import type { Metadata } from './metadata.ts'

export interface Snapshot {
  readonly l1Offset: number
  /** Entries. */
  readonly l1Size: number
}

const ENTRY_BYTES = 40
const READ_BYTES = 64 << 10

/** The snapshots, and the bytes of their table. */
export async function readSnapshots(
  metadata: Metadata,
  header: Header,
): Promise<{ snapshots: Snapshot[]; length: number }> {
  const { path } = metadata.host
  const { snapshotCount, snapshotOffset, clusterSize } = header
  const snapshots: Snapshot[] = []
  let bytes = Buffer.alloc(0)
  // The table does not say how long it is: it is read as far as its entries go, in ever larger pieces.
  const need = async (end: number): Promise<void> => {
    if (end > SNAPSHOT_TABLE_BYTES_MAX)
      throw invalid(path, `a table of snapshots of more than ${SNAPSHOT_TABLE_BYTES_MAX} bytes`)
    if (bytes.length >= end) return
    const more = Math.max(READ_BYTES, bytes.length, end - bytes.length)
    bytes = Buffer.concat([bytes, await metadata.read(snapshotOffset + bytes.length, more)])
  }
  let at = 0
  for (let n = 0; n < snapshotCount; n++) {
    await need(at + ENTRY_BYTES)
    const l1Offset = readU64(bytes, at)
    const l1Size = bytes.readUInt32BE(at + 8)
    const names = bytes.readUInt16BE(at + 12) + bytes.readUInt16BE(at + 14)
    const extra = bytes.readUInt32BE(at + 36)
    if (extra > SNAPSHOT_EXTRA_MAX) throw invalid(path, `snapshot ${n} has ${extra} bytes of extra data`)
    const isPlace = l1Offset % clusterSize === 0 && l1Offset < metadata.host.size && (l1Offset > 0 || l1Size === 0)
    if (l1Size * 8 > L1_BYTES_MAX || !isPlace) {
      throw invalid(path, `snapshot ${n} has an L1 table of ${l1Size} entries at ${l1Offset}`)
    }
    snapshots.push({ l1Offset, l1Size })
    at += Math.ceil((ENTRY_BYTES + extra + names) / 8) * 8
  }
  return { snapshots, length: at }
}
