// The tables that JavaScript and the addon share, and the numbers in them.
//
// Three Float64Arrays are made in JavaScript and handed over once per environment (`attach`):
// requests and vectors travel down with each `submit`, results travel up with each drain. Every
// field is a float64 (exact for whole numbers up to 2^53), since a store into one kind of array is
// the cheapest thing that JavaScript can do. lib/native.ts holds the same numbers; both ends
// compare versions when they meet, so a stale build says so instead of reading the wrong fields.
#pragma once

#include <cstddef>
#include <cstdint>

namespace multiwrite {

// Raise it with every change of a field, a stride or an operation below, here and in lib/native.ts.
constexpr uint32_t kLayoutVersion = 1;

// What is to be done, one record per operation.
enum RequestField : size_t {
  kRequestOp,
  kRequestFlags,
  kRequestFile,         // id of an open file
  kRequestSlot,         // in-flight slot; chosen by JavaScript, free until its result is reported
  kRequestFirstVector,  // index into the vector table
  kRequestVectorCount,
  kRequestOffset,  // bytes
  kRequestStride,
};

// Where the bytes lie, one record per vector. A region is memory that was registered before
// (`addRegion`); a negative number names a view passed along with the call: -1 is the first, -2 the
// second.
enum VectorField : size_t {
  kVectorRegion,
  kVectorStart,   // bytes from the start of the region or view
  kVectorLength,  // bytes
  kVectorStride,
};

// What became of it: bytes done, or a negative errno, as the kernel counts.
enum ResultField : size_t {
  kResultSlot,
  kResultValue,
  kResultStride,
};

enum class Op : uint32_t {
  kRead = 0,
  kWrite = 1,
  kFdatasync = 2,
};

// The write is on stable storage when it is reported (RWF_DSYNC).
constexpr uint32_t kFlagDsync = 1;

// UIO_MAXIOV: the kernel refuses longer vectors with EINVAL.
constexpr uint32_t kMaxVectors = 1024;

}  // namespace multiwrite
