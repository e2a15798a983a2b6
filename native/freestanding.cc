// What the addon needs of the C++ runtime, for the prebuilt binary: allocation, and the few
// functions that the compiler or an inlined header may call.
//
// A prebuilt addon must load beside any libc, glibc of whatever age and musl, so it is linked
// against no library at all: the process that loads it has a libc already, and plain C names
// without a version resolve in each. The C++ library is another matter, since its symbols carry
// versions; all that is used of it is headers, and what those leave over is defined here. Nothing
// in the addon throws: where the standard says that an exception would be thrown, the process ends
// with a message instead. Other builds link the C++ library and leave this file empty.
#ifdef MULTIWRITE_FREESTANDING

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <new>

namespace {

[[noreturn]] void Die(const char* message) {
  ssize_t ignored = write(STDERR_FILENO, message, strlen(message));
  static_cast<void>(ignored);
  abort();
}

// malloc(0) may be null, operator new may not.
void* Allocate(size_t size) { return malloc(size ? size : 1); }

void* AllocateOrDie(size_t size) {
  void* place = Allocate(size);
  if (!place) Die("multiwrite: out of memory\n");
  return place;
}

}  // namespace

namespace std {
const nothrow_t nothrow{};

[[noreturn]] void __throw_length_error(const char*);
[[noreturn]] void __throw_logic_error(const char*);
[[noreturn]] void __throw_bad_alloc();
[[noreturn]] void __throw_bad_array_new_length();

void __throw_length_error(const char*) { Die("multiwrite: a length beyond all limits\n"); }
void __throw_logic_error(const char*) { Die("multiwrite: a string made of nothing\n"); }
void __throw_bad_alloc() { Die("multiwrite: out of memory\n"); }
void __throw_bad_array_new_length() { Die("multiwrite: an array beyond all limits\n"); }
}  // namespace std

void* operator new(size_t size) { return AllocateOrDie(size); }
void* operator new[](size_t size) { return AllocateOrDie(size); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return Allocate(size); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return Allocate(size); }
void operator delete(void* place) noexcept { free(place); }
void operator delete[](void* place) noexcept { free(place); }
void operator delete(void* place, size_t) noexcept { free(place); }
void operator delete[](void* place, size_t) noexcept { free(place); }
void operator delete(void* place, const std::nothrow_t&) noexcept { free(place); }
void operator delete[](void* place, const std::nothrow_t&) noexcept { free(place); }

extern "C" {
[[noreturn]] void __cxa_pure_virtual() { Die("multiwrite: a pure virtual function was called\n"); }
}

#endif
