#include <torch/csrc/stable/ops.h>

#include "../kernels/many_gather_cpu.h"
#include "../kernels/pixel_weight_grads_cpu.h"
#include "bindings.h"
#include "cpu_isa.h"

namespace msr {
namespace {

template <typename Gather>
void run_chunks(const Gather& gather) {
  torch::stable::parallel_for(0, gather.num_chunks(), gather.chunks_per_task(),
                              [&](int64_t begin, int64_t end) {
                                typename Gather::Scratch scratch(gather);
                                gather.run(begin, end, scratch);
                              });
}

template <typename acc_t>
void run_on_rows(const GatherParams& params, const RowOps<acc_t>& ops) {
  if (needs_mixing(params)) {
    run_chunks(MixCpu<acc_t>(params, ops));
  } else {
    run_chunks(GatherCpu<acc_t>(params, ops));
  }
}

GatherCall run_gather(const GatherArguments& arguments) {
  GatherCall call = prepare_gather(arguments);
  if (call.acc_is_double) {
    run_on_rows(call.params, *row_ops_double());
  } else {
    run_on_rows(call.params, cpu_row_ops());
  }
  return call;
}

template <typename acc_t>
void run_many(const std::vector<GatherCall>& calls, const RowOps<acc_t>& ops) {
  std::vector<const GatherParams*> all;
  for (const GatherCall& call : calls)
    if (call.acc_is_double == (sizeof(acc_t) == 8)) all.push_back(&call.params);
  if (all.empty()) return;
  const ManyGatherCpu<acc_t> many(all, ops);
  torch::stable::parallel_for(0, many.num_tasks(), /*grain_size=*/4,
                              [&](int64_t begin, int64_t end) { many.run(begin, end); });
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> gather_many(
    std::vector<Tensor> inputs, std::vector<int64_t> counts, std::vector<Tensor> weights,
    std::vector<Tensor> pixel_weights, std::vector<int64_t> sizes, std::vector<int64_t> specs,
    std::vector<double> scales, std::vector<int64_t> windows) {
  const std::vector<GatherCall> calls =
      prepare_many({inputs, counts, weights, pixel_weights, sizes, specs, scales, windows});
  run_many(calls, *row_ops_double());
  run_many(calls, cpu_row_ops());
  return results_of(calls);
}

template <typename acc_t>
void run_pixel_weight_grads(const GatherParams& params, const RowOps<acc_t>& ops) {
  PixelWeightGradsCpu<acc_t> grads(params, ops);
  torch::stable::parallel_for(0, grads.num_units(), /*grain_size=*/1,
                              [&](int64_t begin, int64_t end) { grads.run(begin, end); });
}

Tensor pixel_weight_grads(Tensor grad, std::vector<Tensor> inputs, std::optional<Tensor> weights,
                          std::optional<Tensor> gate, int64_t spec, std::vector<double> scales,
                          std::vector<int64_t> windows) {
  const std::vector<int64_t> size = spatial_size(grad);
  GatherCall call = prepare_pixel_weight_grads(
      {inputs, size, spec, weights, {}, gate, grad, std::move(scales), std::move(windows)});
  if (call.acc_is_double) {
    run_pixel_weight_grads(call.params, *row_ops_double());
  } else {
    run_pixel_weight_grads(call.params, cpu_row_ops());
  }
  return *call.out;
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CPU, m) {
  msr::register_gather<&msr::run_gather>(m);
  m.impl("gather_many", TORCH_BOX(&msr::gather_many));
  m.impl("pixel_weight_grads", TORCH_BOX(&msr::pixel_weight_grads));
}
