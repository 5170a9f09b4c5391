#include "expand_launch.h"
#include "gather_kernel.cuh"
#include "select_kernel.h"

namespace msr {
namespace {

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The tables of a call, filled. Returns null, or the text of the error.
const char* fill_tables(const GatherParams& params, bool acc_is_double, void* workspace,
                        void* stream, WindowTables& tables) {
  tables =
      plan_windows(params.branches, params.num_branches, /*adjoint=*/false, acc_is_double).tables;
  tables.workspace = workspace;
  return launch_window_tables(params.branches, params.num_branches, tables, acc_is_double, stream);
}

const char* launch_general(GatherParams params, bool acc_is_double, void* workspace, void* stream) {
  set_order(params);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const dim3 grid = gather_grid(numel(params.out));
  WindowTables tables;
  if (const char* error = fill_tables(params, acc_is_double, workspace, stream, tables))
    return error;
  if (acc_is_double) {
    MSR_LAUNCH(gather_kernel<double>, grid, dim3(kGatherThreads), 0, cuda_stream, params, tables);
  } else {
    MSR_LAUNCH(gather_kernel<float>, grid, dim3(kGatherThreads), 0, cuda_stream, params, tables);
  }
  return last_error();
}

}  // namespace

int64_t workspace_bytes(const GatherParams& params, bool acc_is_double) {
  return plan_windows(params.branches, params.num_branches, /*adjoint=*/false, acc_is_double).bytes;
}

const char* launch_gather(const GatherParams& params, bool acc_is_double, void* workspace,
                          void* stream, const GatherChoice* asked_for) {
  if (numel(params.out) == 0) return nullptr;
  if (asked_for && !fits(params, acc_is_double, *asked_for)) {
    return "launch_gather: the kernel that was asked for does not fit these maps";
  }
  const GatherChoice choice = asked_for ? *asked_for : select_kernel(params, acc_is_double);
  if (choice.kernel == GatherKernel::kGeneral) {
    return launch_general(params, acc_is_double, workspace, stream);
  }
  if (!is_extended(choice.kernel)) {
    switch (params.out.dtype) {
      case DType::kFloat16:
        return launch_expand_half(params, choice, stream);
      case DType::kBFloat16:
        return launch_expand_bfloat16(params, choice, stream);
      default:
        return launch_expand_float(params, choice, stream);
    }
  }
  WindowTables tables;
  if (const char* error = fill_tables(params, acc_is_double, workspace, stream, tables))
    return error;
  switch (dtype_of_maps(params)) {
    case DType::kFloat16:
      return launch_extended_half(params, choice, tables, stream);
    case DType::kBFloat16:
      return launch_extended_bfloat16(params, choice, tables, stream);
    default:
      return launch_extended_float(params, choice, tables, stream);
  }
}

const char* launch_pixel_weight_grads(const GatherParams& params, bool acc_is_double,
                                      void* workspace, void* stream) {
  const int64_t (&size)[kDims] = params.out.size;
  const int64_t elements = size[0] * params.num_branches * size[2] * size[3] * size[4];
  if (elements == 0) return nullptr;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const dim3 grid = gather_grid(elements);
  WindowTables tables;
  if (const char* error = fill_tables(params, acc_is_double, workspace, stream, tables))
    return error;
  if (acc_is_double) {
    MSR_LAUNCH(pixel_weight_grads_kernel<double>, grid, dim3(kGatherThreads), 0, cuda_stream,
               params, tables);
  } else {
    MSR_LAUNCH(pixel_weight_grads_kernel<float>, grid, dim3(kGatherThreads), 0, cuda_stream, params,
               tables);
  }
  return last_error();
}

const char* launch_gather_many(const GatherJob* jobs, int count, bool acc_is_double, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  ManyGatherParams many;
  int waiting[kManyJobs] = {}, num_waiting = 0;
  const auto flush = [&]() -> const char* {
    const int batch = num_waiting;
    num_waiting = 0;
    if (batch == 0) return nullptr;
    if (batch == 1) {
      const GatherJob& job = jobs[waiting[0]];
      return launch_gather(*job.params, acc_is_double, job.workspace, stream);
    }
    many.block_begin[0] = 0;
    for (int i = 0; i < kManyJobs; ++i) {
      many.block_begin[i + 1] = many.block_begin[i];
      if (i >= batch) continue;
      const GatherJob& job = jobs[waiting[i]];
      many.params[i] = *job.params;
      set_order(many.params[i]);
      const char* error =
          fill_tables(*job.params, acc_is_double, job.workspace, stream, many.tables[i]);
      if (error) return error;
      many.block_begin[i + 1] += gather_grid(numel(job.params->out)).x;
    }
    const dim3 grid(many.block_begin[kManyJobs]);
    if (acc_is_double) {
      MSR_LAUNCH(gather_many_kernel<double>, grid, dim3(kGatherThreads), 0, cuda_stream, many);
    } else {
      MSR_LAUNCH(gather_many_kernel<float>, grid, dim3(kGatherThreads), 0, cuda_stream, many);
    }
    return last_error();
  };
  for (int i = 0; i < count; ++i) {
    const GatherJob& job = jobs[i];
    const int64_t elements = numel(job.params->out);
    if (elements == 0) continue;
    const bool has_fast_path =
        select_kernel(*job.params, acc_is_double).kernel != GatherKernel::kGeneral;
    const char* error = nullptr;
    if (has_fast_path && elements >= kAloneElements) {
      error = launch_gather(*job.params, acc_is_double, job.workspace, stream);
    } else {
      waiting[num_waiting++] = i;
      if (num_waiting == kManyJobs) error = flush();
    }
    if (error) return error;
  }
  return flush();
}

}  // namespace msr
