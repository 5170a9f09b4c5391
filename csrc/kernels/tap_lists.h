// The taps of one axis as lists, for any rule: host code.
//
// Rules of at most two taps are evaluated by resample_math.h wherever they are needed. Windows
// (cubic, area, antialiased) have more, and weights that follow from all of them: they are listed
// here, once per call. Formulas: ATen's get_cubic_upsample_coefficients (UpSample.h) with its
// clamped indices, the start and end index of its adaptive pooling (AdaptivePooling.h), and
// _compute_indices_min_size_weights_aa with the aa_filters (UpSampleKernel.cpp); evaluated exactly,
// in integers, where coordinates follow from the sizes, else in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "resample_math.h"

namespace msr {

// Row i reads [first[i], first[i] + count[i]), with the weights from start[i] on.
template <typename weight_t>
struct TapLists {
  std::vector<int32_t> first, count;
  std::vector<int64_t> start;
  std::vector<weight_t> weights;

  void begin_row(int32_t index) {
    first.push_back(index);
    count.push_back(0);
    start.push_back(static_cast<int64_t>(weights.size()));
  }
  void add(weight_t weight) {
    ++count.back();
    weights.push_back(weight);
  }
};

// Distances are in elements, and not negative.
inline double cubic_filter(double x, double a) {
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0.0;
}

inline double sinc(double x) {
  constexpr double kPi = 3.14159265358979323846;
  return x == 0 ? 1.0 : std::sin(kPi * x) / (kPi * x);
}

inline double antialias_filter(Rule rule, double x) {
  if (rule == Rule::kLinearAntialias) return x < 1 ? 1 - x : 0.0;
  if (rule == Rule::kCubicAntialias) return cubic_filter(x, -0.5);  // as in Pillow
  return x < 3 ? sinc(x) * sinc(x / 3) : 0.0;
}

inline int32_t half_support(Rule rule) {
  if (rule == Rule::kLanczosAntialias) return 3;
  return rule == Rule::kCubicAntialias ? 2 : 1;
}

inline int64_t floor_div(int64_t numerator, int64_t denominator) {
  const int64_t quotient = numerator / denominator;
  return quotient - (numerator % denominator < 0 ? 1 : 0);
}
inline int64_t floor_div(double numerator, double denominator) {
  return static_cast<int64_t>(std::floor(numerator / denominator));
}

// The four taps around the coordinate of a destination. Those beyond a border fall onto the element
// there, whose weight is then their sum.
template <typename number_t>
void list_cubic(const Axis& axis, number_t p, number_t q, TapLists<double>& lists) {
  const bool corners = axis.rule == Rule::kCubicAlignCorners;
  const int64_t last = axis.in_size - 1;
  const auto clamped = [=](int64_t i) { return std::max<int64_t>(0, std::min(i, last)); };
  const number_t unit = corners ? q : 2 * q;  // positions are in 1 / unit elements
  for (int64_t d = 0; d < axis.out_size; ++d) {
    const number_t position = corners ? number_t(d) * p : number_t(2 * d + 1) * p - q;
    const int64_t index = std::min(floor_div(position, unit), last);
    // Above one where a scale factor leads beyond the end; ATen limits it too.
    const double fraction = std::min(
        1.0, static_cast<double>(position - number_t(index) * unit) / static_cast<double>(unit));
    lists.begin_row(static_cast<int32_t>(clamped(index - 1)));
    double weight = 0;
    for (int64_t i = index - 1; i <= index + 2; ++i) {
      weight += cubic_filter(std::abs(static_cast<double>(i - index) - fraction), -0.75);
      if (i < index + 2 && clamped(i + 1) == clamped(i)) continue;
      lists.add(weight);
      weight = 0;
    }
  }
}

inline void list_area(const Axis& axis, TapLists<double>& lists) {
  const int64_t in = axis.in_size, out = axis.out_size;
  for (int64_t d = 0; d < out; ++d) {
    const int64_t first = floor_div(d * in, out), end = ceil_div((d + 1) * in, out);
    lists.begin_row(static_cast<int32_t>(first));
    for (int64_t i = first; i < end; ++i) lists.add(1.0 / static_cast<double>(end - first));
  }
}

// A filter that is stretched by the scale p / q where that is above one, normalised per window.
template <typename number_t>
void list_antialiased(const Axis& axis, number_t p, number_t q, TapLists<double>& lists) {
  const number_t stretch = std::max(p, q);
  const number_t reach = number_t(2 * half_support(axis.rule)) * stretch;
  for (int64_t d = 0; d < axis.out_size; ++d) {
    const number_t centre = number_t(2 * d + 1) * p;  // in units of 1 / (2 q) elements
    const int64_t first = std::max<int64_t>(0, floor_div(centre - reach + q, 2 * q));
    const int64_t end = std::min<int64_t>(axis.in_size, floor_div(centre + reach + q, 2 * q));
    lists.begin_row(static_cast<int32_t>(first));
    double sum = 0;
    for (int64_t i = first; i < end; ++i) {
      const double distance = std::abs(static_cast<double>(number_t(2 * i + 1) * q - centre));
      lists.add(antialias_filter(axis.rule, distance / (2 * static_cast<double>(stretch))));
      sum += lists.weights.back();
    }
    for (int64_t i = lists.start.back(); i < static_cast<int64_t>(lists.weights.size()); ++i)
      lists.weights[i] /= sum;
  }
}

template <typename number_t>
void list_windows(const Axis& axis, TapLists<double>& lists) {
  const auto p = static_cast<number_t>(axis.scale), q = static_cast<number_t>(axis.inverse);
  if (axis.rule == Rule::kCubic || axis.rule == Rule::kCubicAlignCorners)
    return list_cubic(axis, p, q, lists);
  list_antialiased(axis, p, q, lists);
}

// The windows of all destinations.
inline TapLists<double> list_windows(const Axis& axis) {
  TapLists<double> lists;
  if (axis.rule == Rule::kArea) {
    list_area(axis, lists);
  } else if (axis.scale == std::floor(axis.scale) && axis.inverse == std::floor(axis.inverse)) {
    list_windows<int64_t>(axis, lists);
  } else {
    list_windows<double>(axis, lists);
  }
  return lists;
}

// Rounds a row's weights; the largest takes up what that left, so that a constant map stays
// constant.
template <typename acc_t>
void narrow_row(const double* from, int32_t count, std::vector<acc_t>& to) {
  const size_t begin = to.size();
  size_t largest = begin;
  double sum = 0;
  for (int32_t i = 0; i < count; ++i) {
    to.push_back(static_cast<acc_t>(from[i]));
    sum += static_cast<double>(to.back());
    if (to.back() > to[largest]) largest = begin + i;
  }
  if (count > 0) to[largest] += static_cast<acc_t>(1.0 - sum);
}

// Row i of the result lists the destinations that read source i.
template <typename acc_t>
TapLists<acc_t> transposed(const TapLists<acc_t>& forward, int32_t in_size) {
  TapLists<acc_t> lists;
  lists.first.assign(in_size, 0);
  lists.count.assign(in_size, 0);
  lists.start.assign(in_size, 0);
  lists.weights.resize(forward.weights.size());
  const auto for_each_tap = [&](auto&& f) {
    for (size_t d = 0; d < forward.first.size(); ++d) {
      for (int32_t t = 0; t < forward.count[d]; ++t)
        f(static_cast<int32_t>(d), forward.first[d] + t, forward.weights[forward.start[d] + t]);
    }
  };
  // Windows never move back, so the destinations of a source are neighbours.
  for_each_tap([&](int32_t d, int32_t s, acc_t) {
    if (lists.count[s]++ == 0) lists.first[s] = d;
  });
  for (int32_t s = 1; s < in_size; ++s) lists.start[s] = lists.start[s - 1] + lists.count[s - 1];
  for_each_tap([&](int32_t d, int32_t s, acc_t weight) {
    lists.weights[lists.start[s] + d - lists.first[s]] = weight;
  });
  return lists;
}

// The taps of destinations, or (adjoint) of sources.
template <typename acc_t>
TapLists<acc_t> list_taps(const Axis& axis, bool adjoint) {
  TapLists<acc_t> lists;
  if (is_windowed(axis.rule)) {
    const TapLists<double> windows = list_windows(axis);
    lists.first = windows.first;
    lists.count = windows.count;
    lists.start = windows.start;
    lists.weights.reserve(windows.weights.size());
    for (int32_t d = 0; d < axis.out_size; ++d)
      narrow_row(windows.weights.data() + windows.start[d], windows.count[d], lists.weights);
    return adjoint ? transposed(lists, axis.in_size) : lists;
  }
  const int32_t rows = adjoint ? axis.in_size : axis.out_size;
  lists.weights.reserve(2 * static_cast<size_t>(axis.out_size));
  for (int32_t i = 0; i < rows; ++i) {
    const Range range = adjoint ? adjoint_support(axis, i) : support(axis, i);
    lists.begin_row(range.begin);
    for (int32_t j = range.begin; j < range.end; ++j)
      lists.add(adjoint ? weight<acc_t>(axis, j, i) : weight<acc_t>(axis, i, j));
  }
  return lists;
}

}  // namespace msr
