// REDUCE for any size ratio where channels are contiguous: the gradient of one branch, and of any
// identity branches, from one read of the incoming gradient out of memory.
//
// A thread owns V channels of one low-resolution column and walks down the rows of the gradient.
// Each row is first summed along the columns that the thread's own one takes from (with linear
// taps, each column is read by two neighbouring threads, the second time from the L1 cache), then
// added to the two rows of the branch that are still incomplete. No more rows of the gradient are
// to come for a row of the branch: it is written, once. No element crosses threads, so there is no
// barrier but the one after the tables. Sums are taken in float32 in a fixed order.
#pragma once

#include "reduce_device.cuh"

namespace msr {

template <typename T, int V>
__global__ void __launch_bounds__(kReduceThreads, 3)
    reduce_channels_last_kernel(const __grid_constant__ SpreadParams params,
                                const __grid_constant__ ReduceLaunch launch) {
  MSR_DYNAMIC_SHARED(unsigned char, shared);
  const auto& work = *reinterpret_cast<const BlockWork*>(shared);
  const auto* const outer = reinterpret_cast<const OuterTap*>(shared + kBlockWorkBytes);
  const auto* const rows = reinterpret_cast<const RowTap*>(shared + launch.rows_at);
  auto* const column_taps = reinterpret_cast<ColumnTap*>(shared + launch.columns_at);
  DotSums dots(params, shared + launch.dots_at);
  set_up_block(params, launch, shared);
  const ReduceJob& job = launch.jobs[work.job];
  const int b = job.first;
  const Branch& branch = params.branches[b];
  const Axis& columns = branch.axis[2];
  const Map& grad = params.grad;
  const bool reduces = job.num_branches > 0;
  if (reduces) fill_column_taps(columns, 0, columns.out_size, column_taps);
  dots.clear(job.slots());
  __syncthreads();

  const uint32_t item = work.tile * blockDim.x + threadIdx.x;
  if (item < static_cast<uint32_t>(job.items)) {
    const auto vectors = static_cast<uint32_t>(branch.map.size[1]) / V;
    const auto width = static_cast<uint32_t>(columns.in_size);
    const uint32_t c = item % vectors * V;
    const auto column = static_cast<int32_t>(item / vectors % width);
    const uint32_t n = item / vectors / width;
    // Columns [begin, middle) have this one as their second tap, [middle, end) as their first;
    // identity branches take the latter from this thread.
    const Range reads = readers(columns, column);
    const int32_t middle = first_reading(columns, column);

    const Range walked = work.rows;
    const int num_outer = work.num_outer;
    int64_t gate_bit;  // of column 0 of the row, as is the address
    const T* row_address = outer_origin<T>(params, job, work, n, c, walked.begin, 0, gate_bit);

    float sums[2][V];
#pragma unroll
    for (int i = 0; i < V; ++i) sums[0][i] = sums[1][i] = 0.0f;
    int32_t current = work.owned[0].begin;  // row of the branch that sums[0] belongs to
    if (reduces) current = min(current, rows[0].index);

    const auto finish_row = [&] {
      if (current >= work.owned[0].begin && current < work.owned[0].end) {
        const Map& map = branch.map;
        if (map.data) {
          const float scale = branch_weight(params, b);
          float scaled[V];
#pragma unroll
          for (int i = 0; i < V; ++i) scaled[i] = scale * sums[0][i];
          store_vector<T, V>(
              static_cast<T*>(map.data) + offset_in(map.stride, n, c, work.depth, current, column),
              scaled);
        }
        if (dots.wanted()) {
          const int64_t (&stride)[kDims] = params.input_stride[b];
          const T* const input = static_cast<const T*>(params.inputs[b]) +
                                 offset_in(stride, n, c, work.depth, current, column);
          float sum = 0;
#pragma unroll
          for (int i = 0; i < V; ++i)
            sum = fmaf(sums[0][i], widen<float>(input[i * stride[1]]), sum);
          dots.add(0, sum);
        }
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sums[0][i] = sums[1][i];
        sums[1][i] = 0.0f;
      }
      ++current;
    };

#pragma unroll 1
    for (int32_t y = walked.begin; y <= walked.end; ++y) {
      RowTap row{};
      if (reduces) {
        row = rows[y - walked.begin];
#pragma unroll 1
        while (current < row.index) finish_row();
      }
      if (y == walked.end) break;  // there were but rows to finish
      const bool writes_row = job.identities && y >= work.strip.begin && y < work.strip.end;
#pragma unroll 1
      for (int tap = 0; tap < num_outer; ++tap) {
        const OuterTap& plane_tap = outer[tap];
        const T* const at = row_address + plane_tap.grad_offset;
        const auto load_column = [&](int32_t x) {
          Vector<T, V> raw = load_vector<T, V>(at + x * grad.stride[4]);
          if (params.gate) {
            const int64_t bit = gate_bit + plane_tap.gate_offset + x * grad.size[1];
            apply_gate(raw, gate_bits<V>(params.gate, bit));
          }
          return raw;
        };
        if (writes_row && plane_tap.depth >= 0) {
#pragma unroll 1
          for (int32_t x = middle; x < reads.end; ++x) {
            float values[V];
            widen_vector(load_column(x), values);
            write_identities<T, V, V>(params, job, dots, values, n, c, plane_tap.depth, y, x, 1);
          }
        }
        if (!reduces) continue;
        float row_sums[V];
#pragma unroll
        for (int i = 0; i < V; ++i) row_sums[i] = 0.0f;
        const auto add_column = [&](const Vector<T, V>& raw, int32_t x) {
          const ColumnTap taps = column_taps[x];
          const float weight = x < middle ? taps.second : taps.first;
#pragma unroll
          for (int i = 0; i < V; ++i)
            row_sums[i] = fmaf(weight, widen_element(raw, i), row_sums[i]);
        };
#pragma unroll 1
        for (int32_t x = reads.begin; x < reads.end; x += 2) {  // two loads on their way at once
          const bool both = x + 1 < reads.end;
          const Vector<T, V> raw = load_column(x);
          Vector<T, V> next{};
          if (both) next = load_column(x + 1);
          add_column(raw, x);
          if (both) add_column(next, x + 1);
        }
        const float first = plane_tap.weight * row.first;
        const float second = plane_tap.weight * row.second;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          sums[0][i] = fmaf(first, row_sums[i], sums[0][i]);
          sums[1][i] = fmaf(second, row_sums[i], sums[1][i]);
        }
      }
      row_address += grad.stride[3];
      gate_bit += grad.size[4] * grad.size[1];
    }
  }
  dots.finish(job, work.block);
}

}  // namespace msr
