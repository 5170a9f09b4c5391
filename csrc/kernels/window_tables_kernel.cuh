// Fills the tables of one call: a warp for each row of weights (of two taps at most, a thread), a
// thread for each source.
#pragma once

#include "cuda_compat.h"
#include "window_tables.h"

namespace msr {

constexpr int kTableThreads = 256;
constexpr int64_t kMaxTableBlocks = 2048;  // for each table; the rest is done by grid-stride loops

// The axes that have tables, in order.
struct WindowJobs {
  WindowTables tables;
  Axis axis[kMaxBranches * kSpatialDims];
  WindowTable table[kMaxBranches * kSpatialDims];
};

// A warp that fills a row. Every lane gets the sum, and the largest of all.
struct Warp {
  __device__ int32_t lane() const { return static_cast<int32_t>(threadIdx.x % 32); }
  __device__ int32_t lanes() const { return 32; }
  __device__ void keep(int32_t, double) const {}
  template <typename Evaluate>
  __device__ double kept(int32_t i, const Evaluate& evaluate) const {
    return evaluate(i);
  }
  __device__ double sum(double value) const {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
  }
  template <typename acc_t>
  __device__ Largest<acc_t> largest(Largest<acc_t> value) const {
    for (int step = 16; step > 0; step /= 2) {
      const Largest<acc_t> other{__shfl_xor_sync(0xffffffffu, value.weight, step),
                                 __shfl_xor_sync(0xffffffffu, value.index, step)};
      const bool first = other.weight == value.weight && other.index < value.index;
      if (other.weight > value.weight || first) value = other;
    }
    return value;
  }
};

// The first destination whose window begins (or ends) behind source s.
template <typename Bound>
__device__ int32_t first_behind(const Axis& axis, int32_t s, Bound bound) {
  int32_t low = 0, high = axis.out_size;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (bound(window_of(axis, middle).range) > s) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The same of rules of at most two taps.
template <typename acc_t>
__device__ void write_pairs(const Axis& axis, const WindowTable& table, Range* windows,
                            Range* readers, acc_t* weights) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTableThreads + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * kTableThreads;
  for (int64_t i = first; i < axis.out_size; i += step) {
    const auto d = static_cast<int32_t>(i);
    const Range range = support(axis, d);
    windows[i] = range;
    for (int32_t s = range.begin; s < range.end; ++s)
      weights[i * table.width + s - range.begin] = weight<acc_t>(axis, d, s);
  }
  for (int64_t i = first; table.readers && i < axis.in_size; i += step)
    readers[i] = adjoint_support(axis, static_cast<int32_t>(i));
}

template <typename acc_t>
__global__ void __launch_bounds__(kTableThreads) window_tables_kernel(WindowJobs jobs) {
  const Axis axis = jobs.axis[blockIdx.y];
  const WindowTable table = jobs.table[blockIdx.y];
  Range* const windows = jobs.tables.windows(table);
  acc_t* const weights = jobs.tables.weights<acc_t>(table, axis);
  Range* const readers = jobs.tables.readers(table, axis);
  if (!is_windowed(axis.rule)) return write_pairs(axis, table, windows, readers, weights);
  const Warp warp;
  constexpr int kWarps = kTableThreads / 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  for (int64_t d = first_row; d < axis.out_size; d += int64_t{gridDim.x} * kWarps) {
    const Window window = window_of(axis, static_cast<int32_t>(d));
    if (warp.lane() == 0) windows[d] = window.range;
    write_weights(axis, window, warp, weights + d * table.width);
  }
  if (!table.readers) return;
  const int64_t first_source = static_cast<int64_t>(blockIdx.x) * kTableThreads + threadIdx.x;
  for (int64_t i = first_source; i < axis.in_size; i += int64_t{gridDim.x} * kTableThreads) {
    const auto s = static_cast<int32_t>(i);
    // Neither end of a window ever moves back.
    const int32_t begin = first_behind(axis, s, [](const Range& range) { return range.end; });
    const int32_t end = first_behind(axis, s, [](const Range& range) { return range.begin; });
    readers[s] = {begin, end > begin ? end : begin};
  }
}

}  // namespace msr
