// Binary cross entropy of resampled logits, and the gradient of the logits. Any strides, rank,
// element types, taps and number of channels. Forward: a thread for some channels of one pixel.
// Backward: logit_grads.cuh.
#pragma once

#include "block_sum.cuh"
#include "logit_device.cuh"
#include "logit_grads.cuh"

namespace msr {

// What is given for some channels of a pixel, whose first one is p.c: elements of the accumulation
// type, ones where there is nothing.
template <typename acc_t>
__device__ __forceinline__ void read_factors(const LogitFactors& factors, const Position& p,
                                             int count, acc_t (&values)[kClassesAtOnce]) {
  if (factors.data) {
    const int64_t offset = offset_in(factors.stride, p);
    return read_classes(static_cast<const acc_t*>(factors.data) + offset, factors.stride[1], count,
                        values);
  }
#pragma unroll
  for (acc_t& value : values) value = 1;
}

// Targets, of any type.
template <typename acc_t>
__device__ __forceinline__ void read_targets(const LogitFactors& given, const Position& p,
                                             int count, acc_t (&values)[kClassesAtOnce]) {
  const int64_t offset = offset_in(given.stride, p), stride = given.stride[1];
  if (given.bytes)
    return read_classes(static_cast<const uint8_t*>(given.data) + offset, stride, count, values);
  read_classes(given.data, given.dtype, offset, stride, count, values);
}

// What the positive parts count.
template <typename acc_t>
__device__ __forceinline__ void read_positive(const BinaryParams& params, const Position& p,
                                              int count, const acc_t (&targets)[kClassesAtOnce],
                                              acc_t (&values)[kClassesAtOnce]) {
  read_factors(params.pos_weight, p, count, values);
#pragma unroll
  for (int k = 0; k < kClassesAtOnce; ++k)
    values[k] = fma(values[k] - acc_t(1), targets[k], acc_t(1));
}

template <typename acc_t>
__device__ __forceinline__ void multiply(const LogitFactors& factors, const Position& p, int count,
                                         acc_t (&values)[kClassesAtOnce]) {
  if (!factors.data) return;
  acc_t factor[kClassesAtOnce];
  read_factors(factors, p, count, factor);
#pragma unroll
  for (int k = 0; k < kClassesAtOnce; ++k) values[k] *= factor[k];
}

// Turns resampled logits of a pixel, whose first channel is p.c, into their losses.
template <typename acc_t>
__device__ __forceinline__ void binary_losses(const BinaryParams& params, const Position& p,
                                              int count, acc_t (&values)[kClassesAtOnce]) {
  acc_t target[kClassesAtOnce], positive[kClassesAtOnce];
  read_targets(params.target, p, count, target);
  read_positive(params, p, count, target, positive);
#pragma unroll
  for (int k = 0; k < kClassesAtOnce; ++k) {
    const acc_t value = values[k], magnitude = value < 0 ? -value : value;
    const acc_t softplus = log1p_of(exp_of(-magnitude)) + (value < 0 ? magnitude : acc_t(0));
    values[k] = (1 - target[k]) * value + positive[k] * softplus;
  }
  multiply(params.weight, p, count, values);
}

// parts: of each block, or null.
template <typename T>
__global__ void __launch_bounds__(kLogitThreads, blocks_at_once<logit_sum_t<T>>())
    binary_cross_entropy_kernel(BinaryParams params, LogitGrid grid, LossPart* parts) {
  using acc_t = logit_sum_t<T>;
  __shared__ double shared[kLogitThreads];
  const LogitParams& logits = params.logits;
  const int64_t total = numel(grid.places), channels = logits.logits.size[1];
  const int64_t pixels = logits.size[0] * logits.size[1] * logits.size[2];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kLogitThreads;
  double losses = 0;
  acc_t values[kClassesAtOnce];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLogitThreads + threadIdx.x; i < total;
       i += step) {
    Position p = position_of(grid.places, i);
    p.c *= kClassesAtOnce;
    const int count = classes_in(logits, p.c);
    read_logits<T>(logits, p.n, LogitTaps<acc_t>(logits, grid, 0, p.at[0]),
                   LogitTaps<acc_t>(logits, grid, 1, p.at[1]),
                   LogitTaps<acc_t>(logits, grid, 2, p.at[2]), p.c, count, values);
    binary_losses(params, p, count, values);
    const int64_t pixel = pixel_offset(logits, 0, p.at[0], p.at[1], p.at[2]);
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k) {
      if (k >= count) continue;
      if (params.loss)
        static_cast<acc_t*>(params.loss)[(p.n * channels + p.c + k) * pixels + pixel] = values[k];
      losses += static_cast<double>(values[k]);
    }
  }
  if (!parts) return;
  losses = block_sum<kLogitThreads>(shared, losses);
  if (threadIdx.x == 0) parts[blockIdx.x] = {losses, 0};
}

// Turns resampled logits of a pixel into their gradients.
template <typename acc_t>
struct BinaryPixel {
  const BinaryParams& params;

  __device__ __forceinline__ void operator()(Position p, int64_t first, int count,
                                             acc_t (&values)[kClassesAtOnce]) const {
    p.c = first;
    acc_t target[kClassesAtOnce], positive[kClassesAtOnce];
    read_targets(params.target, p, count, target);
    read_positive(params, p, count, target, positive);
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k)
      values[k] = (1 - target[k]) - positive[k] * sigmoid_of(-values[k]);
    multiply(params.weight, p, count, values);
    multiply(params.grad, p, count, values);
  }
};

template <typename T>
__global__ void __launch_bounds__(kLogitThreads, blocks_at_once<logit_sum_t<T>>())
    binary_cross_entropy_backward_kernel(BinaryParams params, LogitGrid grid) {
  using acc_t = logit_sum_t<T>;
  gather_all<T, acc_t>(params.logits, grid, BinaryPixel<acc_t>{params}, params.logit_grads);
}

template <typename T>
__global__ void __launch_bounds__(kStripThreads, strip_blocks_at_once<logit_sum_t<T>>())
    binary_cross_entropy_strips_kernel(BinaryParams params, LogitGrid grid, StripPlan plan) {
  using acc_t = logit_sum_t<T>;
  walk_all<T, acc_t>(params.logits, grid, plan, BinaryPixel<acc_t>{params}, params.logit_grads);
}

}  // namespace msr
