// What one position reads of another map, along each axis: for the general kernels.
#pragma once

#include "cuda_compat.h"
#include "params.h"
#include "window_tables.h"

namespace msr {

// Blocks of 256 threads of a general kernel that a multiprocessor must hold: what leaves enough
// registers, 128 for each thread in float.
template <typename acc_t>
constexpr int blocks_at_once() {
  return sizeof(acc_t) == sizeof(float) ? 2 : 1;
}

// The elements of the other map that position `at` reads along one axis, and their weights: what
// the axis says in a gather, the adjoint in a spread. Maxima have weights of one. It keeps little:
// what the parameters tell is read again, from constant memory, rather than held in registers.
template <typename acc_t, bool kSpread>
class AxisTaps {
 public:
  __device__ AxisTaps(const Axis& axis, const WindowTables& tables, const WindowTable& table,
                      int32_t at)
      : axis_(axis), tables_(tables), table_(table), at_(at) {
    if (is_maximum()) {
      range_ = adjoint() ? pool_readers(axis, at) : pool_window(axis, at);
    } else if (has_table()) {
      range_ = adjoint() ? tables.readers(table, axis)[at] : tables.windows(table)[at];
    } else if (adjoint()) {
      range_ = adjoint_support(axis, at);
    } else {
      range_ = support(axis, at);
      // Evaluated here, once, for the two taps that there are at most.
      first_ = weight<acc_t>(axis, at, range_.begin);
      second_ = range_.end - range_.begin > 1 ? weight<acc_t>(axis, at, range_.begin + 1) : 0;
    }
  }

  __device__ int32_t begin() const { return range_.begin; }
  __device__ int32_t end() const { return range_.end; }

  // For i in [begin, end).
  __device__ acc_t operator[](int32_t i) const {
    if (is_maximum()) return acc_t(1);
    if (has_table()) {
      const int64_t row = adjoint() ? i : at_;
      const int32_t first = adjoint() ? tables_.windows(table_)[i].begin : range_.begin;
      const int32_t place = (adjoint() ? at_ : i) - first;
      return tables_.template weights<acc_t>(table_, axis_)[row * table_.width + place];
    }
    if (adjoint()) return weight<acc_t>(axis_, i, at_);
    return i == range_.begin ? first_ : second_;
  }

 private:
  // Whether `at` is a source of the axis, and what it reads are destinations.
  __device__ bool adjoint() const { return axis_.transposed != kSpread; }
  __device__ bool is_maximum() const { return axis_.rule == Rule::kMaxPool; }
  __device__ bool has_table() const { return table_.width > 0; }

  const Axis& axis_;
  const WindowTables& tables_;
  const WindowTable& table_;
  const int32_t at_;
  Range range_;
  acc_t first_ = 0, second_ = 0;
};

// Which element of a max-pooling's window an element of the map is: counted in rows, from the
// corner of the window, which may lie in the padding.
MSR_HOST_DEVICE int32_t index_in_window(const Branch& branch, const int32_t (&window)[kSpatialDims],
                                        int32_t d, int32_t h, int32_t w) {
  const int32_t element[kSpatialDims] = {d, h, w};
  int64_t index = 0;
  for (int i = 0; i < kSpatialDims; ++i) {
    const Axis& axis = branch.axis[i];
    const int64_t begin =
        static_cast<int64_t>(window[i]) * static_cast<int64_t>(axis.scale) - axis.padding;
    index = index * static_cast<int64_t>(axis.inverse) + (element[i] - begin);
  }
  return static_cast<int32_t>(index);
}

MSR_HOST_DEVICE int64_t pixel_of(const Map& map, const Position& p) {
  return (p.at[0] * map.size[3] + p.at[1]) * map.size[4] + p.at[2];
}

// Where the indices of a max-pooled branch have the entry of a position, whose channel is the
// branch's. common: the map of the high resolution.
MSR_HOST_DEVICE int64_t index_offset(const Branch& branch, const Map& common, const Position& p) {
  const int64_t n = branch.map.size[0] == 1 ? 0 : p.n;
  const int64_t channels = branch.map.size[1];
  const int64_t pixels = common.size[2] * common.size[3] * common.size[4];
  const int64_t pixel = pixel_of(common, p);
  return common.channels_last ? (n * pixels + pixel) * channels + p.c
                              : (n * channels + p.c) * pixels + pixel;
}

// The factor of a branch at a pixel of the common map.
template <typename acc_t>
MSR_HOST_DEVICE acc_t pixel_weight_of(const PixelWeights& weights, int b, const Map& common,
                                      const Position& p) {
  if (!weights.has(b)) return acc_t(1);
  return static_cast<const acc_t*>(
      weights.data)[p.n * weights.stride_n + b * weights.stride_b + pixel_of(common, p)];
}

}  // namespace msr
