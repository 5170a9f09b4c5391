// The CUDA launchers, without CUDA types: what csrc/ops links against.
#pragma once

#include "params.h"

namespace msr {

enum class GatherKernel : int32_t { kGeneral = 0, kExpandPlanar = 1, kExpandChannelsLast = 2 };

// A kernel for one gather-sum, as select_kernel chooses it or a test asks for it.
struct GatherChoice {
  GatherKernel kernel;
  int32_t vector;   // EXPAND: elements that a thread computes side by side
  int32_t sources;  // resampled branches of one sum that it keeps rows of; 0: nearest, none needed
  int32_t steps;    // rows or pixels that a thread walks at a time; 0: chosen from the sizes
  int32_t turns;    // how many such walks it takes; 0: likewise
};

// Launchers return null, or the text of the error. `stream` is a cudaStream_t; acc_is_double tells
// which type sums are kept in. launch_spread is declared in reduce_plan.h, with its plan.

// Without a choice, select_kernel makes it; one that does not fit the parameters is an error.
const char* launch_gather(const GatherParams& params, bool acc_is_double, void* stream,
                          const GatherChoice* choice = nullptr);

// dots[i] = the sum of branch i's partial_dots, in block order. dots has the accumulation type.
const char* launch_sum_dots(const SpreadParams& params, bool acc_is_double, void* dots,
                            void* stream);

constexpr int kSpreadThreads = 256;
constexpr int64_t kMaxBlocksPerBranch = 4096;  // beyond it each block takes several turns

}  // namespace msr
