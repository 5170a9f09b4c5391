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

// From so many elements of the gradient on that an element reads, blocks sum it up.
constexpr int64_t kMostReadByThread = 256;
// Of those, a thread of such a block reads so many at least before another block takes a share.
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

// How the general kernel's blocks are shared out.
inline void plan_general(SpreadParams& params, SpreadBlocks& blocks) {
  blocks = {};
  params.block_begin[0] = 0;
  for (int b = 0; b < kMaxBranches; ++b) {
    int64_t count = 0, parts = 0, sums = 0;
    if (detail::wanted(params, b)) {
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
      if (has_dots(params, b)) parts = count * images;
      blocks.summers[b] = detail::summers_of(params, blocks, b);
      sums = elements * images * blocks.summers[b];
    }
    params.block_begin[b + 1] = params.block_begin[b] + count;
    blocks.part_begin[b + 1] = blocks.part_begin[b] + parts;
    blocks.sum_begin[b + 1] = blocks.sum_begin[b] + sums;
  }
}

// How the fast kernels' parts of the weights' gradients lie: each branch is one group.
inline void place_parts(SpreadParams& params, SpreadPlan& plan) {
  plan.blocks = {};
  for (int i = 0; i < plan.num_launches; ++i) {
    for (int k = 0; k < plan.launches[i].num_jobs; ++k) {
      const ReduceJob& job = plan.launches[i].jobs[k];
      for (int slot = 0; slot < job.slots(); ++slot)
        plan.blocks.chunks[job.branch_of(slot)] = job.blocks();
    }
  }
  params.block_begin[0] = 0;
  for (int b = 0; b < kMaxBranches; ++b)
    params.block_begin[b + 1] = params.block_begin[b] + plan.blocks.chunks[b];
  if (detail::wants_dots(params))
    std::copy_n(params.block_begin, kMaxBranches + 1, plan.blocks.part_begin);
}

// The workspace begins with the parts, then come the sums, then tables of windows.
inline int64_t bytes_of_doubles(int64_t count) {
  return ceil_div(count, 2) * 2 * int64_t{sizeof(double)};
}
inline int64_t sums_at(const SpreadBlocks& blocks) {
  return bytes_of_doubles(blocks.part_begin[kMaxBranches]);
}
inline int64_t tables_at(const SpreadBlocks& blocks) {
  return sums_at(blocks) + bytes_of_doubles(blocks.sum_begin[kMaxBranches]);
}

// Plans a spread: the chosen kernels, or the general one where they cannot do it. Sets
// params.block_begin: which blocks of the general kernel, and which parts of a fast one's dot
// products, belong to which branch.
inline SpreadPlan plan_spread(SpreadParams& params, const SpreadChoice& choice,
                              bool acc_is_double) {
  SpreadPlan plan;
  plan.choice = choice;
  plan.num_launches = 0;
  if (!reduce_fits(params, choice.kernel) ||
      (choice.kernel != SpreadKernel::kGeneral && !plan_reduce(params, plan)))
    plan.choice.kernel = SpreadKernel::kGeneral;
  int64_t table_bytes = 0;
  if (plan.choice.kernel == SpreadKernel::kGeneral) {
    plan.num_launches = 0;
    plan_general(params, plan.blocks);
    table_bytes =
        plan_windows(params.branches, params.num_branches, /*adjoint=*/true, acc_is_double).bytes;
  } else {
    place_parts(params, plan);
  }
  plan.workspace_bytes = tables_at(plan.blocks) + table_bytes;
  return plan;
}

// Runs what was planned, in a workspace of plan.workspace_bytes (launch.h). weight_grads has the
// accumulation type and the shape of the weights; it is written if a branch has inputs, and null
// where there are no weights. Null, or the text of the error.
const char* launch_spread(const SpreadParams& params, const SpreadPlan& plan, bool acc_is_double,
                          void* workspace, void* weight_grads, void* stream);

}  // namespace msr
