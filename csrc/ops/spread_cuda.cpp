#include "../kernels/select_kernel.h"
#include "../kernels/spread_plan.h"
#include "cuda_guard.h"
#include "prepare.h"

namespace msr {
namespace {

std::tuple<std::vector<Tensor>, Tensor> run_spread(const SpreadArguments& arguments) {
  const CudaGuard guard(arguments.grad);
  SpreadCall call = prepare_spread(arguments);
  const SpreadPlan plan =
      plan_spread(call.params, select_kernel(call.params, call.acc_is_double), call.acc_is_double);
  const Workspace workspace(plan.workspace_bytes, arguments.grad);
  void* const weight_grads =
      call.weight_grads.numel() > 0 ? call.weight_grads.mutable_data_ptr() : nullptr;
  check_launch("msr_cuda::spread", launch_spread(call.params, plan, call.acc_is_double,
                                                 workspace.data(), weight_grads, guard.stream()));
  return {call.grads, call.weight_grads};
}

std::vector<Tensor> spread(Tensor grad, std::vector<int64_t> shapes, int64_t spec,
                           int64_t requests) {
  return std::get<0>(run_spread({grad, shapes, spec, requests}));
}

std::tuple<std::vector<Tensor>, Tensor> spread_full(Tensor grad, std::optional<Tensor> gate,
                                                    std::optional<Tensor> weights,
                                                    std::vector<Tensor> inputs,
                                                    std::vector<int64_t> shapes, int64_t spec,
                                                    int64_t requests, std::vector<double> scales) {
  SpreadArguments arguments{grad, shapes, spec, requests, gate, weights};
  arguments.inputs = std::move(inputs);
  arguments.scales = std::move(scales);
  return run_spread(arguments);
}

std::tuple<std::vector<Tensor>, Tensor> spread_extended(
    Tensor grad, std::optional<Tensor> gate, std::optional<Tensor> weights,
    std::optional<Tensor> pixel_weights, std::vector<Tensor> inputs, std::vector<Tensor> indices,
    std::vector<int64_t> shapes, int64_t spec, int64_t requests, std::vector<double> scales,
    std::vector<int64_t> windows) {
  return run_spread({grad, shapes, spec, requests, gate, weights, pixel_weights, std::move(inputs),
                     std::move(indices), std::move(scales), std::move(windows)});
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CUDA, m) {
  m.impl("spread", TORCH_BOX(&msr::spread));
  m.impl("spread.full", TORCH_BOX(&msr::spread_full));
  m.impl("spread.extended", TORCH_BOX(&msr::spread_extended));
}
