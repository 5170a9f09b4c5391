// Cross entropy of resampled logits, and the gradient of the logits. Any strides, rank, element
// types, taps and number of classes. Forward: a thread for each pixel, which walks the classes.
// Backward: logit_grads.cuh.
#pragma once

#include "block_sum.cuh"
#include "logit_columns.cuh"
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
  // probabilities (if kMayBeSoft) and smoothing. p.c is zero.
  template <bool kMayBeSoft>
  __device__ void read_shares(const Position& p, int64_t first, int count,
                              acc_t (&shares)[kClassesAtOnce]) const {
    const Target& target = params_.target;
    const bool soft = kMayBeSoft && is_soft();
    if (soft) {
      read_classes(target.data, target.dtype,
                   offset_in(target.stride, p) + first * target.stride[1], target.stride[1], count,
                   shares);
    }
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k) {
      shares[k] = soft ? fma(of_target(), shares[k], of_each()) : of_each();
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

// What is known of a pixel while its classes are walked.
template <typename acc_t, bool kMayBeSoft>
class CrossEntropySum {
 public:
  __device__ void begin(const CrossEntropyTerms<acc_t>& terms, const Position& p) {
    if (!is_soft(terms)) own_ = terms.class_at(p);
  }

  // Resampled logits of classes [first, first + count).
  __device__ __forceinline__ void add(const CrossEntropyTerms<acc_t>& terms, const Position& p,
                                      int64_t first, int count,
                                      const acc_t (&values)[kClassesAtOnce]) {
    sum_.add(values, count);
    if (is_soft(terms) || terms.smooths()) {
      acc_t share[kClassesAtOnce];
      terms.template read_shares<kMayBeSoft>(p, first, count, share);
#pragma unroll
      for (int k = 0; k < kClassesAtOnce; ++k) {
        if (k >= count) continue;
        weighted_ = fma(share[k], values[k], weighted_);
        shares_ += share[k];
      }
    }
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k)
      if (own_ == first + k) picked_ = values[k];
  }

  // After all classes: writes what belongs to the pixel.
  __device__ __forceinline__ PixelLoss<acc_t> end(const CrossEntropyParams& params,
                                                  const CrossEntropyTerms<acc_t>& terms,
                                                  const Position& p) const {
    using Terms = CrossEntropyTerms<acc_t>;
    const int64_t offset = pixel_offset(params.logits, p.n, p.at[0], p.at[1], p.at[2]);
    const acc_t lse = sum_.logarithm();
    static_cast<acc_t*>(params.lse)[offset] = lse;
    PixelLoss<acc_t> found{0, 0};
    if (is_soft(terms)) {
      static_cast<acc_t*>(params.target_sums)[offset] = shares_;
      found = {lse * shares_ - weighted_, 1};
    } else if (own_ == Terms::kBad) {
      if (params.bad_target) {
        volatile BadTarget* const bad = params.bad_target;
        bad->index = terms.index_at(p);
        __threadfence_system();
        bad->seen = 1;
      }
      found.loss = std::numeric_limits<acc_t>::quiet_NaN();
    } else if (own_ != Terms::kIgnored) {
      found.weight = terms.weight(own_);
      found.loss = terms.of_target() * found.weight * (lse - picked_);
      if (terms.smooths()) found.loss += lse * shares_ - weighted_;
    }
    if (params.loss) static_cast<acc_t*>(params.loss)[offset] = found.loss;
    return found;
  }

 private:
  __device__ static bool is_soft(const CrossEntropyTerms<acc_t>& terms) {
    return kMayBeSoft && terms.is_soft();
  }

  int64_t own_ = CrossEntropyTerms<acc_t>::kIgnored;
  OnlineSum<acc_t> sum_;
  // weighted and shares: the sums of what each class counts, times its logit and alone.
  acc_t picked_ = 0, weighted_ = 0, shares_ = 0;
};

// What the pixels of a thread, then those of its block, lose.
template <typename acc_t>
struct LossSum {
  double loss = 0, weight = 0;

  __device__ void add(const PixelLoss<acc_t>& pixel) {
    loss += static_cast<double>(pixel.loss);
    weight += static_cast<double>(pixel.weight);
  }
  // The whole block calls it. parts: of each block, or null.
  template <int kThreads>
  __device__ void store(double* shared, LossPart* parts) const {
    if (!parts) return;
    const double losses = block_sum<kThreads>(shared, loss);
    const double weights = block_sum<kThreads>(shared, weight);
    if (threadIdx.x == 0) parts[blockIdx.x] = {losses, weights};
  }
};

template <typename T>
__global__ void __launch_bounds__(kLogitThreads, blocks_at_once<logit_sum_t<T>>())
    cross_entropy_kernel(CrossEntropyParams params, LogitGrid grid, LossPart* parts) {
  using acc_t = logit_sum_t<T>;
  __shared__ double shared[kLogitThreads];
  const LogitParams& logits = params.logits;
  const CrossEntropyTerms<acc_t> terms(params);
  const int64_t total = numel(grid.places);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kLogitThreads;
  LossSum<acc_t> losses;
  acc_t values[kClassesAtOnce];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLogitThreads + threadIdx.x; i < total;
       i += step) {
    const Position p = position_of(grid.places, i);
    const LogitTaps<acc_t> depth(logits, grid, 0, p.at[0]);
    const LogitTaps<acc_t> rows(logits, grid, 1, p.at[1]);
    const LogitTaps<acc_t> columns(logits, grid, 2, p.at[2]);
    CrossEntropySum<acc_t, /*kMayBeSoft=*/true> sum;
    sum.begin(terms, p);
    for (int64_t first = 0; first < logits.logits.size[1]; first += kClassesAtOnce) {
      const int count = classes_in(logits, first);
      read_logits<T>(logits, p.n, depth, rows, columns, first, count, values);
      sum.add(terms, p, first, count, values);
    }
    losses.add(sum.end(params, terms, p));
  }
  losses.template store<kLogitThreads>(shared, parts);
}

// The losses of class indices, by columns.
template <typename T, typename acc_t>
__device__ __forceinline__ LossSum<acc_t> cross_entropy_of_columns(const CrossEntropyParams& params,
                                                                   const LogitGrid& grid) {
  const CrossEntropyTerms<acc_t> terms(params);
  LossSum<acc_t> losses;
  for_each_column(params.logits, grid, [&](const PixelColumn& column) {
    CrossEntropySum<acc_t, /*kMayBeSoft=*/false> sums[kColumnRows];
#pragma unroll
    for (int r = 0; r < kColumnRows; ++r)
      if (column.has(r)) sums[r].begin(terms, column.at(r));
    visit_column<T, acc_t>(params.logits, grid, column,
                           [&](int r, int64_t first, int count, const auto& values) {
                             sums[r].add(terms, column.at(r), first, count, values);
                           });
#pragma unroll
    for (int r = 0; r < kColumnRows; ++r)
      if (column.has(r)) losses.add(sums[r].end(params, terms, column.at(r)));
  });
  return losses;
}

template <typename T>
__global__ void __launch_bounds__(kColumnThreads, column_blocks_at_once<logit_sum_t<T>>())
    cross_entropy_columns_kernel(CrossEntropyParams params, LogitGrid grid, LossPart* parts) {
  __shared__ double shared[kColumnThreads];
  const auto losses = cross_entropy_of_columns<T, logit_sum_t<T>>(params, grid);
  losses.template store<kColumnThreads>(shared, parts);
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
      terms.template read_shares<true>(p, first, count, share);
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
