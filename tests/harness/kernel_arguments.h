// Arguments of launchers as msr_cuda's kernels take them.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "../../csrc/kernels/params.h"
#include "launchers.h"

namespace msr::harness {

inline Map map_of(const ArrayView& array) {
  if (array.rank < 3 || array.rank > kDims)
    throw std::invalid_argument("expected a map of 3 to 5 dimensions");
  Map map;
  int64_t size[kDims] = {array.size[0], array.size[1], 1, 1, 1};
  int64_t stride[kDims] = {array.stride[0], array.stride[1], 0, 0, 0};
  for (int i = 2; i < array.rank; ++i) {
    size[kDims - array.rank + i] = array.size[i];
    stride[kDims - array.rank + i] = array.stride[i];
  }
  set_sizes(map, size);
  for (int i = 0; i < kDims; ++i) map.stride[i] = stride[i];
  map.data = array.data;
  map.dtype = static_cast<DType>(array.type);
  map.channels_last = false;
  return map;
}

inline int integer_or_zero(const Arguments& a, const std::string& name) {
  return a.has(name) ? a.integer(name) : 0;
}

template <class T>
T* data_or_null(const Arguments& a, const std::string& name) {
  return a.has(name) ? a.array(name).as<T>() : nullptr;
}

inline void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

// Device memory for a call: as much as it asked for and not a byte more, poisoned.
class Workspace {
 public:
  explicit Workspace(int64_t bytes)
      : memory_(bytes > 0 ? std::malloc(static_cast<size_t>(bytes)) : nullptr, std::free) {
    if (memory_) std::memset(memory_.get(), 0xff, static_cast<size_t>(bytes));
  }
  // "workspace": bytes that outlive the call, for those who look at what was launched; or absent.
  Workspace(const Arguments& a, int64_t bytes) : Workspace(a.has("workspace") ? 0 : bytes) {
    if (!a.has("workspace")) return;
    const ArrayView& given = a.array("workspace");
    if (given.numel() * given.element_bytes < bytes)
      throw std::invalid_argument("expected a workspace of " + std::to_string(bytes) + " bytes");
    given_ = given.data;
  }
  void* data() const { return given_ ? given_ : memory_.get(); }

 private:
  std::unique_ptr<void, void (*)(void*)> memory_;
  void* given_ = nullptr;
};

}  // namespace msr::harness
