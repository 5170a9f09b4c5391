// Tap tables of one axis, made once per call: the CPU kernels' inner loops do no index arithmetic.
#pragma once

#include <vector>

#include "resample_math.h"

namespace msr {

template <typename acc_t>
struct TapTable {
  struct Taps {
    const acc_t* weights;
    int32_t first;
    int32_t count;
  };

  // Row i lists what position i reads: sources of a destination, or (adjoint) destinations of a source.
  static TapTable make(const Axis& axis, bool adjoint) {
    TapTable table;
    const int32_t rows = adjoint ? axis.in_size : axis.out_size;
    table.ranges_.reserve(rows);
    table.start_.reserve(rows);
    for (int32_t i = 0; i < rows; ++i) {
      const Range range = adjoint ? adjoint_support(axis, i) : support(axis, i);
      table.ranges_.push_back(range);
      table.start_.push_back(static_cast<int64_t>(table.weights_.size()));
      for (int32_t j = range.begin; j < range.end; ++j) {
        table.weights_.push_back(adjoint ? weight<acc_t>(axis, j, i) : weight<acc_t>(axis, i, j));
      }
    }
    return table;
  }

  Taps operator[](int32_t i) const {
    return {weights_.data() + start_[i], ranges_[i].begin, ranges_[i].end - ranges_[i].begin};
  }

 private:
  std::vector<Range> ranges_;
  std::vector<int64_t> start_;
  std::vector<acc_t> weights_;
};

}  // namespace msr
