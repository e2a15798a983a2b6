// Faults on command, for the tests: a shim between the kernel's answer and its report. Only in
// builds that define MULTIWRITE_FAULTS; the released addon contains nothing of it.
//
// A rule counts the results that it matches, by operation, and acts on a span of them: it replaces
// or shortens a result (the I/O itself was done), holds it back for a while, or holds several and
// reports them in reverse. Allocation of vectors is counted as an operation of its own, which only
// "replace" makes fail.
#pragma once

#ifdef MULTIWRITE_FAULTS

#include <cstddef>
#include <cstdint>

#include "engine.h"

namespace multiwrite {

enum class FaultAction : uint32_t { kReplace = 1, kShorten = 2, kHold = 3, kReverse = 4 };

// Fields of a rule in the array that JavaScript passes.
enum FaultField : size_t {
  kFaultOps,     // bit per Op; bit 8: allocation
  kFaultFirst,   // how many matches to let pass
  kFaultCount,   // how many to act on
  kFaultAction,  // FaultAction
  kFaultValue,   // replace: the result; shorten: bytes at the most; reverse: how many to collect
  kFaultStride,
};

constexpr uint32_t kFaultOpAllocation = 8;

class Faults {
 public:
  static constexpr uint32_t kRulesMax = 8;
  static constexpr uint32_t kHeldMax = 1024;
  // Milliseconds after which what is held is reported at the latest.
  static constexpr uint64_t kHoldMs = 3;

  struct Held {
    Slot* slot;
    int64_t result;
  };

  void Set(const double* rules, size_t count);

  // May change the result. True if it is held back: then it is in `held()`.
  bool Intercept(Slot* slot, int64_t* result);
  bool FailAllocation();

  // Whether a group that is to be reversed is complete.
  bool due() const { return due_; }
  uint32_t held_count() const { return held_count_; }
  // The held results in the order in which to report them; forgotten with the next Intercept.
  const Held* TakeHeld(uint32_t* count);

 private:
  struct Rule {
    uint32_t ops;
    uint64_t first;
    uint64_t count;
    FaultAction action;
    int64_t value;
    uint64_t seen;
  };

  const Rule* Match(uint32_t op);

  Rule rules_[kRulesMax];
  uint32_t rule_count_ = 0;
  Held held_[kHeldMax];
  uint32_t held_count_ = 0;
  bool reverse_ = false;
  bool due_ = false;
};

}  // namespace multiwrite

#endif
