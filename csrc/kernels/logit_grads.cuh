// From the gradients of resampled logits, which a functor makes pixel by pixel, to those of the
// logits. Two ways, without atomics, each logit written once, its sum taken in a fixed order.
//
// Gathered: a thread has one logit (and a few classes) and goes through the pixels that read it.
// Every pixel's gradient is made once for each logit that it reads: four times for two linear axes.
//
// In strips, for rules of at most two taps: a thread has a column of a few rows of logits. It goes
// through the pixels whose first tap is its column, row by row of the result, and hands on to its
// neighbour what belongs to the second tap. Of rows it holds two, those that the result's row
// reads. So pixels' gradients are made once, and again only between strips.
#pragma once

#include "logit_device.cuh"
#include "planted_faults.h"

namespace msr {

constexpr int kStripThreads = 128;

// Blocks of a kernel of strips that a multiprocessor must hold: 168 registers for a thread in
// float, which has two rows of sums and two of parts of them.
template <typename acc_t>
constexpr int strip_blocks_at_once() {
  return sizeof(acc_t) == sizeof(float) ? 3 : 2;
}

// What a thread of the gathering kernel has.
struct LogitPlace {
  Position at;
  int64_t first;
  int count;  // of classes
};

MSR_HOST_DEVICE LogitPlace place_of(const LogitParams& logits, const LogitGrid& grid, int64_t i) {
  LogitPlace place{position_of(grid.places, i), 0, 0};
  place.first = place.at.c * kClassesAtOnce;
  place.count = classes_in(logits, place.first);
  return place;
}

// pixel(p, first, count, values) turns resampled logits into their gradients.
template <typename T, typename acc_t, typename Pixel>
__device__ __forceinline__ void gather_grads(const LogitParams& logits, const LogitGrid& grid,
                                             const LogitPlace& place, const Pixel& pixel,
                                             acc_t (&grads)[kClassesAtOnce]) {
  const Range planes = readers_of(logits, grid, 0, place.at.at[0]);
  const Range lines = readers_of(logits, grid, 1, place.at.at[1]);
  const Range pixels = readers_of(logits, grid, 2, place.at.at[2]);
  acc_t values[kClassesAtOnce], line[kClassesAtOnce];
#pragma unroll
  for (acc_t& one : grads) one = 0;
  for (int32_t z = planes.begin; z < planes.end; ++z) {
    const LogitTaps<acc_t> depth(logits, grid, 0, z);
    for (int32_t y = lines.begin; y < lines.end; ++y) {
      const LogitTaps<acc_t> rows(logits, grid, 1, y);
#pragma unroll
      for (acc_t& one : line) one = 0;
      for (int32_t x = pixels.begin; x < pixels.end; ++x) {
        const LogitTaps<acc_t> columns(logits, grid, 2, x);
        read_logits<T>(logits, place.at.n, depth, rows, columns, place.first, place.count, values);
        pixel(Position{place.at.n, 0, {z, y, x}}, place.first, place.count, values);
        const acc_t factor = columns[place.at.at[2]];
#pragma unroll
        for (int k = 0; k < kClassesAtOnce; ++k) line[k] = fma(factor, values[k], line[k]);
      }
      const acc_t outer = depth[place.at.at[0]] * rows[place.at.at[1]];
#pragma unroll
      for (int k = 0; k < kClassesAtOnce; ++k) grads[k] = fma(outer, line[k], grads[k]);
    }
  }
}

// How the logits are cut into strips. A block has `strips` of them, one above the other, of `lanes`
// columns each; its blocks of columns overlap by one, whose gradients are the other block's.
struct StripPlan {
  int32_t rows;           // of logits, in a strip
  int32_t strips;         // of a block
  int32_t lanes;          // threads of a strip, a multiple of 32
  int32_t columns;        // that a block writes
  int32_t column_blocks;  // of a row
  int32_t strip_blocks;   // of a plane
  int64_t blocks;         // of all
};

// The strips of block number `block`; all its threads call it.
template <typename T, typename acc_t, typename Pixel>
__device__ __forceinline__ void walk_strips(const LogitParams& logits, const LogitGrid& grid,
                                            const StripPlan& plan, int64_t block,
                                            const Pixel& pixel, const Map& grads,
                                            acc_t (&handed_on)[2][kClassesAtOnce][kStripThreads]) {
  const int64_t (&size)[kDims] = logits.logits.size;
  // Uniform: which strips.
  const int64_t class_blocks = (size[1] + kClassesAtOnce - 1) / kClassesAtOnce;
  const auto take = [&block](int64_t count) {
    const int64_t rest = block % count;
    block /= count;
    return static_cast<int32_t>(rest);
  };
  const int32_t column_block = take(plan.column_blocks);
  const int32_t strip_block = take(plan.strip_blocks);
  const int32_t plane = take(size[2]);
  const int64_t first = int64_t{take(class_blocks)} * kClassesAtOnce;
  const int64_t n = block;
  const int count = classes_in(logits, first);
  const auto height = static_cast<int32_t>(size[3]), width = static_cast<int32_t>(size[4]);

  // The thread's column, and the rows of its strip.
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % plan.lanes;
  const int32_t column = column_block * plan.columns + lane - (column_block > 0 ? 1 : 0);
  const bool writes = column < width && column < (column_block + 1) * plan.columns &&
                      column >= column_block * plan.columns;
  const Range pixels = column < width && column < (column_block + 1) * plan.columns
                           ? begun_at(logits, grid, 2, column)
                           : Range{0, 0};
  // What a block has of threads beyond its strips only meets the others.
  const bool idle = thread / plan.lanes >= plan.strips;
  const int32_t strip = strip_block * plan.strips + thread / plan.lanes;
  const auto lines_of = [&](int32_t number) -> Range {
    const int32_t begin = number * plan.rows;
    if (begin >= height) return {0, 0};
    const int32_t end = begin + plan.rows < height ? begin + plan.rows : height;
    return {readers_of(logits, grid, 1, begin).begin, readers_of(logits, grid, 1, end - 1).end};
  };
  const Range lines = idle ? Range{0, 0} : lines_of(strip);
  const int32_t begin = idle ? height : strip * plan.rows;
  const int32_t end = begin + plan.rows < height ? begin + plan.rows : height;
  // All threads of the block meet once for each line.
  int32_t turns = 0;
  for (int32_t s = 0; s < plan.strips; ++s) {
    const Range other = lines_of(strip_block * plan.strips + s);
    turns = other.end - other.begin > turns ? other.end - other.begin : turns;
  }

  const Range planes = readers_of(logits, grid, 0, plane);
  // Sums of rows `row` and row + 1 of the logits' gradients. The first may be another strip's.
  int32_t row = begin - 1;
  acc_t upper[kClassesAtOnce] = {}, lower[kClassesAtOnce] = {};
  const auto next_row = [&] {
    if (writes && row >= begin)
      store_grads<T>(grads, Position{n, 0, {plane, row, column}}, first, count, upper);
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k) {
      upper[k] = lower[k];
      lower[k] = 0;
    }
    ++row;
  };
  for (int32_t turn = 0; turn < turns; ++turn) {
    const int32_t y = lines.begin + turn;
    acc_t own[kClassesAtOnce] = {}, next[kClassesAtOnce] = {};
    if (y < lines.end) {
      const LogitTaps<acc_t> rows(logits, grid, 1, y);
      for (int32_t z = planes.begin; z < planes.end; ++z) {
        const LogitTaps<acc_t> depth(logits, grid, 0, z);
        const acc_t outer = depth[plane];
        for (int32_t x = pixels.begin; x < pixels.end; ++x) {
          const LogitTaps<acc_t> columns(logits, grid, 2, x);
          acc_t values[kClassesAtOnce];
          read_logits<T>(logits, n, depth, rows, columns, first, count, values);
          pixel(Position{n, 0, {z, y, x}}, first, count, values);
          const acc_t left = outer * columns[column];
#pragma unroll
          for (int k = 0; k < kClassesAtOnce; ++k) own[k] = fma(left, values[k], own[k]);
          // Not with a weight of zero, which would hand on NaN.
          if (columns.end() - column < 2) continue;
          const acc_t right = outer * columns[column + 1];
#pragma unroll
          for (int k = 0; k < kClassesAtOnce; ++k) next[k] = fma(right, values[k], next[k]);
        }
      }
    }
    // By turns, so that one barrier keeps a turn's writes from the reads of the one before.
    auto& shared = handed_on[turn % 2];
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k)
      shared[k][thread + (kFaultSharedOverflow ? kStripThreads : 0)] = next[k];
    if (!kFaultMissingBarrier) __syncthreads();
    if (y >= lines.end) continue;
    if (lane > 0) {
#pragma unroll
      for (int k = 0; k < kClassesAtOnce; ++k) own[k] += shared[k][thread - 1];
    }
    const LogitTaps<acc_t> rows(logits, grid, 1, y);
    while (row < rows.begin()) next_row();
    const acc_t above = rows[row];
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k) upper[k] = fma(above, own[k], upper[k]);
    if (rows.end() - row < 2) continue;
    const acc_t below = rows[row + 1];
#pragma unroll
    for (int k = 0; k < kClassesAtOnce; ++k) lower[k] = fma(below, own[k], lower[k]);
  }
  while (row < end) next_row();
  __syncthreads();  // the block may be given others
}

// The bodies of the kernels of both ways.
template <typename T, typename acc_t, typename Pixel>
__device__ __forceinline__ void gather_all(const LogitParams& logits, const LogitGrid& grid,
                                           const Pixel& pixel, const Map& to) {
  const int64_t total = numel(grid.places) - (kFaultUnwrittenOutput ? 1 : 0);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kLogitThreads;
  acc_t grads[kClassesAtOnce];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLogitThreads + threadIdx.x; i < total;
       i += step) {
    const LogitPlace place = place_of(logits, grid, i);
    gather_grads<T>(logits, grid, place, pixel, grads);
    store_grads<T>(to, place.at, place.first, place.count, grads);
  }
}

template <typename T, typename acc_t, typename Pixel>
__device__ __forceinline__ void walk_all(const LogitParams& logits, const LogitGrid& grid,
                                         const StripPlan& plan, const Pixel& pixel, const Map& to) {
  __shared__ acc_t handed_on[2][kClassesAtOnce][kStripThreads];
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x)
    walk_strips<T>(logits, grid, plan, block, pixel, to, handed_on);
}

}  // namespace msr
