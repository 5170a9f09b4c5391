// REDUCE for any size ratio where columns are contiguous: the gradient of one branch, and of any
// identity branches, from one read of the incoming gradient.
//
// A thread owns kColumns neighbouring columns of the gradient, walks down the rows of its strip and
// keeps their sums for the kRows rows of the branch that are still incomplete: two, or four for
// windows. When no more rows are to come for one, the block puts it into shared memory, and every
// thread adds up the columns of some low-resolution elements. With two taps, each column is
// multiplied with its two horizontal weights before; an element is the sum of those columns that
// have it as their second tap, then of those that have it as their first. With windows, a table has
// the weights of each element's columns. Two buffers take turns, so one barrier per finished row is
// enough. Sums are taken in float32 in a fixed order.
//
// Factors of pixels and leaky gates are known to the instances for windows alone.
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
  uint32_t gate_bits;  // of them
};

// Multiplies columns with the factors of branch b at their pixels, if it has any. V floats can be
// read at once; the first `count` columns lie in the map.
template <int V, int kColumns>
__device__ __forceinline__ void apply_pixel_weights(const SpreadParams& params, int b, int64_t n,
                                                    int64_t pixel, int32_t count,
                                                    float (&values)[kColumns]) {
  const PixelWeights& pixels = params.pixel_weights;
  if (!pixels.has(b)) return;
  const float* const at =
      static_cast<const float*>(pixels.data) + n * pixels.stride_n + b * pixels.stride_b + pixel;
#pragma unroll
  for (int i = 0; i < kColumns; i += V) {
    if (V != kColumns && i >= count) continue;
    const Vector<float, V> factors = load_vector<float, V>(at + i);
#pragma unroll
    for (int k = 0; k < V; ++k) values[i + k] *= factors.at[k];
  }
}

// The blocks of a multiprocessor that leave a thread the registers it needs.
constexpr int reduce_planar_blocks(int columns, int tap_rows) {
  if (tap_rows == kWindowTapRows) return 5;
  return columns == 4 ? 3 : 5;
}

// V: elements per load.
template <typename T, int V, int kColumns, int kRows>
__global__ void __launch_bounds__(reduce_planar_threads(kColumns, kRows),
                                  reduce_planar_blocks(kColumns, kRows))
    reduce_planar_kernel(const __grid_constant__ SpreadParams params,
                         const __grid_constant__ ReduceLaunch launch,
                         const __grid_constant__ TablesFor<kRows> tables) {
  constexpr int kThreads = reduce_planar_threads(kColumns, kRows);
  constexpr bool kWindows = kRows == kWindowTapRows;
  MSR_DYNAMIC_SHARED(unsigned char, shared);
  const auto& work = *reinterpret_cast<const BlockWork*>(shared);
  const auto* const outer = reinterpret_cast<const OuterTap*>(shared + kBlockWorkBytes);
  const auto* const rows = reinterpret_cast<const RowTap<kRows>*>(shared + launch.rows_at);
  auto* const run_begins = reinterpret_cast<int32_t*>(shared + launch.columns_at);
  auto* const column_sums = reinterpret_cast<ColumnSum*>(shared + launch.columns_at);
  auto* const column_weights = reinterpret_cast<float*>(shared + launch.weights_at);
  auto* const buffers = reinterpret_cast<float*>(shared + launch.buffers_at);
  DotSums dots(params, launch, shared);
  set_up_block<kRows>(params, launch, tables, shared);
  const ReduceJob& job = launch.jobs[work.job];
  const int b = job.first;
  const Branch& branch = params.branches[b];
  const Map& grad = params.grad;
  const bool reduces = job.num_branches > 0;
  const auto width = static_cast<int32_t>(grad.size[4]);
  const auto threads_x = static_cast<uint32_t>(job.threads_x);
  // Until the first row is finished, a buffer holds the horizontal weights.
  auto* const column_taps = reinterpret_cast<ColumnTaps*>(buffers);
  if (reduces && kWindows) {
    fill_column_sums(params, tables, job, work, launch.column_weights, column_sums, column_weights);
  } else if (reduces) {
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
  // Not of single elements, which would take too many registers.
  const bool copies = V > 1 && copies_identities<T>(params, job);
  int64_t identity_at = identity_offset(params, job, work, n, c, walked.begin, x);
  const bool two_taps = !kWindows && is_linear(branch.axis[2].rule);
  const uint32_t kept_offset = offset_of_weights(params, n, c + branch.channel_begin);
  // Vectors of one leave no register for it.
  const auto weight_offset = [&] {
    if (V > 1) return kept_offset;
    return offset_of_weights(params, n, c + params.branches[read_again(b)].channel_begin);
  };

  float first_weight[kColumns];
  float second_weight[kColumns];
  if constexpr (!kWindows) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const bool known = reduces && live && x + i < width;
      first_weight[i] = known ? column_taps[lane * kColumns + i].first : 0.0f;
      second_weight[i] = known ? column_taps[lane * kColumns + i].second : 0.0f;
    }
    __syncthreads();
  }

  float sums[kRows][kColumns] = {};
  int32_t current = work.owned[0].begin;  // row of the branch that sums[0] belongs to
  if (reduces) current = min(current, rows[0].index);
  constexpr int kBufferFloats = kThreads * kColumns;
  int turn = 0;

  // The sum of the columns of the j-th of the branch's columns that the block owns. plane_begin:
  // where those of the thread's plane begin.
  const auto sum_columns = [&](const float* first_products, const float* second_products,
                               int32_t plane_begin, int32_t j) {
    float sum = 0;
    if constexpr (kWindows) {
      const ColumnSum reads = column_sums[j];
      const float* const from = first_products + plane_begin + reads.begin;
      const float* const factors = column_weights + j * launch.column_weights;
      for (int32_t i = 0; i < reads.count; ++i) sum = fmaf(factors[i], from[i], sum);
    } else {
      const int32_t begin = plane_begin + run_begins[j + 1];
      const int32_t end = plane_begin + run_begins[j + 2];
      if (two_taps) {
        for (int32_t i = plane_begin + run_begins[j]; i < begin; ++i) sum += second_products[i];
      }
      for (int32_t i = begin; i < end; ++i) sum += first_products[i];
    }
    return sum;
  };

  const auto finish_row = [&] {
    if (current >= work.owned[0].begin &&
        current < work.owned[0].end) {         // the same for the whole block
      constexpr int kTaps = kWindows ? 1 : 2;  // products of a column
      float* const first_products = buffers + turn * kTaps * kBufferFloats;
      float* const second_products = first_products + kBufferFloats;
      turn ^= 1;
      constexpr int kShift = kFaultSharedOverflow ? kColumns : 0;
      if constexpr (kWindows) {
        store_vector<float, kColumns>(first_products + threadIdx.x * kColumns, sums[0]);
      } else {
        float products[kColumns];
#pragma unroll
        for (int i = 0; i < kColumns; ++i) products[i] = first_weight[i] * sums[0][i];
        store_vector<float, kColumns>(first_products + threadIdx.x * kColumns, products);
        if (two_taps) {
#pragma unroll
          for (int i = 0; i < kColumns; ++i) products[i] = second_weight[i] * sums[0][i];
          store_vector<float, kColumns>(second_products + threadIdx.x * kColumns + kShift,
                                        products);
        }
      }
      if (!kFaultMissingBarrier) __syncthreads();
      if (live) {
        const int32_t plane_begin = static_cast<int32_t>(threadIdx.x - lane) * kColumns;
        const Map& map = branch.map;
        const int32_t first_owned = work.owned_columns.begin;
        const int32_t num_owned = work.owned_columns.end - first_owned;
        const int64_t to = offset_in(map.stride, n, c, work.depth, current, first_owned);
        const float scale = branch_weight(params, weight_offset(), b);
        const bool has_dot = dots.wanted() && b < params.weights.count;
        float dot = 0;
#pragma unroll 1
        for (int32_t j = lane; j < num_owned; j += job.threads_x) {
          const float sum = sum_columns(first_products, second_products, plane_begin, j);
          const float scaled[1] = {scale * sum};
          if (map.data) store_as<T, 1>(map, to + j, scaled);
          if (has_dot) {
            const int64_t at =
                offset_in(params.input_stride[b], n, c, work.depth, current, first_owned + j);
            dot = fmaf(sum, load_one_as<T>(params.inputs[b], params.input_dtype[b], at), dot);
          }
        }
        if (has_dot) dots.add(0, dot);
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
#pragma unroll
      for (int k = 0; k + 1 < kRows; ++k) sums[k][i] = sums[k + 1][i];
      sums[kRows - 1][i] = 0.0f;
    }
    ++current;
  };

  const bool leaky = kWindows && has_leaky_gate(params);
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
      if (kWindows) row.gate_bits = bits;
      if (!leaky) {
#pragma unroll
        for (int i = 0; i < kColumns; i += V) apply_gate(row.vectors[i / V], bits >> i);
      }
    }
    return row;
  };

  int32_t y = walked.begin;
  int tap = 0;
  const RowTap<kRows>* row_taps = rows;
  RowColumns<T, V, kColumns> next{};
  if (y < walked.end) next = load_row(tap);
#pragma unroll 1
  while (y <= walked.end) {  // the last time with nothing but rows to finish
    const RowColumns<T, V, kColumns> here = next;
    float values[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) values[i] = widen_element(here.vectors[i / V], i % V);
    if (leaky) apply_leaky_gate(params, here.gate_bits, values);
    const RowTap<kRows>* const these_taps = row_taps;
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
        int64_t at = identity_at;
        if (num_outer > 1) at += (plane_tap.depth - work.depths.begin) * stride[2];
        if (copies) {
          copy_to_identities(params, job, at, here.vectors, width - x);
        } else {
          write_identities<T, V>(params, job, weight_offset, dots, at, values, width - x,
                                 [&](int identity, float (&own)[kColumns]) {
                                   if constexpr (kWindows)
                                     apply_pixel_weights<V>(params, identity, n,
                                                            int64_t{this_y} * width + x, width - x,
                                                            own);
                                 });
        }
      }
      if (y != this_y) identity_at += stride[3];
    }
    if (!reduces) continue;
    const RowTap<kRows> row = *these_taps;
#pragma unroll 1
    while (current < row.index) finish_row();
    if constexpr (kWindows) {
      if (reads && this_y < walked.end)
        apply_pixel_weights<V>(params, b, n, int64_t{this_y} * width + x, width - x, values);
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const float factor = plane_tap.weight * row.weight[k];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) sums[k][i] = fmaf(factor, values[i], sums[k][i]);
    }
  }
  if (launch.part_images) {
    dots.finish(job, work, {live ? lane : -1, job.threads_x, 1}, plane);
  } else {
    dots.finish(job, work.block);
  }
}

}  // namespace msr
