// The taps of one axis as lists, for any rule: host code.
//
// Rules of at most two taps are evaluated by resample_math.h wherever they are needed, windows row
// by row by windows.h: here they are listed, once per call.
#pragma once

#include <cstdint>
#include <vector>

#include "resample_math.h"
#include "windows.h"

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

// The taps of destinations, or (transposed) of sources.
template <typename acc_t>
TapLists<acc_t> list_taps(const Axis& axis) {
  TapLists<acc_t> lists;
  if (is_windowed(axis.rule)) {
    std::vector<double> values(static_cast<size_t>(widest_window(axis)));
    for (int32_t d = 0; d < axis.out_size; ++d) {
      const Window window = window_of(axis, d);
      lists.begin_row(window.range.begin);
      lists.count.back() = window.range.end - window.range.begin;
      lists.weights.resize(lists.weights.size() + static_cast<size_t>(lists.count.back()));
      write_weights(axis, window, Alone{values.data()}, lists.weights.data() + lists.start.back());
    }
    return axis.transposed ? transposed(lists, axis.in_size) : lists;
  }
  const bool adjoint = axis.transposed;
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
