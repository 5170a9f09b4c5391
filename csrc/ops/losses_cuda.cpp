#include <torch/csrc/stable/ops.h>

#include "../kernels/loss_launch.h"
#include "bad_targets.h"
#include "cuda_guard.h"
#include "losses.h"

namespace msr {
namespace {

// Raises what kernels that have run met. It does not wait for those that have not.
void check_targets(int64_t device) {
  int64_t index;
  STD_TORCH_CHECK(!BadTargets::instance().take(static_cast<int32_t>(device), index),
                  "resample_cross_entropy: an earlier call on cuda:", device,
                  " had a target that is neither a class nor ignore_index: ", index,
                  "; its loss was NaN");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy(Tensor logits, Tensor target,
                                                         std::optional<Tensor> weight, int64_t spec,
                                                         int64_t ignore_index,
                                                         double label_smoothing,
                                                         int64_t reduction) {
  const CudaGuard guard(logits);
  check_targets(logits.get_device_index());
  auto call = prepare_cross_entropy(
      {logits, target, weight, spec, ignore_index, label_smoothing, reduction});
  CrossEntropyParams& params = call.params;
  params.bad_target = BadTargets::instance().of_device(logits.get_device_index());
  const bool reduces = params.reduction != LossReduction::kNone;
  const LossTotals totals{reduces ? call.tensors[0].mutable_data_ptr() : nullptr,
                          call.tensors[3].mutable_data_ptr()};
  const Workspace workspace(workspace_bytes(params.logits, LogitPass::kLoss), logits);
  check_launch("msr_cuda::cross_entropy",
               launch_cross_entropy(params, totals, workspace.data(), guard.stream()));
  return {call.tensors[0], call.tensors[1], call.tensors[2], call.tensors[3]};
}

Tensor cross_entropy_backward(Tensor grad, Tensor logits, Tensor target,
                              std::optional<Tensor> weight, Tensor lse, Tensor target_sums,
                              int64_t spec, int64_t ignore_index, double label_smoothing) {
  const CudaGuard guard(logits);
  const auto call = prepare_cross_entropy_backward(
      grad, lse, target_sums, {logits, target, weight, spec, ignore_index, label_smoothing, 0});
  const Workspace workspace(workspace_bytes(call.params.forward.logits, LogitPass::kBackward),
                            logits);
  check_launch("msr_cuda::cross_entropy_backward",
               launch_cross_entropy_backward(call.params, workspace.data(), guard.stream()));
  return call.tensors[0];
}

// The kernels read them as what they accumulate in.
void check_factors(const char* op, const std::optional<Tensor>& factors, bool acc_is_double) {
  STD_TORCH_CHECK(!factors || has_type(*factors, acc_is_double), op,
                  ": expected factors of the accumulation type");
}

Tensor binary_cross_entropy(Tensor logits, Tensor target, std::optional<Tensor> weight,
                            std::optional<Tensor> pos_weight, int64_t spec, int64_t reduction) {
  const char* op = "msr_cuda::binary_cross_entropy";
  const CudaGuard guard(logits);
  const auto kind = static_cast<LossReduction>(reduction);
  const bool reduces = kind != LossReduction::kNone;
  auto call = prepare_binary({logits, target, weight, pos_weight, spec}, reduces);
  check_factors(op, weight, call.acc_is_double);
  check_factors(op, pos_weight, call.acc_is_double);
  const LossTotals totals{reduces ? call.tensors[0].mutable_data_ptr() : nullptr, nullptr};
  const Workspace workspace(workspace_bytes(call.params.logits, LogitPass::kLoss), logits);
  check_launch(
      op, launch_binary_cross_entropy(call.params, kind, totals, workspace.data(), guard.stream()));
  return call.tensors[0];
}

Tensor binary_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target,
                                     std::optional<Tensor> weight, std::optional<Tensor> pos_weight,
                                     int64_t spec) {
  const char* op = "msr_cuda::binary_cross_entropy_backward";
  const CudaGuard guard(logits);
  const auto call = prepare_binary_backward(grad, {logits, target, weight, pos_weight, spec});
  check_factors(op, weight, call.acc_is_double);
  check_factors(op, pos_weight, call.acc_is_double);
  const Workspace workspace(workspace_bytes(call.params.logits, LogitPass::kBackward), logits);
  check_launch(op,
               launch_binary_cross_entropy_backward(call.params, workspace.data(), guard.stream()));
  return call.tensors[0];
}

std::tuple<Tensor, Tensor> argmax(Tensor logits, std::vector<int64_t> size, int64_t spec,
                                  int64_t index_type, bool with_probability) {
  const CudaGuard guard(logits);
  const auto call = prepare_argmax(logits, size, spec, index_type, with_probability);
  const Workspace workspace(workspace_bytes(call.params.logits, LogitPass::kDecision), logits);
  check_launch("msr_cuda::argmax", launch_argmax(call.params, workspace.data(), guard.stream()));
  return {call.tensors[0], call.tensors[1]};
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CUDA, m) {
  m.impl("cross_entropy", TORCH_BOX(&msr::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&msr::cross_entropy_backward));
  m.impl("binary_cross_entropy", TORCH_BOX(&msr::binary_cross_entropy));
  m.impl("binary_cross_entropy_backward", TORCH_BOX(&msr::binary_cross_entropy_backward));
  m.impl("argmax", TORCH_BOX(&msr::argmax));
}

// It takes no tensor. A binary without CUDA kernels has the schema alone.
STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CompositeExplicitAutograd, m) {
  m.impl("check_targets", TORCH_BOX(&msr::check_targets));
}
