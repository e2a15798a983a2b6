// The kernel's io_uring structures and numbers, written out here.
//
// The addon must build the same on every host, with whatever kernel headers it has, and link to no
// system library. These are the layouts of the kernel's user-space interface
// (include/uapi/linux/io_uring.h); they never change, only grow in reserved space. The assertions
// hold each one to its size and offsets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace multiwrite::uring_abi {

// The numbers are the same on every architecture that got the calls after 5.1's unification.
constexpr long kSysSetup = 425;
constexpr long kSysEnter = 426;
constexpr long kSysRegister = 427;

constexpr uint32_t kSetupCqSize = 1u << 3;
constexpr uint32_t kSetupClamp = 1u << 4;
constexpr uint32_t kSetupSubmitAll = 1u << 7;      // 5.18
constexpr uint32_t kSetupCoopTaskrun = 1u << 8;    // 5.19
constexpr uint32_t kSetupTaskrunFlag = 1u << 9;    // 5.19
constexpr uint32_t kSetupSingleIssuer = 1u << 12;  // 6.0

constexpr uint32_t kFeatSingleMmap = 1u << 0;
constexpr uint32_t kFeatNodrop = 1u << 1;
constexpr uint32_t kFeatSubmitStable = 1u << 2;

constexpr uint32_t kEnterGetevents = 1u << 0;

constexpr uint32_t kSqCqOverflow = 1u << 1;
constexpr uint32_t kSqTaskrun = 1u << 2;

constexpr uint64_t kOffSqRing = 0;
constexpr uint64_t kOffSqes = 0x10000000;

constexpr uint32_t kRegisterProbe = 8;
constexpr uint32_t kRegisterBuffers2 = 15;       // 5.13
constexpr uint32_t kRegisterBuffersUpdate = 16;  // 5.13
constexpr uint32_t kRegisterSparse = 1;          // 5.19
constexpr uint16_t kProbeSupported = 1;

constexpr uint8_t kOpNop = 0;
constexpr uint8_t kOpReadv = 1;
constexpr uint8_t kOpWritev = 2;
constexpr uint8_t kOpFsync = 3;
constexpr uint8_t kOpReadFixed = 4;
constexpr uint8_t kOpWriteFixed = 5;
constexpr uint8_t kOpRead = 22;
constexpr uint8_t kOpWrite = 23;

constexpr uint32_t kFsyncDatasync = 1;
constexpr uint32_t kRwfDsync = 2;

struct SqRingOffsets {
  uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
  uint64_t user_addr;
};
static_assert(sizeof(SqRingOffsets) == 40);

struct CqRingOffsets {
  uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
  uint64_t user_addr;
};
static_assert(sizeof(CqRingOffsets) == 40);

struct Params {
  uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd;
  uint32_t resv[3];
  SqRingOffsets sq_off;
  CqRingOffsets cq_off;
};
static_assert(sizeof(Params) == 120);
static_assert(offsetof(Params, features) == 20);
static_assert(offsetof(Params, sq_off) == 40);
static_assert(offsetof(Params, cq_off) == 80);

struct Sqe {
  uint8_t opcode;
  uint8_t flags;
  uint16_t ioprio;
  int32_t fd;
  uint64_t off;
  uint64_t addr;
  uint32_t len;
  uint32_t op_flags;  // rw_flags, fsync_flags
  uint64_t user_data;
  uint16_t buf_index;
  uint16_t personality;
  int32_t splice_fd_in;
  uint64_t addr3;
  uint64_t pad;
};
static_assert(sizeof(Sqe) == 64);
static_assert(offsetof(Sqe, off) == 8);
static_assert(offsetof(Sqe, addr) == 16);
static_assert(offsetof(Sqe, len) == 24);
static_assert(offsetof(Sqe, op_flags) == 28);
static_assert(offsetof(Sqe, user_data) == 32);
static_assert(offsetof(Sqe, buf_index) == 40);

struct Cqe {
  uint64_t user_data;
  int32_t res;
  uint32_t flags;
};
static_assert(sizeof(Cqe) == 16);
static_assert(offsetof(Cqe, res) == 8);

struct ProbeOp {
  uint8_t op;
  uint8_t resv;
  uint16_t flags;
  uint32_t resv2;
};
static_assert(sizeof(ProbeOp) == 8);

struct Probe {
  uint8_t last_op;
  uint8_t ops_len;
  uint16_t resv;
  uint32_t resv2[3];
  ProbeOp ops[64];
};
static_assert(offsetof(Probe, ops) == 16);

struct ResourceRegister {
  uint32_t count;
  uint32_t flags;
  uint64_t resv2;
  uint64_t data;
  uint64_t tags;
};
static_assert(sizeof(ResourceRegister) == 32);
static_assert(offsetof(ResourceRegister, data) == 16);

struct ResourceUpdate {
  uint32_t offset;
  uint32_t resv;
  uint64_t data;
  uint64_t tags;
  uint32_t count;
  uint32_t resv2;
};
static_assert(sizeof(ResourceUpdate) == 32);
static_assert(offsetof(ResourceUpdate, data) == 8);
static_assert(offsetof(ResourceUpdate, count) == 24);

}  // namespace multiwrite::uring_abi
