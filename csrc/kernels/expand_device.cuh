// What the kernels of EXPAND have in common: which part of a call a block and a thread compute, the
// tables of taps, and the branches of up to two taps along each axis. expand_kernel.cuh tells how
// it works, expand_plan.h how the work is cut.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_compat.h"
#include "expand_plan.h"
#include "planted_faults.h"
#include "vector_io.cuh"

namespace msr {
namespace {  // each file has its own, so that a fault planted in one is in no other

// ---- who computes what --------------------------------------------------------------------------

// The strip of lines that a block walks.
struct Share {
  const ExpandJob& job;
  uint32_t tile_begin;  // its first vector
  int32_t begin, steps;
  uint32_t group;  // of lines
};

template <bool kChannelsLast>
__device__ __forceinline__ Share share_of_block(const ExpandParams& params) {
  int which = 0;
  while (which + 1 < params.num_jobs && blockIdx.x >= params.jobs[which + 1].block_begin) ++which;
  const ExpandJob& job = params.jobs[which];
  uint32_t block = blockIdx.x - job.block_begin;
  const uint32_t tile_begin = block % job.tiles * job.tile;
  block /= job.tiles;
  const auto begin = static_cast<int32_t>(block % job.strips * job.steps);
  const uint32_t group = block / job.strips;
  const auto walk_size = static_cast<int32_t>(params.gather.out.size[kChannelsLast ? 4 : 3]);
  const int32_t rest = walk_size - begin;
  const int32_t steps = rest < static_cast<int32_t>(job.steps) ? rest : job.steps;
  return {job, tile_begin, begin, steps, group};
}

// The line that a thread walks.
struct Line {
  int32_t n, d;
  int32_t c;   // in the slice of the branch: the plane's, or the first of the thread's vector
  int32_t at;  // planar: the first column of the thread's vector; channels_last: the row
};

// Lines in the order of memory: planes by depth, channel, image; rows by row, depth, image.
template <int V, bool kChannelsLast>
__device__ __forceinline__ Line line_of(const Map& out, const ExpandJob& job, uint32_t number,
                                        uint32_t vector) {
  const auto inner_size = static_cast<uint32_t>(kChannelsLast ? out.size[3] : out.size[2]);
  const uint32_t middle_size = kChannelsLast ? static_cast<uint32_t>(out.size[2]) : job.channels;
  const uint32_t outer = number / inner_size;
  const auto inner = static_cast<int32_t>(number - outer * inner_size);
  Line line;
  line.n = static_cast<int32_t>(outer / middle_size);
  const auto middle = static_cast<int32_t>(outer - line.n * middle_size);
  line.d = kChannelsLast ? middle : inner;
  line.c = kChannelsLast ? static_cast<int32_t>(vector * V) : middle;
  line.at = kChannelsLast ? inner : static_cast<int32_t>(vector * V);
  return line;
}

// The mask is as long as whole 32-bit words: writes the bytes that no element has.
__device__ __forceinline__ void end_mask(const GatherParams& gather) {
  if (!gather.mask || blockIdx.x != 0 || threadIdx.x >= 4) return;
  const int64_t bytes = (numel(gather.out) + 7) >> 3;
  if (bytes % 4 != 0 && threadIdx.x >= bytes % 4) {
    gather.mask[(bytes & ~int64_t{3}) + threadIdx.x] = 0;
  }
}

// ---- taps ---------------------------------------------------------------------------------------

// The taps of one position on an axis that is not walked. `fraction`: as in ColumnTap.
struct LineTaps {
  int32_t first;
  bool two;
  float fraction;
};

MSR_DEVICE_OUT_OF_LINE LineTaps line_taps(const Axis& axis, int32_t position) {
  const Range range = support(axis, position);
  const bool two = range.end - range.begin == 2;
  return {range.begin, two, two ? weight<float>(axis, position, range.begin + 1) : 0.5f};
}

template <int V>
__device__ __forceinline__ void accumulate(float (&sum)[V], float coefficient,
                                           const float (&values)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = fmaf(coefficient, values[v], sum[v]);
}

// ---- tables -------------------------------------------------------------------------------------

// The coefficient of a tap that is not there: no weight of a tap is negative, and nothing is added
// to a sum.
constexpr float kNoTap = -0.0f;

// Step `step` of a strip that begins at position `begin`. (What is out of line returns its result:
// a pointer into shared memory would have to become one that says so.)
MSR_DEVICE_OUT_OF_LINE WalkTap walk_tap(const Branch& branch, int walked, int32_t begin,
                                        int32_t step, float branch_weight) {
  const Axis& axis = branch.axis[walked];
  const int32_t position = begin + step;
  const Range range = support(axis, position);
  const bool two = range.end - range.begin == 2;
  WalkTap tap;
  tap.first = branch_weight * weight<float>(axis, position, range.begin);
  tap.second = two ? branch_weight * weight<float>(axis, position, range.begin + 1) : kNoTap;
  tap.load = range.begin;
  tap.pushes = two ? 2 : -2;
  if (step == 0) return tap;
  const Range before = support(axis, position - 1);
  const bool had_two = before.end - before.begin == 2;
  if (range.begin == before.begin && two == had_two) {
    tap.pushes = 0;
  } else if (had_two && range.begin == before.begin + 1) {
    tap.load = range.begin + 1;
    tap.pushes = two ? 1 : -1;
  }
  return tap;
}

// How many neighbouring columns of the result have the same taps: 2, 4 or 8 for maps of exactly
// that many times fewer columns, or 1 for all others. A thread then loads what its columns share
// once. The first taps of linear columns change half a factor after those of nearest ones.
__device__ __forceinline__ int32_t shared_columns(const Axis& axis) {
  const bool is_nearest = axis.rule == Rule::kNearest || axis.rule == Rule::kNearestExact;
  if (!is_nearest && axis.rule != Rule::kLinearRational) return 1;
#pragma unroll
  for (int32_t factor = 2; factor <= 8; factor *= 2) {
    if (axis.out_size / factor != axis.in_size || axis.out_size % factor != 0) continue;
    // Another scale may have been asked for; and floats have the halves of 2^23 numbers.
    const bool is_exact = axis.nearest_scale * factor == 1.0f && axis.out_size <= 1 << 23;
    return !is_nearest || is_exact ? factor : 1;
  }
  return 1;
}

// function(factor) with what shared_columns() returned as a constant.
template <typename Function>
__device__ __forceinline__ void with_shared_columns(int32_t factor, const Function& function) {
  switch (factor) {
    case 2:
      return function(std::integral_constant<int, 2>());
    case 4:
      return function(std::integral_constant<int, 4>());
    case 8:
      return function(std::integral_constant<int, 8>());
    default:
      return function(std::integral_constant<int, 1>());
  }
}

// The same of a branch of single taps.
MSR_DEVICE_OUT_OF_LINE SingleTap single_tap(const Branch& branch, int walked, int32_t position,
                                            float branch_weight) {
  const int64_t element_bytes = element_size(branch.map.dtype);
  return {branch_weight, support(branch.axis[walked], position).begin,
          static_cast<uint32_t>(branch.map.stride[2 + walked] * element_bytes),
          shared_columns(branch.axis[2])};
}

// Where the table of a block's columns keeps column `column` of its tile: the entries of one thread
// that one 16-byte access reads lie together, and the same ones of its neighbour right behind.
template <typename Entry, int V>
struct ColumnTable {
  static constexpr int kGroup = V * sizeof(Entry) < 16 ? V : 16 / sizeof(Entry);

  __device__ static uint32_t slot(uint32_t column, uint32_t tile) {
    const uint32_t lane = column / V, v = column % V;
    return (v / kGroup * tile + lane) * kGroup + v % kGroup;
  }

  // Entry v of a lane.
  __device__ __forceinline__ static Entry read_one(const Entry* table, uint32_t lane, uint32_t tile,
                                                   int v) {
    return table[(v / kGroup * tile + lane) * kGroup + v % kGroup];
  }

  __device__ static void read(const Entry* table, uint32_t lane, uint32_t tile,
                              Entry (&entries)[V]) {
#pragma unroll
    for (int v = 0; v < V; v += kGroup) {
      const auto group = load_vector<Entry, kGroup>(table + (v / kGroup * tile + lane) * kGroup);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) entries[v + k] = group.at[k];
    }
  }
};

MSR_DEVICE_OUT_OF_LINE ColumnTap column_tap(const Axis& axis, int32_t column, uint32_t pitch) {
  const LineTaps taps = line_taps(axis, column);
  return {static_cast<uint32_t>(taps.first) * pitch, taps.fraction};
}

MSR_DEVICE_OUT_OF_LINE uint32_t column_offset(const Axis& axis, int32_t column, uint32_t pitch) {
  const int32_t past_end = kFaultOutOfBoundsRead ? 1 : 0;
  return static_cast<uint32_t>(support(axis, column).begin + past_end) * pitch;
}

// The tables of the branches of up to two taps of a job: the walked axis of each, then the columns
// of each.
template <typename T, int V, bool kChannelsLast, typename Tap, typename Entry>
__device__ __forceinline__ void fill_tables(const GatherParams& gather, const Share& share,
                                            const float* weights, Tap* walk, Entry* columns) {
  constexpr int kWalked = kChannelsLast ? 2 : 1;  // of the spatial axes
  const ExpandJob& job = share.job;
  const uint32_t table_columns = job.tile * V;
  for (int s = 0; s < job.num_sources; ++s) {
    const Branch& branch = gather.branches[job.sources[s]];
    const float branch_weight = weights ? weights[job.sources[s]] : 1.0f;
    const uint32_t entries = static_cast<uint32_t>(share.steps) + (kFaultSharedOverflow ? 1 : 0);
    for (uint32_t i = threadIdx.x; i < entries; i += blockDim.x) {
      const auto step = static_cast<int32_t>(i);
      Tap& tap = walk[s * job.steps + i];
      if constexpr (std::is_same_v<Tap, SingleTap>) {
        tap = single_tap(branch, kWalked, share.begin + step, branch_weight);
      } else {
        tap = walk_tap(branch, kWalked, share.begin, step, branch_weight);
      }
    }
    if (kChannelsLast) continue;
    const auto pitch = static_cast<uint32_t>(branch.map.stride[4]);
    for (uint32_t i = threadIdx.x; i < table_columns; i += blockDim.x) {
      const auto column = static_cast<int32_t>(share.tile_begin * V + i);
      if (static_cast<uint32_t>(column) >= job.width * V) break;
      Entry& entry = columns[s * table_columns + ColumnTable<Entry, V>::slot(i, job.tile)];
      if constexpr (std::is_same_v<Entry, ColumnTap>) {
        entry = column_tap(branch.axis[2], column, pitch);
      } else {
        entry = column_offset(branch.axis[2], column, pitch);
      }
    }
  }
}

// Where row or pixel `index` begins, behind the first: one wide multiplication.
__device__ __forceinline__ uint64_t scaled(int32_t index, uint32_t pitch) {
  return static_cast<uint64_t>(static_cast<uint32_t>(index)) * pitch;
}

// The same value, of which compilers do not know where it comes from: one that is used by every
// step stays in a register, instead of being computed anew by each.
template <typename Value>
__device__ __forceinline__ Value kept(Value value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Value) == 8) {
    asm("" : "+l"(value));
  } else if constexpr (std::is_floating_point_v<Value>) {
    asm volatile("" : "+f"(value));
  } else {
    asm("" : "+r"(value));
  }
#endif
  return value;
}

// The element of a map at which step i of a walk is. Of a kept pointer, compilers do not know that
// it is one to global memory.
template <typename T>
__device__ __forceinline__ T* at_step(T* first, int32_t i, uint32_t pitch_bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  T* const element = reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + scaled(i, pitch_bytes));
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(element));
#endif
  return element;
}

// ---- one branch, on one line --------------------------------------------------------------------

// The element of a branch of the result's size from which a thread's walk of a line begins.
template <typename T, bool kChannelsLast>
__device__ __forceinline__ const T* base_address(const Map& map, const Line& line, int32_t begin) {
  const int32_t h = kChannelsLast ? line.at : begin, w = kChannelsLast ? begin : line.at;
  const int64_t offset = line.n * map.stride[0] + line.c * map.stride[1] + line.d * map.stride[2] +
                         h * map.stride[3] + w * map.stride[4];
  return static_cast<const T*>(map.data) + offset;
}

// A linear branch, with what a thread keeps of it.
template <typename T, int V, bool kChannelsLast>
struct RollingSource {
  const char* line;     // row or pixel 0 at the first taps of the other axes
  uint32_t depth_step;  // bytes from the first depth tap to the second
  float depth_fraction;
  uint32_t row_step;  // channels_last: the same of the row taps
  float row_fraction;
  int32_t shared;  // planar: shared_columns() of linear columns, else 1
  float first[V], second[V];

  __device__ __forceinline__ void start(const Branch& branch, const Line& at) {
    const Map& map = branch.map;
    const LineTaps depth = line_taps(branch.axis[0], at.d);
    int64_t offset = at.n * map.stride[0] + at.c * map.stride[1] + depth.first * map.stride[2];
    depth_step = depth.two ? static_cast<uint32_t>(map.stride[2]) * sizeof(T) : 0;
    depth_fraction = depth.fraction;
    if (kChannelsLast) {
      const LineTaps row = line_taps(branch.axis[1], at.at);
      offset += row.first * map.stride[3];
      const bool next = row.two || (kFaultOutOfBoundsRead && is_linear(branch.axis[1].rule));
      row_step = next ? static_cast<uint32_t>(map.stride[3]) * sizeof(T) : 0;
      row_fraction = row.fraction;
    } else {
      shared = is_linear(branch.axis[2].rule) ? shared_columns(branch.axis[2]) : 1;
    }
    line = static_cast<const char*>(map.data) + offset * static_cast<int64_t>(sizeof(T));
#pragma unroll
    for (int v = 0; v < V; ++v) first[v] = second[v] = 0.0f;
  }

  // Columns of a row, or channels of a pixel.
  __device__ __forceinline__ void load(const char* position, const Branch& branch,
                                       const ColumnTap* table, uint32_t lane, uint32_t tile,
                                       float (&values)[V]) const {
    if constexpr (kChannelsLast) {
      widen_vector(load_vector<T, V>(reinterpret_cast<const T*>(position)), values);
      if (!is_linear(branch.axis[1].rule)) return;
      float below[V];
      widen_vector(load_vector<T, V>(reinterpret_cast<const T*>(position + row_step)), below);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v] = fmaf(row_fraction, below[v], (1.0f - row_fraction) * values[v]);
      }
    } else {
      ColumnTap columns[V];
      ColumnTable<ColumnTap, V>::read(table, lane, tile, columns);
      const auto* const row = reinterpret_cast<const T*>(position);
      with_shared_columns(
          shared, [&](auto factor) { load_columns<factor()>(row, branch, columns, values); });
    }
  }

  // With a second tap, where there is one, in the next column; single taps are read twice. kShared
  // columns each have the same taps, beginning half of that before the thread's first column.
  template <int kShared>
  __device__ __forceinline__ static void load_columns(const T* row, const Branch& branch,
                                                      const ColumnTap (&columns)[V],
                                                      float (&values)[V]) {
    const auto pitch = static_cast<uint32_t>(branch.map.stride[4]);
    const uint32_t step = is_linear(branch.axis[2].rule) ? pitch : 0;
    const uint32_t last = static_cast<uint32_t>(branch.map.size[4] - 1) * pitch;
    float a = 0.0f, b = 0.0f;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int group = (v + kShared / 2) / kShared;
      if (v == 0 || group != (v - 1 + kShared / 2) / kShared) {
        const uint32_t first = columns[v].offset, next = first + step;
        // The second tap of the group before; but at the left border its taps are moved.
        const bool is_known = kShared > 1 && group > 1;
        a = is_known ? b : widen<float>(row[first]);
        b = widen<float>(row[next < last || kFaultOutOfBoundsRead ? next : last]);
      }
      values[v] = fmaf(columns[v].fraction, b, (1.0f - columns[v].fraction) * a);
    }
  }

  // The rows (or pixels) that a step asks for, one after the other: a loop, so that the loads of a
  // row are in the program once.
  __device__ __forceinline__ void push(const WalkTap& tap, const Branch& branch,
                                       const ColumnTap* table, uint32_t lane, uint32_t tile) {
    if (tap.pushes == 0) return;  // most steps
    const int32_t rows = tap.pushes < 0 ? -tap.pushes - 1 : tap.pushes;
    const bool two_depths = is_linear(branch.axis[0].rule);
    const auto pitch = static_cast<uint32_t>(branch.map.stride[kChannelsLast ? 4 : 3] * sizeof(T));
#pragma unroll 1
    for (int32_t k = 0; k < rows; ++k) {
#pragma unroll
      for (int v = 0; v < V; ++v) first[v] = second[v];
      const char* position = line + scaled(tap.load + k, pitch);
      load(position, branch, table, lane, tile, second);
      if (!two_depths) continue;
      float behind[V];
      load(position + depth_step, branch, table, lane, tile, behind);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        second[v] = fmaf(depth_fraction, behind[v], (1.0f - depth_fraction) * second[v]);
      }
    }
    if (tap.pushes < 0) {
      asm volatile("");  // Compilers would make it selects, which each step pays for.
#pragma unroll
      for (int v = 0; v < V; ++v) {
        first[v] = second[v];
        second[v] = 0.0f;
      }
    }
  }
};

// A branch of single taps: where row or pixel 0 of the line lies.
template <typename T, bool kChannelsLast>
__device__ __forceinline__ const char* nearest_line(const Branch& branch, const Line& at) {
  const Map& map = branch.map;
  int64_t offset = at.n * map.stride[0] + at.c * map.stride[1] +
                   support(branch.axis[0], at.d).begin * map.stride[2];
  if (kChannelsLast) offset += support(branch.axis[1], at.at).begin * map.stride[3];
  return static_cast<const char*>(map.data) + offset * static_cast<int64_t>(sizeof(T));
}

// function(the columns of its row, or channels of its pixel, that a step reads). start: the line.
// In a function, so that columns with the same value need no copies of it.
template <typename T, int V, bool kChannelsLast, typename Function>
__device__ __forceinline__ void with_single_taps(const char* start, const SingleTap& tap,
                                                 const uint32_t* columns, uint32_t lane,
                                                 uint32_t tile, const Function& function) {
  const auto* const first = reinterpret_cast<const T*>(at_step(start, tap.load, tap.pitch));
  if constexpr (kChannelsLast) {
    float values[V];
    widen_vector(load_vector<T, V>(first), values);
    function(values);
  } else {
    uint32_t offsets[V];
    ColumnTable<uint32_t, V>::read(columns, lane, tile, offsets);
    with_shared_columns(tap.columns, [&](auto factor) {
      float values[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v] = v % factor() == 0 ? widen<float>(first[offsets[v]]) : values[v - 1];
      }
      function(values);
    });
  }
}

// The raw bytes of a vector that is loaded a step ahead: whole registers, where a struct of 2-byte
// elements would be taken apart.
template <typename T, int V>
struct Ahead {
  using Word = std::conditional_t<V * sizeof(T) % 4 == 0, uint32_t, uint16_t>;
  static constexpr int kWords = V * sizeof(T) / sizeof(Word);
  Vector<Word, kWords> words;

  __device__ __forceinline__ void load(const T* address) {
    words = load_vector<Word, kWords>(reinterpret_cast<const Word*>(address));
  }

  __device__ __forceinline__ void widen_to(float (&values)[V]) const {
    Vector<T, V> raw;
    memcpy(&raw, &words, sizeof raw);
    widen_vector(raw, values);
  }
};

// ---- the mask -----------------------------------------------------------------------------------

// Whether each value is positive or NaN, a bit for each. Two instructions per value: a comparison
// that gives 1.0, and an addition of its multiple, all in the last bits of a float.
template <int V>
__device__ __forceinline__ uint32_t positive_bits(const float (&values)[V]) {
  constexpr float kUnit = 8388608.0f;  // 2^23: one is the last bit of its mantissa
  float bits = kUnit;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float is_positive;
#if defined(__CUDA_ARCH__)
    asm("set.gtu.f32.f32 %0, %1, 0f00000000;" : "=f"(is_positive) : "f"(values[v]));
#else
    is_positive = values[v] <= 0.0f ? 0.0f : 1.0f;
#endif
    bits = fmaf(is_positive, static_cast<float>(1 << v), bits);
  }
  return float_to_bits(bits) & ((1u << V) - 1);
}

// Writes the bits of a vector into `byte`, where the byte of the vector's first one is. The lanes
// of one byte walk together: expand_plan.h gives it whole tiles.
template <int V>
__device__ __forceinline__ void save_bits(uint8_t* byte, uint32_t lane, uint32_t bits) {
  constexpr int kLanes = 8 / V;
  const uint32_t place = lane % kLanes;
  bits <<= place * V;
  const uint32_t first = threadIdx.x % 32 - place;
  const uint32_t together = ((1u << kLanes) - 1) << first;
#pragma unroll
  for (int other = 1; other < kLanes; other *= 2) {
    bits |= __shfl_xor_sync(together, bits, other);
  }
  if (place == 0) *byte = static_cast<uint8_t>(bits);
}

}  // namespace
}  // namespace msr
