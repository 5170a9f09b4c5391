// Tables of taps on the GPU: which axes of a call have one, and where it lies in the workspace.
// Gathers and spreads have them for windows; kernels that read the same taps very often, for all.
//
// A kernel fills them before each call (window_tables_kernel.cuh), on the call's own stream:
// nothing is copied from the host, nothing is kept from call to call, so a CUDA graph captures it
// all.
#pragma once

#include <cstdint>

#include "params.h"
#include "windows.h"

namespace msr {

// Of one axis: the windows of its destinations, then (where it is read transposed) the destinations
// that read each source, then the weights, one row of `width` for each destination.
struct WindowTable {
  int64_t at;     // bytes, from the beginning of the workspace
  int32_t width;  // 0: there is no table
  bool readers;
};

struct WindowTables {
  void* workspace;
  WindowTable table[kMaxBranches][kSpatialDims];

  MSR_HOST_DEVICE Range* windows(const WindowTable& of) const {
    return reinterpret_cast<Range*>(static_cast<unsigned char*>(workspace) + of.at);
  }
  MSR_HOST_DEVICE Range* readers(const WindowTable& of, const Axis& axis) const {
    return windows(of) + axis.out_size;
  }
  template <typename acc_t>
  MSR_HOST_DEVICE acc_t* weights(const WindowTable& of, const Axis& axis) const {
    return reinterpret_cast<acc_t*>(readers(of, axis) + (of.readers ? axis.in_size : 0));
  }
};

// Maxima take their windows from pool_window and pool_readers: they have no weights.
inline bool has_table(const Axis& axis) {
  return is_windowed(axis.rule) && axis.rule != Rule::kMaxPool;
}

struct WindowPlan {
  WindowTables tables;  // without a workspace
  int64_t bytes;        // that they need of one

  // Sets the table of an axis. readers: whether it lists those of each source, too.
  void add(WindowTable& table, const Axis& axis, bool readers, bool acc_is_double) {
    const int32_t width = is_windowed(axis.rule) ? widest_window(axis)
                          : is_linear(axis.rule) ? 2
                                                 : 1;
    table = {bytes, width, readers};
    const int64_t ranges = int64_t{axis.out_size} + (readers ? axis.in_size : 0);
    const int64_t weights = int64_t{axis.out_size} * width;
    const int64_t used = ranges * int64_t{sizeof(Range)} + weights * (acc_is_double ? 8 : 4);
    bytes += ceil_div(used, 16) * 16;
  }
};

// adjoint: whether the kernel reads against the direction of the axes, as a spread does.
inline WindowPlan plan_windows(const Branch* branches, int32_t count, bool adjoint,
                               bool acc_is_double) {
  WindowPlan plan{};
  for (int b = 0; b < count; ++b) {
    if (numel(branches[b].map) == 0) continue;
    for (int i = 0; i < kSpatialDims; ++i) {
      const Axis& axis = branches[b].axis[i];
      if (!has_table(axis)) continue;
      plan.add(plan.tables.table[b][i], axis, axis.transposed != adjoint, acc_is_double);
    }
  }
  return plan;
}

// Fills the tables, in one launch; in none where no axis has one. Null, or the text of the error.
const char* launch_window_tables(const Branch* branches, int32_t count, const WindowTables& tables,
                                 bool acc_is_double, void* stream);

}  // namespace msr
