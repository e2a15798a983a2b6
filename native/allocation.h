// What the addon asks the system for and may be refused: memory, descriptors, mappings, threads,
// kernel contexts, objects of Node's. Whoever asks for one asks Refused first and takes a yes for
// the system's own no: so the tests make the Nth of them fail, whichever it is. Only the test build
// ever says yes; elsewhere nothing of this is left.
//
// Memory is the exception that needs no asking: the test build brings its own operator new, which
// asks. So there is one rule for memory: `new (std::nothrow)`, and no malloc. No container of the
// C++ library is used, since those end the process when memory does.
#pragma once

#include <cstdint>

namespace multiwrite {

// Each with the errno that the system refuses it with.
enum class Resource : uint32_t {
  kMemory,      // ENOMEM
  kDescriptor,  // EMFILE
  kMapping,     // ENOMEM
  kThread,      // EAGAIN
  kContext,     // EAGAIN: io_setup
  kObject,      // of Node's, which has no errno
};
constexpr uint32_t kResources = 6;

#ifdef MULTIWRITE_FAULTS
// True if it is to fail this time; sets errno.
bool Refused(Resource resource);
#else
inline bool Refused(Resource) { return false; }
#endif

}  // namespace multiwrite
