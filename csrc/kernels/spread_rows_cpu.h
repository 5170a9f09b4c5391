// What all ways to a spread on the CPU share: the branches that are written; the rows of the
// gradient that theirs read: listed, copied, combined; the sums for the weights' gradients.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "branch_rows_cpu.h"

namespace msr {

template <typename acc_t>
class SpreadRowsCpu {
 public:
  using Table = std::shared_ptr<const TapTable<acc_t>>;

  static constexpr Finish kKeep{nullptr, nullptr, false, kSumType<acc_t>};
  // Rows are combined several at a time before any is resampled along the width: what was just
  // stored cannot be loaded at once in other portions.
  static constexpr int kRowsAtOnce = 4;
  static constexpr int32_t kMostAtOnce = 16;  // rows that are read side by side

  // How a branch is written.
  enum class Way {
    kTiles,   // row by row, each in tiles
    kPlanes,  // see spread_planes_cpu.h
    kPixels   // see spread_pixels_cpu.h
  };

  // A branch that is written. Tables are empty for axes that keep their size.
  struct Target {
    int branch;
    Map map;
    Rows rows;
    int64_t channel_begin;
    bool over_batch;  // it was broadcast over the batch
    bool extended;    // rows take more than a combination: image by image, by way of scratch
    const uint8_t* gate;
    bool wants_dots;
    std::optional<MaxPoolCpu<acc_t>> pool{};
    Table depth{}, height{}, width{};
    TapRows<acc_t> depth_rows{}, height_rows{};
    Taps<acc_t> taps{};  // of the width
    // How the row operations walk the gradient's rows: as one long run, pixel by pixel, or only
    // after they were copied.
    bool one_run = false, walkable = false;
    bool few_taps = false;      // channels_last: its few taps are read where they are
    bool dense_rows = false;    // it is not resampled, and all rows of an image are one run
    bool dense_inputs = false;  // so are those of the forward's values
    bool copied = false;        // it has the gradient's size
    Way way = Way::kTiles;
  };

  // A thread's memory between rows.
  struct Scratch {
    std::vector<acc_t> rows[kRowsAtOnce];  // columns of the gradient, combined
    std::vector<acc_t> sum;  // of the tile, where it is wanted before it is scaled and rounded
    int32_t count;           // of the rows that are combined:
    std::vector<const void*> taps;  // where they are,
    std::vector<acc_t> weights;
    std::vector<const uint8_t*> gates;
    std::vector<int64_t> bit_offsets;     // where their bits begin in the gate
    std::vector<const acc_t*> of_pixels;  // and the weights of their pixels
    std::vector<uint8_t> bits;            // of gates that begin within a byte
    std::vector<acc_t> copies;            // of rows that the row operations cannot walk
    std::vector<acc_t> block;             // sums of many rows
    std::vector<acc_t> image;             // one image's share of the tile
    std::vector<acc_t> input;             // the forward's values
    typename MaxPoolCpu<acc_t>::Scratch pool;
  };

  SpreadRowsCpu(const SpreadParams& params, const RowOps<acc_t>& ops)
      : params(params), ops(ops), grad_element_(element_size(params.grad.dtype)) {
    for (int i = 0; i < kDims; ++i) grad_stride_[i] = params.grad.stride[i] * grad_element_;
    targets.reserve(params.num_branches);  // taps point into them
    int64_t work = numel(params.grad), fewest_rows = -1;
    for (int b = 0; b < params.num_branches; ++b) {
      const Map& map = params.branches[b].map;
      if ((!map.data && !params.inputs[b]) || numel(map) == 0) continue;
      add_target(b);
      const Rows& rows = targets.back().rows;
      work = std::max(work, numel(map));
      fewest_rows = fewest_rows < 0 ? rows.count : std::min(fewest_rows, rows.count);
    }
    if (targets.empty()) return;
    // Neighbouring units both read the gradient's rows at their border, so no unit is too small.
    units = std::max<int64_t>(
        1, std::min(ceil_div(work, kUnit), ceil_div(fewest_rows, int64_t{kRowsPerUnit})));
    dots_.resize(static_cast<size_t>(units) * kMaxBranches);
  }
  SpreadRowsCpu(const SpreadRowsCpu&) = delete;

  const SpreadParams& params;
  const RowOps<acc_t>& ops;
  std::vector<Target> targets;
  int64_t units = 0;  // of threading, and of the sums for the weights' gradients

  int64_t groups_per_image() const {
    return params.weights.stride_c == 0 ? 1 : params.grad.size[1];
  }

  // The i-th row that is combined. Vector loads may reach beyond both of its ends.
  static acc_t* row_of(Scratch& scratch, int64_t i, int64_t length) {
    constexpr int32_t kPadding = TapTable<acc_t>::kPadding;
    return room(scratch.rows[i], length + 2 * kPadding) + kPadding;
  }

  // Rows of the gradient that one of the branch reads, at most.
  static int32_t most_rows(const Target& t) {
    return (t.depth ? t.depth->max_count() : 1) * (t.height ? t.height->max_count() : 1);
  }

  // Images of the gradient that a row of a branch reads.
  Range images_of(const Target& t, const Position& p) const {
    if (t.over_batch) return {0, static_cast<int32_t>(params.grad.size[0])};
    return {static_cast<int32_t>(p.n), static_cast<int32_t>(p.n + 1)};
  }

  // What the row at p is multiplied with as a whole, unless its weight's gradient takes the sums
  // before that.
  acc_t factor_of(const Target& t, const Position& p) const {
    return t.wants_dots ? acc_t(1) : weight_at(t, p);
  }
  acc_t weight_at(const Target& t, const Position& p) const {
    return weight_of<acc_t>(params.weights, t.branch, p.n, p.c + t.channel_begin);
  }

  // The rows of the given images of the gradient that the row at p reads, with their weights, from
  // column source.begin on.
  void list_taps(const Target& t, const Position& p, Range images, Range source, acc_t factor,
                 Scratch& scratch) const {
    const Range depth = t.depth_rows.of(p.at[0]), height = t.height_rows.of(p.at[1]);
    const acc_t* weights_d = t.depth_rows.weights_of(p.at[0]);
    const acc_t* weights_h = t.height_rows.weights_of(p.at[1]);
    begin_list(t,
               static_cast<int64_t>(images.end - images.begin) * (depth.end - depth.begin) *
                   (height.end - height.begin),
               scratch);
    const int64_t c = p.c + t.channel_begin;
    for (int64_t n = images.begin; n < images.end; ++n) {
      for (int32_t d = depth.begin; d < depth.end; ++d) {
        const acc_t weight = weights_d ? factor * weights_d[d - depth.begin] : factor;
        for (int32_t h = height.begin; h < height.end; ++h) {
          list_row(t, n, c, d, h, source.begin,
                   weights_h ? weight * weights_h[h - height.begin] : weight, scratch);
        }
      }
    }
  }

  // Makes the list of rows empty, with room for so many.
  void begin_list(const Target& t, int64_t most, Scratch& scratch) const {
    room(scratch.taps, most);
    room(scratch.weights, most);
    if (t.gate) room(scratch.bit_offsets, most);
    if (params.pixel_weights.has(t.branch)) room(scratch.of_pixels, most);
    scratch.count = 0;
  }

  // Lists a row of the gradient, from a column on.
  void list_row(const Target& t, int64_t n, int64_t c, int32_t d, int32_t h, int32_t column,
                acc_t weight, Scratch& scratch) const {
    const Map& grad = params.grad;
    const int32_t i = scratch.count++;
    scratch.taps[i] = static_cast<const char*>(grad.data) + n * grad_stride_[0] +
                      c * grad_stride_[1] + d * grad_stride_[2] + h * grad_stride_[3] +
                      column * grad_stride_[4];
    scratch.weights[i] = weight;
    if (t.gate) scratch.bit_offsets[i] = offset_of(grad, n, c, d, h, column);
    const PixelWeights& pixels = params.pixel_weights;
    if (pixels.has(t.branch)) {
      scratch.of_pixels[i] = static_cast<const acc_t*>(pixels.data) + n * pixels.stride_n +
                             t.branch * pixels.stride_b + (d * grad.size[3] + h) * grad.size[4] +
                             column;
    }
  }

  // to = `columns` pixels of the listed rows, gated and combined.
  void combine_rows(const Target& t, int64_t columns, void* to, const Finish& how,
                    Scratch& scratch) const {
    const Map& grad = params.grad;
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
      copy_rows(t, stretch, scratch);
      combine_dense(to, how, length, scratch);
      return;
    }
    if (t.gate) {
      const int64_t bytes = ceil_div(length, 8);
      uint8_t* bits = room(scratch.bits, scratch.count * bytes);
      const uint8_t** gates = room(scratch.gates, scratch.count);
      for (int32_t i = 0; i < scratch.count; ++i)
        gates[i] = aligned_bits(t.gate, scratch.bit_offsets[i], length, bits + i * bytes);
    }
    const int64_t runs = t.one_run ? 1 : columns;
    const int64_t channels = t.one_run ? length : stretch.channels;
    // One by one: a list would be cleared before, which short rows notice.
    CombineArgs<acc_t> args;
    args.to = to;
    args.base = nullptr;
    args.rows = scratch.taps.data();
    args.gates = t.gate ? scratch.gates.data() : nullptr;
    args.weights = scratch.weights.data();
    args.count = scratch.count;
    args.dtype = grad.dtype;
    args.columns = runs;
    args.channels = channels;
    args.row_stride = t.one_run ? length : stretch.column_stride;
    args.gate_stride = grad.size[1] / 8;
    args.finish = how;
    args.gate_off = static_cast<acc_t>(params.gate_off);
    if (scratch.count <= kMostAtOnce) return ops.combine(args);
    // More rows than a walk along all of them at once finds in the cache. They are added up in
    // blocks, and those in larger ones: a single long sum would lose digits.
    acc_t* block = room(scratch.block, 3 * length);
    acc_t *part = block + length, *total = part + length;
    args.to = block;
    args.finish = kKeep;
    const auto add = [&](acc_t* to, const acc_t* from, bool first) {
      ops.weigh({to, from, acc_t(1), nullptr, nullptr, 1, length, !first});
    };
    constexpr int32_t kPart = kMostAtOnce * kMostAtOnce;
    for (int32_t i = 0; i < scratch.count; i += kMostAtOnce) {
      args.rows = scratch.taps.data() + i;
      if (t.gate) args.gates = scratch.gates.data() + i;
      args.weights = scratch.weights.data() + i;
      args.count = std::min(kMostAtOnce, scratch.count - i);
      ops.combine(args);
      add(part, block, i % kPart == 0);
      const int32_t next = i + kMostAtOnce;
      if (next % kPart == 0 || next >= scratch.count) add(total, part, i < kPart);
    }
    store_run(ops, total, length, to, how);
  }

  // to = the sum of the listed rows, which are dense and of the accumulation type.
  void combine_dense(void* to, const Finish& how, int64_t length, const Scratch& scratch) const {
    ops.combine({to, nullptr, scratch.taps.data(), nullptr, scratch.weights.data(), scratch.count,
                 kKeep.dtype, 1, length, length, 0, how});
  }

  // Replaces the listed rows, of any strides and types, by dense ones behind the gate, times the
  // weights of their pixels.
  void copy_rows(const Target& t, const Stretch& stretch, Scratch& scratch) const {
    const int64_t length = stretch.numel();
    acc_t* copy = room(scratch.copies, scratch.count * length);
    for (int32_t i = 0; i < scratch.count; ++i, copy += length) {
      const int64_t bit = t.gate ? scratch.bit_offsets[i] : 0;
      const acc_t* row = gated(t, scratch.taps[i], bit, stretch, copy, scratch);
      scratch.taps[i] = row;
      if (!params.pixel_weights.has(t.branch)) continue;
      ops.weigh({copy, row, acc_t(1), nullptr, scratch.of_pixels[i], stretch.columns,
                 stretch.channels, false});
      scratch.taps[i] = copy;
    }
  }

  // A stretch of the gradient, dense and of the accumulation type, behind the branch's gate,
  // whatever the order of its bits, of which the first one is number `bit`: in place, or copied to
  // `memory`.
  const acc_t* gated(const Target& t, const void* from, int64_t bit, const Stretch& stretch,
                     acc_t* memory, Scratch& scratch) const {
    const Map& grad = params.grad;
    if (!t.gate) return loaded_to(memory, from, grad.dtype, stretch, ops);
    const int64_t length = stretch.numel();
    const int64_t channel_bits =
        grad.channels_last ? 1 : grad.size[2] * grad.size[3] * grad.size[4];
    const int64_t column_bits = grad.channels_last ? grad.size[1] : 1;
    const auto off = static_cast<acc_t>(params.gate_off);
    // The bits of a dense row lie one after the other.
    const bool in_order = stretch.channels == 1
                              ? column_bits == 1
                              : channel_bits == 1 && column_bits == stretch.channels;
    if (!in_order) {
      load_stretch(memory, from, grad.dtype, stretch, ops);
      acc_t* value = memory;
      for (int64_t k = 0; k < stretch.columns; ++k) {
        for (int64_t c = 0; c < stretch.channels; ++c, ++value) {
          if (!mask_bit(t.gate, bit + k * column_bits + c * channel_bits))
            *value = off == 0 ? acc_t(0) : off * *value;
        }
      }
      return memory;
    }
    const uint8_t* bits =
        aligned_bits(t.gate, bit, length, room(scratch.bits, ceil_div(length, 8)));
    if (stretch.is_dense() && takes<acc_t>(grad.dtype, kKeep.dtype)) {
      const acc_t one = 1;
      ops.combine(
          {memory, nullptr, &from, &bits, &one, 1, grad.dtype, 1, length, length, 0, kKeep, off});
    } else {
      load_stretch(memory, from, grad.dtype, stretch, ops);
      ops.gate(memory, bits, off, length);
    }
    return memory;
  }

  // Writes what apply(to, how) gives: `columns` pixels from p on, those at element `offset` of the
  // branch.
  template <typename F>
  void write(const Target& t, const Position& p, int64_t columns, int64_t offset, int64_t unit,
             Scratch& scratch, F&& apply) {
    if (!t.wants_dots) {
      if (t.map.data)
        apply(advance(t.map.data, t.map.dtype, offset), {nullptr, nullptr, false, t.map.dtype});
      return;
    }
    // The weight's gradient takes the sums before they are scaled.
    acc_t* sum = room(scratch.sum, columns * t.rows.channels);
    apply(sum, kKeep);
    write_weighted(t, p, columns, offset, sum, unit, scratch);
  }

  // The same of sums, dense and of the accumulation type, of a branch with a weight.
  void write_weighted(const Target& t, const Position& p, int64_t columns, int64_t offset,
                      const acc_t* sum, int64_t unit, Scratch& scratch) {
    add_dots(t, p, p.n, columns, sum, unit, scratch);
    if (!t.map.data) return;
    store_run(ops, sum, columns * t.rows.channels, advance(t.map.data, t.map.dtype, offset),
              {nullptr, nullptr, false, t.map.dtype}, weight_at(t, p));
  }

  // The forward's values of so many columns of the row at p, in place or copied to `memory`.
  const acc_t* input_at(const Target& t, const Position& p, int64_t columns,
                        std::vector<acc_t>& memory) const {
    const int64_t (&stride)[kDims] = params.input_stride[t.branch];
    const DType dtype = params.input_dtype[t.branch];
    const void* input = advance(params.inputs[t.branch], dtype, offset_in(stride, p));
    return loaded(memory, input, dtype, {columns, t.rows.channels, stride[4], stride[1]}, ops);
  }

  // Adds <sum, x_b> over the columns of the row at p, and of those after it, to the gradients of
  // the weights of image n.
  void add_dots(const Target& t, const Position& p, int64_t n, int64_t columns, const acc_t* sum,
                int64_t unit, Scratch& scratch) {
    const int64_t channels = t.rows.channels;
    // All values of the row share a weight, or (channels_last) those of each channel.
    const bool by_channel = t.map.channels_last && groups_per_image() > 1;
    double* dots = dots_at(t, p, n, unit, by_channel ? channels : 1);
    // Rows of a channel that follow each other are one run where the input is dense, too.
    const int64_t run = t.dense_inputs ? columns : std::min(columns, t.rows.width);
    Position row = p;
    for (int64_t done = 0; done < columns; done += run, sum += run * channels) {
      const acc_t* value = input_at(t, row, run, scratch.copies);
      if (by_channel) {
        ops.dot(sum, value, run, channels, dots);
      } else {
        ops.dot(sum, value, run * channels, 1, dots);
      }
      next_row(t.map, row);
    }
  }

  // The unit's sums for the weights of the row at p of image n.
  double* dots_at(const Target& t, const Position& p, int64_t n, int64_t unit, int64_t count) {
    const int64_t per_image = groups_per_image();
    int64_t group = params.weights.stride_n == 0 ? 0 : n * per_image;
    if (per_image > 1) group += p.c + t.channel_begin;
    return dots_[unit * kMaxBranches + t.branch].from(group, count);
  }

  // The gradients of the weights, in their order: the units' shares, summed in the order of the
  // units, once all of them have run.
  void write_weight_grads(acc_t* to, int64_t numel) const {
    const Weights& weights = params.weights;
    std::vector<double> sums(static_cast<size_t>(numel), 0.0);
    const int64_t channels = groups_per_image();
    for (int64_t i = 0; i < units * kMaxBranches && numel > 0; ++i) {
      const int64_t b = i % kMaxBranches;
      int64_t group = dots_[i].begin;
      for (const double dot : dots_[i].sums) {
        const int64_t n = group / channels, c = group % channels;
        sums[n * weights.stride_n + b * weights.stride_b + c * weights.stride_c] += dot;
        ++group;
      }
    }
    for (int64_t i = 0; i < numel; ++i) to[i] = static_cast<acc_t>(sums[i]);
  }

 private:
  static constexpr int64_t kUnit = 16384;     // elements of the larger side
  static constexpr int64_t kRowsPerUnit = 4;  // of the branch with the fewest rows

  // A unit's part of the weights' gradients: of neighbouring groups of elements that share one.
  struct Dots {
    int64_t begin = 0;
    std::vector<double> sums;

    double* from(int64_t group, int64_t count) {
      if (sums.empty()) begin = group;
      if (group < begin) {
        sums.insert(sums.begin(), begin - group, 0.0);
        begin = group;
      }
      if (group + count > begin + static_cast<int64_t>(sums.size()))
        sums.resize(group + count - begin, 0.0);
      return sums.data() + (group - begin);
    }
  };

  void add_target(int b) {
    const Branch& branch = params.branches[b];
    const Map& grad = params.grad;
    Map map = branch.map;
    // One pixel is laid out either way: as the gradient is.
    if (map.size[2] * map.size[3] * map.size[4] == 1) map.channels_last = grad.channels_last;
    const bool over_batch = map.size[0] != grad.size[0];
    const uint8_t* gate = params.gate ? params.gate + b * params.gate_stride : nullptr;
    const Weights& weights = params.weights;
    const bool weighted = weights.has(b);
    const bool of_pixels = params.pixel_weights.has(b);
    const bool extended = of_pixels || is_max_pool(branch) ||
                          (weighted && ((map.channels_last && weights.stride_c != 0) ||
                                        (over_batch && weights.stride_n != 0)));
    targets.push_back({b, map, Rows(map), branch.channel_begin, over_batch, extended, gate,
                       params.inputs[b] && weighted});
    Target& t = targets.back();
    const auto make = [&](Table& table, int axis, TableUse use) {
      if (branch.axis[axis].rule != Rule::kIdentity)
        table = tap_table(transposed(branch.axis[axis]), use, ops);
    };
    make(t.depth, 0, TableUse::kLists);
    make(t.height, 1, TableUse::kLists);
    if (t.depth) t.depth_rows = t.depth->rows();
    if (t.height) t.height_rows = t.height->rows();
    make(t.width, 2, map.channels_last ? TableUse::kPairs : TableUse::kBlocks);
    if (is_max_pool(branch)) t.pool.emplace(branch, grad, ops);
    if (t.width) t.taps = t.width->view();
    const Stretch pixels{grad.size[4], t.rows.channels, grad.stride[4], grad.stride[1]};
    const bool dense = pixels.channels == 1 || pixels.column_stride == pixels.channels;
    // Bits of the gate are in the order of the dense gradient.
    const bool all_channels = !grad.channels_last || map.size[1] == grad.size[1];
    t.one_run = dense && (!gate || all_channels);
    const bool whole_bytes = grad.channels_last && grad.size[1] % 8 == 0 &&
                             branch.channel_begin % 8 == 0 && map.size[1] % 8 == 0;
    t.walkable = pixels.is_vectorizable() && !of_pixels && !t.pool &&
                 (!gate || (grad.channels_last == map.channels_last && (t.one_run || whole_bytes)));
    const auto few = [](const Table& table) { return !table || table->has_pairs(); };
    t.few_taps = !extended && !gate && !over_batch && map.channels_last && t.width &&
                 few(t.width) && few(t.height) && few(t.depth) && !(t.height && t.depth);
    t.copied = is_identity(branch);
    t.dense_rows = t.walkable && !t.extended && is_identity(branch) && !t.over_batch &&
                   !map.channels_last && weights.per_branch() &&
                   has_dense_images(grad.size, grad.stride);
    t.dense_inputs =
        t.wants_dots && !map.channels_last && has_dense_images(map.size, params.input_stride[b]);
  }

  const int64_t grad_element_;  // bytes
  int64_t grad_stride_[kDims];  // bytes
  std::vector<Dots> dots_;      // of every unit and branch
};

}  // namespace msr
