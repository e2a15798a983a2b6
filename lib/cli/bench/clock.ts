// The clock of all measurements: nanoseconds as a number.
//
// It is performance.now(), which reads CLOCK_MONOTONIC, as fio does, and gives milliseconds as a double. A double holds days of
// uptime to better than a nanosecond, Node adds no fuzz, and a call costs about 40 ns, which is also what one latency is longer
// for having been stamped. process.hrtime.bigint() costs as much and allocates a BigInt for every stamp.

/** Nanoseconds since an origin of this thread's own. */
export function clock(): number {
  return performance.now() * 1e6
}
