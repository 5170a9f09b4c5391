#include <algorithm>

#include "window_tables_kernel.cuh"

namespace msr {

const char* launch_window_tables(const Branch* branches, int32_t count, const WindowTables& tables,
                                 bool acc_is_double, void* stream) {
  WindowJobs jobs{};
  jobs.tables = tables;
  unsigned found = 0;
  int64_t blocks = 0;
  for (int b = 0; b < count; ++b) {
    for (int i = 0; i < kSpatialDims; ++i) {
      const WindowTable& table = tables.table[b][i];
      if (table.width == 0) continue;
      const Axis& axis = branches[b].axis[i];
      jobs.axis[found] = axis;
      jobs.table[found++] = table;
      blocks = std::max({blocks, ceil_div(axis.out_size, kTableThreads / 32),
                         table.readers ? ceil_div(axis.in_size, kTableThreads) : 0});
    }
  }
  if (found == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>(std::min(blocks, kMaxTableBlocks)), found);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (acc_is_double) {
    MSR_LAUNCH(window_tables_kernel<double>, grid, dim3(kTableThreads), 0, cuda_stream, jobs);
  } else {
    MSR_LAUNCH(window_tables_kernel<float>, grid, dim3(kTableThreads), 0, cuda_stream, jobs);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace msr
