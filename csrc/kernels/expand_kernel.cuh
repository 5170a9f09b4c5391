// EXPAND: the fast gather-sum, one pass over every map. How the work is cut: expand_plan.h.
//
// Along the walked axis each resampled branch keeps the two rows (or pixels) between which the
// position lies, already interpolated along all other axes, in registers: a step costs two
// multiply-adds per element and branch, and only where the source index moves on is anything
// loaded. Nothing is shared between threads but the tables of taps, which the block makes first
// (with resample_math.h, as every kernel does); past them there is no barrier.
//
// Every element is computed by one thread, in the order of gather_kernel.cuh: the results of the
// two agree bit for bit.
#pragma once

#include <type_traits>

#include "expand_device.cuh"
#include "expand_dispatch.cuh"

namespace msr {

// Which parts of finish() a call has: tested at each step, so in one register.
enum Finish : uint32_t { kHasGate = 1, kHasMask = 2, kHasRelu = 4 };

__device__ __forceinline__ uint32_t parts_of_finish(const GatherParams& gather) {
  return (gather.gate ? kHasGate : 0u) | (gather.mask ? kHasMask : 0u) |
         (gather.activation == Activation::kRelu ? kHasRelu : 0u);
}

// Applies gate and activation to the values of elements [offset, offset + V), saves the mask in
// `mask_byte` and those ahead, and stores the values.
template <typename T, int V>
__device__ __forceinline__ void finish(const GatherParams& gather, uint32_t parts, T* out,
                                       uint8_t* mask_byte, uint32_t lane, float (&values)[V]) {
  if (parts & kHasGate) {
    const int64_t offset = out - static_cast<const T*>(gather.out.data);
    const uint32_t bits = gate_bits<V>(gather.gate, offset);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!(bits >> v & 1)) values[v] = 0.0f;
    }
  }
  if (parts & kHasMask) save_bits<V>(mask_byte, lane, positive_bits(values));
  store_vector<T, V>(out, values, (parts & kHasRelu) != 0);
}

// Branches of single taps whose lines a thread remembers; those of more it finds anew at each step.
// Three would leave channels_last instances fewer than four blocks, or make them spill.
constexpr int kept_lines(bool channels_last) { return channels_last ? 2 : 3; }

constexpr int plain_threads(int vector, int sources) {
  return expand_threads({GatherKernel::kExpandPlanar, vector, sources, 0, 0});
}

// Blocks of a multiprocessor. Without rows to keep there is room for four: threads that wait hide
// more than what a thread would do with more registers.
constexpr int plain_blocks(int sources, bool channels_last) {
  return sources == 0 && channels_last ? 4 : 2;
}

// T: the element type of all maps. kSources: linear branches of one sum it has room for; 0 for
// branches of single taps, of which it keeps nothing and takes any number.
template <typename T, int V, int kSources, bool kChannelsLast>
__global__ void __launch_bounds__(plain_threads(V, kSources), plain_blocks(kSources, kChannelsLast))
    expand_kernel(const __grid_constant__ ExpandParams params) {
  using Tap = std::conditional_t<kSources == 0, SingleTap, WalkTap>;
  using Entry = std::conditional_t<kSources == 0, uint32_t, ColumnTap>;
  constexpr int kKeptLines = kept_lines(kChannelsLast);
  constexpr int kWalked = kChannelsLast ? 2 : 1;  // of the spatial axes
  const GatherParams& gather = params.gather;
  const Share share = share_of_block<kChannelsLast>(params);
  const ExpandJob& job = share.job;
  const int32_t begin = share.begin, steps = share.steps;

  __shared__ float base_weights[kMaxBranches];
  MSR_DYNAMIC_SHARED(Tap, walk);
  Entry* const columns = reinterpret_cast<Entry*>(walk + job.num_sources * job.steps);
  const uint32_t table_columns = job.tile * V;
  const auto* weights = static_cast<const float*>(gather.weights.data);
  if (threadIdx.x < static_cast<uint32_t>(job.num_bases)) {
    base_weights[threadIdx.x] = weights ? weights[job.bases[threadIdx.x]] : 1.0f;
  }
  fill_tables<T, V, kChannelsLast>(gather, share, weights, walk, columns);
  if (!kFaultMissingBarrier) __syncthreads();

  end_mask(gather);
  const uint32_t row_of_block = threadIdx.x / job.tile;
  const uint32_t lane = threadIdx.x - row_of_block * job.tile;
  const uint32_t vector = share.tile_begin + lane;
  if (vector >= job.width || row_of_block >= job.lines_per_turn) return;

  const uint32_t out_pitch =
      kept(static_cast<uint32_t>(gather.out.stride[2 + kWalked] * sizeof(T)));
  const uint32_t finish_parts = kept(parts_of_finish(gather));
  const float base_weight = job.num_bases > 0 ? base_weights[0] : 0.0f;
  for (uint32_t turn = 0; turn < job.turns; ++turn) {
    const uint32_t number = (share.group * job.turns + turn) * job.lines_per_turn + row_of_block;
    if (number >= job.lines - (kFaultUnwrittenOutput ? 1 : 0)) return;
    const Line line = line_of<V, kChannelsLast>(gather.out, job, number, vector);
    T* const first_out = static_cast<T*>(gather.out.data);
    const int64_t offset =
        offset_of(gather.out, line.n, job.channel_begin + line.c, line.d,
                  kChannelsLast ? line.at : begin, kChannelsLast ? begin : line.at);
    T* const out = kept(first_out + offset);
    uint8_t* const mask = kept(gather.mask + (offset >> 3));
    // The first base is loaded a step ahead, so that a thread always has a load under way.
    const T* base = nullptr;
    Ahead<T, V> ahead{};
    uint32_t base_pitch = 0;
    if (job.num_bases > 0) {
      const Map& map = gather.branches[job.bases[0]].map;
      base =
          kept(base_address<T, kChannelsLast>(map, line, begin) + (kFaultMisalignedVector ? 1 : 0));
      base_pitch = static_cast<uint32_t>(map.stride[2 + kWalked] * sizeof(T));
      ahead.load(at_step(base, 0, base_pitch));
    }

    RollingSource<T, V, kChannelsLast> source[kSources > 0 ? kSources : 1];
    const char* lines[kKeptLines] = {};
    if constexpr (kSources > 0) {
#pragma unroll
      for (int s = 0; s < kSources; ++s) {
        if (s < job.num_sources) source[s].start(gather.branches[job.sources[s]], line);
      }
    } else {
#pragma unroll
      for (int s = 0; s < kKeptLines; ++s) {
        if (s >= job.num_sources) continue;
        lines[s] = kept(nearest_line<T, kChannelsLast>(gather.branches[job.sources[s]], line));
      }
    }

#pragma unroll 1
    for (int32_t i = 0; i < steps; ++i) {
      float sum[V];
      float values[V];
      if (job.num_bases > 0) {
        ahead.widen_to(values);
        if (i + 1 < steps) ahead.load(at_step(base, i + 1, base_pitch));
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = fmaf(base_weight, values[v], 0.0f);
      } else {
        // Kept: known zeros are set by each step, and then overwritten.
        const float zero = kept(0.0f);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = zero;
      }
#pragma unroll 1
      for (int k = 1; k < job.num_bases; ++k) {
        const Map& map = gather.branches[job.bases[k]].map;
        widen_vector(load_vector<T, V>(base_address<T, kChannelsLast>(map, line, begin + i)),
                     values);
        accumulate(sum, base_weights[k], values);
      }

      if constexpr (kSources > 0) {
#pragma unroll
        for (int s = 0; s < kSources; ++s) {
          if (s < job.num_sources) {
            const WalkTap tap = walk[s * job.steps + i];
            source[s].push(tap, gather.branches[job.sources[s]], columns + s * table_columns, lane,
                           job.tile);
            accumulate(sum, tap.first, source[s].first);
            accumulate(sum, tap.second, source[s].second);
          }
        }
      } else {
        const auto add_single_taps = [&](int s, const char* start) {
          const SingleTap tap = walk[s * job.steps + i];
          with_single_taps<T, V, kChannelsLast>(
              start, tap, columns + s * table_columns, lane, job.tile,
              [&](const float (&read)[V]) { accumulate(sum, tap.coefficient, read); });
        };
#pragma unroll
        for (int s = 0; s < kKeptLines; ++s) {
          if (s < job.num_sources) add_single_taps(s, lines[s]);
        }
#pragma unroll 1
        for (int s = kKeptLines; s < job.num_sources; ++s) {
          const Branch& branch = gather.branches[job.sources[s]];
          add_single_taps(s, nearest_line<T, kChannelsLast>(branch, line));
        }
      }
      // Lines with masks are whole bytes, so steps are too.
      finish<T, V>(gather, finish_parts, at_step(out, i, out_pitch),
                   at_step(mask, i, out_pitch / (8 * sizeof(T))), lane, sum);
    }
  }
}

template <typename T>
struct PlainLaunch {
  cudaStream_t stream;
  ExpandParams plan;

  static constexpr bool has(const GatherChoice& variant) {
    return !is_extended(variant.kernel) && variant.vector * sizeof(T) <= 16;
  }

  template <int kNumber>
  void operator()(VariantNumber<kNumber>) const {
    constexpr GatherChoice kVariant = kExpandVariants[kNumber];
    constexpr bool kChannelsLast = is_channels_last(kVariant.kernel);
    MSR_LAUNCH((expand_kernel<T, kVariant.vector, kVariant.sources, kChannelsLast>),
               dim3(plan.num_blocks), dim3(plan.threads), plan.shared_bytes, stream, plan);
  }
};

template <typename T>
const char* launch_expand(const GatherParams& params, const GatherChoice& choice, void* stream) {
  return launch_planned(params, choice, PlainLaunch<T>{static_cast<cudaStream_t>(stream), {}});
}

}  // namespace msr
