// Faults on command. See faults.h.
#include "faults.h"

#ifdef MULTIWRITE_FAULTS

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include <new>

#include "allocation.h"

namespace multiwrite {
namespace {

// Of the process: any thread may ask for something.
pthread_mutex_t resource_lock = PTHREAD_MUTEX_INITIALIZER;
FaultRules resource_rules;
Allocations allocations;

constexpr int kErrors[kResources] = {ENOMEM, EMFILE, ENOMEM, EAGAIN, EAGAIN, 0};

void CountPieces(int change) {
  pthread_mutex_lock(&resource_lock);
  allocations.pieces += change;
  pthread_mutex_unlock(&resource_lock);
}

}  // namespace

bool Refused(Resource resource) {
  uint32_t which = static_cast<uint32_t>(resource);
  pthread_mutex_lock(&resource_lock);
  allocations.asked++;
  bool refused = resource_rules.Match(kFaultResource + which) != nullptr;
  if (refused) allocations.refused++;
  pthread_mutex_unlock(&resource_lock);
  if (refused) errno = kErrors[which];
  return refused;
}

Allocations CountAllocations() {
  pthread_mutex_lock(&resource_lock);
  Allocations count = allocations;
  pthread_mutex_unlock(&resource_lock);
  return count;
}

void FaultRules::Add(const FaultRule& rule) {
  if (count_ < kMax) rules_[count_++] = rule;
}

const FaultRule* FaultRules::Match(uint32_t op) {
  const FaultRule* found = nullptr;
  for (uint32_t i = 0; i < count_; i++) {
    FaultRule* rule = &rules_[i];
    if (!(rule->ops & (1u << op))) continue;
    uint64_t seen = rule->seen++;
    if (!found && seen >= rule->first && seen - rule->first < rule->count) found = rule;
  }
  return found;
}

void Faults::Set(const double* rules, size_t count) {
  pthread_mutex_lock(&resource_lock);
  rules_.Clear();
  resource_rules.Clear();
  for (size_t i = 0; i + kFaultStride <= count; i += kFaultStride) {
    FaultRule rule = {
        static_cast<uint32_t>(rules[i + kFaultOps]),
        static_cast<uint64_t>(rules[i + kFaultFirst]),
        static_cast<uint64_t>(rules[i + kFaultCount]),
        static_cast<FaultAction>(static_cast<uint32_t>(rules[i + kFaultAction])),
        static_cast<int64_t>(rules[i + kFaultValue]),
        0,
    };
    bool operations = (rule.ops & ((1u << kFaultResource) - 1)) != 0;
    (operations ? rules_ : resource_rules).Add(rule);
  }
  pthread_mutex_unlock(&resource_lock);
}

bool Faults::Intercept(Slot* slot, int64_t* result) {
  const FaultRule* rule = rules_.Match(static_cast<uint32_t>(slot->op));
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

// The addon's own, since nothing outside binds to them: they ask, and count.
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  if (multiwrite::Refused(multiwrite::Resource::kMemory)) return nullptr;
  void* place = malloc(size ? size : 1);
  if (place) multiwrite::CountPieces(1);
  return place;
}
void* operator new[](size_t size, const std::nothrow_t& tag) noexcept {
  return operator new(size, tag);
}
// Nobody in the addon may use these: such memory can't be refused.
void* operator new(size_t) { abort(); }
void* operator new[](size_t) { abort(); }
void operator delete(void* place) noexcept {
  if (place) multiwrite::CountPieces(-1);
  free(place);
}
void operator delete[](void* place) noexcept { operator delete(place); }
void operator delete(void* place, size_t) noexcept { operator delete(place); }
void operator delete[](void* place, size_t) noexcept { operator delete(place); }

#endif
