// What the fast spread kernels are told besides SpreadParams: which branches to write and how the
// work is cut into blocks. reduce_plan.h fills it in.
#pragma once

#include <cstdint>

#include "params.h"
#include "spread_blocks.h"
#include "window_tables.h"

namespace msr {

enum class SpreadKernel : int32_t {
  kGeneral,       // spread_kernel.cuh: anything
  kPlanar,        // reduce_aligned_kernel.cuh and reduce_planar_kernel.cuh: columns contiguous
  kChannelsLast,  // reduce_channels_last_kernel.cuh: channels contiguous
};

// What select_kernel chooses; tests set its fields to force a variant. Branches that the kernel
// cannot write are left to the general one.
struct SpreadChoice {
  SpreadKernel kernel;
  int32_t vector;      // at most this many elements per load
  int32_t group;       // at most this many branches that share one read of the gradient
  int32_t strip_rows;  // height of a block's strip of the gradient; 0: chosen for enough blocks
  bool aligned;        // exact factors may take the kernel made for them
};

constexpr int kMaxVector = 8;  // as many as 16 bytes hold
constexpr int kMaxGroup = 3;   // branches that one kernel instance handles together
// Rows of a branch that one row of the gradient belongs to, at most: two taps, or a window.
constexpr int kTapRows = 2;
constexpr int kWindowTapRows = 4;
constexpr int kReduceThreads = 256;  // of a block, or half or a quarter on small maps
constexpr int kLeastReduceThreads = 64;
// Enough for two blocks on each multiprocessor of the largest GPUs, with some to spare.
constexpr int64_t kWantedReduceBlocks = 528;
constexpr int32_t kMaxStripRows = 64;
constexpr int64_t kMaxReduceBlocks = (int64_t{1} << 31) - 1;
// What every GPU grants without being asked.
constexpr int64_t kMaxSharedBytes = 48 * 1024;
constexpr int32_t kMaxOuterTaps = 256;
// Below this a column index plus one half is exact in float32, so that a nearest rule with a factor
// of two picks what the factor says.
constexpr int32_t kMaxExactColumns = 1 << 22;

// Shared memory of every kernel: what the block does, the taps of depth and batch, of rows, of
// columns, buffers for the horizontal sums, and the partial dot products, in this order.
constexpr int kBlockWorkBytes = 112;
struct OuterTap {
  int64_t grad_offset;  // elements, from the first tap's plane
  int64_t gate_offset;  // bits, likewise
  float weight;
  int32_t depth;  // of the gradient where this block owns it (identity branches), else -1
};
// A row of the gradient: the first row of the branch that it belongs to, and its weights there and
// in the next ones.
template <int kRows>
struct alignas(16) RowTap {
  int32_t index;
  float weight[kRows];
};
// A column of the branch: the columns of the gradient that it sums up, from the block's first one
// on. Their weights are in a table.
struct ColumnSum {
  int32_t begin;
  int32_t count;
};
constexpr int kAlignedClasses = 3;  // first, inner and last columns
constexpr int kAlignedTaps = 16;    // at most: factor 8, linear

// One part of a launch: branches of one channel slice that read the same planes of the gradient.
struct ReduceJob {
  int8_t branches[kMaxGroup];  // that are summed up
  int8_t num_branches;
  int8_t first;            // the branch that tells slice, depth and batch of all of them
  uint16_t identities;     // bitmask of the branches that are written as they are
  uint16_t vector_inputs;  // likewise: those whose forward values lie as their gradients do, where
                           // they can be loaded in vectors
  int8_t identity_begin, identity_end;  // they are among these
  bool over_batch;                      // the branch has one image for all of the gradient's
  int32_t strip_rows;
  int32_t strips;
  int32_t depths;  // input depths: each is a set of strips of its own
  // All but reduce_aligned, else 0: threads side by side along the columns, columns of the gradient
  // that a block owns, and how many such tiles there are.
  int32_t threads_x;
  int32_t tile_columns;
  int32_t column_tiles;
  // channels_last: threads side by side along the channels, each with a vector, and how many such
  // tiles there are.
  int32_t lanes;
  int32_t lane_tiles;
  // reduce_aligned: items of a block, and of a plane.
  int32_t tile_items;
  int32_t plane_items;
  // The parts of the weights' gradients (spread_blocks.h): a plane's, an image's or all of the
  // branch's come from so many tiles, which lie behind each other.
  int32_t part_tiles;
  int64_t items;  // reduce_aligned: column vectors of all planes; others: planes, or images
  int64_t tiles;  // blocks for one strip
  int64_t blocks_in_region;  // of the launch
  int64_t block_begin;       // the first of them

  int64_t blocks() const { return tiles * strips * depths; }
  // Parts of one plane's (or image's) dot products.
  int64_t part_chunks() const { return int64_t{part_tiles} * strips * depths; }

  // Partial dot products are kept by slot: the summed branches, then the identities.
  MSR_HOST_DEVICE int slots() const {
    int count = num_branches;
    for (int b = 0; b < kMaxBranches; ++b) count += identities >> b & 1;
    return count;
  }
  MSR_HOST_DEVICE int branch_of(int slot) const {
    if (slot < num_branches) return branches[slot];
    slot -= num_branches;
    int b = 0;
    while (!(identities >> b & 1) || slot-- > 0) ++b;
    return b;
  }
};

// One launch: jobs that the same kernel instance handles. Blocks are ordered by region (a strip of
// rows) first, so that jobs which read the same part of the gradient do so at about the same time,
// and the second one finds it in the L2 cache.
struct ReduceLaunch {
  ReduceJob jobs[kMaxBranches];
  int32_t num_jobs;
  int32_t threads;  // of a block
  int32_t rows;     // of the gradient
  bool aligned;
  int8_t vector;  // elements per load
  int8_t group;
  int8_t tap_rows;    // kTapRows or kWindowTapRows
  int8_t columns;     // that a thread owns; reduce_aligned: 0
  int8_t dot_values;  // partial dot products of a thread and branch: several where channels differ
  int8_t part_images, part_channels;  // whether parts of the weights' gradients tell them apart
  int64_t regions;                    // into which every job's blocks are cut
  int64_t blocks_per_region;
  int32_t row_capacity;  // row taps of one branch
  int32_t rows_at;       // bytes
  int32_t columns_at;
  int32_t column_weights;  // for each column of a branch, at most
  int32_t weights_at;
  int32_t buffers_at;
  int32_t dots_at;
  int32_t shared_bytes;

  int64_t blocks() const { return regions * blocks_per_region; }
};

static_assert(sizeof(SpreadParams) + sizeof(ReduceLaunch) + sizeof(WindowTables) <= 32764,
              "kernels take no more");

// The general kernel takes the branches that are in no launch.
struct SpreadPlan {
  SpreadChoice choice;
  ReduceLaunch launches[kMaxBranches];
  int32_t num_launches;
  WindowTables tables;  // without a workspace
  int64_t table_bytes;
  SpreadBlocks blocks;
  int64_t workspace_bytes;
};

// Columns that a thread owns, loaded in vectors of `vector`; and threads of a block.
constexpr int reduce_planar_columns(DType dtype, int vector, int tap_rows) {
  return dtype == DType::kFloat32 || vector == 1 || tap_rows == kWindowTapRows ? 4 : 8;
}
constexpr int reduce_planar_threads(int columns, int tap_rows) {
  return columns == 8 || tap_rows == kWindowTapRows ? 128 : 256;
}

// One instance of a kernel template, and how to start it.
struct ReduceInstance {
  const char* name;
  DType dtype;
  int32_t vector;
  int32_t group;
  int32_t tap_rows;
  void (*start)(const char* name, const SpreadParams& params, const ReduceLaunch& launch,
                const WindowTables& tables, void* stream);

  bool is(DType wanted, const ReduceLaunch& launch) const {
    return dtype == wanted && vector == launch.vector && group == launch.group &&
           tap_rows == launch.tap_rows;
  }
};
struct ReduceInstances {
  const ReduceInstance* first;
  int count;
};
ReduceInstances reduce_aligned_instances();
ReduceInstances reduce_planar_instances();
ReduceInstances reduce_channels_last_instances();

}  // namespace msr
