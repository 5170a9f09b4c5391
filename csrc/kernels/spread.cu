#include "reduce_plan.h"
#include "spread_kernel.cuh"

namespace msr {
namespace {

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* launch_general(const SpreadParams& params, bool acc_is_double, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const dim3 grid(static_cast<unsigned>(params.block_begin[kMaxInputs]));
  if (grid.x == 0) return nullptr;
  if (acc_is_double) {
    MSR_LAUNCH(spread_kernel<double>, grid, dim3(kSpreadThreads), 0, cuda_stream, params);
  } else {
    MSR_LAUNCH(spread_kernel<float>, grid, dim3(kSpreadThreads), 0, cuda_stream, params);
  }
  return last_error();
}

ReduceInstances instances_for(const ReduceLaunch& launch, SpreadKernel kernel) {
  if (kernel == SpreadKernel::kChannelsLast) return reduce_channels_last_instances();
  return launch.aligned ? reduce_aligned_instances() : reduce_planar_instances();
}

}  // namespace

const char* launch_spread(const SpreadParams& params, const SpreadPlan& plan, bool acc_is_double,
                          void* stream) {
  if (plan.choice.kernel == SpreadKernel::kGeneral)
    return launch_general(params, acc_is_double, stream);
  if (acc_is_double) return "launch_spread: the chosen kernel keeps its sums in float32";
  for (int i = 0; i < plan.num_launches; ++i) {
    const ReduceLaunch& launch = plan.launches[i];
    const ReduceInstances instances = instances_for(launch, plan.choice.kernel);
    int found = 0;
    while (found < instances.count && !instances.first[found].is(params.grad.dtype, launch))
      ++found;
    if (found == instances.count) return "launch_spread: there is no such variant";
    instances.first[found].start(instances.first[found].name, params, launch, stream);
    if (const char* error = last_error()) return error;
  }
  return nullptr;
}

const char* launch_sum_dots(const SpreadParams& params, bool acc_is_double, void* dots,
                            void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const dim3 grid(static_cast<unsigned>(params.num_branches));
  if (acc_is_double) {
    MSR_LAUNCH(sum_dots_kernel<double>, grid, dim3(kSpreadThreads), 0, cuda_stream, params,
               static_cast<double*>(dots));
  } else {
    MSR_LAUNCH(sum_dots_kernel<float>, grid, dim3(kSpreadThreads), 0, cuda_stream, params,
               static_cast<float*>(dots));
  }
  return last_error();
}

}  // namespace msr
