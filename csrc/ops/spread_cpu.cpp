#include "../kernels/spread_cpu.h"

#include <torch/csrc/stable/ops.h>

#include "cpu_isa.h"
#include "prepare.h"

namespace msr {
namespace {

// Returns the gradients of the weights: [branches], or nothing where `inputs` is empty.
template <typename acc_t>
Tensor run_spread(const SpreadCall& call, const RowOps<acc_t>& ops, bool with_dots,
                  const Tensor& like) {
  SpreadCpu<acc_t> spread(call.params, ops);
  torch::stable::parallel_for(0, spread.num_units(), /*grain_size=*/2,
                              [&](int64_t begin, int64_t end) { spread.run(begin, end); });
  Tensor dots = allocate_dots(call, with_dots, like);
  if (with_dots) {
    auto* data = static_cast<acc_t*>(dots.mutable_data_ptr());
    for (int b = 0; b < call.params.num_branches; ++b)
      data[b] = static_cast<acc_t>(spread.dot_of(b));
  }
  return dots;
}

std::tuple<std::vector<Tensor>, Tensor> spread_full(Tensor grad, std::optional<Tensor> gate,
                                                    std::optional<Tensor> weights,
                                                    std::vector<Tensor> inputs,
                                                    std::vector<int64_t> shapes, int64_t spec,
                                                    int64_t requests, std::vector<double> scales) {
  const SpreadCall call =
      prepare_spread(grad, gate, weights, inputs, shapes, spec, requests, scales);
  Tensor dots = call.acc_is_double ? run_spread(call, *row_ops_double(), !inputs.empty(), grad)
                                   : run_spread(call, cpu_row_ops(), !inputs.empty(), grad);
  return {call.grads, dots};
}

std::vector<Tensor> spread(Tensor grad, std::vector<int64_t> shapes, int64_t spec,
                           int64_t requests) {
  return std::get<0>(spread_full(grad, std::nullopt, std::nullopt, {}, shapes, spec, requests, {}));
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CPU, m) {
  m.impl("spread", TORCH_BOX(&msr::spread));
  m.impl("spread.full", TORCH_BOX(&msr::spread_full));
}
