// The class with the largest resampled logit, the first of equal ones, and its probability. A
// thread for each pixel, which walks the classes.
#pragma once

#include "logit_columns.cuh"
#include "logit_device.cuh"

namespace msr {

MSR_HOST_DEVICE void store_index(void* data, IndexType type, int64_t offset, int64_t index) {
  switch (type) {
    case IndexType::kUint8:
      static_cast<uint8_t*>(data)[offset] = static_cast<uint8_t>(index);
      return;
    case IndexType::kInt16:
      static_cast<int16_t*>(data)[offset] = static_cast<int16_t>(index);
      return;
    case IndexType::kInt32:
      static_cast<int32_t*>(data)[offset] = static_cast<int32_t>(index);
      return;
    case IndexType::kInt64:
      static_cast<int64_t*>(data)[offset] = index;
      return;
  }
}

// What is known of a pixel while its classes are walked.
template <typename acc_t>
class LargestClass {
 public:
  // Resampled logits of classes [first, first + count).
  __device__ __forceinline__ void add(const ArgmaxParams& params, int64_t first, int count,
                                      const acc_t (&values)[kClassesAtOnce]) {
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k) {
      // NaN before any value, and the first of them, as in PyTorch.
      const bool better = values[k] > largest_ || (values[k] != values[k] && largest_ == largest_);
      if (k >= count || !better) continue;
      largest_ = values[k];
      which_ = static_cast<int32_t>(first) + k;
    }
    if (params.probability) sum_.add(values, count);
  }

  // After all classes.
  __device__ __forceinline__ void end(const ArgmaxParams& params, const Position& p) const {
    const int64_t offset = pixel_offset(params.logits, p.n, p.at[0], p.at[1], p.at[2]);
    store_index(params.index, params.index_type, offset, which_);
    if (params.probability) static_cast<acc_t*>(params.probability)[offset] = 1 / sum_.multiple();
  }

 private:
  acc_t largest_ = -std::numeric_limits<acc_t>::infinity();
  int32_t which_ = 0;
  OnlineSum<acc_t> sum_;
};

template <typename T>
__global__ void __launch_bounds__(kLogitThreads, blocks_at_once<logit_sum_t<T>>())
    argmax_kernel(ArgmaxParams params, LogitGrid grid) {
  using acc_t = logit_sum_t<T>;
  const LogitParams& logits = params.logits;
  const int64_t total = numel(grid.places);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kLogitThreads;
  acc_t values[kClassesAtOnce];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLogitThreads + threadIdx.x; i < total;
       i += step) {
    const Position p = position_of(grid.places, i);
    const LogitTaps<acc_t> depth(logits, grid, 0, p.at[0]);
    const LogitTaps<acc_t> rows(logits, grid, 1, p.at[1]);
    const LogitTaps<acc_t> columns(logits, grid, 2, p.at[2]);
    LargestClass<acc_t> largest;
    for (int64_t first = 0; first < logits.logits.size[1]; first += kClassesAtOnce) {
      const int count = classes_in(logits, first);
      read_logits<T>(logits, p.n, depth, rows, columns, first, count, values);
      largest.add(params, first, count, values);
    }
    largest.end(params, p);
  }
}

template <typename T, typename acc_t>
__device__ __forceinline__ void argmax_of_columns(const ArgmaxParams& params,
                                                  const LogitGrid& grid) {
  for_each_column(params.logits, grid, [&](const PixelColumn& column) {
    LargestClass<acc_t> largest[kColumnRows];
    visit_column<T, acc_t>(params.logits, grid, column,
                           [&](int r, int64_t first, int count, const auto& values) {
                             largest[r].add(params, first, count, values);
                           });
#pragma unroll
    for (int r = 0; r < kColumnRows; ++r)
      if (column.has(r)) largest[r].end(params, column.at(r));
  });
}

template <typename T>
__global__ void __launch_bounds__(kColumnThreads, column_blocks_at_once<logit_sum_t<T>>())
    argmax_columns_kernel(ArgmaxParams params, LogitGrid grid) {
  argmax_of_columns<T, logit_sum_t<T>>(params, grid);
}

}  // namespace msr
