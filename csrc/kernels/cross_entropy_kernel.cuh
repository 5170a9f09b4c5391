// Cross entropy of resampled logits, and the gradient of the logits. Any strides, rank, element
// types, taps and number of classes. Forward: a thread for each pixel, which walks the classes.
// Backward: logit_grads.cuh.
#pragma once

#include "block_sum.cuh"
#include "logit_device.cuh"
#include "logit_grads.cuh"

namespace msr {

// The element `offset` of class indices.
MSR_HOST_DEVICE int64_t load_index(const Target& target, int64_t offset) {
  switch (target.index_type) {
    case IndexType::kUint8:
      return static_cast<const uint8_t*>(target.data)[offset];
    case IndexType::kInt16:
      return static_cast<const int16_t*>(target.data)[offset];
    case IndexType::kInt32:
      return static_cast<const int32_t*>(target.data)[offset];
    case IndexType::kInt64:
      break;
  }
  return static_cast<const int64_t*>(target.data)[offset];
}

// What both passes know of targets and weights.
template <typename acc_t>
class CrossEntropyTerms {
 public:
  __device__ explicit CrossEntropyTerms(const CrossEntropyParams& params)
      : params_(params),
        smoothing_(static_cast<acc_t>(params.label_smoothing)),
        of_each_(static_cast<acc_t>(params.label_smoothing /
                                    static_cast<double>(params.logits.logits.size[1]))) {}

  __device__ bool smooths() const { return smoothing_ != 0; }
  __device__ bool is_soft() const { return params_.target.probabilities; }
  __device__ acc_t weight(int64_t c) const {
    return params_.weight ? static_cast<const acc_t*>(params_.weight)[c] : acc_t(1);
  }
  // Of the target's own class or probability; of every class besides, from the smoothing.
  __device__ acc_t of_target() const { return 1 - smoothing_; }
  __device__ acc_t of_each() const { return of_each_; }

  // The class of a pixel; kIgnored, or kBad where there is none.
  static constexpr int64_t kIgnored = -1, kBad = -2;
  __device__ int64_t class_at(const Position& p) const {
    const int64_t index = index_at(p);
    if (index == params_.ignore_index) return kIgnored;
    return index >= 0 && index < params_.logits.logits.size[1] ? index : kBad;
  }
  __device__ int64_t index_at(const Position& p) const {
    return load_index(params_.target, offset_in(params_.target.stride, p));
  }

  // What classes [first, first + count) of a pixel count in its loss, besides its own class: from
  // probabilities and smoothing. p.c is zero.
  __device__ void read_shares(const Position& p, int64_t first, int count,
                              acc_t (&shares)[kClassesAtOnce]) const {
    const Target& target = params_.target;
    if (is_soft()) {
      read_classes(target.data, target.dtype,
                   offset_in(target.stride, p) + first * target.stride[1], target.stride[1], count,
                   shares);
    }
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k) {
      shares[k] = is_soft() ? fma(of_target(), shares[k], of_each()) : of_each();
      if (params_.weight && k < count) shares[k] *= weight(first + k);
    }
  }

  // The sum of all weights; the whole block calls it.
  template <int kThreads>
  __device__ acc_t weight_sum(double* shared) const {
    const int64_t classes = params_.logits.logits.size[1];
    if (!params_.weight) return static_cast<acc_t>(classes);
    double sum = 0;
    for (int64_t c = threadIdx.x; c < classes; c += kThreads) sum += static_cast<double>(weight(c));
    return static_cast<acc_t>(block_sum<kThreads>(shared, sum));
  }

 private:
  const CrossEntropyParams& params_;
  const acc_t smoothing_, of_each_;
};

// The loss of one pixel, and what a mean counts it as.
template <typename acc_t>
struct PixelLoss {
  acc_t loss, weight;
};

template <typename T, typename acc_t>
__device__ PixelLoss<acc_t> cross_entropy_at(const CrossEntropyParams& params,
                                             const LogitGrid& grid,
                                             const CrossEntropyTerms<acc_t>& terms,
                                             const Position& p) {
  const LogitParams& logits = params.logits;
  const LogitTaps<acc_t> depth(logits, grid, 0, p.at[0]);
  const LogitTaps<acc_t> rows(logits, grid, 1, p.at[1]);
  const LogitTaps<acc_t> columns(logits, grid, 2, p.at[2]);
  const bool soft = terms.is_soft(), smooths = terms.smooths();
  const int64_t own = soft ? 0 : terms.class_at(p);
  OnlineSum<acc_t> sum;
  // weighted and shares: the sums of what each class counts, times its logit and alone.
  acc_t picked = 0, weighted = 0, shares = 0;
  acc_t values[kClassesAtOnce];
  for (int64_t first = 0; first < logits.logits.size[1]; first += kClassesAtOnce) {
    const int count = classes_in(logits, first);
    read_logits<T>(logits, p.n, depth, rows, columns, first, count, values);
    sum.add(values, count);
    if (soft || smooths) {
      acc_t share[kClassesAtOnce];
      terms.read_shares(p, first, count, share);
#pragma unroll
      for (int k = 0; k < kClassesAtOnce; ++k) {
        if (k >= count) continue;
        weighted = fma(share[k], values[k], weighted);
        shares += share[k];
      }
    }
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k)
      if (own == first + k) picked = values[k];
  }
  const acc_t lse = sum.logarithm();
  const int64_t offset = pixel_offset(logits, p.n, p.at[0], p.at[1], p.at[2]);
  static_cast<acc_t*>(params.lse)[offset] = lse;
  if (soft) {
    static_cast<acc_t*>(params.target_sums)[offset] = shares;
    return {lse * shares - weighted, 1};
  }
  if (own == CrossEntropyTerms<acc_t>::kIgnored) return {0, 0};
  if (own == CrossEntropyTerms<acc_t>::kBad) {
    if (params.bad_target) {
      volatile BadTarget* const bad = params.bad_target;
      bad->index = terms.index_at(p);
      __threadfence_system();
      bad->seen = 1;
    }
    return {std::numeric_limits<acc_t>::quiet_NaN(), 0};
  }
  const acc_t weight = terms.weight(own);
  acc_t loss = terms.of_target() * weight * (lse - picked);
  if (smooths) loss += lse * shares - weighted;
  return {loss, weight};
}

// parts: of each block, or null.
template <typename T>
__global__ void __launch_bounds__(kLogitThreads, blocks_at_once<logit_sum_t<T>>())
    cross_entropy_kernel(CrossEntropyParams params, LogitGrid grid, LossPart* parts) {
  using acc_t = logit_sum_t<T>;
  __shared__ double shared[kLogitThreads];
  const CrossEntropyTerms<acc_t> terms(params);
  const int64_t total = numel(grid.places);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kLogitThreads;
  double losses = 0, weights = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLogitThreads + threadIdx.x; i < total;
       i += step) {
    const auto found = cross_entropy_at<T>(params, grid, terms, position_of(grid.places, i));
    if (params.loss) static_cast<acc_t*>(params.loss)[i] = found.loss;
    losses += static_cast<double>(found.loss);
    weights += static_cast<double>(found.weight);
  }
  if (!parts) return;
  losses = block_sum<kLogitThreads>(shared, losses);
  weights = block_sum<kLogitThreads>(shared, weights);
  if (threadIdx.x == 0) parts[blockIdx.x] = {losses, weights};
}

// What a pixel's gradients have in common: of class c it is
// of_all softmax_c - grad share_c - (c is its own) of_own.
template <typename acc_t>
struct PixelGrad {
  acc_t grad, lse, of_all, of_own;
  int64_t own;
};

template <typename acc_t>
__device__ PixelGrad<acc_t> pixel_grad(const CrossEntropyBackwardParams& params,
                                       const CrossEntropyTerms<acc_t>& terms, const Position& p,
                                       acc_t weight_sum) {
  const int64_t offset = pixel_offset(params.forward.logits, p.n, p.at[0], p.at[1], p.at[2]);
  PixelGrad<acc_t> found;
  found.grad = static_cast<const acc_t*>(params.grad)[offset_in(params.grad_stride, p)];
  found.lse = static_cast<const acc_t*>(params.forward.lse)[offset];
  found.own = CrossEntropyTerms<acc_t>::kIgnored;
  found.of_own = 0;
  if (terms.is_soft()) {
    found.of_all = found.grad * static_cast<const acc_t*>(params.forward.target_sums)[offset];
  } else {
    found.own = terms.class_at(p);
    if (found.own == CrossEntropyTerms<acc_t>::kIgnored) found.grad = 0;
    // Of a loss that is NaN, so is the gradient.
    if (found.own == CrossEntropyTerms<acc_t>::kBad)
      found.grad = std::numeric_limits<acc_t>::quiet_NaN();
    if (found.own >= 0) found.of_own = found.grad * terms.of_target() * terms.weight(found.own);
    found.of_all = fma(found.grad, terms.of_each() * weight_sum, found.of_own);
  }
  return found;
}

// Turns resampled logits of a pixel into their gradients.
template <typename acc_t>
struct CrossEntropyPixel {
  const CrossEntropyBackwardParams& params;
  const CrossEntropyTerms<acc_t>& terms;
  const acc_t weight_sum;

  __device__ __forceinline__ void operator()(const Position& p, int64_t first, int count,
                                             acc_t (&values)[kClassesAtOnce]) const {
    const PixelGrad<acc_t> pixel = pixel_grad(params, terms, p, weight_sum);
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k)
      if (k < count) values[k] = pixel.of_all * exp_of(values[k] - pixel.lse);
    if (terms.is_soft() || terms.smooths()) {
      acc_t share[kClassesAtOnce];
      terms.read_shares(p, first, count, share);
#pragma unroll
      for (int k = 0; k < kClassesAtOnce; ++k)
        if (k < count) values[k] -= pixel.grad * share[k];
    }
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k)
      if (pixel.own == first + k) values[k] -= pixel.of_own;
  }
};

template <typename T>
__global__ void __launch_bounds__(kLogitThreads, blocks_at_once<logit_sum_t<T>>())
    cross_entropy_backward_kernel(CrossEntropyBackwardParams params, LogitGrid grid) {
  using acc_t = logit_sum_t<T>;
  __shared__ double shared[kLogitThreads];
  const CrossEntropyTerms<acc_t> terms(params.forward);
  const CrossEntropyPixel<acc_t> pixel{
      params, terms, terms.smooths() ? terms.template weight_sum<kLogitThreads>(shared) : acc_t(0)};
  gather_all<T, acc_t>(params.forward.logits, grid, pixel, params.logit_grads);
}

template <typename T>
__global__ void __launch_bounds__(kStripThreads, strip_blocks_at_once<logit_sum_t<T>>())
    cross_entropy_strips_kernel(CrossEntropyBackwardParams params, LogitGrid grid, StripPlan plan) {
  using acc_t = logit_sum_t<T>;
  __shared__ double shared[kStripThreads];
  const CrossEntropyTerms<acc_t> terms(params.forward);
  const CrossEntropyPixel<acc_t> pixel{
      params, terms, terms.smooths() ? terms.template weight_sum<kStripThreads>(shared) : acc_t(0)};
  walk_all<T, acc_t>(params.forward.logits, grid, plan, pixel, params.logit_grads);
}

}  // namespace msr
