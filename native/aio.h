// Linux AIO behind the engine interface, for direct I/O where io_uring is not to be had.
#pragma once

#include <memory>

#include "engine.h"

namespace multiwrite {

// struct iocb and struct io_event of the kernel's user-space interface
// (include/uapi/linux/aio_abi.h).
struct AioControl {
  uint64_t data;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  uint32_t key;
  uint32_t rw_flags;
#else
  uint32_t rw_flags;
  uint32_t key;
#endif
  uint16_t opcode;
  int16_t priority;
  uint32_t fd;
  uint64_t buffer;
  uint64_t bytes;
  int64_t offset;
  uint64_t reserved;
  uint32_t flags;
  uint32_t event_fd;
};
static_assert(sizeof(AioControl) == 64);
static_assert(offsetof(AioControl, opcode) == 16);
static_assert(offsetof(AioControl, buffer) == 24);
static_assert(offsetof(AioControl, flags) == 56);

struct AioEvent {
  uint64_t data;
  uint64_t object;
  int64_t result;
  int64_t result2;
};
static_assert(sizeof(AioEvent) == 32);

class Aio final : public Engine {
 public:
  // Makes a context and does one real operation on it. On failure returns null and sets `error`
  // (errno) and `syscall`.
  static std::unique_ptr<Aio> Create(Slot* slots, uint32_t slot_count, int* error,
                                     const char** syscall);
  ~Aio() override;

  Aio(const Aio&) = delete;
  Aio& operator=(const Aio&) = delete;

  void Queue(Slot* slot) override;
  void Submit(CompletionSink* sink) override;
  void Reap(CompletionSink* sink) override;
  bool Ready() const override;
  void Drain(CompletionSink* sink) override;
  int32_t FixBuffer(uint8_t*, size_t) override { return -1; }
  void ReleaseBuffer(int32_t) override {}
  int PollFd() const override { return event_fd_; }

 private:
  Aio() = default;

  int Setup(uint32_t slot_count, const char** name);
  int CheckWithSync(const char** syscall);
  void Prepare(Slot* slot);
  uint32_t ReapAvailable(CompletionSink* sink, uint32_t wait_for);

  unsigned long context_ = 0;
  int event_fd_ = -1;
  Slot* slots_ = nullptr;
  std::unique_ptr<AioControl[]>
      controls_;           // one per slot; the kernel reads it during io_submit only
  uint32_t capacity_ = 0;  // operations that the context takes
  uint32_t sent_ = 0;
  Slot* waiting_first_ = nullptr;
  Slot* waiting_last_ = nullptr;
};

}  // namespace multiwrite
