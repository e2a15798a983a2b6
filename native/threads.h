// A pool of threads with pread, pwrite and their vector forms behind the engine interface: what
// works everywhere.
#pragma once

#include <limits.h>
#include <pthread.h>

#include <memory>

#include "engine.h"

namespace multiwrite {

// What pthread_cond_t does, by futex: on x86-64 glibc keeps two of those under one name, and a
// binary without symbol versions, as the prebuilt one is, gets the one of 2002, which allocates.
// Everything but Wait's sleep happens under the caller's lock.
class Condition {
 public:
  // Gives `lock` up while it sleeps. May return for no reason, as any such wait.
  void Wait(pthread_mutex_t* lock);
  void Signal() { Wake(1); }
  void Broadcast() { Wake(INT_MAX); }

 private:
  void Wake(int count);

  uint32_t sequence_ = 0;  // changes with each wake-up, so that none is missed on the way to sleep
  uint32_t waiting_ = 0;
};

class Threads final : public Engine {
 public:
  // Starts one thread; more follow as work comes in. On failure returns null and sets `error`
  // (errno) and `syscall`.
  static std::unique_ptr<Threads> Create(Slot* slots, uint32_t slot_count, int* error,
                                         const char** syscall);
  ~Threads() override;

  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  void Queue(Slot* slot) override;
  void Submit(CompletionSink* sink) override;
  void Reap(CompletionSink* sink) override;
  bool Ready() const override;
  void Drain(CompletionSink* sink) override;
  int32_t FixBuffer(uint8_t*, size_t) override { return -1; }
  void ReleaseBuffer(int32_t) override {}
  int PollFd() const override { return event_fd_; }

 private:
  // Enough to keep a device's queue filled; more threads mostly wait for each other in the kernel.
  static constexpr uint32_t kThreadsMax = 8;

  Threads() = default;

  static void* Run(void* self);
  void Work();
  int StartThread();
  void Stop();

  int event_fd_ = -1;
  pthread_mutex_t lock_ = PTHREAD_MUTEX_INITIALIZER;
  Condition work_;  // there is work, or the pool is stopping
  Condition done_;  // an operation has ended; only Drain waits
  pthread_t threads_[kThreadsMax];
  uint32_t thread_count_ = 0;  // the environment's thread only

  // Under the lock.
  Slot* todo_first_ = nullptr;
  Slot* todo_last_ = nullptr;
  uint32_t todo_count_ = 0;
  Slot* ended_ = nullptr;  // last in, first out; Reap turns it round
  uint32_t running_ = 0;
  uint32_t idle_ = 0;
  bool stopping_ = false;

  // The environment's thread only: queued since the last Submit.
  Slot* fresh_first_ = nullptr;
  Slot* fresh_last_ = nullptr;
  uint32_t fresh_count_ = 0;
};

}  // namespace multiwrite
