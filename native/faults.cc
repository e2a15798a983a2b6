// Faults on command. See faults.h.
#include "faults.h"

#ifdef MULTIWRITE_FAULTS

namespace multiwrite {

void Faults::Set(const double* rules, size_t count) {
  rule_count_ = 0;
  for (size_t i = 0; i + kFaultStride <= count && rule_count_ < kRulesMax; i += kFaultStride) {
    rules_[rule_count_++] = Rule{
        static_cast<uint32_t>(rules[i + kFaultOps]),
        static_cast<uint64_t>(rules[i + kFaultFirst]),
        static_cast<uint64_t>(rules[i + kFaultCount]),
        static_cast<FaultAction>(static_cast<uint32_t>(rules[i + kFaultAction])),
        static_cast<int64_t>(rules[i + kFaultValue]),
        0,
    };
  }
}

const Faults::Rule* Faults::Match(uint32_t op) {
  const Rule* found = nullptr;
  for (uint32_t i = 0; i < rule_count_; i++) {
    Rule* rule = &rules_[i];
    if (!(rule->ops & (1u << op))) continue;
    uint64_t seen = rule->seen++;
    if (!found && seen >= rule->first && seen - rule->first < rule->count) found = rule;
  }
  return found;
}

bool Faults::Intercept(Slot* slot, int64_t* result) {
  const Rule* rule = Match(static_cast<uint32_t>(slot->op));
  if (!rule) return false;
  switch (rule->action) {
    case FaultAction::kReplace:
      *result = rule->value;
      return false;
    case FaultAction::kShorten:
      if (*result > rule->value) *result = rule->value;
      return false;
    case FaultAction::kHold:
    case FaultAction::kReverse:
      if (held_count_ == kHeldMax) return false;
      held_[held_count_++] = Held{slot, *result};
      reverse_ = rule->action == FaultAction::kReverse;
      if (reverse_ && held_count_ >= rule->value) due_ = true;
      return true;
  }
  return false;
}

bool Faults::FailAllocation() {
  const Rule* rule = Match(kFaultOpAllocation);
  return rule && rule->action == FaultAction::kReplace;
}

const Faults::Held* Faults::TakeHeld(uint32_t* count) {
  *count = held_count_;
  if (reverse_) {
    for (uint32_t i = 0, j = held_count_; i + 1 < j; i++) {
      Held last = held_[--j];
      held_[j] = held_[i];
      held_[i] = last;
    }
  }
  held_count_ = 0;
  due_ = false;
  return held_;
}

}  // namespace multiwrite

#endif
