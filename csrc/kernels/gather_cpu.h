// The general gather-sum on the CPU: any strides, rank, element types and taps.
//
// The output is written row by row, a row in tiles that fit into the first-level cache. Per tile
// and branch the source rows are first combined over depth and height, which is done on the
// low-resolution row, then along the width. Chunks of rows are the unit of threading; they depend
// on the sizes alone.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "params.h"
#include "rows_cpu.h"
#include "tables_cpu.h"

namespace msr {

template <typename acc_t>
class GatherCpu {
 public:
  explicit GatherCpu(const GatherParams& params) : params_(params), rows_(params.out) {
    for (int b = 0; b < params.num_branches; ++b) {
      if (is_identity(params.branches[b])) continue;
      for (int a = 0; a < kSpatialDims; ++a) {
        tables_[b][a] = TapTable<acc_t>::make(params.branches[b].axis[a], /*adjoint=*/false);
      }
    }
  }

  int64_t num_chunks() const { return rows_.num_chunks(); }

  // Writes the rows of chunks [begin, end).
  void run(int64_t begin, int64_t end) const {
    Scratch scratch;
    const Map& out = params_.out;
    const int64_t last = std::min(rows_.count, end * rows_.per_chunk);
    const int64_t tile = std::max<int64_t>(1, Rows::kTile / rows_.channels);
    for (int64_t row = begin * rows_.per_chunk; row < last; ++row) {
      const int64_t row_offset = row * rows_.width * rows_.channels;
      Position p = position_of(out, row_offset);
      for (int64_t w = 0; w < rows_.width; w += tile) {
        p.at[2] = static_cast<int32_t>(w);
        const int64_t columns = std::min(tile, rows_.width - w);
        scratch.sum.assign(columns * rows_.channels, acc_t(0));
        for (int b = 0; b < params_.num_branches; ++b) add_branch(b, p, columns, scratch);
        finish(row_offset + w * rows_.channels, scratch.sum);
      }
    }
    if (params_.mask && last == rows_.count) {
      // The mask ends with a whole 32-bit word, as warps write it: no bit of it may stay unwritten.
      const int64_t total = numel(out);
      std::fill(params_.mask + ceil_div(total, 8), params_.mask + 4 * ceil_div(total, 32),
                uint8_t{0});
    }
  }

 private:
  struct Scratch {
    std::vector<acc_t> sum;  // of the tile
    std::vector<acc_t>
        row;  // the source columns that the tile reads, combined over depth and height
    std::vector<acc_t> plane;  // the same of one depth
  };

  // sum += w_b * R_b(x_b) for the pixels of the tile that begins at p.
  void add_branch(int b, const Position& p, int64_t columns, Scratch& scratch) const {
    const Branch& branch = params_.branches[b];
    const Map& map = branch.map;
    const int64_t c =
        p.c - branch.channel_begin;  // negative: the tile has all channels, of other branches too
    if (!params_.out.channels_last && (c < 0 || c >= map.size[1])) return;
    const int64_t channels = params_.out.channels_last ? map.size[1] : 1;
    if (channels == 0) return;
    const acc_t factor = params_.weights ? static_cast<const acc_t*>(params_.weights)[b] : acc_t(1);
    acc_t* sum = scratch.sum.data() + (params_.out.channels_last ? branch.channel_begin : 0);
    Stretch stretch{columns, channels, map.stride[4], map.stride[1]};
    with_type(map.data, map.dtype, [&](const auto* data) {
      data += p.n * map.stride[0] + (params_.out.channels_last ? 0 : c * map.stride[1]);
      if (is_identity(branch)) {
        data += p.at[0] * map.stride[2] + p.at[1] * map.stride[3] + p.at[2] * map.stride[4];
        if (rows_.channels == channels) {
          scale_stretch<true>(sum, data, stretch, factor);
        } else {
          stretch.columns = 1;
          for (int64_t k = 0; k < columns; ++k) {
            scale_stretch<true>(sum + k * rows_.channels, data + k * map.stride[4], stretch,
                                factor);
          }
        }
        return;
      }
      const TapTable<acc_t>& table = tables_[b][2];
      const Range source = table.range(p.at[2], static_cast<int32_t>(p.at[2] + columns));
      stretch.columns = source.end - source.begin;
      const acc_t* row = combine_rows(b, p, data + source.begin * map.stride[4], stretch, scratch);
      add_columns(table, p.at[2], columns, source.begin, channels, factor, row, sum);
    });
  }

  // The stretch, combined over the taps of depth and height: in scratch.row, or where it lies if
  // that is the same.
  template <typename T>
  const acc_t* combine_rows(int b, const Position& p, const T* data, const Stretch& stretch,
                            Scratch& scratch) const {
    const Map& map = params_.branches[b].map;
    const auto taps_d = tables_[b][0][p.at[0]];
    const auto taps_h = tables_[b][1][p.at[1]];
    if constexpr (std::is_same_v<T, acc_t>) {
      if (taps_d.count == 1 && taps_h.count == 1 && stretch.is_dense()) {
        return data + taps_d.first * map.stride[2] +
               taps_h.first * map.stride[3];  // one tap has weight 1
      }
    }
    scratch.row.resize(stretch.numel());
    if (taps_d.count > 1) scratch.plane.resize(stretch.numel());
    std::vector<acc_t>& plane = taps_d.count > 1 ? scratch.plane : scratch.row;
    for (int32_t i = 0; i < taps_d.count; ++i) {
      for (int32_t j = 0; j < taps_h.count; ++j) {
        const T* from =
            data + (taps_d.first + i) * map.stride[2] + (taps_h.first + j) * map.stride[3];
        if (j == 0) {
          scale_stretch<false>(plane.data(), from, stretch, taps_h.weights[j]);
        } else {
          scale_stretch<true>(plane.data(), from, stretch, taps_h.weights[j]);
        }
      }
      if (taps_d.count == 1) break;
      const Stretch dense{stretch.numel(), 1, 1, 0};
      if (i == 0) {
        scale_stretch<false>(scratch.row.data(), plane.data(), dense, taps_d.weights[i]);
      } else {
        scale_stretch<true>(scratch.row.data(), plane.data(), dense, taps_d.weights[i]);
      }
    }
    return scratch.row.data();
  }

  // sum[k] += factor * (the taps of column w + k, applied to row, whose first column is `begin`)
  void add_columns(const TapTable<acc_t>& table, int32_t w, int64_t columns, int32_t begin,
                   int64_t channels, acc_t factor, const acc_t* __restrict row,
                   acc_t* __restrict sum) const {
    if (rows_.channels == 1 && table.max_count() <= 2) {
      const int32_t* index = table.pair_index() + 2 * w;
      const acc_t* weight = table.pair_weight() + 2 * w;
      if (table.max_count() == 1) {
        for (int64_t k = 0; k < columns; ++k) sum[k] += factor * row[index[2 * k] - begin];
        return;
      }
      for (int64_t k = 0; k < columns; ++k) {
        const acc_t left = weight[2 * k] * row[index[2 * k] - begin];
        sum[k] += factor * (left + weight[2 * k + 1] * row[index[2 * k + 1] - begin]);
      }
      return;
    }
    for (int64_t k = 0; k < columns; ++k) {
      const auto taps = table[static_cast<int32_t>(w + k)];
      const acc_t* from = row + (taps.first - begin) * channels;
      acc_t* to = sum + k * rows_.channels;
      if (taps.count == 1) {
        for (int64_t c = 0; c < channels; ++c) to[c] += factor * from[c];
      } else if (taps.count == 2) {
        const acc_t left = taps.weights[0], right = taps.weights[1];
        for (int64_t c = 0; c < channels; ++c)
          to[c] += factor * (left * from[c] + right * from[channels + c]);
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          acc_t value = 0;
          for (int32_t t = 0; t < taps.count; ++t)
            value += taps.weights[t] * from[t * channels + c];
          to[c] += factor * value;
        }
      }
    }
  }

  // Gate, mask, activation and the one rounding, for consecutive elements of the output's memory.
  void finish(int64_t offset, std::vector<acc_t>& sum) const {
    const auto length = static_cast<int64_t>(sum.size());
    if (params_.gate) gate_row(params_.gate, offset, 1, sum.data(), length);
    if (params_.mask) pack_row(params_.mask, offset, sum.data(), length);
    if (params_.activation == Activation::kRelu) {
      for (acc_t& value : sum) value = value <= 0 ? acc_t(0) : value;  // NaN stays
    }
    store_row(params_.out.data, params_.out.dtype, offset, sum.data(), length);
  }

  const GatherParams& params_;
  const Rows rows_;
  std::array<std::array<TapTable<acc_t>, kSpatialDims>, kMaxInputs> tables_;
};

}  // namespace msr
