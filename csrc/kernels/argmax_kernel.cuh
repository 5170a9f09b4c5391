// The class with the largest resampled logit, the first of equal ones, and its probability. A
// thread for each pixel, which walks the classes.
#pragma once

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
    acc_t largest = -std::numeric_limits<acc_t>::infinity();
    int64_t which = 0;
    OnlineSum<acc_t> sum;
    for (int64_t first = 0; first < logits.logits.size[1]; first += kClassesAtOnce) {
      const int count = classes_in(logits, first);
      read_logits<T>(logits, p.n, depth, rows, columns, first, count, values);
#pragma unroll
      for (int k = 0; k < kClassesAtOnce; ++k) {
        // NaN before any value, and the first of them, as in PyTorch.
        const bool better = values[k] > largest || (values[k] != values[k] && largest == largest);
        if (k >= count || !better) continue;
        largest = values[k];
        which = first + k;
      }
      if (params.probability) sum.add(values, count);
    }
    store_index(params.index, params.index_type, i, which);
    if (params.probability) static_cast<acc_t*>(params.probability)[i] = 1 / sum.multiple();
  }
}

}  // namespace msr
