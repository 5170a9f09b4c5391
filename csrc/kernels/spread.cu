#include "select_kernel.h"
#include "spread_kernel.cuh"
#include "spread_plan.h"

namespace msr {
namespace {

static_assert(sizeof(SpreadParams) + sizeof(WindowTables) + sizeof(SpreadBlocks) <= 4096,
              "before CUDA 12.1, kernels took no more");

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename acc_t>
void start_general(const SpreadParams& params, const WindowTables& tables,
                   const SpreadBlocks& blocks, cudaStream_t stream) {
  const dim3 sums(static_cast<unsigned>(blocks.sum_begin[kMaxBranches]));
  const dim3 grid(static_cast<unsigned>(params.block_begin[kMaxBranches]));
  const dim3 threads(kSpreadThreads);
  if (sums.x > 0)
    MSR_LAUNCH(spread_sums_kernel<acc_t>, sums, threads, 0, stream, params, tables, blocks);
  MSR_LAUNCH(spread_kernel<acc_t>, grid, threads, 0, stream, params, tables, blocks);
}

const char* launch_general(const SpreadParams& params, const WindowTables& tables,
                           const SpreadBlocks& blocks, bool acc_is_double, void* stream) {
  const int64_t count = params.block_begin[kMaxBranches];
  if (count == 0) return nullptr;
  if (count > kMaxReduceBlocks || blocks.sum_begin[kMaxBranches] > kMaxReduceBlocks)
    return "launch_spread: the grid would be too large";
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (acc_is_double) {
    start_general<double>(params, tables, blocks, cuda_stream);
  } else {
    start_general<float>(params, tables, blocks, cuda_stream);
  }
  return last_error();
}

ReduceInstances instances_for(const ReduceLaunch& launch, SpreadKernel kernel) {
  if (kernel == SpreadKernel::kChannelsLast) return reduce_channels_last_instances();
  return launch.aligned ? reduce_aligned_instances() : reduce_planar_instances();
}

const char* launch_fast(const SpreadParams& params, const SpreadPlan& plan,
                        const WindowTables& tables, bool acc_is_double, void* stream) {
  if (plan.num_launches == 0) return nullptr;
  if (acc_is_double) return "launch_spread: the chosen kernel keeps its sums in float32";
  for (int i = 0; i < plan.num_launches; ++i) {
    const ReduceLaunch& launch = plan.launches[i];
    const ReduceInstances instances = instances_for(launch, plan.choice.kernel);
    int found = 0;
    while (found < instances.count && !instances.first[found].is(params.grad.dtype, launch))
      ++found;
    if (found == instances.count) return "launch_spread: there is no such variant";
    const ReduceInstance& instance = instances.first[found];
    instance.start(instance.name, params, launch, tables, stream);
    if (const char* error = last_error()) return error;
  }
  return nullptr;
}

const char* launch_sum_dots(const SpreadParams& params, const SpreadBlocks& blocks,
                            bool acc_is_double, void* dots, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const Weights& weights = params.weights;
  const int64_t count = (weights.stride_n != 0 ? params.grad.size[0] : 1) * weights.count *
                        (weights.stride_c != 0 ? params.grad.size[1] : 1);
  const dim3 grid(static_cast<unsigned>(count));
  if (acc_is_double) {
    MSR_LAUNCH(sum_dots_kernel<double>, grid, dim3(kSpreadThreads), 0, cuda_stream, params, blocks,
               static_cast<double*>(dots));
  } else {
    MSR_LAUNCH(sum_dots_kernel<float>, grid, dim3(kSpreadThreads), 0, cuda_stream, params, blocks,
               static_cast<float*>(dots));
  }
  return last_error();
}

}  // namespace

const char* launch_spread(const SpreadParams& planned, const SpreadPlan& plan, bool acc_is_double,
                          void* workspace, void* weight_grads, void* stream) {
  SpreadParams params = planned;
  SpreadBlocks blocks = plan.blocks;
  const bool dots = detail::wants_dots(params);
  const auto memory = [&](int64_t at) {
    return workspace ? static_cast<unsigned char*>(workspace) + at : nullptr;
  };
  params.partial_dots = dots ? static_cast<double*>(workspace) : nullptr;
  blocks.sums = reinterpret_cast<double*>(memory(sums_at(params)));
  WindowTables tables = plan.tables;
  tables.workspace = memory(tables_at(params, blocks));
  const char* error = nullptr;
  if (plan.table_bytes > 0)
    error =
        launch_window_tables(params.branches, params.num_branches, tables, acc_is_double, stream);
  if (!error) error = launch_fast(params, plan, tables, acc_is_double, stream);
  if (!error) error = launch_general(params, tables, blocks, acc_is_double, stream);
  if (error || !dots || !weight_grads) return error;
  return launch_sum_dots(params, blocks, acc_is_double, weight_grads, stream);
}

}  // namespace msr
