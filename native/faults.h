// Faults on command, for the tests: a shim between the kernel's answer and its report. Only in
// builds that define MULTIWRITE_FAULTS; the released addon contains nothing of it.
//
// A rule counts the results that it matches, by operation, and acts on a span of them: it replaces
// or shortens a result (the I/O itself was done), holds it back for a while, or holds several and
// reports them in reverse.
//
// What is asked of the system (allocation.h) is counted in the same way, and refused; but for the
// whole process, since a worker may be refused before it could set a rule, and since memory is the
// process's. So these are the only statics of the addon, and no other build has them.
#pragma once

#ifdef MULTIWRITE_FAULTS

#include <cstddef>
#include <cstdint>

#include "engine.h"

namespace multiwrite {

enum class FaultAction : uint32_t { kReplace = 1, kShorten = 2, kHold = 3, kReverse = 4 };

// Fields of a rule in the array that JavaScript passes.
enum FaultField : size_t {
  kFaultOps,     // bit per Op; from bit 8 on, one per Resource
  kFaultFirst,   // how many matches to let pass
  kFaultCount,   // how many to act on
  kFaultAction,  // FaultAction
  kFaultValue,   // replace: the result; shorten: bytes at the most; reverse: how many to collect
  kFaultStride,
};

constexpr uint32_t kFaultResource = 8;

// What the process has asked for since it started. Memory is counted in pieces.
struct Allocations {
  uint64_t asked;
  uint64_t refused;
  int64_t pieces;  // taken and not given back
};
Allocations CountAllocations();

struct FaultRule {
  uint32_t ops;
  uint64_t first;
  uint64_t count;
  FaultAction action;
  int64_t value;
  uint64_t seen;
};

// Some rules, each with its count.
class FaultRules {
 public:
  void Clear() { count_ = 0; }
  void Add(const FaultRule& rule);
  // Counts `op` in all rules that concern it; the first one whose turn it is, or null.
  const FaultRule* Match(uint32_t op);

 private:
  static constexpr uint32_t kMax = 8;

  FaultRule rules_[kMax];
  uint32_t count_ = 0;
};

class Faults {
 public:
  static constexpr uint32_t kHeldMax = 1024;
  // Milliseconds after which what is held is reported at the latest.
  static constexpr uint64_t kHoldMs = 3;

  struct Held {
    Slot* slot;
    int64_t result;
  };

  // Rules for resources replace those of the whole process.
  void Set(const double* rules, size_t count);

  // May change the result. True if it is held back: then it is in `held()`.
  bool Intercept(Slot* slot, int64_t* result);

  // Whether a group that is to be reversed is complete.
  bool due() const { return due_; }
  uint32_t held_count() const { return held_count_; }
  // The held results in the order in which to report them; forgotten with the next Intercept.
  const Held* TakeHeld(uint32_t* count);

 private:
  FaultRules rules_;
  Held held_[kHeldMax];
  uint32_t held_count_ = 0;
  bool reverse_ = false;
  bool due_ = false;
};

}  // namespace multiwrite

#endif
