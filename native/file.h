// Opening a block device or regular file and reading its geometry, and closing it: the calls that
// may block, run on Node's worker threads and answered by a promise.
#pragma once

#include <node_api.h>

#include <cstdint>
#include <memory>

namespace multiwrite {

// What the kernel says of an open file. Sizes are in bytes; 0 where the kernel does not say.
struct Geometry {
  bool block_device = false;
  bool regular_file = false;
  bool device_read_only = false;
  uint64_t size = 0;
  uint32_t logical_block_size = 0;      // BLKSSZGET
  uint32_t physical_block_size = 0;     // BLKPBSZGET
  uint32_t optimal_io_size = 0;         // BLKIOOPT
  uint32_t file_block_size = 0;         // statx stx_blksize
  bool direct_alignment_known = false;  // statx answered STATX_DIOALIGN (6.1)
  uint32_t direct_memory_alignment = 0;
  uint32_t direct_offset_alignment = 0;
  uint32_t major = 0;  // of the block device, or of the device that holds the file
  uint32_t minor = 0;
};

// 0, or the errno of the call named in `syscall`.
int ReadGeometry(int fd, Geometry* geometry, const char** syscall);

// A blocking call and what becomes of it. Execute runs on another thread; Result on the
// environment's, unless that is going away, in which case only the destructor runs.
class Job {
 public:
  virtual ~Job() = default;
  virtual void Execute() = 0;
  virtual napi_value Result(napi_env env) = 0;
};

// What can be done to a range besides reading and writing it.
enum class RangeOp : uint32_t {
  kDiscard = 0,    // the content is of no use any more
  kZero = 1,       // reads as zeros afterwards, space stays allocated
  kZeroUnmap = 2,  // reads as zeros afterwards, space may be given back
  kTruncate = 3,   // the file ends at `offset`
};

// 0, or the errno of the call named in `syscall`.
int ChangeRange(int fd, RangeOp op, uint64_t offset, uint64_t length, const char** syscall);

// Starts a job; `done` is called with its result, or with undefined for want of memory for one.
// False where it can't be started, or is null: then it is gone, and nobody will be called. A
// function and no promise: the handle of a promise that is never settled, since its worker was
// terminated, can't be freed.
bool StartJob(napi_env env, std::unique_ptr<Job> job, napi_value done);

class Env;

// All of them: null for want of memory.
std::unique_ptr<Job> NewOpenJob(Env* owner, std::unique_ptr<char[]> path, int32_t flags,
                                uint32_t engine);
std::unique_ptr<Job> NewGeometryJob(int fd);
std::unique_ptr<Job> NewRangeJob(int fd, RangeOp op, uint64_t offset, uint64_t length);

// Closes a descriptor as a job. False where that can't be started: then it is closed already, and
// `error` is what came of it.
bool StartClose(napi_env env, int fd, napi_value done, int* error);

}  // namespace multiwrite
