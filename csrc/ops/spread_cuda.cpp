#include "../kernels/reduce_plan.h"
#include "../kernels/select_kernel.h"
#include "cuda_guard.h"
#include "prepare.h"

namespace msr {
namespace {

std::tuple<std::vector<Tensor>, Tensor> spread_full(Tensor grad, std::optional<Tensor> gate,
                                                    std::optional<Tensor> weights,
                                                    std::vector<Tensor> inputs,
                                                    std::vector<int64_t> shapes, int64_t spec,
                                                    int64_t requests, std::vector<double> scales) {
  const char* op = "msr_cuda::spread";
  const CudaGuard guard(grad);
  SpreadCall call = prepare_spread(grad, gate, weights, inputs, shapes, spec, requests, scales);
  const SpreadPlan plan = plan_spread(call.params, select_kernel(call.params, call.acc_is_double));
  const int64_t blocks = call.params.block_begin[kMaxInputs];
  Tensor dots = allocate_dots(call, !inputs.empty(), grad);
  Tensor partial_dots = empty_vector(inputs.empty() ? 0 : blocks, aoti_torch_dtype_float64(), grad);
  if (!inputs.empty())
    call.params.partial_dots = static_cast<double*>(partial_dots.mutable_data_ptr());
  check_launch(op, launch_spread(call.params, plan, call.acc_is_double, guard.stream()));
  if (!inputs.empty()) {
    check_launch(op, launch_sum_dots(call.params, call.acc_is_double, dots.mutable_data_ptr(),
                                     guard.stream()));
  }
  return {call.grads, dots};
}

std::vector<Tensor> spread(Tensor grad, std::vector<int64_t> shapes, int64_t spec,
                           int64_t requests) {
  return std::get<0>(spread_full(grad, std::nullopt, std::nullopt, {}, shapes, spec, requests, {}));
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CUDA, m) {
  m.impl("spread", TORCH_BOX(&msr::spread));
  m.impl("spread.full", TORCH_BOX(&msr::spread_full));
}
