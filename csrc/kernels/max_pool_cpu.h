// Max-pooled branches on the CPU: their rows, and which element of each window was taken.
//
// As ATen's max_pool: of equal elements the first is taken, NaN before any number, and of several
// the last. Padding is never seen. The rows of the windows are compared first, then their columns:
// each element is read once for all windows of a row. Places in a window are kept as numbers of the
// accumulation type, in one vector with the elements.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "row_ops.h"
#include "rows_cpu.h"

namespace msr {

template <typename acc_t>
class MaxPoolCpu {
 public:
  // common: the map that the branch is pooled to.
  MaxPoolCpu(const Branch& branch, const Map& common, const RowOps<acc_t>& ops)
      : branch_(branch),
        ops_(ops),
        channels_last_(common.channels_last),
        kernel_height_(static_cast<int32_t>(branch.axis[1].inverse)),
        kernel_width_(static_cast<int32_t>(branch.axis[2].inverse)),
        index_map_(branch.map) {
    const int64_t sizes[kDims] = {branch.map.size[0], branch.map.size[1], common.size[2],
                                  common.size[3], common.size[4]};
    set_sizes(index_map_, sizes);
    index_map_.channels_last = channels_last_;
    for (int32_t t = 0; t < kernel_width_; ++t) tap_numbers_.push_back(static_cast<acc_t>(t));
    const auto kernel_depth = static_cast<int32_t>(branch.axis[0].inverse);
    const auto height = static_cast<int32_t>(branch.map.size[3]);
    for (int32_t d = 0; d < kernel_depth; ++d) {
      for (int32_t h = 0; h < kernel_height_; ++h) {
        for (int32_t t = 0; t < kernel_width_; ++t)
          places_.push_back({d * height + h, (d * height + h) * branch.map.size[4] + t});
      }
    }
  }

  struct Scratch {
    std::vector<const acc_t*> rows;  // of windows, their numbers,
    std::vector<acc_t> numbers, copies;
    std::vector<acc_t> best[2];        // and of their largest: elements, numbers of the rows
    std::vector<acc_t> taken[2];       // of the windows: numbers of the rows and of the columns
    std::vector<PoolRow<acc_t>> taps;  // the columns of windows
    std::vector<acc_t> strided[2];     // elements by their places modulo the stride
    std::vector<acc_t> gradient;       // of a row, see begin_gradient
  };

  // The maxima for `columns` pixels from p on, dense, and into `index`, unless it is null, their
  // places in the windows. p.c is a channel of the common map.
  void row(const Position& p, int64_t columns, acc_t* to, void* index, bool wide,
           Scratch& scratch) const {
    const Map& map = branch_.map;
    const int64_t channels = channels_last_ ? map.size[1] : 1;
    const int64_t c = channels_last_ ? 0 : p.c - branch_.channel_begin;
    const auto last = static_cast<int32_t>(p.at[2] + columns - 1);
    const Range read{pool_window(branch_.axis[2], p.at[2]).begin,
                     pool_window(branch_.axis[2], last).end};
    const int64_t length = (read.end - read.begin) * channels;
    const bool tracked = is_tracked(p, index);
    const PoolRow<acc_t> best = best_of(length, tracked, scratch);
    take_rows(p, c, read, channels, best, scratch);
    const PoolPlace<acc_t> taken = taken_to(to, columns * channels, tracked, scratch);
    take_columns(p.at[2], columns, read, channels, best, taken, scratch);
    if (tracked) put_index(index, wide, index_offset(p.n, c, p), taken, columns * channels);
  }

  // The same for whole rows of one channel that follow each other.
  void rows(const Position& p, int64_t count, acc_t* to, void* index, bool wide,
            Scratch& scratch) const {
    const int64_t width = index_map_.size[4], inside = branch_.map.size[4], step = stride();
    Position at = p;
    if (count == 1 || inside != width * step) {
      for (int64_t i = 0; i < count; ++i, ++at.at[1])
        row(at, width, to + i * width, index, wide, scratch);
      return;
    }
    // The rows are one to which the windows' step leads from row to row: only those windows that
    // reach beyond the ends of their rows are seen to one by one.
    const int64_t c = p.c - branch_.channel_begin, windows = count * width;
    const int64_t before = branch_.axis[2].padding, around = before + kernel_width_;
    const bool tracked = is_tracked(p, index);
    const int64_t size = count * inside + 2 * around;
    const PoolRow<acc_t> padded = best_of(size, tracked, scratch);
    for (acc_t* memory : {padded.values, padded.rows}) {
      if (!memory) continue;
      std::fill_n(memory, around, acc_t(0));
      std::fill_n(memory + size - around, around, acc_t(0));
    }
    const PoolRow<acc_t> best = from(padded, around);
    for (int64_t i = 0; i < count; ++i, ++at.at[1])
      take_rows(at, c, {0, static_cast<int32_t>(inside)}, 1, from(best, i * inside), scratch);
    const PoolPlace<acc_t> taken = taken_to(to, windows, tracked, scratch);
    take_side_by_side(windows, from(best, -before), taken, scratch);
    for (int64_t k = 0; k < width; ++k) {
      const int64_t first = k * step - before;
      if (first >= 0 && first + kernel_width_ <= inside) continue;
      const auto from_tap = static_cast<int32_t>(std::max<int64_t>(0, -first));
      const auto end_tap = static_cast<int32_t>(std::min<int64_t>(kernel_width_, inside - first));
      for (int64_t i = 0; i < count; ++i) {
        take_taps(from_tap, end_tap, from(best, i * inside + first), 1, from(taken, i * width + k),
                  1, scratch);
      }
    }
    if (tracked) put_index(index, wide, index_offset(p.n, c, p), taken, windows);
  }

  // Some rows of a channel, counted over depth and height, dense.
  struct Rows {
    Range range;
    acc_t* grad;
    const acc_t* input;  // or null
  };

  // Writes what the windows took from the rows: grad(d, h) is a dense row of the windows' gradient,
  // of which they get `factor` times as much. n and c: of the branch. Returns the sum of the
  // products of the windows' gradient and the inputs.
  template <typename F>
  double add_up_rows(int64_t n, int64_t c, const Rows& to, const void* index, bool wide,
                     acc_t factor, F&& grad) const {
    const Range rows = to.range;
    const int64_t (&size)[kDims] = branch_.map.size;
    const auto height = static_cast<int32_t>(size[3]);
    std::fill_n(to.grad, (rows.end - rows.begin) * size[4], acc_t(0));
    double dot = 0;
    const int32_t first_d = rows.begin / height, last_d = (rows.end - 1) / height;
    const bool one_image = first_d == last_d;
    const Range depths = readers(0, first_d, last_d);
    const Range heights = readers(1, one_image ? rows.begin % height : 0,
                                  one_image ? (rows.end - 1) % height : height - 1);
    for (int32_t d = depths.begin; d < depths.end; ++d) {
      for (int32_t h = heights.begin; h < heights.end; ++h) {
        const Position window{n, c, {d, h, 0}};
        const void* codes = advance(index, wide, index_offset(n, c, window));
        const auto put = [&](const auto* typed) {
          if (to.input) {
            dot += put_back<true>(window, to, typed, grad(d, h), factor);
          } else {
            put_back<false>(window, to, typed, grad(d, h), factor);
          }
        };
        if (wide) {
          put(static_cast<const int32_t*>(codes));
        } else {
          put(static_cast<const uint8_t*>(codes));
        }
      }
    }
    return dot;
  }

  // The same for channels_last, where a row of the gradient is added up in scratch: begin,
  // add_taken for every row of windows that reads it, then write. It gets what the windows
  // [windows.begin, windows.end) took, pixels of `channels` values.
  void begin_gradient(Range windows, int64_t channels, Scratch& scratch) const {
    const int64_t size = pixels(windows) * channels;
    std::fill_n(room(scratch.gradient, size), size, acc_t(0));
  }

  // Adds the elements of `grad`, a dense row of windows at (d, h), that were taken from the row at
  // p. n and c: of the branch.
  void add_taken(const Position& p, int32_t d, int32_t h, Range windows, int64_t channels,
                 const acc_t* grad, const void* index, bool wide, Scratch& scratch) const {
    const int64_t (&size)[kDims] = index_map_.size;
    const int64_t offset = index_offset(p.n, p.c, {p.n, p.c, {d, h, windows.begin}});
    const int64_t count = windows.end - windows.begin;
    // Places in the row of the window that is p's.
    const int32_t first =
        row_number({p.n, p.c, {d, h, 0}}, p.at[0], p.at[1], kernel_height_) * kernel_width_;
    ops_.add_taken({scratch.gradient.data(), grad, advance(index, wide, offset), wide,
                    code_stride(), channels_last_ ? 1 : size[2] * size[3] * size[4], first,
                    kernel_width_, stride(), channels, count, channels});
  }

  // Columns [begin, begin + columns) of the row, dense.
  void write_gradient(Range windows, int64_t begin, int64_t columns, int64_t channels, acc_t* to,
                      const Scratch& scratch) const {
    // Windows begin in the padding.
    const int64_t first = begin + branch_.axis[2].padding - windows.begin * stride();
    // Pixels before the first window and after the last one are in none.
    const int64_t from = std::clamp<int64_t>(-first, 0, columns);
    const int64_t end = std::clamp<int64_t>(pixels(windows) - first, from, columns);
    std::fill_n(to, from * channels, acc_t(0));
    std::fill_n(to + end * channels, (columns - end) * channels, acc_t(0));
    std::copy_n(scratch.gradient.data() + (first + from) * channels, (end - from) * channels,
                to + from * channels);
  }

 private:
  int64_t stride() const { return static_cast<int64_t>(branch_.axis[2].scale); }

  // Whether it is kept which elements were taken. A branch that is broadcast over the batch has one
  // index for all images.
  bool is_tracked(const Position& p, const void* index) const {
    return index && (branch_.map.size[0] != 1 || p.n == 0);
  }

  // Room for the largest elements over the rows of windows, and for those over their columns.
  static PoolRow<acc_t> best_of(int64_t length, bool tracked, Scratch& scratch) {
    return {room(scratch.best[0], length), tracked ? room(scratch.best[1], length) : nullptr};
  }
  static PoolPlace<acc_t> taken_to(acc_t* to, int64_t length, bool tracked, Scratch& scratch) {
    if (!tracked) return {to, nullptr, nullptr};
    return {to, room(scratch.taken[0], length), room(scratch.taken[1], length)};
  }

  // From the first window's first pixel to the last one's last.
  int64_t pixels(Range windows) const {
    if (windows.begin == windows.end) return 0;
    return (windows.end - windows.begin - 1) * stride() + kernel_width_;
  }

  // An element of a window, from its corner on: its row, counted over depth and height, and where
  // it is in a dense map.
  struct Place {
    int32_t row;
    int64_t offset;
  };

  // The windows that hold any of [first, last] along an axis.
  Range readers(int axis, int32_t first, int32_t last) const {
    return {pool_readers(branch_.axis[axis], first).begin,
            pool_readers(branch_.axis[axis], last).end};
  }

  // Adds what the row of windows from `window` on took from the rows.
  template <bool kDots, typename code_t>
  double put_back(const Position& window, const Rows& to, const code_t* codes, const acc_t* grad,
                  acc_t factor) const {
    const int64_t width = branch_.map.size[4], count = index_map_.size[4];
    const auto height = static_cast<int32_t>(branch_.map.size[3]);
    const Range rows = to.range;
    // The windows' corner, which may lie in the padding, and the rows that they hold.
    const int32_t corner = -row_number(window, 0, 0, height);
    const Range d = pool_window(branch_.axis[0], window.at[0]);
    const Range h = pool_window(branch_.axis[1], window.at[1]);
    const bool all =
        d.begin * height + h.begin >= rows.begin && (d.end - 1) * height + h.end <= rows.end;
    const int64_t step = stride(), codes_apart = code_stride();
    const int64_t begin = (corner - rows.begin) * width - branch_.axis[2].padding;
    const Place* places = places_.data();
    double dot = 0;
    const auto put = [&](int64_t k, const Place& place) {
      const int64_t at = begin + k * step + place.offset;
      to.grad[at] += factor * grad[k];
      if (kDots) dot += static_cast<double>(grad[k] * to.input[at]);
    };
    if (all) {
      for (int64_t k = 0; k < count; ++k) put(k, places[codes[k * codes_apart]]);
    } else {
      for (int64_t k = 0; k < count; ++k) {
        const Place& place = places[codes[k * codes_apart]];
        const int32_t row = corner + place.row;
        if (row >= rows.begin && row < rows.end) put(k, place);
      }
    }
    return dot;
  }

  // Between codes of neighbouring windows.
  int64_t code_stride() const { return channels_last_ ? index_map_.size[1] : 1; }

  static const void* advance(const void* index, bool wide, int64_t elements) {
    if (wide) return static_cast<const int32_t*>(index) + elements;
    return static_cast<const uint8_t*>(index) + elements;
  }

  // The row at (d, h) of a map of so many rows per depth, counted from the window's corner, which
  // may lie in the padding.
  int32_t row_number(const Position& window, int32_t d, int32_t h, int32_t height) const {
    const auto from = [&](int axis, int32_t i) {
      const Axis& a = branch_.axis[axis];
      return i - (window.at[axis] * static_cast<int32_t>(a.scale) - a.padding);
    };
    return from(0, d) * height + from(1, h);
  }

  int64_t index_offset(int64_t n, int64_t c, const Position& p) const {
    return offset_of(index_map_, index_map_.size[0] == 1 ? 0 : n, c, p.at[0], p.at[1], p.at[2]);
  }

  // The largest elements over the rows of the windows, for the columns that are read.
  void take_rows(const Position& p, int64_t c, Range read, int64_t channels, PoolRow<acc_t> best,
                 Scratch& scratch) const {
    const Map& map = branch_.map;
    const Range depths = pool_window(branch_.axis[0], p.at[0]);
    const Range heights = pool_window(branch_.axis[1], p.at[1]);
    const Stretch stretch{read.end - read.begin, channels, map.stride[4], map.stride[1]};
    const int64_t length = stretch.numel();
    const auto count = (depths.end - depths.begin) * (heights.end - heights.begin);
    acc_t* copies = room(scratch.copies, count * length);
    const acc_t** rows = room(scratch.rows, count);
    acc_t* numbers = room(scratch.numbers, count);
    int32_t i = 0;
    for (int32_t d = depths.begin; d < depths.end; ++d) {
      for (int32_t h = heights.begin; h < heights.end; ++h, ++i, copies += length) {
        const int64_t at = p.n * map.stride[0] + c * map.stride[1] + d * map.stride[2] +
                           h * map.stride[3] + read.begin * map.stride[4];
        rows[i] =
            loaded_to(copies, msr::advance(map.data, map.dtype, at), map.dtype, stretch, ops_);
        numbers[i] = static_cast<acc_t>(row_number(p, d, h, kernel_height_));
      }
    }
    ops_.take_rows(best, rows, numbers, count, length);
  }

  // The same elements from number `offset` on.
  static acc_t* from(acc_t* memory, int64_t offset) { return memory ? memory + offset : nullptr; }
  static PoolRow<acc_t> from(PoolRow<acc_t> row, int64_t offset) {
    return {row.values + offset, from(row.rows, offset)};
  }
  static PoolPlace<acc_t> from(PoolPlace<acc_t> place, int64_t offset) {
    return {place.values + offset, from(place.rows, offset), from(place.columns, offset)};
  }

  // The largest over the columns of each window.
  void take_columns(int32_t begin, int64_t columns, Range read, int64_t channels,
                    PoolRow<acc_t> best, PoolPlace<acc_t> taken, Scratch& scratch) const {
    const int64_t step = stride(), inside = read.end - read.begin;
    // Window k begins at column k * step + shift of those that were read. The windows that lie
    // inside come one after the other.
    const int64_t shift = begin * step - branch_.axis[2].padding - read.begin;
    const int64_t first =
        std::clamp<int64_t>(ceil_div(std::max<int64_t>(0, -shift), step), 0, columns);
    const int64_t last =
        inside < kernel_width_ + shift
            ? first
            : std::clamp<int64_t>((inside - kernel_width_ - shift) / step + 1, first, columns);
    const PoolRow<acc_t> at_zero = from(best, shift * channels);
    for (int64_t k = 0; k < columns; ++k) {
      if (k == first && last > first && channels == 1) {
        take_side_by_side(last - first, from(at_zero, first * step), from(taken, first), scratch);
        k = last - 1;
        continue;
      }
      const auto from_tap = static_cast<int32_t>(std::max<int64_t>(0, -(k * step + shift)));
      const auto end_tap =
          static_cast<int32_t>(std::min<int64_t>(kernel_width_, inside - (k * step + shift)));
      take_taps(from_tap, end_tap, from(at_zero, k * step * channels), channels,
                from(taken, k * channels), channels, scratch);
    }
  }

  // Of windows of one channel: elements of the same number in their windows are `step` apart, and
  // are brought together first.
  void take_side_by_side(int64_t count, PoolRow<acc_t> first, PoolPlace<acc_t> taken,
                         Scratch& scratch) const {
    const int64_t step = stride();
    if (step == 1) return take_taps(0, kernel_width_, first, 1, taken, count, scratch);
    const int64_t size = count + kernel_width_ / step + 1;
    const int64_t read = (count - 1) * step + kernel_width_;
    const auto together = [&](std::vector<acc_t>& memory, const acc_t* strided) -> acc_t* {
      if (!strided) return nullptr;
      acc_t* dense = room(memory, step * size);
      for (int64_t r = 0; r < step; ++r) {
        const int64_t length = (read - r + step - 1) / step;
        acc_t* to = dense + r * size;
        const acc_t* from = strided + r;
        if (step == 2) {  // a constant, which compilers make shuffles of
          for (int64_t k = 0; k < length; ++k) to[k] = from[2 * k];
        } else {
          for (int64_t k = 0; k < length; ++k) to[k] = from[k * step];
        }
      }
      return dense;
    };
    const PoolRow<acc_t> dense{together(scratch.strided[0], first.values),
                               together(scratch.strided[1], first.rows)};
    PoolRow<acc_t>* taps = room(scratch.taps, kernel_width_);
    for (int32_t t = 0; t < kernel_width_; ++t) taps[t] = from(dense, t % step * size + t / step);
    ops_.take_columns(taken, taps, tap_numbers_.data(), kernel_width_, count);
  }

  // Taps [begin, end), which are `spacing` values apart, for `length` windows side by side.
  void take_taps(int32_t begin, int32_t end, PoolRow<acc_t> first, int64_t spacing,
                 PoolPlace<acc_t> taken, int64_t length, Scratch& scratch) const {
    PoolRow<acc_t>* taps = room(scratch.taps, kernel_width_);
    for (int32_t t = begin; t < end; ++t) taps[t] = from(first, t * spacing);
    ops_.take_columns(taken, taps + begin, tap_numbers_.data() + begin, end - begin, length);
  }

  void put_index(void* index, bool wide, int64_t offset, const PoolPlace<acc_t>& taken,
                 int64_t length) const {
    if (wide) {
      int32_t* codes = static_cast<int32_t*>(index) + offset;
      for (int64_t k = 0; k < length; ++k)
        codes[k] = static_cast<int32_t>(taken.rows[k]) * kernel_width_ +
                   static_cast<int32_t>(taken.columns[k]);
    } else {
      ops_.put_codes(static_cast<uint8_t*>(index) + offset, taken.rows, taken.columns,
                     static_cast<acc_t>(kernel_width_), length);
    }
  }

  const Branch& branch_;
  const RowOps<acc_t>& ops_;
  bool channels_last_;
  int32_t kernel_height_, kernel_width_;
  std::vector<acc_t> tap_numbers_;  // of the columns of a window
  std::vector<Place> places_;       // of its elements
  Map index_map_;                   // sizes and order of the index
};

}  // namespace msr
