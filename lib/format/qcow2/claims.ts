// Where all tables of an image lie: entered when it is opened for writing, so that nothing of the guest is ever written there, and
// again when it is checked. The L2 tables of snapshots are not among them: only their counts protect them.

import type { Header } from './header.ts'
import type { Mapping } from './mapping.ts'
import type { Metadata } from './metadata.ts'
import type { RefcountBlocks } from './refcount-blocks.ts'
import { readSnapshots } from './snapshots.ts'

/** Enters them anew. Returns what is wrong with their places, if anything: they overlap, or lie where nothing is. */
export async function claimTables(
  metadata: Metadata,
  header: Header,
  blocks: RefcountBlocks,
  mapping: Mapping,
): Promise<string | null> {
  const { snapshotCount, snapshotOffset, bitmaps, clusterSize } = header
  // First, as this may fail: what has been entered before must not be forgotten by halves.
  const { snapshots, length } = snapshotCount > 0 ? await readSnapshots(metadata, header) : { snapshots: [], length: 0 }
  metadata.forget()
  metadata.claim(0, clusterSize)
  let wrong = blocks.claimTables()
  wrong = mapping.claimTables() ?? wrong
  if (length > 0 && metadata.claim(snapshotOffset, length)) wrong ??= 'its table of snapshots lies in another table'
  for (const { l1Offset, l1Size } of snapshots) {
    if (wrong !== null) break
    if (l1Size > 0 && metadata.claim(l1Offset, l1Size * 8)) wrong = 'the L1 table of a snapshot lies in another table'
  }
  if (bitmaps !== null && metadata.claim(bitmaps.offset, bitmaps.length)) {
    wrong ??= 'its directory of bitmaps lies in another table'
  }
  return wrong
}
