// Tap tables of one axis, made once per call: the CPU kernels' inner loops do no index arithmetic.
#pragma once

#include <algorithm>
#include <vector>

#include "resample_math.h"

namespace msr {

template <typename acc_t>
class TapTable {
 public:
  struct Taps {
    const acc_t* weights;
    int32_t first;
    int32_t count;
  };

  // Row i lists what position i reads: sources of a destination, or (adjoint) destinations of a
  // source.
  static TapTable make(const Axis& axis, bool adjoint) {
    TapTable table;
    const int32_t rows = adjoint ? axis.in_size : axis.out_size;
    table.ranges_.reserve(rows);
    table.start_.reserve(rows);
    for (int32_t i = 0; i < rows; ++i) {
      const Range range = adjoint ? adjoint_support(axis, i) : support(axis, i);
      table.ranges_.push_back(range);
      table.start_.push_back(static_cast<int64_t>(table.weights_.size()));
      table.max_count_ = std::max(table.max_count_, range.end - range.begin);
      for (int32_t j = range.begin; j < range.end; ++j) {
        table.weights_.push_back(adjoint ? weight<acc_t>(axis, j, i) : weight<acc_t>(axis, i, j));
      }
    }
    if (!adjoint && table.max_count_ <= 2) table.make_pairs();
    return table;
  }

  Taps operator[](int32_t i) const {
    return {weights_.data() + start_[i], ranges_[i].begin, ranges_[i].end - ranges_[i].begin};
  }

  int32_t max_count() const { return max_count_; }

  // The indices that rows [begin, end) read.
  Range range(int32_t begin, int32_t end) const {
    Range all = ranges_[begin];
    for (int32_t i = begin + 1; i < end; ++i) {
      if (ranges_[i].begin == ranges_[i].end) continue;
      all.begin = all.begin == all.end ? ranges_[i].begin : std::min(all.begin, ranges_[i].begin);
      all.end = std::max(all.end, ranges_[i].end);
    }
    return all;
  }

  // For tables of at most two taps: exactly two per row, one after the other, for loops without
  // branches. A row of one tap reads it twice with weight 1/2, which is exact, and keeps
  // infinities.
  const int32_t* pair_index() const { return pair_index_.data(); }
  const acc_t* pair_weight() const { return pair_weight_.data(); }

 private:
  void make_pairs() {
    for (size_t i = 0; i < ranges_.size(); ++i) {
      const Taps taps = (*this)[static_cast<int32_t>(i)];
      const bool two = taps.count == 2;
      pair_index_.insert(pair_index_.end(), {taps.first, taps.first + (two ? 1 : 0)});
      pair_weight_.insert(pair_weight_.end(),
                          {two ? taps.weights[0] : acc_t(0.5), two ? taps.weights[1] : acc_t(0.5)});
    }
  }

  std::vector<Range> ranges_;
  std::vector<int64_t> start_;
  std::vector<acc_t> weights_;
  std::vector<int32_t> pair_index_;
  std::vector<acc_t> pair_weight_;
  int32_t max_count_ = 0;
};

}  // namespace msr
