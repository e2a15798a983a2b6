// Memory that a ring knows. See uring_buffers.h.
#include "uring_buffers.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "allocation.h"
#include "uring_abi.h"

namespace multiwrite {
namespace {

using namespace uring_abi;

// Pinned memory can neither be swapped nor moved; a process that wants speed for more than this has
// to share it out.
constexpr size_t kBytesMax = size_t{64} << 20;
// One piece must not take everything.
constexpr size_t kLengthMax = kBytesMax / 4;

// CAP_IPC_LOCK: what this process pins counts against no limit (capget(2), version 3 of its
// structures). In a user namespace the kernel counts all the same, and refuses what is too much.
bool MayLockMemory() {
  constexpr uint32_t kVersion3 = 0x20080522;
  constexpr uint32_t kIpcLock = 14;
  struct {
    uint32_t version;
    int32_t pid;
  } header = {kVersion3, 0};
  struct {
    uint32_t effective, permitted, inheritable;
  } sets[2] = {};
  return syscall(SYS_capget, &header, sets) == 0 && (sets[0].effective >> kIpcLock & 1) != 0;
}

}  // namespace

// Makes the table, empty, at the first use.
bool UringBuffers::Open(int fd) {
  if (asked_) return bytes_max_ > 0;
  asked_ = true;
  // Not getrlimit: its name in the C library depends on how wide the library's numbers are.
  uint64_t limit[2];
  if (syscall(SYS_prlimit64, 0, RLIMIT_MEMLOCK, nullptr, limit) != 0) return false;
  ResourceRegister table;
  memset(&table, 0, sizeof table);
  table.count = kBuffers;
  table.flags = kRegisterSparse;
  if (Refused(Resource::kMapping)) return false;
  if (syscall(kSysRegister, fd, kRegisterBuffers2, &table, sizeof table) < 0) return false;
  bool counted = !MayLockMemory() && limit[0] / 4 < kBytesMax;
  bytes_max_ = counted ? static_cast<size_t>(limit[0] / 4) : kBytesMax;
  return true;
}

bool UringBuffers::Update(int fd, uint32_t buffer, uint8_t* base, size_t length) {
  if (Refused(Resource::kMapping)) return false;
  iovec memory = {base, length};
  ResourceUpdate update;
  memset(&update, 0, sizeof update);
  update.offset = buffer;
  update.data = reinterpret_cast<uint64_t>(&memory);
  update.count = 1;
  return syscall(kSysRegister, fd, kRegisterBuffersUpdate, &update, sizeof update) == 1;
}

int32_t UringBuffers::Fix(int fd, uint8_t* base, size_t length) {
  if (length == 0 || length > kLengthMax || !Open(fd) || bytes_ + length > bytes_max_) return -1;
  uint32_t buffer = 0;
  while (buffer < kBuffers && lengths_[buffer] > 0) buffer++;
  if (buffer == kBuffers) return -1;
  if (!Update(fd, buffer, base, length)) {
    // Most likely the user's limit: what has been fixed stays so, more is not tried.
    bytes_max_ = bytes_;
    return -1;
  }
  lengths_[buffer] = length;
  bytes_ += length;
  return static_cast<int32_t>(buffer);
}

void UringBuffers::Release(int fd, int32_t buffer) {
  // If the kernel has no memory to take it in, the place stays taken until the ring goes.
  if (!Update(fd, static_cast<uint32_t>(buffer), nullptr, 0)) return;
  bytes_ -= lengths_[buffer];
  lengths_[buffer] = 0;
}

}  // namespace multiwrite
