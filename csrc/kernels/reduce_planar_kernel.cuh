// REDUCE for any size ratio where columns are contiguous: the gradient of one branch, and of any
// identity branches, from one read of the incoming gradient.
//
// A thread owns kColumns neighbouring columns of the gradient, walks down the rows of its strip and
// keeps their sums for the two rows of the branch that are still incomplete. When no more rows are
// to come for one, the block puts it into shared memory, each column already multiplied with its
// two horizontal weights, and every thread adds up the columns of some low-resolution elements:
// those that have the element as their second tap, then those that have it as their first. Two
// buffers take turns, so one barrier per finished row is enough. Sums are taken in float32 in a
// fixed order.
#pragma once

#include "planted_faults.h"
#include "reduce_device.cuh"

namespace msr {

// Where, from the block's first column on, the columns with source index s begin: for the owned
// sources, the one before and the one after them.
__device__ inline void fill_run_begins(const Axis& axis, const BlockWork& work,
                                       int32_t* run_begins) {
  const Range owned = work.owned_columns;
#pragma unroll 1
  for (auto i = static_cast<int32_t>(threadIdx.x); i < owned.end - owned.begin + 2;
       i += static_cast<int32_t>(blockDim.x))
    run_begins[i] = first_reading(axis, owned.begin - 1 + i) - work.first_column;
}

// What a thread loads of a row: its columns, in vectors of V as the gradient's alignment allows.
template <typename T, int V, int kColumns>
struct RowColumns {
  Vector<T, V> vectors[kColumns / V];
};

// V: elements per load.
template <typename T, int V, int kColumns>
__global__ void __launch_bounds__(reduce_planar_threads(kColumns), kColumns == 4 ? 3 : 5)
    reduce_planar_kernel(const __grid_constant__ SpreadParams params,
                         const __grid_constant__ ReduceLaunch launch) {
  constexpr int kThreads = reduce_planar_threads(kColumns);
  MSR_DYNAMIC_SHARED(unsigned char, shared);
  const auto& work = *reinterpret_cast<const BlockWork*>(shared);
  const auto* const outer = reinterpret_cast<const OuterTap*>(shared + kBlockWorkBytes);
  const auto* const rows = reinterpret_cast<const RowTap*>(shared + launch.rows_at);
  auto* const run_begins = reinterpret_cast<int32_t*>(shared + launch.columns_at);
  auto* const buffers = reinterpret_cast<float*>(shared + launch.buffers_at);
  DotSums dots(params, shared + launch.dots_at);
  set_up_block(params, launch, shared);
  const ReduceJob& job = launch.jobs[work.job];
  const int b = job.first;
  const Branch& branch = params.branches[b];
  const Map& grad = params.grad;
  const bool reduces = job.num_branches > 0;
  const auto width = static_cast<int32_t>(grad.size[4]);
  const auto threads_x = static_cast<uint32_t>(job.threads_x);
  // Until the first row is finished, a buffer holds the horizontal weights.
  auto* const column_taps = reinterpret_cast<ColumnWeights*>(buffers);
  if (reduces) {
    fill_run_begins(branch.axis[2], work, run_begins);
    fill_column_taps(branch.axis[2], work.first_column,
                     min(work.first_column + job.threads_x * kColumns, width), column_taps);
  }
  dots.clear(job.slots());
  __syncthreads();

  const auto channels = static_cast<uint32_t>(branch.map.size[1]);
  const uint32_t planes_per_block = kThreads / threads_x;
  const uint32_t plane = work.tile / static_cast<uint32_t>(job.column_tiles) * planes_per_block +
                         threadIdx.x / threads_x;
  const auto lane = static_cast<int32_t>(threadIdx.x % threads_x);
  const int32_t x = work.first_column + lane * kColumns;
  const bool live = threadIdx.x / threads_x < planes_per_block &&
                    plane < static_cast<uint32_t>(branch.map.size[0]) * channels;
  const bool reads = live && x < width;
  const bool owns_columns = reads && x >= work.columns.begin && x < work.columns.end;
  const uint32_t n = plane / channels;
  const uint32_t c = plane % channels;
  const Range walked = work.rows;
  const Range strip = work.strip;
  const int num_outer = work.num_outer;
  int64_t gate_bit;  // of the row that is loaded next, as is the address
  const T* row_address = outer_origin<T>(params, job, work, n, c, walked.begin, x, gate_bit);
  int64_t identity_at = identity_offset(params, job, work, n, c, walked.begin, x);
  const bool two_taps = is_linear(branch.axis[2].rule);

  float first_weight[kColumns];
  float second_weight[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const bool known = reduces && live && x + i < width;
    first_weight[i] = known ? column_taps[lane * kColumns + i].first : 0.0f;
    second_weight[i] = known ? column_taps[lane * kColumns + i].second : 0.0f;
  }
  __syncthreads();

  float sums[2][kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) sums[0][i] = sums[1][i] = 0.0f;
  int32_t current = work.owned[0].begin;  // row of the branch that sums[0] belongs to
  if (reduces) current = min(current, rows[0].index);
  constexpr int kBufferFloats = kThreads * kColumns;
  int turn = 0;

  const auto finish_row = [&] {
    if (current >= work.owned[0].begin &&
        current < work.owned[0].end) {  // the same for the whole block
      float* const first_products = buffers + turn * 2 * kBufferFloats;
      float* const second_products = first_products + kBufferFloats;
      turn ^= 1;
      constexpr int kShift = kFaultSharedOverflow ? kColumns : 0;
      float products[kColumns];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) products[i] = first_weight[i] * sums[0][i];
      store_vector<float, kColumns>(first_products + threadIdx.x * kColumns, products);
      if (two_taps) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) products[i] = second_weight[i] * sums[0][i];
        store_vector<float, kColumns>(second_products + threadIdx.x * kColumns + kShift, products);
      }
      if (!kFaultMissingBarrier) __syncthreads();
      if (live) {
        const int32_t plane_begin = static_cast<int32_t>(threadIdx.x - lane) * kColumns;
        const Map& map = branch.map;
        const int32_t first_owned = work.owned_columns.begin;
        const int32_t num_owned = work.owned_columns.end - first_owned;
        T* const to = static_cast<T*>(map.data) +
                      offset_in(map.stride, n, c, work.depth, current, first_owned);
        const float scale = branch_weight(params, b);
        float dot = 0;
#pragma unroll 1
        for (int32_t j = lane; j < num_owned; j += job.threads_x) {
          float sum = 0;
          const int32_t begin = plane_begin + run_begins[j + 1];
          const int32_t end = plane_begin + run_begins[j + 2];
          if (two_taps) {
            for (int32_t i = plane_begin + run_begins[j]; i < begin; ++i) sum += second_products[i];
          }
          for (int32_t i = begin; i < end; ++i) sum += first_products[i];
          if (map.data) to[j] = Narrow<T>::from(scale * sum);
          if (dots.wanted()) {
            const int64_t at =
                offset_in(params.input_stride[b], n, c, work.depth, current, first_owned + j);
            dot = fmaf(sum, widen<float>(static_cast<const T*>(params.inputs[b])[at]), dot);
          }
        }
        if (dots.wanted()) dots.add(0, dot);
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      sums[0][i] = sums[1][i];
      sums[1][i] = 0.0f;
    }
    ++current;
  };

  const auto load_row = [&](int tap) {
    RowColumns<T, V, kColumns> row{};
    if (!reads) return row;
    const T* at = row_address;
    int64_t bit = gate_bit;
    if (tap > 0) {
      at += outer[tap].grad_offset;
      bit += outer[tap].gate_offset;
    }
#pragma unroll
    for (int i = 0; i < kColumns; i += V) {
      if (V == kColumns || x + i < width) row.vectors[i / V] = load_vector<T, V>(at + i);
    }
    if (params.gate) {
      const uint32_t bits = gate_bits(params.gate, bit, min(kColumns, width - x));
#pragma unroll
      for (int i = 0; i < kColumns; i += V) apply_gate(row.vectors[i / V], bits >> i);
    }
    return row;
  };

  int32_t y = walked.begin;
  int tap = 0;
  const RowTap* row_taps = rows;
  RowColumns<T, V, kColumns> next{};
  if (y < walked.end) next = load_row(tap);
#pragma unroll 1
  while (y <= walked.end) {  // the last time with nothing but rows to finish
    float values[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) values[i] = widen_element(next.vectors[i / V], i % V);
    const RowTap* const these_taps = row_taps;
    const int32_t this_y = y;
    const OuterTap& plane_tap = outer[tap];
    if (++tap >= num_outer) {
      tap = 0;
      ++y;
      ++row_taps;
      row_address += grad.stride[3];
      gate_bit += grad.size[4];
    }
    if (y < walked.end) next = load_row(tap);  // one ahead of its use
    if (job.identities) {
      const int64_t (&stride)[kDims] = params.branches[job.identity_begin].map.stride;
      if (owns_columns && plane_tap.depth >= 0 && this_y >= strip.begin && this_y < strip.end) {
        const int64_t at = identity_at + (plane_tap.depth - work.depths.begin) * stride[2];
        write_identities<T, V, kColumns>(params, job, dots, at, values, width - x);
      }
      if (y != this_y) identity_at += stride[3];
    }
    if (!reduces) continue;
    const RowTap row = *these_taps;
#pragma unroll 1
    while (current < row.index) finish_row();
    const float first = plane_tap.weight * row.first;
    const float second = plane_tap.weight * row.second;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      sums[0][i] = fmaf(first, values[i], sums[0][i]);
      sums[1][i] = fmaf(second, values[i], sums[1][i]);
    }
  }
  dots.finish(job, work.block);
}

}  // namespace msr
