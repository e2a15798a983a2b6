// Opening, measuring and closing files. See file.h.
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>
#include <new>

#include "allocation.h"
#include "env.h"

namespace multiwrite {
namespace {

// struct statx of the kernel's user-space interface, written out so that the host's headers need
// not know STATX_DIOALIGN.
struct StatxAbi {
  uint32_t mask, blksize;
  uint64_t attributes;
  uint32_t nlink, uid, gid;
  uint16_t mode, pad;
  uint64_t ino, size, blocks, attributes_mask;
  uint64_t times[8];
  uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
  uint64_t mnt_id;
  uint32_t dio_mem_align, dio_offset_align;
  uint64_t spare[12];
};
static_assert(sizeof(StatxAbi) == 256);
static_assert(offsetof(StatxAbi, mode) == 28);
static_assert(offsetof(StatxAbi, size) == 40);
static_assert(offsetof(StatxAbi, rdev_major) == 128);
static_assert(offsetof(StatxAbi, dio_mem_align) == 152);

constexpr uint32_t kStatxBasicStats = 0x7ff;
constexpr uint32_t kStatxDioAlign = 0x2000;

void SetNumber(napi_env env, napi_value object, const char* name, double number) {
  napi_value value;
  if (napi_create_double(env, number, &value) == napi_ok)
    napi_set_named_property(env, object, name, value);
}

void SetFlag(napi_env env, napi_value object, const char* name, bool flag) {
  napi_value value;
  if (napi_get_boolean(env, flag, &value) == napi_ok)
    napi_set_named_property(env, object, name, value);
}

napi_value FailureObject(napi_env env, int error, const char* syscall) {
  napi_value object, name;
  if (Refused(Resource::kObject) || napi_create_object(env, &object) != napi_ok) return nullptr;
  SetNumber(env, object, "errno", error);
  if (napi_create_string_utf8(env, syscall, NAPI_AUTO_LENGTH, &name) == napi_ok) {
    napi_set_named_property(env, object, "syscall", name);
  }
  return object;
}

napi_value GeometryObject(napi_env env, const Geometry& geometry) {
  napi_value object;
  if (Refused(Resource::kObject) || napi_create_object(env, &object) != napi_ok) return nullptr;
  SetFlag(env, object, "blockDevice", geometry.block_device);
  SetFlag(env, object, "regularFile", geometry.regular_file);
  SetFlag(env, object, "deviceReadOnly", geometry.device_read_only);
  SetNumber(env, object, "size", static_cast<double>(geometry.size));
  SetNumber(env, object, "logicalBlockSize", geometry.logical_block_size);
  SetNumber(env, object, "physicalBlockSize", geometry.physical_block_size);
  SetNumber(env, object, "optimalIoSize", geometry.optimal_io_size);
  SetNumber(env, object, "fileBlockSize", geometry.file_block_size);
  SetFlag(env, object, "directAlignmentKnown", geometry.direct_alignment_known);
  SetNumber(env, object, "directMemoryAlignment", geometry.direct_memory_alignment);
  SetNumber(env, object, "directOffsetAlignment", geometry.direct_offset_alignment);
  SetNumber(env, object, "major", geometry.major);
  SetNumber(env, object, "minor", geometry.minor);
  return object;
}

class OpenJob final : public Job {
 public:
  OpenJob(Env* owner, std::unique_ptr<char[]> path, int32_t flags, uint32_t engine)
      : owner_(owner), path_(std::move(path)), flags_(flags), engine_(engine) {}

  ~OpenJob() override {
    if (fd_ >= 0) close(fd_);
  }

  void Execute() override {
    syscall_ = "open";
    do {
      fd_ = Refused(Resource::kDescriptor) ? -1 : open(path_.get(), flags_ | O_CLOEXEC | O_NOCTTY);
    } while (fd_ < 0 && errno == EINTR);
    if (fd_ < 0) {
      error_ = errno;
      return;
    }
    error_ = ReadGeometry(fd_, &geometry_, &syscall_);
  }

  napi_value Result(napi_env env) override {
    if (error_ != 0) return FailureObject(env, error_, syscall_);
    napi_value object = GeometryObject(env, geometry_);
    if (!object) return nullptr;
    int32_t id = owner_->AddFile(fd_, static_cast<EngineKind>(engine_));
    if (id < 0) return FailureObject(env, ENOMEM, "open");
    SetNumber(env, object, "file", id);
    SetNumber(env, object, "descriptor", fd_);
    fd_ = -1;  // the environment's now
    return object;
  }

 private:
  Env* owner_;
  std::unique_ptr<char[]> path_;
  int32_t flags_;
  uint32_t engine_;
  int fd_ = -1;
  int error_ = 0;
  const char* syscall_ = "open";
  Geometry geometry_;
};

class CloseJob final : public Job {
 public:
  explicit CloseJob(int fd) : fd_(fd) {}
  // Where it was started and never run: the environment is going away.
  ~CloseJob() override { Execute(); }

  void Execute() override {
    if (fd_ >= 0) error_ = Close(fd_);
    fd_ = -1;
  }

  // Leaves the descriptor to somebody else.
  void Forget() { fd_ = -1; }

  // Never retried: Linux releases the descriptor even when it answers EINTR.
  static int Close(int fd) { return close(fd) == 0 ? 0 : errno; }

  napi_value Result(napi_env env) override { return FailureObject(env, error_, "close"); }

 private:
  int fd_;
  int error_ = 0;
};

class GeometryJob final : public Job {
 public:
  explicit GeometryJob(int fd) : fd_(fd) {}
  void Execute() override { error_ = ReadGeometry(fd_, &geometry_, &syscall_); }
  napi_value Result(napi_env env) override {
    return error_ != 0 ? FailureObject(env, error_, syscall_) : GeometryObject(env, geometry_);
  }

 private:
  int fd_;
  int error_ = 0;
  const char* syscall_ = "statx";
  Geometry geometry_;
};

class RangeJob final : public Job {
 public:
  RangeJob(int fd, RangeOp op, uint64_t offset, uint64_t length)
      : fd_(fd), op_(op), offset_(offset), length_(length) {}
  void Execute() override {
    do {
      error_ = ChangeRange(fd_, op_, offset_, length_, &syscall_);
    } while (error_ == EINTR);
  }
  napi_value Result(napi_env env) override { return FailureObject(env, error_, syscall_); }

 private:
  int fd_;
  RangeOp op_;
  uint64_t offset_;
  uint64_t length_;
  int error_ = 0;
  const char* syscall_ = "fallocate";
};

// A job on its way, with what Node needs for it.
struct Running {
  explicit Running(napi_env environment) : env(environment) {}
  ~Running() {
    if (work) napi_delete_async_work(env, work);
    if (done) napi_delete_reference(env, done);
  }

  // False if Node refuses; the job is not run then.
  bool Start(napi_value callback);

  napi_env env;
  std::unique_ptr<Job> job;
  napi_async_work work = nullptr;
  napi_ref done = nullptr;
};

void ExecuteJob(napi_env, void* data) { static_cast<Running*>(data)->job->Execute(); }

void FinishJob(napi_env env, napi_status status, void* data) {
  std::unique_ptr<Running> running(static_cast<Running*>(data));
  if (status != napi_ok) return;  // the environment is going away; the job's destructor tidies up
  napi_value result = running->job->Result(env);
  napi_value done, receiver;
  if ((!result && napi_get_undefined(env, &result) != napi_ok) ||
      napi_get_undefined(env, &receiver) != napi_ok ||
      napi_get_reference_value(env, running->done, &done) != napi_ok) {
    return;
  }
  // The callback may start the next job: what this one took is given back before.
  running.reset();
  // A worker that is being terminated runs no JavaScript any more: then there is nobody to tell.
  napi_call_function(env, receiver, done, 1, &result, nullptr);
}

// Node's own pool of threads has been started by then, or its start ended the process.
bool Running::Start(napi_value callback) {
  napi_value name;
  return !Refused(Resource::kObject) &&
         napi_create_string_utf8(env, "multiwrite", NAPI_AUTO_LENGTH, &name) == napi_ok &&
         napi_create_reference(env, callback, 1, &done) == napi_ok && !Refused(Resource::kObject) &&
         napi_create_async_work(env, nullptr, name, ExecuteJob, FinishJob, this, &work) ==
             napi_ok &&
         !Refused(Resource::kThread) && napi_queue_async_work(env, work) == napi_ok;
}

// Takes the job only if it starts.
bool Start(napi_env env, std::unique_ptr<Job>* job, napi_value done) {
  if (!*job) return false;
  std::unique_ptr<Running> running(new (std::nothrow) Running(env));
  if (!running) return false;
  running->job = std::move(*job);  // before: it may run, and even end, inside Start
  if (running->Start(done)) {
    static_cast<void>(running.release());  // FinishJob's now
    return true;
  }
  *job = std::move(running->job);
  return false;
}

}  // namespace

int ReadGeometry(int fd, Geometry* geometry, const char** name) {
  StatxAbi stat;
  memset(&stat, 0, sizeof stat);
  *name = "statx";
  if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, kStatxBasicStats | kStatxDioAlign, &stat) != 0)
    return errno;
  geometry->block_device = S_ISBLK(stat.mode);
  geometry->regular_file = S_ISREG(stat.mode);
  geometry->size = stat.size;
  geometry->file_block_size = stat.blksize;
  geometry->direct_alignment_known = (stat.mask & kStatxDioAlign) != 0;
  geometry->direct_memory_alignment = stat.dio_mem_align;
  geometry->direct_offset_alignment = stat.dio_offset_align;
  geometry->major = geometry->block_device ? stat.rdev_major : stat.dev_major;
  geometry->minor = geometry->block_device ? stat.rdev_minor : stat.dev_minor;
  if (!geometry->block_device) return 0;

  // st_size of a block device is 0; the ioctls tell.
  *name = "ioctl";
  uint64_t size = 0;
  int logical = 0;
  if (ioctl(fd, BLKGETSIZE64, &size) != 0 || ioctl(fd, BLKSSZGET, &logical) != 0) return errno;
  geometry->size = size;
  geometry->logical_block_size = static_cast<uint32_t>(logical);
  // The rest is advice: a device that does not answer leaves it at 0.
  unsigned int physical = 0, optimal = 0;
  int read_only = 0;
  if (ioctl(fd, BLKPBSZGET, &physical) == 0) geometry->physical_block_size = physical;
  if (ioctl(fd, BLKIOOPT, &optimal) == 0) geometry->optimal_io_size = optimal;
  if (ioctl(fd, BLKROGET, &read_only) == 0) geometry->device_read_only = read_only != 0;
  return 0;
}

int ChangeRange(int fd, RangeOp op, uint64_t offset, uint64_t length, const char** name) {
  off_t start = static_cast<off_t>(offset);
  off_t bytes = static_cast<off_t>(length);
  if (op == RangeOp::kTruncate) {
    *name = "ftruncate";
    return ftruncate(fd, start) == 0 ? 0 : errno;
  }
  StatxAbi stat;
  memset(&stat, 0, sizeof stat);
  *name = "statx";
  if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, kStatxBasicStats, &stat) != 0) return errno;
  bool block = S_ISBLK(stat.mode);
  uint64_t range[2] = {offset, length};
  if (block && op != RangeOp::kZeroUnmap) {
    *name = "ioctl";
    return ioctl(fd, op == RangeOp::kDiscard ? BLKDISCARD : BLKZEROOUT, range) == 0 ? 0 : errno;
  }
  // Holes in a block device are zeroes by offload, or refused.
  *name = "fallocate";
  int mode = op == RangeOp::kZero ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE;
  return fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, start, bytes) == 0 ? 0 : errno;
}

bool StartJob(napi_env env, std::unique_ptr<Job> job, napi_value done) {
  return Start(env, &job, done);
}

bool StartClose(napi_env env, int fd, napi_value done, int* error) {
  CloseJob* close = new (std::nothrow) CloseJob(fd);
  std::unique_ptr<Job> job(close);
  if (Start(env, &job, done)) return true;
  if (close) close->Forget();
  // It may block the thread for a moment, which is better than to leave it open.
  *error = CloseJob::Close(fd);
  return false;
}

std::unique_ptr<Job> NewOpenJob(Env* owner, std::unique_ptr<char[]> path, int32_t flags,
                                uint32_t engine) {
  return std::unique_ptr<Job>(new (std::nothrow) OpenJob(owner, std::move(path), flags, engine));
}

std::unique_ptr<Job> NewRangeJob(int fd, RangeOp op, uint64_t offset, uint64_t length) {
  return std::unique_ptr<Job>(new (std::nothrow) RangeJob(fd, op, offset, length));
}

std::unique_ptr<Job> NewGeometryJob(int fd) {
  return std::unique_ptr<Job>(new (std::nothrow) GeometryJob(fd));
}

}  // namespace multiwrite
