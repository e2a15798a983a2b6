// What a device does, for Prometheus: the counters of `disk.stats` and the durations of batches, in the text format that it
// scrapes. OpenTelemetry's meters take the same numbers (`createObservableCounter`, `createHistogram`).
//
//     node examples/prometheus.mjs [IMAGE]        prints one scrape after some writes
//
// `stats` counts by itself. The durations come from node:diagnostics_channel, which costs nothing until somebody listens.

import diagnostics from 'node:diagnostics_channel'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createHistogram } from 'node:perf_hooks'
import { create } from 'multiwrite'

/** Durations of batches in nanoseconds, by path and operation. */
const durations = new Map()
const started = new WeakMap()

diagnostics.subscribe('tracing:multiwrite.batch:start', (batch) => {
  started.set(batch, process.hrtime.bigint())
})
diagnostics.subscribe('tracing:multiwrite.batch:asyncEnd', (batch) => {
  const key = JSON.stringify({ path: batch.path, operation: batch.operation })
  if (!durations.has(key)) durations.set(key, createHistogram())
  durations.get(key).record(process.hrtime.bigint() - started.get(batch))
})

/** One scrape of some devices. */
export function scrape(disks) {
  const lines = []
  const metric = (name, type, help, samples) => {
    lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`)
    for (const [labels, value] of samples) {
      const inside = Object.entries(labels).map(([label, text]) => `${label}=${JSON.stringify(text)}`)
      lines.push(`${name}{${inside.join(',')}} ${value}`)
    }
  }
  const each = (take) =>
    disks.flatMap((disk) => take(disk.stats).map(([more, value]) => [{ path: disk.path, ...more }, value]))
  const both = (field) => (stats) => ['write', 'read'].map((operation) => [{ operation }, stats[operation][field]])
  metric('multiwrite_requests_total', 'counter', 'Requests accepted.', each(both('requests')))
  metric('multiwrite_submissions_total', 'counter', 'Merged runs handed to the kernel.', each(both('submissions')))
  metric('multiwrite_bytes_total', 'counter', 'Bytes submitted.', each(both('bytes')))
  for (const name of ['flushes', 'bounced', 'rmw', 'resubmitted', 'isolated']) {
    metric(
      `multiwrite_${name}_total`,
      'counter',
      `See Stats.${name}.`,
      each((stats) => [[{}, stats[name]]]),
    )
  }
  const quantiles = [...durations].flatMap(([key, histogram]) =>
    [0.5, 0.99].map((quantile) => [
      { ...JSON.parse(key), quantile: String(quantile) },
      histogram.percentile(quantile * 100) / 1e9,
    ]),
  )
  metric('multiwrite_batch_seconds', 'summary', 'From the call to the answer of its last request.', quantiles)
  return `${lines.join('\n')}\n`
}

const folder = await mkdtemp(join(tmpdir(), 'multiwrite-example-'))
const disk = await create(process.argv[2] ?? join(folder, 'disk.img'), { size: 16 << 20, overwrite: true })
try {
  for (let round = 0; round < 50; round++) {
    const requests = Array.from({ length: 64 }, (_, index) => ({
      offset: (round * 64 + index) * 4096,
      data: Buffer.alloc(4096, round),
    }))
    await disk.multiwrite(requests)
  }
  await disk.flush()
  process.stdout.write(scrape([disk]))
} finally {
  await disk.close()
  await rm(folder, { recursive: true })
}
