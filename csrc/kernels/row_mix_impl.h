// The operations of row_ops.h on rows of the accumulation type: weights, maxima, activations,
// gates, dot products and max-pooling. They compute with the compiler's own vectors, as wide as the
// registers of the instruction set of the including file.
#pragma once

#include <limits>

#include "row_lanes.h"

namespace msr {

// The numbers of the compiler's own vectors.
#define MSR_VECTOR_OF(number, bytes)                            \
  template <>                                                   \
  struct NumberOf<number __attribute__((vector_size(bytes)))> { \
    using type = number;                                        \
    typedef uint32_t bits __attribute__((vector_size(bytes)));  \
  };
MSR_VECTOR_OF(float, 16)
MSR_VECTOR_OF(float, 32)
MSR_VECTOR_OF(float, 64)
MSR_VECTOR_OF(double, 8)
#undef MSR_VECTOR_OF

namespace {

template <typename vec_t>
struct Wide {
  using acc_t = typename vec_t::acc_t;
  static constexpr int kLanes = vec_t::kLanes;
  typedef acc_t Numbers __attribute__((vector_size(sizeof(acc_t) * kLanes)));

  static MSR_INLINE Numbers load(const acc_t* from) {
    Numbers v;
    memcpy(&v, from, sizeof v);
    return v;
  }
  static MSR_INLINE void store(acc_t* to, Numbers v) { memcpy(to, &v, sizeof v); }
  // Bit i: whether condition i holds.
  template <typename C>
  static MSR_INLINE uint32_t bits(C conditions) {
    if constexpr (kLanes > 1) return vec_t::condition_bits(conditions);
    return conditions[0] != 0 ? 1u : 0u;
  }
};

// Calls step(k, length) for whole vectors, and for what is left of the row: then length is smaller.
template <typename vec_t, typename F>
MSR_INLINE void in_vectors(int64_t length, F&& step) {
  constexpr int kLanes = vec_t::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= length; k += kLanes) step(k, std::integral_constant<int, kLanes>{});
  if (k < length) step(k, static_cast<int>(length - k));
}

// Part of a row as one vector; beyond its end there are zeros.
template <typename vec_t>
MSR_INLINE auto load_part(const typename vec_t::acc_t* from, int count) {
  typename vec_t::acc_t values[vec_t::kLanes] = {};
  for (int i = 0; i < count; ++i) values[i] = from[i];
  return Wide<vec_t>::load(values);
}
template <typename vec_t>
MSR_INLINE auto load_part(const typename vec_t::acc_t* from,
                          std::integral_constant<int, vec_t::kLanes>) {
  return Wide<vec_t>::load(from);
}
template <typename vec_t, typename V>
MSR_INLINE void store_part(typename vec_t::acc_t* to, V v, int count) {
  for (int i = 0; i < count; ++i) to[i] = v[i];
}
template <typename vec_t, typename V>
MSR_INLINE void store_part(typename vec_t::acc_t* to, V v,
                           std::integral_constant<int, vec_t::kLanes>) {
  Wide<vec_t>::store(to, v);
}

// to = (add ? to : 0) + factor(k, count) * from
template <typename vec_t, typename F>
MSR_INLINE void weigh_run(typename vec_t::acc_t* to, const typename vec_t::acc_t* from,
                          int64_t length, bool add, F&& factor) {
  in_vectors<vec_t>(length, [&](int64_t k, auto count) {
    auto value = factor(k, count) * load_part<vec_t>(from + k, count);
    if (add) value += load_part<vec_t>(to + k, count);
    store_part<vec_t>(to + k, value, count);
  });
}

template <typename vec_t>
void weigh(const WeighArgs<typename vec_t::acc_t>& args) {
  using acc_t = typename vec_t::acc_t;
  const acc_t *pixels = args.per_pixel, *of_channels = args.per_channel;
  const auto constant = [](acc_t factor) { return [=](int64_t, auto) { return factor; }; };
  if (args.channels == 1 && pixels) {
    const acc_t factor = args.factor;
    return weigh_run<vec_t>(args.to, args.from, args.columns, args.add, [=](int64_t k, auto count) {
      return load_part<vec_t>(pixels + k, count) * factor;
    });
  }
  if (!pixels && !of_channels) {
    return weigh_run<vec_t>(args.to, args.from, args.columns * args.channels, args.add,
                            constant(args.factor));
  }
  for (int64_t k = 0; k < args.columns; ++k) {
    const acc_t factor = pixels ? args.factor * pixels[k] : args.factor;
    acc_t* to = args.to + k * args.channels;
    const acc_t* from = args.from + k * args.channels;
    if (of_channels) {
      weigh_run<vec_t>(to, from, args.channels, args.add, [=](int64_t c, auto count) {
        return load_part<vec_t>(of_channels + c, count) * factor;
      });
    } else {
      weigh_run<vec_t>(to, from, args.channels, args.add, constant(factor));
    }
  }
}

// weigh_sum of pixels of several channels: kCount terms, or 0: `count`.
template <typename vec_t, int kCount>
void weigh_sum_of_pixels(const WeighArgs<typename vec_t::acc_t>* terms, int32_t count) {
  using acc_t = typename vec_t::acc_t;
  constexpr int kMost = kCount > 0 ? kCount : kMostTerms;
  if constexpr (kCount > 0) count = kCount;
  const int64_t columns = terms[0].columns, channels = terms[0].channels;
  acc_t* to = terms[0].to;
  const acc_t *from[kMost], *of_channels[kMost];
  acc_t factor[kMost];
  for (int i = 0; i < count; ++i) of_channels[i] = terms[i].per_channel;
  for (int64_t k = 0; k < columns; ++k, to += channels) {
    for (int i = 0; i < count; ++i) {
      const WeighArgs<acc_t>& args = terms[i];
      from[i] = args.from + (args.index ? args.index[k] : k) * channels;
      factor[i] = args.per_pixel ? args.factor * args.per_pixel[k] : args.factor;
    }
    in_vectors<vec_t>(channels, [&](int64_t c, auto lanes) {
      const auto term = [&](int i) {
        const auto value = load_part<vec_t>(from[i] + c, lanes);
        if (!of_channels[i]) return factor[i] * value;
        return load_part<vec_t>(of_channels[i] + c, lanes) * factor[i] * value;
      };
      auto sum = term(0);
      for (int i = 1; i < count; ++i) sum += term(i);
      store_part<vec_t>(to + c, sum, lanes);
    });
  }
}

template <typename vec_t>
void weigh_sum(const WeighArgs<typename vec_t::acc_t>* terms, int32_t count) {
  if (terms[0].channels > 1) {
    if (count == 2) return weigh_sum_of_pixels<vec_t, 2>(terms, count);
    if (count == 3) return weigh_sum_of_pixels<vec_t, 3>(terms, count);
    return weigh_sum_of_pixels<vec_t, 0>(terms, count);
  }
  in_vectors<vec_t>(terms[0].columns, [&](int64_t k, auto lanes) {
    const auto term = [&](int32_t i) {
      const WeighArgs<typename vec_t::acc_t>& args = terms[i];
      const auto value = load_part<vec_t>(args.from + k, lanes);
      if (!args.per_pixel) return args.factor * value;
      return load_part<vec_t>(args.per_pixel + k, lanes) * args.factor * value;
    };
    auto sum = term(0);
    for (int32_t i = 1; i < count; ++i) sum += term(i);
    store_part<vec_t>(terms[0].to + k, sum, lanes);
  });
}

template <typename vec_t>
void maximum(typename vec_t::acc_t* to, const typename vec_t::acc_t* best,
             const typename vec_t::acc_t* row, int64_t length, uint8_t* bits) {
  const auto run = [&](auto saves) {
    in_vectors<vec_t>(length, [&](int64_t k, auto count) {
      const auto a = load_part<vec_t>(best + k, count), b = load_part<vec_t>(row + k, count);
      const auto better = (b > a) | ((b != b) & (a == a));
      if (decltype(saves)::value) put_bits<vec_t::kLanes>(bits, k, Wide<vec_t>::bits(better));
      store_part<vec_t>(to + k, choose(better, b, a), count);
    });
  };
  if (bits) return run(std::true_type{});
  run(std::false_type{});
}

// Calls f(the activation) as a constant.
template <typename F>
MSR_INLINE void with_activation(Activation activation, F&& f) {
  switch (activation) {
#define MSR_CASE(name)   \
  case Activation::name: \
    return f(std::integral_constant<Activation, Activation::name>{});
    MSR_CASE(kNone)
    MSR_CASE(kRelu)
    MSR_CASE(kRelu6)
    MSR_CASE(kLeakyRelu)
    MSR_CASE(kSilu)
    MSR_CASE(kGelu)
    MSR_CASE(kHardswish)
    MSR_CASE(kSigmoid)
#undef MSR_CASE
  }
}

// f(z) of a vector; of float64, whose functions are the C library's, one by one.
template <typename vec_t, typename V, typename F>
MSR_INLINE V each_of(V z, F&& f) {
  if constexpr (sizeof(typename vec_t::acc_t) == 4) {
    return f(z);
  } else {
    for (int i = 0; i < vec_t::kLanes; ++i) z[i] = f(static_cast<typename vec_t::acc_t>(z[i]));
    return z;
  }
}

template <typename vec_t>
void activate_row(Activation activation, typename vec_t::acc_t* z, int64_t length, uint8_t* bits) {
  if (activation == Activation::kNone) return;
  with_activation(activation, [&](auto constant) {
    using Kept = decltype(constant);
    in_vectors<vec_t>(length, [&](int64_t k, auto count) {
      const auto value = load_part<vec_t>(z + k, count);
      if (bits) put_bits<vec_t::kLanes>(bits, k, Wide<vec_t>::bits(passes(Kept::value, value)));
      const auto active = each_of<vec_t>(value, [](auto v) { return activate(Kept::value, v); });
      store_part<vec_t>(z + k, active, count);
    });
  });
}

template <typename vec_t>
void differentiate_row(Activation activation, typename vec_t::acc_t* z,
                       const typename vec_t::acc_t* grad, int64_t length) {
  with_activation(activation, [&](auto constant) {
    using Kept = decltype(constant);
    in_vectors<vec_t>(length, [&](int64_t k, auto count) {
      const auto factor = each_of<vec_t>(load_part<vec_t>(z + k, count),
                                         [](auto v) { return slope(Kept::value, v); });
      store_part<vec_t>(z + k, load_part<vec_t>(grad + k, count) * factor, count);
    });
  });
}

template <typename vec_t>
void gate_row(typename vec_t::acc_t* row, const uint8_t* bits, typename vec_t::acc_t off,
              int64_t length) {
  using acc_t = typename vec_t::acc_t;
  for_each_lane_block<vec_t, false, acc_t, acc_t>(length, [&](auto lane, int64_t k) {
    gated(decltype(lane)::load(row + k), bits, k, off).store(row + k);
  });
}

// Short sums are taken in the accumulation type, and added up in double.
template <typename vec_t>
void dot(const typename vec_t::acc_t* a, const typename vec_t::acc_t* b, int64_t columns,
         int64_t channels, double* sums) {
  using Numbers = typename Wide<vec_t>::Numbers;
  if (channels > 1) {
    constexpr int64_t kColumns = 16;
    for (int64_t begin = 0; begin < columns; begin += kColumns) {
      const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
      in_vectors<vec_t>(channels, [&](int64_t c, auto count) {
        Numbers sum = {};
        for (int64_t k = begin; k < end; ++k) {
          const int64_t at = k * channels + c;
          sum += load_part<vec_t>(a + at, count) * load_part<vec_t>(b + at, count);
        }
        for (int i = 0; i < count; ++i) sums[c + i] += static_cast<double>(sum[i]);
      });
    }
    return;
  }
  // Several sums at a time: one alone would wait for each addition.
  constexpr int kSums = 4;
  constexpr int64_t kStep = kSums * vec_t::kLanes, kSteps = 8;
  double total = 0;
  int64_t k = 0;
  while (k + kStep <= columns) {
    Numbers parts[kSums] = {};
    for (int64_t step = 0; step < kSteps && k + kStep <= columns; ++step, k += kStep) {
      for (int i = 0; i < kSums; ++i) {
        const int64_t at = k + i * vec_t::kLanes;
        parts[i] += Wide<vec_t>::load(a + at) * Wide<vec_t>::load(b + at);
      }
    }
    const Numbers sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    for (int i = 0; i < vec_t::kLanes; ++i) total += static_cast<double>(sum[i]);
  }
  for (; k < columns; ++k) total += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  sums[0] += total;
}

template <typename vec_t>
void dot_pixels(const typename vec_t::acc_t* a, const typename vec_t::acc_t* b, int64_t columns,
                int64_t channels, typename vec_t::acc_t* sums) {
  for (int64_t k = 0; k < columns; ++k, a += channels, b += channels) {
    typename Wide<vec_t>::Numbers parts = {};
    in_vectors<vec_t>(channels, [&](int64_t c, auto count) {
      parts += load_part<vec_t>(a + c, count) * load_part<vec_t>(b + c, count);
    });
    for (int i = 0; i < vec_t::kLanes; ++i) sums[k] += parts[i];
  }
}

// The rows of a window come in order: of equal elements the first stays.
template <typename vec_t>
void take_rows(PoolRow<typename vec_t::acc_t> to, const typename vec_t::acc_t* const* rows,
               const typename vec_t::acc_t* numbers, int32_t count, int64_t length) {
  using Numbers = typename Wide<vec_t>::Numbers;
  const auto run = [&](auto tracked) {
    in_vectors<vec_t>(length, [&](int64_t k, auto lanes) {
      Numbers best = load_part<vec_t>(rows[0] + k, lanes);
      Numbers from = fill<Numbers>(numbers[0]);
      for (int32_t i = 1; i < count; ++i) {
        const Numbers value = load_part<vec_t>(rows[i] + k, lanes);
        const auto better = (value > best) | (value != value);
        best = choose(better, value, best);
        if (decltype(tracked)::value) from = choose(better, fill<Numbers>(numbers[i]), from);
      }
      store_part<vec_t>(to.values + k, best, lanes);
      if (decltype(tracked)::value) store_part<vec_t>(to.rows + k, from, lanes);
    });
  };
  if (to.rows) return run(std::true_type{});
  run(std::false_type{});
}

// So do the columns; but an element of an earlier row comes before one of an earlier column.
template <typename vec_t>
void take_columns(PoolPlace<typename vec_t::acc_t> to,
                  const PoolRow<typename vec_t::acc_t>* columns,
                  const typename vec_t::acc_t* numbers, int32_t count, int64_t length) {
  using Numbers = typename Wide<vec_t>::Numbers;
  const auto run = [&](auto tracked) {
    constexpr bool kTracked = decltype(tracked)::value;
    in_vectors<vec_t>(length, [&](int64_t k, auto lanes) {
      const auto row_of = [&](int32_t i) {
        return kTracked ? load_part<vec_t>(columns[i].rows + k, lanes) : Numbers{};
      };
      Numbers best = load_part<vec_t>(columns[0].values + k, lanes), row = row_of(0);
      Numbers column = fill<Numbers>(numbers[0]);
      for (int32_t i = 1; i < count; ++i) {
        const Numbers value = load_part<vec_t>(columns[i].values + k, lanes), of = row_of(i);
        const auto better = (value > best) | ((value == best) & (of < row)) |
                            ((value != value) & ((best == best) | (of >= row)));
        best = choose(better, value, best);
        if (!kTracked) continue;
        row = choose(better, of, row);
        column = choose(better, fill<Numbers>(numbers[i]), column);
      }
      store_part<vec_t>(to.values + k, best, lanes);
      if (!kTracked) return;
      store_part<vec_t>(to.rows + k, row, lanes);
      store_part<vec_t>(to.columns + k, column, lanes);
    });
  };
  if (to.rows) return run(std::true_type{});
  run(std::false_type{});
}

template <typename vec_t>
void put_codes(uint8_t* codes, const typename vec_t::acc_t* rows,
               const typename vec_t::acc_t* columns, typename vec_t::acc_t width, int64_t length) {
  for (int64_t k = 0; k < length; ++k)
    codes[k] = static_cast<uint8_t>(static_cast<int32_t>(rows[k] * width + columns[k]));
}

// Adds what was taken to a few taps of one window, or of windows side by side, `length` values
// with one code each.
template <typename vec_t, typename code_t>
MSR_INLINE void add_taps(const TakenArgs<typename vec_t::acc_t>& args, typename vec_t::acc_t* to,
                         const typename vec_t::acc_t* grad, const code_t* codes, int64_t length) {
  const int32_t first = args.first, taps = args.taps;
  const int64_t spacing = args.spacing;
  int64_t k = 0;
  if constexpr (vec_t::kLanes > 1 && sizeof(code_t) == 1) {
    using Numbers = typename Wide<vec_t>::Numbers;
    for (; k + vec_t::kLanes <= length; k += vec_t::kLanes) {
      const auto listed = vec_t::load_ints(codes + k);
      const Numbers value = Wide<vec_t>::load(grad + k);
      for (int32_t t = 0; t < taps; ++t) {
        typename vec_t::acc_t* at = to + t * spacing + k;
        const Numbers taken = choose(listed == first + t, value, Numbers{});
        Wide<vec_t>::store(at, Wide<vec_t>::load(at) + taken);
      }
    }
  }
  for (; k < length; ++k) {
    const int32_t tap = static_cast<int32_t>(codes[k]) - first;
    if (tap >= 0 && tap < taps) to[tap * spacing + k] += grad[k];
  }
}

template <typename vec_t, typename code_t>
MSR_INLINE void add_taken_of(const TakenArgs<typename vec_t::acc_t>& args) {
  using acc_t = typename vec_t::acc_t;
  const code_t* codes = static_cast<const code_t*>(args.codes);
  const int64_t channels = args.channels, code_stride = args.code_column_stride;
  if (channels == 1 && args.step == 1 && code_stride == 1)
    return add_taps<vec_t>(args, args.to, args.grad, codes, args.columns);
  for (int64_t k = 0; k < args.columns; ++k) {
    acc_t* window = args.to + k * args.step * channels;
    const acc_t* grad = args.grad + k * channels;
    const code_t* listed = codes + k * code_stride;
    if (args.code_channel_stride == 1) {
      add_taps<vec_t>(args, window, grad, listed, channels);
      continue;
    }
    for (int64_t c = 0; c < channels; ++c)
      add_taps<vec_t>(args, window + c, grad + c, listed + c * args.code_channel_stride, 1);
  }
}

template <typename vec_t>
void add_taken(const TakenArgs<typename vec_t::acc_t>& args) {
  if (args.wide) return add_taken_of<vec_t, int32_t>(args);
  add_taken_of<vec_t, uint8_t>(args);
}

template <typename vec_t>
void add_exponentials(const LogitsArgs<typename vec_t::acc_t>& args) {
  using acc_t = typename vec_t::acc_t;
  using Numbers = typename Wide<vec_t>::Numbers;
  in_vectors<vec_t>(args.columns, [&](int64_t k, auto lanes) {
    const Numbers before = load_part<vec_t>(args.largest + k, lanes);
    Numbers largest = before;
    for (int32_t c = 0; c < args.classes; ++c) {
      const Numbers value = load_part<vec_t>(args.values + c * args.stride + k, lanes);
      largest = choose(value > largest, value, largest);
    }
    // Where all are -inf so far, differences to the largest would be NaN.
    const Numbers finite = fill<Numbers>(std::numeric_limits<acc_t>::lowest());
    const Numbers origin = choose(largest < finite, Numbers{}, largest);
    const auto exponential = [](auto v) { return exp_below(v); };
    Numbers sum = load_part<vec_t>(args.sum + k, lanes);
    sum *= each_of<vec_t>(before - origin, exponential);
    for (int32_t c = 0; c < args.classes; ++c) {
      const Numbers value = load_part<vec_t>(args.values + c * args.stride + k, lanes);
      sum += each_of<vec_t>(value - origin, exponential);
    }
    store_part<vec_t>(args.largest + k, largest, lanes);
    store_part<vec_t>(args.sum + k, sum, lanes);
  });
}

template <typename vec_t>
void find_largest(const LogitsArgs<typename vec_t::acc_t>& args, typename vec_t::acc_t* number,
                  typename vec_t::acc_t first) {
  using acc_t = typename vec_t::acc_t;
  using Numbers = typename Wide<vec_t>::Numbers;
  in_vectors<vec_t>(args.columns, [&](int64_t k, auto lanes) {
    Numbers largest = load_part<vec_t>(args.largest + k, lanes);
    Numbers which = load_part<vec_t>(number + k, lanes);
    for (int32_t c = 0; c < args.classes; ++c) {
      const Numbers value = load_part<vec_t>(args.values + c * args.stride + k, lanes);
      const auto better = (value > largest) | ((value != value) & (largest == largest));
      largest = choose(better, value, largest);
      which = choose(better, fill<Numbers>(first + static_cast<acc_t>(c)), which);
    }
    store_part<vec_t>(args.largest + k, largest, lanes);
    store_part<vec_t>(number + k, which, lanes);
  });
}

template <typename vec_t>
void softmax_gradients(const SoftmaxGradArgs<typename vec_t::acc_t>& args) {
  using Numbers = typename Wide<vec_t>::Numbers;
  const auto run = [&](auto has_classes) {
    in_vectors<vec_t>(args.columns, [&](int64_t k, auto lanes) {
      const Numbers power =
          load_part<vec_t>(args.to + k, lanes) - load_part<vec_t>(args.lse + k, lanes);
      Numbers value = each_of<vec_t>(power, [](auto v) { return exp_below(v); });
      value = load_part<vec_t>(args.factor + k, lanes) * value;
      if constexpr (decltype(has_classes)::value) {
        const auto own = load_part<vec_t>(args.classes + k, lanes) == fill<Numbers>(args.own);
        value = value - choose(own, load_part<vec_t>(args.of_class + k, lanes), Numbers{});
      }
      store_part<vec_t>(args.to + k, value, lanes);
    });
  };
  if (args.classes) return run(std::true_type{});
  run(std::false_type{});
}

template <typename vec_t>
void log_sums(typename vec_t::acc_t* to, const typename vec_t::acc_t* largest,
              const typename vec_t::acc_t* sum, int64_t length) {
  in_vectors<vec_t>(length, [&](int64_t k, auto lanes) {
    const auto logarithm =
        each_of<vec_t>(load_part<vec_t>(sum + k, lanes), [](auto v) { return log_of(v); });
    store_part<vec_t>(to + k, load_part<vec_t>(largest + k, lanes) + logarithm, lanes);
  });
}

// Calls f(k, lanes, logit, target, weight, factor of the positive part). Factors that are one
// everywhere are the constant `one`, with which nothing is multiplied.
struct One {};
template <typename V>
MSR_INLINE V operator*(One, V v) {
  return v;
}

template <typename vec_t, typename F>
MSR_INLINE void for_each_binary(const BinaryArgs<typename vec_t::acc_t>& args, F&& f) {
  using Numbers = typename Wide<vec_t>::Numbers;
  const auto *values = args.values, *targets = args.target;
  const auto *weights = args.weight, *positives = args.pos_weight;
  if (!weights && !positives) {
    return in_vectors<vec_t>(args.columns, [&](int64_t k, auto lanes) {
      f(k, lanes, load_part<vec_t>(values + k, lanes), load_part<vec_t>(targets + k, lanes), One{},
        One{});
    });
  }
  in_vectors<vec_t>(args.columns, [&](int64_t k, auto lanes) {
    const Numbers one = fill<Numbers>(1);
    const Numbers target = load_part<vec_t>(targets + k, lanes);
    Numbers weight = one, positive = one;
    if (weights) weight = load_part<vec_t>(weights + k, lanes);
    if (positives) positive = (load_part<vec_t>(positives + k, lanes) - one) * target + one;
    f(k, lanes, load_part<vec_t>(values + k, lanes), target, weight, positive);
  });
}

// Calls f(k, lanes, loss).
template <typename vec_t, typename F>
MSR_INLINE void for_each_binary_loss(const BinaryArgs<typename vec_t::acc_t>& args, F&& f) {
  using Numbers = typename Wide<vec_t>::Numbers;
  for_each_binary<vec_t>(args, [&](int64_t k, auto lanes, Numbers value, Numbers target,
                                   auto weight, auto positive) {
    const auto negative = value < Numbers{};
    const Numbers magnitude = choose(negative, -value, value);
    const Numbers small = each_of<vec_t>(-magnitude, [](auto v) { return log1p_of(exp_below(v)); });
    const Numbers softplus = small + choose(negative, magnitude, Numbers{});
    f(k, lanes, weight * ((fill<Numbers>(1) - target) * value + positive * softplus));
  });
}

template <typename vec_t>
void binary_losses(const BinaryArgs<typename vec_t::acc_t>& args) {
  auto* to = args.values;
  for_each_binary_loss<vec_t>(
      args, [&](int64_t k, auto lanes, auto loss) { store_part<vec_t>(to + k, loss, lanes); });
}

// Short sums are taken in the accumulation type, and added up in double.
template <typename vec_t>
double binary_loss_sum(const BinaryArgs<typename vec_t::acc_t>& args) {
  using Numbers = typename Wide<vec_t>::Numbers;
  constexpr int32_t kSteps = 16;
  double total = 0;
  Numbers part = {};
  int32_t steps = 0;
  const auto add = [&](Numbers losses, int count) {
    for (int i = 0; i < count; ++i) total += static_cast<double>(losses[i]);
  };
  for_each_binary_loss<vec_t>(args, [&](int64_t, auto lanes, Numbers losses) {
    if (static_cast<int>(lanes) < vec_t::kLanes) return add(losses, lanes);
    part += losses;
    if (++steps < kSteps) return;
    add(part, vec_t::kLanes);
    part = Numbers{};
    steps = 0;
  });
  add(part, vec_t::kLanes);
  return total;
}

template <typename vec_t>
void binary_gradients(const BinaryArgs<typename vec_t::acc_t>& args) {
  using Numbers = typename Wide<vec_t>::Numbers;
  auto* to = args.values;
  const auto* grads = args.grad;
  for_each_binary<vec_t>(
      args, [&](int64_t k, auto lanes, Numbers value, Numbers target, auto weight, auto positive) {
        const Numbers other = each_of<vec_t>(-value, [](auto v) { return sigmoid_of(v); });
        const Numbers grad = weight * load_part<vec_t>(grads + k, lanes);
        store_part<vec_t>(to + k, grad * ((fill<Numbers>(1) - target) - positive * other), lanes);
      });
}

}  // namespace
}  // namespace msr
