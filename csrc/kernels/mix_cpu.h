// gather on the CPU for what the row operations cannot finish by themselves: weights per channel of
// channels_last maps or per pixel, maxima, max-pooled branches, all activations and their
// derivatives, results in a caller's memory.
//
// Branches are resampled into tiles that stay in the first-level cache, all of a sum at once if
// that is all it takes; there they are weighted, reduced and finished, in the result's own memory
// where that holds such values. Chunks of rows are the unit of threading.
#pragma once

#include <algorithm>
#include <vector>

#include "branch_rows_cpu.h"

namespace msr {

// Whether a call takes MixCpu; GatherCpu does the others.
inline bool needs_mixing(const GatherParams& params) {
  if (params.reduction != Reduction::kSum || params.activation > Activation::kRelu ||
      params.pixel_weights.data || params.grad || params.accumulate || !params.dense ||
      (params.gate && params.gate_off != 0) ||
      (params.out.channels_last && params.weights.stride_c != 0))
    return true;
  for (int b = 0; b < params.num_branches; ++b)
    if (is_max_pool(params.branches[b])) return true;
  return false;
}

template <typename acc_t>
class MixCpu {
 public:
  MixCpu(const GatherParams& params, const RowOps<acc_t>& ops)
      : params_(params), ops_(ops), rows_(params.out), branches_(params, ops) {}

  // A thread's memory between rows.
  struct Scratch {
    explicit Scratch(const MixCpu& mix) : branches(mix.branches_) {}
    typename BranchRowsCpu<acc_t>::Scratch branches;
    std::vector<acc_t> total;                 // the tile
    std::vector<acc_t> value;                 // one branch's,
    std::vector<acc_t> values[kMaxBranches];  // or each one's
    std::vector<acc_t> copy;                  // of a map of the result's size
    std::vector<uint8_t> passes;              // bits of the activation
    std::vector<uint8_t> wins[kMaxBranches];  // where a branch is larger than those before it
  };

  int64_t num_chunks() const { return ceil_div(rows_.count, branches_.rows_per_chunk()); }
  int64_t chunks_per_task() const { return branches_.chunks_per_task(); }

  // Writes the rows of chunks [begin, end).
  void run(int64_t begin, int64_t end, Scratch& scratch) const {
    const Map& out = params_.out;
    const int64_t per_chunk = branches_.rows_per_chunk();
    const int64_t last = std::min(rows_.count, end * per_chunk);
    int64_t offset = begin * per_chunk * rows_.width * rows_.channels;
    Position p = position_of(out, offset);
    for (int64_t row = begin * per_chunk; row < last;) {
      // Short rows of a channel are finished together, but those of a chunk alone: which rows a
      // thread does may not show in a bit.
      const int64_t chunk_end = std::min(last, (row / per_chunk + 1) * per_chunk);
      const int64_t rest = std::min(chunk_end - row, out.size[3] - p.at[1]);
      const int64_t rows = params_.dense && !out.channels_last
                               ? std::clamp<int64_t>(branches_.tile() / rows_.width, 1, rest)
                               : 1;
      if (rows > 1) {
        run_tile(p, 0, rows * rows_.width, offset, scratch);
        offset += rows * rows_.width;
        p.at[1] += static_cast<int32_t>(rows - 1);
        next_row(out, p);
        row += rows;
        continue;
      }
      for (int64_t tile = 0; p.at[2] < rows_.width; ++tile) {
        const int64_t columns = std::min(branches_.tile(), rows_.width - p.at[2]);
        run_tile(p, tile, columns, offset, scratch);
        offset += columns * rows_.channels;
        p.at[2] += static_cast<int32_t>(columns);
      }
      p.at[2] = 0;
      next_row(out, p);
      ++row;
    }
    if (params_.mask && last == rows_.count) {
      // Masks end with a whole 32-bit word, as warps write them: no bit may stay unwritten.
      const int64_t total = numel(out);
      for (int b = 0; b < (is_max() ? params_.num_branches : 1); ++b) {
        uint8_t* mask = params_.mask + b * params_.mask_stride;
        std::fill(mask + ceil_div(total, 8), mask + 4 * ceil_div(total, 32), uint8_t{0});
      }
    }
  }

 private:
  static constexpr int64_t kMaxLanes = 16;
  static_assert(kMaxBranches <= kMostTerms);

  bool is_max() const { return params_.reduction == Reduction::kMax; }

  // The tile of pixels from p on, which begins at element `offset` of a dense result.
  void run_tile(const Position& p, int64_t tile, int64_t columns, int64_t offset,
                Scratch& scratch) const {
    const int64_t length = columns * rows_.channels;
    const Map& out = params_.out;
    // In the result itself where that holds such values.
    const bool in_place = params_.dense && out.dtype == kSumType<acc_t> && !params_.accumulate;
    acc_t* total = in_place ? static_cast<acc_t*>(out.data) + offset : room(scratch.total, length);
    if (branches_.is_cat()) {
      concatenate(p, tile, columns, total, scratch);
    } else if (is_max()) {
      maximum(p, tile, columns, total, scratch);
    } else {
      sum(p, tile, columns, total, scratch);
    }
    if (params_.accumulate) {
      const acc_t* before = pixels_of(out.data, out.dtype, out.stride, p, columns, scratch);
      ops_.weigh({total, before, acc_t(1), nullptr, nullptr, 1, length, true});
    }
    if (params_.gate) {
      uint8_t* bits = room(scratch.passes, ceil_div(length, 8));
      ops_.gate(total, aligned_bits(params_.gate, offset, length, bits),
                static_cast<acc_t>(params_.gate_off), length);
    }
    if (params_.grad) {
      const acc_t* grad =
          pixels_of(params_.grad, params_.grad_dtype, params_.grad_stride, p, columns, scratch);
      ops_.differentiate(params_.activation, total, grad, length);
    } else {
      const bool saves = params_.mask && has_bit_derivative(params_.activation);
      // Whole vectors of bits are written.
      const bool in_mask = saves && !is_max() && offset % 8 == 0 && length % kMaxLanes == 0;
      uint8_t* bits = in_mask ? params_.mask + offset / 8
                      : saves ? room(scratch.passes, length / 8 + kMaxLanes)
                              : nullptr;
      ops_.activate(params_.activation, total, length, bits);
      if (params_.mask && !in_mask) place_masks(offset, length, bits, scratch);
    }
    if (!in_place) store(p, columns, offset, total);
  }

  void sum(const Position& p, int64_t tile, int64_t columns, acc_t* total, Scratch& scratch) const {
    if (branches_.sums_at_once()) return branches_.sum(p, tile, columns, total, scratch.branches);
    const Weights& weights = params_.weights;
    const PixelWeights& of_pixels = params_.pixel_weights;
    if (params_.num_branches == 1 && !weights.has(0) && !of_pixels.has(0))
      return branches_.write(0, p, tile, columns, total, scratch.branches);
    WeighArgs<acc_t> terms[kMaxBranches];
    for (int b = 0; b < params_.num_branches; ++b) {
      std::vector<acc_t>& memory = scratch.values[b];
      const PickedPixels<acc_t> picked = branches_.picked(b, p, tile, memory, scratch.branches);
      const acc_t* value = picked.index
                               ? picked.row
                               : branches_.values(b, p, tile, columns, memory, scratch.branches);
      terms[b] = {total,   value,          acc_t(1), nullptr,     nullptr,
                  columns, rows_.channels, false,    picked.index};
      set_factors(terms[b], weights, of_pixels, b, p, params_.out);
    }
    ops_.weigh_sum(terms, params_.num_branches);
  }

  void maximum(const Position& p, int64_t tile, int64_t columns, acc_t* total,
               Scratch& scratch) const {
    const int64_t length = columns * rows_.channels, bytes = length / 8 + kMaxLanes;
    if (params_.mask) std::fill_n(room(scratch.wins[0], bytes), bytes, uint8_t{0xff});
    if (params_.num_branches == 1)
      return branches_.write(0, p, tile, columns, total, scratch.branches);
    const auto values = [&](int b, std::vector<acc_t>& memory) {
      return branches_.values(b, p, tile, columns, memory, scratch.branches);
    };
    const acc_t* best = values(0, scratch.copy);
    for (int b = 1; b < params_.num_branches; ++b) {
      uint8_t* wins = params_.mask ? room(scratch.wins[b], bytes) : nullptr;
      ops_.maximum(total, best, values(b, scratch.value), length, wins);
      best = total;
    }
  }

  void concatenate(const Position& p, int64_t tile, int64_t columns, acc_t* total,
                   Scratch& scratch) const {
    for (int b = 0; b < params_.num_branches; ++b) {
      const int64_t channels = branches_.channels(b);
      if (!params_.out.channels_last) {
        if (branches_.has_channel(b, p.c))
          branches_.write(b, p, tile, columns, total, scratch.branches);
        continue;
      }
      if (channels == 0) continue;
      acc_t* value = room(scratch.value, columns * channels);
      branches_.write(b, p, tile, columns, value, scratch.branches);
      acc_t* to = total + params_.branches[b].channel_begin;
      for (int64_t k = 0; k < columns; ++k)
        std::copy_n(value + k * channels, channels, to + k * rows_.channels);
    }
  }

  // Pixels from p on of a map of the result's size, of the accumulation type.
  const acc_t* pixels_of(const void* data, DType dtype, const int64_t (&stride)[kDims],
                         const Position& p, int64_t columns, Scratch& scratch) const {
    const Stretch whole{columns, rows_.channels, stride[4], stride[1]};
    const int64_t in_row = rows_.width - p.at[2];
    if (columns <= in_row || (stride[3] == rows_.width * stride[4]))
      return loaded(scratch.copy, advance(data, dtype, offset_in(stride, p)), dtype, whole, ops_);
    acc_t* to = room(scratch.copy, whole.numel());
    Position row = p;
    for (int64_t done = 0; done < columns; done += rows_.width, ++row.at[1])
      load_stretch(to + done, advance(data, dtype, offset_in(stride, row)), dtype,
                   {rows_.width, 1, stride[4], stride[1]}, ops_);
    return to;
  }

  void place_masks(int64_t offset, int64_t length, const uint8_t* passes, Scratch& scratch) const {
    if (!is_max()) {
      place_bits(params_.mask, offset, passes, length);
      return;
    }
    // What a later branch took is not a branch's own. The derivative of a leaky ReLU does not
    // vanish, so its bits say nothing here.
    const bool gates = passes && params_.activation != Activation::kLeakyRelu;
    const int64_t bytes = ceil_div(length, 8);
    for (int b = 0; b < params_.num_branches; ++b) {
      uint8_t* wins = scratch.wins[b].data();
      for (int64_t i = 0; i < bytes; ++i) {
        for (int later = b + 1; later < params_.num_branches; ++later)
          wins[i] = static_cast<uint8_t>(wins[i] & ~scratch.wins[later][i]);
        if (gates) wins[i] = static_cast<uint8_t>(wins[i] & passes[i]);
      }
      place_bits(params_.mask + b * params_.mask_stride, offset, wins, length);
    }
  }

  void store(const Position& p, int64_t columns, int64_t offset, const acc_t* total) const {
    const Map& out = params_.out;
    const int64_t length = columns * rows_.channels;
    const Finish how{nullptr, nullptr, false, out.dtype};
    if (params_.dense)
      return store_run(ops_, total, length, advance(out.data, out.dtype, offset), how);
    void* to = advance(out.data, out.dtype, offset_in(out.stride, p));
    const Stretch stretch{columns, rows_.channels, out.stride[4], out.stride[1]};
    if (!stretch.is_vectorizable()) return store_stretch(to, out.dtype, stretch, total);
    if (rows_.channels == 1) return store_run(ops_, total, length, to, how);
    for (int64_t k = 0; k < columns; ++k)
      store_run(ops_, total + k * rows_.channels, rows_.channels,
                advance(to, out.dtype, k * stretch.column_stride), how);
  }

  const GatherParams& params_;
  const RowOps<acc_t>& ops_;
  const Rows rows_;
  const BranchRowsCpu<acc_t> branches_;
};

}  // namespace msr
