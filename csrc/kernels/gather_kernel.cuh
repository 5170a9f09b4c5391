// The general gather-sum kernel: any strides, rank, element types and taps. One thread computes one
// output element. It is the oracle of, and the fallback from, every faster path.
#pragma once

#include "cuda_compat.h"
#include "launch.h"
#include "params.h"
#include "planted_faults.h"

namespace msr {

// With two blocks of 256 threads per multiprocessor the compiler has 128 registers, and spills
// none.
constexpr int kGatherThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 20;  // the rest is done by grid-stride loops

// sum + branch_weight * R(x) at one output position. The walked axis is summed up last, with the
// weight in its coefficients, straight onto the sum: the order of EXPAND, which walks rows, or
// pixels where channels are innermost. Explicit multiply-adds, so that no compiler's contraction
// can make the two differ.
template <typename acc_t>
__device__ acc_t gather_taps(const Branch& branch, const Position& p, int walked,
                             acc_t branch_weight, acc_t sum) {
  const Map& map = branch.map;
  const int inner = 3 - walked;  // of the spatial axes; the other one is depth
  const int32_t at_walked = walked == 1 ? p.at[1] : p.at[2];  // no array in local memory
  const int32_t at_inner = walked == 1 ? p.at[2] : p.at[1];
  const int64_t base = p.n * map.stride[0] + (p.c - branch.channel_begin) * map.stride[1];
  const Range outer_range = support(branch.axis[walked], at_walked);
  const Range depth_range = support(branch.axis[0], p.at[0]);
  Range inner_range = support(branch.axis[inner], at_inner);
  if (kFaultOutOfBoundsRead) ++inner_range.end;
  for (int32_t o = outer_range.begin; o < outer_range.end; ++o) {
    acc_t volume = 0;
    for (int32_t d = depth_range.begin; d < depth_range.end; ++d) {
      const int64_t offset = base + o * map.stride[2 + walked] + d * map.stride[2];
      acc_t row = 0;
      for (int32_t i = inner_range.begin; i < inner_range.end; ++i) {
        row = fma(weight<acc_t>(branch.axis[inner], at_inner, i),
                  load<acc_t>(map.data, map.dtype, offset + i * map.stride[2 + inner]), row);
      }
      volume = fma(weight<acc_t>(branch.axis[0], p.at[0], d), row, volume);
    }
    sum = fma(branch_weight * weight<acc_t>(branch.axis[walked], at_walked, o), volume, sum);
  }
  return sum;
}

template <typename acc_t>
__global__ void __launch_bounds__(kGatherThreads, 2) gather_kernel(GatherParams params) {
  const int64_t total = numel(params.out) - (kFaultUnwrittenOutput ? 1 : 0);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGatherThreads;
  const int lane = threadIdx.x % 32;
  const int walked = params.out.channels_last ? 2 : 1;
  // Whole warps enter each turn together, also the last one: the vote below needs all lanes.
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x;
       i - lane < total; i += step) {
    acc_t sum = 0;
    if (i < total) {
      const Position p = position_of(params.out, i);
      // Branches of the result's size first, as in EXPAND.
      for (int32_t turn = 0; turn < 2 * params.num_branches; ++turn) {
        const bool resampled = turn >= params.num_branches;
        const int32_t b = resampled ? turn - params.num_branches : turn;
        const Branch& branch = params.branches[b];
        if (resampled == is_identity(branch)) continue;
        if (p.c < branch.channel_begin || p.c >= branch.channel_begin + branch.map.size[1])
          continue;
        const acc_t branch_weight =
            params.weights ? static_cast<const acc_t*>(params.weights)[b] : acc_t(1);
        sum = gather_taps<acc_t>(branch, p, walked, branch_weight, sum);
      }
      if (params.gate && !mask_bit(params.gate, i)) sum = 0;
    }
    if (params.mask) {
      const uint32_t bits = __ballot_sync(0xffffffffu, i < total && !(sum <= 0));
      if (lane == 0) reinterpret_cast<uint32_t*>(params.mask)[i / 32] = bits;
    }
    if (i < total) {
      if (params.activation == Activation::kRelu && sum <= 0) sum = 0;  // NaN stays
      store<acc_t>(params.out.data, params.out.dtype, i, sum);
    }
  }
}

inline dim3 gather_grid(const GatherParams& params) {
  const int64_t blocks = ceil_div(numel(params.out), kGatherThreads);
  return dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
}

}  // namespace msr
