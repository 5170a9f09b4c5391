#include "gather_kernel.cuh"

namespace msr {

const char* launch_gather(const GatherParams& params, bool acc_is_double, void* stream) {
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

}  // namespace msr
