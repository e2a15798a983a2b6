// The addon's face towards JavaScript: a handful of functions on one object per environment.
// lib/native.ts is their only caller and checks what users pass; here a wrong argument is a bug of
// ours and throws.
#include <errno.h>
#include <napi.h>

#include <memory>
#include <new>

#include "env.h"
#include "file.h"
#include "layout.h"

namespace multiwrite {
namespace {

class Addon final : public Napi::Addon<Addon> {
 public:
  // Null for want of memory.
  static Addon* Create(Napi::Env env, Napi::Object exports) {
    std::unique_ptr<Env> state(new (std::nothrow) Env(env));
    return state ? new (std::nothrow) Addon(exports, std::move(state)) : nullptr;
  }

  Addon(Napi::Object exports, std::unique_ptr<Env> state) : env_(std::move(state)) {
    // Methods as template arguments: the other form allocates for each, and loses that when a
    // worker is terminated while it loads the addon.
    DefineAddon(exports, {
                             InstanceMethod<&Addon::Attach>("attach"),
                             InstanceMethod<&Addon::StartEngine>("startEngine"),
                             InstanceMethod<&Addon::Open>("open"),
                             InstanceMethod<&Addon::ReadFileGeometry>("geometry"),
                             InstanceMethod<&Addon::ChangeFileRange>("changeRange"),
                             InstanceMethod<&Addon::Close>("close"),
                             InstanceMethod<&Addon::AddRegion>("addRegion"),
                             InstanceMethod<&Addon::RemoveRegion>("removeRegion"),
                             InstanceMethod<&Addon::Address>("address"),
                             InstanceMethod<&Addon::AdjustExternalMemory>("adjustExternalMemory"),
                             InstanceMethod<&Addon::SetBusyPoll>("setBusyPoll"),
                             InstanceMethod<&Addon::Submit>("submit"),
#ifdef MULTIWRITE_FAULTS
                             InstanceMethod<&Addon::SetFaults>("setFaults"),
                             InstanceMethod<&Addon::Usage>("usage"),
#endif
                             InstanceValue("layout", Layout(exports.Env())),
                         });
  }

 private:
  static Napi::Object Layout(Napi::Env env) {
    Napi::Object layout = Napi::Object::New(env);
    layout.Set("version", kLayoutVersion);
    layout.Set("requestStride", static_cast<uint32_t>(kRequestStride));
    layout.Set("vectorStride", static_cast<uint32_t>(kVectorStride));
    layout.Set("resultStride", static_cast<uint32_t>(kResultStride));
    layout.Set("maxVectors", kMaxVectors);
    return layout;
  }

  static void Throw(Napi::Env env, const char* message) {
    napi_throw_error(env, "ERR_INTERNAL_ASSERTION", message);
  }

  static int32_t Int(const Napi::CallbackInfo& info, size_t index) {
    return info[index].IsNumber() ? info[index].As<Napi::Number>().Int32Value() : -1;
  }

  // attach(requests, vectors, results, drained, layoutVersion) -> 0, or ENOMEM with nothing done
  Napi::Value Attach(const Napi::CallbackInfo& info) {
    const char* problem = nullptr;
    int error = env_->Attach(info[0], info[1], info[2], info[3],
                             static_cast<uint32_t>(Int(info, 4)), &problem);
    if (problem) Throw(info.Env(), problem);
    return Napi::Number::New(info.Env(), error);
  }

  // startEngine(kind) -> undefined, or { errno, syscall }
  Napi::Value StartEngine(const Napi::CallbackInfo& info) {
    int32_t kind = Int(info, 0);
    if (kind < 0 || kind >= static_cast<int32_t>(kEngineKinds)) {
      Throw(info.Env(), "no such engine");
      return info.Env().Undefined();
    }
    const char* syscall = "";
    int error = env_->StartEngine(static_cast<EngineKind>(kind), &syscall);
    if (error == 0) return info.Env().Undefined();
    Napi::Object failure = Napi::Object::New(info.Env());
    failure.Set("errno", error);
    failure.Set("syscall", syscall);
    return failure;
  }

  // What blocks answers undefined if it has been started, and calls `done` when it has ended. What
  // could not be started answers the errno at once and calls nobody.
  static Napi::Value Started(Napi::Env env, bool started) {
    if (started) return env.Undefined();
    return Napi::Number::New(env, ENOMEM);
  }

  // open(path, flags, engine, done): calls done with geometry and `file`, or { errno, syscall }
  Napi::Value Open(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    int32_t kind = Int(info, 2);
    size_t length = 0;
    if (kind < 0 || kind >= static_cast<int32_t>(kEngineKinds) ||
        napi_get_value_string_utf8(env, info[0], nullptr, 0, &length) != napi_ok) {
      Throw(env, "open: no such engine, or no path");
      return env.Undefined();
    }
    std::unique_ptr<char[]> path(new (std::nothrow) char[length + 1]);
    if (!path ||
        napi_get_value_string_utf8(env, info[0], path.get(), length + 1, &length) != napi_ok) {
      return Started(env, false);
    }
    auto job = NewOpenJob(env_.get(), std::move(path), Int(info, 1), static_cast<uint32_t>(kind));
    return Started(env, StartJob(env, std::move(job), info[3]));
  }

  // geometry(file, done): calls done with the geometry, or with { errno, syscall }
  Napi::Value ReadFileGeometry(const Napi::CallbackInfo& info) {
    auto job = NewGeometryJob(env_->Descriptor(Int(info, 0)));
    return Started(info.Env(), StartJob(info.Env(), std::move(job), info[1]));
  }

  // changeRange(file, op, offset, length, done): calls done with { errno, syscall }
  Napi::Value ChangeFileRange(const Napi::CallbackInfo& info) {
    uint64_t offset = static_cast<uint64_t>(info[2].As<Napi::Number>().Int64Value());
    uint64_t length = static_cast<uint64_t>(info[3].As<Napi::Number>().Int64Value());
    RangeOp op = static_cast<RangeOp>(Int(info, 1));
    auto job = NewRangeJob(env_->Descriptor(Int(info, 0)), op, offset, length);
    return Started(info.Env(), StartJob(info.Env(), std::move(job), info[4]));
  }

  // close(file, done): calls done with { errno, syscall }; the id is free at once. Nothing may be
  // in flight on it. Where no other thread can be had it is closed here and now: then it answers
  // what came of that, an errno or 0, and calls nobody.
  Napi::Value Close(const Napi::CallbackInfo& info) {
    int error = 0;
    bool started = StartClose(info.Env(), env_->TakeFile(Int(info, 0)), info[1], &error);
    if (started) return info.Env().Undefined();
    return Napi::Number::New(info.Env(), error);
  }

  // addRegion(view) -> id, or -1 for want of memory. The view must lie on a SharedArrayBuffer, and
  // be referenced until removeRegion.
  Napi::Value AddRegion(const Napi::CallbackInfo& info) {
    uint8_t* base = nullptr;
    size_t length = 0;
    if (!Uint8Data(info.Env(), info[0], &base, &length)) Throw(info.Env(), "addRegion: no bytes");
    return Napi::Number::New(info.Env(), env_->AddRegion(base, length));
  }

  void RemoveRegion(const Napi::CallbackInfo& info) { env_->RemoveRegion(Int(info, 0)); }

  // address(view) -> where it lies now, modulo the page size: enough to align by, useless as a
  // pointer.
  Napi::Value Address(const Napi::CallbackInfo& info) {
    uint8_t* base = nullptr;
    size_t length = 0;
    if (!Uint8Data(info.Env(), info[0], &base, &length)) Throw(info.Env(), "address: no bytes");
    constexpr uintptr_t kModulus = 1u << 21;
    return Napi::Number::New(info.Env(),
                             static_cast<double>(reinterpret_cast<uintptr_t>(base) % kModulus));
  }

  // adjustExternalMemory(bytes): tells the collector of memory that it cannot see, or that it has
  // gone.
  void AdjustExternalMemory(const Napi::CallbackInfo& info) {
    int64_t total = 0;
    napi_adjust_external_memory(info.Env(), info[0].As<Napi::Number>().Int64Value(), &total);
  }

  // setBusyPoll(microseconds)
  void SetBusyPoll(const Napi::CallbackInfo& info) {
    env_->SetBusyPoll(static_cast<uint32_t>(Int(info, 0)));
  }

  // submit(count, views) -> number of results that are in the table at once
  Napi::Value Submit(const Napi::CallbackInfo& info) {
    const char* problem = nullptr;
    int32_t results = env_->Submit(static_cast<uint32_t>(Int(info, 0)), info[1], &problem);
    if (problem) Throw(info.Env(), problem);
    return Napi::Number::New(info.Env(), results);
  }

#ifdef MULTIWRITE_FAULTS
  // setFaults(rules): a Float64Array of rules; see faults.h
  void SetFaults(const Napi::CallbackInfo& info) {
    size_t count = 0;
    double* rules = Float64Data(info.Env(), info[0], &count);
    env_->SetFaults(rules, count);
  }

  // usage() -> what the process has asked for and holds, and what this environment has in use
  Napi::Value Usage(const Napi::CallbackInfo& info) {
    Allocations count = CountAllocations();
    Napi::Object usage = Napi::Object::New(info.Env());
    usage.Set("asked", static_cast<double>(count.asked));
    usage.Set("refused", static_cast<double>(count.refused));
    usage.Set("pieces", static_cast<double>(count.pieces));
    usage.Set("slots", env_->SlotsInFlight());
    usage.Set("files", env_->OpenFiles());
    return usage;
  }
#endif

  std::unique_ptr<Env> env_;
};

// Not NODE_API_ADDON: that takes memory for granted. What is thrown here comes out of
// process.dlopen.
Napi::Object Load(Napi::Env env, Napi::Object exports) {
  Addon* addon = Addon::Create(env, exports);
  if (addon) {
    env.SetInstanceData(addon);
  } else {
    napi_throw_error(env, "ENOMEM", "no memory for the addon");
  }
  return exports;
}

}  // namespace

NODE_API_MODULE(multiwrite, Load)

}  // namespace multiwrite
