#include "../kernels/spread_cpu.h"

#include <torch/csrc/stable/ops.h>

#include "cpu_isa.h"
#include "prepare.h"

namespace msr {
namespace {

template <typename acc_t>
void run_spread(const SpreadCall& call, const RowOps<acc_t>& ops) {
  SpreadCpu<acc_t> spread(call.params, ops);
  torch::stable::parallel_for(0, spread.num_units(), /*grain_size=*/2,
                              [&](int64_t begin, int64_t end) { spread.run(begin, end); });
  spread.write_weight_grads(static_cast<acc_t*>(call.weight_grads.mutable_data_ptr()),
                            call.weight_grads.numel());
}

std::tuple<std::vector<Tensor>, Tensor> run_spread(const SpreadArguments& arguments) {
  const SpreadCall call = prepare_spread(arguments);
  if (call.acc_is_double) {
    run_spread(call, *row_ops_double());
  } else {
    run_spread(call, cpu_row_ops());
  }
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

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CPU, m) {
  m.impl("spread", TORCH_BOX(&msr::spread));
  m.impl("spread.full", TORCH_BOX(&msr::spread_full));
  m.impl("spread.extended", TORCH_BOX(&msr::spread_extended));
}
