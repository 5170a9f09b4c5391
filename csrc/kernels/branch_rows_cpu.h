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
  if (weights.has(b) && weights.stride_c != 0 && map.channels_last) {
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
      : params_(params), alone_(branches_alone(params)), gather_(alone_, ops, true) {
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
  // How the result is walked: rows in chunks, a row in tiles, in pixels.
  int64_t rows_per_chunk() const { return gather_.rows_per_chunk(); }
  int64_t tile() const { return gather_.tile(); }

  // Values that a pixel of a row has of one branch.
  int64_t channels(int b) const {
    return params_.out.channels_last ? params_.branches[b].map.size[1] : 1;
  }

  bool has_channel(int b, int64_t c) const {
    const Branch& branch = params_.branches[b];
    return c >= branch.channel_begin && c < branch.channel_begin + branch.map.size[1];
  }

  // R_b(x_b) for the `columns` pixels from p on, which are tile number `tile` of the row: dense.
  void write(int b, const Position& p, int64_t tile, int64_t columns, acc_t* to,
             Scratch& scratch) const {
    if (pools_[b]) {
      pools_[b]->row(p, columns, to, params_.index[b], params_.wide_index[b], scratch.pool);
    } else {
      gather_.branch_row(b, p, tile, columns, to, scratch.gather);
    }
  }

 private:
  // The same branches, resampled and nothing else.
  static GatherParams branches_alone(const GatherParams& params) {
    GatherParams alone{};
    alone.num_branches = params.num_branches;
    alone.dense = true;
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
  const GatherParams alone_;
  const GatherCpu<acc_t> gather_;
  std::optional<MaxPoolCpu<acc_t>> pools_[kMaxBranches];
  bool is_cat_ = false;
};

}  // namespace msr
