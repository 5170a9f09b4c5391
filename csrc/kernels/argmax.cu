#include "argmax_kernel.cuh"
#include "logit_launch.cuh"

namespace msr {
namespace {

template <typename T>
void start(const ArgmaxParams& params, const LogitGrid& grid, void* stream) {
  MSR_LAUNCH(argmax_kernel<T>, blocks_of(grid), dim3(kLogitThreads), 0,
             static_cast<cudaStream_t>(stream), params, grid);
}

}  // namespace

const char* launch_argmax(const ArgmaxParams& params, void* workspace, void* stream) {
  LogitGrid grid;
  const char* error = plan_logits(params.logits, LogitPass::kDecision, 1, workspace, stream, grid);
  if (error || numel(grid.places) == 0) return error;
  with_logit_type(params.logits,
                  [&](auto number) { start<decltype(number)>(params, grid, stream); });
  return last_logit_error();
}

}  // namespace msr
