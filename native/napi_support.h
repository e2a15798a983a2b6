// Small things that the Node-API side of the addon shares: a table of reusable ids, and checks of
// arguments.
#pragma once

#include <node_api.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace multiwrite {

// Ids for things that JavaScript names by number. Ids are reused; the table grows by doubling and
// never shrinks.
template <typename T>
class GrowingTable {
 public:
  GrowingTable() = default;
  GrowingTable(const GrowingTable&) = delete;
  GrowingTable& operator=(const GrowingTable&) = delete;
  ~GrowingTable() { delete[] entries_; }

  // The id of the new entry, or -1 for want of memory.
  int32_t Add(const T& value) {
    if (first_free_ < 0 && !Grow()) return -1;
    int32_t id = first_free_;
    first_free_ = entries_[id].next_free;
    entries_[id].used = true;
    entries_[id].value = value;
    return id;
  }

  T* At(int64_t id) {
    if (id < 0 || id >= size_ || !entries_[id].used) return nullptr;
    return &entries_[id].value;
  }

  void Remove(int32_t id) {
    entries_[id].used = false;
    entries_[id].next_free = first_free_;
    first_free_ = id;
  }

  int32_t size() const { return size_; }

 private:
  struct Entry {
    bool used = false;
    int32_t next_free = -1;
    T value{};
  };

  bool Grow() {
    int32_t size = size_ ? size_ * 2 : 16;
    Entry* entries = new (std::nothrow) Entry[static_cast<size_t>(size)];
    if (!entries) return false;
    for (int32_t i = 0; i < size_; i++) entries[i] = entries_[i];
    for (int32_t i = size - 1; i >= size_; i--) {
      entries[i].next_free = first_free_;
      first_free_ = i;
    }
    delete[] entries_;
    entries_ = entries;
    size_ = size;
    return true;
  }

  Entry* entries_ = nullptr;
  int32_t size_ = 0;
  int32_t first_free_ = -1;
};

// The memory of a Float64Array and its number of elements; null if it is none.
inline double* Float64Data(napi_env env, napi_value value, size_t* length) {
  bool is_typed = false;
  if (napi_is_typedarray(env, value, &is_typed) != napi_ok || !is_typed) return nullptr;
  napi_typedarray_type type;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, length, &data, nullptr, nullptr) != napi_ok)
    return nullptr;
  return type == napi_float64_array ? static_cast<double*>(data) : nullptr;
}

// The memory of a Uint8Array or Buffer; false if it is none. A detached one has length 0.
inline bool Uint8Data(napi_env env, napi_value value, uint8_t** data, size_t* length) {
  bool is_typed = false;
  if (napi_is_typedarray(env, value, &is_typed) != napi_ok || !is_typed) return false;
  napi_typedarray_type type;
  void* place = nullptr;
  if (napi_get_typedarray_info(env, value, &type, length, &place, nullptr, nullptr) != napi_ok)
    return false;
  *data = static_cast<uint8_t*>(place);
  return type == napi_uint8_array;
}

}  // namespace multiwrite
