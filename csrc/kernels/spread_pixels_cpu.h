// spread on the CPU along the rows of a channels_last gradient, for branches that read many of
// them.
//
// Each row is taken behind the gate once, a tile of its pixels for all branches. They go along its
// width first, to fewer pixels, which are kept until a row of the branch has all that it reads:
// rows of the gradient are long, often a power of two of bytes apart, and to walk along many at a
// time would throw them out of the cache before they are read again.
#pragma once

#include "spread_rows_cpu.h"

namespace msr {

template <typename acc_t>
class SpreadPixelsCpu {
  using Shared = SpreadRowsCpu<acc_t>;
  using Target = typename Shared::Target;

 public:
  // Takes those branches that are written so.
  explicit SpreadPixelsCpu(Shared& shared) : shared_(shared) {
    bool in_use = false;
    for (const Target& t : shared.targets)
      in_use = in_use || (can_take(t) && Shared::most_rows(t) > kFewRows);
    if (!in_use) return;
    for (Target& t : shared.targets)
      if (can_take(t)) t.way = Shared::Way::kPixels;
    tiles_ = ceil_div(shared.params.grad.size[1] * shared.params.grad.size[4], kTile);
  }

  // A thread's memory.
  struct Scratch {
    typename Shared::Scratch& rows;
    std::vector<acc_t> row{};                 // of the gradient, behind the gate
    std::vector<acc_t> kept[kMaxBranches]{};  // rows that were resampled along their width
    std::vector<acc_t> zeros{};
  };

  // Writes the branches' rows of the unit.
  void run(int64_t unit, Scratch& scratch) {
    for (int64_t tile = 0; tile < tiles_; ++tile) run_tile(unit, tile, scratch);
  }

 private:
  static constexpr Finish kKeep = Shared::kKeep;
  static constexpr int64_t kTile = 8192;    // elements of the gradient's row
  static constexpr int32_t kFewRows = 2;    // that are better read where they are
  static constexpr int32_t kMostKept = 64;  // rows
  static constexpr int64_t kGap = 16;       // elements between them: they share less of the cache

  // What is left to do for a branch's rows of a unit, its columns of a tile.
  struct Walk {
    const Target* target;
    int64_t row, last;  // counted over images, depth and height
    Range columns;
    Range taps;                       // of the next row: rows of the gradient, counted likewise
    int64_t length, num_kept;         // of a row that is kept, and how many are
    const acc_t* in_place = nullptr;  // the row of a branch that is not resampled

    bool is_done() const { return row == last; }
  };

  bool can_take(const Target& t) const {
    const Map& grad = shared_.params.grad;
    return grad.channels_last && t.map.channels_last && !t.extended && !t.over_batch && !t.depth &&
           t.map.size[1] == grad.size[1] && shared_.params.gate_stride == 0 &&
           t.map.size[3] <= grad.size[3] && t.map.size[4] <= grad.size[4] &&
           Shared::most_rows(t) <= kMostKept;
  }

  void run_tile(int64_t unit, int64_t tile, Scratch& scratch) {
    const Map& grad = shared_.params.grad;
    Walk walks[kMaxBranches];
    int count = 0;
    Range pixels{static_cast<int32_t>(grad.size[4]), 0};  // of the gradient
    int64_t g = numel(grad);                              // its row
    for (const Target& t : shared_.targets) {
      if (t.way != Shared::Way::kPixels) continue;
      Walk& w = walks[count];
      w = begin_walk(t, unit, tile, scratch);
      if (w.is_done() || w.columns.begin == w.columns.end) continue;
      const Range source = t.width ? t.width->range(w.columns.begin, w.columns.end) : w.columns;
      pixels = {std::min(pixels.begin, source.begin), std::max(pixels.end, source.end)};
      g = std::min<int64_t>(g, w.taps.begin);
      ++count;
    }
    for (; count > 0; ++g) {
      const acc_t* row = nullptr;
      for (int i = 0; i < count; ++i) {
        Walk& w = walks[i];
        bool is_kept = false;
        while (!w.is_done()) {
          if (!is_kept && g >= w.taps.begin && g < w.taps.end) {
            if (!row) row = gated_pixels(*w.target, g, pixels, scratch);
            keep(w, g, row, scratch);
            is_kept = true;
          }
          if (w.taps.end > g + 1) break;
          write_row(w, unit, scratch);
          if (++w.row < w.last) w.taps = taps_of(*w.target, w.row);
        }
      }
      count = static_cast<int>(
          std::remove_if(walks, walks + count, [](const Walk& w) { return w.is_done(); }) - walks);
    }
  }

  Walk begin_walk(const Target& t, int64_t unit, int64_t tile, Scratch& scratch) const {
    Walk w;
    w.target = &t;
    w.row = t.rows.count * unit / shared_.units;
    w.last = t.rows.count * (unit + 1) / shared_.units;
    w.columns = {static_cast<int32_t>(t.rows.width * tile / tiles_),
                 static_cast<int32_t>(t.rows.width * (tile + 1) / tiles_)};
    w.length = (w.columns.end - w.columns.begin) * t.rows.channels;
    w.num_kept = std::max(1, Shared::most_rows(t));
    if (!w.is_done()) w.taps = taps_of(t, w.row);
    room(scratch.kept[t.branch], (w.length + kGap) * w.num_kept);
    room(scratch.rows.taps, w.num_kept);
    room(scratch.rows.weights, w.num_kept);
    return w;
  }

  // The rows of the gradient that a row of the branch reads.
  Range taps_of(const Target& t, int64_t row) const {
    const int64_t height = t.map.size[3], plane = row / height;
    const Range taps = t.height_rows.of(static_cast<int32_t>(row % height));
    const auto first = static_cast<int32_t>(plane * shared_.params.grad.size[3]);
    return {first + taps.begin, first + taps.end};
  }

  // Row g of the gradient behind the gate; points at its column 0, wherever that would be.
  const acc_t* gated_pixels(const Target& t, int64_t g, Range pixels, Scratch& scratch) const {
    const Map& grad = shared_.params.grad;
    const int64_t channels = grad.size[1], columns = pixels.end - pixels.begin;
    Position p = position_of(grad, g * grad.size[4] * channels);
    p.at[2] = pixels.begin;
    const void* from = advance(grad.data, grad.dtype, offset_in(grad.stride, p));
    const int64_t bit = offset_of(grad, p.n, p.c, p.at[0], p.at[1], p.at[2]);
    return shared_.gated(t, from, bit, {columns, channels, grad.stride[4], grad.stride[1]},
                         room(scratch.row, columns * channels), scratch.rows) -
           pixels.begin * channels;
  }

  static acc_t* kept_row(const Walk& w, int64_t g, Scratch& scratch) {
    return scratch.kept[w.target->branch].data() + g % w.num_kept * (w.length + kGap);
  }

  void keep(Walk& w, int64_t g, const acc_t* row, Scratch& scratch) const {
    const Target& t = *w.target;
    if (!t.width) {
      const acc_t* from = row + w.columns.begin * t.rows.channels;
      w.in_place = t.height ? nullptr : from;
      if (t.height) std::copy_n(from, w.length, kept_row(w, g, scratch));
      return;
    }
    const PixelSource<acc_t> from{row, t.rows.channels, &t.taps, acc_t(1)};
    const PixelSlice<acc_t> slice{
        &from, 1, t.width->max_count(), t.rows.channels, kKeep.dtype, t.width->has_pairs(), false};
    shared_.ops.along_pixels({kept_row(w, g, scratch), nullptr, &slice, 1, w.columns.begin,
                              w.columns.end - w.columns.begin, kKeep});
  }

  // The branch's next row, all that it reads being kept.
  void write_row(const Walk& w, int64_t unit, Scratch& scratch) {
    const Target& t = *w.target;
    const int64_t offset = (w.row * t.rows.width + w.columns.begin) * t.rows.channels;
    const Position p = position_of(t.map, offset);
    const acc_t* weights = t.height_rows.weights_of(p.at[1]);
    const acc_t factor = shared_.factor_of(t, p);
    typename Shared::Scratch& rows = scratch.rows;
    rows.count = w.taps.end - w.taps.begin;
    for (int32_t i = 0; i < rows.count; ++i) {
      rows.taps[i] = w.in_place ? w.in_place : kept_row(w, w.taps.begin + i, scratch);
      rows.weights[i] = weights ? factor * weights[i] : factor;
    }
    if (rows.count == 0) {  // nothing reads this row: zero times a row of zeros
      rows.taps[0] = room(scratch.zeros, w.length);
      rows.weights[0] = acc_t(0);
      rows.count = 1;
    }
    shared_.write(
        t, p, w.columns.end - w.columns.begin, offset, unit, rows,
        [&](void* to, const Finish& how) { shared_.combine_dense(to, how, w.length, rows); });
  }

  Shared& shared_;
  int64_t tiles_ = 0;
};

}  // namespace msr
