// Windows: rules of any number of taps (cubic, area, antialiased, pools), row by row, for the host
// and the device. CPU kernels list the rows (tap_lists.h), CUDA kernels fill tables with them
// (window_tables_kernel.cuh).
//
// Formulas: ATen's get_cubic_upsample_coefficients (UpSample.h) with its clamped indices, the start
// and end index of its adaptive pooling (AdaptivePooling.h), and
// _compute_indices_min_size_weights_aa with the aa_filters (UpSampleKernel.cpp); evaluated exactly,
// in integers, where coordinates follow from the sizes, else in double.
#pragma once

#include <cmath>
#include <cstdint>

#include "resample_math.h"

namespace msr {

// Distances are in elements, and not negative.
MSR_HOST_DEVICE double cubic_filter(double x, double a) {
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0.0;
}

MSR_HOST_DEVICE double sinc(double x) {
  constexpr double kPi = 3.14159265358979323846;
#if defined(__CUDA_ARCH__)
  const double sine = sinpi(x);  // without sin's way round for huge arguments, which takes a stack
#else
  const double sine = sin(kPi * x);
#endif
  return x == 0 ? 1.0 : sine / (kPi * x);
}

MSR_HOST_DEVICE double antialias_filter(Rule rule, double x) {
  if (rule == Rule::kLinearAntialias) return x < 1 ? 1 - x : 0.0;
  if (rule == Rule::kCubicAntialias) return cubic_filter(x, -0.5);  // as in Pillow
  return x < 3 ? sinc(x) * sinc(x / 3) : 0.0;
}

MSR_HOST_DEVICE int32_t half_support(Rule rule) {
  if (rule == Rule::kLanczosAntialias) return 3;
  return rule == Rule::kCubicAntialias ? 2 : 1;
}

MSR_HOST_DEVICE bool is_cubic(Rule rule) {
  return rule == Rule::kCubic || rule == Rule::kCubicAlignCorners;
}

MSR_HOST_DEVICE bool is_antialiased(Rule rule) {
  return rule == Rule::kLinearAntialias || rule == Rule::kCubicAntialias ||
         rule == Rule::kLanczosAntialias;
}

// Whether the weights of a row sum to one, on every row.
MSR_HOST_DEVICE bool sums_to_one(Rule rule) {
  return rule != Rule::kAveragePool && rule != Rule::kMaxPool;
}

MSR_HOST_DEVICE int64_t floor_div(int64_t numerator, int64_t denominator) {
  const int64_t quotient = numerator / denominator;
  return quotient - (numerator % denominator < 0 ? 1 : 0);
}
MSR_HOST_DEVICE int64_t floor_div(double numerator, double denominator) {
  return static_cast<int64_t>(floor(numerator / denominator));
}

// Never contracted with an addition, so that all who ask for a window get the same one.
MSR_HOST_DEVICE int64_t product(int64_t a, int64_t b) { return a * b; }
MSR_HOST_DEVICE double product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// The row of one destination: the sources that it reads, and what their weights follow from.
struct Window {
  Range range;
  // Cubic: the element before the coordinate of the destination, and the rest of the coordinate.
  int64_t index;
  double fraction;
  // Antialiased: from the centre to the first element, from element to element, and the width of
  // the filter's unit, all in the same unit.
  double begin, step, unit;
};

namespace detail {

// The four taps around the coordinate of a destination. Those beyond a border fall onto the element
// there, whose weight is then their sum.
template <typename number_t>
MSR_HOST_DEVICE Window cubic_window(const Axis& axis, int64_t d, number_t p, number_t q) {
  const bool corners = axis.rule == Rule::kCubicAlignCorners;
  const int32_t last = axis.in_size - 1;
  const number_t unit = corners ? q : 2 * q;  // positions are in 1 / unit elements
  const number_t position = corners ? product(number_t(d), p) : product(number_t(2 * d + 1), p) - q;
  Window window{};
  window.index = floor_div(position, unit);
  if (window.index > last) window.index = last;
  window.fraction =
      static_cast<double>(position - number_t(window.index) * unit) / static_cast<double>(unit);
  // Above one where a scale factor leads beyond the end; ATen limits it too.
  if (window.fraction > 1) window.fraction = 1;
  window.range = {clamp_to(window.index - 1, last), clamp_to(window.index + 2, last) + 1};
  return window;
}

// A filter that is stretched by the scale p / q where that is above one, normalised per window.
template <typename number_t>
MSR_HOST_DEVICE Window antialiased_window(const Axis& axis, int64_t d, number_t p, number_t q) {
  const number_t stretch = p > q ? p : q;
  const number_t reach = product(number_t(2 * half_support(axis.rule)), stretch);
  const number_t centre = product(number_t(2 * d + 1), p);  // in units of 1 / (2 q) elements
  Window window{};
  window.range.begin = clamp_to(floor_div(centre - reach + q, 2 * q), axis.in_size);
  window.range.end = clamp_to(floor_div(centre + reach + q, 2 * q), axis.in_size);
  window.begin =
      static_cast<double>(number_t(2 * static_cast<int64_t>(window.range.begin) + 1) * q - centre);
  window.step = 2 * static_cast<double>(q);
  window.unit = 2 * static_cast<double>(stretch);
  return window;
}

template <typename number_t>
MSR_HOST_DEVICE Window scaled_window(const Axis& axis, int64_t d) {
  const auto p = static_cast<number_t>(axis.scale), q = static_cast<number_t>(axis.inverse);
  return is_cubic(axis.rule) ? cubic_window(axis, d, p, q) : antialiased_window(axis, d, p, q);
}

MSR_HOST_DEVICE Window area_window(const Axis& axis, int64_t d) {
  const int64_t in = axis.in_size, out = axis.out_size;
  Window window{};
  window.range = {static_cast<int32_t>(d * in / out),
                  static_cast<int32_t>(((d + 1) * in + out - 1) / out)};
  return window;
}

}  // namespace detail

// Windows never move back from one destination to the next, neither their begin nor their end.
MSR_HOST_DEVICE Window window_of(const Axis& axis, int32_t d) {
  if (axis.rule >= Rule::kAveragePool) {
    Window window{};
    window.range = pool_window(axis, d);
    return window;
  }
  if (axis.rule == Rule::kArea) return detail::area_window(axis, d);
  // Whole numbers, where the scale follows from the sizes.
  if (axis.scale == floor(axis.scale) && axis.inverse == floor(axis.inverse))
    return detail::scaled_window<int64_t>(axis, d);
  return detail::scaled_window<double>(axis, d);
}

// The weight of the i-th source of a window, but for the antialiased ones' common divisor.
MSR_HOST_DEVICE double window_value(const Axis& axis, const Window& window, int32_t i) {
  if (is_antialiased(axis.rule))
    return antialias_filter(axis.rule, fabs(window.begin + i * window.step) / window.unit);
  if (!is_cubic(axis.rule)) {
    if (axis.rule == Rule::kMaxPool) return 1.0;
    if (axis.rule == Rule::kAveragePool) return 1.0 / axis.inverse;
    return 1.0 / static_cast<double>(window.range.end - window.range.begin);
  }
  double value = 0;
  for (int32_t tap = -1; tap <= 2; ++tap) {
    if (clamp_to(window.index + tap, axis.in_size - 1) == window.range.begin + i)
      value += cubic_filter(fabs(tap - window.fraction), -0.75);
  }
  return value;
}

// A sum, and what rounding takes from it (Knuth's TwoSum).
struct ExactSum {
  double sum = 0, lost = 0;

  MSR_HOST_DEVICE void add(double value) {
    const double before = sum;
    sum += value;
    const double added = sum - before;
    lost += (before - (sum - added)) + (value - added);
  }
};

// The narrowed weight that is the largest of a row, the first of equal ones.
template <typename acc_t>
struct Largest {
  acc_t weight;
  int32_t index;
};

// Who fills a row: a thread by itself, here, with memory for the values of the widest window. A
// team of several threads has the same members.
struct Alone {
  double* values;

  MSR_HOST_DEVICE int32_t lane() const { return 0; }
  MSR_HOST_DEVICE int32_t lanes() const { return 1; }
  // A value that is wanted twice is kept, or evaluated again.
  MSR_HOST_DEVICE void keep(int32_t i, double value) const { values[i] = value; }
  template <typename Evaluate>
  MSR_HOST_DEVICE double kept(int32_t i, const Evaluate&) const {
    return values[i];
  }
  MSR_HOST_DEVICE double sum(double value) const { return value; }
  template <typename acc_t>
  MSR_HOST_DEVICE Largest<acc_t> largest(Largest<acc_t> value) const {
    return value;
  }
};

// Writes the weights of a row, rounded to acc_t. If they sum to one, the largest takes up what
// rounding left, so that a constant map stays constant.
template <typename acc_t, typename Team>
MSR_HOST_DEVICE void write_weights(const Axis& axis, const Window& window, const Team& team,
                                   acc_t* weights) {
  const int32_t count = window.range.end - window.range.begin;
  const bool normalised = is_antialiased(axis.rule);
  const auto evaluate = [&](int32_t i) { return window_value(axis, window, i); };
  double divisor = 1;
  if (normalised) {
    double part = 0;
    for (int32_t i = team.lane(); i < count; i += team.lanes()) {
      const double value = evaluate(i);
      team.keep(i, value);
      part += value;
    }
    divisor = team.sum(part);
  }
  ExactSum part;
  Largest<acc_t> largest{0, count};
  for (int32_t i = team.lane(); i < count; i += team.lanes()) {
    const double value = normalised ? team.kept(i, evaluate) : evaluate(i);
    const auto weight = static_cast<acc_t>(value / divisor);
    weights[i] = weight;
    part.add(static_cast<double>(weight));
    if (weight > largest.weight) largest = {weight, i};
  }
  if (!sums_to_one(axis.rule)) return;
  const double sum = team.sum(part.sum), lost = team.sum(part.lost);
  largest = team.largest(largest);
  // Whoever wrote it also adds to it.
  if (largest.index < count && largest.index % team.lanes() == team.lane())
    weights[largest.index] += static_cast<acc_t>((1.0 - sum) - lost);
}

// No window of the axis would have more sources than this, were there no borders.
inline double widest_reach(const Axis& axis) {
  if (is_cubic(axis.rule)) return 4;
  if (axis.rule == Rule::kArea) return axis.in_size / axis.out_size + 2;
  if (is_antialiased(axis.rule)) {
    const double stretch = axis.scale / axis.inverse > 1 ? axis.scale / axis.inverse : 1.0;
    return ceil(2 * half_support(axis.rule) * stretch) + 1;
  }
  return axis.inverse;  // pools
}

// No window of the axis has more sources than this.
inline int32_t widest_window(const Axis& axis) {
  const double width = widest_reach(axis);
  return width < axis.in_size ? static_cast<int32_t>(width) : axis.in_size;
}

}  // namespace msr
