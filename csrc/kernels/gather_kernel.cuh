// The general gather-sum kernel: any strides, rank, element types and taps. One thread computes one
// output element. It is the oracle of, and the fallback from, every faster path.
#pragma once

#include "cuda_compat.h"
#include "launch.h"
#include "params.h"

namespace msr {

// With two blocks of 256 threads per multiprocessor the compiler has 128 registers, and spills
// none.
constexpr int kGatherThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 20;  // the rest is done by grid-stride loops

// R(x) at one output position. Sums are nested per axis, width innermost, as in the reference.
template <typename acc_t>
__device__ acc_t gather_taps(const Branch& branch, const Position& p) {
  const Map& map = branch.map;
  const int64_t base = p.n * map.stride[0] + (p.c - branch.channel_begin) * map.stride[1];
  const Range rd = support(branch.axis[0], p.at[0]);
  const Range rh = support(branch.axis[1], p.at[1]);
  const Range rw = support(branch.axis[2], p.at[2]);
  acc_t volume = 0;
  for (int32_t d = rd.begin; d < rd.end; ++d) {
    acc_t plane = 0;
    for (int32_t h = rh.begin; h < rh.end; ++h) {
      const int64_t row_offset = base + d * map.stride[2] + h * map.stride[3];
      acc_t row = 0;
      for (int32_t w = rw.begin; w < rw.end; ++w) {
        row += weight<acc_t>(branch.axis[2], p.at[2], w) *
               load<acc_t>(map.data, map.dtype, row_offset + w * map.stride[4]);
      }
      plane += weight<acc_t>(branch.axis[1], p.at[1], h) * row;
    }
    volume += weight<acc_t>(branch.axis[0], p.at[0], d) * plane;
  }
  return volume;
}

template <typename acc_t>
__global__ void __launch_bounds__(kGatherThreads, 2) gather_kernel(GatherParams params) {
  const int64_t total = numel(params.out);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGatherThreads;
  const int lane = threadIdx.x % 32;
  // Whole warps enter each turn together, also the last one: the vote below needs all lanes.
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x;
       i - lane < total; i += step) {
    acc_t sum = 0;
    if (i < total) {
      const Position p = position_of(params.out, i);
      for (int32_t b = 0; b < params.num_branches; ++b) {
        const Branch& branch = params.branches[b];
        if (p.c < branch.channel_begin || p.c >= branch.channel_begin + branch.map.size[1])
          continue;
        const acc_t value = gather_taps<acc_t>(branch, p);
        sum += params.weights ? static_cast<const acc_t*>(params.weights)[b] * value : value;
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
