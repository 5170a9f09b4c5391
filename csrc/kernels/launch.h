// The CUDA launchers, without CUDA types: what csrc/ops links against.
#pragma once

#include "params.h"

namespace msr {

// EXPAND has three kinds of kernels, each for planar and for channels_last results. Plain: sums of
// branches of up to two taps per axis, with weights of the branches, a ReLU, a mask or a gate.
// Extended: whatever else a sum may have. Windows: that, and one branch of up to four taps per
// axis.
enum class GatherKernel : int32_t {
  kGeneral = 0,
  kExpandPlanar = 1,
  kExpandChannelsLast = 2,
  kExtendedPlanar = 3,
  kExtendedChannelsLast = 4,
  kWindowsPlanar = 5,
  kWindowsChannelsLast = 6,
};

constexpr bool is_channels_last(GatherKernel kernel) {
  return kernel == GatherKernel::kExpandChannelsLast ||
         kernel == GatherKernel::kExtendedChannelsLast ||
         kernel == GatherKernel::kWindowsChannelsLast;
}
constexpr bool has_windows(GatherKernel kernel) { return kernel >= GatherKernel::kWindowsPlanar; }
constexpr bool is_extended(GatherKernel kernel) { return kernel >= GatherKernel::kExtendedPlanar; }

// A kernel for one gather-sum, as select_kernel chooses it or a test asks for it.
struct GatherChoice {
  GatherKernel kernel;
  int32_t vector;   // EXPAND: elements that a thread computes side by side
  int32_t sources;  // resampled branches of one sum that it keeps rows of; 0: nearest, none needed
  int32_t steps;    // rows or pixels that a thread walks at a time; 0: chosen from the sizes
  int32_t turns;    // how many such walks it takes; 0: likewise
};

// Launchers return null, or the text of the error. `stream` is a cudaStream_t; acc_is_double tells
// which type sums are kept in. `workspace` is device memory, aligned to 16 bytes, of which a call
// needs as much as workspace_bytes says; it may be given back once what was launched has run.
// launch_spread is declared in spread_plan.h, with its plan.

int64_t workspace_bytes(const GatherParams& params, bool acc_is_double);

// Without a choice, select_kernel makes it; one that does not fit the parameters is an error.
const char* launch_gather(const GatherParams& params, bool acc_is_double, void* workspace,
                          void* stream, const GatherChoice* choice = nullptr);

// Independent gathers, each with the workspace that it needs: the small ones in one launch.
struct GatherJob {
  const GatherParams* params;
  void* workspace;
};
// From as many elements of a result on, a fast path gains more than its launch costs.
constexpr int64_t kAloneElements = int64_t{1} << 18;
const char* launch_gather_many(const GatherJob* jobs, int count, bool acc_is_double, void* stream);

// For params.pixel_weight_grads. It needs the same workspace.
const char* launch_pixel_weight_grads(const GatherParams& params, bool acc_is_double,
                                      void* workspace, void* stream);

constexpr int kSpreadThreads = 256;
// Enough for several blocks on each multiprocessor of the largest GPUs.
constexpr int64_t kWantedSumBlocks = 1056;
constexpr int64_t kMaxBlocksPerBranch = 4096;  // beyond it each block takes several turns

}  // namespace msr
