#include "cross_entropy_kernel.cuh"
#include "logit_launch.cuh"

namespace msr {
namespace {

template <typename T>
void start(const CrossEntropyParams& params, const LogitGrid& grid, bool columns, dim3 blocks,
           LossPart* parts, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (columns) {
    MSR_LAUNCH(cross_entropy_columns_kernel<T>, blocks, dim3(kColumnThreads), 0, cuda_stream,
               params, grid, parts);
  } else {
    MSR_LAUNCH(cross_entropy_kernel<T>, blocks, dim3(kLogitThreads), 0, cuda_stream, params, grid,
               parts);
  }
}

template <typename T>
void start_backward(const CrossEntropyBackwardParams& params, const LogitGrid& grid,
                    const StripPlan& plan, bool strips, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (strips) {
    MSR_LAUNCH(cross_entropy_strips_kernel<T>, blocks_of(plan), dim3(kStripThreads), 0, cuda_stream,
               params, grid, plan);
  } else {
    MSR_LAUNCH(cross_entropy_backward_kernel<T>, blocks_of(grid), dim3(kLogitThreads), 0,
               cuda_stream, params, grid);
  }
}

}  // namespace

const char* launch_cross_entropy(const CrossEntropyParams& params, const LossTotals& totals,
                                 void* workspace, void* stream, const LogitChoice& choice) {
  LogitGrid grid;
  const char* error = plan_logits(params.logits, LogitPass::kLoss, 1, workspace, stream, grid);
  if (error) return error;
  auto* const parts = totals.loss ? static_cast<LossPart*>(workspace) : nullptr;
  const bool columns = !params.target.probabilities && use_columns(params.logits, choice, grid);
  const dim3 blocks = columns ? blocks_of_columns(grid) : blocks_of(grid);
  if (blocks.x > 0) {
    with_logit_type(params.logits, [&](auto number) {
      start<decltype(number)>(params, grid, columns, blocks, parts, stream);
    });
    if ((error = last_logit_error())) return error;
  }
  const double divisor = params.reduction == LossReduction::kMean ? 0 : 1;
  return launch_loss_totals(parts, totals.loss ? blocks.x : 0, divisor,
                            sums_in_double(params.logits), totals, stream);
}

const char* launch_cross_entropy_backward(const CrossEntropyBackwardParams& params, void* workspace,
                                          void* stream, const LogitChoice& choice) {
  const LogitParams& logits = params.forward.logits;
  LogitGrid grid;
  const char* error =
      plan_logits(logits, LogitPass::kBackward, class_blocks_of(logits), workspace, stream, grid);
  if (error || numel(grid.places) == 0) return error;
  grid.places.channels_last = params.logit_grads.channels_last;
  const bool strips = choice.way != LogitWay::kGeneral && has_pairs(logits);
  const StripPlan plan = plan_strips(logits, choice.rows);
  with_logit_type(logits, [&](auto number) {
    start_backward<decltype(number)>(params, grid, plan, strips, stream);
  });
  return last_logit_error();
}

}  // namespace msr
