#include "../kernels/gather_cpu.h"

#include <torch/csrc/stable/ops.h>

#include "cpu_isa.h"
#include "prepare.h"

namespace msr {
namespace {

template <typename acc_t>
void run_gather(const GatherParams& params, const RowOps<acc_t>& ops) {
  const GatherCpu<acc_t> gather(params, ops);
  torch::stable::parallel_for(0, gather.num_chunks(), /*grain_size=*/4,
                              [&](int64_t begin, int64_t end) { gather.run(begin, end); });
}

GatherCall gather_cpu(const std::vector<Tensor>& inputs, const std::optional<Tensor>& weights,
                      const std::optional<Tensor>& gate, const std::vector<int64_t>& size,
                      int64_t spec, const std::vector<double>& scales) {
  GatherCall call = prepare_gather(inputs, weights, gate, size, spec, scales);
  if (call.acc_is_double) {
    run_gather(call.params, *row_ops_double());
  } else {
    run_gather(call.params, cpu_row_ops());
  }
  return call;
}

Tensor gather(std::vector<Tensor> inputs, std::vector<int64_t> size, int64_t spec) {
  return gather_cpu(inputs, std::nullopt, std::nullopt, size, spec, {}).out;
}

std::tuple<Tensor, Tensor> gather_full(std::vector<Tensor> inputs, std::optional<Tensor> weights,
                                       std::optional<Tensor> gate, std::vector<int64_t> size,
                                       int64_t spec, std::vector<double> scales) {
  GatherCall call = gather_cpu(inputs, weights, gate, size, spec, scales);
  return {call.out, call.mask};
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CPU, m) {
  m.impl("gather", TORCH_BOX(&msr::gather));
  m.impl("gather.full", TORCH_BOX(&msr::gather_full));
}
