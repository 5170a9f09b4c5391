// spread on the CPU: the gradients of all branches from one map, by gathering. Any strides, rank,
// element types and taps.
//
// Each branch is written row by row, a row in tiles. Per tile the rows of the incoming gradient are
// first combined over batch, depth and height, then along the width; a few taps of channels_last
// pixels are summed where they lie. Small planes take these steps as wholes, for all branches one
// after the other. The unit of threading, and of the sums for the weights' gradients, is the same
// share of every branch's rows, so that branches find the gradient's rows in the cache; units
// depend on the sizes alone, so results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "branch_rows_cpu.h"

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
    // What is only copied is so in longer runs, unless the gradient's plane is at hand or wanted.
    by_planes_ = std::any_of(targets_.begin(), targets_.end(), [](const Target& t) {
      return t.by_planes && (!t.copied || t.wants_dots);
    });
    for (Target& t : targets_) t.by_planes = t.by_planes && by_planes_;
    // Neighbouring units both read the gradient's rows at their border, so no unit is too small.
    units_ = std::max<int64_t>(
        1, std::min(ceil_div(work, kUnit), ceil_div(fewest_rows, int64_t{kRowsPerUnit})));
    tiles_ = ceil_div(widest, kTile);
    dots_.resize(static_cast<size_t>(units_) * kMaxBranches);
  }

  int64_t num_units() const { return units_; }

  // Writes units [begin, end).
  void run(int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t unit = begin; unit < end; ++unit) {
      if (by_planes_) run_planes(unit, scratch);
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        for (const Target& target : targets_)
          if (!target.by_planes) run_tile(target, unit, tile, scratch);
      }
    }
  }

  // The gradients of the weights, in their order: the units' shares, summed in the order of the
  // units, once all of them have run.
  void write_weight_grads(acc_t* to, int64_t numel) const {
    const Weights& weights = params_.weights;
    std::vector<double> sums(static_cast<size_t>(numel), 0.0);
    const int64_t channels = groups_per_image();
    for (int64_t i = 0; i < units_ * kMaxBranches && numel > 0; ++i) {
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
  static constexpr int64_t kTile = 2048;      // elements of the widest row
  // Rows are combined several at a time before any is resampled along the width: what was just
  // stored cannot be loaded at once in other portions.
  static constexpr int kRowsAtOnce = 4;
  static constexpr int32_t kMostAtOnce = 16;  // rows that are read side by side
  static constexpr int32_t kFewRows = 2;      // that are resampled without being combined before
  static constexpr Finish kKeep{nullptr, nullptr, false, kSumType<acc_t>};

  using Table = std::shared_ptr<const TapTable<acc_t>>;

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
    bool by_planes = false;     // so it is written
  };

  // What the rows of a branch's planes are made of, under one factor.
  struct PlaneSums {
    acc_t factor;
    RowSums<acc_t> rows;
  };

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
    std::vector<acc_t> image;             // one image's share of the tile, or a weighted plane
    std::vector<acc_t> input;             // the forward's values
    typename MaxPoolCpu<acc_t>::Scratch pool;
    std::vector<acc_t> plane;  // of the gradient, behind the gate
    PlaneSums plane_sums[kMaxBranches];
  };

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

  int64_t groups_per_image() const {
    return params_.weights.stride_c == 0 ? 1 : params_.grad.size[1];
  }

  // The i-th row that is combined. Vector loads may reach beyond both of its ends.
  static acc_t* row_of(Scratch& scratch, int64_t i, int64_t length) {
    constexpr int32_t kPadding = TapTable<acc_t>::kPadding;
    return room(scratch.rows[i], length + 2 * kPadding) + kPadding;
  }

  void add_target(int b) {
    const Branch& branch = params_.branches[b];
    const Map& grad = params_.grad;
    Map map = branch.map;
    // One pixel is laid out either way: as the gradient is.
    if (map.size[2] * map.size[3] * map.size[4] == 1) map.channels_last = grad.channels_last;
    const bool over_batch = map.size[0] != grad.size[0];
    const uint8_t* gate = params_.gate ? params_.gate + b * params_.gate_stride : nullptr;
    const Weights& weights = params_.weights;
    const bool weighted = weights.has(b);
    const bool of_pixels = params_.pixel_weights.has(b);
    const bool extended = of_pixels || is_max_pool(branch) ||
                          (weighted && ((map.channels_last && weights.stride_c != 0) ||
                                        (over_batch && weights.stride_n != 0)));
    targets_.push_back({b, map, Rows(map), branch.channel_begin, over_batch, extended, gate,
                        params_.inputs[b] && weighted});
    Target& t = targets_.back();
    const auto make = [&](Table& table, int axis, TableUse use) {
      if (branch.axis[axis].rule != Rule::kIdentity)
        table = tap_table(transposed(branch.axis[axis]), use, ops_);
    };
    make(t.depth, 0, TableUse::kLists);
    make(t.height, 1, TableUse::kLists);
    if (t.depth) t.depth_rows = t.depth->rows();
    if (t.height) t.height_rows = t.height->rows();
    make(t.width, 2, map.channels_last ? TableUse::kPairs : TableUse::kBlocks);
    if (is_max_pool(branch)) t.pool.emplace(branch, grad, ops_);
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
    const auto few = [](const Table& table) {
      return !table || (table->max_count() <= 2 && !table->has_gaps());
    };
    t.few_taps = !extended && !gate && !over_batch && map.channels_last && t.width &&
                 few(t.width) && few(t.height) && few(t.depth) && !(t.height && t.depth);
    t.copied = is_identity(branch);
    t.by_planes = !map.channels_last && !grad.channels_last && !t.pool && !over_batch &&
                  has_dense_planes(grad.size, grad.stride) && is_small_plane(grad.size) &&
                  is_small_plane(map.size) && most_rows(t) <= kMostAtOnce;
    t.dense_rows = t.walkable && !t.extended && is_identity(branch) && !t.over_batch &&
                   !map.channels_last && weights.per_branch() &&
                   has_dense_images(grad.size, grad.stride);
    t.dense_inputs =
        t.wants_dots && !map.channels_last && has_dense_images(map.size, params_.input_stride[b]);
  }

  // Rows of the gradient that one of the branch reads, at most.
  static int32_t most_rows(const Target& t) {
    return (t.depth ? t.depth->max_count() : 1) * (t.height ? t.height->max_count() : 1);
  }

  // What the unit's planes of the gradient give to those branches that are written by planes.
  void run_planes(int64_t unit, Scratch& scratch) {
    const Map& grad = params_.grad;
    const int64_t planes = grad.size[0] * grad.size[1];
    for (int64_t i = planes * unit / units_; i < planes * (unit + 1) / units_; ++i) {
      const int64_t n = i / grad.size[1], c = i % grad.size[1];
      const acc_t* plane = nullptr;
      const uint8_t* gate = nullptr;
      for (const Target& t : targets_) {
        if (!t.by_planes || c < t.channel_begin || c >= t.channel_begin + t.map.size[1]) continue;
        if (!plane || t.gate != gate) plane = gated_plane(t, n, c, scratch);
        gate = t.gate;
        write_plane(t, {n, c - t.channel_begin, {0, 0, 0}}, weighted_plane(t, n, plane, scratch),
                    unit, scratch);
      }
    }
  }

  // One channel of one image of the gradient, of the accumulation type, behind the branch's gate.
  const acc_t* gated_plane(const Target& t, int64_t n, int64_t c, Scratch& scratch) const {
    const Map& grad = params_.grad;
    const int64_t length = plane_size(grad);
    const void* from = advance(grad.data, grad.dtype, offset_in(grad.stride, n, c, 0, 0, 0));
    const Stretch whole{length, 1, 1, 1};
    if (!t.gate) return loaded(scratch.plane, from, grad.dtype, whole, ops_);
    acc_t* plane = room(scratch.plane, length);
    const uint8_t* bits = aligned_bits(t.gate, offset_of(grad, n, c, 0, 0, 0), length,
                                       room(scratch.bits, ceil_div(length, 8)));
    const auto off = static_cast<acc_t>(params_.gate_off);
    if (takes<acc_t>(grad.dtype, kKeep.dtype)) {
      const acc_t one = 1;
      ops_.combine(
          {plane, nullptr, &from, &bits, &one, 1, grad.dtype, 1, length, length, 0, kKeep, off});
    } else {
      copy_stretch(plane, from, grad.dtype, whole);
      ops_.gate(plane, bits, off, length);
    }
    return plane;
  }

  // The same times the weights of the branch's pixels.
  const acc_t* weighted_plane(const Target& t, int64_t n, const acc_t* plane,
                              Scratch& scratch) const {
    const PixelWeights& pixels = params_.pixel_weights;
    if (!pixels.has(t.branch)) return plane;
    const int64_t length = plane_size(params_.grad);
    acc_t* weighted = room(scratch.image, length);
    const acc_t* factors =
        static_cast<const acc_t*>(pixels.data) + n * pixels.stride_n + t.branch * pixels.stride_b;
    ops_.weigh({weighted, plane, acc_t(1), nullptr, factors, length, 1, false});
    return weighted;
  }

  // The branch's plane that begins at p, from that of the gradient.
  void write_plane(const Target& t, const Position& p, const acc_t* plane, int64_t unit,
                   Scratch& scratch) {
    const int64_t length = plane_size(t.map);
    void* to = t.map.data ? advance(t.map.data, t.map.dtype, (p.n * t.map.size[1] + p.c) * length)
                          : nullptr;
    const Finish plain{nullptr, nullptr, false, t.map.dtype};
    if (!t.wants_dots) {
      if (to) apply_to_plane(t, p, plane, to, plain, scratch);
      return;
    }
    const acc_t* sum = plane;
    if (!t.copied) {
      acc_t* applied = room(scratch.sum, length);
      apply_to_plane(t, p, plane, applied, kKeep, scratch);
      sum = applied;
    }
    add_dots(t, p, p.n, length, sum, unit, scratch);
    if (to) store_run(ops_, sum, length, to, plain, weight_at(t, p));
  }

  void apply_to_plane(const Target& t, const Position& p, const acc_t* plane, void* to,
                      const Finish& how, Scratch& scratch) const {
    const acc_t factor = factor_of(t, p);
    if (t.copied) return store_run(ops_, plane, plane_size(t.map), to, how, factor);
    PlaneSums& sums = scratch.plane_sums[t.branch];
    if (sums.rows.empty() || sums.factor != factor) list_plane(t, p, factor, sums, scratch);
    const int64_t columns = params_.grad.size[4], rows = sums.rows.rows();
    if (!t.width) return sums.rows.write(ops_, &plane, columns, nullptr, to, how);
    acc_t* combined = row_of(scratch, 0, rows * columns);
    sums.rows.write(ops_, &plane, columns, nullptr, combined, kKeep);
    ops_.along_row(
        {to, nullptr, combined, kKeep.dtype, &t.taps, 0, t.rows.width, how, rows, columns});
  }

  // Lists which of the gradient's rows the branch's rows read, in any plane.
  void list_plane(const Target& t, const Position& p, acc_t factor, PlaneSums& sums,
                  Scratch& scratch) const {
    const Map& grad = params_.grad;
    const char* data = static_cast<const char*>(grad.data) +
                       grad_element_ * offset_in(grad.stride, p.n, p.c + t.channel_begin, 0, 0, 0);
    sums.factor = factor;
    sums.rows.clear();
    Position row = p;
    for (int64_t i = 0; i < t.map.size[2] * t.map.size[3]; ++i, next_row(t.map, row)) {
      list_taps(t, row, images_of(t, p), {0, 0}, factor, scratch);
      for (int32_t k = 0; k < scratch.count; ++k) {
        const int64_t bytes = static_cast<const char*>(scratch.taps[k]) - data;
        sums.rows.add(0, static_cast<int32_t>(bytes / (grad.size[4] * grad_element_)),
                      scratch.weights[k]);
      }
      sums.rows.end_row();
    }
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
    const auto step_over = [&](int64_t count) {  // several are whole rows of one channel
      offset += count * stride;
      if (count == 1) {
        next_row(t.map, p);
      } else {
        p = position_of(t.map, offset);
      }
    };
    if (t.extended) {
      const bool by_channel = t.pool && !t.map.channels_last;
      for (int64_t row = first; row < last;) {
        const int64_t together = by_channel ? rows_together(t, p, row, last, 1) : 1;
        if (by_channel && !t.over_batch && (t.dense_inputs || !t.wants_dots)) {
          write_pooled_rows(t, p, columns * together, offset, unit, scratch);
        } else {
          write_extended_rows(t, p, source, columns * together, offset, unit, scratch);
        }
        row += together;
        step_over(together);
      }
      return;
    }
    if (!t.width || t.few_taps) {
      for (int64_t row = first; row < last;) {
        int64_t together = t.dense_rows ? rows_together(t, p, row, last, t.map.size[1] - p.c) : 1;
        // They are kept until their products have been added up.
        if (t.wants_dots) together = std::min(together, std::max<int64_t>(1, kTile / rows.width));
        write_row(t, p, source, columns * together, offset, unit, nullptr, scratch);
        row += together;
        step_over(together);
      }
      return;
    }
    for (int64_t row = first; row < last; row += kRowsAtOnce) {
      const int64_t count = std::min<int64_t>(kRowsAtOnce, last - row);
      Position q = p;
      for (int64_t i = 0; i < count; ++i) {
        list_taps(t, q, images_of(t, q), source, factor_of(t, q), scratch);
        const int64_t length = (source.end - source.begin) * rows.channels;
        combine_rows(t, source.end - source.begin, row_of(scratch, i, length), kKeep, scratch);
        next_row(t.map, q);
      }
      for (int64_t i = 0; i < count; ++i) {
        write_row(t, p, source, columns, offset, unit, row_of(scratch, i, 0), scratch);
        step_over(1);
      }
    }
  }

  // How many rows from `row` on, up to `last`, are of the next `channels` channels.
  static int64_t rows_together(const Target& t, const Position& p, int64_t row, int64_t last,
                               int64_t channels) {
    const int64_t per_plane = t.map.size[2] * t.map.size[3];
    const int64_t within = p.at[0] * t.map.size[3] + p.at[1];
    return std::min(last - row, channels * per_plane - within);
  }

  // Images of the gradient that a row of a branch reads.
  Range images_of(const Target& t, const Position& p) const {
    if (t.over_batch) return {0, static_cast<int32_t>(params_.grad.size[0])};
    return {static_cast<int32_t>(p.n), static_cast<int32_t>(p.n + 1)};
  }

  // What the row at p is multiplied with as a whole, unless its weight's gradient takes the sums
  // before that.
  acc_t factor_of(const Target& t, const Position& p) const {
    return t.wants_dots ? acc_t(1) : weight_at(t, p);
  }
  acc_t weight_at(const Target& t, const Position& p) const {
    return weight_of<acc_t>(params_.weights, t.branch, p.n, p.c + t.channel_begin);
  }

  // combined: null, or the gradient's rows that the row at p reads, combined.
  void write_row(const Target& t, const Position& p, Range source, int64_t columns, int64_t offset,
                 int64_t unit, const acc_t* combined, Scratch& scratch) {
    void* to = t.map.data ? advance(t.map.data, t.map.dtype, offset) : nullptr;
    const Finish plain{nullptr, nullptr, false, t.map.dtype};
    if (!t.wants_dots) {
      if (to) apply(t, p, source, columns, combined, to, plain, scratch);
      return;
    }
    // The weight's gradient takes the sums before they are scaled.
    const int64_t length = columns * t.rows.channels;
    acc_t* sum = room(scratch.sum, length);
    apply(t, p, source, columns, combined, sum, kKeep, scratch);
    add_dots(t, p, p.n, columns, sum, unit, scratch);
    if (to) store_run(ops_, sum, length, to, plain, weight_at(t, p));
  }

  // The row at p, image by image: each has weights of its own. Of a max-pooled channel also the
  // rows that follow it.
  void write_extended_rows(const Target& t, const Position& p, Range source, int64_t columns,
                           int64_t offset, int64_t unit, Scratch& scratch) {
    const int64_t channels = t.rows.channels, length = columns * channels;
    // In the gradient itself where that holds such values.
    const bool in_place = t.map.data && t.map.dtype == kSumType<acc_t>;
    acc_t* sum = in_place ? static_cast<acc_t*>(t.map.data) + offset : room(scratch.sum, length);
    const Range images = images_of(t, p);
    const bool is_result = images.end - images.begin == 1 && !params_.weights.has(t.branch);
    acc_t* image = is_result ? sum : room(scratch.image, length);
    for (int32_t n = images.begin; n < images.end; ++n) {
      if (t.pool && !t.map.channels_last) {
        add_up_pooled_rows(t, p, n, columns, image, nullptr, acc_t(1), scratch);
      } else if (t.pool) {
        add_up_pooled_pixels(t, p, n, source, columns, image, scratch);
      } else {
        list_taps(t, p, {n, n + 1}, source, acc_t(1), scratch);
        acc_t* combined = nullptr;
        if (t.width) {
          combined = row_of(scratch, 0, (source.end - source.begin) * channels);
          combine_rows(t, source.end - source.begin, combined, kKeep, scratch);
        }
        apply_listed(t, p, source, columns, combined, image, kKeep, scratch);
      }
      if (t.wants_dots) add_dots(t, p, n, columns, image, unit, scratch);
      if (is_result) break;
      Position at = p;
      at.n = n;
      at.c += t.channel_begin;
      WeighArgs<acc_t> args{sum,     image,   acc_t(1), nullptr,
                            nullptr, columns, channels, n > images.begin};
      set_factors(args, params_.weights, {nullptr, 0, 0, 0}, t.branch, at, t.map);
      ops_.weigh(args);
    }
    if (images.begin == images.end) std::fill_n(sum, length, acc_t(0));
    if (!t.map.data || in_place) return;
    store_run(ops_, sum, length, advance(t.map.data, t.map.dtype, offset),
              {nullptr, nullptr, false, t.map.dtype});
  }

  // The rows of a channel of a max-pooled branch from p's on.
  void write_pooled_rows(const Target& t, const Position& p, int64_t columns, int64_t offset,
                         int64_t unit, Scratch& scratch) {
    void* to = t.map.data ? advance(t.map.data, t.map.dtype, offset) : nullptr;
    const bool in_place = to && t.map.dtype == kSumType<acc_t>;
    acc_t* sum = in_place ? static_cast<acc_t*>(to) : room(scratch.sum, columns);
    const acc_t* input = t.wants_dots ? input_at(t, p, columns, scratch.input) : nullptr;
    const double dot = add_up_pooled_rows(t, p, p.n, columns, sum, input, weight_at(t, p), scratch);
    if (t.wants_dots) *dots_at(t, p, p.n, unit, 1) += dot;
    if (to && !in_place) store_run(ops_, sum, columns, to, {nullptr, nullptr, false, t.map.dtype});
  }

  // What was taken of image n from the rows of a channel, p's and those after it: see add_up_rows.
  double add_up_pooled_rows(const Target& t, const Position& p, int32_t n, int64_t columns,
                            acc_t* to, const acc_t* input, acc_t factor, Scratch& scratch) const {
    const Map& grad = params_.grad;
    const auto first = static_cast<int32_t>(p.at[0] * t.map.size[3] + p.at[1]);
    const auto count = static_cast<int32_t>(columns / t.rows.width);
    begin_list(t, 1, scratch);
    return t.pool->add_up_rows(n, p.c, {{first, first + count}, to, input}, params_.index[t.branch],
                               params_.wide_index[t.branch], factor, [&](int32_t d, int32_t h) {
                                 scratch.count = 0;
                                 list_row(t, n, p.c + t.channel_begin, d, h, 0, acc_t(1), scratch);
                                 copy_rows(t, {grad.size[4], 1, grad.stride[4], grad.stride[1]},
                                           scratch);
                                 return static_cast<const acc_t*>(scratch.taps[0]);
                               });
  }

  // The same of columns of the row at p, pixel by pixel.
  void add_up_pooled_pixels(const Target& t, const Position& p, int32_t n, Range source,
                            int64_t columns, acc_t* to, Scratch& scratch) const {
    const int64_t channels = t.rows.channels;
    list_taps(t, p, {n, n + 1}, source, acc_t(1), scratch);
    t.pool->begin_gradient(source, channels, scratch.pool);
    copy_rows(t,
              {source.end - source.begin, channels, params_.grad.stride[4], params_.grad.stride[1]},
              scratch);
    Position at = p;
    at.n = n;
    int32_t i = 0;
    for (int32_t d = t.depth->first(p.at[0]), k = 0; k < t.depth->count(p.at[0]); ++k, ++d) {
      for (int32_t h = t.height->first(p.at[1]), l = 0; l < t.height->count(p.at[1]); ++l, ++h, ++i)
        t.pool->add_taken(at, d, h, source, channels, static_cast<const acc_t*>(scratch.taps[i]),
                          params_.index[t.branch], params_.wide_index[t.branch], scratch.pool);
    }
    t.pool->write_gradient(source, p.at[2], columns, channels, to, scratch.pool);
  }

  // to = factor * R_b^T(gate * grad) for the columns of the row at p.
  void apply(const Target& t, const Position& p, Range source, int64_t columns,
             const acc_t* combined, void* to, const Finish& how, Scratch& scratch) const {
    if (!combined) list_taps(t, p, images_of(t, p), source, factor_of(t, p), scratch);
    apply_listed(t, p, source, columns, combined, to, how, scratch);
  }

  // The same of the listed rows; combined: they, where the width is resampled.
  void apply_listed(const Target& t, const Position& p, Range source, int64_t columns,
                    const acc_t* combined, void* to, const Finish& how, Scratch& scratch) const {
    const int64_t channels = t.rows.channels;
    if (!t.width) {
      combine_rows(t, columns, to, how, scratch);
    } else if (t.few_taps) {
      const Map& grad = params_.grad;
      DType dtype = grad.dtype;
      int64_t stride = grad.stride[4];
      if (!t.walkable || !takes<acc_t>(dtype, how.dtype)) {
        copy_rows(t, {source.end - source.begin, channels, stride, grad.stride[1]}, scratch);
        dtype = kKeep.dtype;
        stride = channels;
      }
      PixelSource<acc_t> rows[kFewRows];
      for (int32_t i = 0; i < scratch.count; ++i)
        rows[i] = {advance(scratch.taps[i], dtype, -source.begin * stride), stride, &t.taps,
                   scratch.weights[i]};
      const PixelSlice<acc_t> slice{rows, scratch.count, t.width->max_count(), channels, dtype,
                                    true, false};
      ops_.along_pixels({to, nullptr, &slice, 1, p.at[2], columns, how});
    } else if (!t.map.channels_last) {
      ops_.along_row(
          {to, nullptr, combined - source.begin, kKeep.dtype, &t.taps, p.at[2], columns, how});
    } else {
      const PixelSource<acc_t> row{combined - source.begin * channels, channels, &t.taps, acc_t(1)};
      const PixelSlice<acc_t> slice{&row,  1,    t.width->max_count(), channels, kKeep.dtype,
                                    false, false};
      ops_.along_pixels({to, nullptr, &slice, 1, p.at[2], columns, how});
    }
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
    if (params_.pixel_weights.has(t.branch)) room(scratch.of_pixels, most);
    scratch.count = 0;
  }

  // Lists a row of the gradient, from a column on.
  void list_row(const Target& t, int64_t n, int64_t c, int32_t d, int32_t h, int32_t column,
                acc_t weight, Scratch& scratch) const {
    const Map& grad = params_.grad;
    const int32_t i = scratch.count++;
    scratch.taps[i] = static_cast<const char*>(grad.data) + n * grad_stride_[0] +
                      c * grad_stride_[1] + d * grad_stride_[2] + h * grad_stride_[3] +
                      column * grad_stride_[4];
    scratch.weights[i] = weight;
    if (t.gate) scratch.bit_offsets[i] = offset_of(grad, n, c, d, h, column);
    const PixelWeights& pixels = params_.pixel_weights;
    if (pixels.has(t.branch)) {
      scratch.of_pixels[i] = static_cast<const acc_t*>(pixels.data) + n * pixels.stride_n +
                             t.branch * pixels.stride_b + (d * grad.size[3] + h) * grad.size[4] +
                             column;
    }
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
    args.gate_off = static_cast<acc_t>(params_.gate_off);
    if (scratch.count <= kMostAtOnce) return ops_.combine(args);
    // More rows than a walk along all of them at once finds in the cache. They are added up in
    // blocks, and those in larger ones: a single long sum would lose digits.
    acc_t* block = room(scratch.block, 3 * length);
    acc_t *part = block + length, *total = part + length;
    args.to = block;
    args.finish = kKeep;
    const auto add = [&](acc_t* to, const acc_t* from, bool first) {
      ops_.weigh({to, from, acc_t(1), nullptr, nullptr, 1, length, !first});
    };
    constexpr int32_t kPart = kMostAtOnce * kMostAtOnce;
    for (int32_t i = 0; i < scratch.count; i += kMostAtOnce) {
      args.rows = scratch.taps.data() + i;
      if (t.gate) args.gates = scratch.gates.data() + i;
      args.weights = scratch.weights.data() + i;
      args.count = std::min(kMostAtOnce, scratch.count - i);
      ops_.combine(args);
      add(part, block, i % kPart == 0);
      const int32_t next = i + kMostAtOnce;
      if (next % kPart == 0 || next >= scratch.count) add(total, part, i < kPart);
    }
    store_run(ops_, total, length, to, how);
  }

  // The same for listed rows that are dense and of the accumulation type.
  void combine_dense(void* to, const Finish& how, int64_t length, const Scratch& scratch) const {
    ops_.combine({to, nullptr, scratch.taps.data(), nullptr, scratch.weights.data(), scratch.count,
                  kKeep.dtype, 1, length, length, 0, how});
  }

  // Replaces the listed rows, of any strides and types, by dense copies behind the gate, whatever
  // the order of its bits, times the weights of their pixels.
  void copy_rows(const Target& t, const Stretch& stretch, Scratch& scratch) const {
    const Map& grad = params_.grad;
    const int64_t length = stretch.numel();
    const int64_t channel_bits =
        grad.channels_last ? 1 : grad.size[2] * grad.size[3] * grad.size[4];
    const int64_t column_bits = grad.channels_last ? grad.size[1] : 1;
    const bool weighs_pixels = params_.pixel_weights.has(t.branch);
    const auto off = static_cast<acc_t>(params_.gate_off);
    acc_t* copy = room(scratch.copies, scratch.count * length);
    // The bits of a dense row lie one after the other.
    const bool bits_in_order = stretch.channels == 1
                                   ? column_bits == 1
                                   : channel_bits == 1 && column_bits == stretch.channels;
    for (int32_t i = 0; i < scratch.count; ++i, copy += length) {
      if (!t.gate) {
        // Nothing is copied that may stay where it is.
        const acc_t* row = loaded_to(copy, scratch.taps[i], grad.dtype, stretch, ops_);
        scratch.taps[i] = weighs_pixels ? copy : row;
        if (weighs_pixels)
          ops_.weigh({copy, row, acc_t(1), nullptr, scratch.of_pixels[i], stretch.columns,
                      stretch.channels, false});
        continue;
      }
      load_stretch(copy, scratch.taps[i], grad.dtype, stretch, ops_);
      scratch.taps[i] = copy;
      if (bits_in_order) {
        uint8_t* bits = room(scratch.bits, ceil_div(length, 8));
        ops_.gate(copy, aligned_bits(t.gate, scratch.bit_offsets[i], length, bits), off, length);
      } else {
        for (int64_t k = 0; k < stretch.columns; ++k) {
          for (int64_t c = 0; c < stretch.channels; ++c) {
            const int64_t bit = scratch.bit_offsets[i] + k * column_bits + c * channel_bits;
            if (mask_bit(t.gate, bit)) continue;
            acc_t& value = copy[k * stretch.channels + c];
            value = off == 0 ? acc_t(0) : off * value;
          }
        }
      }
      if (weighs_pixels)
        ops_.weigh({copy, copy, acc_t(1), nullptr, scratch.of_pixels[i], stretch.columns,
                    stretch.channels, false});
    }
  }

  // The unit's sums for the weights of the row at p of image n.
  double* dots_at(const Target& t, const Position& p, int64_t n, int64_t unit, int64_t count) {
    const int64_t per_image = groups_per_image();
    int64_t group = params_.weights.stride_n == 0 ? 0 : n * per_image;
    if (per_image > 1) group += p.c + t.channel_begin;
    return dots_[unit * kMaxBranches + t.branch].from(group, count);
  }

  // The forward's values of so many columns of the row at p, in place or copied to `memory`.
  const acc_t* input_at(const Target& t, const Position& p, int64_t columns,
                        std::vector<acc_t>& memory) const {
    const int64_t (&stride)[kDims] = params_.input_stride[t.branch];
    const DType dtype = params_.input_dtype[t.branch];
    const void* input = advance(params_.inputs[t.branch], dtype, offset_in(stride, p));
    return loaded(memory, input, dtype, {columns, t.rows.channels, stride[4], stride[1]}, ops_);
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
        ops_.dot(sum, value, run, channels, dots);
      } else {
        ops_.dot(sum, value, run * channels, 1, dots);
      }
      next_row(t.map, row);
    }
  }

  const SpreadParams& params_;
  const RowOps<acc_t>& ops_;
  const int64_t grad_element_;  // bytes
  int64_t grad_stride_[kDims];  // bytes
  int64_t units_ = 0, tiles_ = 1;
  bool by_planes_ = false;  // some branch is written so
  std::vector<Target> targets_;
  std::vector<Dots> dots_;  // of every unit and branch
};

}  // namespace msr
