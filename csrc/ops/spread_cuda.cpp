#include "../kernels/select_kernel.h"
#include "../kernels/spread_plan.h"
#include "bindings.h"
#include "cuda_guard.h"

namespace msr {
namespace {

SpreadCall run_spread(const SpreadArguments& arguments) {
  const CudaGuard guard(arguments.grad);
  SpreadCall call = prepare_spread(arguments);
  const SpreadPlan plan =
      plan_spread(call.params, select_kernel(call.params, call.acc_is_double), call.acc_is_double);
  const Workspace workspace(plan.workspace_bytes, arguments.grad);
  void* const weight_grads = call.weight_grads ? call.weight_grads->mutable_data_ptr() : nullptr;
  check_launch("msr_cuda::spread", launch_spread(call.params, plan, call.acc_is_double,
                                                 workspace.data(), weight_grads, guard.stream()));
  return call;
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CUDA, m) { msr::register_spread<&msr::run_spread>(m); }
