// The CUDA launchers, without CUDA types: what csrc/ops links against.
#pragma once

#include "params.h"

namespace msr {

// Each returns null, or the text of the CUDA error. `stream` is a cudaStream_t; acc_is_double
// chooses the type that sums are kept in.
const char* launch_gather(const GatherParams& params, bool acc_is_double, void* stream);
const char* launch_spread(const SpreadParams& params, bool acc_is_double, void* stream);

// dots[i] = the sum of branch i's partial_dots, in block order. dots has the accumulation type.
const char* launch_sum_dots(const SpreadParams& params, bool acc_is_double, void* dots,
                            void* stream);

constexpr int kSpreadThreads = 256;
constexpr int64_t kMaxBlocksPerBranch = 4096;  // beyond it each block takes several turns

// Fills params.block_begin for the CUDA kernel: how many blocks each branch gets. Depends on sizes
// alone, never on the device, so that the order of the weight gradients' sums is the same
// everywhere.
inline void plan_spread_blocks(SpreadParams& params) {
  params.block_begin[0] = 0;
  for (int b = 0; b < kMaxInputs; ++b) {
    int64_t blocks = 0;
    if (b < params.num_branches && (params.branches[b].map.data || params.inputs[b])) {
      blocks = ceil_div(numel(params.branches[b].map), kSpreadThreads);
      if (blocks > kMaxBlocksPerBranch) blocks = kMaxBlocksPerBranch;
    }
    params.block_begin[b + 1] = params.block_begin[b] + blocks;
  }
}

}  // namespace msr
