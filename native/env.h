// What the addon keeps for one environment (the main thread, or one worker): the shared tables, the
// in-flight slots, the open files, the engines and their poll handles in the event loop. Nothing is
// static, so any number of environments can live beside each other, and the addon can be loaded
// twice.
//
// Everything here runs on the environment's own thread. At the end of the environment a cleanup
// hook first waits until the kernel has let go of all memory, then closes files and engines; only
// then may JavaScript's buffers go.
#pragma once

#include <memory>

#include "engine.h"
#include "faults.h"
#include "file.h"
#include "napi_support.h"
#include "uv_abi.h"

namespace multiwrite {

enum class EngineKind : uint32_t { kUring = 0, kAio = 1, kThreads = 2 };
constexpr uint32_t kEngineKinds = 3;

class Env;

// An engine and the handle by which the event loop watches it.
struct EnginePort {
  Env* env = nullptr;
  std::unique_ptr<Engine> engine;
  uv_poll_t* poll = nullptr;  // opaque; allocated with the size that libuv states
  uint32_t in_flight = 0;
};

class Env final : private CompletionSink {
 public:
  explicit Env(napi_env env);
  ~Env();
  Env(const Env&) = delete;
  Env& operator=(const Env&) = delete;

  // Takes over the shared tables and the function to call after each drain. Returns 0, or ENOMEM
  // with nothing taken; `problem` is set where the arguments make no sense.
  int Attach(napi_value requests, napi_value vectors, napi_value results, napi_value drained,
             uint32_t version, const char** problem);

  // Makes the engine if it is not there. Returns 0, or the errno of `syscall`.
  int StartEngine(EngineKind kind, const char** syscall);

  int32_t AddFile(int fd, EngineKind engine);
  // Forgets a file and returns its descriptor, which the caller closes.
  int TakeFile(int32_t id);
  int Descriptor(int32_t id) const;

  int32_t AddRegion(uint8_t* base, size_t length);
  void RemoveRegion(int32_t id);

  // For so long the loop looks for completions before it sleeps, while something is in flight. 0:
  // not at all.
  void SetBusyPoll(uint32_t microseconds);

  // Submits the first `count` requests of the table; vectors with negative regions refer to
  // `views`. Results that are there at once (refusals) are in the result table; their number is
  // returned. -1: an entry made no sense; `problem` says which.
  int32_t Submit(uint32_t count, napi_value views, const char** problem);

#ifdef MULTIWRITE_FAULTS
  // Replaces the rules of the fault shim.
  void SetFaults(const double* rules, size_t count);
  uint32_t SlotsInFlight() const;
  uint32_t OpenFiles() const;
#endif

 private:
  struct File {
    int fd = -1;
    EngineKind engine = EngineKind::kUring;
  };
  struct Region {
    uint8_t* base = nullptr;
    size_t length = 0;
    size_t used = 0;  // bytes, by operations of one vector
    bool fixing_tried = false;
    int32_t buffer = -1;  // what the ring calls it, once it does
  };

  static void OnReadable(uv_poll_t* poll, int status, int events);
  static void OnPrepare(uv_prepare_t* prepare);
  static void OnIdle(uv_idle_t* idle);
  static void OnPollerClosed(uv_handle_t* handle);
  static void OnTeardown(napi_async_cleanup_hook_handle handle, void* data);
  static void OnPollClosed(uv_handle_t* handle);

  void Complete(Slot* slot, int64_t result) override;
  void Report(Slot* slot, int64_t result);
  void Deliver(EnginePort* port);
  void CallDrained();
  bool LengthenVectors(Slot* slot);
  int32_t BufferOf(Region* region, size_t length, EnginePort* port);
  bool FillVectors(Slot* slot, uint32_t first, uint32_t count, napi_value views, int* error);
  void UpdateKeepAlive(EnginePort* port);
  void BusyPoll();
  bool PollOnce();
  void Teardown();
  bool TakeReferences(const napi_value (&tables)[3], napi_value drained);
  void ReleaseReferences();

  napi_env env_;
  napi_async_cleanup_hook_handle cleanup_ = nullptr;
  napi_async_context context_ = nullptr;
  napi_ref tables_[3] = {};
  napi_ref drained_ = nullptr;
  napi_ref receiver_ = nullptr;
  bool closing_ = false;
  uint32_t polls_closing_ = 0;

  double* requests_ = nullptr;
  double* vectors_ = nullptr;
  double* results_ = nullptr;
  uint32_t request_capacity_ = 0;
  uint32_t vector_capacity_ = 0;
  // Also the number of results that fit: each slot reports once before it is used again.
  uint32_t slot_count_ = 0;
  uint32_t result_count_ = 0;

  std::unique_ptr<Slot[]> slots_;
  // For a slot whose vector is long while there is no memory for one of its own: with one at a time
  // all of them get done.
  std::unique_ptr<iovec[]> reserve_;
  bool reserve_in_use_ = false;
  EnginePort ports_[kEngineKinds];
  uv_prepare_t* prepare_ = nullptr;  // made when polling is first asked for, both
  uv_idle_t* idle_ = nullptr;
  uint32_t busy_poll_us_ = 0;

  GrowingTable<File> files_;
  GrowingTable<Region> regions_;

#ifdef MULTIWRITE_FAULTS
  static void OnHoldEnded(uv_timer_t* timer);
  static void OnTimerClosed(uv_handle_t* handle);
  void ReportHeld();

  Faults faults_;
  uv_timer_t* hold_timer_ = nullptr;
#endif
};

}  // namespace multiwrite
