#include "cuda_guard.h"
#include "prepare.h"

namespace msr {
namespace {

GatherCall gather_cuda(const std::vector<Tensor>& inputs, const std::optional<Tensor>& weights,
                       const std::optional<Tensor>& gate, const std::vector<int64_t>& size,
                       int64_t spec, const std::vector<double>& scales) {
  STD_TORCH_CHECK(!inputs.empty(), "msr_cuda::gather: expected at least one input");
  const CudaGuard guard(inputs[0]);
  GatherCall call = prepare_gather(inputs, weights, gate, size, spec, scales);
  if (numel(call.params.out) > 0) {
    check_launch("msr_cuda::gather",
                 launch_gather(call.params, call.acc_is_double, guard.stream()));
  }
  return call;
}

Tensor gather(std::vector<Tensor> inputs, std::vector<int64_t> size, int64_t spec) {
  return gather_cuda(inputs, std::nullopt, std::nullopt, size, spec, {}).out;
}

std::tuple<Tensor, Tensor> gather_full(std::vector<Tensor> inputs, std::optional<Tensor> weights,
                                       std::optional<Tensor> gate, std::vector<int64_t> size,
                                       int64_t spec, std::vector<double> scales) {
  GatherCall call = gather_cuda(inputs, weights, gate, size, spec, scales);
  return {call.out, call.mask};
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CUDA, m) {
  m.impl("gather", TORCH_BOX(&msr::gather));
  m.impl("gather.full", TORCH_BOX(&msr::gather_full));
}
