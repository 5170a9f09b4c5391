#include <torch/csrc/stable/ops.h>

#include "../kernels/binary_cross_entropy_cpu.h"
#include "../kernels/cross_entropy_cpu.h"
#include "cpu_isa.h"
#include "losses.h"

namespace msr {
namespace {

// Calls f with the row operations of the accumulation type.
template <typename F>
void on_rows(bool acc_is_double, F&& f) {
  if (acc_is_double) return f(*row_ops_double());
  f(cpu_row_ops());
}

template <typename Kernel>
void run_units(const Kernel& kernel) {
  torch::stable::parallel_for(0, kernel.num_units(), /*grain_size=*/1,
                              [&](int64_t begin, int64_t end) {
                                typename Kernel::Scratch scratch;
                                kernel.run(begin, end, scratch);
                              });
}

// The sum of the losses, and what their mean divides by.
template <typename acc_t>
void run_cross_entropy(LogitsCall<CrossEntropyParams>& call, int64_t ignore_index,
                       const RowOps<acc_t>& ops) {
  const CrossEntropyParams& params = call.params;
  const CrossEntropyCpu<acc_t> kernel(params, ops);
  run_units(kernel);
  int64_t index;
  STD_TORCH_CHECK(!kernel.has_bad_class(index), "resample_cross_entropy: expected targets in [0, ",
                  params.logits.logits.size[1], ") or ignore_index=", ignore_index, ", got ",
                  index);
  const auto totals = kernel.totals();
  const double divisor = params.reduction == LossReduction::kMean ? totals.weight : 1.0;
  *static_cast<acc_t*>(call.tensors[3].mutable_data_ptr()) = static_cast<acc_t>(divisor);
  if (params.reduction == LossReduction::kNone) return;
  *static_cast<acc_t*>(call.tensors[0].mutable_data_ptr()) =
      static_cast<acc_t>(totals.loss / divisor);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy(Tensor logits, Tensor target,
                                                         std::optional<Tensor> weight, int64_t spec,
                                                         int64_t ignore_index,
                                                         double label_smoothing,
                                                         int64_t reduction) {
  auto call = prepare_cross_entropy(
      {logits, target, weight, spec, ignore_index, label_smoothing, reduction});
  on_rows(call.acc_is_double, [&](const auto& ops) { run_cross_entropy(call, ignore_index, ops); });
  return {call.tensors[0], call.tensors[1], call.tensors[2], call.tensors[3]};
}

template <typename acc_t>
void run_cross_entropy_backward(const CrossEntropyBackwardParams& params,
                                const RowOps<acc_t>& ops) {
  const CrossEntropyBackwardCpu<acc_t> kernel(params, ops);
  run_units(kernel);
}

Tensor cross_entropy_backward(Tensor grad, Tensor logits, Tensor target,
                              std::optional<Tensor> weight, Tensor lse, Tensor target_sums,
                              int64_t spec, int64_t ignore_index, double label_smoothing) {
  const auto call = prepare_cross_entropy_backward(
      grad, lse, target_sums, {logits, target, weight, spec, ignore_index, label_smoothing, 0});
  on_rows(call.acc_is_double,
          [&](const auto& ops) { run_cross_entropy_backward(call.params, ops); });
  return call.tensors[0];
}

// The sum or mean of the losses, if they are not wanted one by one.
template <typename acc_t>
void run_binary(LogitsCall<BinaryParams>& call, bool mean, const RowOps<acc_t>& ops) {
  const BinaryCrossEntropyCpu<acc_t> kernel(call.params, ops);
  run_units(kernel);
  if (call.params.loss) return;
  const LogitParams& logits = call.params.logits;
  double count = static_cast<double>(logits.logits.size[0] * logits.logits.size[1]);
  for (const int64_t size : logits.size) count *= static_cast<double>(size);
  *static_cast<acc_t*>(call.tensors[0].mutable_data_ptr()) =
      static_cast<acc_t>(kernel.total() / (mean ? count : 1.0));
}

Tensor binary_cross_entropy(Tensor logits, Tensor target, std::optional<Tensor> weight,
                            std::optional<Tensor> pos_weight, int64_t spec, int64_t reduction) {
  const auto kind = static_cast<LossReduction>(reduction);
  auto call =
      prepare_binary({logits, target, weight, pos_weight, spec}, kind != LossReduction::kNone);
  on_rows(call.acc_is_double,
          [&](const auto& ops) { run_binary(call, kind == LossReduction::kMean, ops); });
  return call.tensors[0];
}

template <typename acc_t>
void run_binary_backward(const BinaryParams& params, const RowOps<acc_t>& ops) {
  const BinaryCrossEntropyBackwardCpu<acc_t> kernel(params, ops);
  run_units(kernel);
}

Tensor binary_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target,
                                     std::optional<Tensor> weight, std::optional<Tensor> pos_weight,
                                     int64_t spec) {
  const auto call = prepare_binary_backward(grad, {logits, target, weight, pos_weight, spec});
  on_rows(call.acc_is_double, [&](const auto& ops) { run_binary_backward(call.params, ops); });
  return call.tensors[0];
}

template <typename acc_t>
void run_argmax(const ArgmaxParams& params, const RowOps<acc_t>& ops) {
  const ArgmaxCpu<acc_t> kernel(params, ops);
  run_units(kernel);
}

std::tuple<Tensor, Tensor> argmax(Tensor logits, std::vector<int64_t> size, int64_t spec,
                                  int64_t index_type, bool with_probability) {
  const auto call = prepare_argmax(logits, size, spec, index_type, with_probability);
  on_rows(call.acc_is_double, [&](const auto& ops) { run_argmax(call.params, ops); });
  return {call.tensors[0], call.tensors[1]};
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&msr::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&msr::cross_entropy_backward));
  m.impl("binary_cross_entropy", TORCH_BOX(&msr::binary_cross_entropy));
  m.impl("binary_cross_entropy_backward", TORCH_BOX(&msr::binary_cross_entropy_backward));
  m.impl("argmax", TORCH_BOX(&msr::argmax));
}
