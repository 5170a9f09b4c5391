// The loops behind row_ops.h, for the instruction set of the including file.
#pragma once

#include <type_traits>

#include "row_ops.h"
#include "vec_cpu.h"

namespace msr {
namespace {

// Writes bits [k, k + lanes) of a bit row, where lanes divides 8 or is 16 and k is a multiple of
// it. The first ones of a byte clear the rest of it.
template <int kLanes>
MSR_INLINE void put_bits(uint8_t* bits, int64_t k, uint32_t value) {
  if constexpr (kLanes == 16) {
    const auto both = static_cast<uint16_t>(value);
    memcpy(bits + (k >> 3), &both, sizeof both);
  } else if constexpr (kLanes == 8) {
    bits[k >> 3] = static_cast<uint8_t>(value);
  } else {
    const uint32_t before = (k & 7) == 0 ? 0u : bits[k >> 3];
    bits[k >> 3] = static_cast<uint8_t>(before | value << (k & 7));
  }
}

// Calls step(vector type, k) for whole vectors, then step(scalar, k) for the rest.
template <typename vec_t, typename F>
MSR_INLINE void for_each_lane_block(int64_t length, F&& step) {
  constexpr int kLanes = vec_t::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= length; k += kLanes) step(vec_t{}, k);
  if constexpr (kLanes > 1) {
    for (; k < length; ++k) {
      __asm__ volatile("");  // keeps the compiler from making vectors of the few that are left
      step(Scalar<typename vec_t::acc_t>{}, k);
    }
  }
}

// Calls f(a row of the right type, the typed result) for the pairs that takes() allows.
template <typename acc_t, typename F>
MSR_INLINE void with_types(DType row, void* to, DType result, F&& f) {
  if constexpr (sizeof(acc_t) == 8) {
    if (result == DType::kFloat16) return f(acc_t(), static_cast<Half*>(to));
    if (result == DType::kBFloat16) return f(acc_t(), static_cast<BFloat16*>(to));
    if (result == DType::kFloat32) return f(acc_t(), static_cast<float*>(to));
    return f(acc_t(), static_cast<double*>(to));
  } else if (result == DType::kFloat16) {
    if (row == DType::kFloat16) return f(Half(), static_cast<Half*>(to));
    return f(float(), static_cast<Half*>(to));
  } else if (result == DType::kBFloat16) {
    if (row == DType::kBFloat16) return f(BFloat16(), static_cast<BFloat16*>(to));
    return f(float(), static_cast<BFloat16*>(to));
  } else {
    if (row == DType::kFloat16) return f(Half(), static_cast<float*>(to));
    if (row == DType::kBFloat16) return f(BFloat16(), static_cast<float*>(to));
    return f(float(), static_cast<float*>(to));
  }
}

MSR_INLINE bool is_plain(const Finish& how) { return !how.gate && !how.mask && !how.relu; }

// Stores a finished vector. kPlain: nothing happens to it but the rounding.
template <bool kPlain, typename V, typename T>
MSR_INLINE void finish(V value, const Finish how, T* to, int64_t k) {
  if constexpr (!kPlain) {
    if (how.gate) value = value.select(how.gate, k);
    uint32_t passes;
    const V positive = value.relu(passes);
    if (how.mask) put_bits<V::kLanes>(how.mask, k, passes);
    if (how.relu) value = positive;
  }
  value.store(to + k);
}

// The loops below copy what they read in every step into locals: for all the compiler knows, a
// store of a result could change what an argument points at.

// One run of combine, of kCount rows (0: args.count). The sums stay in registers.
template <typename vec_t, int kCount, bool kGated, bool kPlain, typename S, typename T>
MSR_INLINE void combine_run(const CombineArgs<typename vec_t::acc_t>& args, int64_t column,
                            const Finish how, T* to, int64_t length) {
  using acc_t = typename vec_t::acc_t;
  constexpr int kRows = kCount > 0 ? kCount : 1;
  const auto* all_rows = reinterpret_cast<const S* const*>(args.rows);
  const uint8_t* const* all_gates = args.gates;
  const acc_t* all_weights = args.weights;
  const int32_t count = args.count;
  const int64_t offset = column * args.row_stride, gate_offset = column * args.gate_stride;
  const acc_t* previous = args.previous ? args.previous + column * args.previous_stride : nullptr;
  const T* base = args.base ? static_cast<const T*>(args.base) + column * args.to_stride : nullptr;
  to += column * args.to_stride;
  const S* rows[kRows];
  const uint8_t* gates[kRows];
  if constexpr (kCount == 1 && !kGated && kPlain && std::is_same_v<S, T>) {
    if (all_weights[0] == 1 && !previous && !base) {
      memcpy(to, all_rows[0] + offset, static_cast<size_t>(length) * sizeof(T));
      return;
    }
  }
  acc_t weights[kRows];
  for (int i = 0; i < kCount; ++i) {
    rows[i] = all_rows[i] + offset;
    if constexpr (kGated) gates[i] = all_gates[i] + gate_offset;
    weights[i] = all_weights[i];
  }
  for_each_lane_block<vec_t>(length, [&](auto lane, int64_t k) {
    using V = decltype(lane);
    V sum;
    for (int32_t i = 0; i < (kCount > 0 ? kCount : count); ++i) {
      V value = V::load((kCount > 0 ? rows[i] : all_rows[i] + offset) + k);
      if constexpr (kGated) {
        const uint8_t* gate = kCount > 0 ? gates[i] : all_gates[i] + gate_offset;
        value = value.select(gate, k);
      }
      const V weight = V::broadcast(kCount > 0 ? weights[i] : all_weights[i]);
      sum = i == 0 ? value * weight : value.times_plus(weight, sum);
    }
    if (previous) sum = sum + V::load(previous + k);
    if (base) sum = sum + V::load(base + k);
    finish<kPlain>(sum, how, to, k);
  });
}

template <typename vec_t, int kCount, bool kGated, bool kPlain, typename S, typename T>
void combine_count(const CombineArgs<typename vec_t::acc_t>& args, T* to) {
  const int64_t channels = args.channels;
  const bool dense = args.to_stride == channels && args.row_stride == channels &&
                     (!args.previous || args.previous_stride == channels) &&
                     (!kGated || 8 * args.gate_stride == channels) &&
                     (kPlain || 8 * args.finish_stride == channels);
  if (dense) {
    combine_run<vec_t, kCount, kGated, kPlain, S>(args, 0, args.finish, to,
                                                  args.columns * channels);
    return;
  }
  Finish how = args.finish;
  for (int64_t column = 0; column < args.columns; ++column) {
    combine_run<vec_t, kCount, kGated, kPlain, S>(args, column, how, to, channels);
    if (how.gate) how.gate += args.finish_stride;
    if (how.mask) how.mask += args.finish_stride;
  }
}

template <typename vec_t, bool kGated, bool kPlain, typename S, typename T>
MSR_INLINE void combine_typed(const CombineArgs<typename vec_t::acc_t>& args, T* to) {
  if (args.count == 1) return combine_count<vec_t, 1, kGated, kPlain, S>(args, to);
  if (args.count == 2) return combine_count<vec_t, 2, kGated, kPlain, S>(args, to);
  if (args.count == 4) return combine_count<vec_t, 4, kGated, kPlain, S>(args, to);
  combine_count<vec_t, 0, kGated, kPlain, S>(args, to);
}

template <typename vec_t>
void combine(const CombineArgs<typename vec_t::acc_t>& args) {
  using acc_t = typename vec_t::acc_t;
  with_types<acc_t>(args.dtype, args.to, args.finish.dtype, [&](auto row, auto* to) {
    using S = decltype(row);
    if (args.gates) return combine_typed<vec_t, true, true, S>(args, to);
    if (is_plain(args.finish)) return combine_typed<vec_t, false, true, S>(args, to);
    combine_typed<vec_t, false, false, S>(args, to);
  });
}

// The sum over the taps of one column, for rows of any number of taps.
template <typename acc_t, typename S>
MSR_INLINE acc_t column_sum(const Taps<acc_t>& taps, int64_t column, const S* row) {
  using V = Scalar<acc_t>;
  const acc_t* weights = taps.weights + taps.start[column];
  const S* from = row + taps.first[column];
  V sum{0};
  for (int32_t t = 0; t < taps.count[column]; ++t)
    sum = V::load(from + t).times_plus({weights[t]}, sum);
  return sum.v;
}

// Columns by permutes within windows. begin is a multiple of the lanes.
template <typename vec_t, bool kWide, bool kPlain, typename S, typename T>
MSR_INLINE void along_row_by_windows(const AlongRowArgs<float> args, const S* row, T* to) {
  constexpr int kLanes = vec_t::kLanes;
  const Taps<float> taps = *args.taps;
  const T* base = static_cast<const T*>(args.base);
  const auto block_sum = [&](int64_t column) {
    const S* window = row + taps.window[column / kLanes];
    const vec_t low = vec_t::load(window);
    const vec_t high = kWide ? vec_t::load(window + kLanes) : low;
    const vec_t left = vec_t::template look_up<kWide>(low, high, taps.left_lane + column);
    if (taps.single) return left;
    const vec_t right = vec_t::template look_up<kWide>(low, high, taps.right_lane + column);
    return right.times_plus(vec_t::load(taps.right_weight + column),
                            left * vec_t::load(taps.left_weight + column));
  };
  int64_t k = 0;
  for (; k + kLanes <= args.columns; k += kLanes) {
    vec_t sum = block_sum(args.begin + k);
    if (args.previous) sum = sum + vec_t::load(args.previous + k);
    if (base) sum = sum + vec_t::load(base + k);
    finish<kPlain>(sum, args.finish, to, k);
  }
  if (k == args.columns) return;
  // The last block is as long as the others in the tables; its lanes beyond the end are dropped.
  float values[kLanes];
  block_sum(args.begin + k).store(values);
  for (int64_t i = 0; k < args.columns; ++i, ++k) {
    Scalar<float> value{values[i]};
    if (args.previous) value.v += args.previous[k];
    if (base) value = value + Scalar<float>::load(base + k);
    finish<kPlain>(value, args.finish, to, k);
  }
}

template <typename vec_t, bool kPlain, typename S, typename T>
MSR_INLINE void along_row_by_columns(const AlongRowArgs<typename vec_t::acc_t> args, const S* row,
                                     T* to) {
  using acc_t = typename vec_t::acc_t;
  const Taps<acc_t> taps = *args.taps;
  const T* base = static_cast<const T*>(args.base);
  for_each_lane_block<vec_t>(args.columns, [&](auto lane, int64_t k) {
    using V = decltype(lane);
    const int64_t column = args.begin + k;
    V sum;
    if constexpr (V::kLanes == 1) {
      sum.v = column_sum(taps, column, row);
    } else {
      const int64_t block = column / V::kLanes;
      const int32_t count = taps.step_taps ? taps.step_taps[block] : 0;
      if (count > 0) {
        const acc_t* weights = taps.step_weights + taps.step_start[block];
        const S* from = row + taps.step_first[block];
        sum = V::broadcast(0);
        for (int32_t t = 0; t < count; t += 2) {
          V even, odd;
          V::split_pairs(V::load(from + t), V::load(from + t + V::kLanes), even, odd);
          sum = even.times_plus(V::load(weights + t * V::kLanes), sum);
          sum = odd.times_plus(V::load(weights + (t + 1) * V::kLanes), sum);
        }
        const uint32_t irregular = taps.step_irregular[block];
        if (irregular != 0) {
          acc_t values[V::kLanes];
          sum.store(values);
          for (int i = 0; i < V::kLanes; ++i) {
            if ((irregular >> i & 1) != 0) values[i] = column_sum(taps, column + i, row);
          }
          sum = V::load(values);
        }
      } else {
        acc_t values[V::kLanes];
        for (int i = 0; i < V::kLanes; ++i) values[i] = column_sum(taps, column + i, row);
        sum = V::load(values);
      }
    }
    if (args.previous) sum = sum + V::load(args.previous + k);
    if (base) sum = sum + V::load(base + k);
    finish<kPlain>(sum, args.finish, to, k);
  });
}

template <typename vec_t, bool kCanLookUp, bool kPlain, typename S, typename T>
void along_row_typed(const AlongRowArgs<typename vec_t::acc_t>& args, T* to) {
  const S* row = static_cast<const S*>(args.row);
  if constexpr (kCanLookUp) {
    if (args.taps->window) {
      if (args.taps->wide) return along_row_by_windows<vec_t, true, kPlain>(args, row, to);
      return along_row_by_windows<vec_t, false, kPlain>(args, row, to);
    }
  }
  along_row_by_columns<vec_t, kPlain>(args, row, to);
}

template <typename vec_t, bool kCanLookUp>
void along_row(const AlongRowArgs<typename vec_t::acc_t>& args) {
  using acc_t = typename vec_t::acc_t;
  with_types<acc_t>(args.dtype, args.to, args.finish.dtype, [&](auto row, auto* to) {
    using S = decltype(row);
    if (is_plain(args.finish)) return along_row_typed<vec_t, kCanLookUp, true, S>(args, to);
    along_row_typed<vec_t, kCanLookUp, false, S>(args, to);
  });
}

// One pixel: kCount taps, or 0: any number.
template <typename vec_t, int kCount, bool kPlain, typename S, typename T>
MSR_INLINE void pixel(const S* from, int64_t row_stride, const typename vec_t::acc_t* taps,
                      int32_t count, const typename vec_t::acc_t* previous, const T* base,
                      const Finish how, T* to, int64_t channels) {
  using acc_t = typename vec_t::acc_t;
  if constexpr (kCount == 1 && kPlain && std::is_same_v<S, T>) {
    if (taps[0] == 1 && !previous && !base) {
      memcpy(to, from, static_cast<size_t>(channels) * sizeof(T));
      return;
    }
  }
  acc_t weights[kCount > 0 ? kCount : 1];
  for (int i = 0; i < kCount; ++i) weights[i] = taps[i];
  for_each_lane_block<vec_t>(channels, [&](auto lane, int64_t c) {
    using V = decltype(lane);
    V sum = V::broadcast(0);
    for (int32_t t = 0; t < (kCount > 0 ? kCount : count); ++t) {
      const V value = V::load(from + t * row_stride + c);
      const V weight = V::broadcast(kCount > 0 ? weights[t] : taps[t]);
      sum = t == 0 ? value * weight : value.times_plus(weight, sum);
    }
    if (previous) sum = sum + V::load(previous + c);
    if (base) sum = sum + V::load(base + c);
    finish<kPlain>(sum, how, to, c);
  });
}

template <typename vec_t, bool kPlain, typename S, typename T>
void along_pixels_typed(const AlongPixelsArgs<typename vec_t::acc_t> args, T* to) {
  using acc_t = typename vec_t::acc_t;
  const S* row = static_cast<const S*>(args.row);
  const Taps<acc_t> taps = *args.taps;
  Finish how = args.finish;
  for (int64_t k = 0; k < args.columns; ++k) {
    const int64_t column = args.begin + k;
    const S* from = row + taps.first[column] * args.row_stride;
    const acc_t* weights = taps.weights + taps.start[column];
    const acc_t* previous = args.previous ? args.previous + k * args.previous_stride : nullptr;
    T* pixel_to = to + k * args.to_stride;
    const T* base = args.base ? static_cast<const T*>(args.base) + k * args.to_stride : nullptr;
    const int32_t count = taps.count[column];
    const auto run = [=](auto fixed) {
      pixel<vec_t, decltype(fixed)::value, kPlain>(from, args.row_stride, weights, count, previous,
                                                   base, how, pixel_to, args.channels);
    };
    if (count == 1) {
      run(std::integral_constant<int, 1>{});
    } else if (count == 2) {
      run(std::integral_constant<int, 2>{});
    } else if (count == 4) {
      run(std::integral_constant<int, 4>{});
    } else {
      run(std::integral_constant<int, 0>{});
    }
    if (how.gate) how.gate += args.finish_stride;
    if (how.mask) how.mask += args.finish_stride;
  }
}

template <typename vec_t>
void along_pixels(const AlongPixelsArgs<typename vec_t::acc_t>& args) {
  using acc_t = typename vec_t::acc_t;
  with_types<acc_t>(args.dtype, args.to, args.finish.dtype, [&](auto row, auto* to) {
    using S = decltype(row);
    if (is_plain(args.finish)) return along_pixels_typed<vec_t, true, S>(args, to);
    along_pixels_typed<vec_t, false, S>(args, to);
  });
}

template <typename vec_t, bool kCanLookUp>
constexpr RowOps<typename vec_t::acc_t> make_row_ops(const char* name) {
  return {name,
          vec_t::kLanes,
          kCanLookUp,
          combine<vec_t>,
          along_row<vec_t, kCanLookUp>,
          along_pixels<vec_t>};
}

}  // namespace
}  // namespace msr
