// Random histories of writes and reads that are taken back at random moments. What each caller was told decides what must be on
// the disk: whoever is told of a withdrawal wrote nothing, whoever is not wrote all.

import { setImmediate as turn } from 'node:timers/promises'
import fc from 'fast-check'
import { AbortError } from 'multiwrite'
import { expect, test } from 'vitest'
import { everywhere } from './support/everywhere.ts'
import { difference, Model, pattern } from './support/model.ts'
import { bufferedFile, directFile, loop4096, patience, withDisk, withTarget } from './support/targets.ts'

const size = 64 * 4096

/** What a promise came to: its value, or its error. */
const outcome = (promise: Promise<unknown>): Promise<unknown> => promise.catch((error: unknown) => error)

everywhere([bufferedFile, directFile, loop4096], (target, engine) => {
  test('answers and content agree in random histories of calls and withdrawals', async () => {
    await withTarget(target, size, async (made) => {
      const units = 32
      const span = fc.record({ start: fc.nat({ max: units - 1 }), length: fc.integer({ min: 1, max: 8 }) })
      const step = fc.oneof(
        {
          weight: 4,
          arbitrary: fc.record({
            kind: fc.constant('batch' as const),
            spans: fc.array(span, { maxLength: 6 }),
            signal: fc.nat({ max: 3 }),
          }),
        },
        { weight: 4, arbitrary: fc.record({ kind: fc.constant('write' as const), span, signal: fc.nat({ max: 3 }) }) },
        { weight: 3, arbitrary: fc.record({ kind: fc.constant('read' as const), span, signal: fc.nat({ max: 3 }) }) },
        { weight: 3, arbitrary: fc.record({ kind: fc.constant('abort' as const), signal: fc.nat({ max: 2 }) }) },
        { weight: 2, arbitrary: fc.record({ kind: fc.constant('turn' as const) }) },
        { weight: 1, arbitrary: fc.record({ kind: fc.constant('flush' as const) }) },
      )
      const setups = fc.record({
        // Whole blocks, and what begins and ends inside them.
        unit: fc.constantFrom(333, made.sectorSize === 1 ? 4096 : made.sectorSize),
        history: fc.array(step, { minLength: 1, maxLength: 40 }),
        queueDepth: fc.constantFrom(1, 2, 64),
        mode: fc.constantFrom('full' as const, 'sort' as const, 'off' as const),
      })
      const model = new Model(size)
      const property = fc.asyncProperty(setups, async ({ unit, history, queueDepth, mode }) => {
        const wrong: string[] = []
        const judgements: (() => void)[] = []
        const writes: { offset: number; data: Uint8Array; answer?: 'done' | 'aborted' }[] = []
        const before = Buffer.from(model.bytes)
        // The last signal is never raised.
        const controllers = [0, 1, 2, 3].map(() => new AbortController())
        const answered = (write: (typeof writes)[number], error: unknown): void => {
          if (write.answer !== undefined) wrong.push('answered twice')
          write.answer = error instanceof AbortError ? 'aborted' : 'done'
          if (error !== null && !(error instanceof AbortError)) wrong.push(String(error))
        }
        const next = ({ start, length }: { start: number; length: number }): (typeof writes)[number] => {
          const data = pattern(writes.length, Math.min(length, units - start) * unit)
          const write = { offset: start * unit, data }
          writes.push(write)
          return write
        }
        const carriedOut = (count: number): Buffer => {
          const bytes = Buffer.from(before)
          for (const { offset, data, answer } of writes.slice(0, count)) if (answer === 'done') bytes.set(data, offset)
          return bytes
        }
        const pending: Promise<unknown>[] = []
        await withDisk(made, { engine, queueDepth, merge: { mode } }, async (disk) => {
          for (const one of history) {
            if (one.kind === 'abort') controllers[one.signal]!.abort()
            else if (one.kind === 'turn') await turn()
            else if (one.kind === 'flush') pending.push(disk.flush())
            else {
              const { signal } = controllers[one.signal]!
              const raised = signal.aborted
              if (one.kind === 'batch') {
                const own = one.spans.map(next)
                const requests = own.map((write) => ({
                  offset: write.offset,
                  data: write.data,
                  callback: (error: unknown) => answered(write, error),
                }))
                const done = outcome(disk.multiwrite(requests, { signal })).then((result) => {
                  if (raised) for (const write of own) answered(write, result)
                  const withdrawn = own.filter(({ answer }) => answer === 'aborted').length
                  if (own.some(({ answer }) => answer === undefined)) wrong.push('settled before all were answered')
                  if (result instanceof AbortError) {
                    const { completed } = result
                    if (!raised && (withdrawn === 0 || completed !== own.length - withdrawn)) wrong.push('miscounted')
                  } else if (withdrawn > 0) {
                    wrong.push('resolved although something was withdrawn')
                  }
                })
                pending.push(done)
              } else if (one.kind === 'write') {
                const write = next(one.span)
                const done = disk.write(write.offset, write.data, { signal })
                pending.push(
                  done.then(
                    () => answered(write, null),
                    (error: unknown) => answered(write, error),
                  ),
                )
              } else {
                const length = Math.min(one.span.length, units - one.span.start) * unit
                const offset = one.span.start * unit
                const into = Buffer.alloc(length)
                const known = writes.length
                const judge = (): void => {
                  const expected = carriedOut(known).subarray(offset, offset + length)
                  const found = difference(into, expected)
                  if (found !== null) wrong.push(`read: ${found}`)
                }
                pending.push(
                  disk.read(offset, into, { signal }).then(
                    () => judgements.push(judge),
                    () => undefined,
                  ),
                )
              }
            }
          }
          await Promise.all(pending)
        })
        for (const judge of judgements) judge()
        const content = made.readBack()
        const left = difference(content, carriedOut(writes.length))
        model.bytes.set(content)
        expect(wrong).toEqual([])
        expect(left).toBeNull()
      })
      await fc.assert(property, { numRuns: (target.block ? 30 : 60) * patience })
    })
  })
})
