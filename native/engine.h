// The interface behind which the kernel's three ways of asynchronous I/O sit, and the slot that one
// operation lives in.
//
// An engine takes slots, hands them to the kernel and reports each exactly once. It knows neither
// merging nor JavaScript: no retries, no callbacks, no allocation after its creation. It belongs to
// one environment and is used on that environment's thread only. Whoever owns it must drain it
// before freeing what its slots point at: closing a ring does not wait for its I/O.
#pragma once

#include <sys/uio.h>

#include <cstdint>

#include "layout.h"

namespace multiwrite {

struct EnginePort;

// One operation on its way. The vector array must stay in place until the result is reported: an
// engine may read it late.
struct Slot {
  bool in_flight = false;
  Op op = Op::kRead;
  uint32_t flags = 0;
  int fd = -1;
  uint64_t offset = 0;
  uint32_t vector_count = 0;
  uint32_t vector_capacity = 0;
  iovec* vectors = nullptr;  // `single`, or an array of `vector_capacity` that the environment owns
  iovec single{};
  int32_t buffer = -1;         // what `FixBuffer` said of the only vector's memory
  int64_t result = 0;          // for engines that report later than they learn
  EnginePort* port = nullptr;  // where it was sent; the environment's business
  Slot* next = nullptr;        // intrusive list: waiting for room in the kernel's queue
};

// So many operations are handed to the kernel by one system call. It holds back what a call submits
// until the call ends, so a device that runs dry meanwhile stands idle: with some dozens of random
// writes in flight that cost a fifth of them. Neighbours stay together, since the kernel may merge
// them.
constexpr uint32_t kSubmitAtOnce = 8;

// Whether `next` goes on where `before` ends: the kernel may make one request of both. Vectors of
// several pieces are merged already.
inline bool GoesOn(const Slot& before, const Slot& next) {
  return before.vector_count == 1 && next.vector_count == 1 && before.fd == next.fd &&
         before.op == next.op && before.offset + before.vectors[0].iov_len == next.offset;
}

// Where an engine writes what it reaped.
class CompletionSink {
 public:
  virtual void Complete(Slot* slot, int64_t result) = 0;

 protected:
  ~CompletionSink() = default;
};

class Engine {
 public:
  virtual ~Engine() = default;

  // Takes a slot. It is sent with the next Submit at the latest.
  virtual void Queue(Slot* slot) = 0;

  // Hands what was queued to the kernel. What the kernel has no room for stays queued and is sent
  // after a completion; what it refuses for good, or refuses with nothing in flight that could make
  // room, is reported to `sink` with the kernel's errno.
  virtual void Submit(CompletionSink* sink) = 0;

  // Reports what has ended, without waiting, and sends what was waiting for room.
  virtual void Reap(CompletionSink* sink) = 0;

  // Whether Reap would report something now. Cheap enough to be asked again and again.
  virtual bool Ready() const = 0;

  // Waits until nothing is in flight and reports it all. Operations that the kernel has not seen
  // are dropped unreported.
  virtual void Drain(CompletionSink* sink) = 0;

  // Makes memory that is used again and again known to the kernel. Returns its number for
  // Slot::buffer; -1: it goes as it is.
  virtual int32_t FixBuffer(uint8_t* base, size_t length) = 0;
  virtual void ReleaseBuffer(int32_t buffer) = 0;

  // Readable whenever Reap has something to report.
  virtual int PollFd() const = 0;
};

}  // namespace multiwrite
