// The general spread kernel: the gradients of all branches of a gather-sum from one map, by
// gathering. Any strides, rank, element types and taps; one thread computes one element of one
// branch. No atomics: each element is written once, its sum taken in a fixed order. It is the
// oracle of, and the fallback from, every faster path.
#pragma once

#include "cuda_compat.h"
#include "launch.h"
#include "params.h"

namespace msr {

// R^T(gate * grad) at one position of a branch. A batch of one was broadcast: its gradient is the
// sum over the batch.
template <typename acc_t>
__device__ acc_t spread_taps(const SpreadParams& params, const Branch& branch, const Position& p) {
  const Map& grad = params.grad;
  const int64_t c = p.c + branch.channel_begin;
  const bool over_batch = branch.map.size[0] != grad.size[0];
  const int64_t n_end = over_batch ? grad.size[0] : p.n + 1;
  const Range rd = adjoint_support(branch.axis[0], p.at[0]);
  const Range rh = adjoint_support(branch.axis[1], p.at[1]);
  const Range rw = adjoint_support(branch.axis[2], p.at[2]);
  acc_t batch = 0;
  for (int64_t n = over_batch ? 0 : p.n; n < n_end; ++n) {
    acc_t volume = 0;
    for (int32_t d = rd.begin; d < rd.end; ++d) {
      acc_t plane = 0;
      for (int32_t h = rh.begin; h < rh.end; ++h) {
        const int64_t row_offset =
            n * grad.stride[0] + c * grad.stride[1] + d * grad.stride[2] + h * grad.stride[3];
        acc_t row = 0;
        for (int32_t w = rw.begin; w < rw.end; ++w) {
          if (params.gate && !mask_bit(params.gate, offset_of(grad, n, c, d, h, w))) continue;
          row += weight<acc_t>(branch.axis[2], w, p.at[2]) *
                 load<acc_t>(grad.data, grad.dtype, row_offset + w * grad.stride[4]);
        }
        plane += weight<acc_t>(branch.axis[1], h, p.at[1]) * row;
      }
      volume += weight<acc_t>(branch.axis[0], d, p.at[0]) * plane;
    }
    batch += volume;
  }
  return batch;
}

// The sum of `value` over the block, by a fixed tree; every thread of the block calls it, and gets
// the sum.
__device__ inline double block_sum(double* parts, double value) {
  parts[threadIdx.x] = value;
  __syncthreads();
  for (int half = kSpreadThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  return parts[0];
}

template <typename acc_t>
__global__ void __launch_bounds__(kSpreadThreads, 2) spread_kernel(SpreadParams params) {
  __shared__ double parts[kSpreadThreads];
  int b = 0;
  while (static_cast<int64_t>(blockIdx.x) >= params.block_begin[b + 1]) ++b;
  const Branch& branch = params.branches[b];
  const int64_t blocks = params.block_begin[b + 1] - params.block_begin[b];
  const int64_t total = numel(branch.map);
  const acc_t scale = params.weights ? static_cast<const acc_t*>(params.weights)[b] : acc_t(1);
  double dot = 0;
  for (int64_t i = (blockIdx.x - params.block_begin[b]) * kSpreadThreads + threadIdx.x; i < total;
       i += blocks * kSpreadThreads) {
    const Position p = position_of(branch.map, i);
    const acc_t value = spread_taps<acc_t>(params, branch, p);
    if (branch.map.data) store<acc_t>(branch.map.data, branch.map.dtype, i, scale * value);
    if (params.partial_dots) {
      const int64_t (&stride)[kDims] = params.input_stride[b];
      const int64_t offset = p.n * stride[0] + p.c * stride[1] + p.at[0] * stride[2] +
                             p.at[1] * stride[3] + p.at[2] * stride[4];
      dot += static_cast<double>(value) *
             load<double>(params.inputs[b], params.input_dtype[b], offset);
    }
  }
  if (!params.partial_dots) return;  // the same for every thread of the grid
  dot = block_sum(parts, dot);
  if (threadIdx.x == 0) params.partial_dots[blockIdx.x] = dot;
}

// One block per branch sums that branch's parts: a fixed tree, so two runs agree bit for bit.
template <typename acc_t>
__global__ void __launch_bounds__(kSpreadThreads)
    sum_dots_kernel(SpreadParams params, acc_t* dots) {
  __shared__ double parts[kSpreadThreads];
  double sum = 0;
  for (int64_t i = params.block_begin[blockIdx.x] + threadIdx.x;
       i < params.block_begin[blockIdx.x + 1]; i += kSpreadThreads) {
    sum += params.partial_dots[i];
  }
  sum = block_sum(parts, sum);
  if (threadIdx.x == 0) dots[blockIdx.x] = static_cast<acc_t>(sum);
}

}  // namespace msr
