// Tap tables of one axis, made once per call: the CPU kernels' inner loops do no index arithmetic.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "row_ops.h"
#include "tap_lists.h"

namespace msr {

// The taps of an axis whose rows are listed one by one, for each row of the result; of an axis that
// keeps its size, that row. Pointers into a table, which every row would otherwise have to find.
template <typename acc_t>
struct TapRows {
  const int32_t* first = nullptr;
  const int32_t* count;
  const int64_t* start;
  const acc_t* weights;

  Range of(int32_t row) const {
    if (!first) return {row, row + 1};
    return {first[row], first[row] + count[row]};
  }
  // Of the first tap of the row; null: one tap, of weight one.
  const acc_t* weights_of(int32_t row) const { return first ? weights + start[row] : nullptr; }
};

template <typename acc_t>
class TapTable {
 public:
  // Row i lists what position i reads: sources of a destination, or (transposed) destinations of a
  // source.
  explicit TapTable(const Axis& axis)
      : transposed_(axis.transposed),
        rows_(axis.transposed ? axis.in_size : axis.out_size),
        columns_(axis.transposed ? axis.out_size : axis.in_size) {
    TapLists<acc_t> lists = list_taps<acc_t>(axis);
    first_ = std::move(lists.first);
    count_ = std::move(lists.count);
    start_ = std::move(lists.start);
    weights_ = std::move(lists.weights);
    for (const int32_t count : count_) max_count_ = std::max(max_count_, count);
    has_gaps_ = std::find(count_.begin(), count_.end(), 0) != count_.end();
  }

  // Prepares what along_row needs beyond the plain lists, for vectors of `lanes` lanes.
  void prepare_blocks(int32_t lanes, bool can_look_up) {
    lanes_ = lanes;
    if (can_look_up && has_pairs()) prepare_windows();
    if (window_.empty() && lanes > 1) prepare_steps();
  }

  // Prepares what along_pixels needs for sums.
  void prepare_pairs() {
    for (int32_t i = 0; i < rows_ && has_pairs(); ++i) {
      const auto [left, right] = pair_of(i);
      pair_index_.push_back(first_[i]);
      pair_index_.push_back(first_[i] + count_[i] - 1);
      pair_weight_.push_back(left);
      pair_weight_.push_back(right);
    }
  }

  TapRows<acc_t> rows() const {
    return {first_.data(), count_.data(), start_.data(), weights_.data()};
  }
  int32_t first(int32_t row) const { return first_[row]; }
  int32_t count(int32_t row) const { return count_[row]; }
  const acc_t* weights(int32_t row) const { return weights_.data() + start_[row]; }
  int32_t max_count() const { return max_count_; }
  bool has_gaps() const { return has_gaps_; }  // there are rows without taps
  // Every row has one tap or two.
  bool has_pairs() const { return max_count_ <= 2 && !has_gaps_; }

  // Every row is one of the axis' elements.
  bool picks() const {
    const auto is_one = [](acc_t weight) { return weight == 1; };
    return max_count_ == 1 && !has_gaps_ && std::all_of(weights_.begin(), weights_.end(), is_one);
  }

  // Whether what is read of a row begins before its first column or ends after its last one, by
  // less than kPadding elements.
  bool needs_padding() const {
    return steps_reach_out_ || (!window_.empty() && columns_ < window_size());
  }
  static constexpr int32_t kPadding = 32;  // two vectors of the widest kind

  // The columns that rows [begin, end) read, whole windows included.
  Range range(int32_t begin, int32_t end) const {
    if (!window_.empty()) {
      Range all{columns_, 0};
      for (int32_t block = begin / lanes_; block * lanes_ < end; ++block) {
        all.begin = std::min(all.begin, window_[block]);
        all.end = std::max(all.end, std::min(columns_, window_[block] + window_size()));
      }
      return all;
    }
    Range all{0, 0};
    for (int32_t i = begin; i < end; ++i) {
      if (count_[i] == 0) continue;
      all.begin = all.begin == all.end ? first_[i] : std::min(all.begin, first_[i]);
      all.end = std::max(all.end, first_[i] + count_[i]);
    }
    return all;
  }

  Taps<acc_t> view() const {
    const auto data = [](const auto& vector) { return vector.empty() ? nullptr : vector.data(); };
    Taps<acc_t> taps{};
    taps.first = first_.data();
    taps.count = count_.data();
    taps.start = start_.data();
    taps.weights = weights_.data();
    taps.picks = picks();
    taps.pair_index = data(pair_index_);
    taps.pair_weight = data(pair_weight_);
    taps.window = data(window_);
    taps.left_lane = data(left_lane_);
    taps.right_lane = data(right_lane_);
    taps.left_weight = data(left_weight_);
    taps.right_weight = data(right_weight_);
    taps.wide = wide_;
    taps.step_taps = data(step_taps_);
    taps.step_first = data(step_first_);
    taps.step_start = data(step_start_);
    taps.step_irregular = data(step_irregular_);
    taps.step_weights = data(step_weights_);
    return taps;
  }

 private:
  // The weights of a row of one or two taps, as of two: a single tap is read twice with half its
  // weight, which is exact, and keeps infinities.
  std::pair<acc_t, acc_t> pair_of(int32_t row) const {
    const acc_t* weights = this->weights(row);
    if (count_[row] == 2) return {weights[0], weights[1]};
    return {weights[0] / 2, weights[0] / 2};
  }

  int32_t window_size() const { return wide_ ? 2 * lanes_ : lanes_; }
  int32_t num_blocks() const { return static_cast<int32_t>(ceil_div(rows_, lanes_)); }

  // Windows for rows of one or two taps, if what every block reads fits into one.
  void prepare_windows() {
    int32_t span = 1;
    const int32_t blocks = num_blocks();
    for (int32_t block = 0; block < blocks; ++block) {
      const int32_t last = std::min(rows_, (block + 1) * lanes_) - 1;
      // Taps never move back from row to row.
      span = std::max(span, first_[last] + count_[last] - first_[block * lanes_]);
    }
    if (span > 2 * lanes_) return;
    wide_ = span > lanes_;
    window_.resize(blocks);
    left_lane_.assign(static_cast<size_t>(blocks) * lanes_, 0);
    right_lane_ = left_lane_;
    left_weight_.assign(left_lane_.size(), acc_t(0));
    right_weight_ = left_weight_;
    for (int32_t i = 0; i < rows_; ++i) {
      const int32_t block = i / lanes_;
      // The last windows end where the columns end.
      window_[block] = std::max(0, std::min(first_[block * lanes_], columns_ - window_size()));
      left_lane_[i] = first_[i] - window_[block];
      right_lane_[i] = left_lane_[i] + count_[i] - 1;
      const auto [left, right] = pair_of(i);
      left_weight_[i] = left;
      right_weight_[i] = right;
    }
  }

  // Blocks of rows with one even number of taps, each beginning two after the one before. At the
  // borders a few rows have less.
  void prepare_steps() {
    const int32_t blocks = num_blocks();
    step_taps_.assign(blocks, 0);
    step_first_.assign(blocks, 0);
    step_start_.assign(blocks, 0);
    step_irregular_.assign(blocks, 0);
    for (int32_t block = 0; (block + 1) * lanes_ <= rows_; ++block) {
      const int32_t begin = block * lanes_, middle = begin + lanes_ / 2;
      const int32_t count = count_[middle], first = first_[middle] - 2 * (lanes_ / 2);
      if (count == 0 || count % 2 != 0 || count > kMaxStepTaps) continue;
      // Of a map nothing is read beyond its ends; gradients are padded, or copied to be.
      const bool inside = first >= 0 && first + count - 2 + 2 * lanes_ <= columns_;
      if (!transposed_ && !inside) continue;
      uint32_t irregular = 0;
      int32_t others = 0;
      for (int32_t i = 0; i < lanes_; ++i) {
        if (count_[begin + i] == count && first_[begin + i] == first + 2 * i) continue;
        irregular |= uint32_t{1} << i;
        ++others;
      }
      if (others > lanes_ / 4) continue;
      if (!inside) steps_reach_out_ = true;
      step_taps_[block] = count;
      step_first_[block] = first;
      step_start_[block] = static_cast<int32_t>(step_weights_.size());
      step_irregular_[block] = irregular;
      for (int32_t t = 0; t < count; ++t) {
        for (int32_t i = 0; i < lanes_; ++i)
          step_weights_.push_back((irregular >> i & 1) != 0 ? acc_t(0) : weights(begin + i)[t]);
      }
    }
  }

  static constexpr int32_t kMaxStepTaps = 16;

  bool transposed_;
  int32_t rows_, columns_;
  int32_t max_count_ = 0;
  int32_t lanes_ = 1;
  bool has_gaps_ = false;
  bool wide_ = false;
  bool steps_reach_out_ = false;
  std::vector<int32_t> first_, count_;
  std::vector<int64_t> start_;
  std::vector<acc_t> weights_;
  std::vector<int32_t> pair_index_;
  std::vector<acc_t> pair_weight_;
  std::vector<int32_t> window_, left_lane_, right_lane_;
  std::vector<acc_t> left_weight_, right_weight_;
  std::vector<int32_t> step_taps_, step_first_, step_start_;
  std::vector<uint32_t> step_irregular_;
  std::vector<acc_t> step_weights_;
};

}  // namespace msr
