// The gradients of pixel weights on the CPU: sum over the channels of gate * grad * w_i * R_i(x_i),
// for every branch and pixel of the result.
//
// A few rows of an image are the unit of threading: their sums stay in the cache while the channels
// pass by.
#pragma once

#include <algorithm>
#include <vector>

#include "branch_rows_cpu.h"

namespace msr {

template <typename acc_t>
class PixelWeightGradsCpu {
 public:
  PixelWeightGradsCpu(const GatherParams& params, const RowOps<acc_t>& ops)
      : params_(params),
        ops_(ops),
        branches_(params, ops),
        units_per_depth_(ceil_div(params.out.size[3], kRows)) {}

  int64_t num_units() const {
    const Map& out = params_.out;
    return numel(out) > 0 ? out.size[0] * out.size[2] * units_per_depth_ : 0;
  }

  // Writes units [begin, end).
  void run(int64_t begin, int64_t end) const {
    const Map& out = params_.out;
    Scratch scratch(branches_);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / units_per_depth_;
      const int64_t first = unit % units_per_depth_ * kRows;
      const int64_t last = std::min(out.size[3], first + kRows);
      const int64_t n = image / out.size[2], d = image % out.size[2];
      for (int b = 0; b < params_.num_branches; ++b) add_up(b, n, d, first, last, scratch);
    }
  }

 private:
  static constexpr int64_t kRows = 8;

  struct Scratch {
    explicit Scratch(const BranchRowsCpu<acc_t>& rows) : branches(rows) {}
    typename BranchRowsCpu<acc_t>::Scratch branches;
    std::vector<acc_t> value, grad;
    std::vector<uint8_t> bits;
  };

  // Rows [first, last) of one branch's gradient.
  void add_up(int b, int64_t n, int64_t d, int64_t first, int64_t last, Scratch& scratch) const {
    const Map& out = params_.out;
    const int64_t width = out.size[4], pixels = out.size[2] * out.size[3] * width;
    acc_t* sums = static_cast<acc_t*>(params_.pixel_weight_grads) +
                  (n * params_.num_branches + b) * pixels + (d * out.size[3] + first) * width;
    std::fill_n(sums, (last - first) * width, acc_t(0));
    // In channels_last a row has all channels. Short rows of one channel are taken together.
    const int64_t passes = out.channels_last ? 1 : out.size[1];
    const bool dense_rows = params_.grad_stride[3] == width * params_.grad_stride[4];
    const int64_t together =
        out.channels_last || !dense_rows ? 1 : std::max<int64_t>(1, branches_.tile() / width);
    for (int64_t c = 0; c < passes; ++c) {
      for (int64_t h = first; h < last; h += together) {
        const int64_t rows = std::min(together, last - h);
        if (rows > 1) {
          const Position p{n, c, {static_cast<int32_t>(d), static_cast<int32_t>(h), 0}};
          add_tile(b, p, 0, rows * width, sums + (h - first) * width, scratch);
          continue;
        }
        for (int64_t tile = 0, w = 0; w < width; ++tile, w += branches_.tile()) {
          const int64_t columns = std::min(branches_.tile(), width - w);
          const Position p{
              n, c, {static_cast<int32_t>(d), static_cast<int32_t>(h), static_cast<int32_t>(w)}};
          add_tile(b, p, tile, columns, sums + (h - first) * width + w, scratch);
        }
      }
    }
  }

  void add_tile(int b, const Position& p, int64_t tile, int64_t columns, acc_t* sums,
                Scratch& scratch) const {
    const Map& out = params_.out;
    const int64_t channels = branches_.channels(b), length = columns * channels;
    const acc_t* value = branches_.values(b, p, tile, columns, scratch.value, scratch.branches);
    const int64_t (&stride)[kDims] = params_.grad_stride;
    const acc_t* grad =
        loaded(scratch.grad, advance(params_.grad, params_.grad_dtype, offset_in(stride, p)),
               params_.grad_dtype, {columns, channels, stride[4], stride[1]}, ops_);
    if (params_.gate) {
      const int64_t offset = offset_of(out, p.n, p.c, p.at[0], p.at[1], p.at[2]);
      uint8_t* bits = room(scratch.bits, ceil_div(length, 8));
      acc_t* gated = room(scratch.grad, length);
      if (grad != gated) std::copy_n(grad, length, gated);
      ops_.gate(gated, aligned_bits(params_.gate, offset, length, bits),
                static_cast<acc_t>(params_.gate_off), length);
      grad = gated;
    }
    // The products, weighted; in channels_last they are added up pixel by pixel.
    if (params_.weights.has(b)) {
      acc_t* weighted = room(scratch.value, length);
      WeighArgs<acc_t> args{weighted, value, acc_t(1), nullptr, nullptr, columns, channels, false};
      set_factors(args, params_.weights, {nullptr, 0, 0, 0}, b, p, out);
      ops_.weigh(args);
      value = weighted;
    }
    if (channels == 1) {
      ops_.weigh({sums, value, acc_t(1), nullptr, grad, columns, 1, true});
    } else {
      ops_.dot_pixels(grad, value, columns, channels, sums);
    }
  }

  const GatherParams& params_;
  const RowOps<acc_t>& ops_;
  const BranchRowsCpu<acc_t> branches_;
  const int64_t units_per_depth_;
};

}  // namespace msr
