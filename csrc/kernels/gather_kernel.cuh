// The general gather kernel: any strides, rank, element types, taps, weights and activation. One
// thread computes one output element. It is the oracle of, and the fallback from, every faster
// path.
#pragma once

#include "branch_taps.cuh"
#include "cuda_compat.h"
#include "launch.h"
#include "params.h"
#include "planted_faults.h"

namespace msr {

constexpr int kGatherThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 20;  // the rest is done by grid-stride loops

// Which elements of a branch a pixel reads. The walked axis is summed up last, with the branch's
// factor in its coefficients, straight onto the sum: the order of EXPAND, which walks rows, or
// pixels where channels are innermost. Explicit multiply-adds, so that no compiler's contraction
// can make the two differ.
template <typename acc_t>
class Footprint {
 public:
  __device__ Footprint(const Branch& branch, const WindowTables& tables,
                       const WindowTable (&table)[kSpatialDims], const Position& p, int walked)
      : branch_(branch),
        inner_axis_(3 - walked),  // of the spatial axes; the other one is depth
        outer_stride_(branch.map.stride[2 + walked]),
        inner_stride_(branch.map.stride[2 + inner_axis_]),
        depth_(branch.axis[0], tables, table[0], p.at[0]),
        // Chosen between, so that there is no array in local memory.
        outer_(branch.axis[walked], tables, table[walked], walked == 1 ? p.at[1] : p.at[2]),
        inner_(branch.axis[inner_axis_], tables, table[inner_axis_],
               walked == 1 ? p.at[2] : p.at[1]) {}

  // sum + factor * R(x). `base` is where the image and channel begin in the branch's map.
  __device__ acc_t add(int64_t base, acc_t factor, acc_t sum) const {
    const Map& map = branch_.map;
    const int32_t inner_end = inner_.end() + (kFaultOutOfBoundsRead ? 1 : 0);
    for (int32_t o = outer_.begin(); o < outer_.end(); ++o) {
      acc_t volume = 0;
      for (int32_t d = depth_.begin(); d < depth_.end(); ++d) {
        const int64_t offset = base + o * outer_stride_ + d * map.stride[2];
        acc_t row = 0;
        for (int32_t i = inner_.begin(); i < inner_end; ++i)
          row = fma(inner_[i], load<acc_t>(map.data, map.dtype, offset + i * inner_stride_), row);
        volume = fma(depth_[d], row, volume);
      }
      sum = fma(factor * outer_[o], volume, sum);
    }
    return sum;
  }

  // The maximum, for a max-pooled branch, where rows are what is walked: NaN wins; of equal values
  // the first, of NaNs the last, as in ATen. Sets `taken` to its place in the window of p.
  __device__ acc_t maximum(int64_t base, const Position& p, int32_t& taken) const {
    const Map& map = branch_.map;
    acc_t best = 0;
    taken = -1;
    for (int32_t d = depth_.begin(); d < depth_.end(); ++d) {
      for (int32_t h = outer_.begin(); h < outer_.end(); ++h) {
        for (int32_t w = inner_.begin(); w < inner_.end(); ++w) {
          const int64_t offset = base + d * map.stride[2] + h * outer_stride_ + w * inner_stride_;
          const acc_t value = load<acc_t>(map.data, map.dtype, offset);
          if (taken >= 0 && !(value > best) && value == value) continue;
          best = value;
          taken = index_in_window(branch_, p.at, d, h, w);
        }
      }
    }
    return best;
  }

 private:
  const Branch& branch_;
  const int inner_axis_;
  const int64_t outer_stride_, inner_stride_;
  const AxisTaps<acc_t, false> depth_, outer_, inner_;
};

// Which spatial axis of a branch is walked: the columns where channels are innermost, else the
// rows.
MSR_HOST_DEVICE int walked_axis(const Map& out, const Branch& branch) {
  return out.channels_last && !is_max_pool(branch) ? 2 : 1;
}

// Where a branch's image and channel begin.
MSR_HOST_DEVICE int64_t image_offset(const Branch& branch, const Position& p) {
  return p.n * branch.map.stride[0] + (p.c - branch.channel_begin) * branch.map.stride[1];
}

// Remembers which element of the window of branch b was taken. Of a branch that is broadcast over
// the batch, the first image says it for all.
MSR_HOST_DEVICE void write_index(const GatherParams& params, int b, const Position& p,
                                 int32_t taken) {
  const Branch& branch = params.branches[b];
  if (!params.index[b] || (branch.map.size[0] == 1 && p.n != 0)) return;
  const Position own{p.n, p.c - branch.channel_begin, {p.at[0], p.at[1], p.at[2]}};
  const int64_t offset = index_offset(branch, params.out, own);
  if (params.wide_index[b]) {
    static_cast<int32_t*>(params.index[b])[offset] = taken;
  } else {
    static_cast<uint8_t*>(params.index[b])[offset] = static_cast<uint8_t>(taken);
  }
}

// What is activated at one position, and which branch a maximum took it from.
template <typename acc_t>
struct Reduced {
  acc_t value;
  int32_t winner;
};

template <typename acc_t>
__device__ Reduced<acc_t> reduce_branches(const GatherParams& params, const WindowTables& tables,
                                          const Position& p) {
  const bool is_max = params.reduction == Reduction::kMax;
  Reduced<acc_t> found{0, -1};
  for (int32_t turn = 0; turn < params.num_branches; ++turn) {
    const int32_t b = params.order[turn];
    const Branch& branch = params.branches[b];
    if (p.c < branch.channel_begin || p.c >= branch.channel_begin + branch.map.size[1]) continue;
    const acc_t factor = weight_of<acc_t>(params.weights, b, p.n, p.c) *
                         pixel_weight_of<acc_t>(params.pixel_weights, b, params.out, p);
    const acc_t before = is_max ? acc_t(0) : found.value;
    const Footprint<acc_t> reads(branch, tables, tables.table[b], p,
                                 walked_axis(params.out, branch));
    const int64_t base = image_offset(branch, p);
    acc_t value;
    if (is_max_pool(branch)) {
      int32_t taken;
      value = fma(factor, reads.maximum(base, p, taken), before);
      write_index(params, b, p, taken);
    } else {
      value = reads.add(base, factor, before);
    }
    // NaN before any value; of equal values the first branch's.
    const bool better =
        found.winner < 0 || value > found.value || (value != value && found.value == found.value);
    if (is_max && !better) continue;
    found = {value, b};
  }
  return found;
}

// The elements of a result that fall to block number `block` of `blocks`.
template <typename acc_t>
__device__ void gather_elements(const GatherParams& params, const WindowTables& tables,
                                int64_t block, int64_t blocks) {
  const int64_t total = numel(params.out) - (kFaultUnwrittenOutput ? 1 : 0);
  const int64_t step = blocks * kGatherThreads;
  const int lane = threadIdx.x % 32;
  const Activation activation = params.activation;
  // Whole warps enter each turn together, also the last one: the votes below need all lanes.
  for (int64_t i = block * kGatherThreads + threadIdx.x; i - lane < total; i += step) {
    Reduced<acc_t> z{0, -1};
    Position p{};
    int64_t at = i;  // in the memory of the result
    if (i < total) {
      p = position_of(params.out, i);
      if (!params.dense) at = offset_in(params.out.stride, p);
      z = reduce_branches<acc_t>(params, tables, p);
      if (params.accumulate) z.value += load<acc_t>(params.out.data, params.out.dtype, at);
      if (params.gate && !mask_bit(params.gate, i)) {
        // A factor of zero takes NaN away too.
        z.value = params.gate_off == 0 ? acc_t(0) : z.value * static_cast<acc_t>(params.gate_off);
      }
    }
    if (params.mask) {
      const bool passed = i < total && passes(activation, z.value);
      const bool is_max = params.reduction == Reduction::kMax;
      // The derivative of a leaky ReLU does not vanish, so it takes no element from its branch.
      const bool has_zeros = activation == Activation::kRelu || activation == Activation::kRelu6;
      const int32_t masks = is_max ? params.num_branches : 1;
      for (int32_t b = 0; b < masks; ++b) {
        const bool bit = is_max ? z.winner == b && (passed || !has_zeros) : passed;
        const uint32_t bits = __ballot_sync(0xffffffffu, bit);
        auto* const words = reinterpret_cast<uint32_t*>(params.mask + b * params.mask_stride);
        if (lane == 0) words[i / 32] = bits;
      }
    }
    if (i < total) {
      acc_t result;
      if (params.grad) {
        const int64_t offset = offset_in(params.grad_stride, p);
        result = load<acc_t>(params.grad, params.grad_dtype, offset) * slope(activation, z.value);
      } else {
        result = activate(activation, z.value);
      }
      store<acc_t>(params.out.data, params.out.dtype, at, result);
    }
  }
}

template <typename acc_t>
__global__ void __launch_bounds__(kGatherThreads, blocks_at_once<acc_t>())
    gather_kernel(GatherParams params, WindowTables tables) {
  gather_elements<acc_t>(params, tables, blockIdx.x, gridDim.x);
}

// Independent gathers: a few blocks for each.
constexpr int kManyJobs = 8;
struct ManyGatherParams {
  GatherParams params[kManyJobs];
  WindowTables tables[kManyJobs];
  uint32_t block_begin[kManyJobs + 1];
};
static_assert(sizeof(ManyGatherParams) <= 32764, "kernels take no more");

template <typename acc_t>
__global__ void __launch_bounds__(kGatherThreads, blocks_at_once<acc_t>())
    gather_many_kernel(const __grid_constant__ ManyGatherParams many) {
  int job = 0;
  while (blockIdx.x >= many.block_begin[job + 1]) ++job;
  const uint32_t begin = many.block_begin[job];
  gather_elements<acc_t>(many.params[job], many.tables[job], blockIdx.x - begin,
                         many.block_begin[job + 1] - begin);
}

// The gradients of pixel weights: a thread for each image, branch and pixel. It sums over all
// channels, in double.
template <typename acc_t>
__global__ void __launch_bounds__(kGatherThreads, blocks_at_once<acc_t>())
    pixel_weight_grads_kernel(GatherParams params, WindowTables tables) {
  const Map& out = params.out;
  const double per_branch = 1.0 / params.num_branches;
  const int64_t total = out.size[0] * params.num_branches * out.size[2] * out.size[3] * out.size[4];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGatherThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x; i < total;
       i += step) {
    const Divided column = divide(i, out.size[4], out.inverse[4]);
    const Divided row = divide(column.quotient, out.size[3], out.inverse[3]);
    const Divided depth = divide(row.quotient, out.size[2], out.inverse[2]);
    const Divided image = divide(depth.quotient, params.num_branches, per_branch);
    const auto b = static_cast<int32_t>(image.rest);
    Position p{image.quotient,
               0,
               {static_cast<int32_t>(depth.rest), static_cast<int32_t>(row.rest),
                static_cast<int32_t>(column.rest)}};
    const Branch& branch = params.branches[b];
    const Footprint<acc_t> reads(branch, tables, tables.table[b], p,
                                 walked_axis(params.out, branch));
    double sum = 0;
    for (p.c = 0; p.c < out.size[1]; ++p.c) {
      acc_t grad = load<acc_t>(params.grad, params.grad_dtype, offset_in(params.grad_stride, p));
      if (params.gate &&
          !mask_bit(params.gate, offset_of(out, p.n, p.c, p.at[0], p.at[1], p.at[2]))) {
        if (params.gate_off == 0) continue;
        grad *= static_cast<acc_t>(params.gate_off);
      }
      const int64_t base = image_offset(branch, p);
      int32_t taken;
      const acc_t value =
          is_max_pool(branch) ? reads.maximum(base, p, taken) : reads.add(base, acc_t(1), acc_t(0));
      grad *= weight_of<acc_t>(params.weights, b, p.n, p.c);
      sum += static_cast<double>(grad) * static_cast<double>(value);
    }
    static_cast<acc_t*>(params.pixel_weight_grads)[i] = static_cast<acc_t>(sum);
  }
}

inline dim3 gather_grid(int64_t elements) {
  const int64_t blocks = ceil_div(elements, kGatherThreads);
  return dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
}

}  // namespace msr
