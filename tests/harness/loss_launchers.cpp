// The launchers of losses and decisions of resampled logits, called with NumPy arrays. Parameters
// are filled from sizes and strides as csrc/ops does it from tensors.
#include "../../csrc/kernels/loss_launch.h"
#include "kernel_arguments.h"
#include "msr_launchers.h"

namespace msr::harness {
namespace {

// size: spatial, of the result; mode: its number in msr_cuda/_spec.py.
LogitParams logit_params(const Arguments& a) {
  LogitParams params{};
  const ArrayView& logits = a.array("logits");
  params.logits = map_of(logits);
  const int rank = logits.rank - 2;
  const auto* size = a.array("size").as<const int64_t>();
  for (int i = 0; i < kSpatialDims; ++i) {
    const int axis = i - (kSpatialDims - rank);
    params.size[i] = axis < 0 ? 1 : size[axis];
    params.axis[i] = make_axis(static_cast<Mode>(a.integer("mode")),
                               static_cast<int32_t>(params.logits.size[2 + i]),
                               static_cast<int32_t>(params.size[i]), 0.0);
  }
  return params;
}

// Strides of [N, *size], or [N, C, *size], in five axes.
void set_pixel_strides(const ArrayView& array, bool per_class, int64_t (&stride)[kDims]) {
  const int first = per_class ? 2 : 1;
  for (int64_t& one : stride) one = 0;
  for (int i = 0; i < first; ++i) stride[i] = array.stride[i];
  for (int i = first; i < array.rank; ++i) stride[kDims - array.rank + i] = array.stride[i];
}

// index_type: of a target of indices, as IndexType; absent: probabilities.
CrossEntropyParams cross_entropy_params(const Arguments& a) {
  CrossEntropyParams params{};
  params.logits = logit_params(a);
  const ArrayView& target = a.array("target");
  params.target.data = target.data;
  params.target.probabilities = !a.has("index_type");
  set_pixel_strides(target, params.target.probabilities, params.target.stride);
  if (params.target.probabilities) {
    params.target.dtype = static_cast<DType>(target.type);
  } else {
    params.target.index_type = static_cast<IndexType>(a.integer("index_type"));
  }
  params.weight = a.has("weight") ? a.array("weight").data : nullptr;
  params.ignore_index = a.integer("ignore_index");
  params.label_smoothing = a.real("label_smoothing");
  params.reduction = static_cast<LossReduction>(integer_or_zero(a, "reduction"));
  return params;
}

void* output_or_null(const Arguments& a, const char* name) {
  return a.has(name) ? a.output(name).data : nullptr;
}

// way: as LogitWay; strip_rows: how many rows of logits a strip has; or absent.
LogitChoice choice_of(const Arguments& a) {
  return {static_cast<LogitWay>(integer_or_zero(a, "way")), integer_or_zero(a, "strip_rows")};
}

// bad_target [2]: the index of a bad one, and whether there was one.
void cross_entropy(const Arguments& a) {
  CrossEntropyParams params = cross_entropy_params(a);
  const bool reduces = params.reduction != LossReduction::kNone;
  void* const loss = a.output("loss").data;
  if (!reduces) params.loss = loss;
  params.lse = a.output("lse").data;
  params.target_sums = output_or_null(a, "target_sums");
  params.bad_target = static_cast<BadTarget*>(a.output("bad_target").data);
  *params.bad_target = {0, 0};
  const LossTotals totals{reduces ? loss : nullptr, a.output("divisor").data};
  const Workspace workspace(workspace_bytes(params.logits, LogitPass::kLoss));
  check(launch_cross_entropy(params, totals, workspace.data(), nullptr, choice_of(a)));
}

Map grads_of(const Arguments& a) {
  Map grads = map_of(a.output("logit_grads"));
  grads.channels_last = a.integer("channels_last") != 0;
  return grads;
}

void cross_entropy_backward(const Arguments& a) {
  CrossEntropyBackwardParams params{};
  params.forward = cross_entropy_params(a);
  params.forward.lse = a.array("lse").data;
  params.forward.target_sums = a.has("target_sums") ? a.array("target_sums").data : nullptr;
  params.grad = a.array("grad").data;
  set_pixel_strides(a.array("grad"), false, params.grad_stride);
  params.logit_grads = grads_of(a);
  const Workspace workspace(workspace_bytes(params.forward.logits, LogitPass::kBackward));
  check(launch_cross_entropy_backward(params, workspace.data(), nullptr, choice_of(a)));
}

LogitFactors factors_of(const Arguments& a, const char* name) {
  LogitFactors factors{};
  if (!a.has(name)) return factors;
  const ArrayView& array = a.array(name);
  factors.data = array.data;
  set_pixel_strides(array, true, factors.stride);
  factors.bytes = array.element_bytes == 1;
  if (!factors.bytes) factors.dtype = static_cast<DType>(array.type);
  return factors;
}

BinaryParams binary_params(const Arguments& a) {
  BinaryParams params{};
  params.logits = logit_params(a);
  params.target = factors_of(a, "target");
  params.weight = factors_of(a, "weight");
  params.pos_weight = factors_of(a, "pos_weight");
  return params;
}

void binary_cross_entropy(const Arguments& a) {
  BinaryParams params = binary_params(a);
  const auto reduction = static_cast<LossReduction>(a.integer("reduction"));
  const bool reduces = reduction != LossReduction::kNone;
  void* const loss = a.output("loss").data;
  if (!reduces) params.loss = loss;
  const LossTotals totals{reduces ? loss : nullptr, nullptr};
  const Workspace workspace(workspace_bytes(params.logits, LogitPass::kLoss));
  check(launch_binary_cross_entropy(params, reduction, totals, workspace.data(), nullptr));
}

void binary_cross_entropy_backward(const Arguments& a) {
  BinaryParams params = binary_params(a);
  params.grad = factors_of(a, "grad");
  params.logit_grads = grads_of(a);
  const Workspace workspace(workspace_bytes(params.logits, LogitPass::kBackward));
  check(launch_binary_cross_entropy_backward(params, workspace.data(), nullptr, choice_of(a)));
}

// probability: or absent.
void argmax(const Arguments& a) {
  ArgmaxParams params{};
  params.logits = logit_params(a);
  params.index = a.output("index").data;
  params.index_type = static_cast<IndexType>(a.integer("index_type"));
  params.probability = output_or_null(a, "probability");
  const Workspace workspace(workspace_bytes(params.logits, LogitPass::kDecision));
  check(launch_argmax(params, workspace.data(), nullptr, choice_of(a)));
}

}  // namespace

const std::vector<Launcher>& loss_launchers() {
  static const std::vector<Launcher> launchers = {
      {"cross_entropy", cross_entropy},
      {"cross_entropy_backward", cross_entropy_backward},
      {"binary_cross_entropy", binary_cross_entropy},
      {"binary_cross_entropy_backward", binary_cross_entropy_backward},
      {"argmax", argmax}};
  return launchers;
}

}  // namespace msr::harness
