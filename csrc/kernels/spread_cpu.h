// spread on the CPU: the gradients of all branches from one map, by gathering. Any strides, rank,
// element types and taps.
//
// Each branch is written row by row, a row in tiles. Per tile the rows of the incoming gradient are
// first combined over batch, depth and height, then along the width. The unit of threading, and of
// the sums for the weights' gradients, is the same share of every branch's rows, so that branches
// find the gradient's rows in the cache; units depend on the sizes alone, so results do not depend
// on the number of threads.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "rows_cpu.h"
#include "tables_cpu.h"

namespace msr {

template <typename acc_t>
class SpreadCpu {
 public:
  SpreadCpu(const SpreadParams& params, const RowOps<acc_t>& ops)
      : params_(params), ops_(ops), grad_element_(element_size(params.grad.dtype)) {
    for (int i = 0; i < kDims; ++i) grad_stride_[i] = params.grad.stride[i] * grad_element_;
    targets_.reserve(params.num_branches);  // taps point into them
    int64_t work = numel(params.grad), fewest_rows = -1, widest = 1;
    for (int b = 0; b < params.num_branches; ++b) {
      const Map& map = params.branches[b].map;
      if ((!map.data && !params.inputs[b]) || numel(map) == 0) continue;
      add_target(b);
      const Rows& rows = targets_.back().rows;
      work = std::max(work, numel(map));
      fewest_rows = fewest_rows < 0 ? rows.count : std::min(fewest_rows, rows.count);
      if (map.channels_last) {
        widest =
            std::max({widest, rows.channels * rows.width, rows.channels * params.grad.size[4]});
      }
    }
    if (targets_.empty()) return;
    // Neighbouring units both read the gradient's rows at their border, so no unit is too small.
    units_ = std::max<int64_t>(
        1, std::min(ceil_div(work, kUnit), ceil_div(fewest_rows, int64_t{kRowsPerUnit})));
    tiles_ = ceil_div(widest, kTile);
    partial_dots_.resize(static_cast<size_t>(units_) * kMaxInputs, 0.0);
  }

  int64_t num_units() const { return units_; }

  // Writes units [begin, end).
  void run(int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t unit = begin; unit < end; ++unit) {
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        for (const Target& target : targets_) run_tile(target, unit, tile, scratch);
      }
    }
  }

  // <R_b^T(gate * grad), x_b>, summed in the order of the units, once all of them have run.
  double dot_of(int b) const {
    double sum = 0;
    for (int64_t unit = 0; unit < units_; ++unit) sum += partial_dots_[unit * kMaxInputs + b];
    return sum;
  }

 private:
  static constexpr int64_t kUnit = 16384;     // elements of the larger side
  static constexpr int64_t kRowsPerUnit = 4;  // of the branch with the fewest rows
  static constexpr int64_t kTile = 2048;      // elements of the widest row
  // Rows are combined several at a time before any is resampled along the width: what was just
  // stored cannot be loaded at once in other portions.
  static constexpr int kRowsAtOnce = 4;
  static constexpr Finish kKeep{nullptr, nullptr, false,
                                sizeof(acc_t) == 4 ? DType::kFloat32 : DType::kFloat64};

  using Table = std::optional<TapTable<acc_t>>;

  // A branch that is written. Tables are empty for axes that keep their size.
  struct Target {
    int branch;
    const Map& map;
    Rows rows;
    acc_t factor;
    int64_t channel_begin;
    bool over_batch;  // it was broadcast over the batch
    Table depth{}, height{}, width{};
    Taps<acc_t> taps{};  // of the width
    // How the row operations walk the gradient's rows: as one long run, pixel by pixel, or only
    // after they were copied.
    bool one_run = false, walkable = false;
    bool dense_rows = false;  // it is not resampled, and all rows of an image are one run
  };

  struct Scratch {
    std::vector<acc_t> rows[kRowsAtOnce];  // columns of the gradient, combined
    std::vector<acc_t> sum;  // of the tile, where it is wanted before it is scaled and rounded
    int32_t count;           // of the rows that are combined:
    std::vector<const void*> taps;  // where they are,
    std::vector<acc_t> weights;
    std::vector<const uint8_t*> gates;
    std::vector<int64_t> bit_offsets;  // and where their bits begin in the gate
    std::vector<uint8_t> bits;         // of gates that begin within a byte
    std::vector<acc_t> copies;         // of rows that the row operations cannot walk
  };

  // The i-th row that is combined. Vector loads may reach beyond both of its ends.
  static acc_t* row_of(Scratch& scratch, int64_t i, int64_t length) {
    constexpr int32_t kPadding = TapTable<acc_t>::kPadding;
    return room(scratch.rows[i], length + 2 * kPadding) + kPadding;
  }

  void add_target(int b) {
    const Branch& branch = params_.branches[b];
    const Map &map = branch.map, &grad = params_.grad;
    const acc_t factor = params_.weights ? static_cast<const acc_t*>(params_.weights)[b] : acc_t(1);
    const bool over_batch = map.size[0] != grad.size[0];
    targets_.push_back({b, map, Rows(map), factor, branch.channel_begin, over_batch});
    Target& t = targets_.back();
    const auto make = [&](Table& table, int axis) {
      if (branch.axis[axis].rule != Rule::kIdentity) table.emplace(branch.axis[axis], true);
    };
    make(t.depth, 0);
    make(t.height, 1);
    make(t.width, 2);
    if (t.width) {
      if (!map.channels_last) t.width->prepare_blocks(ops_.lanes, ops_.can_look_up);
      t.taps = t.width->view();
    }
    const Stretch pixels{grad.size[4], t.rows.channels, grad.stride[4], grad.stride[1]};
    const bool dense = pixels.channels == 1 || pixels.column_stride == pixels.channels;
    // Bits of the gate are in the order of the dense gradient.
    const bool all_channels = !grad.channels_last || map.size[1] == grad.size[1];
    t.one_run = dense && (!params_.gate || all_channels);
    const bool whole_bytes = grad.channels_last && grad.size[1] % 8 == 0 &&
                             branch.channel_begin % 8 == 0 && map.size[1] % 8 == 0;
    t.walkable =
        pixels.is_vectorizable() &&
        (!params_.gate || (grad.channels_last == map.channels_last && (t.one_run || whole_bytes)));
    t.dense_rows = t.walkable && is_identity(branch) && !t.over_batch && !params_.inputs[b] &&
                   !map.channels_last && grad.stride[3] == grad.size[4] &&
                   grad.stride[2] == grad.size[3] * grad.stride[3] &&
                   grad.stride[1] == grad.size[2] * grad.stride[2];
  }

  // The branch's rows of the unit, its columns of the tile.
  void run_tile(const Target& t, int64_t unit, int64_t tile, Scratch& scratch) {
    const Rows& rows = t.rows;
    const int64_t first = rows.count * unit / units_, last = rows.count * (unit + 1) / units_;
    // Along the width of one channel there is one tile: blocks of lanes begin at column 0.
    if (!t.map.channels_last && tile > 0) return;
    const int64_t tiles = t.map.channels_last ? tiles_ : 1;
    const auto begin = static_cast<int32_t>(rows.width * tile / tiles);
    const auto end = static_cast<int32_t>(rows.width * (tile + 1) / tiles);
    if (first == last || begin == end) return;
    const Range source = t.width ? t.width->range(begin, end) : Range{begin, end};
    Position p = position_of(t.map, first * rows.width * rows.channels);
    p.at[2] = begin;
    const int64_t columns = end - begin, stride = rows.width * rows.channels;
    int64_t offset = first * stride + begin * rows.channels;
    if (!t.width) {
      for (int64_t row = first; row < last;) {
        const int64_t together = t.dense_rows ? rows_together(t, p, row, last) : 1;
        write_row(t, p, source, columns * together, offset, unit, nullptr, scratch);
        row += together;
        offset += together * stride;
        for (int64_t i = 0; i < together; ++i) next_row(t.map, p);
      }
      return;
    }
    for (int64_t row = first; row < last; row += kRowsAtOnce) {
      const int64_t count = std::min<int64_t>(kRowsAtOnce, last - row);
      Position q = p;
      for (int64_t i = 0; i < count; ++i) {
        const acc_t factor = params_.inputs[t.branch] ? acc_t(1) : t.factor;
        list_taps(t, q, source, factor, scratch);
        const int64_t length = (source.end - source.begin) * rows.channels;
        combine_rows(t, source.end - source.begin, row_of(scratch, i, length), kKeep, scratch);
        next_row(t.map, q);
      }
      for (int64_t i = 0; i < count; ++i) {
        write_row(t, p, source, columns, offset, unit, row_of(scratch, i, 0), scratch);
        offset += stride;
        next_row(t.map, p);
      }
    }
  }

  // How many rows from `row` on, up to `last`, are one run in the gradient: those of the image.
  static int64_t rows_together(const Target& t, const Position& p, int64_t row, int64_t last) {
    const int64_t per_plane = t.map.size[2] * t.map.size[3];
    const int64_t within = p.at[0] * t.map.size[3] + p.at[1];
    return std::min(last - row, (t.map.size[1] - p.c) * per_plane - within);
  }

  // combined: null, or the gradient's rows that the row at p reads, combined.
  void write_row(const Target& t, const Position& p, Range source, int64_t columns, int64_t offset,
                 int64_t unit, const acc_t* combined, Scratch& scratch) {
    void* to = t.map.data ? advance(t.map.data, t.map.dtype, offset) : nullptr;
    const Finish plain{nullptr, nullptr, false, t.map.dtype};
    if (!params_.inputs[t.branch]) {
      apply(t, p, source, columns, combined, t.factor, to, plain, scratch);
      return;
    }
    // The weight's gradient takes the sums before they are scaled.
    const int64_t length = columns * t.rows.channels;
    acc_t* sum = room(scratch.sum, length);
    apply(t, p, source, columns, combined, acc_t(1), sum, kKeep, scratch);
    partial_dots_[unit * kMaxInputs + t.branch] += dot(t, p, columns, sum);
    if (to) {
      const void* values = sum;
      ops_.combine({to, nullptr, nullptr, &values, nullptr, &t.factor, 1, kKeep.dtype, 1, length,
                    length, 0, plain});
    }
  }

  // to = factor * R_b^T(gate * grad) for the columns of the row at p.
  void apply(const Target& t, const Position& p, Range source, int64_t columns,
             const acc_t* combined, acc_t factor, void* to, const Finish& how,
             Scratch& scratch) const {
    const int64_t channels = t.rows.channels;
    if (!t.width) {
      list_taps(t, p, source, factor, scratch);
      combine_rows(t, columns, to, how, scratch);
    } else if (!t.map.channels_last) {
      ops_.along_row({to, nullptr, nullptr, combined - source.begin, kKeep.dtype, &t.taps, p.at[2],
                      columns, how});
    } else {
      const PixelSource<acc_t> row{combined - source.begin * channels, channels, &t.taps, acc_t(1)};
      const PixelSlice<acc_t> slice{&row,  1,    t.width->max_count(), channels, kKeep.dtype,
                                    false, false};
      ops_.along_pixels({to, nullptr, &slice, 1, p.at[2], columns, how});
    }
  }

  // The gradient's rows that the row at p reads, with their weights, from column source.begin on.
  void list_taps(const Target& t, const Position& p, Range source, acc_t factor,
                 Scratch& scratch) const {
    const int64_t n_begin = t.over_batch ? 0 : p.n;
    const int64_t n_end = t.over_batch ? params_.grad.size[0] : p.n + 1;
    const int32_t first_d = t.depth ? t.depth->first(p.at[0]) : p.at[0];
    const int32_t first_h = t.height ? t.height->first(p.at[1]) : p.at[1];
    const int32_t count_d = t.depth ? t.depth->count(p.at[0]) : 1;
    const int32_t count_h = t.height ? t.height->count(p.at[1]) : 1;
    const acc_t* weights_h = t.height ? t.height->weights(p.at[1]) : nullptr;
    const int64_t most = (n_end - n_begin) * count_d * count_h;
    const void** taps = room(scratch.taps, most);
    acc_t* weights = room(scratch.weights, most);
    int64_t* bit_offsets = params_.gate ? room(scratch.bit_offsets, most) : nullptr;
    const int64_t c = p.c + t.channel_begin;
    const char* data = static_cast<const char*>(params_.grad.data) + c * grad_stride_[1] +
                       source.begin * grad_stride_[4];
    int32_t count = 0;
    for (int64_t n = n_begin; n < n_end; ++n) {
      for (int32_t d = first_d; d < first_d + count_d; ++d) {
        const acc_t weight = t.depth ? factor * t.depth->weights(p.at[0])[d - first_d] : factor;
        for (int32_t h = first_h; h < first_h + count_h; ++h, ++count) {
          taps[count] = data + n * grad_stride_[0] + d * grad_stride_[2] + h * grad_stride_[3];
          weights[count] = weights_h ? weight * weights_h[h - first_h] : weight;
          if (bit_offsets) bit_offsets[count] = offset_of(params_.grad, n, c, d, h, source.begin);
        }
      }
    }
    scratch.count = count;
  }

  // to = `columns` pixels of the listed rows, gated and combined.
  void combine_rows(const Target& t, int64_t columns, void* to, const Finish& how,
                    Scratch& scratch) const {
    const Map& grad = params_.grad;
    const Stretch stretch{columns, t.rows.channels, grad.stride[4], grad.stride[1]};
    const int64_t length = stretch.numel();
    if (scratch.count == 0) {  // nothing reads this row: zero times a row of zeros
      acc_t* zeros = room(scratch.copies, length);
      std::fill_n(zeros, length, acc_t(0));
      *room(scratch.taps, 1) = zeros;
      *room(scratch.weights, 1) = acc_t(0);
      scratch.count = 1;
      combine_dense(to, how, length, scratch);
      return;
    }
    if (!t.walkable || !takes<acc_t>(grad.dtype, how.dtype)) {
      copy_rows(stretch, scratch);
      combine_dense(to, how, length, scratch);
      return;
    }
    if (params_.gate) {
      const int64_t bytes = ceil_div(length, 8);
      uint8_t* bits = room(scratch.bits, scratch.count * bytes);
      const uint8_t** gates = room(scratch.gates, scratch.count);
      for (int32_t i = 0; i < scratch.count; ++i)
        gates[i] = aligned_bits(params_.gate, scratch.bit_offsets[i], length, bits + i * bytes);
    }
    const int64_t runs = t.one_run ? 1 : columns;
    const int64_t channels = t.one_run ? length : stretch.channels;
    ops_.combine({to, nullptr, nullptr, scratch.taps.data(),
                  params_.gate ? scratch.gates.data() : nullptr, scratch.weights.data(),
                  scratch.count, grad.dtype, runs, channels,
                  t.one_run ? length : stretch.column_stride, grad.size[1] / 8, how});
  }

  // The same for listed rows that are dense and of the accumulation type.
  void combine_dense(void* to, const Finish& how, int64_t length, const Scratch& scratch) const {
    ops_.combine({to, nullptr, nullptr, scratch.taps.data(), nullptr, scratch.weights.data(),
                  scratch.count, kKeep.dtype, 1, length, length, 0, how});
  }

  // Replaces the listed rows, of any strides and types, by dense copies behind the gate, whatever
  // the order of its bits.
  void copy_rows(const Stretch& stretch, Scratch& scratch) const {
    const Map& grad = params_.grad;
    const int64_t length = stretch.numel();
    const int64_t channel_bits =
        grad.channels_last ? 1 : grad.size[2] * grad.size[3] * grad.size[4];
    const int64_t column_bits = grad.channels_last ? grad.size[1] : 1;
    acc_t* copy = room(scratch.copies, scratch.count * length);
    for (int32_t i = 0; i < scratch.count; ++i) {
      copy_stretch(copy, scratch.taps[i], grad.dtype, stretch);
      scratch.taps[i] = copy;
      for (int64_t k = 0; k < stretch.columns && params_.gate; ++k) {
        for (int64_t c = 0; c < stretch.channels; ++c) {
          const int64_t bit = scratch.bit_offsets[i] + k * column_bits + c * channel_bits;
          if (!mask_bit(params_.gate, bit)) copy[k * stretch.channels + c] = acc_t(0);
        }
      }
      copy += length;
    }
  }

  // <sum, x_b> over the columns of the row at p.
  double dot(const Target& t, const Position& p, int64_t columns, const acc_t* sum) const {
    const int64_t (&stride)[kDims] = params_.input_stride[t.branch];
    double result = 0;
    with_type(params_.inputs[t.branch], params_.input_dtype[t.branch], [&](const auto* data) {
      data += p.n * stride[0] + p.c * stride[1] + p.at[0] * stride[2] + p.at[1] * stride[3] +
              p.at[2] * stride[4];
      for (int64_t k = 0; k < columns; ++k) {
        for (int64_t c = 0; c < t.rows.channels; ++c) {
          result +=
              static_cast<double>(*sum++) * widen<double>(data[k * stride[4] + c * stride[1]]);
        }
      }
    });
    return result;
  }

  const SpreadParams& params_;
  const RowOps<acc_t>& ops_;
  const int64_t grad_element_;  // bytes
  int64_t grad_stride_[kDims];  // bytes
  int64_t units_ = 0, tiles_ = 1;
  std::vector<Target> targets_;
  std::vector<double> partial_dots_;
};

}  // namespace msr
