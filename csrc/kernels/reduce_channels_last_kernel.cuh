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
__global__ void __launch_bounds__(kReduceThreads, V == 8 ? 2 : 3)
    reduce_channels_last_kernel(const __grid_constant__ SpreadParams params,
                                const __grid_constant__ ReduceLaunch launch) {
  MSR_DYNAMIC_SHARED(unsigned char, shared);
  const auto& work = *reinterpret_cast<const BlockWork*>(shared);
  const auto* const outer = reinterpret_cast<const OuterTap*>(shared + kBlockWorkBytes);
  const auto* const rows = reinterpret_cast<const RowTap*>(shared + launch.rows_at);
  auto* const column_taps = reinterpret_cast<ColumnWeights*>(shared + launch.columns_at);
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
    int64_t gate_bit;  // of the first column of the row that is read, as is the address
    const T* row_address =
        outer_origin<T>(params, job, work, n, c, walked.begin, reads.begin, gate_bit);
    // Then no vector of 8 shares a byte of the gate with another.
    const bool whole_bytes = V == 8 && grad.size[1] % 8 == 0;
    int64_t identity_at = identity_offset(params, job, work, n, c, walked.begin, middle);
    const int64_t (&identity_stride)[kDims] = params.branches[job.identity_begin].map.stride;

    T* to = reduces ? static_cast<T*>(branch.map.data) : nullptr;
    float sums[2][V];
#pragma unroll
    for (int i = 0; i < V; ++i) sums[0][i] = sums[1][i] = 0.0f;
    int32_t current = work.owned[0].begin;  // row of the branch that sums[0] belongs to
    if (reduces) current = min(current, rows[0].index);
    if (to) to += offset_in(branch.map.stride, n, c, work.depth, current, column);

    const auto finish_row = [&] {
      if (current >= work.owned[0].begin && current < work.owned[0].end) {
        if (to) store_scaled<T, V>(to, branch_weight(params, b), sums[0], V);
        if (dots.wanted()) {
          const bool is_alike = to && (job.vector_inputs >> b & 1);
          const int64_t (&stride)[kDims] = params.input_stride[b];
          const T* const input = is_alike
                                     ? alike<T>(params, b, to)
                                     : static_cast<const T*>(params.inputs[b]) +
                                           offset_in(stride, n, c, work.depth, current, column);
          dots.add(0, dot_product<T, V>(input, stride[1], is_alike, sums[0], V));
        }
      }
      if (to) to += branch.map.stride[3];
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
        const T* at = row_address + plane_tap.grad_offset;
        int64_t bit = gate_bit + plane_tap.gate_offset;
        const auto load_column = [&] {
          Vector<T, V> raw = load_vector<T, V>(at);
          if (params.gate) {
            apply_gate(raw, whole_bytes ? params.gate[bit >> 3] : gate_bits<V>(params.gate, bit));
          }
          at += grad.stride[4];
          bit += grad.size[1];
          return raw;
        };
        float row_sums[V];
#pragma unroll
        for (int i = 0; i < V; ++i) row_sums[i] = 0.0f;
        const bool writes = writes_row && plane_tap.depth >= 0;
        int64_t identity_column =
            identity_at + (plane_tap.depth - work.depths.begin) * identity_stride[2];
        Vector<T, V> next{};
        if (reads.begin < reads.end) next = load_column();
#pragma unroll 1
        for (int32_t x = reads.begin; x < reads.end; ++x) {
          float values[V];
          widen_vector(next, values);
          if (x + 1 < reads.end) next = load_column();  // one ahead of its use
          if (writes && x >= middle) {
            write_identities<T, V, V>(params, job, dots, identity_column, values, V);
            identity_column += identity_stride[4];
          }
          if (!reduces) continue;
          const ColumnWeights taps = column_taps[x];
          const float weight = x < middle ? taps.second : taps.first;
#pragma unroll
          for (int i = 0; i < V; ++i) row_sums[i] = fmaf(weight, values[i], row_sums[i]);
        }
        const float first = plane_tap.weight * row.first;
        const float second = plane_tap.weight * row.second;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          sums[0][i] = fmaf(first, row_sums[i], sums[0][i]);
          sums[1][i] = fmaf(second, row_sums[i], sums[1][i]);
        }
      }
      if (job.identities) identity_at += identity_stride[3];
      row_address += grad.stride[3];
      gate_bit += grad.size[4] * grad.size[1];
    }
  }
  dots.finish(job, work.block);
}

}  // namespace msr
