// What `multiwrite bench --help` says.

export const USAGE = `usage: multiwrite bench --filename=TARGET [options]

Measures a block device or a file, in the words of fio. Writes destroy what is
there.

the load
  --filename=TARGET   block device or file; a file is made, or made longer, if
                      --size says how large
  --rw=MODE           read, write, randread, randwrite, rw, randrw   (read)
  --bs=SIZE           bytes of a request                             (4k)
  --iodepth=N         requests in flight at the most                 (1)
  --batch=N           requests of one call at the most               (1)
  --batch-complete=N  a call waits until N may go together           (1)
  --size=SIZE         bytes of the target that are used              (all)
  --runtime=TIME      30, 30s, 500ms, 2m; without it, one pass over the size
  --ramp=TIME         runs so long before anything counts            (0)
  --rate-iops=N       N requests a second and job, each measured from when it
                      should have started; without it, the next starts when
                      one is done
  --rwmixread=N       per cent of reads in rw and randrw             (50)
  --fdatasync=N       a flush after every N writes                   (0: none)
  --numjobs=N         as many threads, each with a load like this    (1)
  --seed=N            of offsets and contents                        (1)
how it is carried out
  --direct=0|1        past the page cache              (1 for block devices)
  --engine=NAME       auto, io_uring, aio, threads                   (auto)
  --merge=MODE        full, sort, off                                (full)
  --busy-poll=US      microseconds of polling before sleeping        (0)
what is done with it
  --verify            of writes: reads back all that was written and compares
                      every byte; of reads: compares with what a --verify of
                      the same seed has written
  --sweep[=LIST]      every depth with every size, such as 1,8,32x4k,64k
                      (1 to 128 x 4k to 256k)
  --compare=fs,fio    the same load by node:fs and by fio, taking turns
  --rounds=N          of a comparison                                (5)
  --json[=FILE]       results as fio's own JSON
  --html=FILE         a report with charts, in one file
  --progress=FD       progress for programs: a line of JSON, two a second
  --name=NAME         of the job in the reports
  --force             write to a block device
  --help

Sizes take k, M, G, T (powers of 1024, with or without "iB"), times us, ms, s,
m, h. fio's own spellings (--ioengine=libaio, --iodepth_batch, --ramp_time ...)
are understood.

In flight are as many requests as --iodepth says. By default each is a call of
its own, made as soon as another one is answered, as fio does it: nothing is
merged but what has to wait in the library. With --batch=N the requests that
become free together, when the kernel reports several at once, go out together,
up to N in one call, and may be merged; --batch-complete=N waits for N of them.
These are fio's iodepth_batch and iodepth_batch_complete_min.

slat is the time of the call that hands a request over (planning and system
call included), clat from its return to the request's own callback, lat from
the start to the callback; with --rate-iops, from the intended start.

JavaScript is compiled while it runs: the first half second is slower than the
rest. Where that matters, --ramp=1 leaves it out (--sweep and --compare do so
by themselves: a ramp of 0.5 s, then 2 s each).

Ctrl-C ends early and prints what there is; a second one ends at once.

exit status: 0 done, 1 I/O or verification failed, 2 usage, 3 refused for
safety
`
