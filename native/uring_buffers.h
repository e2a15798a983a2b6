// Memory that a ring knows: the kernel looks its pages up and pins them once, instead of anew for
// each operation (IORING_REGISTER_BUFFERS, io_uring_register(2)).
//
// That is a favour and never a promise. What can't be fixed goes as a plain address, and where the
// kernel says no it isn't asked again: an old kernel has no such table (5.19), and for a user
// without CAP_IPC_LOCK the pages count against RLIMIT_MEMLOCK, which belongs to all of the user's
// processes. So at most a quarter of that limit is taken, and never more than some megabytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace multiwrite {

class UringBuffers {
 public:
  // Makes the memory known to the ring `fd`. Returns its number there, or -1.
  int32_t Fix(int fd, uint8_t* base, size_t length);

  // The kernel keeps the pages until the last operation on them has ended.
  void Release(int fd, int32_t buffer);

 private:
  static constexpr uint32_t kBuffers = 256;

  bool Open(int fd);
  bool Update(int fd, uint32_t buffer, uint8_t* base, size_t length);

  bool asked_ = false;
  size_t bytes_ = 0;
  size_t bytes_max_ = 0;
  size_t lengths_[kBuffers] = {};  // 0: free
};

}  // namespace multiwrite
