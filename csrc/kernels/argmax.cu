#include "argmax_kernel.cuh"
#include "logit_launch.cuh"

namespace msr {
namespace {

template <typename T>
void start(const ArgmaxParams& params, const LogitGrid& grid, bool columns, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (columns) {
    MSR_LAUNCH(argmax_columns_kernel<T>, blocks_of_columns(grid), dim3(kColumnThreads), 0,
               cuda_stream, params, grid);
  } else {
    MSR_LAUNCH(argmax_kernel<T>, blocks_of(grid), dim3(kLogitThreads), 0, cuda_stream, params,
               grid);
  }
}

}  // namespace

const char* launch_argmax(const ArgmaxParams& params, void* workspace, void* stream,
                          const LogitChoice& choice) {
  LogitGrid grid;
  const char* error = plan_logits(params.logits, LogitPass::kDecision, 1, workspace, stream, grid);
  if (error || numel(grid.places) == 0) return error;
  const bool columns = use_columns(params.logits, choice, grid);
  with_logit_type(params.logits,
                  [&](auto number) { start<decltype(number)>(params, grid, columns, stream); });
  return last_logit_error();
}

}  // namespace msr
