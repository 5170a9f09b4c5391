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
  }

  struct Scratch {
    std::vector<acc_t> row;
    std::vector<acc_t> best[2];     // of the windows' rows: elements, numbers of the rows
    std::vector<acc_t> taken[2];    // of the windows: numbers of the rows and of the columns
    std::vector<acc_t> strided[2];  // one column of all windows, brought together
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
    const PoolRow<acc_t> best{room(scratch.best[0], length), room(scratch.best[1], length)};
    take_rows(p, c, read, channels, best, scratch);
    const PoolPlace<acc_t> taken{to, room(scratch.taken[0], columns * channels),
                                 room(scratch.taken[1], columns * channels)};
    take_columns(p.at[2], columns, read, channels, best, taken, scratch);
    // A branch that is broadcast over the batch has one index for all images.
    if (index && (map.size[0] != 1 || p.n == 0))
      put_index(index, wide, index_offset(p.n, c, p), taken, columns * channels);
  }

  // Adds to `to`, a row of the branch's gradient at p, of pixels of `channels` values: the elements
  // of `grad`, a dense row at (d, h) of the common map's columns [columns.begin, columns.end), that
  // were taken from it. n and c: of the branch.
  void add_taken(const Position& p, int32_t d, int32_t h, Range columns, int64_t channels,
                 const acc_t* grad, const void* index, bool wide, acc_t* to) const {
    const Axis& width = branch_.axis[2];
    const auto stride = static_cast<int64_t>(width.scale);
    const int64_t (&size)[kDims] = index_map_.size;
    const int64_t column_stride = channels_last_ ? size[1] : 1;
    const int64_t channel_stride = channels_last_ ? 1 : size[2] * size[3] * size[4];
    const int64_t offset = index_offset(p.n, p.c, {p.n, p.c, {d, h, columns.begin}});
    // Places in the row of the window that is p's.
    const int32_t first = row_number({p.n, p.c, {d, h, 0}}, p.at[0], p.at[1]) * kernel_width_;
    const auto add = [&](const auto* codes) {
      for (int32_t w = columns.begin; w < columns.end; ++w, codes += column_stride) {
        acc_t* window = to + (w * stride - width.padding) * channels;
        for (int64_t c = 0; c < channels; ++c, ++grad) {
          const int32_t column = static_cast<int32_t>(codes[c * channel_stride]) - first;
          if (column >= 0 && column < kernel_width_) window[column * channels + c] += *grad;
        }
      }
    };
    if (wide) {
      add(static_cast<const int32_t*>(index) + offset);
    } else {
      add(static_cast<const uint8_t*>(index) + offset);
    }
  }

 private:
  // Rows of a window are numbered from its corner, which may lie in the padding.
  int32_t row_number(const Position& window, int32_t d, int32_t h) const {
    const auto from = [&](int axis, int32_t i) {
      const Axis& a = branch_.axis[axis];
      return i - (window.at[axis] * static_cast<int32_t>(a.scale) - a.padding);
    };
    return from(0, d) * kernel_height_ + from(1, h);
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
    bool first = true;
    for (int32_t d = depths.begin; d < depths.end; ++d) {
      for (int32_t h = heights.begin; h < heights.end; ++h) {
        const int64_t at = p.n * map.stride[0] + c * map.stride[1] + d * map.stride[2] +
                           h * map.stride[3] + read.begin * map.stride[4];
        acc_t* row = first ? best.values : room(scratch.row, length);
        load_stretch(row, advance(map.data, map.dtype, at), map.dtype, stretch, ops_);
        const auto number = static_cast<acc_t>(row_number(p, d, h));
        if (first) {
          std::fill_n(best.rows, length, number);
        } else {
          ops_.take_row(best, row, number, length);
        }
        first = false;
      }
    }
  }

  // The largest over the columns of each window, one column of all windows after the other.
  void take_columns(int32_t begin, int64_t columns, Range read, int64_t channels,
                    PoolRow<acc_t> best, PoolPlace<acc_t> taken, Scratch& scratch) const {
    const Axis& width = branch_.axis[2];
    const auto stride = static_cast<int64_t>(width.scale);
    const int64_t length = columns * channels;
    // Any element comes before this one.
    std::fill_n(taken.values, length, -std::numeric_limits<acc_t>::infinity());
    std::fill_n(taken.rows, length, std::numeric_limits<acc_t>::max());
    std::fill_n(taken.columns, length, acc_t(0));
    for (int32_t tap = 0; tap < kernel_width_; ++tap) {
      // The windows whose column `tap` is inside the map: k * stride + shift is, in what was read.
      const int64_t shift = begin * stride - width.padding + tap - read.begin;
      const int64_t inside = read.end - read.begin;
      const int64_t from = shift >= 0 ? 0 : std::min(columns, ceil_div(-shift, stride));
      const int64_t to = shift >= inside
                             ? from
                             : std::max(from, std::min(columns, (inside - 1 - shift) / stride + 1));
      const PoolPlace<acc_t> place{taken.values + from * channels, taken.rows + from * channels,
                                   taken.columns + from * channels};
      const int64_t first = (from * stride + shift) * channels;
      const PoolRow<acc_t> here{best.values + first, best.rows + first};
      const auto number = static_cast<acc_t>(tap);
      if (stride == 1) {
        ops_.take_column(place, here, number, (to - from) * channels);
      } else if (channels == 1) {
        const PoolRow<acc_t> together{room(scratch.strided[0], to - from),
                                      room(scratch.strided[1], to - from)};
        for (int64_t k = 0; k < to - from; ++k) {
          together.values[k] = here.values[k * stride];
          together.rows[k] = here.rows[k * stride];
        }
        ops_.take_column(place, together, number, to - from);
      } else {
        for (int64_t k = 0; k < to - from; ++k) {
          const int64_t at = k * channels, source = k * stride * channels;
          ops_.take_column({place.values + at, place.rows + at, place.columns + at},
                           {here.values + source, here.rows + source}, number, channels);
        }
      }
    }
  }

  void put_index(void* index, bool wide, int64_t offset, const PoolPlace<acc_t>& taken,
                 int64_t length) const {
    const auto code = [&](int64_t k) {
      return static_cast<int32_t>(taken.rows[k]) * kernel_width_ +
             static_cast<int32_t>(taken.columns[k]);
    };
    if (wide) {
      int32_t* codes = static_cast<int32_t*>(index) + offset;
      for (int64_t k = 0; k < length; ++k) codes[k] = code(k);
    } else {
      uint8_t* codes = static_cast<uint8_t*>(index) + offset;
      for (int64_t k = 0; k < length; ++k) codes[k] = static_cast<uint8_t>(code(k));
    }
  }

  const Branch& branch_;
  const RowOps<acc_t>& ops_;
  bool channels_last_;
  int32_t kernel_height_, kernel_width_;
  Map index_map_;  // sizes and order of the index
};

}  // namespace msr
