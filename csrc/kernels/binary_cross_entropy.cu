#include "binary_cross_entropy_kernel.cuh"
#include "logit_launch.cuh"

namespace msr {
namespace {

template <typename T>
void start(const BinaryParams& params, const LogitGrid& grid, LossPart* parts, void* stream) {
  MSR_LAUNCH(binary_cross_entropy_kernel<T>, blocks_of(grid), dim3(kLogitThreads), 0,
             static_cast<cudaStream_t>(stream), params, grid, parts);
}

template <typename T>
void start_backward(const BinaryParams& params, const LogitGrid& grid, const StripPlan& plan,
                    bool strips, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (strips) {
    MSR_LAUNCH(binary_cross_entropy_strips_kernel<T>, blocks_of(plan), dim3(kStripThreads), 0,
               cuda_stream, params, grid, plan);
  } else {
    MSR_LAUNCH(binary_cross_entropy_backward_kernel<T>, blocks_of(grid), dim3(kLogitThreads), 0,
               cuda_stream, params, grid);
  }
}

}  // namespace

const char* launch_binary_cross_entropy(const BinaryParams& params, LossReduction reduction,
                                        const LossTotals& totals, void* workspace, void* stream) {
  const LogitParams& logits = params.logits;
  LogitGrid grid;
  const char* error =
      plan_logits(logits, LogitPass::kLoss, class_blocks_of(logits), workspace, stream, grid);
  if (error) return error;
  auto* const parts = totals.loss ? static_cast<LossPart*>(workspace) : nullptr;
  const int64_t blocks = blocks_of(grid).x;
  if (blocks > 0) {
    with_logit_type(logits,
                    [&](auto number) { start<decltype(number)>(params, grid, parts, stream); });
    if ((error = last_logit_error())) return error;
  }
  if (!totals.loss) return nullptr;
  double divisor = 1;
  if (reduction == LossReduction::kMean) {
    divisor = static_cast<double>(logits.logits.size[0] * logits.logits.size[1]);
    for (const int64_t size : logits.size) divisor *= static_cast<double>(size);
  }
  // The mean of nothing is divided by the sum of its weights: NaN.
  return launch_loss_totals(parts, blocks, divisor, sums_in_double(logits), totals, stream);
}

const char* launch_binary_cross_entropy_backward(const BinaryParams& params, void* workspace,
                                                 void* stream, const LogitChoice& choice) {
  LogitGrid grid;
  const char* error = plan_logits(params.logits, LogitPass::kBackward,
                                  class_blocks_of(params.logits), workspace, stream, grid);
  if (error || numel(grid.places) == 0) return error;
  grid.places.channels_last = params.logit_grads.channels_last;
  const bool strips = choice.way != LogitWay::kGeneral && has_pairs(params.logits);
  const StripPlan plan = plan_strips(params.logits, choice.rows);
  with_logit_type(params.logits, [&](auto number) {
    start_backward<decltype(number)>(params, grid, plan, strips, stream);
  });
  return last_logit_error();
}

}  // namespace msr
