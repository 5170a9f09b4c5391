// What the kernels are told. Plain data, passed to CUDA kernels by value.
//
// Every map is [N, C, D, H, W]: one- and two-dimensional maps have leading spatial axes of size 1.
// Strides are in elements; an axis that is broadcast has stride 0.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "resample_math.h"

namespace msr {

constexpr int kMaxInputs = 8;
constexpr int kDims = 5;         // N, C, D, H, W
constexpr int kSpatialDims = 3;  // D, H, W

// The numbers are those of msr_cuda/_spec.py.
enum class Activation : int32_t { kNone = 0, kRelu = 1 };

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
  Axis axis[kSpatialDims];  // in_size: of this map; out_size: of the common map
  int64_t channel_begin;    // first channel of its slice of the common map (0 in sums)
};

MSR_HOST_DEVICE bool is_identity(const Branch& branch) {
  return branch.axis[0].rule == Rule::kIdentity && branch.axis[1].rule == Rule::kIdentity &&
         branch.axis[2].rule == Rule::kIdentity;
}

// gather-sum: out = act(sum_i weight_i * R_i(branch_i)), per channel slice for concatenation.
struct GatherParams {
  Branch branches[kMaxInputs];
  int32_t num_branches;
  Activation activation;
  Map out;              // dense
  const void* weights;  // [num_branches] of the accumulation type, or null: all one
  const uint8_t* gate;  // or null; elements whose bit is 0 become 0
  uint8_t* mask;  // or null; receives !(z <= 0) of every element's value before the activation
};

// spread: branch_i = weight_i * R_i^T(gate * grad). The branches' maps are what is written.
struct SpreadParams {
  Branch branches[kMaxInputs];
  const void* inputs[kMaxInputs];  // forward values x_i for the gradient of the weights, or null
  int64_t input_stride[kMaxInputs][kDims];
  DType input_dtype[kMaxInputs];
  int32_t num_branches;
  Map grad;             // any strides; channels_last tells the order of the gate's bits
  const void* weights;  // as in GatherParams
  const uint8_t* gate;
  double* partial_dots;  // [sum of blocks]: parts of <R_i^T(gate * grad), x_i>, or null
  // Which part of the work belongs to which branch: blocks [block_begin[i], block_begin[i + 1]).
  int64_t block_begin[kMaxInputs + 1];
};

}  // namespace msr
