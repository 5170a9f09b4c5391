// EXPAND with all that a sum may have: weights of channels, images and pixels, constants (a bias),
// any activation or its derivative, any gate, results that are added to, not dense, or float32 of
// 2-byte maps; and (kWindows) branches of windows. Plain calls keep a kernel without any of it
// (expand_kernel.cuh), which tells how both work.
//
// What is new is read where it is used, by every step, from the caches: registers are for rows.
#pragma once

#include <type_traits>

#include "expand_device.cuh"
#include "expand_dispatch.cuh"
#include "expand_windows.cuh"

namespace msr {

// Where the first element of a step is. What follows from it is computed where it is used, not
// kept.
struct Step {
  int32_t n, d, h, w;
  int32_t c;              // in the channel slice
  int64_t channel_begin;  // of the slice

  __device__ __forceinline__ int64_t channel() const { return channel_begin + c; }
  __device__ __forceinline__ int64_t pixel(const Map& map) const {
    return (d * map.size[3] + h) * map.size[4] + w;
  }
  __device__ __forceinline__ int64_t offset(const int64_t (&stride)[kDims]) const {
    return offset_in(stride, n, channel(), d, h, w);
  }
  // The number of the element, as masks and gates count.
  __device__ __forceinline__ int64_t number(const Map& map) const {
    return offset_of(map, n, channel(), d, h, w);
  }
};

// What a step multiplies the values of a branch with.
template <int V, bool kChannelsLast>
struct Factors {
  bool each;  // whether each element has its own; otherwise at[0] is that of all
  float at[V];

  __device__ __forceinline__ Factors(const GatherParams& gather, int b, const Step& step) {
    const Weights& weights = gather.weights;
    const PixelWeights& pixels = gather.pixel_weights;
    const float* pixel = nullptr;
    if (pixels.has(b)) {
      pixel = static_cast<const float*>(pixels.data) + step.n * pixels.stride_n +
              b * pixels.stride_b + step.pixel(gather.out);
    }
    each = kChannelsLast ? weights.has(b) && weights.stride_c != 0 : pixel != nullptr;
    if (!each) {
      at[0] = weight_of<float>(weights, b, step.n, step.channel()) * (pixel ? *pixel : 1.0f);
      return;
    }
    if constexpr (kChannelsLast) {
      const float* const first = static_cast<const float*>(weights.data) +
                                 step.n * weights.stride_n + b * weights.stride_b + step.channel();
      widen_vector(load_vector<float, V>(first), at);
      const float factor = pixel ? *pixel : 1.0f;
#pragma unroll
      for (int v = 0; v < V; ++v) at[v] *= factor;
    } else {
      widen_vector(load_vector<float, V>(pixel), at);
      const float factor = weight_of<float>(weights, b, step.n, step.channel());
#pragma unroll
      for (int v = 0; v < V; ++v) at[v] *= factor;
    }
  }

  __device__ __forceinline__ void add(float (&sum)[V], float tap, const float (&values)[V]) const {
    if (!each) {
      accumulate(sum, at[0] * tap, values);
      return;
    }
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = fmaf(at[v] * tap, values[v], sum[v]);
  }
};

// The values of a branch of one pixel. All elements of a planar vector have the same.
template <typename T, int V, bool kChannelsLast>
struct Constant {
  static constexpr int kValues = kChannelsLast ? V : 1;
  float at[kValues];

  __device__ __forceinline__ void load(const Map& map, const Line& line) {
    const int64_t offset = line.n * map.stride[0] + line.c * map.stride[1];
    if (map.dtype == DType::kFloat32) {
      widen_vector(load_vector<float, kValues>(static_cast<const float*>(map.data) + offset), at);
    } else {
      widen_vector(load_vector<T, kValues>(static_cast<const T*>(map.data) + offset), at);
    }
  }

  __device__ __forceinline__ void add_to(float (&sum)[V],
                                         const Factors<V, kChannelsLast>& factors) const {
    float values[V];
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = at[kChannelsLast ? v : 0];
    factors.add(sum, 1.0f, values);
  }
};

// A map of T or of float32, with the strides of vectors.
template <typename T, int V>
__device__ __forceinline__ void load_either(const void* data, DType dtype, int64_t offset,
                                            float (&values)[V]) {
  if constexpr (V * sizeof(float) <= 16) {
    if (dtype == DType::kFloat32) {
      widen_vector(load_vector<float, V>(static_cast<const float*>(data) + offset), values);
      return;
    }
  }
  widen_vector(load_vector<T, V>(static_cast<const T*>(data) + offset), values);
}

template <typename T, int V>
__device__ __forceinline__ void store_either(void* data, DType dtype, int64_t offset,
                                             const float (&values)[V]) {
  if constexpr (V * sizeof(float) <= 16) {
    if (dtype == DType::kFloat32) {
      store_vector<float, V>(static_cast<float*>(data) + offset, values);
      return;
    }
  }
  store_vector<T, V>(static_cast<T*>(data) + offset, values);
}

// function(activation) with the activation as a constant, so that the switch is not taken for each
// element.
template <typename Function>
__device__ __forceinline__ void with_activation(Activation activation, const Function& function) {
  switch (activation) {
    case Activation::kNone:
      return function(std::integral_constant<Activation, Activation::kNone>());
    case Activation::kRelu:
      return function(std::integral_constant<Activation, Activation::kRelu>());
    case Activation::kRelu6:
      return function(std::integral_constant<Activation, Activation::kRelu6>());
    case Activation::kLeakyRelu:
      return function(std::integral_constant<Activation, Activation::kLeakyRelu>());
    case Activation::kSilu:
      return function(std::integral_constant<Activation, Activation::kSilu>());
    case Activation::kGelu:
      return function(std::integral_constant<Activation, Activation::kGelu>());
    case Activation::kHardswish:
      return function(std::integral_constant<Activation, Activation::kHardswish>());
    case Activation::kSigmoid:
      return function(std::integral_constant<Activation, Activation::kSigmoid>());
  }
}

// From sums to the result, as gather_elements does it. out: where the step lies in the result;
// kept_bits: where shared memory has the bits of the mask, if lanes do not shuffle them.
template <typename T, int V>
__device__ __forceinline__ void finish_extended(const GatherParams& gather, const Step& step,
                                                int64_t out, uint32_t lane, uint8_t* kept_bits,
                                                float (&values)[V]) {
  if (gather.accumulate) {
    float before[V];
    load_either<T, V>(gather.out.data, gather.out.dtype, out, before);
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] += before[v];
  }
  if (gather.gate) {
    const uint32_t bits = gate_bits<V>(gather.gate, step.number(gather.out));
    const auto off = static_cast<float>(gather.gate_off);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      // A factor of zero takes NaN away too.
      if (!(bits >> v & 1)) values[v] = off == 0 ? 0.0f : values[v] * off;
    }
  }
  if (gather.mask) {
    uint32_t bits = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) bits |= (passes(gather.activation, values[v]) ? 1u : 0u) << v;
    if (V < 8 && kept_bits) {
      *kept_bits = static_cast<uint8_t>(bits);
    } else {
      save_bits<V>(gather.mask + (step.number(gather.out) >> 3), lane, bits);
    }
  }
  if constexpr (V <= 4) {
    if (gather.grad) {
      float grads[V];
      load_either<T, V>(gather.grad, gather.grad_dtype, step.offset(gather.grad_stride), grads);
      with_activation(gather.activation, [&](auto activation) {
#pragma unroll
        for (int v = 0; v < V; ++v) values[v] = grads[v] * slope(activation(), values[v]);
      });
      return store_either<T, V>(gather.out.data, gather.out.dtype, out, values);
    }
  }
  with_activation(gather.activation, [&](auto activation) {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = activate(activation(), values[v]);
  });
  store_either<T, V>(gather.out.data, gather.out.dtype, out, values);
}

// Writes the bits of a turn that the block kept: `count` vectors of each of `lines` lines, one
// behind the other, the first line number `first`.
template <int V>
__device__ __forceinline__ void write_kept_bits(const GatherParams& gather, const Share& share,
                                                uint32_t first, uint32_t lines,
                                                const uint8_t* kept) {
  constexpr uint32_t kVectors = 8 / V;  // in a byte
  const ExpandJob& job = share.job;
  const uint32_t count = static_cast<uint32_t>(share.steps) * job.width;
  const uint32_t vectors = count * lines;
  for (uint32_t byte = threadIdx.x; byte * kVectors < vectors; byte += blockDim.x) {
    uint32_t bits = 0;
#pragma unroll
    for (uint32_t k = 0; k < kVectors; ++k) {
      const uint32_t vector = byte * kVectors + k;
      if (vector < vectors) bits |= static_cast<uint32_t>(kept[vector]) << (k * V);
    }
    // Planes are one piece; of strips, each line is one.
    const uint32_t line = job.mask_way == MaskWay::kStrips ? byte * kVectors / count : 0;
    const Line at = line_of<V, false>(gather.out, job, first + line, 0);
    const int64_t begin =
        offset_of(gather.out, at.n, job.channel_begin + at.c, at.d, share.begin, 0);
    gather.mask[(begin >> 3) + (byte - line * (count / kVectors))] = static_cast<uint8_t>(bits);
  }
}

constexpr int extended_threads(int vector, int sources, bool has_windows) {
  const auto kernel = has_windows ? GatherKernel::kWindowsPlanar : GatherKernel::kExtendedPlanar;
  return expand_threads({kernel, vector, sources, 0, 0});
}

// T: the element type of the maps. kSources: as in expand_kernel; with kWindows one.
template <typename T, int V, int kSources, bool kChannelsLast, bool kWindows>
__global__ void __launch_bounds__(extended_threads(V, kSources, kWindows), 2)
    expand_extended_kernel(const __grid_constant__ ExpandParams params,
                           const __grid_constant__ WindowTables tables) {
  static_assert(!kWindows || kSources == 1, "windows are those of one branch");
  using Tap = std::conditional_t<kSources == 0, SingleTap, WalkTap>;
  using Entry = std::conditional_t<kSources == 0, uint32_t, ColumnTap>;
  using Source = std::conditional_t<kWindows, WindowSource<T, V, kChannelsLast>,
                                    RollingSource<T, V, kChannelsLast>>;
  constexpr int kWalked = kChannelsLast ? 2 : 1;  // of the spatial axes
  const GatherParams& gather = params.gather;
  const Share share = share_of_block<kChannelsLast>(params);
  const ExpandJob& job = share.job;
  const int32_t begin = share.begin, steps = share.steps;

  MSR_DYNAMIC_SHARED(unsigned char, shared);
  auto* const walk = reinterpret_cast<Tap*>(shared);
  Entry* const columns = reinterpret_cast<Entry*>(walk + job.num_sources * job.steps);
  const uint32_t table_columns = job.tile * V;
  WindowShares window_shares{};
  // The bits of a turn, behind the tables.
  uint8_t* kept = reinterpret_cast<uint8_t*>(columns + job.num_sources * table_columns);
  if constexpr (kWindows) {
    window_shares.walk = reinterpret_cast<WalkWindow*>(shared);
    window_shares.weights = reinterpret_cast<ColumnWeights*>(window_shares.walk + job.steps);
    window_shares.columns = reinterpret_cast<ColumnWindow*>(window_shares.weights + table_columns);
    kept = job.num_sources > 0 ? reinterpret_cast<uint8_t*>(window_shares.columns + table_columns)
                               : shared;
    fill_tables<T, V, kChannelsLast>(gather, share, tables, window_shares);
  } else {
    fill_tables<T, V, kChannelsLast>(gather, share, nullptr, walk, columns);
  }
  if (!kFaultMissingBarrier) __syncthreads();

  end_mask(gather);
  const uint32_t row_of_block = threadIdx.x / job.tile;
  const uint32_t lane = threadIdx.x - row_of_block * job.tile;
  const uint32_t vector = share.tile_begin + lane;
  const bool has_work = vector < job.width && row_of_block < job.lines_per_turn;
  constexpr bool kMayKeepBits = !kChannelsLast && V < 8;
  const bool keeps_bits = kMayKeepBits && gather.mask && job.mask_way != MaskWay::kLanes;
  if (!has_work && !keeps_bits) return;

  const auto walk_line = [&](uint32_t number) {
    const Line line = line_of<V, kChannelsLast>(gather.out, job, number, vector);
    Step step{
        line.n, line.d,           kChannelsLast ? line.at : begin, kChannelsLast ? begin : line.at,
        line.c, job.channel_begin};
    int64_t out = step.offset(gather.out.stride);

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
    Source source[kSources > 0 ? kSources : 1];
    const char* first_line = nullptr;
    if constexpr (kWindows) {
      if (job.num_sources > 0) {
        const int b = job.sources[0];
        source[0].start(gather.branches[b], tables, tables.table[b], line);
      }
    } else if constexpr (kSources > 0) {
#pragma unroll
      for (int s = 0; s < kSources; ++s) {
        if (s < job.num_sources) source[s].start(gather.branches[job.sources[s]], line);
      }
    } else if (job.num_sources > 0) {
      first_line = nearest_line<T, kChannelsLast>(gather.branches[job.sources[0]], line);
    }
    Constant<T, V, kChannelsLast> constant{};
    if (job.num_constants > 0) constant.load(gather.branches[job.constants[0]].map, line);

#pragma unroll 1
    for (int32_t i = 0; i < steps; ++i) {
      using StepFactors = Factors<V, kChannelsLast>;
      float sum[V] = {};
      float values[V];
      if (job.num_bases > 0) {
        ahead.widen_to(values);
        if (i + 1 < steps) {
          base += base_pitch;
          ahead.load(base);
        }
        StepFactors(gather, job.bases[0], step).add(sum, 1.0f, values);
      }
#pragma unroll 1
      for (int k = 1; k < job.num_bases; ++k) {
        const Map& map = gather.branches[job.bases[k]].map;
        widen_vector(load_vector<T, V>(base_address<T, kChannelsLast>(map, line, begin + i)),
                     values);
        StepFactors(gather, job.bases[k], step).add(sum, 1.0f, values);
      }

      if constexpr (kWindows) {
        if (job.num_sources > 0) {
          const int b = job.sources[0];
          const WalkWindow& window = window_shares.walk[i];
          source[0].push(window, gather.branches[b], window_shares, lane, job.tile);
          const StepFactors factors(gather, b, step);
#pragma unroll
          for (int k = 0; k < kWindowRows; ++k) {
            if (k + window.count >= kWindowRows)
              factors.add(sum, window.weight[k], source[0].rows[k]);
          }
        }
      } else if constexpr (kSources > 0) {
#pragma unroll
        for (int s = 0; s < kSources; ++s) {
          if (s < job.num_sources) {
            const WalkTap tap = walk[s * job.steps + i];
            const int b = job.sources[s];
            source[s].push(tap, gather.branches[b], columns + s * table_columns, lane, job.tile);
            const StepFactors factors(gather, b, step);
            factors.add(sum, tap.first, source[s].first);
            // An infinite factor would make a number of a tap that is not there.
            if (float_to_bits(tap.second) != float_to_bits(kNoTap))
              factors.add(sum, tap.second, source[s].second);
          }
        }
      } else {
#pragma unroll 1
        for (int s = 0; s < job.num_sources; ++s) {
          const Branch& branch = gather.branches[job.sources[s]];
          const char* start = s == 0 ? first_line : nearest_line<T, kChannelsLast>(branch, line);
          const SingleTap tap = walk[s * job.steps + i];
          const StepFactors factors(gather, job.sources[s], step);
          with_single_taps<T, V, kChannelsLast>(
              start, tap, columns + s * table_columns, lane, job.tile,
              [&](const float (&read)[V]) { factors.add(sum, tap.coefficient, read); });
        }
      }
      if (job.num_constants > 0) {
        constant.add_to(sum, StepFactors(gather, job.constants[0], step));
      }
#pragma unroll 1
      for (int k = 1; k < job.num_constants; ++k) {
        Constant<T, V, kChannelsLast> other;
        other.load(gather.branches[job.constants[k]].map, line);
        other.add_to(sum, StepFactors(gather, job.constants[k], step));
      }
      uint8_t* const kept_bits =
          keeps_bits ? kept + (row_of_block * steps + i) * job.tile + lane : nullptr;
      finish_extended<T, V>(gather, step, out, lane, kept_bits, sum);
      ++(kChannelsLast ? step.w : step.h);
      out += gather.out.stride[2 + kWalked];
    }
  };

  for (uint32_t turn = 0; turn < job.turns; ++turn) {
    const uint32_t first = (share.group * job.turns + turn) * job.lines_per_turn;
    const uint32_t end = job.lines - (kFaultUnwrittenOutput ? 1 : 0);
    if (first >= end) return;  // the whole block
    if (has_work && first + row_of_block < end) walk_line(first + row_of_block);
    if constexpr (kMayKeepBits) {
      if (!keeps_bits) continue;
      __syncthreads();
      const uint32_t lines = end - first < job.lines_per_turn ? end - first : job.lines_per_turn;
      write_kept_bits<V>(gather, share, first, lines, kept);
      __syncthreads();
    }
  }
}

template <typename T>
struct ExtendedLaunch {
  cudaStream_t stream;
  const WindowTables& tables;
  ExpandParams plan;

  static constexpr bool has(const GatherChoice& variant) {
    return is_extended(variant.kernel) && variant.vector * sizeof(T) <= 16;
  }

  template <int kNumber>
  void operator()(VariantNumber<kNumber>) const {
    constexpr GatherChoice kVariant = kExpandVariants[kNumber];
    constexpr bool kChannelsLast = is_channels_last(kVariant.kernel);
    constexpr bool kWindows = has_windows(kVariant.kernel);
    MSR_LAUNCH(
        (expand_extended_kernel<T, kVariant.vector, kVariant.sources, kChannelsLast, kWindows>),
        dim3(plan.num_blocks), dim3(plan.threads), plan.shared_bytes, stream, plan, tables);
  }
};

template <typename T>
const char* launch_extended(const GatherParams& params, const GatherChoice& choice,
                            const WindowTables& tables, void* stream) {
  return launch_planned(params, choice,
                        ExtendedLaunch<T>{static_cast<cudaStream_t>(stream), tables, {}});
}

}  // namespace msr
