// io_uring behind the engine interface: one ring, polled through its own descriptor.
#pragma once

#include <memory>

#include "engine.h"
#include "uring_abi.h"
#include "uring_buffers.h"

namespace multiwrite {

class Uring final : public Engine {
 public:
  // Makes a ring and does one real operation on it. On failure returns null and sets `error`
  // (errno) and `syscall`. `slots` is the array that completions are looked up in; at most
  // `slot_count` operations are ever in flight.
  static std::unique_ptr<Uring> Create(Slot* slots, uint32_t slot_count, int* error,
                                       const char** syscall);
  ~Uring() override;

  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  void Queue(Slot* slot) override;
  void Submit(CompletionSink* sink) override;
  void Reap(CompletionSink* sink) override;
  bool Ready() const override;
  void Drain(CompletionSink* sink) override;
  int32_t FixBuffer(uint8_t* base, size_t length) override;
  void ReleaseBuffer(int32_t buffer) override;
  int PollFd() const override { return fd_; }

 private:
  Uring() = default;

  int Setup(uint32_t entries, uint32_t cq_entries);
  int Map(const uring_abi::Params& params);
  int CheckOperations();
  int CheckWithNop();
  bool Prepare(Slot* slot);
  uint32_t Unsent() const;
  const Slot& UnsentSlot(uint32_t index) const;
  uint32_t NextCall() const;
  int Enter(uint32_t min_complete, uint32_t flags);
  uint32_t ReapAvailable(CompletionSink* sink);
  void RefuseAll(CompletionSink* sink, int error);

  int fd_ = -1;
  uint8_t* ring_ = nullptr;
  size_t ring_bytes_ = 0;
  uring_abi::Sqe* sqes_ = nullptr;
  size_t sqes_bytes_ = 0;

  uint32_t* sq_head_ = nullptr;
  uint32_t* sq_tail_ = nullptr;
  uint32_t* sq_flags_ = nullptr;
  uint32_t sq_mask_ = 0;
  uint32_t sq_entries_ = 0;
  uint32_t* cq_head_ = nullptr;
  uint32_t* cq_tail_ = nullptr;
  uint32_t cq_mask_ = 0;
  uring_abi::Cqe* cqes_ = nullptr;

  UringBuffers buffers_;
  Slot* slots_ = nullptr;
  uint32_t slot_count_ = 0;
  uint32_t sent_ = 0;  // operations that the kernel has taken and not ended
  Slot* waiting_first_ = nullptr;
  Slot* waiting_last_ = nullptr;
};

}  // namespace multiwrite
