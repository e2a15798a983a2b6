// Linux AIO behind the engine interface.
//
// io_submit copies control blocks and vectors, so neither must outlive it. Its errors concern the
// first operation only: that one is reported, the rest goes on. Completions raise an eventfd, the
// only thing of AIO that a loop can watch; it is a hint, so each wake-up reads all events there
// are. Contexts belong to the process, not to the thread, and are asynchronous only for direct I/O:
// the library does not offer this engine for anything else.
#include "aio.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <new>

#include "allocation.h"

namespace multiwrite {
namespace {

constexpr uint16_t kOpPread = 0;
constexpr uint16_t kOpPwrite = 1;
constexpr uint16_t kOpFdsync = 3;  // 4.18
constexpr uint16_t kOpPreadv = 7;
constexpr uint16_t kOpPwritev = 8;
constexpr uint32_t kControlEventFd = 1;
constexpr uint32_t kRwfDsync = 2;

// Events of all contexts of the system count against fs.aio-max-nr, 65536 by default: a few hundred
// is a fair share.
constexpr uint32_t kCapacity = 512;
constexpr uint32_t kCapacityMin = 32;
// Operations of one io_submit: the kernel plugs the queue for the length of one call, and a longer
// one delays its first.
constexpr uint32_t kSubmitMax = 64;
constexpr uint32_t kReapMax = 128;

}  // namespace

std::unique_ptr<Aio> Aio::Create(Slot* slots, uint32_t slot_count, int* error,
                                 const char** syscall) {
  std::unique_ptr<Aio> aio(new (std::nothrow) Aio());
  *error = ENOMEM;
  *syscall = "io_setup";
  if (!aio) return nullptr;
  aio->slots_ = slots;
  *error = aio->Setup(slot_count, syscall);
  if (*error != 0) return nullptr;
  *error = aio->CheckWithSync(syscall);
  if (*error != 0) return nullptr;
  return aio;
}

int Aio::Setup(uint32_t slot_count, const char** name) {
  controls_.reset(new (std::nothrow) AioControl[slot_count]);
  if (!controls_) return ENOMEM;
  *name = "eventfd2";
  event_fd_ = Refused(Resource::kDescriptor) ? -1 : eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (event_fd_ < 0) return errno;
  *name = "io_setup";
  // EAGAIN: fs.aio-max-nr is used up; a smaller share may still be left.
  for (capacity_ = kCapacity;; capacity_ /= 2) {
    if (!Refused(Resource::kContext) && syscall(SYS_io_setup, capacity_, &context_) == 0) return 0;
    if ((errno != EAGAIN && errno != ENOMEM) || capacity_ / 2 < kCapacityMin) return errno;
  }
}

// A context may be granted and its use forbidden, or the kernel may lack fdatasync: one on a file
// in memory tells.
int Aio::CheckWithSync(const char** name) {
  *name = "memfd_create";
  if (Refused(Resource::kDescriptor)) return errno;
  int fd = static_cast<int>(syscall(SYS_memfd_create, "multiwrite", 1u));
  if (fd < 0) return errno;
  *name = "io_submit";
  AioControl control;
  memset(&control, 0, sizeof control);
  control.opcode = kOpFdsync;
  control.fd = static_cast<uint32_t>(fd);
  control.flags = kControlEventFd;
  control.event_fd = static_cast<uint32_t>(event_fd_);
  AioControl* list = &control;
  int error = 0;
  long submitted;
  do {
    submitted = syscall(SYS_io_submit, context_, 1L, &list);
  } while (submitted < 0 && errno == EINTR);
  if (submitted != 1) {
    error = submitted < 0 ? errno : EAGAIN;
  } else {
    AioEvent event;
    long reaped;
    do {
      reaped = syscall(SYS_io_getevents, context_, 1L, 1L, &event, nullptr);
    } while (reaped < 0 && errno == EINTR);
    if (reaped != 1) {
      error = errno;
    } else if (event.result < 0) {
      error = static_cast<int>(-event.result);
    }
    uint64_t count;
    if (read(event_fd_, &count, sizeof count) < 0 && error == 0 && errno != EAGAIN) error = errno;
  }
  close(fd);
  return error;
}

Aio::~Aio() {
  if (context_) syscall(SYS_io_destroy, context_);
  if (event_fd_ >= 0) close(event_fd_);
}

void Aio::Prepare(Slot* slot) {
  AioControl* control = &controls_[slot - slots_];
  memset(control, 0, sizeof *control);
  control->data = static_cast<uint64_t>(slot - slots_);
  control->fd = static_cast<uint32_t>(slot->fd);
  control->flags = kControlEventFd;
  control->event_fd = static_cast<uint32_t>(event_fd_);
  if (slot->op == Op::kFdatasync) {
    control->opcode = kOpFdsync;
    return;
  }
  bool write = slot->op == Op::kWrite;
  control->offset = static_cast<int64_t>(slot->offset);
  if (write && (slot->flags & kFlagDsync)) control->rw_flags = kRwfDsync;
  if (slot->vector_count == 1) {
    control->opcode = write ? kOpPwrite : kOpPread;
    control->buffer = reinterpret_cast<uint64_t>(slot->vectors[0].iov_base);
    control->bytes = slot->vectors[0].iov_len;
  } else {
    control->opcode = write ? kOpPwritev : kOpPreadv;
    control->buffer = reinterpret_cast<uint64_t>(slot->vectors);
    control->bytes = slot->vector_count;
  }
}

void Aio::Queue(Slot* slot) {
  Prepare(slot);
  slot->next = nullptr;
  if (waiting_last_) {
    waiting_last_->next = slot;
  } else {
    waiting_first_ = slot;
  }
  waiting_last_ = slot;
}

void Aio::Submit(CompletionSink* sink) {
  while (waiting_first_ && sent_ < capacity_) {
    AioControl* list[kSubmitMax];
    uint32_t count = 0;
    const Slot* before = nullptr;
    for (Slot* slot = waiting_first_; slot && count < kSubmitMax && sent_ + count < capacity_;
         slot = slot->next) {
      if (count >= kSubmitAtOnce && !GoesOn(*before, *slot)) break;
      list[count++] = &controls_[slot - slots_];
      before = slot;
    }
    long taken = syscall(SYS_io_submit, context_, static_cast<long>(count), list);
    int error = taken > 0 ? 0 : taken == 0 ? EAGAIN : errno;
    if (error == EINTR) continue;
    // No room now. A completion makes some and sends the rest; without one to come the owner must
    // hear of it.
    if (error == EAGAIN && sent_ > 0) return;
    uint32_t gone = error == 0 ? static_cast<uint32_t>(taken) : 1;
    for (uint32_t i = 0; i < gone; i++) {
      Slot* slot = waiting_first_;
      waiting_first_ = slot->next;
      if (!waiting_first_) waiting_last_ = nullptr;
      if (error == 0) {
        sent_++;
      } else {
        sink->Complete(slot, -error);
      }
    }
  }
}

uint32_t Aio::ReapAvailable(CompletionSink* sink, uint32_t wait_for) {
  uint32_t total = 0;
  for (;;) {
    AioEvent events[kReapMax];
    timespec now = {0, 0};
    long count = syscall(SYS_io_getevents, context_, static_cast<long>(wait_for),
                         static_cast<long>(kReapMax), events, wait_for > 0 ? nullptr : &now);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return total;
    for (long i = 0; i < count; i++) {
      sent_--;
      sink->Complete(&slots_[events[i].data], events[i].result);
    }
    total += static_cast<uint32_t>(count);
    if (count < static_cast<long>(kReapMax)) return total;
    wait_for = 0;
  }
}

void Aio::Reap(CompletionSink* sink) {
  // Emptied first: an event that comes after the read below raises it again.
  uint64_t count;
  while (read(event_fd_, &count, sizeof count) < 0 && errno == EINTR) {
  }
  ReapAvailable(sink, 0);
  if (waiting_first_) Submit(sink);
}

bool Aio::Ready() const {
  pollfd event = {event_fd_, POLLIN, 0};
  return poll(&event, 1, 0) > 0;
}

void Aio::Drain(CompletionSink* sink) {
  waiting_first_ = waiting_last_ = nullptr;
  while (sent_ > 0 && ReapAvailable(sink, 1) > 0) {
  }
}

}  // namespace multiwrite
