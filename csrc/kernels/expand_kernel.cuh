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

// Applies gate and activation to the values of elements [offset, offset + V), and saves the mask.
template <int V>
__device__ __forceinline__ void finish(const GatherParams& gather, int64_t offset, uint32_t lane,
                                       float (&values)[V]) {
  if (gather.gate) {
    const uint32_t bits = gate_bits<V>(gather.gate, offset);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!(bits >> v & 1)) values[v] = 0.0f;
    }
  }
  if (gather.mask) {
    uint32_t bits = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) bits |= (values[v] <= 0.0f ? 0u : 1u) << v;
    save_bits<V>(gather.mask, offset, lane, bits);
  }
  if (gather.activation == Activation::kRelu) {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = values[v] <= 0.0f ? 0.0f : values[v];  // NaN stays
  }
}

constexpr int plain_threads(int vector, int sources) {
  return expand_threads({GatherKernel::kExpandPlanar, vector, sources, 0, 0});
}

// T: the element type of all maps. kSources: linear branches of one sum it has room for; 0 for
// branches of single taps, of which it keeps nothing and takes any number.
template <typename T, int V, int kSources, bool kChannelsLast>
__global__ void __launch_bounds__(plain_threads(V, kSources), 2)
    expand_kernel(const __grid_constant__ ExpandParams params) {
  using Entry = std::conditional_t<kSources == 0, uint32_t, ColumnTap>;
  constexpr int kWalked = kChannelsLast ? 2 : 1;  // of the spatial axes
  const GatherParams& gather = params.gather;
  const Share share = share_of_block<kChannelsLast>(params);
  const ExpandJob& job = share.job;
  const int32_t begin = share.begin, steps = share.steps;

  __shared__ float base_weights[kMaxBranches];
  MSR_DYNAMIC_SHARED(WalkTap, walk);
  Entry* const columns = reinterpret_cast<Entry*>(walk + job.num_sources * job.steps);
  const uint32_t table_columns = job.tile * V;
  const auto* weights = static_cast<const float*>(gather.weights.data);
  if (threadIdx.x < static_cast<uint32_t>(job.num_bases)) {
    base_weights[threadIdx.x] = weights ? weights[job.bases[threadIdx.x]] : 1.0f;
  }
  fill_tables<T, V, kChannelsLast, (kSources > 0)>(gather, share, weights, walk, columns);
  if (!kFaultMissingBarrier) __syncthreads();

  end_mask(gather);
  const uint32_t row_of_block = threadIdx.x / job.tile;
  const uint32_t lane = threadIdx.x - row_of_block * job.tile;
  const uint32_t vector = share.tile_begin + lane;
  if (vector >= job.width || row_of_block >= job.lines_per_turn) return;

  const int32_t out_pitch = static_cast<int32_t>(gather.out.stride[2 + kWalked]);
  for (uint32_t turn = 0; turn < job.turns; ++turn) {
    const uint32_t number = (share.group * job.turns + turn) * job.lines_per_turn + row_of_block;
    if (number >= job.lines - (kFaultUnwrittenOutput ? 1 : 0)) return;
    const Line line = line_of<V, kChannelsLast>(gather.out, job, number, vector);
    T* const first_out = static_cast<T*>(gather.out.data);
    T* out =
        first_out + offset_of(gather.out, line.n, job.channel_begin + line.c, line.d,
                              kChannelsLast ? line.at : begin, kChannelsLast ? begin : line.at);
    // The first base is loaded a step ahead, so that a thread always has a load under way.
    const T* base = nullptr;
    Ahead<T, V> ahead{};
    uint32_t base_pitch = 0;
    if (job.num_bases > 0) {
      const Map& map = gather.branches[job.bases[0]].map;
      base = base_address<T, kChannelsLast>(map, line, begin) + (kFaultMisalignedVector ? 1 : 0);
      base_pitch = static_cast<uint32_t>(map.stride[2 + kWalked]);
      ahead.load(base);
    }

    RollingSource<T, V, kChannelsLast> source[kSources > 0 ? kSources : 1];
    const char* first_line = nullptr;
    if constexpr (kSources > 0) {
#pragma unroll
      for (int s = 0; s < kSources; ++s) {
        if (s < job.num_sources) source[s].start(gather.branches[job.sources[s]], line);
      }
    } else {
      if (job.num_sources > 0) {
        first_line = nearest_line<T, kChannelsLast>(gather.branches[job.sources[0]], line);
      }
    }

#pragma unroll 1
    for (int32_t i = 0; i < steps; ++i) {
      float sum[V] = {};
      float values[V];
      if (job.num_bases > 0) {
        ahead.widen_to(values);
        if (i + 1 < steps) {
          base += base_pitch;
          ahead.load(base);
        }
        accumulate(sum, base_weights[0], values);
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
#pragma unroll 1
        for (int s = 0; s < job.num_sources; ++s) {
          const Branch& branch = gather.branches[job.sources[s]];
          const char* start = s == 0 ? first_line : nearest_line<T, kChannelsLast>(branch, line);
          const WalkTap tap = walk[s * job.steps + i];
          const auto pitch = static_cast<uint32_t>(branch.map.stride[2 + kWalked] * sizeof(T));
          load_single_taps<T, V, kChannelsLast>(
              start + scaled(tap.load, pitch), columns + s * table_columns, lane, job.tile, values);
          accumulate(sum, tap.first, values);
        }
      }
      finish<V>(gather, out - first_out, lane, sum);
      store_vector<T, V>(out, sum);
      out += out_pitch;
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
