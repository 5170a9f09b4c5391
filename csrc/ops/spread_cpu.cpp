#include "../kernels/spread_cpu.h"

#include <torch/csrc/stable/ops.h>

#include "bindings.h"
#include "cpu_isa.h"

namespace msr {
namespace {

template <typename acc_t>
void run_on_rows(const SpreadCall& call, const RowOps<acc_t>& ops) {
  SpreadCpu<acc_t> spread(call.params, ops);
  torch::stable::parallel_for(0, spread.num_units(), /*grain_size=*/2,
                              [&](int64_t begin, int64_t end) { spread.run(begin, end); });
  if (call.weight_grads) {
    spread.write_weight_grads(static_cast<acc_t*>(call.weight_grads->mutable_data_ptr()),
                              call.weight_grads->numel());
  }
}

SpreadCall run_spread(const SpreadArguments& arguments) {
  SpreadCall call = prepare_spread(arguments);
  if (call.acc_is_double) {
    run_on_rows(call, *row_ops_double());
  } else {
    run_on_rows(call, cpu_row_ops());
  }
  return call;
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CPU, m) { msr::register_spread<&msr::run_spread>(m); }
