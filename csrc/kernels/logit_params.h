// What the kernels of losses and decisions of resampled logits are told. Plain data.
#pragma once

#include <cstdint>

#include "params.h"

namespace msr {

// Logits, and the map that they are resampled to, which is never written.
struct LogitParams {
  Map logits;  // any strides
  Axis axis[kSpatialDims];
  int64_t size[kSpatialDims];  // D, H, W of the result
};

enum class IndexType : int32_t { kUint8, kInt16, kInt32, kInt64 };

enum class LossReduction : int32_t { kNone, kMean, kSum };

// Class indices or probabilities, read where they lie.
struct Target {
  const void* data;
  int64_t stride[kDims];  // of indices the second is 0
  bool probabilities;
  IndexType index_type;
  DType dtype;  // of probabilities
};

// What a kernel leaves for the host to find, in memory that both see: that a target was neither a
// class nor ignored, and the last one that was not.
struct BadTarget {
  int64_t index;
  int64_t seen;  // 0 or 1
};

// With v the resampled logits, p their softmax over the C classes, w the classes' weights and e the
// label smoothing, the loss of a pixel of class t is
//   (1 - e) w_t (lse(v) - v_t) + e / C sum_c w_c (lse(v) - v_c)
// and for probabilities q, sum_c w_c ((1 - e) q_c + e / C) (lse(v) - v_c).
struct CrossEntropyParams {
  LogitParams logits;
  Target target;
  const void* weight;  // [C] of the accumulation type, or null
  int64_t ignore_index;
  double label_smoothing;
  LossReduction reduction;
  void* loss;  // of the accumulation type: [N, D, H, W] without reduction, else null
  void* lse;   // log-sum-exp [N, D, H, W]
  // Of probabilities: sum_c w_c ((1 - e) q_c + e / C), [N, D, H, W].
  void* target_sums;
  BadTarget* bad_target;  // of GPUs; or null
};

struct CrossEntropyBackwardParams {
  CrossEntropyParams forward;  // with what it saved
  const void* grad;            // of the accumulation type, with strides as Target's
  int64_t grad_stride[kDims];
  Map logit_grads;  // dense
};

// What is given for every resampled logit, broadcast by strides of 0.
struct LogitFactors {
  const void* data;  // or null: one
  int64_t stride[kDims];
  bool bytes;  // uint8 or bool; else
  DType dtype;
};

// With v a resampled logit, t its target, w its weight and q the factor of its positive part, its
// loss is w ((1 - t) v + (1 + (q - 1) t) log(1 + exp(-v))).
struct BinaryParams {
  LogitParams logits;
  LogitFactors target, weight, pos_weight;
  void* loss;  // of the accumulation type: [N, C, D, H, W], or null
  // Of the gradient:
  LogitFactors grad;
  Map logit_grads;  // dense
};

struct ArgmaxParams {
  LogitParams logits;
  void* index;  // [N, D, H, W]
  IndexType index_type;
  void* probability;  // of the accumulation type, or null
};

}  // namespace msr
