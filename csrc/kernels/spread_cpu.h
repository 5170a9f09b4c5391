// spread on the CPU: the gradients of all branches from one map, by gathering. Any strides, rank,
// element types and taps.
//
// Each branch is written row by row, a row in tiles. Per tile the rows of the incoming gradient are
// first combined over batch, depth and height, then along the width; a few taps of channels_last
// pixels are summed where they lie. Small planes take these steps as wholes, and where branches
// read many rows of pixels, it is the gradient's rows that are walked: see the headers. The unit of
// threading, and of the sums for the weights' gradients, is the same share of every branch's rows,
// so that branches find the gradient's rows in the cache; units depend on the sizes alone, so
// results do not depend on the number of threads.
#pragma once

#include "spread_pixels_cpu.h"
#include "spread_planes_cpu.h"

namespace msr {

template <typename acc_t>
class SpreadCpu {
  using Shared = SpreadRowsCpu<acc_t>;
  using Target = typename Shared::Target;
  using Scratch = typename Shared::Scratch;
  using Way = typename Shared::Way;

 public:
  SpreadCpu(const SpreadParams& params, const RowOps<acc_t>& ops)
      : shared_(params, ops), planes_(shared_), pixels_(shared_) {
    int64_t widest = 1;
    for (const Target& t : shared_.targets) {
      if (t.way == Way::kTiles && t.map.channels_last)
        widest = std::max(widest, t.rows.channels * std::max(t.rows.width, params.grad.size[4]));
    }
    tiles_ = ceil_div(widest, kTile);
  }

  int64_t num_units() const { return shared_.units; }

  // Writes units [begin, end).
  void run(int64_t begin, int64_t end) {
    Scratch scratch;
    typename SpreadPlanesCpu<acc_t>::Scratch planes{scratch};
    typename SpreadPixelsCpu<acc_t>::Scratch pixels{scratch};
    for (int64_t unit = begin; unit < end; ++unit) {
      planes_.run(unit, planes);
      pixels_.run(unit, pixels);
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        for (const Target& target : shared_.targets)
          if (target.way == Way::kTiles) run_tile(target, unit, tile, scratch);
      }
    }
  }

  void write_weight_grads(acc_t* to, int64_t numel) const { shared_.write_weight_grads(to, numel); }

 private:
  static constexpr int64_t kTile = 2048;  // elements of the widest row
  static constexpr int32_t kFewRows = 2;  // that are resampled without being combined before
  static constexpr Finish kKeep = Shared::kKeep;
  static constexpr int kRowsAtOnce = Shared::kRowsAtOnce;

  // The branch's rows of the unit, its columns of the tile.
  void run_tile(const Target& t, int64_t unit, int64_t tile, Scratch& scratch) {
    const Rows& rows = t.rows;
    const int64_t first = rows.count * unit / shared_.units,
                  last = rows.count * (unit + 1) / shared_.units;
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
        shared_.list_taps(t, q, shared_.images_of(t, q), source, shared_.factor_of(t, q), scratch);
        const int64_t length = (source.end - source.begin) * rows.channels;
        shared_.combine_rows(t, source.end - source.begin, shared_.row_of(scratch, i, length),
                             kKeep, scratch);
        next_row(t.map, q);
      }
      for (int64_t i = 0; i < count; ++i) {
        write_row(t, p, source, columns, offset, unit, shared_.row_of(scratch, i, 0), scratch);
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

  // combined: null, or the gradient's rows that the row at p reads, combined.
  void write_row(const Target& t, const Position& p, Range source, int64_t columns, int64_t offset,
                 int64_t unit, const acc_t* combined, Scratch& scratch) {
    shared_.write(t, p, columns, offset, unit, scratch, [&](void* to, const Finish& how) {
      apply(t, p, source, columns, combined, to, how, scratch);
    });
  }

  // The row at p, image by image: each has weights of its own. Of a max-pooled channel also the
  // rows that follow it.
  void write_extended_rows(const Target& t, const Position& p, Range source, int64_t columns,
                           int64_t offset, int64_t unit, Scratch& scratch) {
    const int64_t channels = t.rows.channels, length = columns * channels;
    // In the gradient itself where that holds such values.
    const bool in_place = t.map.data && t.map.dtype == kSumType<acc_t>;
    acc_t* sum = in_place ? static_cast<acc_t*>(t.map.data) + offset : room(scratch.sum, length);
    const Range images = shared_.images_of(t, p);
    const bool is_result = images.end - images.begin == 1 && !shared_.params.weights.has(t.branch);
    acc_t* image = is_result ? sum : room(scratch.image, length);
    for (int32_t n = images.begin; n < images.end; ++n) {
      if (t.pool && !t.map.channels_last) {
        add_up_pooled_rows(t, p, n, columns, image, nullptr, acc_t(1), scratch);
      } else if (t.pool) {
        add_up_pooled_pixels(t, p, n, source, columns, image, scratch);
      } else {
        shared_.list_taps(t, p, {n, n + 1}, source, acc_t(1), scratch);
        acc_t* combined = nullptr;
        if (t.width) {
          combined = shared_.row_of(scratch, 0, (source.end - source.begin) * channels);
          shared_.combine_rows(t, source.end - source.begin, combined, kKeep, scratch);
        }
        apply_listed(t, p, source, columns, combined, image, kKeep, scratch);
      }
      if (t.wants_dots) shared_.add_dots(t, p, n, columns, image, unit, scratch);
      if (is_result) break;
      Position at = p;
      at.n = n;
      at.c += t.channel_begin;
      WeighArgs<acc_t> args{sum,     image,   acc_t(1), nullptr,
                            nullptr, columns, channels, n > images.begin};
      set_factors(args, shared_.params.weights, {nullptr, 0, 0, 0}, t.branch, at, t.map);
      shared_.ops.weigh(args);
    }
    if (images.begin == images.end) std::fill_n(sum, length, acc_t(0));
    if (!t.map.data || in_place) return;
    store_run(shared_.ops, sum, length, advance(t.map.data, t.map.dtype, offset),
              {nullptr, nullptr, false, t.map.dtype});
  }

  // The rows of a channel of a max-pooled branch from p's on.
  void write_pooled_rows(const Target& t, const Position& p, int64_t columns, int64_t offset,
                         int64_t unit, Scratch& scratch) {
    void* to = t.map.data ? advance(t.map.data, t.map.dtype, offset) : nullptr;
    const bool in_place = to && t.map.dtype == kSumType<acc_t>;
    acc_t* sum = in_place ? static_cast<acc_t*>(to) : room(scratch.sum, columns);
    const acc_t* input = t.wants_dots ? shared_.input_at(t, p, columns, scratch.input) : nullptr;
    const double dot =
        add_up_pooled_rows(t, p, p.n, columns, sum, input, shared_.weight_at(t, p), scratch);
    if (t.wants_dots) *shared_.dots_at(t, p, p.n, unit, 1) += dot;
    if (to && !in_place)
      store_run(shared_.ops, sum, columns, to, {nullptr, nullptr, false, t.map.dtype});
  }

  // What was taken of image n from the rows of a channel, p's and those after it: see add_up_rows.
  double add_up_pooled_rows(const Target& t, const Position& p, int32_t n, int64_t columns,
                            acc_t* to, const acc_t* input, acc_t factor, Scratch& scratch) const {
    const Map& grad = shared_.params.grad;
    const auto first = static_cast<int32_t>(p.at[0] * t.map.size[3] + p.at[1]);
    const auto count = static_cast<int32_t>(columns / t.rows.width);
    shared_.begin_list(t, 1, scratch);
    return t.pool->add_up_rows(
        n, p.c, {{first, first + count}, to, input}, shared_.params.index[t.branch],
        shared_.params.wide_index[t.branch], factor, [&](int32_t d, int32_t h) {
          scratch.count = 0;
          shared_.list_row(t, n, p.c + t.channel_begin, d, h, 0, acc_t(1), scratch);
          shared_.copy_rows(t, {grad.size[4], 1, grad.stride[4], grad.stride[1]}, scratch);
          return static_cast<const acc_t*>(scratch.taps[0]);
        });
  }

  // The same of columns of the row at p, pixel by pixel.
  void add_up_pooled_pixels(const Target& t, const Position& p, int32_t n, Range source,
                            int64_t columns, acc_t* to, Scratch& scratch) const {
    const int64_t channels = t.rows.channels;
    shared_.list_taps(t, p, {n, n + 1}, source, acc_t(1), scratch);
    t.pool->begin_gradient(source, channels, scratch.pool);
    shared_.copy_rows(t,
                      {source.end - source.begin, channels, shared_.params.grad.stride[4],
                       shared_.params.grad.stride[1]},
                      scratch);
    Position at = p;
    at.n = n;
    int32_t i = 0;
    for (int32_t d = t.depth->first(p.at[0]), k = 0; k < t.depth->count(p.at[0]); ++k, ++d) {
      for (int32_t h = t.height->first(p.at[1]), l = 0; l < t.height->count(p.at[1]); ++l, ++h, ++i)
        t.pool->add_taken(at, d, h, source, channels, static_cast<const acc_t*>(scratch.taps[i]),
                          shared_.params.index[t.branch], shared_.params.wide_index[t.branch],
                          scratch.pool);
    }
    t.pool->write_gradient(source, p.at[2], columns, channels, to, scratch.pool);
  }

  // to = factor * R_b^T(gate * grad) for the columns of the row at p.
  void apply(const Target& t, const Position& p, Range source, int64_t columns,
             const acc_t* combined, void* to, const Finish& how, Scratch& scratch) const {
    if (!combined)
      shared_.list_taps(t, p, shared_.images_of(t, p), source, shared_.factor_of(t, p), scratch);
    apply_listed(t, p, source, columns, combined, to, how, scratch);
  }

  // The same of the listed rows; combined: they, where the width is resampled.
  void apply_listed(const Target& t, const Position& p, Range source, int64_t columns,
                    const acc_t* combined, void* to, const Finish& how, Scratch& scratch) const {
    const int64_t channels = t.rows.channels;
    if (!t.width) {
      shared_.combine_rows(t, columns, to, how, scratch);
    } else if (t.few_taps) {
      const Map& grad = shared_.params.grad;
      DType dtype = grad.dtype;
      int64_t stride = grad.stride[4];
      if (!t.walkable || !takes<acc_t>(dtype, how.dtype)) {
        shared_.copy_rows(t, {source.end - source.begin, channels, stride, grad.stride[1]},
                          scratch);
        dtype = kKeep.dtype;
        stride = channels;
      }
      PixelSource<acc_t> rows[kFewRows];
      for (int32_t i = 0; i < scratch.count; ++i)
        rows[i] = {advance(scratch.taps[i], dtype, -source.begin * stride), stride, &t.taps,
                   scratch.weights[i]};
      const PixelSlice<acc_t> slice{rows, scratch.count, t.width->max_count(), channels, dtype,
                                    true, false};
      shared_.ops.along_pixels({to, nullptr, &slice, 1, p.at[2], columns, how});
    } else if (!t.map.channels_last) {
      shared_.ops.along_row(
          {to, nullptr, combined - source.begin, kKeep.dtype, &t.taps, p.at[2], columns, how});
    } else {
      const PixelSource<acc_t> row{combined - source.begin * channels, channels, &t.taps, acc_t(1)};
      const PixelSlice<acc_t> slice{&row,  1,    t.width->max_count(), channels, kKeep.dtype,
                                    false, false};
      shared_.ops.along_pixels({to, nullptr, &slice, 1, p.at[2], columns, how});
    }
  }

  Shared shared_;
  SpreadPlanesCpu<acc_t> planes_;
  SpreadPixelsCpu<acc_t> pixels_;
  int64_t tiles_ = 1;
};

}  // namespace msr
