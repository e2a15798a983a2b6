// The thread pool. One list of work, one of what has ended, one lock; the event loop is woken by an
// eventfd when the list of what has ended stops being empty. The pool is our own: Node's is shared
// with DNS and crypto, and has four threads for all.
//
// A slot belongs to the pool from Submit until Reap has reported it; nobody else touches it
// meanwhile.
#include "threads.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <new>

#include "allocation.h"

namespace multiwrite {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kRwfDsync = 2;

int64_t Execute(const Slot& slot) {
  ssize_t result = -1;
  off_t offset = static_cast<off_t>(slot.offset);
  int vectors = static_cast<int>(slot.vector_count);
  switch (slot.op) {
    case Op::kRead:
      result = vectors == 1
                   ? pread(slot.fd, slot.vectors[0].iov_base, slot.vectors[0].iov_len, offset)
                   : preadv(slot.fd, slot.vectors, vectors, offset);
      break;
    case Op::kWrite:
      if (slot.flags & kFlagDsync) {
        result =
            syscall(SYS_pwritev2, slot.fd, slot.vectors, slot.vector_count, offset, 0L, kRwfDsync);
      } else {
        result = vectors == 1
                     ? pwrite(slot.fd, slot.vectors[0].iov_base, slot.vectors[0].iov_len, offset)
                     : pwritev(slot.fd, slot.vectors, vectors, offset);
      }
      break;
    case Op::kFdatasync:
      result = fdatasync(slot.fd);
      break;
  }
  return result < 0 ? -errno : result;
}

}  // namespace

void Condition::Wait(pthread_mutex_t* lock) {
  uint32_t seen = __atomic_load_n(&sequence_, __ATOMIC_RELAXED);
  waiting_++;
  pthread_mutex_unlock(lock);
  // Returns at once if there was a wake-up since the lock was given up.
  syscall(SYS_futex, &sequence_, FUTEX_WAIT_PRIVATE, seen, nullptr);
  pthread_mutex_lock(lock);
  waiting_--;
}

void Condition::Wake(int count) {
  if (waiting_ == 0) return;
  __atomic_fetch_add(&sequence_, 1, __ATOMIC_RELAXED);
  syscall(SYS_futex, &sequence_, FUTEX_WAKE_PRIVATE, count);
}

std::unique_ptr<Threads> Threads::Create(Slot*, uint32_t, int* error, const char** syscall) {
  std::unique_ptr<Threads> pool(new (std::nothrow) Threads());
  *error = ENOMEM;
  *syscall = "pthread_create";
  if (!pool) return nullptr;
  pool->event_fd_ = Refused(Resource::kDescriptor) ? -1 : eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (pool->event_fd_ < 0) {
    *error = errno;
    *syscall = "eventfd2";
    return nullptr;
  }
  *error = pool->StartThread();
  if (*error != 0) return nullptr;
  return pool;
}

Threads::~Threads() {
  Stop();
  if (event_fd_ >= 0) close(event_fd_);
}

int Threads::StartThread() {
  if (Refused(Resource::kThread)) return errno;
  // Signals are the main thread's: a handler must not run on ours.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  int error = pthread_create(&threads_[thread_count_], &attributes, Run, this);
  if (error == 0) thread_count_++;
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return error;
}

void* Threads::Run(void* self) {
  static_cast<Threads*>(self)->Work();
  return nullptr;
}

void Threads::Work() {
  pthread_mutex_lock(&lock_);
  for (;;) {
    while (!todo_first_ && !stopping_) {
      idle_++;
      work_.Wait(&lock_);
      idle_--;
    }
    if (!todo_first_) break;
    Slot* slot = todo_first_;
    todo_first_ = slot->next;
    if (!todo_first_) todo_last_ = nullptr;
    todo_count_--;
    running_++;
    pthread_mutex_unlock(&lock_);

    int64_t result = Execute(*slot);

    pthread_mutex_lock(&lock_);
    running_--;
    slot->result = result;
    slot->next = ended_;
    bool first = ended_ == nullptr;
    ended_ = slot;
    done_.Signal();
    if (first) {
      uint64_t one = 1;
      // Can fail only when the counter is full, and then it is readable anyway.
      ssize_t ignored = write(event_fd_, &one, sizeof one);
      static_cast<void>(ignored);
    }
  }
  pthread_mutex_unlock(&lock_);
}

void Threads::Queue(Slot* slot) {
  slot->next = nullptr;
  if (fresh_last_) {
    fresh_last_->next = slot;
  } else {
    fresh_first_ = slot;
  }
  fresh_last_ = slot;
  fresh_count_++;
}

void Threads::Submit(CompletionSink*) {
  if (!fresh_first_) return;
  pthread_mutex_lock(&lock_);
  if (todo_last_) {
    todo_last_->next = fresh_first_;
  } else {
    todo_first_ = fresh_first_;
  }
  todo_last_ = fresh_last_;
  todo_count_ += fresh_count_;
  uint32_t todo = todo_count_;
  uint32_t idle = idle_;
  for (uint32_t i = 0; i < fresh_count_ && i < idle; i++) work_.Signal();
  pthread_mutex_unlock(&lock_);
  fresh_first_ = fresh_last_ = nullptr;
  fresh_count_ = 0;
  // A thread that can't be started now is no failure: those that run take the work.
  for (; todo > idle && thread_count_ < kThreadsMax; todo--) {
    if (StartThread() != 0) break;
  }
}

void Threads::Reap(CompletionSink* sink) {
  uint64_t count;
  while (read(event_fd_, &count, sizeof count) < 0 && errno == EINTR) {
  }
  pthread_mutex_lock(&lock_);
  Slot* ended = ended_;
  ended_ = nullptr;
  pthread_mutex_unlock(&lock_);
  // Reported in the order in which they ended.
  Slot* ordered = nullptr;
  while (ended) {
    Slot* next = ended->next;
    ended->next = ordered;
    ordered = ended;
    ended = next;
  }
  while (ordered) {
    Slot* next = ordered->next;
    sink->Complete(ordered, ordered->result);
    ordered = next;
  }
}

bool Threads::Ready() const {
  pollfd event = {event_fd_, POLLIN, 0};
  return poll(&event, 1, 0) > 0;
}

void Threads::Drain(CompletionSink* sink) {
  pthread_mutex_lock(&lock_);
  todo_first_ = todo_last_ = nullptr;
  todo_count_ = 0;
  while (running_ > 0) done_.Wait(&lock_);
  pthread_mutex_unlock(&lock_);
  Reap(sink);
}

void Threads::Stop() {
  pthread_mutex_lock(&lock_);
  stopping_ = true;
  work_.Broadcast();
  pthread_mutex_unlock(&lock_);
  for (uint32_t i = 0; i < thread_count_; i++) pthread_join(threads_[i], nullptr);
  thread_count_ = 0;
}

}  // namespace multiwrite
