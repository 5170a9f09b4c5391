// The operations of row_ops.h on rows of the accumulation type: weights, maxima, activations,
// gates, dot products and max-pooling. They compute with the compiler's own vectors, as wide as the
// registers of the instruction set of the including file.
#pragma once

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
    uint32_t found = 0;
    for (int i = 0; i < kLanes; ++i) found |= (conditions[i] != 0 ? 1u : 0u) << i;
    return found;
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

template <typename vec_t>
void maximum(typename vec_t::acc_t* best, const typename vec_t::acc_t* row, int64_t length,
             uint8_t* bits) {
  in_vectors<vec_t>(length, [&](int64_t k, auto count) {
    const auto a = load_part<vec_t>(best + k, count), b = load_part<vec_t>(row + k, count);
    const auto better = (b > a) | ((b != b) & (a == a));
    put_bits<vec_t::kLanes>(bits, k, Wide<vec_t>::bits(better));
    store_part<vec_t>(best + k, choose(better, b, a), count);
  });
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
  if (off == 0) {
    for_each_lane_block<vec_t, false, acc_t, acc_t>(length, [&](auto lane, int64_t k) {
      using V = decltype(lane);
      V::load(row + k).select(bits, k).store(row + k);
    });
    return;
  }
  for_each_lane_block<vec_t, false, acc_t, acc_t>(length, [&](auto lane, int64_t k) {
    using V = decltype(lane);
    // The part behind the gate, (1 - off) of it and off of the whole.
    const V value = V::load(row + k);
    const V part = value.select(bits, k) * V::broadcast(acc_t(1) - off);
    value.times_plus(V::broadcast(off), part).store(row + k);
  });
}

template <typename vec_t>
void dot(const typename vec_t::acc_t* a, const typename vec_t::acc_t* b, int64_t columns,
         int64_t channels, double* sums) {
  if (channels > 1) {
    for (int64_t k = 0; k < columns; ++k, a += channels, b += channels) {
      for (int64_t c = 0; c < channels; ++c)
        sums[c] += static_cast<double>(a[c]) * static_cast<double>(b[c]);
    }
    return;
  }
  // Several sums at a time: one alone would wait for each addition.
  constexpr int kParts = 8;
  double parts[kParts] = {};
  int64_t k = 0;
  for (; k + kParts <= columns; k += kParts) {
    for (int i = 0; i < kParts; ++i)
      parts[i] += static_cast<double>(a[k + i]) * static_cast<double>(b[k + i]);
  }
  double sum = 0;
  for (; k < columns; ++k) sum += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  for (const double part : parts) sum += part;
  sums[0] += sum;
}

// The rows of a window come in order: of equal elements the first stays.
template <typename vec_t>
void take_row(PoolRow<typename vec_t::acc_t> best, const typename vec_t::acc_t* row,
              typename vec_t::acc_t number, int64_t length) {
  in_vectors<vec_t>(length, [&](int64_t k, auto count) {
    const auto a = load_part<vec_t>(best.values + k, count), b = load_part<vec_t>(row + k, count);
    const auto better = (b > a) | (b != b);
    const auto numbers = fill<decltype(a + a)>(number);
    store_part<vec_t>(best.values + k, choose(better, b, a), count);
    const auto before = load_part<vec_t>(best.rows + k, count);
    store_part<vec_t>(best.rows + k, choose(better, numbers, before), count);
  });
}

// So do the columns; but an element of an earlier row comes before one of an earlier column.
template <typename vec_t>
void take_column(PoolPlace<typename vec_t::acc_t> best, PoolRow<typename vec_t::acc_t> row,
                 typename vec_t::acc_t number, int64_t length) {
  in_vectors<vec_t>(length, [&](int64_t k, auto count) {
    const auto a = load_part<vec_t>(best.values + k, count);
    const auto b = load_part<vec_t>(row.values + k, count);
    const auto of_a = load_part<vec_t>(best.rows + k, count);
    const auto of_b = load_part<vec_t>(row.rows + k, count);
    const auto better =
        (b > a) | ((b == a) & (of_b < of_a)) | ((b != b) & ((a == a) | (of_b >= of_a)));
    const auto numbers = fill<decltype(a + a)>(number);
    store_part<vec_t>(best.values + k, choose(better, b, a), count);
    store_part<vec_t>(best.rows + k, choose(better, of_b, of_a), count);
    const auto before = load_part<vec_t>(best.columns + k, count);
    store_part<vec_t>(best.columns + k, choose(better, numbers, before), count);
  });
}

}  // namespace
}  // namespace msr
