// Row operations of the CPU kernels: load, widen and add, with the element type resolved once per row.
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace msr {

// Calls f with a typed pointer to data.
template <typename F>
void with_type(const void* data, DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(static_cast<const Half*>(data));
    case DType::kBFloat16:
      return f(static_cast<const BFloat16*>(data));
    case DType::kFloat64:
      return f(static_cast<const double*>(data));
    case DType::kFloat32:
      return f(static_cast<const float*>(data));
  }
}

// to[k] += factor * from[k * stride], k < length
template <typename acc_t, typename T>
void add_row(acc_t* __restrict to, const T* __restrict from, int64_t stride, int64_t length, acc_t factor) {
  if (stride == 1) {
    for (int64_t k = 0; k < length; ++k) to[k] += factor * widen<acc_t>(from[k]);
  } else {
    for (int64_t k = 0; k < length; ++k) to[k] += factor * widen<acc_t>(from[k * stride]);
  }
}

template <typename acc_t>
void store_row(void* data, DType dtype, int64_t offset, const acc_t* from, int64_t length) {
  switch (dtype) {
    case DType::kFloat16:
      for (int64_t k = 0; k < length; ++k) static_cast<Half*>(data)[offset + k] = Narrow<Half>::from(from[k]);
      return;
    case DType::kBFloat16:
      for (int64_t k = 0; k < length; ++k) static_cast<BFloat16*>(data)[offset + k] = Narrow<BFloat16>::from(from[k]);
      return;
    case DType::kFloat64:
      for (int64_t k = 0; k < length; ++k) static_cast<double*>(data)[offset + k] = static_cast<double>(from[k]);
      return;
    case DType::kFloat32:
      for (int64_t k = 0; k < length; ++k) static_cast<float*>(data)[offset + k] = static_cast<float>(from[k]);
      return;
  }
}

}  // namespace msr
