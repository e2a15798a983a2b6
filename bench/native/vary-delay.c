// A filter of nbdkit that lets each request wait for as long as a disk might: a least time, and on top of it one drawn from an
// exponential distribution, which has the long tail that real devices have. Compiled by targets.mjs.
//
//   vary-least=2000 vary-mean=3000     microseconds: the least, and the mean of what comes on top
//
// The same waits are drawn in every run, in whatever order requests come.

#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double least_us;
static double mean_us;

static int read_number(const char* value, double* number) {
  char* end;
  *number = strtod(value, &end);
  if (*end == '\0' && *number >= 0 && *number <= 1e6) return 0;
  nbdkit_error("a wait takes from 0 to 1000000 microseconds, not: %s", value);
  return -1;
}

static int vary_config(nbdkit_next_config* next, nbdkit_backend* backend, const char* key, const char* value) {
  if (strcmp(key, "vary-least") == 0) return read_number(value, &least_us);
  if (strcmp(key, "vary-mean") == 0) return read_number(value, &mean_us);
  return next(backend, key, value);
}

// The nth number of the sequence of SplitMix64 (Steele, Lea, Flood 2014), in (0, 1]: whoever comes takes the next one, without a lock.
static double draw(void) {
  static _Atomic uint64_t drawn;
  uint64_t z = (atomic_fetch_add(&drawn, 1) + 1) * UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  z ^= z >> 31;
  return (double)((z >> 11) + 1) * 0x1p-53;
}

static void wait_a_while(void) {
  const double wait_us = least_us - mean_us * log(draw());
  struct timespec left = {.tv_sec = (time_t)(wait_us / 1e6), .tv_nsec = (long)(fmod(wait_us, 1e6) * 1e3)};
  while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) continue;
}

static int vary_pread(nbdkit_next* next, void* handle, void* data, uint32_t count, uint64_t offset, uint32_t flags,
                      int* error) {
  (void)handle;
  wait_a_while();
  return next->pread(next, data, count, offset, flags, error);
}

static int vary_pwrite(nbdkit_next* next, void* handle, const void* data, uint32_t count, uint64_t offset,
                       uint32_t flags, int* error) {
  (void)handle;
  wait_a_while();
  return next->pwrite(next, data, count, offset, flags, error);
}

static struct nbdkit_filter filter = {
    .name = "vary-delay",
    .longname = "waits of varying length",
    .config = vary_config,
    .pread = vary_pread,
    .pwrite = vary_pwrite,
};

NBDKIT_REGISTER_FILTER(filter)
