// How a spread is run on the GPU: by which kernels, with how many blocks, in how much workspace.
// Host code.
#pragma once

#include <algorithm>
#include <cstdint>

#include "launch.h"
#include "params.h"
#include "reduce_plan.h"
#include "spread_blocks.h"
#include "window_tables.h"

namespace msr {

namespace detail {

// Of the elements that blocks sum up, a thread of such a block reads so many at least before
// another block takes a share.
constexpr int64_t kLeastShare = 16;

// About how many elements of one image of the gradient an element of the branch reads, from the
// sizes alone.
inline int64_t reads_per_image(const SpreadParams& params, int b) {
  int64_t reads = 1;
  for (int i = 2; i < kDims; ++i)
    reads *= ceil_div(params.grad.size[i], params.branches[b].map.size[i]);
  return reads;
}

// Blocks that sum up one element (of one image, where images are apart); 0: threads do.
inline int32_t summers_of(const SpreadParams& params, const SpreadBlocks& blocks, int b) {
  const int64_t apart = images_apart(params, blocks, b);
  const int64_t images = is_broadcast(params, b) ? params.grad.size[0] / apart : 1;
  const int64_t reads = reads_per_image(params, b) * images;
  if (reads < kMostReadByThread) return 0;
  const int64_t sums = numel(params.branches[b].map) * apart;
  const int64_t wanted = ceil_div(kWantedSumBlocks, sums);
  const int64_t most = reads / (kSpreadThreads * kLeastShare);
  return static_cast<int32_t>(std::max<int64_t>(1, std::min(wanted, most)));
}

}  // namespace detail

// How the general kernel's blocks are shared out: those of the given branches, a bit for each. Sets
// params.block_begin, and how many parts of dot products each branch has.
inline void plan_general(SpreadParams& params, uint16_t branches, SpreadBlocks& blocks,
                         int64_t (&parts)[kMaxBranches]) {
  params.block_begin[0] = 0;
  for (int b = 0; b < kMaxBranches; ++b) {
    int64_t count = 0, sums = 0;
    if (branches >> b & 1) {
      const bool by_image =
          is_broadcast(params, b) && params.weights.stride_n != 0 && b < params.weights.count;
      if (by_image) blocks.by_image = static_cast<uint16_t>(blocks.by_image | 1u << b);
      const Groups groups = groups_of(params, b);
      const int64_t num_groups = groups.images * groups.channels;
      const int64_t elements = numel(params.branches[b].map);
      int64_t chunks = ceil_div(elements / num_groups, kSpreadThreads);
      // A block that has a part for each image takes one turn.
      if (!by_image)
        chunks = std::min(chunks, std::max<int64_t>(1, kMaxBlocksPerBranch / num_groups));
      blocks.chunks[b] = chunks;
      count = num_groups * chunks;
      const int64_t images = images_apart(params, blocks, b);
      if (has_dots(params, b)) parts[b] = count * images;
      blocks.summers[b] = detail::summers_of(params, blocks, b);
      sums = elements * images * blocks.summers[b];
    }
    params.block_begin[b + 1] = params.block_begin[b] + count;
    blocks.sum_begin[b + 1] = blocks.sum_begin[b] + sums;
  }
}

// How the fast kernels' parts of the weights' gradients lie, and how many there are.
inline void place_parts(const SpreadParams& params, SpreadPlan& plan,
                        int64_t (&parts)[kMaxBranches]) {
  for (int i = 0; i < plan.num_launches; ++i) {
    const ReduceLaunch& launch = plan.launches[i];
    for (int k = 0; k < launch.num_jobs; ++k) {
      const ReduceJob& job = launch.jobs[k];
      for (int slot = 0; slot < job.slots(); ++slot) {
        const int b = job.branch_of(slot);
        if (!has_dots(params, b)) continue;
        const int64_t (&size)[kDims] = params.branches[b].map.size;
        plan.blocks.part_images[b] = launch.part_images ? static_cast<int32_t>(size[0]) : 1;
        plan.blocks.part_channels[b] = launch.part_channels ? static_cast<int32_t>(size[1]) : 1;
        plan.blocks.chunks[b] = launch.part_images ? job.part_chunks() : job.blocks();
        parts[b] =
            plan.blocks.chunks[b] * plan.blocks.part_images[b] * plan.blocks.part_channels[b];
      }
    }
  }
}

// The workspace begins with the parts, then come the sums, then tables of windows.
inline int64_t bytes_of_doubles(int64_t count) {
  return ceil_div(count, 2) * 2 * int64_t{sizeof(double)};
}
inline int64_t sums_at(const SpreadParams& params) {
  return bytes_of_doubles(params.part_begin[kMaxBranches]);
}
inline int64_t tables_at(const SpreadParams& params, const SpreadBlocks& blocks) {
  return sums_at(params) + bytes_of_doubles(blocks.sum_begin[kMaxBranches]);
}

// Plans a spread: the chosen kernels, and the general one for the branches that they cannot write.
// Sets params.block_begin and params.part_begin.
inline SpreadPlan plan_spread(SpreadParams& params, const SpreadChoice& choice,
                              bool acc_is_double) {
  SpreadPlan plan{};
  plan.choice = choice;
  const uint16_t written = plan_reduce(params, plan);
  if (written == 0) plan.choice.kernel = SpreadKernel::kGeneral;
  int64_t parts[kMaxBranches] = {};
  const uint16_t others = detail::wanted_branches(params) & static_cast<uint16_t>(~written);
  plan_general(params, others, plan.blocks, parts);
  place_parts(params, plan, parts);
  params.part_begin[0] = 0;
  for (int b = 0; b < kMaxBranches; ++b) params.part_begin[b + 1] = params.part_begin[b] + parts[b];
  const WindowPlan windows =
      plan_windows(params.branches, params.num_branches, /*adjoint=*/true, acc_is_double);
  plan.tables = windows.tables;
  plan.table_bytes = windows.bytes;
  plan.workspace_bytes = tables_at(params, plan.blocks) + plan.table_bytes;
  return plan;
}

// Runs what was planned, in a workspace of plan.workspace_bytes (launch.h). weight_grads has the
// accumulation type and the shape of the weights; it is written if a branch has inputs, and null
// where there are no weights. Null, or the text of the error.
const char* launch_spread(const SpreadParams& params, const SpreadPlan& plan, bool acc_is_double,
                          void* workspace, void* weight_grads, void* stream);

}  // namespace msr
