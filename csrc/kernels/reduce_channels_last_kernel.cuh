// REDUCE for any size ratio where channels are contiguous: the gradient of one branch, and of any
// identity branches, from one read of the incoming gradient.
//
// A block has a tile of columns and of channels; a thread owns V channels of one column of the
// gradient, walks down the rows of its strip and keeps their sums for the kRows rows of the branch
// that are still incomplete: two, or four for windows. When no more rows are to come for one, the
// block puts it into shared memory, and threads add up the columns that each low-resolution column
// of the tile takes from, with the weights of a table. Two buffers take turns, so one barrier per
// finished row is enough. Sums are taken in float32 in a fixed order.
#pragma once

#include "planted_faults.h"
#include "reduce_device.cuh"

namespace msr {

// What the values of V channels are multiplied with: the weights of a branch, one for all or each
// its own.
template <int V>
__device__ __forceinline__ void apply_weights(const SpreadParams& params, uint32_t offset, int b,
                                              float (&values)[V]) {
  if (b >= params.weights.count) return;
  const float* const own = weights_at(params, offset) + b * params.weights.stride_b;
  if (params.weights.stride_c == 0) {
    const float weight = *own;
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] *= weight;
    return;
  }
  const Vector<float, V> each = load_vector<float, V>(own);
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] *= each.at[v];
}

// Adds the dot product of V channels of a slot's branch with its forward values.
template <typename T, int V>
__device__ __forceinline__ void add_dots(const SpreadParams& params, const ReduceJob& job, int b,
                                         int slot, int64_t offset, int64_t step,
                                         const float (&values)[V], DotSums& dots) {
  float inputs[V];
  load_inputs<T, V>(params, b, offset, step, job.vector_inputs >> b & 1, V, inputs);
  if (!dots.apart()) {
    dots.add(slot, dot_product(values, inputs));
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) dots.add_apart(slot, v, values[v] * inputs[v]);
}

// The factor of branch b at a pixel, counted in an image.
__device__ __forceinline__ float pixel_factor(const SpreadParams& params, int b, int64_t n,
                                              int64_t pixel) {
  const PixelWeights& pixels = params.pixel_weights;
  if (!pixels.has(b)) return 1.0f;
  return static_cast<const float*>(pixels.data)[n * pixels.stride_n + b * pixels.stride_b + pixel];
}

// The finished sums of a block's threads in shared memory: V floats each, in pieces of 16 bytes
// that lie side by side.
template <int V>
struct SumBuffer {
  static constexpr int kPiece = V < 4 ? V : 4;
  float* at;
  uint32_t threads;

  __device__ __forceinline__ void store(uint32_t thread, const float (&values)[V]) const {
#pragma unroll
    for (int i = 0; i < V; i += kPiece) {
      float piece[kPiece];
#pragma unroll
      for (int k = 0; k < kPiece; ++k) piece[k] = values[i + k];
      store_vector<float, kPiece>(at + (i / kPiece * threads + thread) * kPiece, piece);
    }
  }

  __device__ __forceinline__ void add(uint32_t thread, float factor, float (&sum)[V]) const {
#pragma unroll
    for (int i = 0; i < V; i += kPiece) {
      const auto piece = load_vector<float, kPiece>(at + (i / kPiece * threads + thread) * kPiece);
#pragma unroll
      for (int k = 0; k < kPiece; ++k) sum[i + k] = fmaf(factor, piece.at[k], sum[i + k]);
    }
  }
};

// The blocks of a multiprocessor that leave a thread the registers it needs.
constexpr int reduce_channels_last_blocks(int vector, int tap_rows) {
  return vector == 8 || (vector == 4 && tap_rows == kWindowTapRows) ? 2 : 3;
}

template <typename T, int V, int kRows>
__global__ void __launch_bounds__(kReduceThreads, reduce_channels_last_blocks(V, kRows))
    reduce_channels_last_kernel(const __grid_constant__ SpreadParams params,
                                const __grid_constant__ ReduceLaunch launch,
                                const __grid_constant__ TablesFor<kRows> tables) {
  MSR_DYNAMIC_SHARED(unsigned char, shared);
  const auto& work = *reinterpret_cast<const BlockWork*>(shared);
  const auto* const outer = reinterpret_cast<const OuterTap*>(shared + kBlockWorkBytes);
  const auto* const rows = reinterpret_cast<const RowTap<kRows>*>(shared + launch.rows_at);
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
  if (reduces)
    fill_column_sums(params, tables, job, work, launch.column_weights, column_sums, column_weights);
  dots.clear(job.slots());
  __syncthreads();

  const auto lanes = static_cast<uint32_t>(job.lanes);
  const auto column = static_cast<int32_t>(threadIdx.x / lanes);  // of the tile
  const uint32_t lane = threadIdx.x - static_cast<uint32_t>(column) * lanes;
  const uint32_t lane_tile = work.tile / static_cast<uint32_t>(job.column_tiles);
  const uint32_t n = lane_tile / static_cast<uint32_t>(job.lane_tiles);
  const uint32_t first_lane = (lane_tile - n * static_cast<uint32_t>(job.lane_tiles)) * lanes;
  const uint32_t c = (first_lane + lane) * V;
  const int32_t x = work.first_column + column;
  const bool live = column < job.threads_x && c < static_cast<uint32_t>(branch.map.size[1]);
  const bool reads = live && x < static_cast<int32_t>(grad.size[4]);
  const bool owns_column = reads && x >= work.columns.begin && x < work.columns.end;
  const Range walked = work.rows;
  const int num_outer = work.num_outer;
  // Threads without a column or channels of their own load some as well, which nobody uses: that is
  // cheaper than a branch around each load.
  const auto last_column = static_cast<int32_t>(grad.size[4] - 1);
  const auto last_vector = static_cast<uint32_t>(branch.map.size[1] - V);
  int64_t gate_bit;  // of the first row, as is the address
  const T* const first_row = outer_origin<T>(params, job, work, n, min(c, last_vector),
                                             walked.begin, min(x, last_column), gate_bit);
  const uint32_t weight_offset = offset_of_weights(params, n, c + branch.channel_begin);
  const bool leaky = kRows == kWindowTapRows && has_leaky_gate(params);
  const bool several_rows = kRows == kWindowTapRows || is_linear(branch.axis[1].rule);

  float sums[kRows][V] = {};
  int32_t current = work.owned[0].begin;  // row of the branch that sums[0] belongs to
  if (reduces) current = min(current, rows[0].index);
  uint32_t turn = 0;

  const auto finish_row = [&] {
    if (current >= work.owned[0].begin &&
        current < work.owned[0].end) {  // the same for the whole block
      const SumBuffer<V> buffer{buffers + turn * (blockDim.x * V), blockDim.x};
      turn ^= 1;
      buffer.store(threadIdx.x + (kFaultSharedOverflow ? 1 : 0), sums[0]);
      if (!kFaultMissingBarrier) __syncthreads();
      const int own = read_again(b);
      const Map& map = params.branches[own].map;
      const int32_t first_owned = work.owned_columns.begin;
      const int32_t num_owned = work.owned_columns.end - first_owned;
      if (live && column < num_owned) {
        const int64_t first = offset_in(map.stride, n, c, work.depth, current, first_owned);
#pragma unroll 1
        for (int32_t j = column; j < num_owned; j += launch.jobs[read_again(work.job)].threads_x) {
          const ColumnSum from = column_sums[j];
          const float* const factors = column_weights + j * launch.column_weights;
          uint32_t thread = static_cast<uint32_t>(from.begin) * lanes + lane;
          float sum[V] = {};
#pragma unroll 1
          for (int32_t i = 0; i < from.count; ++i, thread += lanes)
            buffer.add(thread, factors[i], sum);
          if (dots.wanted() && own < params.weights.count) {
            const int64_t (&stride)[kDims] = params.input_stride[own];
            add_dots<T, V>(params, job, own, 0,
                           offset_in(stride, n, c, work.depth, current, first_owned + j), stride[1],
                           sum, dots);
          }
          if (!map.data) continue;
          apply_weights(params, weight_offset, own, sum);
          store_as<T, V>(map, first + j * map.stride[4], sum);
        }
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int k = 0; k + 1 < kRows; ++k) sums[k][v] = sums[k + 1][v];
      sums[kRows - 1][v] = 0.0f;
    }
    ++current;
  };

  // What a thread loads of a row.
  struct Column {
    Vector<T, V> raw;
    uint32_t gate_bits;
  };

  // Writes gated values of a row to every identity branch, and adds to their dot products. at:
  // where in the branches.
  const auto write_row = [&](const Column& here, const float (&values)[V], int64_t at, int32_t y) {
    int slot = job.num_branches;
#pragma unroll 1
    for (int i = job.identity_begin; i < job.identity_end; ++i) {
      if (!(job.identities >> i & 1)) continue;
      const Map& map = params.branches[i].map;
      float own[V];
      float factor = 1.0f;
      if constexpr (kRows == kWindowTapRows)
        factor = pixel_factor(params, i, n, int64_t{y} * grad.size[4] + x);
#pragma unroll
      for (int v = 0; v < V; ++v) own[v] = factor * values[v];
      if (dots.wanted() && i < params.weights.count)
        add_dots<T, V>(params, job, i, slot, at, 1, own, dots);
      if (map.data) {
        apply_weights(params, weight_offset, i, own);
        store_as<T, V>(map, at, own);
      }
      ++slot;
    }
  };

  // Walks down the rows. is_flat: each row of the gradient is one tap, as where there is no depth.
  const auto walk = [&](auto is_flat) {
    constexpr bool kFlat = decltype(is_flat)::value;
    const int32_t count = walked.end - walked.begin;
    // Rows that identity branches take from this block; none where there are no such branches.
    const Range written = job.identities && owns_column ? Range{work.strip.begin - walked.begin,
                                                                work.strip.end - walked.begin}
                                                        : Range{0, 0};
    const int64_t (&identity_stride)[kDims] = params.branches[job.identity_begin].map.stride;
    // A single one, and nothing changes what was read: it is copied.
    const Map& only = params.branches[job.identity_begin].map;
    const bool copies =
        kFlat && job.identity_end - job.identity_begin == 1 && copies_identities<T>(params, job);
    const int64_t identity_at = identity_offset(params, job, work, n, c, walked.begin, x);
    T* copy_to = static_cast<T*>(only.data) + (copies ? identity_at : 0);
    const T* row_address = first_row;  // of the row that is loaded next
    // Where no vector shares a byte of the gate with another, and rows are whole bytes.
    const bool by_bytes = kFlat && V == 8 && params.gate && grad.size[1] % 8 == 0;
    const auto byte_pitch = static_cast<uint32_t>(grad.size[4] * grad.size[1] >> 3);
    const uint8_t* gate_byte = params.gate + (gate_bit >> 3);

    const auto load_row = [&](Column& column, int32_t row, int tap) {
      const T* at = row_address;
      if (!kFlat && tap > 0) at += outer[tap].grad_offset;
      column.raw = load_vector<T, V>(at);
      if (by_bytes) {
        column.gate_bits = *gate_byte;
      } else if (params.gate) {
        int64_t bit = gate_bit + row * (grad.size[4] * grad.size[1]);
        if (!kFlat && tap > 0) bit += outer[tap].gate_offset;
        column.gate_bits = gate_bits<V>(params.gate, bit);
      }
    };

    int32_t row = 0;  // that is loaded next
    int tap = 0;
    Column next{};
    if (row < count) load_row(next, row, tap);
#pragma unroll 1
    while (row <= count) {  // the last time with nothing but rows to finish
      Column here = next;
      const int32_t this_row = row;
      const RowTap<kRows>* const taps = rows + this_row;
      float plane_weight = 1.0f;
      int32_t depth = work.depths.begin;
      if constexpr (!kFlat) {
        plane_weight = outer[tap].weight;
        depth = outer[tap].depth;
      }
      if (kFlat || ++tap >= num_outer) {
        tap = 0;
        ++row;
        row_address += grad.stride[3];
        gate_byte += byte_pitch;
      }
      if (row < count) load_row(next, row, tap);  // one ahead of its use
      if (reduces) {
        const int32_t index = taps->index;
#pragma unroll 1
        while (current < index) finish_row();
      }
      if (params.gate && !leaky) apply_gate(here.raw, here.gate_bits);
      float values[V];
      widen_vector(here.raw, values);
      if (leaky) apply_leaky_gate(params, here.gate_bits, values);
      if (this_row >= written.begin && this_row < written.end && (kFlat || depth >= 0)) {
        if (copies) {
          *reinterpret_cast<Vector<T, V>*>(copy_to) = here.raw;
        } else {
          write_row(here, values,
                    identity_at + this_row * identity_stride[3] +
                        (depth - work.depths.begin) * identity_stride[2],
                    walked.begin + this_row);
        }
      }
      if (copies) copy_to += identity_stride[3];
      if (!reduces) continue;
      if constexpr (kRows == kWindowTapRows) {
        if (params.pixel_weights.data && reads && this_row < count)
          plane_weight *=
              pixel_factor(params, b, n, int64_t{walked.begin + this_row} * grad.size[4] + x);
      }
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        if (k > 0 && !several_rows) continue;
        const float factor =
            kFlat && kRows == kTapRows ? taps->weight[k] : plane_weight * taps->weight[k];
#pragma unroll
        for (int v = 0; v < V; ++v) sums[k][v] = fmaf(factor, values[v], sums[k][v]);
      }
    }
  };
  // A loop of its own for maps without depth where most calls are: each takes as long to compile as
  // a kernel.
  bool is_flat = false;
  if constexpr (V * sizeof(T) == 16 && kRows == kTapRows) {
    is_flat = num_outer == 1 && branch.axis[0].rule == Rule::kIdentity;
    if (is_flat) walk(std::true_type());
  }
  if (!is_flat) walk(std::false_type());
  if (launch.part_channels) {
    // Threads of the same channels, one for each column.
    const auto images = static_cast<int64_t>(n) * branch.map.size[1];
    dots.finish(job, work, {live ? column : -1, job.threads_x, job.lanes}, images + c);
  } else if (launch.part_images) {
    const auto all = static_cast<int32_t>(blockDim.x);
    dots.finish(job, work, {static_cast<int32_t>(threadIdx.x), all, 1}, n);
  } else {
    dots.finish(job, work.block);
  }
}

}  // namespace msr
