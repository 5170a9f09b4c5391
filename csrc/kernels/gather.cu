#include "expand_launch.h"
#include "gather_kernel.cuh"
#include "select_kernel.h"

namespace msr {
namespace {

const char* launch_general(const GatherParams& params, bool acc_is_double, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const dim3 grid = gather_grid(params);
  if (acc_is_double) {
    MSR_LAUNCH(gather_kernel<double>, grid, dim3(kGatherThreads), 0, cuda_stream, params);
  } else {
    MSR_LAUNCH(gather_kernel<float>, grid, dim3(kGatherThreads), 0, cuda_stream, params);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* launch_gather(const GatherParams& params, bool acc_is_double, void* stream,
                          const GatherChoice* asked_for) {
  if (numel(params.out) == 0) return nullptr;
  if (asked_for && !fits(params, acc_is_double, *asked_for)) {
    return "launch_gather: the kernel that was asked for does not fit these maps";
  }
  const GatherChoice choice = asked_for ? *asked_for : select_kernel(params, acc_is_double);
  if (choice.kernel == GatherKernel::kGeneral) {
    return launch_general(params, acc_is_double, stream);
  }
  switch (params.out.dtype) {
    case DType::kFloat16:
      return launch_expand_half(params, choice, stream);
    case DType::kBFloat16:
      return launch_expand_bfloat16(params, choice, stream);
    default:
      return launch_expand_float(params, choice, stream);
  }
}

}  // namespace msr
