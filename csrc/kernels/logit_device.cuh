// Resampled logits on the device: read class by class where they are wanted, never written.
//
// A thread has a few classes at a time of one pixel or of one logit: what it knows of taps serves
// them all.
#pragma once

#include <limits>

#include "branch_taps.cuh"
#include "cuda_compat.h"
#include "logit_params.h"
#include "planted_faults.h"
#include "window_tables.h"

namespace msr {

constexpr int kLogitThreads = 256;
constexpr int kClassesAtOnce = 8;
constexpr int64_t kMaxLogitBlocks = 4096;  // the rest is done by grid-stride loops

template <typename T>
struct LogitSum {
  using type = float;
};
template <>
struct LogitSum<double> {
  using type = double;
};
// The type that sums of logits of type T are kept in.
template <typename T>
using logit_sum_t = typename LogitSum<T>::type;

// What the threads of a launch are: pixels of the result or logits, each for a block of classes.
struct LogitGrid {
  Map places;           // [N, blocks of classes, D, H, W]: sizes and order alone
  WindowTables tables;  // of all three axes
};

// What pixels at `at` along an axis read, and with what weights.
template <typename acc_t>
class LogitTaps {
 public:
  __device__ LogitTaps(const LogitParams& params, const LogitGrid& grid, int axis, int32_t at) {
    const WindowTable& table = grid.tables.table[0][axis];
    range_ = grid.tables.windows(table)[at];
    weights_ = grid.tables.template weights<acc_t>(table, params.axis[axis]) +
               static_cast<int64_t>(at) * table.width;
  }
  __device__ int32_t begin() const { return range_.begin; }
  __device__ int32_t end() const { return range_.end; }
  // For i in [begin, end).
  __device__ acc_t operator[](int32_t i) const { return weights_[i - range_.begin]; }

 private:
  Range range_;
  const acc_t* weights_;
};

// Which pixels read the logits at `at` along an axis.
__device__ __forceinline__ Range readers_of(const LogitParams& params, const LogitGrid& grid,
                                            int axis, int32_t at) {
  return grid.tables.readers(grid.tables.table[0][axis], params.axis[axis])[at];
}

// Rows, or columns, whose first tap is logit `at`, for rules of at most two taps.
__device__ __forceinline__ Range begun_at(const LogitParams& logits, const LogitGrid& grid,
                                          int axis, int32_t at) {
  const int32_t begin = at > 0 ? readers_of(logits, grid, axis, at - 1).end : 0;
  return {begin, readers_of(logits, grid, axis, at).end};
}

// Where a pixel is in a dense map [N, D, H, W] of the result's size.
MSR_HOST_DEVICE int64_t pixel_offset(const LogitParams& params, int64_t n, int32_t z, int32_t y,
                                     int32_t x) {
  return ((n * params.size[0] + z) * params.size[1] + y) * params.size[2] + x;
}

// Elements of `count` neighbouring classes; those beyond are zero.
template <typename acc_t, typename T>
__device__ __forceinline__ void read_classes(const T* from, int64_t stride, int count,
                                             acc_t (&values)[kClassesAtOnce]) {
#pragma unroll
  for (int k = 0; k < kClassesAtOnce; ++k, from += stride)
    values[k] = k < count ? widen<acc_t>(*from) : acc_t(0);
}

// The same of a type that is known at run time only: one uniform branch for all of them.
template <typename acc_t>
__device__ __forceinline__ void read_classes(const void* data, DType dtype, int64_t offset,
                                             int64_t stride, int count,
                                             acc_t (&values)[kClassesAtOnce]) {
  switch (dtype) {
    case DType::kFloat16:
      return read_classes(static_cast<const Half*>(data) + offset, stride, count, values);
    case DType::kBFloat16:
      return read_classes(static_cast<const BFloat16*>(data) + offset, stride, count, values);
    case DType::kFloat64:
      return read_classes(static_cast<const double*>(data) + offset, stride, count, values);
    case DType::kFloat32:
      return read_classes(static_cast<const float*>(data) + offset, stride, count, values);
  }
}

// Adds row `h` of logits of classes [first, first + count), resampled along the other axes, to
// sums.
template <typename T, typename acc_t>
__device__ __forceinline__ void add_line(const LogitParams& params, int64_t n,
                                         const LogitTaps<acc_t>& depth, int32_t h, acc_t factor,
                                         const LogitTaps<acc_t>& columns, int64_t first, int count,
                                         acc_t (&sums)[kClassesAtOnce]) {
  const int64_t (&stride)[kDims] = params.logits.stride;
  const T* const line =
      static_cast<const T*>(params.logits.data) + n * stride[0] + first * stride[1] + h * stride[3];
  for (int32_t d = depth.begin(); d < depth.end(); ++d) {
    const acc_t outer = depth[d] * factor;
    for (int32_t w = columns.begin(); w < columns.end(); ++w) {
      const acc_t weight = outer * columns[w];
      const T* from = line + d * stride[2] + w * stride[4];
#pragma unroll
      for (int k = 0; k < kClassesAtOnce; ++k, from += stride[1])
        if (k < count) sums[k] = fma(weight, widen<acc_t>(*from), sums[k]);
    }
  }
}

// Resampled logits of classes [first, first + count) at one pixel, whose taps are given. Those
// beyond are zero.
template <typename T, typename acc_t>
__device__ __forceinline__ void read_logits(const LogitParams& params, int64_t n,
                                            const LogitTaps<acc_t>& depth,
                                            const LogitTaps<acc_t>& rows,
                                            const LogitTaps<acc_t>& columns, int64_t first,
                                            int count, acc_t (&values)[kClassesAtOnce]) {
#pragma unroll
  for (acc_t& value : values) value = 0;
  const int32_t end = rows.end() + (kFaultOutOfBoundsRead ? 1 : 0);
  for (int32_t h = rows.begin(); h < end; ++h)
    add_line<T>(params, n, depth, h, rows[h], columns, first, count, values);
}

// How many classes a block of them has.
MSR_HOST_DEVICE int classes_in(const LogitParams& params, int64_t first) {
  const int64_t rest = params.logits.size[1] - first;
  return rest < kClassesAtOnce ? static_cast<int>(rest) : kClassesAtOnce;
}

// The gradients of classes [first, first + count) of one logit.
template <typename T, typename acc_t>
__device__ __forceinline__ void store_grads(const Map& map, const Position& place, int64_t first,
                                            int count, const acc_t (&grads)[kClassesAtOnce]) {
  const int64_t offset =
      offset_in(map.stride, place.n, first, place.at[0], place.at[1], place.at[2]);
#pragma unroll
  for (int k = 0; k < kClassesAtOnce; ++k)
    if (k < count)
      static_cast<T*>(map.data)[offset + k * map.stride[1]] = Narrow<T>::from(grads[k]);
}

// The sum of exponentials of what was added, as a multiple of the largest one.
template <typename acc_t>
class OnlineSum {
 public:
  __device__ __forceinline__ void add(const acc_t (&values)[kClassesAtOnce], int count) {
    acc_t largest = largest_;
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k)
      if (k < count && values[k] > largest) largest = values[k];
    // Where all are -inf so far, differences to the largest would be NaN.
    const acc_t origin = largest < std::numeric_limits<acc_t>::lowest() ? acc_t(0) : largest;
    sum_ *= exp_of(largest_ - origin);
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k)
      if (k < count) sum_ += exp_of(values[k] - origin);
    largest_ = largest;
  }
  __device__ acc_t logarithm() const { return largest_ + log_of(sum_); }
  // How many times the largest one it is.
  __device__ acc_t multiple() const { return sum_; }

 private:
  acc_t largest_ = -std::numeric_limits<acc_t>::infinity();
  acc_t sum_ = 0;
};

// What each block of a launch leaves of sums.
struct LossPart {
  double loss, weight;
};

}  // namespace msr
