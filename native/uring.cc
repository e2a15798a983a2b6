// io_uring behind the engine interface.
//
// Queue writes submission entries into the shared ring; Submit enters the kernel once for all of
// them. When the ring has no room, slots wait in a list and follow as entries come free. The
// completion queue holds one entry per slot, so it cannot overflow by our own doing; should the
// kernel flag an overflow all the same, Reap enters to have it flushed.
//
// The loop polls the ring's own descriptor: one system call less per wake-up than an eventfd.
// DEFER_TASKRUN is left out on purpose, since a polled ring loses wake-ups with it (completions
// stay out of the queue until the next enter); SQPOLL and IOPOLL cost a processor each.
#include "uring.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <initializer_list>
#include <new>

#include "allocation.h"

namespace multiwrite {
namespace {

using namespace uring_abi;

// Entries that can be handed over in one enter. More operations than that in one batch cost one
// more system call.
constexpr uint32_t kSubmissionEntries = 256;
// Below this a ring is not worth having; smaller memory limits mean the next engine.
constexpr uint32_t kSubmissionEntriesMin = 8;
// user_data of the operation that proves a new ring.
constexpr uint64_t kNopTag = ~0ull;

template <typename T>
T LoadAcquire(const T* place) {
  return __atomic_load_n(place, __ATOMIC_ACQUIRE);
}

template <typename T>
void StoreRelease(T* place, T value) {
  __atomic_store_n(place, value, __ATOMIC_RELEASE);
}

void* MapRing(int fd, size_t bytes, uint64_t offset) {
  if (Refused(Resource::kMapping)) return MAP_FAILED;
  return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
              static_cast<off_t>(offset));
}

}  // namespace

std::unique_ptr<Uring> Uring::Create(Slot* slots, uint32_t slot_count, int* error,
                                     const char** syscall) {
  std::unique_ptr<Uring> ring(new (std::nothrow) Uring());
  if (!ring) {
    *error = ENOMEM;
    *syscall = "io_uring_setup";
    return nullptr;
  }
  ring->slots_ = slots;
  ring->slot_count_ = slot_count;

  *syscall = "io_uring_setup";
  uint32_t cq_entries = slot_count;
  uint32_t first_entries = kSubmissionEntries;
#ifdef MULTIWRITE_FAULTS
  // A ring small enough to be full and to overflow.
  const char* tiny = getenv("MULTIWRITE_TEST_RING");
  if (tiny) first_entries = cq_entries = static_cast<uint32_t>(atoi(tiny));
#endif
  for (uint32_t entries = first_entries;; entries /= 2) {
    *error = ring->Setup(entries, cq_entries);
    // Ring memory counts against RLIMIT_MEMLOCK on some kernels: a smaller ring may still fit.
    if (*error != ENOMEM || entries / 2 < kSubmissionEntriesMin) break;
    if (cq_entries / 2 >= kSubmissionEntries) cq_entries /= 2;
  }
  if (*error != 0) return nullptr;

  *syscall = "io_uring_register";
  *error = ring->CheckOperations();
  if (*error != 0) return nullptr;
  *syscall = "io_uring_enter";
  *error = ring->CheckWithNop();
  if (*error != 0) return nullptr;
  return ring;
}

int Uring::Setup(uint32_t entries, uint32_t cq_entries) {
  // Best first; an older kernel refuses a flag that it does not know with EINVAL.
  constexpr uint32_t kBase = kSetupCqSize | kSetupClamp;
  constexpr uint32_t kFlags[] = {
      kBase | kSetupSubmitAll | kSetupCoopTaskrun | kSetupTaskrunFlag | kSetupSingleIssuer,  // 6.0
      kBase | kSetupSubmitAll | kSetupCoopTaskrun | kSetupTaskrunFlag,                       // 5.19
      kBase,
  };
  Params params;
  int fd = -1;
  for (uint32_t flags : kFlags) {
    memset(&params, 0, sizeof params);
    params.flags = flags;
    params.cq_entries = cq_entries;
    fd = Refused(Resource::kDescriptor) ? -1
                                        : static_cast<int>(syscall(kSysSetup, entries, &params));
    if (fd >= 0 || errno != EINVAL) break;
  }
  if (fd < 0) return errno;
  fd_ = fd;
  int error = Map(params);
  if (error != 0) {
    close(fd_);
    fd_ = -1;
  }
  return error;
}

int Uring::Map(const Params& params) {
  // One mapping for both rings (5.4), completions never dropped (5.5), iovecs copied at submission
  // (5.5). Older kernels lack too much else to be worth a second path.
  constexpr uint32_t kNeeded = kFeatSingleMmap | kFeatNodrop | kFeatSubmitStable;
  if ((params.features & kNeeded) != kNeeded) return ENOSYS;

  size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(Cqe);
  ring_bytes_ = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
  void* ring = MapRing(fd_, ring_bytes_, kOffSqRing);
  if (ring == MAP_FAILED) return errno;
  ring_ = static_cast<uint8_t*>(ring);
  sqes_bytes_ = params.sq_entries * sizeof(Sqe);
  void* sqes = MapRing(fd_, sqes_bytes_, kOffSqes);
  if (sqes == MAP_FAILED) {
    int error = errno;
    munmap(ring_, ring_bytes_);
    ring_ = nullptr;
    return error;
  }
  sqes_ = static_cast<Sqe*>(sqes);
  // A child process must not inherit the rings: its writes into them would be ours.
  madvise(ring_, ring_bytes_, MADV_DONTFORK);
  madvise(sqes_, sqes_bytes_, MADV_DONTFORK);

  auto at = [this](uint32_t offset) { return reinterpret_cast<uint32_t*>(ring_ + offset); };
  sq_head_ = at(params.sq_off.head);
  sq_tail_ = at(params.sq_off.tail);
  sq_flags_ = at(params.sq_off.flags);
  sq_mask_ = *at(params.sq_off.ring_mask);
  sq_entries_ = params.sq_entries;
  cq_head_ = at(params.cq_off.head);
  cq_tail_ = at(params.cq_off.tail);
  cq_mask_ = *at(params.cq_off.ring_mask);
  cqes_ = reinterpret_cast<Cqe*>(ring_ + params.cq_off.cqes);
  // Entries are used in ring order, so the indirection array is the identity for ever.
  uint32_t* array = at(params.sq_off.array);
  for (uint32_t i = 0; i < sq_entries_; i++) array[i] = i;
  return 0;
}

int Uring::CheckOperations() {
  Probe probe;
  memset(&probe, 0, sizeof probe);
  if (syscall(kSysRegister, fd_, kRegisterProbe, &probe, 64) < 0) return errno;
  for (uint8_t op : {kOpNop, kOpReadv, kOpWritev, kOpFsync, kOpRead, kOpWrite}) {
    if (op > probe.last_op || !(probe.ops[op].flags & kProbeSupported)) return ENOSYS;
  }
  return 0;
}

int Uring::CheckWithNop() {
  Sqe* sqe = &sqes_[*sq_tail_ & sq_mask_];
  memset(sqe, 0, sizeof *sqe);
  sqe->opcode = kOpNop;
  sqe->user_data = kNopTag;
  StoreRelease(sq_tail_, *sq_tail_ + 1);
  int error = Enter(1, kEnterGetevents);
  if (error != 0) return error;
  uint32_t head = *cq_head_;
  if (head == LoadAcquire(cq_tail_)) return EIO;
  int result = cqes_[head & cq_mask_].res;
  StoreRelease(cq_head_, head + 1);
  sent_ = 0;
  return result < 0 ? -result : 0;
}

Uring::~Uring() {
  if (sqes_) munmap(sqes_, sqes_bytes_);
  if (ring_) munmap(ring_, ring_bytes_);
  if (fd_ >= 0) close(fd_);
}

// Entries in the ring that the kernel has not taken yet.
uint32_t Uring::Unsent() const { return *sq_tail_ - LoadAcquire(sq_head_); }

// Writes the entry of a slot into the ring; false when the ring is full.
bool Uring::Prepare(Slot* slot) {
  if (Unsent() == sq_entries_) return false;
  Sqe* sqe = &sqes_[*sq_tail_ & sq_mask_];
  memset(sqe, 0, sizeof *sqe);
  sqe->fd = slot->fd;
  sqe->user_data = static_cast<uint64_t>(slot - slots_);
  if (slot->op == Op::kFdatasync) {
    sqe->opcode = kOpFsync;
    sqe->op_flags = kFsyncDatasync;
  } else {
    bool write = slot->op == Op::kWrite;
    sqe->off = slot->offset;
    if (write && (slot->flags & kFlagDsync)) sqe->op_flags = kRwfDsync;
    if (slot->vector_count == 1) {
      // A single range needs no iovec import in the kernel. Its length fits: JavaScript never asks
      // for more than 0x7ffff000.
      sqe->opcode = write ? kOpWrite : kOpRead;
      if (slot->buffer >= 0) {
        sqe->opcode = write ? kOpWriteFixed : kOpReadFixed;
        sqe->buf_index = static_cast<uint16_t>(slot->buffer);
      }
      sqe->addr = reinterpret_cast<uint64_t>(slot->vectors[0].iov_base);
      sqe->len = static_cast<uint32_t>(slot->vectors[0].iov_len);
    } else {
      sqe->opcode = write ? kOpWritev : kOpReadv;
      sqe->addr = reinterpret_cast<uint64_t>(slot->vectors);
      sqe->len = slot->vector_count;
    }
  }
  StoreRelease(sq_tail_, *sq_tail_ + 1);
  return true;
}

void Uring::Queue(Slot* slot) {
  // Order is kept: once one waits, all later ones wait behind it.
  if (!waiting_first_ && Prepare(slot)) return;
  slot->next = nullptr;
  if (waiting_last_) {
    waiting_last_->next = slot;
  } else {
    waiting_first_ = slot;
  }
  waiting_last_ = slot;
}

// How many of the entries in the ring go with the next call.
uint32_t Uring::NextCall() const {
  uint32_t unsent = Unsent();
  uint32_t count = kSubmitAtOnce;
  while (count < unsent && GoesOn(UnsentSlot(count - 1), UnsentSlot(count))) count++;
  return count < unsent ? count : unsent;
}

const Slot& Uring::UnsentSlot(uint32_t index) const {
  return slots_[sqes_[(*sq_tail_ - Unsent() + index) & sq_mask_].user_data];
}

// Enters the kernel with the next entries in the ring; counts what it took. Returns an errno, 0 for
// success.
int Uring::Enter(uint32_t min_complete, uint32_t flags) {
  for (;;) {
    long taken = syscall(kSysEnter, fd_, NextCall(), min_complete, flags, nullptr, 0);
    if (taken >= 0) {
      sent_ += static_cast<uint32_t>(taken);
      return 0;
    }
    if (errno != EINTR) return errno;
  }
}

void Uring::Submit(CompletionSink* sink) {
  for (;;) {
    while (waiting_first_ && Prepare(waiting_first_)) {
      waiting_first_ = waiting_first_->next;
      if (!waiting_first_) waiting_last_ = nullptr;
    }
    uint32_t unsent = Unsent();
    if (unsent == 0) return;
    int error = Enter(0, 0);
    if (error == 0) {
      if (Unsent() < unsent) continue;  // progress: whatever is left, or waited for room, goes next
      error = EAGAIN;                   // the kernel took nothing and said nothing
    }
    // EAGAIN: no memory for a request. EBUSY: completions must be reaped first. Both pass with the
    // next completion, if there is one to come.
    if ((error == EAGAIN || error == EBUSY || error == ENOMEM) && sent_ > 0) return;
    RefuseAll(sink, error == EBUSY ? EAGAIN : error);
    return;
  }
}

// Takes back everything that the kernel has not seen and reports it as refused.
void Uring::RefuseAll(CompletionSink* sink, int error) {
  uint32_t head = LoadAcquire(sq_head_);
  uint32_t tail = *sq_tail_;
  StoreRelease(sq_tail_, head);
  for (uint32_t i = head; i != tail; i++) {
    sink->Complete(&slots_[sqes_[i & sq_mask_].user_data], -error);
  }
  for (Slot* slot = waiting_first_; slot;) {
    Slot* next = slot->next;
    sink->Complete(slot, -error);
    slot = next;
  }
  waiting_first_ = waiting_last_ = nullptr;
}

uint32_t Uring::ReapAvailable(CompletionSink* sink) {
  uint32_t head = *cq_head_;
  uint32_t tail = LoadAcquire(cq_tail_);
  uint32_t count = tail - head;
  for (; head != tail; head++) {
    const Cqe& cqe = cqes_[head & cq_mask_];
    sent_--;
    sink->Complete(&slots_[cqe.user_data], cqe.res);
  }
  StoreRelease(cq_head_, head);
  return count;
}

void Uring::Reap(CompletionSink* sink) {
  for (;;) {
    ReapAvailable(sink);
    // Overflow: completions lie in the kernel for want of room. Task run: they wait for a thread to
    // enter and collect them.
    if (!(__atomic_load_n(sq_flags_, __ATOMIC_RELAXED) & (kSqCqOverflow | kSqTaskrun))) break;
    if (Enter(0, kEnterGetevents) != 0) break;
    if (LoadAcquire(cq_tail_) == *cq_head_) break;
  }
  if (waiting_first_ || Unsent() > 0) Submit(sink);
}

int32_t Uring::FixBuffer(uint8_t* base, size_t length) { return buffers_.Fix(fd_, base, length); }

void Uring::ReleaseBuffer(int32_t buffer) { buffers_.Release(fd_, buffer); }

bool Uring::Ready() const {
  // With the task-run flag up, completions wait for this thread to enter the kernel.
  return LoadAcquire(cq_tail_) != *cq_head_ ||
         (__atomic_load_n(sq_flags_, __ATOMIC_RELAXED) & (kSqCqOverflow | kSqTaskrun)) != 0;
}

void Uring::Drain(CompletionSink* sink) {
  StoreRelease(sq_tail_, LoadAcquire(sq_head_));
  waiting_first_ = waiting_last_ = nullptr;
  ReapAvailable(sink);
  while (sent_ > 0) {
    int error = Enter(1, kEnterGetevents);
    // EBUSY and EAGAIN pass once completions are taken out; give the kernel the processor in
    // between.
    if (error != 0 && error != EBUSY && error != EAGAIN) break;
    if (ReapAvailable(sink) == 0) sched_yield();
  }
}

}  // namespace multiwrite
