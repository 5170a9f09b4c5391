// Rows of single branches, resampled or max-pooled: what is weighted, reduced and finished by those
// who need more than GatherCpu does by itself.
#pragma once

#include <optional>

#include "gather_cpu.h"
#include "max_pool_cpu.h"

namespace msr {

// The factors of branch b for the pixels of a row of `map` from p on, in the row's terms.
template <typename acc_t>
void set_factors(WeighArgs<acc_t>& args, const Weights& weights, const PixelWeights& of_pixels,
                 int b, const Position& p, const Map& map) {
  if (weights.has(b) && weights.stride_c != 0 && map.channels_last && map.size[1] > 1) {
    args.per_channel =
        static_cast<const acc_t*>(weights.data) + p.n * weights.stride_n + b * weights.stride_b;
  } else {
    args.factor = weight_of<acc_t>(weights, b, p.n, p.c);
  }
  if (of_pixels.has(b)) {
    args.per_pixel = static_cast<const acc_t*>(of_pixels.data) + p.n * of_pixels.stride_n +
                     b * of_pixels.stride_b + (p.at[0] * map.size[3] + p.at[1]) * map.size[4] +
                     p.at[2];
  }
}

template <typename acc_t>
class BranchRowsCpu {
 public:
  BranchRowsCpu(const GatherParams& params, const RowOps<acc_t>& ops)
      : params_(params),
        sums_at_once_(can_sum_at_once(params)),
        alone_(branches_alone(params, sums_at_once_)),
        gather_(alone_, ops, sums_at_once_ ? GatherPart::kSum : GatherPart::kBranches) {
    for (int b = 0; b < params.num_branches; ++b) {
      const Branch& branch = params.branches[b];
      is_cat_ = is_cat_ || branch.map.size[1] != params.out.size[1];
      if (is_max_pool(branch)) pools_[b].emplace(branch, params.out, ops);
    }
  }
  BranchRowsCpu(const BranchRowsCpu&) = delete;  // gather_ refers to alone_
  BranchRowsCpu& operator=(const BranchRowsCpu&) = delete;

  struct Scratch {
    explicit Scratch(const BranchRowsCpu& rows) : gather(rows.gather_) {}
    typename GatherCpu<acc_t>::Scratch gather;
    typename MaxPoolCpu<acc_t>::Scratch pool;
  };

  bool is_cat() const { return is_cat_; }
  // Whether sum() is there, instead of single branches.
  bool sums_at_once() const { return sums_at_once_; }
  // How the result is walked: rows in chunks, a row in tiles, in pixels.
  int64_t rows_per_chunk() const { return gather_.rows_per_chunk(); }
  int64_t chunks_per_task() const { return gather_.chunks_per_task(); }
  int64_t tile() const { return gather_.tile(); }

  // Values that a pixel of a row has of one branch.
  int64_t channels(int b) const {
    return params_.out.channels_last ? params_.branches[b].map.size[1] : 1;
  }

  bool has_channel(int b, int64_t c) const {
    const Branch& branch = params_.branches[b];
    return c >= branch.channel_begin && c < branch.channel_begin + branch.map.size[1];
  }

  // Pixels are asked for in tiles of a row, or in whole rows of one channel that follow each other:
  // `columns` in all from p on, which begin with tile number `tile`. Values are dense.

  // The weighted sum of all branches.
  void sum(const Position& p, int64_t tile, int64_t columns, acc_t* to, Scratch& scratch) const {
    const bool whole = gather_.sums_planes() && is_plane(columns);
    for_each_row(p, columns, whole, [&](const Position& row, int64_t length, int64_t done) {
      gather_.sum_tile(row, tile, length, to + done, scratch.gather);
    });
  }

  // Where R_b(x_b) is: in the map itself, or written to `memory`.
  const acc_t* values(int b, const Position& p, int64_t tile, int64_t columns,
                      std::vector<acc_t>& memory, Scratch& scratch) const {
    const bool one_row = p.at[2] + columns <= params_.out.size[4];
    const acc_t* in_place =
        pools_[b] || !(one_row || gather_.is_dense(b)) ? nullptr : gather_.row_in_place(b, p);
    if (in_place) return in_place;
    acc_t* to = room(memory, columns * channels(b));
    write(b, p, tile, columns, to, scratch);
    return to;
  }

  // channels_last: where the pixels of a tile are, each one of a source row's, which index[k]
  // tells; values() has them one after the other. Of other branches index is null.
  PickedPixels<acc_t> picked(int b, const Position& p, int64_t tile, std::vector<acc_t>& memory,
                             Scratch& scratch) const {
    if (pools_[b]) return {nullptr, nullptr};
    return gather_.picked_pixels(b, p, tile, memory, scratch.gather);
  }

  // R_b(x_b).
  void write(int b, const Position& p, int64_t tile, int64_t columns, acc_t* to,
             Scratch& scratch) const {
    if (pools_[b] && !params_.out.channels_last && columns >= params_.out.size[4])
      return pools_[b]->rows(p, columns / params_.out.size[4], to, params_.index[b],
                             params_.wide_index[b], scratch.pool);
    const bool whole = gather_.takes_planes(b) && !pools_[b] && is_plane(columns);
    for_each_row(p, columns, whole, [&](const Position& row, int64_t length, int64_t done) {
      acc_t* values = to + done * channels(b);
      if (!pools_[b] && done >= length && gather_.repeats_row(b, row)) {
        std::copy_n(values - length, length, values);
      } else if (pools_[b]) {
        pools_[b]->row(row, length, values, params_.index[b], params_.wide_index[b], scratch.pool);
      } else {
        gather_.branch_row(b, row, tile, length, values, scratch.gather);
      }
    });
  }

 private:
  // Whether so many pixels of one channel are all that it has.
  bool is_plane(int64_t columns) const { return columns == plane_size(params_.out); }

  // Calls f(position, columns, those before) for the rows that the pixels from p on are in, or for
  // all of them as a whole.
  template <typename F>
  void for_each_row(const Position& p, int64_t columns, bool whole, F&& f) const {
    if (whole) return f(p, columns, 0);
    Position row = p;
    for (int64_t done = 0; done < columns;) {
      const int64_t length = std::min(columns - done, params_.out.size[4] - row.at[2]);
      f(row, length, done);
      done += length;
      row.at[2] = 0;
      ++row.at[1];
    }
  }

  // Whether GatherCpu adds up the branches by itself.
  static bool can_sum_at_once(const GatherParams& params) {
    for (int b = 0; b < params.num_branches; ++b) {
      const Branch& branch = params.branches[b];
      if (is_max_pool(branch) || branch.map.size[1] != params.out.size[1]) return false;
    }
    return params.reduction == Reduction::kSum && !params.pixel_weights.data &&
           !params.pixel_weight_grads &&
           !(params.out.channels_last && params.weights.stride_c != 0);
  }

  // The same branches, resampled and nothing else, or weighted.
  static GatherParams branches_alone(const GatherParams& params, bool weighted) {
    GatherParams alone{};
    alone.num_branches = params.num_branches;
    alone.dense = true;
    if (weighted) alone.weights = params.weights;
    alone.out = params.out;
    alone.out.dtype = kSumType<acc_t>;
    for (int b = 0; b < params.num_branches; ++b) {
      alone.branches[b] = params.branches[b];
      if (!is_max_pool(params.branches[b])) continue;
      // MaxPoolCpu reads this one; GatherCpu is given axes that it knows.
      for (Axis& axis : alone.branches[b].axis)
        axis = make_axis(Mode::kNearest, axis.in_size, axis.out_size, 0.0);
    }
    return alone;
  }

  const GatherParams& params_;
  const bool sums_at_once_;
  const GatherParams alone_;
  const GatherCpu<acc_t> gather_;
  std::optional<MaxPoolCpu<acc_t>> pools_[kMaxBranches];
  bool is_cat_ = false;
};

}  // namespace msr
