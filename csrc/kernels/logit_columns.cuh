// Pixels that lie one above the other between the same two rows of logits: what they read is
// combined along the width once for all of them. For rules of at most two taps, where the result
// has more rows than the logits.
#pragma once

#include "logit_device.cuh"

namespace msr {

constexpr int kColumnThreads = 128;
constexpr int kColumnRows = 4;  // that a thread has at a time

// Blocks of a kernel of columns that a multiprocessor must hold.
template <typename acc_t>
constexpr int column_blocks_at_once() {
  return sizeof(acc_t) == sizeof(float) ? 3 : 2;
}

// Rows [y, end) of the result, kColumnRows at most, whose first tap is row `row` of the logits; in
// one column and plane.
struct PixelColumn {
  int64_t n;
  int32_t z, y, end, x, row;

  __device__ bool has(int r) const { return y + r < end; }
  __device__ Position at(int r) const { return {n, 0, {z, y + r, x}}; }
};

// Calls visit(r, first, count, values) for row y + r of the column and blocks of classes in order.
template <typename T, typename acc_t, typename Visit>
__device__ __forceinline__ void visit_column(const LogitParams& logits, const LogitGrid& grid,
                                             const PixelColumn& column, Visit&& visit) {
  const LogitTaps<acc_t> depth(logits, grid, 0, column.z);
  const LogitTaps<acc_t> columns(logits, grid, 2, column.x);
  acc_t above[kColumnRows], below[kColumnRows];
  bool two = false;
#pragma unroll
  for (int r = 0; r < kColumnRows; ++r) {
    above[r] = below[r] = 0;
    if (!column.has(r)) continue;
    const LogitTaps<acc_t> rows(logits, grid, 1, column.y + r);
    two = rows.end() - rows.begin() > 1;  // the same for all of them
    above[r] = rows[column.row];
    if (two) below[r] = rows[column.row + 1];
  }
  acc_t upper[kClassesAtOnce], lower[kClassesAtOnce], values[kClassesAtOnce];
  for (int64_t first = 0; first < logits.logits.size[1]; first += kClassesAtOnce) {
    const int count = classes_in(logits, first);
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k) upper[k] = lower[k] = 0;
    add_line<T>(logits, column.n, depth, column.row, acc_t(1), columns, first, count, upper);
    if (two)
      add_line<T>(logits, column.n, depth, column.row + 1, acc_t(1), columns, first, count, lower);
#pragma unroll
    for (int r = 0; r < kColumnRows; ++r) {
      if (!column.has(r)) continue;
#pragma unroll
      for (int k = 0; k < kClassesAtOnce; ++k) {
        values[k] = above[r] * upper[k];
        if (two) values[k] = fma(below[r], lower[k], values[k]);
      }
      visit(r, first, count, values);
    }
  }
}

// Calls visit(column) for the columns that fall to this thread: of a plane of pixels (n, z), those
// between two rows of logits. grid.places: [N, 1, D of the result, H of the logits, W of the
// result].
template <typename Visit>
__device__ __forceinline__ void for_each_column(const LogitParams& logits, const LogitGrid& grid,
                                                Visit&& visit) {
  const int64_t total = numel(grid.places);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kColumnThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x; i < total;
       i += step) {
    const Position p = position_of(grid.places, i);
    const Range lines = begun_at(logits, grid, 1, p.at[1]);
    for (int32_t y = lines.begin; y < lines.end; y += kColumnRows)
      visit(PixelColumn{p.n, p.at[0], y, lines.end, p.at[2], p.at[1]});
  }
}

}  // namespace msr
