#include "spread_kernel.cuh"

namespace msr {

const char* launch_spread(const SpreadParams& params, bool acc_is_double, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const dim3 grid(static_cast<unsigned>(params.block_begin[kMaxInputs]));
  if (acc_is_double) {
    MSR_LAUNCH(spread_kernel<double>, grid, dim3(kSpreadThreads), 0, cuda_stream, params);
  } else {
    MSR_LAUNCH(spread_kernel<float>, grid, dim3(kSpreadThreads), 0, cuda_stream, params);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
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
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace msr
