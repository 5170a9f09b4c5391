#include "bindings.h"
#include "cuda_guard.h"

namespace msr {
namespace {

// Launches a prepared call on the stream of the guard.
void launch(const char* op, const GatherCall& call, const CudaGuard& guard, const Tensor& like) {
  const Workspace workspace(workspace_bytes(call.params, call.acc_is_double), like);
  check_launch(op,
               launch_gather(call.params, call.acc_is_double, workspace.data(), guard.stream()));
}

GatherCall run_gather(const GatherArguments& arguments) {
  const char* op = "msr_cuda::gather";
  STD_TORCH_CHECK(!arguments.inputs.empty(), op, ": expected at least one input");
  const CudaGuard guard(arguments.inputs[0]);
  GatherCall call = prepare_gather(arguments);
  launch(op, call, guard, arguments.inputs[0]);
  return call;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> gather_many(
    std::vector<Tensor> inputs, std::vector<int64_t> counts, std::vector<Tensor> weights,
    std::vector<Tensor> pixel_weights, std::vector<int64_t> sizes, std::vector<int64_t> specs,
    std::vector<double> scales, std::vector<int64_t> windows) {
  const char* op = "msr_cuda::gather_many";
  STD_TORCH_CHECK(!inputs.empty(), op, ": expected at least one input");
  for (const Tensor& input : inputs) check_same_device(op, input, inputs[0]);
  const CudaGuard guard(inputs[0]);
  const std::vector<GatherCall> calls =
      prepare_many({inputs, counts, weights, pixel_weights, sizes, specs, scales, windows});
  std::vector<Workspace> workspaces;
  workspaces.reserve(calls.size());
  for (const bool acc_is_double : {false, true}) {
    std::vector<GatherJob> jobs;
    for (const GatherCall& call : calls) {
      if (call.acc_is_double != acc_is_double) continue;
      workspaces.emplace_back(workspace_bytes(call.params, acc_is_double), inputs[0]);
      jobs.push_back({&call.params, workspaces.back().data()});
    }
    check_launch(op, launch_gather_many(jobs.data(), static_cast<int>(jobs.size()), acc_is_double,
                                        guard.stream()));
  }
  return results_of(calls);
}

Tensor pixel_weight_grads(Tensor grad, std::vector<Tensor> inputs, std::optional<Tensor> weights,
                          std::optional<Tensor> gate, int64_t spec, std::vector<double> scales,
                          std::vector<int64_t> windows) {
  const std::vector<int64_t> size = spatial_size(grad);
  const CudaGuard guard(grad);
  GatherCall call = prepare_pixel_weight_grads(
      {inputs, size, spec, weights, {}, gate, grad, std::move(scales), std::move(windows)});
  const Workspace workspace(workspace_bytes(call.params, call.acc_is_double), grad);
  check_launch(
      "msr_cuda::pixel_weight_grads",
      launch_pixel_weight_grads(call.params, call.acc_is_double, workspace.data(), guard.stream()));
  return *call.out;
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CUDA, m) {
  msr::register_gather<&msr::run_gather>(m);
  m.impl("gather_many", TORCH_BOX(&msr::gather_many));
  m.impl("pixel_weight_grads", TORCH_BOX(&msr::pixel_weight_grads));
}
