// A branch of windows (cubic, area, antialiased, average pools) in EXPAND: like a linear one, but
// with up to four taps along each axis. The windows of the call are read from its tables
// (window_tables.h).
#pragma once

#include "branch_taps.cuh"
#include "expand_device.cuh"

namespace msr {

// Where the tables of a job's walk and columns lie in shared memory.
struct WindowShares {
  WalkWindow* walk;
  ColumnWeights* weights;
  ColumnWindow* columns;
};

// The taps of one position. Those that are not there have a weight of zero.
struct Window4 {
  int32_t begin, end;
  float weights[kWindowRows];
};

MSR_DEVICE_OUT_OF_LINE Window4 window_at(const Axis& axis, const WindowTables& tables,
                                         const WindowTable& table, int32_t position) {
  const AxisTaps<float, false> taps(axis, tables, table, position);
  Window4 window{taps.begin(), taps.end(), {}};
  // Constant indices: a register has no number that is known at run time only.
#pragma unroll
  for (int k = 0; k < kWindowRows; ++k) {
    if (window.begin + k < window.end) window.weights[k] = taps[window.begin + k];
  }
  return window;
}

// The window of the walked axis at `position`.
MSR_DEVICE_OUT_OF_LINE WalkWindow walk_window(const Axis& axis, const WindowTables& tables,
                                              const WindowTable& table, int32_t position,
                                              bool is_first) {
  const Window4 window = window_at(axis, tables, table, position);
  WalkWindow walk;
  walk.count = window.end - window.begin;
  // The last tap is that of the last row kept.
#pragma unroll
  for (int slot = 0; slot < kWindowRows; ++slot) {
    walk.weight[slot] = 0.0f;
#pragma unroll
    for (int k = 0; k <= slot; ++k) {
      if (k + kWindowRows == walk.count + slot) walk.weight[slot] = window.weights[k];
    }
  }
  walk.pushes = walk.count;
  if (!is_first) {
    // Windows never move back: what is needed of the last one is still kept.
    const int32_t fresh = window.end - window_at(axis, tables, table, position - 1).end;
    if (fresh < walk.pushes) walk.pushes = fresh;
  }
  walk.load = window.end - walk.pushes;
  return walk;
}

// The tables of the one branch that a job resamples.
template <typename T, int V, bool kChannelsLast>
__device__ __forceinline__ void fill_tables(const GatherParams& gather, const Share& share,
                                            const WindowTables& tables,
                                            const WindowShares& shared) {
  constexpr int kWalked = kChannelsLast ? 2 : 1;  // of the spatial axes
  const ExpandJob& job = share.job;
  if (job.num_sources == 0) return;
  const int b = job.sources[0];
  const Branch& branch = gather.branches[b];
  for (uint32_t i = threadIdx.x; i < static_cast<uint32_t>(share.steps); i += blockDim.x) {
    const int32_t position = share.begin + static_cast<int32_t>(i);
    shared.walk[i] =
        walk_window(branch.axis[kWalked], tables, tables.table[b][kWalked], position, i == 0);
  }
  if (kChannelsLast) return;
  const auto step_bytes = static_cast<uint32_t>(branch.map.stride[4] * sizeof(T));
  for (uint32_t i = threadIdx.x; i < job.tile * V; i += blockDim.x) {
    const uint32_t column = share.tile_begin * V + i;
    if (column >= job.width * V) break;
    const Window4 window =
        window_at(branch.axis[2], tables, tables.table[b][2], static_cast<int32_t>(column));
    shared.columns[ColumnTable<ColumnWindow, V>::slot(i, job.tile)] = {
        static_cast<uint32_t>(window.begin) * step_bytes, window.end - window.begin};
    ColumnWeights& weights = shared.weights[ColumnTable<ColumnWeights, V>::slot(i, job.tile)];
#pragma unroll
    for (int k = 0; k < kWindowRows; ++k) weights.at[k] = window.weights[k];
  }
}

template <typename T, int V, bool kChannelsLast>
struct WindowSource {
  const char* line;  // row or pixel 0 at the first tap of the other axis
  float rows[kWindowRows][V];
  // channels_last: the window of the row axis.
  float row_weight[kWindowRows];
  int32_t row_count;

  __device__ __forceinline__ void start(const Branch& branch, const WindowTables& tables,
                                        const WindowTable (&table)[kSpatialDims], const Line& at) {
    const Map& map = branch.map;
    int64_t offset = at.n * map.stride[0] + at.c * map.stride[1] + at.d * map.stride[2];
    if (kChannelsLast) {
      const Window4 window = window_at(branch.axis[1], tables, table[1], at.at);
      offset += window.begin * map.stride[3];
      row_count = window.end - window.begin;
#pragma unroll
      for (int k = 0; k < kWindowRows; ++k) row_weight[k] = window.weights[k];
    }
    line = static_cast<const char*>(map.data) + offset * static_cast<int64_t>(sizeof(T));
#pragma unroll
    for (int k = 0; k < kWindowRows; ++k) {
#pragma unroll
      for (int v = 0; v < V; ++v) rows[k][v] = 0.0f;
    }
  }

  // Columns of a row, or channels of a pixel. Taps that are not there are not read: they may lie
  // outside of the map.
  __device__ __forceinline__ void load(const char* position, const Branch& branch,
                                       const WindowShares& shared, uint32_t lane, uint32_t tile,
                                       float (&values)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = 0.0f;
    if constexpr (kChannelsLast) {
      const auto pitch = static_cast<uint32_t>(branch.map.stride[3] * sizeof(T));
#pragma unroll
      for (int k = 0; k < kWindowRows; ++k) {
        if (k >= row_count) continue;
        float row[V];
        const char* const address = position + scaled(k, pitch);
        widen_vector(load_vector<T, V>(reinterpret_cast<const T*>(address)), row);
        accumulate(values, row_weight[k], row);
      }
    } else {
      const auto pitch = static_cast<uint32_t>(branch.map.stride[4] * sizeof(T));
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const auto window = ColumnTable<ColumnWindow, V>::read_one(shared.columns, lane, tile, v);
        const auto weights = ColumnTable<ColumnWeights, V>::read_one(shared.weights, lane, tile, v);
#pragma unroll
        for (int k = 0; k < kWindowRows; ++k) {
          if (k >= window.count) continue;
          const char* const address = position + (window.offset + k * pitch);
          const float x = widen<float>(*reinterpret_cast<const T*>(address));
          values[v] = fmaf(weights.at[k], x, values[v]);
        }
      }
    }
  }

  // The rows (or pixels) that a step asks for.
  __device__ __forceinline__ void push(const WalkWindow& window, const Branch& branch,
                                       const WindowShares& shared, uint32_t lane, uint32_t tile) {
    const auto pitch = static_cast<uint32_t>(branch.map.stride[kChannelsLast ? 4 : 3] * sizeof(T));
#pragma unroll 1
    for (int32_t k = 0; k < window.pushes; ++k) {
#pragma unroll
      for (int row = 0; row + 1 < kWindowRows; ++row) {
#pragma unroll
        for (int v = 0; v < V; ++v) rows[row][v] = rows[row + 1][v];
      }
      load(line + scaled(window.load + k, pitch), branch, shared, lane, tile,
           rows[kWindowRows - 1]);
    }
  }
};

}  // namespace msr
