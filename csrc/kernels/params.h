// What the kernels are told. Plain data, passed to CUDA kernels by value.
//
// Every map is [N, C, D, H, W]: one- and two-dimensional maps have leading spatial axes of size 1.
// Strides are in elements; an axis that is broadcast has stride 0.
#pragma once

#include <cstdint>

#include "activations.h"
#include "dtypes.h"
#include "resample_math.h"

namespace msr {

constexpr int kMaxBranches = 9;  // 8 maps, and a bias: a map of one pixel
constexpr int kDims = 5;         // N, C, D, H, W
constexpr int kSpatialDims = 3;  // D, H, W

struct Map {
  void* data;  // null: not wanted (gradients)
  int64_t size[kDims];
  int64_t stride[kDims];
  double inverse[kDims];  // 1 / size, for divide()
  DType dtype;
  bool channels_last;  // the order of the elements in memory, where this program allocated the map
};

MSR_HOST_DEVICE int64_t numel(const Map& map) {
  int64_t n = 1;
  for (int i = 0; i < kDims; ++i) n *= map.size[i];
  return n;
}

// Sets sizes and what follows from them.
inline void set_sizes(Map& map, const int64_t (&size)[kDims]) {
  for (int i = 0; i < kDims; ++i) {
    map.size[i] = size[i];
    map.inverse[i] = size[i] > 0 ? 1.0 / static_cast<double>(size[i]) : 0.0;
  }
}

struct Position {
  int64_t n, c;
  int32_t at[kSpatialDims];
};

// Where an element lies in a map of any strides.
MSR_HOST_DEVICE int64_t offset_in(const int64_t (&stride)[kDims], int64_t n, int64_t c, int64_t d,
                                  int64_t h, int64_t w) {
  return n * stride[0] + c * stride[1] + d * stride[2] + h * stride[3] + w * stride[4];
}

MSR_HOST_DEVICE int64_t offset_in(const int64_t (&stride)[kDims], const Position& p) {
  return offset_in(stride, p.n, p.c, p.at[0], p.at[1], p.at[2]);
}

// The coordinates of the element that comes `offset`-th in the memory of a dense map.
MSR_HOST_DEVICE Position position_of(const Map& map, int64_t offset) {
  Position p;
  const auto take = [&](int axis) {
    const Divided at = divide(offset, map.size[axis], map.inverse[axis]);
    offset = at.quotient;
    return at.rest;
  };
  if (map.channels_last) p.c = take(1);
  for (int i = kSpatialDims - 1; i >= 0; --i) p.at[i] = static_cast<int32_t>(take(2 + i));
  if (!map.channels_last) p.c = take(1);
  p.n = offset;
  return p;
}

// The inverse of position_of: which bit of the activation mask belongs to an element.
MSR_HOST_DEVICE int64_t offset_of(const Map& map, int64_t n, int64_t c, int64_t d, int64_t h,
                                  int64_t w) {
  const int64_t (&size)[kDims] = map.size;
  if (map.channels_last) return (((n * size[2] + d) * size[3] + h) * size[4] + w) * size[1] + c;
  return (((n * size[1] + c) * size[2] + d) * size[3] + h) * size[4] + w;
}

MSR_HOST_DEVICE bool mask_bit(const uint8_t* mask, int64_t offset) {
  return (mask[offset >> 3] >> (offset & 7)) & 1;
}

// One map of the low-resolution side, and how its axes relate to the high-resolution map.
struct Branch {
  Map map;
  Axis axis[kSpatialDims];  // from this map to the common one; transposed: the other way round
  int64_t channel_begin;    // first channel of its slice of the common map (0 in sums)
};

MSR_HOST_DEVICE bool is_identity(const Branch& branch) {
  return branch.axis[0].rule == Rule::kIdentity && branch.axis[1].rule == Rule::kIdentity &&
         branch.axis[2].rule == Rule::kIdentity;
}

MSR_HOST_DEVICE bool is_max_pool(const Branch& branch) {
  return branch.axis[2].rule == Rule::kMaxPool;
}

// A map of one pixel, which is everywhere the same: a bias, a pooled map. Resampling copies it.
MSR_HOST_DEVICE bool is_constant(const Branch& branch) {
  const int64_t (&size)[kDims] = branch.map.size;
  const Axis& axis = branch.axis[2];
  return size[2] * size[3] * size[4] == 1 && !is_identity(branch) && !axis.transposed &&
         axis.rule < Rule::kAveragePool;
}

// Factors of the branches, of the accumulation type: [1 or N, count, 1 or C].
struct Weights {
  const void* data;  // null: all one
  int32_t count;     // branches from this one on have none
  int64_t stride_n, stride_b, stride_c;

  MSR_HOST_DEVICE bool has(int b) const { return data && b < count; }
  MSR_HOST_DEVICE bool per_branch() const { return stride_n == 0 && stride_c == 0; }
};

template <typename acc_t>
MSR_HOST_DEVICE acc_t weight_of(const Weights& weights, int b, int64_t n, int64_t c) {
  if (!weights.has(b)) return acc_t(1);
  return static_cast<const acc_t*>(
      weights.data)[n * weights.stride_n + b * weights.stride_b + c * weights.stride_c];
}

// Factors of the branches at each pixel: [1 or N, count, pixels], dense.
struct PixelWeights {
  const void* data;
  int32_t count;
  int64_t stride_n, stride_b;

  MSR_HOST_DEVICE bool has(int b) const { return data && b < count; }
};

// What becomes of the branches at one element. Concatenation is a sum: there, each element is one
// branch's.
enum class Reduction : int32_t { kSum, kMax };

// gather: out = act(reduce_i(weight_i * R_i(branch_i))), per channel slice for concatenation.
struct GatherParams {
  Branch branches[kMaxBranches];
  int32_t num_branches;
  Activation activation;
  Reduction reduction;
  bool accumulate;  // onto what `out` holds, before the activation
  bool dense;       // `out` has the strides of its sizes and order; otherwise any
  Map out;
  Weights weights;
  PixelWeights pixel_weights;
  const uint8_t* gate;  // or null; elements whose bit is 0 are multiplied by gate_off
  double gate_off;
  // Or null: receives a bit per element, passes(activation, z). Of a maximum: one mask per branch,
  // mask_stride bytes apart, with the elements that are this branch's (and pass the activation, if
  // it saves bits).
  uint8_t* mask;
  int64_t mask_stride;
  // Of max-pooled branches, or null: which element of the window was taken, counted in rows, as
  // uint8 or (wide) int32, in the order of `out`; [branch's N, branch's C, *out's size].
  void* index[kMaxBranches];
  bool wide_index[kMaxBranches];
  // Or null: the result is grad * act'(z) instead of act(z).
  const void* grad;
  DType grad_dtype;
  int64_t grad_stride[kDims];
  // Or null: instead of `out`, which has no data then, the gradients of pixel weights are written,
  // sum over the channels of gate * grad * weight_i * R_i(branch_i): [N, num_branches, pixels],
  // dense, of the accumulation type.
  void* pixel_weight_grads;
  int8_t order[kMaxBranches];  // set by launch_gather, for the general kernel: see set_order
};

// The order in which the branches of a sum are added, on GPUs: maps of the result's size, resampled
// ones, constants. Of a maximum, all as they are given.
inline void set_order(GatherParams& params) {
  const auto stage = [&](const Branch& branch) {
    if (params.reduction == Reduction::kMax || is_identity(branch)) return 0;
    return is_constant(branch) ? 2 : 1;
  };
  int count = 0;
  for (int s = 0; s < 3; ++s) {
    for (int b = 0; b < params.num_branches; ++b) {
      if (stage(params.branches[b]) == s) params.order[count++] = static_cast<int8_t>(b);
    }
  }
}

// Whether a call has only what the plain kernels of EXPAND know.
inline bool is_plain(const GatherParams& params) {
  const Weights& weights = params.weights;
  if (weights.data && (!weights.per_branch() || weights.count != params.num_branches)) return false;
  for (int b = 0; b < params.num_branches; ++b) {
    for (const Axis& axis : params.branches[b].axis)
      if (axis.transposed || is_windowed(axis.rule)) return false;
  }
  return params.reduction == Reduction::kSum && params.activation <= Activation::kRelu &&
         params.dense && !params.accumulate && !params.pixel_weights.data && !params.grad &&
         params.gate_off == 0;
}

// spread: branch_i = R_i^T(weight_i * gate_i * grad). The branches' maps are what is written.
struct SpreadParams {
  Branch branches[kMaxBranches];
  const void* inputs[kMaxBranches];  // forward values x_i for the gradients of weights, or null
  int64_t input_stride[kMaxBranches][kDims];
  DType input_dtype[kMaxBranches];
  int32_t num_branches;
  Map grad;  // any strides; channels_last tells the order of the gate's bits
  Weights weights;
  PixelWeights pixel_weights;
  const uint8_t* gate;  // as in GatherParams
  int64_t gate_stride;  // bytes between the gates of the branches of a maximum, else 0
  double gate_off;
  const void* index[kMaxBranches];  // as in GatherParams, in the order of the gate's bits
  bool wide_index[kMaxBranches];
  double* partial_dots;  // parts of the weights' gradients (spread_blocks.h), or null
  int64_t part_begin[kMaxBranches + 1];  // those of branch i: [part_begin[i], part_begin[i + 1])
  // Blocks of the general kernel for each branch: [block_begin[i], block_begin[i + 1]).
  int64_t block_begin[kMaxBranches + 1];
};

}  // namespace msr
