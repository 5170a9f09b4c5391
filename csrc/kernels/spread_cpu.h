// The general spread on the CPU: the gradients of all branches from one map, by gathering. Any
// strides, rank, element types and taps.
//
// Each branch is written row by row, a row in tiles. Per tile the rows of the incoming gradient are
// first combined over batch, depth and height, then along the width. Chunks of rows are the unit of
// threading and of the sums for the weights' gradients; they depend on the sizes alone, so results
// do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "params.h"
#include "rows_cpu.h"
#include "tables_cpu.h"

namespace msr {

template <typename acc_t>
class SpreadCpu {
 public:
  explicit SpreadCpu(const SpreadParams& params) : params_(params) {
    for (int b = 0; b < params.num_branches; ++b) {
      const Map& map = params.branches[b].map;
      const bool wanted = map.data || params.inputs[b];
      first_chunk_[b + 1] = first_chunk_[b] + (wanted ? Rows(map).num_chunks() : 0);
      if (!wanted) continue;
      for (int a = 0; a < kSpatialDims; ++a) {
        tables_[b][a] = TapTable<acc_t>::make(params.branches[b].axis[a], /*adjoint=*/true);
      }
    }
    partial_dots_.resize(num_chunks(), 0.0);
  }

  int64_t num_chunks() const { return first_chunk_[params_.num_branches]; }

  // Writes the rows of chunks [begin, end).
  void run(int64_t begin, int64_t end) {
    Scratch scratch;
    for (int b = 0; b < params_.num_branches; ++b) {
      const int64_t last = std::min(end, first_chunk_[b + 1]);
      for (int64_t chunk = std::max(begin, first_chunk_[b]); chunk < last; ++chunk)
        run_chunk(b, chunk, scratch);
    }
  }

  // <R_b^T(gate * grad), x_b>, summed in chunk order, once every chunk has run.
  double dot_of(int b) const {
    double sum = 0;
    for (int64_t i = first_chunk_[b]; i < first_chunk_[b + 1]; ++i) sum += partial_dots_[i];
    return sum;
  }

 private:
  struct Scratch {
    std::vector<acc_t> sum;  // of the tile
    std::vector<acc_t>
        row;  // the columns of the gradient that the tile reads, combined over all other axes
    std::vector<acc_t> plane;  // the same of one depth
    std::vector<acc_t> gated;  // one row of the gradient behind the gate
  };

  void run_chunk(int b, int64_t chunk, Scratch& scratch) {
    const Branch& branch = params_.branches[b];
    const Map& map = branch.map;
    const Rows rows(map);
    const acc_t factor = params_.weights ? static_cast<const acc_t*>(params_.weights)[b] : acc_t(1);
    // As many columns as keep the stretch of the gradient that they read in the cache.
    const int64_t ratio = std::max<int64_t>(1, branch.axis[2].out_size / branch.axis[2].in_size);
    const int64_t tile = std::max<int64_t>(1, Rows::kTile / (rows.channels * ratio));
    const int64_t begin = (chunk - first_chunk_[b]) * rows.per_chunk;
    const int64_t end = std::min(rows.count, begin + rows.per_chunk);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t row_offset = row * rows.width * rows.channels;
      Position p = position_of(map, row_offset);
      for (int64_t w = 0; w < rows.width; w += tile) {
        p.at[2] = static_cast<int32_t>(w);
        const int64_t columns = std::min(tile, rows.width - w);
        sum_tile(b, p, columns, rows.channels, scratch);
        if (params_.inputs[b])
          partial_dots_[chunk] += dot(b, p, columns, rows.channels, scratch.sum.data());
        if (!map.data) continue;
        for (acc_t& value : scratch.sum) value *= factor;
        store_row(map.data, map.dtype, row_offset + w * rows.channels, scratch.sum.data(),
                  static_cast<int64_t>(scratch.sum.size()));
      }
    }
  }

  // scratch.sum = R_b^T(gate * grad) for the pixels of the tile that begins at p.
  void sum_tile(int b, const Position& p, int64_t columns, int64_t channels,
                Scratch& scratch) const {
    const TapTable<acc_t>& table = tables_[b][2];
    const Range source = table.range(p.at[2], static_cast<int32_t>(p.at[2] + columns));
    combine_rows(b, p, source, channels, scratch);
    if (params_.branches[b].axis[2].rule == Rule::kIdentity) {
      scratch.sum.swap(scratch.row);
      return;
    }
    scratch.sum.resize(columns * channels);
    for (int64_t k = 0; k < columns; ++k) {
      const auto taps = table[static_cast<int32_t>(p.at[2] + k)];
      const acc_t* from = scratch.row.data() + (taps.first - source.begin) * channels;
      acc_t* to = scratch.sum.data() + k * channels;
      if (channels == 1) {
        acc_t value = 0;
        for (int32_t t = 0; t < taps.count; ++t) value += taps.weights[t] * from[t];
        *to = value;
        continue;
      }
      std::fill_n(to, channels, acc_t(0));
      for (int32_t t = 0; t < taps.count; ++t) {
        scale_stretch<true>(to, from + t * channels, {channels, 1, 1, 0}, taps.weights[t]);
      }
    }
  }

  // scratch.row = columns [source.begin, source.end) of gate * grad, combined over batch (where the
  // branch was broadcast), depth and height.
  void combine_rows(int b, const Position& p, Range source, int64_t channels,
                    Scratch& scratch) const {
    const Branch& branch = params_.branches[b];
    const Map& grad = params_.grad;
    const int64_t c = p.c + branch.channel_begin;
    const auto taps_d = tables_[b][0][p.at[0]];
    const auto taps_h = tables_[b][1][p.at[1]];
    const bool over_batch = branch.map.size[0] != grad.size[0];
    const int64_t n_end = over_batch ? grad.size[0] : p.n + 1;
    const Stretch stretch{source.end - source.begin, channels, grad.stride[4], grad.stride[1]};
    const Stretch dense{stretch.numel(), 1, 1, 0};
    scratch.row.assign(dense.columns, acc_t(0));
    with_type(grad.data, grad.dtype, [&](const auto* data) {
      data += c * grad.stride[1] + source.begin * grad.stride[4];
      for (int64_t n = over_batch ? 0 : p.n; n < n_end; ++n) {
        for (int32_t i = 0; i < taps_d.count; ++i) {
          // With one depth the rows add up in place.
          std::vector<acc_t>& plane = taps_d.count > 1 ? scratch.plane : scratch.row;
          if (taps_d.count > 1) scratch.plane.assign(dense.columns, acc_t(0));
          const acc_t weight_d = taps_d.count > 1 ? acc_t(1) : taps_d.weights[i];
          for (int32_t j = 0; j < taps_h.count; ++j) {
            const int32_t d = taps_d.first + i, h = taps_h.first + j;
            const auto* from = data + n * grad.stride[0] + d * grad.stride[2] + h * grad.stride[3];
            const acc_t weight = weight_d * taps_h.weights[j];
            if (params_.gate) {
              scratch.gated.resize(dense.columns);
              scale_stretch<false>(scratch.gated.data(), from, stretch, weight);
              gate(offset_of(grad, n, c, d, h, source.begin), stretch, scratch.gated.data());
              scale_stretch<true>(plane.data(), scratch.gated.data(), dense, acc_t(1));
            } else {
              scale_stretch<true>(plane.data(), from, stretch, weight);
            }
          }
          if (taps_d.count > 1)
            scale_stretch<true>(scratch.row.data(), plane.data(), dense, taps_d.weights[i]);
        }
      }
    });
  }

  // Zeroes what the gate holds back of a dense stretch, whose first value has bit `offset`.
  void gate(int64_t offset, const Stretch& stretch, acc_t* values) const {
    const Map& grad = params_.grad;
    if (stretch.channels == 1) {
      gate_row(params_.gate, offset, grad.channels_last ? grad.size[1] : 1, values,
               stretch.columns);
      return;
    }
    const int64_t channel_step =
        grad.channels_last ? 1 : grad.size[2] * grad.size[3] * grad.size[4];
    const int64_t column_step = grad.channels_last ? grad.size[1] : 1;
    for (int64_t k = 0; k < stretch.columns; ++k) {
      gate_row(params_.gate, offset + k * column_step, channel_step, values + k * stretch.channels,
               stretch.channels);
    }
  }

  // <sum, x_b> over the tile that begins at p.
  double dot(int b, const Position& p, int64_t columns, int64_t channels, const acc_t* sum) const {
    const int64_t (&stride)[kDims] = params_.input_stride[b];
    double result = 0;
    with_type(params_.inputs[b], params_.input_dtype[b], [&](const auto* data) {
      data += p.n * stride[0] + p.c * stride[1] + p.at[0] * stride[2] + p.at[1] * stride[3] +
              p.at[2] * stride[4];
      for (int64_t k = 0; k < columns; ++k) {
        for (int64_t c = 0; c < channels; ++c) {
          result +=
              static_cast<double>(*sum++) * widen<double>(data[k * stride[4] + c * stride[1]]);
        }
      }
    });
    return result;
  }

  const SpreadParams& params_;
  std::array<std::array<TapTable<acc_t>, kSpatialDims>, kMaxInputs> tables_;
  std::array<int64_t, kMaxInputs + 1> first_chunk_{};
  std::vector<double> partial_dots_;
};

}  // namespace msr
