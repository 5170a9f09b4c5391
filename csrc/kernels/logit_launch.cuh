// What the launchers of kernels of resampled logits have in common.
#pragma once

#include <algorithm>

#include "logit_columns.cuh"
#include "logit_grads.cuh"
#include "loss_launch.h"

namespace msr {

inline const char* last_logit_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline bool sums_in_double(const LogitParams& logits) {
  return logits.logits.dtype == DType::kFloat64;
}

// Tables of the taps of every axis.
inline WindowPlan plan_taps(const LogitParams& logits) {
  WindowPlan plan{};
  for (int i = 0; i < kSpatialDims; ++i)
    plan.add(plan.tables.table[0][i], logits.axis[i], /*readers=*/true, sums_in_double(logits));
  return plan;
}

inline int64_t class_blocks_of(const LogitParams& logits) {
  return ceil_div(logits.logits.size[1], kClassesAtOnce);
}

inline int64_t blocks_for(int64_t threads) {
  return std::min(ceil_div(threads, kLogitThreads), kMaxLogitBlocks);
}

// Parts of sums, enough for a thread for each pixel and block of classes. They lie before the
// tables.
inline int64_t parts_bytes(const LogitParams& logits, LogitPass pass) {
  if (pass != LogitPass::kLoss) return 0;
  const int64_t pixels = logits.size[0] * logits.size[1] * logits.size[2];
  return blocks_for(logits.logits.size[0] * class_blocks_of(logits) * pixels) *
         int64_t{sizeof(LossPart)};
}

// The threads of a launch. Its tables are filled, which is a launch too. Null, or the error.
inline const char* plan_logits(const LogitParams& logits, LogitPass pass, int64_t class_blocks,
                               void* workspace, void* stream, LogitGrid& grid) {
  const bool backward = pass == LogitPass::kBackward;
  int64_t sizes[kDims] = {logits.logits.size[0], class_blocks};
  for (int i = 0; i < kSpatialDims; ++i)
    sizes[2 + i] = backward ? logits.logits.size[2 + i] : logits.size[i];
  set_sizes(grid.places, sizes);
  grid.places.channels_last = false;
  if (numel(grid.places) == 0) return nullptr;
  grid.tables = plan_taps(logits).tables;
  grid.tables.workspace = static_cast<unsigned char*>(workspace) + parts_bytes(logits, pass);
  Branch branch{};
  for (int i = 0; i < kSpatialDims; ++i) branch.axis[i] = logits.axis[i];
  return launch_window_tables(&branch, 1, grid.tables, sums_in_double(logits), stream);
}

inline dim3 blocks_of(const LogitGrid& grid) {
  return dim3(static_cast<unsigned>(blocks_for(numel(grid.places))));
}

// Whether every axis has at most two taps.
inline bool has_pairs(const LogitParams& logits) {
  return std::none_of(logits.axis, logits.axis + kSpatialDims,
                      [](const Axis& axis) { return is_windowed(axis.rule); });
}

// Whether a launch is of columns of pixels, and then makes its threads such. A thread has all rows
// of pixels between two of logits, so there must be several; and columns enough for three blocks on
// each multiprocessor of the largest GPUs.
inline bool use_columns(const LogitParams& logits, const LogitChoice& choice, LogitGrid& grid) {
  constexpr int64_t kWantedThreads = int64_t{396} * kColumnThreads;
  const int64_t (&size)[kDims] = logits.logits.size;
  const int64_t sizes[kDims] = {size[0], 1, logits.size[0], size[3], logits.size[2]};
  const int64_t columns = sizes[0] * sizes[2] * sizes[3] * sizes[4];
  if (choice.way == LogitWay::kGeneral || !has_pairs(logits) || logits.size[1] < 2 * size[3] ||
      (choice.way == LogitWay::kBest && columns < kWantedThreads)) {
    return false;
  }
  set_sizes(grid.places, sizes);
  return true;
}

// As many as there are parts of sums for, or less: a block has half as many threads, but they have
// two rows or more.
inline dim3 blocks_of_columns(const LogitGrid& grid) {
  const int64_t blocks = ceil_div(numel(grid.places), kColumnThreads);
  return dim3(static_cast<unsigned>(std::min(blocks, kMaxLogitBlocks)));
}

// Rows of a strip: the more, the less is done twice; but three blocks for each multiprocessor of
// the largest GPUs, twice over. rows: or as many as that.
inline StripPlan plan_strips(const LogitParams& logits, int32_t rows) {
  constexpr int64_t kWantedBlocks = 792;
  constexpr int32_t kMostRows = 16;
  const int64_t (&size)[kDims] = logits.logits.size;
  StripPlan plan{};
  // A block that does not begin a row has one column more, which is not its own.
  plan.column_blocks =
      static_cast<int32_t>(size[4] <= kStripThreads ? 1 : ceil_div(size[4], kStripThreads - 1));
  plan.columns = static_cast<int32_t>(ceil_div(size[4], plan.column_blocks));
  const int64_t used = plan.columns + (plan.column_blocks > 1 ? 1 : 0);
  plan.lanes = static_cast<int32_t>(ceil_div(used, 32) * 32);
  plan.strips = kStripThreads / plan.lanes;
  const int64_t others = size[0] * class_blocks_of(logits) * size[2] * plan.column_blocks;
  for (plan.rows = rows > 0 ? rows : kMostRows;; plan.rows /= 2) {
    plan.strip_blocks = static_cast<int32_t>(ceil_div(size[3], int64_t{plan.rows} * plan.strips));
    plan.blocks = others * plan.strip_blocks;
    if (rows > 0 || plan.rows == 1 || plan.blocks >= kWantedBlocks) return plan;
  }
}

inline dim3 blocks_of(const StripPlan& plan) {
  return dim3(static_cast<unsigned>(std::min(plan.blocks, kMaxLogitBlocks)));
}

// Sums up what `blocks` blocks left. divisor: see loss_totals_kernel.
const char* launch_loss_totals(const LossPart* parts, int64_t blocks, double divisor,
                               bool acc_is_double, const LossTotals& totals, void* stream);

// Calls f with a number of the logits' type.
template <typename F>
void with_logit_type(const LogitParams& logits, F&& f) {
  switch (logits.logits.dtype) {
    case DType::kFloat16:
      return f(Half{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat64:
      return f(double{});
    case DType::kFloat32:
      return f(float{});
  }
}

}  // namespace msr
