// `multiwrite bench` as a program: what it measures on files and devices, what it prints, what it refuses.

import { execFileSync, spawnSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { cli, type Ended, noTerminal, Terminal } from './support/cli.ts'
import { failingDisk, noFailingDisk } from './support/failing-disk.ts'
import { attachLoop, bufferedFile, directFile, noLoop, temporaryDirectory, withTarget } from './support/targets.ts'

const MIB = 1 << 20

function bench(...words: string[]): Promise<Ended> {
  return cli(['bench', ...words])
}

let directory: { path: string; cleanup(): void }
const inside = (name: string): string => path.join(directory.path, name)
beforeAll(() => {
  directory = temporaryDirectory()
})
afterAll(() => directory.cleanup())

function hasTool(name: string, word: string): boolean {
  return spawnSync(name, [word], { stdio: 'ignore' }).status === 0
}
const noFio = hasTool('fio', '--version') ? '' : 'skipped: needs fio'

describe('a load', () => {
  test('makes its file, writes every block once, and is told in fio’s style', async () => {
    const file = inside('made')
    const words = ['--rw=randwrite', '--size=1M', '--iodepth=8', '--batch=8', `--filename=${file}`]
    const { status, stdout, stderr } = await bench(...words)
    expect(stderr).toBe('')
    expect(status).toBe(0)
    expect(fs.statSync(file).size).toBe(MIB)
    expect(stdout).toMatch(
      /^ {2}write: IOPS=[\d.]+[kM]?, BW=[\d.]+[KMG]iB\/s \([\d.]+[kMG]B\/s\)\(1\.00MiB\/\d+msec\)$/m,
    )
    expect(stdout).toMatch(/^ {4}slat \((n|u|m)sec\): min=\d+, max=\d+, avg=[\d.]+, stdev=[\d.]+$/m)
    expect(stdout).toMatch(/^ {4}clat \(/m)
    expect(stdout).toMatch(/^ {5}lat \(/m)
    expect(stdout).toMatch(/\| 99\.00th=\[/)
    expect(stdout).toMatch(/issued rwts: total=0,256,0,0/)
    // A batch of neighbours of a random order has few that touch; each request is counted, and each submission.
    const [, requests, submissions] = /writes\s+: (\d+) requests in (\d+) submissions/.exec(stdout) ?? []
    expect(requests).toBe('256')
    expect(Number(submissions)).toBeLessThanOrEqual(256)
  })

  test('warms itself up beside the target, which is not touched, and leaves nothing in memory', async () => {
    const file = inside('cold')
    const content = randomFillSync(Buffer.alloc(MIB))
    fs.writeFileSync(file, content)
    const left = (): string[] => fs.readdirSync('/dev/shm').filter((name) => name.startsWith('multiwrite-warm-up-'))
    const before = left()
    // A block goes to it, of a load of writes.
    const { status } = await bench('--rw=write', '--bs=4k', '--size=4k', '--numjobs=2', '--force', `--filename=${file}`)
    expect(status).toBe(0)
    expect(fs.readFileSync(file).subarray(4096).equals(content.subarray(4096))).toBe(true)
    expect(left()).toEqual(before)
  })

  test('of neighbours in one call is one submission', async () => {
    const file = inside('merged')
    const words = ['--rw=write', '--size=1M', '--iodepth=32', '--batch=32', '--batch-complete=32', '--json']
    const { stdout } = await bench(...words, `--filename=${file}`)
    const [job] = JSON.parse(stdout).jobs
    expect(job.write.total_ios).toBe(256)
    expect(job.multiwrite.submissions.writeSubmissions).toBe(8)
    expect(job.iodepth_submit).toMatchObject({ 32: 100, 4: 0 })
  })

  test('unmerged is a submission per request', async () => {
    const words = ['--rw=write', '--size=1M', '--iodepth=32', '--batch=32', '--merge=off', '--json']
    const { stdout } = await bench(...words, `--filename=${inside('unmerged')}`)
    expect(JSON.parse(stdout).jobs[0].multiwrite.submissions.writeSubmissions).toBe(256)
  })

  test.each(['io_uring', 'threads'])('runs on the engine that is named: %s', async (engine) => {
    const file = inside(`engine-${engine}`)
    const words = ['--rw=randrw', '--size=1M', '--iodepth=4', `--engine=${engine}`, '--json', `--filename=${file}`]
    const { status, stdout } = await bench(...words)
    expect(status).toBe(0)
    const report = JSON.parse(stdout)
    expect(report.multiwrite.target.engine.name).toBe(engine)
    expect(report.jobs[0].read.total_ios + report.jobs[0].write.total_ios).toBe(256)
  })

  test('of several jobs is added up', async () => {
    const words = ['--rw=randread', '--size=1M', '--iodepth=4', '--numjobs=3', '--json', `--filename=${inside('jobs')}`]
    const { status, stdout } = await bench(...words)
    expect(status).toBe(0)
    const [job] = JSON.parse(stdout).jobs
    expect(job.read.total_ios).toBe(3 * 256)
    expect(job.read.lat_ns.N).toBe(3 * 256)
    const binned = Object.values<number>(job.read.lat_ns.bins).reduce((sum, count) => sum + count, 0)
    expect(binned).toBe(3 * 256)
  })

  test('flushes as often as it is told', async () => {
    const words = ['--rw=write', '--size=1M', '--iodepth=4', '--fdatasync=32', '--json', `--filename=${inside('sync')}`]
    const [job] = JSON.parse((await bench(...words)).stdout).jobs
    // The last flush would come before a write that there is not.
    expect(job.sync.total_ios).toBe(7)
    expect(job.sync.lat_ns.N).toBe(7)
  })

  test.skipIf(!directFile.available)('goes past the page cache if told to', async () => {
    await withTarget(directFile, MIB, async ({ path: file }) => {
      const { stdout } = await bench(`--filename=${file}`, '--rw=randread', '--direct=1', '--json')
      const report = JSON.parse(stdout)
      expect(report['global options'].direct).toBe('1')
      expect(report.jobs[0].read.total_ios).toBe(256)
    })
  })

  test('ends early at Ctrl-C, prints its results, and dies of the signal', async () => {
    const file = inside('long')
    const words = [`--filename=${file}`, '--rw=randwrite', '--size=1M', '--runtime=1h']
    const { status, signal, stdout, stderr } = await cli(['bench', ...words], {
      meanwhile: async (child) => {
        // It says nothing where nobody looks on; its file shows that it has begun.
        while (!fs.existsSync(file) || fs.statSync(file).size < MIB) await sleep(20)
        await sleep(700)
        child.kill('SIGINT')
      },
    })
    expect({ status, signal, stderr }).toEqual({ status: null, signal: 'SIGINT', stderr: '' })
    expect(stdout).toContain('write: IOPS=')
    expect(stdout).toContain('ended early, by a signal')
  })

  test.skipIf(noTerminal !== '')(`says on the way how far it is, on a terminal only ${noTerminal}`, async () => {
    const words = [`--filename=${inside('tty')}`, '--rw=randread', '--size=1M', '--runtime=3']
    const place = temporaryDirectory()
    const terminal = new Terminal(place.path, ['bench', ...words])
    try {
      await terminal.shows(/^randread \[\d+ %, \d s left\] [\d.]+k? IOPS, [\d.]+[KMG]iB\/s/m)
      expect(await terminal.shows('[status 0]')).not.toContain('left]')
    } finally {
      terminal.end()
      place.cleanup()
    }
    expect((await bench(...words, '--runtime=0.6')).stderr).toBe('')
  })

  test('tells other programs how far it is, a line of JSON at a time', async () => {
    let text = ''
    const words = [`--filename=${inside('told')}`, '--rw=randread', '--size=1M', '--ramp=0.8', '--runtime=2']
    const { status, stderr } = await cli(['bench', ...words, '--progress=3'], {
      extra: (piece) => {
        text += piece
      },
    })
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    const states = text
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    expect([...new Set(states.map(({ phase }) => phase))]).toEqual(['ramp', 'measuring'])
    const { done, bytesPerSecond, perSecond, ...last } = states.at(-1)
    expect(last).toMatchObject({ load: 'randread', unit: 'requests' })
    expect(done).toBeGreaterThan(states[0].done)
    expect(bytesPerSecond / perSecond / 4096).toBeCloseTo(1, 1)
  })
})

describe('JSON', () => {
  /** All keys, in depth; those of maps by value (bins, percentiles, options) are not a matter of the schema. */
  function keysOf(value: unknown, where = ''): string[] {
    if (Array.isArray(value)) return value.flatMap((each) => keysOf(each, `${where}[]`))
    if (typeof value !== 'object' || value === null) return []
    if (/\/(bins|job options|global options)$/.test(where)) return []
    return Object.entries(value).flatMap(([key, each]) => [`${where}/${key}`, ...keysOf(each, `${where}/${key}`)])
  }

  test.skipIf(noFio !== '')(`has every key of fio’s, and more only below our own ${noFio}`, async () => {
    const file = inside('schema')
    const words = ['--rw=randrw', '--size=1M', '--iodepth=4', '--fdatasync=16', `--filename=${file}`]
    const ours = JSON.parse((await bench(...words, '--json')).stdout)
    const options = ['--name=peer', '--bs=4k', '--ioengine=io_uring', '--group_reporting', '--output-format=json+']
    const latencies = ['--slat_percentiles=1', '--clat_percentiles=1', '--lat_percentiles=1']
    const output = execFileSync('fio', [...words, ...options, ...latencies], { encoding: 'utf8' })
    const fios = JSON.parse(output.slice(output.indexOf('{')))
    const [mine, theirs] = [new Set(keysOf(ours)), new Set(keysOf(fios))]
    expect([...theirs].filter((key) => !mine.has(key))).toEqual([])
    // fio tells the use of disks only where it finds one, and global options only if there are any.
    const more = [...mine].filter((key) => !theirs.has(key))
    expect(more.filter((key) => !/multiwrite|^\/disk_util|^\/global options/.test(key))).toEqual([])
    for (const [key, value] of Object.entries(fios.jobs[0].read)) {
      expect(typeof ours.jobs[0].read[key], key).toBe(typeof value)
    }
  })

  const noTool = hasTool('fio_jsonplus_clat2csv', '--help') ? '' : 'skipped: needs fio_jsonplus_clat2csv'
  test.skipIf(noTool !== '')(`is read by fio’s own tool ${noTool}`, async () => {
    const json = inside('report.json')
    const words = ['--rw=randrw', '--size=1M', '--iodepth=4', `--filename=${inside('tool')}`, `--json=${json}`]
    const { stdout } = await bench(...words)
    expect(stdout).toContain('read: IOPS=')
    const csv = inside('latencies.csv')
    execFileSync('fio_jsonplus_clat2csv', [json, csv], { stdio: 'pipe' })
    const validated = execFileSync('fio_jsonplus_clat2csv', [json, csv, '--validate'], { encoding: 'utf8' })
    expect(validated).toContain('validated')
    const rows = fs.readFileSync(inside('latencies_job0.csv'), 'utf8').trim().split('\n')
    expect(rows.length).toBeGreaterThan(10)
  })
})

describe('--verify', () => {
  test('proves what was written, also block by block over another', async () => {
    for (const words of [
      ['--rw=randwrite'],
      ['--rw=randrw', '--runtime=0.3'],
      ['--rw=write', '--bs=6k', '--batch=8'],
    ]) {
      const file = inside('verified')
      const { status, stdout } = await bench(`--filename=${file}`, '--size=1M', '--iodepth=8', '--verify', ...words)
      expect(status).toBe(0)
      expect(stdout).toMatch(/verified\s+: [\d.]+[KMG]iB, every byte is right/)
    }
  })

  test('finds the first wrong byte of what an earlier run has written, and ends with status 1', async () => {
    const file = inside('spoilt')
    const words = [`--filename=${file}`, '--size=1M', '--verify', '--seed=5']
    expect(await bench(...words, '--rw=randwrite', '--iodepth=8')).toMatchObject({ status: 0 })
    expect(await bench(...words, '--rw=read')).toMatchObject({ status: 0 })
    const content = fs.readFileSync(file)
    content[700_001]! ^= 0x40
    fs.writeFileSync(file, content)
    const { status, stdout } = await bench(...words, '--rw=read')
    expect(status).toBe(1)
    expect(stdout).toContain('first wrong offset 700001: found 0x')
    // With another seed all is wrong, from the start on.
    const other = await bench(`--filename=${file}`, '--verify', '--seed=6', '--rw=read')
    expect(other.status).toBe(1)
    expect(other.stdout).toContain('first wrong offset 0:')
  })
})

describe('safety', () => {
  test('a file that does not exist is not made without a size', async () => {
    const { status, stderr } = await bench(`--filename=${inside('nothing')}`)
    expect(status).toBe(2)
    expect(stderr).toContain('does not exist; --size says how large a file to make')
    expect(fs.existsSync(inside('nothing'))).toBe(false)
  })

  test('wrong usage ends with status 2 and no stack', async () => {
    const { status, stdout, stderr } = await bench('--rw=backwards', '--filename=/dev/null')
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
    expect(stderr).toMatch(/^multiwrite bench: --rw=backwards: must be one of/)
    expect(stderr).not.toMatch(/^\s+at /m)
    expect((await bench('--filename=/dev/null')).status).toBe(1)
  })

  test.each([
    [['--json=/nonexistent/report'], 'ENOENT'],
    [['--html=/nonexistent/report'], 'ENOENT'],
    [['--engine=aio', '--direct=0'], 'aio'],
  ])('%j is told in a line before anything is measured', async (words, message) => {
    const { status, stdout, stderr } = await bench(`--filename=${inside('early')}`, '--size=64k', ...words)
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
    expect(stderr).toContain(message)
    expect(stderr).not.toMatch(/^\s+at /m)
  })

  test('results are never written over what is measured', async () => {
    const file = inside('own')
    fs.writeFileSync(file, Buffer.alloc(65536, 7))
    expect((await bench(`--filename=${file}`, `--json=${file}`)).status).toBe(2)
    expect(fs.readFileSync(file).equals(Buffer.alloc(65536, 7))).toBe(true)
  })

  describe.skipIf(noLoop !== '')(`of devices ${noLoop}`, () => {
    test('nothing is written to a device without --force', async () => {
      const { path: device, cleanup } = attachLoop(MIB, { sectorSize: 512, backing: directory.path, directIo: false })
      try {
        const before = fs.readFileSync(device)
        const { status, stdout, stderr } = await bench(`--filename=${device}`, '--rw=randwrite')
        expect({ status, stdout }).toEqual({ status: 3, stdout: '' })
        expect(stderr).toContain(`everything on the block device ${device} would be lost`)
        expect(stderr).toContain('--force')
        expect(fs.readFileSync(device).equals(before)).toBe(true)
        expect((await bench(`--filename=${device}`, '--rw=randread')).status).toBe(0)
        const forced = await bench(`--filename=${device}`, '--rw=randwrite', '--force', '--numjobs=2')
        expect(forced.status).toBe(0)
        expect(fs.readFileSync(device).equals(before)).toBe(false)
      } finally {
        cleanup()
      }
    })

    test('nothing is written to a mounted device at all, and the mount point is named', async () => {
      const { path: device, cleanup } = attachLoop(8 * MIB, {
        sectorSize: 512,
        backing: directory.path,
        directIo: false,
      })
      const mount = inside('mount')
      fs.mkdirSync(mount)
      try {
        execFileSync('mkfs.ext4', ['-q', device])
        execFileSync('mount', [device, mount])
        try {
          const words = [`--filename=${device}`, '--rw=randwrite', '--runtime=0.1']
          for (const more of [[], ['--force']]) {
            const { status, stderr } = await bench(...words, ...more)
            expect(status).toBe(3)
            expect(stderr).toContain(`mounted on ${mount}`)
          }
          expect((await bench(`--filename=${device}`, '--rw=randread', '--runtime=0.1')).status).toBe(0)
        } finally {
          execFileSync('umount', [mount])
        }
      } finally {
        cleanup()
      }
    })

    test('nothing is written to a file below a loop device', async () => {
      const { path: device, cleanup } = attachLoop(MIB, { sectorSize: 512, backing: directory.path, directIo: false })
      try {
        const info = execFileSync('losetup', ['--noheadings', '--output', 'BACK-FILE', device], { encoding: 'utf8' })
        const { status, stderr } = await bench(`--filename=${info.trim()}`, '--rw=randwrite')
        expect(status).toBe(3)
        expect(stderr).toContain(`attached to ${device}`)
      } finally {
        cleanup()
      }
    })
  })
})

describe.skipIf(noFailingDisk !== '')(`on a slow device ${noFailingDisk}`, () => {
  const DELAY_MS = 50

  test('the delay below the device is the latency that is told', async () => {
    const disk = await failingDisk(MIB, DELAY_MS)
    try {
      const words = ['--rw=randwrite', '--iodepth=4', '--runtime=2', '--force', '--json', `--filename=${disk.path}`]
      const { clat_ns, lat_ns, slat_ns } = JSON.parse((await bench(...words)).stdout).jobs[0].write
      // More by what the machine takes on the way, which is no property of the instrument, but never less. (Only the whole is
      // never less: a thread that is set aside within the call has a part of the delay in slat.)
      expect(lat_ns.min).toBeGreaterThanOrEqual(DELAY_MS * 1e6 * 0.99)
      for (const told of [clat_ns, lat_ns]) {
        expect(told.percentile['50.000000']).toBeGreaterThanOrEqual(DELAY_MS * 1e6 * 0.98)
        expect(told.percentile['50.000000']).toBeLessThan(DELAY_MS * 1e6 * 1.6)
      }
      expect(slat_ns.percentile['50.000000']).toBeLessThan(DELAY_MS * 1e6 * 0.5)
    } finally {
      await disk.cleanup()
    }
  })

  test.skipIf(noFio !== '')(`fio tells the same of it ${noFio}`, async () => {
    const disk = await failingDisk(MIB, DELAY_MS)
    try {
      const words = ['--rw=randwrite', '--iodepth=8', '--runtime=2', '--ramp=0', '--rounds=1', '--force', '--json']
      const { stdout } = await bench(...words, '--compare=fio', `--filename=${disk.path}`)
      const [ours, fio] = JSON.parse(stdout).multiwrite.comparison.contenders
      // The median alone: a machine that stands still for a while takes some of the rate from one and not from the other.
      const ratio = ours.spread.p50_ns.median / fio.spread.p50_ns.median
      expect(ratio).toBeGreaterThan(0.85)
      expect(ratio).toBeLessThan(1.15)
    } finally {
      await disk.cleanup()
    }
  })

  test('with a fixed rate the waiting of later requests counts', async () => {
    const disk = await failingDisk(MIB, DELAY_MS)
    try {
      // One at a time makes 20 a second at the most; asked for are 100.
      const words = ['--rw=randwrite', '--iodepth=1', '--rate-iops=100', '--runtime=1.5', '--force', '--json']
      const [job] = JSON.parse((await bench(...words, `--filename=${disk.path}`)).stdout).jobs
      expect(job.write.clat_ns.percentile['50.000000']).toBeLessThan(DELAY_MS * 1e6 * 1.6)
      expect(job.write.lat_ns.max).toBeGreaterThan(10 * DELAY_MS * 1e6)
      expect(job.multiwrite.rate.unstarted).toBeGreaterThan(80)
    } finally {
      await disk.cleanup()
    }
  })

  test('a write error ends the load with status 1 and is told', async () => {
    const disk = await failingDisk(MIB, 1)
    try {
      disk.refuseWrites(true)
      const { status, stdout } = await bench('--rw=randwrite', '--iodepth=4', '--force', `--filename=${disk.path}`)
      expect(status).toBe(1)
      expect(stdout).toMatch(/err= ?EIO/)
      expect(stdout).toMatch(/ended by an error: EIO/)
    } finally {
      await disk.cleanup()
    }
  })
})

describe('--sweep and --compare', () => {
  test('a sweep is a job for each depth and size, and a table of each figure', async () => {
    const file = inside('sweep')
    const words = ['--rw=randwrite', '--size=1M', '--sweep=1,4x4k,16k', '--runtime=0.05', '--ramp=0']
    const json = inside('sweep.json')
    const { status, stdout } = await bench(`--filename=${file}`, ...words, `--json=${json}`)
    expect(status).toBe(0)
    expect(stdout).toMatch(/^IOPS +depth 1 +depth 4\n4k .*\n16k /m)
    expect(stdout).toMatch(/^lat p99 /m)
    const { jobs } = JSON.parse(fs.readFileSync(json, 'utf8'))
    const loads = jobs.map((job: { 'job options': Record<string, string> }) => [
      job['job options'].iodepth,
      job['job options'].bs,
    ])
    expect(loads).toEqual([
      ['1', '4096'],
      ['1', '16384'],
      ['4', '4096'],
      ['4', '16384'],
    ])
  })

  test('peers carry out the same load in turn, and a ratio is told', async () => {
    const file = inside('compare')
    const words = ['--rw=randwrite', '--size=1M', '--iodepth=8', '--runtime=0.2', '--ramp=0', '--rounds=2']
    const json = inside('compare.json')
    const { status, stdout } = await bench(`--filename=${file}`, ...words, '--compare=fs,fio', `--json=${json}`)
    expect(status).toBe(0)
    expect(stdout).toMatch(/^node:fs \(\d+ threads\) .* [\d.]+x +[\d.]+x +[\d.]+x$/m)
    expect(stdout).toMatch(
      noFio === '' ? /^fio .* [\d.]+x +[\d.]+x +[\d.]+x$/m : /fio is left out: fio is not installed/,
    )
    const { comparison } = JSON.parse(fs.readFileSync(json, 'utf8')).multiwrite
    for (const { rounds } of comparison.contenders) {
      expect(rounds).toHaveLength(2)
      for (const { iops, p50_ns, p99_ns } of rounds) {
        expect(iops).toBeGreaterThan(0)
        expect(p99_ns).toBeGreaterThanOrEqual(p50_ns)
      }
    }
  })

  test('the peer in node:fs reads what is there', async () => {
    await withTarget(bufferedFile, MIB, async ({ path: file }) => {
      const words = ['--rw=randrw', '--iodepth=4', '--runtime=0.1', '--ramp=0', '--rounds=1', '--compare=fs']
      expect((await bench(`--filename=${file}`, ...words)).status).toBe(0)
    })
  })
})
