// What the addon keeps for one environment. See env.h.
#include "env.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <initializer_list>
#include <new>

#include "aio.h"
#include "allocation.h"
#include "threads.h"
#include "uring.h"

namespace multiwrite {
namespace {

// A whole number between 0 and `limit`, exclusive, or -1.
int64_t WholeBelow(double value, double limit) {
  if (!(value >= 0 && value < limit)) return -1;
  int64_t whole = static_cast<int64_t>(value);
  return static_cast<double>(whole) == value ? whole : -1;
}

constexpr double kTwoTo53 = 9007199254740992.0;

// So many times in a row completions are delivered before timers and other descriptors have their
// turn.
constexpr uint32_t kTurnsInARow = 16;

// To make memory known to the kernel costs what it saves in one use of all of it, and a call that
// is worth so many bytes more.
#ifdef MULTIWRITE_FAULTS
bool PaysToFix(size_t, size_t) { return true; }  // so that all tests of this build go that way
#else
constexpr size_t kFixCallBytes = 400 << 10;
bool PaysToFix(size_t used, size_t length) { return used >= length + kFixCallBytes; }
#endif

// A libuv handle, whose size only libuv knows; goes by operator delete. Null for want of memory.
template <typename Handle>
Handle* NewHandle(int type) {
  size_t size = uv_handle_size(type);
  void* place = operator new(size, std::nothrow);
  return place ? static_cast<Handle*>(memset(place, 0, size)) : nullptr;
}

}  // namespace

Env::Env(napi_env env) : env_(env) {
  for (EnginePort& port : ports_) port.env = this;
}

Env::~Env() {
  for (uint32_t i = 0; i < slot_count_; i++) {
    if (slots_[i].vector_capacity > 1 && slots_[i].vectors != reserve_.get())
      delete[] slots_[i].vectors;
  }
  for (EnginePort& port : ports_) operator delete(port.poll);
}

int Env::Attach(napi_value requests, napi_value vectors, napi_value results, napi_value drained,
                uint32_t version, const char** problem) {
  size_t request_numbers = 0, vector_numbers = 0, result_numbers = 0;
  double* request_table = Float64Data(env_, requests, &request_numbers);
  double* vector_table = Float64Data(env_, vectors, &vector_numbers);
  double* result_table = Float64Data(env_, results, &result_numbers);
  uint32_t request_capacity = static_cast<uint32_t>(request_numbers / kRequestStride);
  uint32_t vector_capacity = static_cast<uint32_t>(vector_numbers / kVectorStride);
  uint32_t slot_count = static_cast<uint32_t>(result_numbers / kResultStride);
  if (version != kLayoutVersion) {
    *problem = "the addon and the library speak different layouts; rebuild with: npm run build";
  } else if (slots_) {
    *problem = "attached already";
  } else if (!request_table || !vector_table || !result_table) {
    *problem = "the tables must be Float64Arrays";
  } else if (!request_capacity || !vector_capacity || !slot_count) {
    *problem = "the tables must not be empty";
  }
  if (*problem) return EINVAL;

  std::unique_ptr<Slot[]> slots(new (std::nothrow) Slot[slot_count]);
  std::unique_ptr<iovec[]> reserve(new (std::nothrow) iovec[kMaxVectors]);
  if (!slots || !reserve) return ENOMEM;
  if (!TakeReferences({requests, vectors, results}, drained)) {
    ReleaseReferences();
    return ENOMEM;
  }
  for (uint32_t i = 0; i < slot_count; i++) {
    slots[i].vectors = &slots[i].single;
    slots[i].vector_capacity = 1;
  }
  slots_ = std::move(slots);
  reserve_ = std::move(reserve);
  requests_ = request_table;
  vectors_ = vector_table;
  results_ = result_table;
  request_capacity_ = request_capacity;
  vector_capacity_ = vector_capacity;
  slot_count_ = slot_count;
  return 0;
}

// The tables live on SharedArrayBuffers, which can be neither detached nor shrunk: their addresses
// hold while referenced. The hook comes last, since it looks for all the rest.
bool Env::TakeReferences(const napi_value (&tables)[3], napi_value drained) {
  for (size_t i = 0; i < 3; i++) {
    if (Refused(Resource::kObject) ||
        napi_create_reference(env_, tables[i], 1, &tables_[i]) != napi_ok)
      return false;
  }
  napi_value name, receiver;
  return !Refused(Resource::kObject) &&
         napi_create_reference(env_, drained, 1, &drained_) == napi_ok &&
         napi_create_string_utf8(env_, "multiwrite", NAPI_AUTO_LENGTH, &name) == napi_ok &&
         napi_create_object(env_, &receiver) == napi_ok && !Refused(Resource::kObject) &&
         napi_create_reference(env_, receiver, 1, &receiver_) == napi_ok &&
         !Refused(Resource::kObject) &&
         napi_async_init(env_, receiver, name, &context_) == napi_ok &&
         !Refused(Resource::kObject) &&
         napi_add_async_cleanup_hook(env_, OnTeardown, this, &cleanup_) == napi_ok;
}

int Env::StartEngine(EngineKind kind, const char** syscall) {
  EnginePort* port = &ports_[static_cast<uint32_t>(kind)];
  if (port->engine) return 0;
  *syscall = "uv_poll_init";
  if (closing_ || !slots_) return ECANCELED;
  int error = 0;
  std::unique_ptr<Engine> engine;
  switch (kind) {
    case EngineKind::kUring:
      engine = Uring::Create(slots_.get(), slot_count_, &error, syscall);
      break;
    case EngineKind::kAio:
      engine = Aio::Create(slots_.get(), slot_count_, &error, syscall);
      break;
    case EngineKind::kThreads:
      engine = Threads::Create(slots_.get(), slot_count_, &error, syscall);
      break;
  }
  if (!engine) return error;

  *syscall = "uv_poll_init";
  uv_loop_s* loop = nullptr;
  if (napi_get_uv_event_loop(env_, &loop) != napi_ok) return ENOSYS;
  uv_poll_t* poll = NewHandle<uv_poll_t>(kUvPoll);
  if (!poll) return ENOMEM;
  // Tries the descriptor in the loop's epoll set, which may be full.
  error = Refused(Resource::kDescriptor) ? -errno : uv_poll_init(loop, poll, engine->PollFd());
  if (error != 0) {
    operator delete(poll);
    return -error;
  }
  uv_handle_t* handle = reinterpret_cast<uv_handle_t*>(poll);
  uv_handle_set_data(handle, port);
  uv_unref(handle);
  // uv_poll_start fails for descriptors that are closing only; ours is open.
  uv_poll_start(poll, kUvReadable, OnReadable);
  port->poll = poll;
  port->engine = std::move(engine);
  return 0;
}

int32_t Env::AddFile(int fd, EngineKind engine) {
  return closing_ ? -1 : files_.Add(File{fd, engine});
}

int Env::TakeFile(int32_t id) {
  File* file = files_.At(id);
  if (!file) return -1;
  int fd = file->fd;
  files_.Remove(id);
  return fd;
}

int Env::Descriptor(int32_t id) const {
  File* file = const_cast<GrowingTable<File>&>(files_).At(id);
  return file ? file->fd : -1;
}

int32_t Env::AddRegion(uint8_t* base, size_t length) { return regions_.Add(Region{base, length}); }

void Env::RemoveRegion(int32_t id) {
  Region* region = regions_.At(id);
  if (!region) return;
  EnginePort* port = &ports_[static_cast<uint32_t>(EngineKind::kUring)];
  if (region->buffer >= 0 && port->engine) port->engine->ReleaseBuffer(region->buffer);
  regions_.Remove(id);
}

// What the ring calls a region, for an operation whose only vector of `length` bytes lies in it;
// -1: nothing.
int32_t Env::BufferOf(Region* region, size_t length, EnginePort* port) {
  if (port != &ports_[static_cast<uint32_t>(EngineKind::kUring)]) return -1;
  if (region->fixing_tried) return region->buffer;
  region->used += length;
  if (PaysToFix(region->used, region->length)) {
    region->fixing_tried = true;
    region->buffer = port->engine->FixBuffer(region->base, region->length);
  }
  return region->buffer;
}

// Makes room for a vector of any length. What a slot got of its own it keeps: no allocation once it
// has seen a long vector.
bool Env::LengthenVectors(Slot* slot) {
  iovec* vectors = new (std::nothrow) iovec[kMaxVectors];
  if (!vectors) {
    if (reserve_in_use_) return false;
    reserve_in_use_ = true;
    vectors = reserve_.get();
  }
  slot->vectors = vectors;
  slot->vector_capacity = kMaxVectors;
  return true;
}

// Copies the vectors of one request out of the shared table, whose contents the next call
// overwrites. False with error 0: the entry made no sense. False with an errno: the memory is not
// there (a view was detached), or there is no room.
bool Env::FillVectors(Slot* slot, uint32_t first, uint32_t count, napi_value views, int* error) {
  *error = 0;
  if (count > kMaxVectors || first > vector_capacity_ || count > vector_capacity_ - first)
    return false;
  if (count > slot->vector_capacity && !LengthenVectors(slot)) {
    *error = EAGAIN;  // until the one that has the reserve is done
    return false;
  }
  slot->buffer = -1;
  for (uint32_t i = 0; i < count; i++) {
    const double* entry = &vectors_[(first + i) * kVectorStride];
    int64_t start = WholeBelow(entry[kVectorStart], kTwoTo53);
    int64_t length = WholeBelow(entry[kVectorLength], kTwoTo53);
    if (start < 0 || length < 0) return false;
    uint8_t* base = nullptr;
    size_t available = 0;
    if (entry[kVectorRegion] >= 0) {
      Region* region = regions_.At(WholeBelow(entry[kVectorRegion], 2147483648.0));
      if (!region) return false;
      base = region->base;
      available = region->length;
      if (count == 1) slot->buffer = BufferOf(region, static_cast<size_t>(length), slot->port);
    } else {
      int64_t index = WholeBelow(-1 - entry[kVectorRegion], 4294967296.0);
      napi_value view;
      if (index < 0 ||
          napi_get_element(env_, views, static_cast<uint32_t>(index), &view) != napi_ok ||
          !Uint8Data(env_, view, &base, &available)) {
        return false;
      }
    }
    if (static_cast<uint64_t>(start) > available ||
        static_cast<uint64_t>(length) > available - static_cast<size_t>(start)) {
      *error = EFAULT;
      return false;
    }
    slot->vectors[i].iov_base = base + start;
    slot->vectors[i].iov_len = static_cast<size_t>(length);
  }
  slot->vector_count = count;
  return true;
}

int32_t Env::Submit(uint32_t count, napi_value views, const char** problem) {
  *problem = nullptr;
  if (closing_) return 0;
  if (count > request_capacity_) {
    *problem = "more requests than the table holds";
    return -1;
  }
  result_count_ = 0;
  bool touched[kEngineKinds] = {};
  for (uint32_t i = 0; i < count && !*problem; i++) {
    const double* entry = &requests_[i * kRequestStride];
    int64_t slot_index = WholeBelow(entry[kRequestSlot], slot_count_);
    int64_t op = WholeBelow(entry[kRequestOp], 3);
    int64_t offset = WholeBelow(entry[kRequestOffset], kTwoTo53);
    int64_t first = WholeBelow(entry[kRequestFirstVector], 4294967296.0);
    int64_t vectors = WholeBelow(entry[kRequestVectorCount], kMaxVectors + 1);
    int64_t flags = WholeBelow(entry[kRequestFlags], 4294967296.0);
    File* file = files_.At(WholeBelow(entry[kRequestFile], 2147483648.0));
    if (slot_index < 0 || op < 0 || offset < 0 || first < 0 || vectors < 0 || flags < 0) {
      *problem = "a request has a field out of range";
      break;
    }
    if (!file || !ports_[static_cast<uint32_t>(file->engine)].engine) {
      *problem = "a request names a file that is not open";
      break;
    }
    Slot* slot = &slots_[slot_index];
    if (slot->in_flight) {
      *problem = "a slot is used while it is in flight";
      break;
    }
    EnginePort* port = &ports_[static_cast<uint32_t>(file->engine)];
    slot->op = static_cast<Op>(op);
    slot->flags = static_cast<uint32_t>(flags);
    slot->fd = file->fd;
    slot->offset = static_cast<uint64_t>(offset);
    slot->port = port;
    int error = 0;
    if (!FillVectors(slot, static_cast<uint32_t>(first), static_cast<uint32_t>(vectors), views,
                     &error)) {
      if (error == 0) {
        *problem = "a vector has a field out of range";
        break;
      }
      slot->in_flight = true;
      port->in_flight++;
      Report(slot, -error);
      continue;
    }
    slot->in_flight = true;
    port->in_flight++;
    port->engine->Queue(slot);
    touched[static_cast<uint32_t>(file->engine)] = true;
  }
  for (uint32_t kind = 0; kind < kEngineKinds; kind++) {
    if (!touched[kind]) continue;
    ports_[kind].engine->Submit(this);
    UpdateKeepAlive(&ports_[kind]);
  }
  if (*problem) return -1;
  return static_cast<int32_t>(result_count_);
}

void Env::Complete(Slot* slot, int64_t result) {
#ifdef MULTIWRITE_FAULTS
  if (!closing_ && faults_.Intercept(slot, &result)) return;
#endif
  Report(slot, result);
}

void Env::Report(Slot* slot, int64_t result) {
  slot->in_flight = false;
  slot->port->in_flight--;
  if (slot->vectors == reserve_.get()) {
    slot->vectors = &slot->single;
    slot->vector_capacity = 1;
    reserve_in_use_ = false;
  }
  double* entry = &results_[result_count_++ * kResultStride];
  entry[kResultSlot] = static_cast<double>(slot - slots_.get());
  entry[kResultValue] = static_cast<double>(result);
}

void Env::UpdateKeepAlive(EnginePort* port) {
  uv_handle_t* handle = reinterpret_cast<uv_handle_t*>(port->poll);
  if (port->in_flight > 0) {
    uv_ref(handle);
  } else {
    uv_unref(handle);
  }
}

void Env::SetBusyPoll(uint32_t microseconds) {
  busy_poll_us_ = microseconds;
  uv_loop_s* loop = nullptr;
  if (microseconds == 0 || prepare_ || closing_ || napi_get_uv_event_loop(env_, &loop) != napi_ok)
    return;
  uv_prepare_t* prepare = NewHandle<uv_prepare_t>(kUvPrepare);
  uv_idle_t* idle = NewHandle<uv_idle_t>(kUvIdle);
  if (!prepare || !idle) {
    // Polling is a favour, not a promise.
    operator delete(prepare);
    operator delete(idle);
    return;
  }
  uv_prepare_init(loop, prepare);
  uv_idle_init(loop, idle);
  uv_handle_t* handle = reinterpret_cast<uv_handle_t*>(prepare);
  uv_handle_set_data(handle, this);
  uv_prepare_start(prepare, OnPrepare);
  uv_unref(handle);
  uv_handle_set_data(reinterpret_cast<uv_handle_t*>(idle), this);
  uv_unref(reinterpret_cast<uv_handle_t*>(idle));
  prepare_ = prepare;
  idle_ = idle;
}

void Env::OnIdle(uv_idle_t*) {}

void Env::OnPrepare(uv_prepare_t* prepare) {
  static_cast<Env*>(uv_handle_get_data(reinterpret_cast<uv_handle_t*>(prepare)))->BusyPoll();
}

// Runs just before the loop would sleep. While completions keep coming in time they are delivered
// from here, and the loop is kept from sleeping by an idle handle; once none came for as long as
// was asked for, it sleeps.
void Env::BusyPoll() {
  bool found = false;
  for (uint32_t turn = 0; busy_poll_us_ > 0 && turn < kTurnsInARow && PollOnce(); turn++) {
    found = true;
  }
  if (closing_) return;
  if (found) {
    uv_idle_start(idle_, OnIdle);
  } else {
    uv_idle_stop(idle_);
  }
}

// Looks for completions for as long as was asked for, and delivers what it finds first.
bool Env::PollOnce() {
  timespec now;
  int64_t end = 0;
  for (;;) {
    bool waiting = false;
    for (EnginePort& port : ports_) {
      if (port.in_flight == 0) continue;
      waiting = true;
      if (!port.engine->Ready()) continue;
      Deliver(&port);
      return true;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t now_ns = now.tv_sec * 1000000000LL + now.tv_nsec;
    if (end == 0) end = now_ns + busy_poll_us_ * 1000LL;
    if (!waiting || now_ns >= end) return false;
  }
}

void Env::OnReadable(uv_poll_t* poll, int, int) {
  EnginePort* port =
      static_cast<EnginePort*>(uv_handle_get_data(reinterpret_cast<uv_handle_t*>(poll)));
  Env* env = port->env;
  env->Deliver(port);
  // While JavaScript ran, more may have ended: to look costs next to nothing, a turn of the loop
  // three system calls.
  for (uint32_t turn = 1; turn < kTurnsInARow && !env->closing_ && port->engine->Ready(); turn++) {
    env->Deliver(port);
  }
}

void Env::Deliver(EnginePort* port) {
  if (closing_) return;
  result_count_ = 0;
  port->engine->Reap(this);
#ifdef MULTIWRITE_FAULTS
  if (faults_.due()) ReportHeld();
  if (faults_.held_count() > 0) uv_timer_start(hold_timer_, OnHoldEnded, Faults::kHoldMs, 0);
#endif
  UpdateKeepAlive(port);
  if (result_count_ > 0) CallDrained();
}

void Env::CallDrained() {
  napi_handle_scope scope;
  if (napi_open_handle_scope(env_, &scope) != napi_ok) return;
  napi_value receiver, drained, count;
  if (napi_get_reference_value(env_, receiver_, &receiver) == napi_ok &&
      napi_get_reference_value(env_, drained_, &drained) == napi_ok &&
      napi_create_uint32(env_, result_count_, &count) == napi_ok) {
    // Runs ticks and promise jobs after the call, as for any callback of the event loop. A worker
    // that is being terminated answers that it cannot run JavaScript: the cleanup hook follows,
    // there is nobody left to tell.
    napi_status status = napi_make_callback(env_, context_, receiver, drained, 1, &count, nullptr);
    if (status == napi_pending_exception) {
      napi_value error;
      if (napi_get_and_clear_last_exception(env_, &error) == napi_ok)
        napi_fatal_exception(env_, error);
    }
  }
  napi_close_handle_scope(env_, scope);
}

void Env::OnTeardown(napi_async_cleanup_hook_handle, void* data) {
  static_cast<Env*>(data)->Teardown();
}

void Env::Teardown() {
  closing_ = true;
  for (EnginePort& port : ports_) {
    if (!port.engine) continue;
    result_count_ = 0;
    port.engine->Drain(this);
    uv_poll_stop(port.poll);
    uv_handle_t* handle = reinterpret_cast<uv_handle_t*>(port.poll);
    // A handle that is not counted would leave the teardown spinning without ever running its close
    // callback.
    uv_ref(handle);
    polls_closing_++;
    uv_close(handle, OnPollClosed);
  }
  for (int32_t id = 0; id < files_.size(); id++) {
    File* file = files_.At(id);
    if (file) close(file->fd);
  }
  ReleaseReferences();
  uv_handle_t* pollers[] = {reinterpret_cast<uv_handle_t*>(prepare_),
                            reinterpret_cast<uv_handle_t*>(idle_)};
  for (uv_handle_t* handle : pollers) {
    if (!handle) continue;
    uv_ref(handle);
    polls_closing_++;
    uv_close(handle, OnPollerClosed);
  }
#ifdef MULTIWRITE_FAULTS
  if (hold_timer_) {
    uv_ref(reinterpret_cast<uv_handle_t*>(hold_timer_));
    polls_closing_++;
    uv_close(reinterpret_cast<uv_handle_t*>(hold_timer_), OnTimerClosed);
  }
#endif
  if (polls_closing_ == 0) napi_remove_async_cleanup_hook(cleanup_);
}

// Node frees neither references nor the async context with the environment that they belong to:
// without this, each worker that comes and goes would leave them behind.
void Env::ReleaseReferences() {
  for (napi_ref* reference : {&tables_[0], &tables_[1], &tables_[2], &drained_, &receiver_}) {
    if (*reference) napi_delete_reference(env_, *reference);
    *reference = nullptr;
  }
  if (context_) napi_async_destroy(env_, context_);
  context_ = nullptr;
}

void Env::OnPollerClosed(uv_handle_t* handle) {
  Env* env = static_cast<Env*>(uv_handle_get_data(handle));
  operator delete(handle);
  if (--env->polls_closing_ == 0) napi_remove_async_cleanup_hook(env->cleanup_);
}

void Env::OnPollClosed(uv_handle_t* handle) {
  EnginePort* port = static_cast<EnginePort*>(uv_handle_get_data(handle));
  Env* env = port->env;
  port->engine.reset();  // its descriptor may go only now that nothing polls it
  if (--env->polls_closing_ == 0) napi_remove_async_cleanup_hook(env->cleanup_);
}

#ifdef MULTIWRITE_FAULTS

void Env::SetFaults(const double* rules, size_t count) {
  faults_.Set(nullptr, 0);
  uv_loop_s* loop = nullptr;
  if (!hold_timer_ && napi_get_uv_event_loop(env_, &loop) == napi_ok) {
    hold_timer_ = NewHandle<uv_timer_t>(kUvTimer);
    uv_timer_init(loop, hold_timer_);
    uv_handle_set_data(reinterpret_cast<uv_handle_t*>(hold_timer_), this);
  }
  faults_.Set(rules, count);
}

uint32_t Env::SlotsInFlight() const {
  uint32_t count = 0;
  for (uint32_t i = 0; i < slot_count_; i++) count += slots_[i].in_flight ? 1 : 0;
  return count;
}

uint32_t Env::OpenFiles() const {
  uint32_t count = 0;
  for (int32_t id = 0; id < files_.size(); id++) count += Descriptor(id) >= 0 ? 1 : 0;
  return count;
}

// Reports what is held, unless another result of the same slot stands in the table: none can, a
// slot has one at a time.
void Env::ReportHeld() {
  uint32_t count = 0;
  const Faults::Held* held = faults_.TakeHeld(&count);
  for (uint32_t i = 0; i < count; i++) Report(held[i].slot, held[i].result);
}

void Env::OnHoldEnded(uv_timer_t* timer) {
  Env* env = static_cast<Env*>(uv_handle_get_data(reinterpret_cast<uv_handle_t*>(timer)));
  if (env->closing_) return;
  env->result_count_ = 0;
  env->ReportHeld();
  for (EnginePort& port : env->ports_) {
    if (port.engine) env->UpdateKeepAlive(&port);
  }
  if (env->result_count_ > 0) env->CallDrained();
}

void Env::OnTimerClosed(uv_handle_t* handle) {
  Env* env = static_cast<Env*>(uv_handle_get_data(handle));
  operator delete(handle);
  env->hold_timer_ = nullptr;
  if (--env->polls_closing_ == 0) napi_remove_async_cleanup_hook(env->cleanup_);
}

#endif

}  // namespace multiwrite
