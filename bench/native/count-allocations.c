// Counts the allocations of a process, and those that one shared object of it makes, be it through operator new: loaded with LD_PRELOAD into a benchmark's
// child, compiled by allocations.mjs. The counters lie in a file that the child maps by name, so that it can read them from
// JavaScript, and writes there where in memory the shared object lies.
//
// glibc only: it leaves the work to the names under which glibc exports its allocator.

#include <execinfo.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

struct Counters {
  uint64_t all;
  uint64_t of_object;
  uint64_t object_start;
  uint64_t object_end;
};

// Until the file is mapped: the loader allocates before any constructor runs.
static struct Counters early;
static struct Counters* counters = &early;

__attribute__((constructor)) static void Map(void) {
  const char* path = getenv("MULTIWRITE_ALLOCATION_COUNTERS");
  if (!path) return;
  int fd = open(path, O_RDWR);
  if (fd < 0) return;
  void* shared = mmap(NULL, sizeof(struct Counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (shared != MAP_FAILED) counters = shared;
}

// Whether the allocator's caller, or that one's caller, lies in the object: the first may be operator new.
// The frames: the allocator, into which all of this is inlined, its caller, and that one's.
enum { kFrames = 3 };

static inline __attribute__((always_inline)) int FromObject(void) {
  void* frames[kFrames];
  int depth = backtrace(frames, kFrames);
  for (int i = 0; i < depth; i++) {
    uint64_t address = (uint64_t)frames[i];
    if (address >= counters->object_start && address < counters->object_end) return 1;
  }
  return 0;
}

// The unwinder allocates when it is first used.
static __thread int counting;

static inline __attribute__((always_inline)) void Count(void) {
  if (counting) return;
  counting = 1;
  __atomic_fetch_add(&counters->all, 1, __ATOMIC_RELAXED);
  if (counters->object_end && FromObject())
    __atomic_fetch_add(&counters->of_object, 1, __ATOMIC_RELAXED);
  counting = 0;
}

void* malloc(size_t size) {
  Count();
  return __libc_malloc(size);
}

void* calloc(size_t count, size_t size) {
  Count();
  return __libc_calloc(count, size);
}

void* realloc(void* old, size_t size) {
  Count();
  return __libc_realloc(old, size);
}

void* memalign(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}

void* aligned_alloc(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}

int posix_memalign(void** result, size_t alignment, size_t size) {
  Count();
  *result = __libc_memalign(alignment, size);
  return *result ? 0 : 12;  // ENOMEM
}
