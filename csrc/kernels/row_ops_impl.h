// The loops behind row_ops.h, for the instruction set of the including file.
#pragma once

#include <limits>
#include <type_traits>

#include "row_mix_impl.h"
#include "row_ops.h"

namespace msr {
namespace {

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

// What a loop knows of its Finish: that it has no bits, and relu is a floor of 0 in place of -inf;
// that it applies relu and writes the mask; or nothing.
enum class Kind { kPlain, kReluMask, kAny };

constexpr bool has_bits(Kind kind) { return kind == Kind::kReluMask || kind == Kind::kAny; }

// Loops for a fixed number of rows or taps are for the common kinds, for vectors, and for types
// that are loaded and stored by an instruction: an instance for every kind and type, and for
// float64, would double what there is to compile. Narrow rows with wide results are sums that are
// finished later, mostly: they have no mask.
template <typename vec_t, typename S, typename T>
constexpr bool has_fixed_counts(Kind kind) {
  if (vec_t::kLanes == 1 || kind == Kind::kAny) return false;
  if (!kConvertsInVectors && sizeof(S) + sizeof(T) < 2 * sizeof(float)) return false;
  return kind == Kind::kPlain || sizeof(S) >= sizeof(T);
}

// Calls f(the kind) as a constant.
template <typename vec_t, typename F>
MSR_INLINE void with_kind(const Finish& how, F&& f) {
  if (!how.gate && !how.mask) return f(std::integral_constant<Kind, Kind::kPlain>{});
  if constexpr (vec_t::kLanes > 1) {
    if (!how.gate && how.relu) return f(std::integral_constant<Kind, Kind::kReluMask>{});
  }
  f(std::integral_constant<Kind, Kind::kAny>{});
}

// A call of its own, so that the loops of the rare kind stay small.
template <typename V>
__attribute__((noinline)) V finish_any(V value, const Finish how, int64_t k) {
  if (how.gate) value = value.select(how.gate, k);
  uint32_t passes;
  const V positive = value.relu(passes);
  if (how.mask) put_bits<V::kLanes>(how.mask, k, passes);
  return how.relu ? positive : value;
}

// Stores a finished vector.
template <Kind kKind, typename V, typename T>
MSR_INLINE void finish(V value, const Finish how, T* to, int64_t k) {
  if constexpr (kKind == Kind::kAny) {
    value = finish_any(value, how, k);
  } else if constexpr (kKind == Kind::kReluMask) {
    uint32_t passes;
    value = value.relu(passes);
    put_bits<V::kLanes>(how.mask, k, passes);
  } else {
    using acc_t = typename V::acc_t;
    value = value.at_least(how.relu ? acc_t(0) : -std::numeric_limits<acc_t>::infinity());
  }
  value.store(to + k);
}

template <Kind kKind, typename V, typename T>
MSR_INLINE void finish(Two<V> value, const Finish how, T* to, int64_t k) {
  finish<kKind>(value.low, how, to, k);
  finish<kKind>(value.high, how, to, k + V::kLanes);
}

// The loops below copy what they read in every step into locals: for all the compiler knows, a
// store of a result could change what an argument points at.

// The sum of kCount terms (0: of `count`) of type S: add(i, first, before) returns the i-th, or it
// and those before.
//
// Many are added in blocks. Where S is not narrow, a block is the sum of two pairs, and what
// rounding loses when blocks are added (Knuth's TwoSum) is added in the end, but not to infinities:
// the error of a sum does not grow with its length, and constant maps stay constant within 2 ulp.
template <int kCount, typename S, typename V, typename F>
MSR_INLINE V sum_in_blocks(int32_t count, V zero, F&& add) {
  constexpr bool kIsWide = sizeof(S) >= sizeof(float);
  constexpr int32_t kBlock = kIsWide ? 4 : 16;
  if constexpr (kCount > 0) count = kCount;
  const auto block_from = [&](int32_t begin) {
    if (kIsWide && count - begin >= kBlock) {
      return add(begin + 1, false, add(begin, true, zero)) +
             add(begin + 3, false, add(begin + 2, true, zero));
    }
    const int32_t end = begin + kBlock < count ? begin + kBlock : count;
    V block = zero;
    for (int32_t i = begin; i < end; ++i) block = add(i, i == begin, block);
    return block;
  };
  V sum = block_from(0);
  if constexpr (kCount == 0) {
    V rest = zero;
    for (int32_t begin = kBlock; begin < count; begin += kBlock) {
      const V block = block_from(begin), next = sum + block;
      if constexpr (kIsWide) {
        const V added = next - sum;
        rest = rest + ((sum - (next - added)) + (block - added));
      }
      sum = next;
    }
    if constexpr (kIsWide) sum = sum + rest.if_number();
  }
  return sum;
}

// One run of combine, of kCount rows (0: args.count). The sums stay in registers.
template <typename vec_t, int kCount, bool kGated, Kind kKind, typename S, typename T>
MSR_INLINE void combine_run(const CombineArgs<typename vec_t::acc_t>& args, int64_t column, T* to,
                            int64_t length) {
  using acc_t = typename vec_t::acc_t;
  constexpr int kRows = kCount > 0 ? kCount : 1;
  const auto* all_rows = reinterpret_cast<const S* const*>(args.rows);
  const uint8_t* const* all_gates = args.gates;
  const acc_t* all_weights = args.weights;
  const int32_t count = args.count;
  const acc_t off = args.gate_off;
  const Finish how = args.finish;
  const int64_t offset = column * args.row_stride, gate_offset = column * args.gate_stride;
  const T* base = args.base ? static_cast<const T*>(args.base) + column * length : nullptr;
  to += column * length;
  const S* rows[kRows];
  const uint8_t* gates[kRows];
  if constexpr (kCount == 1 && !kGated && kKind == Kind::kPlain && std::is_same_v<S, T>) {
    if (all_weights[0] == 1 && !base && !how.relu) {
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
  const auto step = [&](auto lane, int64_t k) {
    using V = decltype(lane);
    V sum = sum_in_blocks<kCount, S>(count, V::broadcast(0), [&](int32_t i, bool first, V before) {
      V value = V::load((kCount > 0 ? rows[i] : all_rows[i] + offset) + k);
      if constexpr (kGated) {
        const uint8_t* gate = kCount > 0 ? gates[i] : all_gates[i] + gate_offset;
        value = gated(value, gate, k, off);
      }
      const V weight = V::broadcast(kCount > 0 ? weights[i] : all_weights[i]);
      return first ? value * weight : value.times_plus(weight, before);
    });
    if constexpr (!kGated) {
      if (base) sum = sum + V::load(base + k);
    }
    finish<kKind>(sum, how, to, k);
  };
  constexpr bool kOverlap = !kGated && !has_bits(kKind);
  if constexpr (kCount == 0) {
    for_each_two_lane_blocks<vec_t, kOverlap, S, T>(length, step);
  } else {
    for_each_lane_block<vec_t, kOverlap, S, T>(length, step);
  }
}

template <typename vec_t, int kCount, bool kGated, Kind kKind, typename S, typename T>
void combine_count(const CombineArgs<typename vec_t::acc_t>& args, T* to) {
  if (args.row_stride == args.channels && (!kGated || 8 * args.gate_stride == args.channels)) {
    combine_run<vec_t, kCount, kGated, kKind, S>(args, 0, to, args.columns * args.channels);
    return;
  }
  for (int64_t column = 0; column < args.columns; ++column)
    combine_run<vec_t, kCount, kGated, kKind, S>(args, column, to, args.channels);
}

template <typename vec_t, bool kGated, Kind kKind, typename S, typename T>
MSR_INLINE void combine_typed(const CombineArgs<typename vec_t::acc_t>& args, T* to) {
  if constexpr (has_fixed_counts<vec_t, S, T>(kKind)) {
    if (args.count == 1) return combine_count<vec_t, 1, kGated, kKind, S>(args, to);
    if (args.count == 2) return combine_count<vec_t, 2, kGated, kKind, S>(args, to);
    if constexpr (!kGated) {
      if (args.count == 4) return combine_count<vec_t, 4, kGated, kKind, S>(args, to);
    }
  }
  combine_count<vec_t, 0, kGated, kKind, S>(args, to);
}

template <typename vec_t>
void combine(const CombineArgs<typename vec_t::acc_t>& args) {
  using acc_t = typename vec_t::acc_t;
  with_types<acc_t>(args.dtype, args.to, args.finish.dtype, [&](auto row, auto* to) {
    using S = decltype(row);
    if (args.gates) return combine_typed<vec_t, true, Kind::kPlain, S>(args, to);
    with_kind<vec_t>(args.finish, [&](auto kind) {
      combine_typed<vec_t, false, decltype(kind)::value, S>(args, to);
    });
  });
}

template <typename vec_t>
void combine_rows(const CombineRowsArgs<typename vec_t::acc_t>& all) {
  using acc_t = typename vec_t::acc_t;
  with_types<acc_t>(kSumType<acc_t>, all.to, all.finish.dtype, [&](auto, auto* to) {
    with_kind<vec_t>(all.finish, [&](auto kind) {
      using T = std::remove_pointer_t<decltype(to)>;
      const T* base = static_cast<const T*>(all.base);
      CombineArgs<acc_t> args{nullptr, nullptr,         all.room, nullptr,     nullptr,
                              0,       kSumType<acc_t>, 1,        all.columns, all.columns,
                              0,       all.finish};
      for (int32_t r = 0; r < all.rows; ++r) {
        const int32_t first = all.first[r];
        args.count = all.first[r + 1] - first;
        for (int32_t t = 0; t < args.count; ++t)
          all.room[t] = all.planes[all.plane[first + t]] + all.row[first + t] * all.columns;
        args.weights = all.weights + first;
        args.base = base ? base + r * all.columns : nullptr;
        combine_typed<vec_t, false, decltype(kind)::value, acc_t>(args, to + r * all.columns);
        if (args.finish.gate) args.finish.gate += all.columns / 8;
        if (args.finish.mask) args.finish.mask += all.columns / 8;
      }
    });
  });
}

// The sum over the taps of one column, for rows of any number of taps.
template <typename acc_t, typename S>
MSR_INLINE acc_t column_sum(const Taps<acc_t>& taps, int64_t column, const S* row) {
  using V = Scalar<acc_t>;
  const acc_t* weights = taps.weights + taps.start[column];
  const S* from = row + taps.first[column];
  return sum_in_blocks<0, S>(taps.count[column], V{0},
                             [&](int32_t t, bool, V before) {
                               return V::load(from + t).times_plus({weights[t]}, before);
                             })
      .v;
}

// Columns by permutes within windows. begin is a multiple of the lanes.
template <typename vec_t, bool kWide, Kind kKind, typename S, typename T>
MSR_INLINE void along_row_by_windows(const AlongRowArgs<float> args, const S* row, T* to) {
  constexpr int kLanes = vec_t::kLanes;
  const Taps<float> taps = *args.taps;
  const T* base = static_cast<const T*>(args.base);
  const auto block_sum = [&](int64_t column) {
    const S* window = row + taps.window[column / kLanes];
    const vec_t low = vec_t::load(window);
    const vec_t high = kWide ? vec_t::load(window + kLanes) : low;
    const vec_t left = vec_t::template look_up<kWide>(low, high, taps.left_lane + column);
    if (taps.picks) return left;
    const vec_t right = vec_t::template look_up<kWide>(low, high, taps.right_lane + column);
    return right.times_plus(vec_t::load(taps.right_weight + column),
                            left * vec_t::load(taps.left_weight + column));
  };
  int64_t k = 0;
  for (; k + kLanes <= args.columns; k += kLanes) {
    vec_t sum = block_sum(args.begin + k);
    if (base) sum = sum + vec_t::load(base + k);
    finish<kKind>(sum, args.finish, to, k);
  }
  if (k == args.columns) return;
  // The last block is as long as the others in the tables; its lanes beyond the end are dropped.
  float values[kLanes];
  block_sum(args.begin + k).store(values);
  for (int64_t i = 0; k < args.columns; ++i, ++k) {
    Scalar<float> value{values[i]};
    if (base) value = value + Scalar<float>::load(base + k);
    finish<kKind>(value, args.finish, to, k);
  }
}

template <typename vec_t, Kind kKind, typename S, typename T>
MSR_INLINE void along_row_by_columns(const AlongRowArgs<typename vec_t::acc_t> args, const S* row,
                                     T* to) {
  using acc_t = typename vec_t::acc_t;
  const Taps<acc_t> taps = *args.taps;
  const T* base = static_cast<const T*>(args.base);
  for_each_lane_block<vec_t, false, acc_t, acc_t>(args.columns, [&](auto lane, int64_t k) {
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
    if (base) sum = sum + V::load(base + k);
    finish<kKind>(sum, args.finish, to, k);
  });
}

template <typename vec_t, bool kCanLookUp, Kind kKind, typename S, typename T>
void along_row_typed(const AlongRowArgs<typename vec_t::acc_t>& args, T* to) {
  const S* row = static_cast<const S*>(args.row);
  if constexpr (kCanLookUp) {
    if (args.taps->window) {
      if (args.taps->wide) return along_row_by_windows<vec_t, true, kKind>(args, row, to);
      return along_row_by_windows<vec_t, false, kKind>(args, row, to);
    }
  }
  along_row_by_columns<vec_t, kKind>(args, row, to);
}

template <typename vec_t, bool kCanLookUp>
void along_row(const AlongRowArgs<typename vec_t::acc_t>& all) {
  using acc_t = typename vec_t::acc_t;
  with_types<acc_t>(all.dtype, all.to, all.finish.dtype, [&](auto row, auto* to) {
    using S = decltype(row);
    with_kind<vec_t>(all.finish, [&](auto kind) {
      AlongRowArgs<acc_t> args = all;
      for (int64_t r = 0; r < all.rows; ++r) {
        args.row = static_cast<const S*>(all.row) + r * all.step;
        along_row_typed<vec_t, kCanLookUp, decltype(kind)::value, S>(args, to + r * all.columns);
      }
    });
  });
}

// One pixel of one source: kCount taps, or 0: any number.
template <typename vec_t, int kCount, Kind kKind, typename S, typename T>
MSR_INLINE void pixel(const PixelSource<typename vec_t::acc_t>& source, int64_t column,
                      int32_t count, int64_t channels, const T* base, const Finish how, T* to) {
  using acc_t = typename vec_t::acc_t;
  const int64_t row_stride = source.row_stride;
  const S* from = static_cast<const S*>(source.row) + source.taps->first[column] * row_stride;
  const acc_t* taps = source.taps->weights + source.taps->start[column];
  const acc_t factor = source.factor;
  acc_t weights[kCount > 0 ? kCount : 1];
  for (int i = 0; i < kCount; ++i) weights[i] = factor * taps[i];
  const auto step = [&](auto lane, int64_t c) {
    using V = decltype(lane);
    V sum = sum_in_blocks<kCount, S>(count, V::broadcast(0), [&](int32_t t, bool first, V before) {
      const V value = V::load(from + t * row_stride + c);
      const V weight = V::broadcast(kCount > 0 ? weights[t] : factor * taps[t]);
      return first ? value * weight : value.times_plus(weight, before);
    });
    if (base) sum = sum + V::load(base + c);
    finish<kKind>(sum, how, to, c);
  };
  if constexpr (kCount == 0) {
    for_each_two_lane_blocks<vec_t, !has_bits(kKind), S, T>(channels, step);
  } else {
    for_each_lane_block<vec_t, !has_bits(kKind), S, T>(channels, step);
  }
}

// One slice of one pixel, of one source.
template <typename vec_t, Kind kKind, typename S, typename T>
MSR_INLINE void slice_of_pixel(const PixelSlice<typename vec_t::acc_t>& slice, int64_t column,
                               const T* base, const Finish how, T* to) {
  const auto& source = slice.sources[0];
  const int32_t count = source.taps->count[column];
  const auto run = [&](auto fixed) {
    pixel<vec_t, decltype(fixed)::value, kKind, S>(source, column, count, slice.channels, base, how,
                                                   to);
  };
  if constexpr (has_fixed_counts<vec_t, S, T>(kKind)) {
    if (count == 1) return run(std::integral_constant<int, 1>{});
    if (count == 2) return run(std::integral_constant<int, 2>{});
    if (count == 4) return run(std::integral_constant<int, 4>{});
  }
  run(std::integral_constant<int, 0>{});
}

// One pixel of any number of sources and taps. They are listed before: several vectors of channels
// are summed side by side, as a single sum would wait for each addition.
template <typename vec_t, Kind kKind, typename S, typename T>
MSR_INLINE void pixel_of_many(const PixelSlice<typename vec_t::acc_t>& slice, int64_t column,
                              const T* base, const Finish how, T* to) {
  using acc_t = typename vec_t::acc_t;
  constexpr int32_t kMost = 32;
  constexpr int kVectors = 4;
  const S* from[kMost];
  acc_t weights[kMost];
  int32_t count = 0, source = 0, tap = 0;
  const auto list = [&] {
    for (count = 0; source < slice.count; ++source, tap = 0) {
      const auto& rows = slice.sources[source];
      const auto* taps = rows.taps->weights + rows.taps->start[column];
      const S* first = static_cast<const S*>(rows.row) + rows.taps->first[column] * rows.row_stride;
      for (; tap < rows.taps->count[column]; ++tap, ++count) {
        if (count == kMost) return;
        from[count] = first + tap * rows.row_stride;
        weights[count] = rows.factor * taps[tap];
      }
    }
  };
  const auto add = [&](auto sum, int64_t c) {
    using V = decltype(sum);
    for (int32_t i = 0; i < count; ++i)
      sum = V::load(from[i] + c).times_plus(V::broadcast(weights[i]), sum);
    return sum;
  };
  const auto write = [&](auto sum, int64_t c) {
    using V = decltype(sum);
    if (base) sum = sum + V::load(base + c);
    finish<kKind>(sum, how, to, c);
  };
  list();
  if (source < slice.count) {  // more than the list holds: a block of channels after the other
    for_each_lane_block<vec_t, !has_bits(kKind), S, T>(slice.channels, [&](auto lane, int64_t c) {
      source = tap = 0;
      auto sum = decltype(lane)::broadcast(0);
      do {
        list();
        sum = add(sum, c);
      } while (source < slice.count);
      write(sum, c);
    });
    return;
  }
  int64_t done = 0;
  // Rows of bfloat16 have vectors of their own, in pairs.
  constexpr int kStep = kVectors * vec_t::kLanes;
  constexpr bool kAtOnce = !std::is_same_v<S, BFloat16> || !std::is_same_v<T, BFloat16>;
  for (; kAtOnce && done + kStep <= slice.channels; done += kStep) {
    vec_t sums[kVectors];
    for (vec_t& sum : sums) sum = vec_t::broadcast(0);
    for (int32_t i = 0; i < count; ++i) {
      const vec_t weight = vec_t::broadcast(weights[i]);
      for (int v = 0; v < kVectors; ++v)
        sums[v] = vec_t::load(from[i] + done + v * vec_t::kLanes).times_plus(weight, sums[v]);
    }
    for (int v = 0; v < kVectors; ++v) write(sums[v], done + v * vec_t::kLanes);
  }
  // The last vector ends where the pixel ends, where that is allowed.
  constexpr bool kOverlap = !has_bits(kKind);
  if (kOverlap && done > 0 && slice.channels % vec_t::kLanes != 0) done -= vec_t::kLanes;
  for_each_lane_block<vec_t, kOverlap, S, T>(slice.channels - done, [&](auto lane, int64_t c) {
    write(add(decltype(lane)::broadcast(0), done + c), done + c);
  });
}

// kSources sources of kTaps taps each, for slices with `few`. The sums stay in registers.
template <typename vec_t, int kSources, int kTaps, typename S>
struct FewTaps {
  using acc_t = typename vec_t::acc_t;
  const S* rows[kSources];
  int64_t strides[kSources];
  const int32_t* index[kSources];
  const acc_t* listed[kSources];
  acc_t factors[kSources];

  MSR_INLINE explicit FewTaps(const PixelSlice<acc_t>& slice) {
    for (int i = 0; i < kSources; ++i) {
      const PixelSource<acc_t>& source = slice.sources[i];
      rows[i] = static_cast<const S*>(source.row);
      strides[i] = source.row_stride;
      index[i] = kTaps == 1 ? source.taps->first : source.taps->pair_index;
      listed[i] = kTaps == 1 ? source.taps->weights : source.taps->pair_weight;
      factors[i] = source.factor;
    }
  }

  template <Kind kKind, typename T>
  MSR_INLINE void write(int64_t column, const T* base, const Finish how, T* to,
                        int64_t channels) const {
    const S* from[kSources][kTaps];
    acc_t weights[kSources][kTaps];
    for (int i = 0; i < kSources; ++i) {
      for (int t = 0; t < kTaps; ++t) {
        from[i][t] = rows[i] + index[i][kTaps * column + t] * strides[i];
        weights[i][t] = factors[i] * listed[i][kTaps * column + t];
      }
    }
    for_each_lane_block<vec_t, !has_bits(kKind), S, T>(channels, [&](auto lane, int64_t c) {
      using V = decltype(lane);
      V sum;
      for (int i = 0; i < kSources; ++i) {
        for (int t = 0; t < kTaps; ++t) {
          const V value = V::load(from[i][t] + c), weight = V::broadcast(weights[i][t]);
          sum = i == 0 && t == 0 ? value * weight : value.times_plus(weight, sum);
        }
      }
      if (base) sum = sum + V::load(base + c);
      finish<kKind>(sum, how, to, c);
    });
  }
};

// Calls write(column, base, how, to) for every pixel of the one slice that is left in args. Pixels
// are written `stride` values apart, here and below.
template <typename acc_t, typename T, typename F>
MSR_INLINE void for_each_pixel(const AlongPixelsArgs<acc_t>& args, int64_t stride, T* to,
                               F&& write) {
  const T* base = static_cast<const T*>(args.base);
  const int64_t end = args.begin + args.columns;
  Finish how = args.finish;
  for (int64_t column = args.begin; column < end; ++column) {
    write(column, base, how, to);
    to += stride;
    if (base) base += stride;
    if (how.gate) how.gate += stride / 8;
    if (how.mask) how.mask += stride / 8;
  }
}

// One slice of few sources and taps.
template <typename vec_t, int kSources, Kind kKind, typename S, typename T>
void along_few(const AlongPixelsArgs<typename vec_t::acc_t>& args, int64_t stride, T* to) {
  const auto run = [&](auto taps) {
    const FewTaps<vec_t, kSources, decltype(taps)::value, S> few(args.slices[0]);
    const int64_t channels = args.slices[0].channels;
    for_each_pixel(args, stride, to,
                   [&](int64_t column, const T* base, const Finish& how, T* pixel) {
                     few.template write<kKind>(column, base, how, pixel, channels);
                   });
  };
  if (args.slices[0].max_taps == 1) return run(std::integral_constant<int, 1>{});
  run(std::integral_constant<int, 2>{});
}

// One slice that is copied.
template <typename acc_t, typename T>
void along_copied(const AlongPixelsArgs<acc_t>& args, int64_t stride, T* to) {
  const PixelSource<acc_t> source = args.slices[0].sources[0];
  const T* row = static_cast<const T*>(source.row);
  const int32_t* index = source.taps->first + args.begin;
  const int64_t columns = args.columns, channels = args.slices[0].channels;
  for (int64_t k = 0; k < columns; ++k, to += stride)
    memcpy(to, row + index[k] * source.row_stride, channels * sizeof(T));
}

template <typename vec_t, Kind kKind, typename S, typename T>
void along_pixels_typed(const AlongPixelsArgs<typename vec_t::acc_t>& args, int64_t stride, T* to) {
  using acc_t = typename vec_t::acc_t;
  const PixelSlice<acc_t>& slice = args.slices[0];
  if constexpr (kKind == Kind::kPlain && std::is_same_v<S, T>) {
    if (slice.copied) return along_copied(args, stride, to);
  }
  if constexpr (has_fixed_counts<vec_t, S, T>(kKind)) {
    if (slice.few) {
      if (slice.count == 1) return along_few<vec_t, 1, kKind, S>(args, stride, to);
      if (slice.count == 2) return along_few<vec_t, 2, kKind, S>(args, stride, to);
      if (slice.count == 3) return along_few<vec_t, 3, kKind, S>(args, stride, to);
      if (slice.count == 4) return along_few<vec_t, 4, kKind, S>(args, stride, to);
    }
  }
  for_each_pixel(args, stride, to, [&](int64_t column, const T* base, const Finish& how, T* pixel) {
    if (slice.count > 1) {
      pixel_of_many<vec_t, kKind, S>(slice, column, base, how, pixel);
    } else {
      slice_of_pixel<vec_t, kKind, S>(slice, column, base, how, pixel);
    }
  });
}

// Slice after slice: each is walked as a map of its own, whose pixels are further apart.
template <typename vec_t>
void along_pixels(const AlongPixelsArgs<typename vec_t::acc_t>& all) {
  using acc_t = typename vec_t::acc_t;
  AlongPixelsArgs<acc_t> args = all;
  args.count = 1;
  int64_t stride = 0;
  for (int32_t i = 0; i < all.count; ++i) stride += all.slices[i].channels;
  for (int32_t i = 0; i < all.count; ++i, ++args.slices) {
    const int64_t channels = args.slices->channels;
    with_types<acc_t>(args.slices->dtype, args.to, args.finish.dtype, [&](auto row, auto* to) {
      using S = decltype(row);
      with_kind<vec_t>(args.finish, [&](auto kind) {
        along_pixels_typed<vec_t, decltype(kind)::value, S>(args, stride, to);
      });
      args.to = to + channels;
    });
    if (args.finish.gate) args.finish.gate += channels / 8;
    if (args.finish.mask) args.finish.mask += channels / 8;
  }
}

template <typename vec_t, bool kCanLookUp>
constexpr RowOps<typename vec_t::acc_t> make_row_ops(const char* name) {
  return {name,
          vec_t::kLanes,
          kCanLookUp,
          combine<vec_t>,
          combine_rows<vec_t>,
          along_row<vec_t, kCanLookUp>,
          along_pixels<vec_t>,
          weigh<vec_t>,
          weigh_sum<vec_t>,
          maximum<vec_t>,
          activate_row<vec_t>,
          differentiate_row<vec_t>,
          gate_row<vec_t>,
          dot<vec_t>,
          dot_pixels<vec_t>,
          take_rows<vec_t>,
          take_columns<vec_t>,
          put_codes<vec_t>,
          add_taken<vec_t>,
          add_exponentials<vec_t>,
          find_largest<vec_t>,
          softmax_gradients<vec_t>,
          log_sums<vec_t>,
          binary_losses<vec_t>,
          binary_loss_sum<vec_t>,
          binary_gradients<vec_t>};
}

}  // namespace
}  // namespace msr
