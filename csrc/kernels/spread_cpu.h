// The general spread on the CPU: the gradients of all branches from one map, by gathering. Any strides, rank, element
// types and taps.
//
// Each branch's memory is cut into chunks of kChunk elements, whatever the number of threads, and so is the sum for
// the gradient of its weight: results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "gather_cpu.h"

namespace msr {

template <typename acc_t>
class SpreadCpu {
 public:
  explicit SpreadCpu(const SpreadParams& params) : params_(params) {
    for (int b = 0; b < params.num_branches; ++b) {
      const bool wanted = params.branches[b].map.data || params.inputs[b];
      first_chunk_[b + 1] = first_chunk_[b] + (wanted ? ceil_div(numel(params.branches[b].map), kChunk) : 0);
      if (!wanted) continue;
      for (int a = 0; a < kSpatialDims; ++a) {
        tables_[b][a] = TapTable<acc_t>::make(params.branches[b].axis[a], /*adjoint=*/true);
      }
    }
    partial_dots_.resize(num_chunks(), 0.0);
  }

  int64_t num_chunks() const { return first_chunk_[params_.num_branches]; }

  // Writes the elements of one chunk of one branch.
  void run(int64_t chunk) {
    const int b = static_cast<int>(
        std::upper_bound(first_chunk_.begin(), first_chunk_.begin() + params_.num_branches + 1, chunk) -
        first_chunk_.begin() - 1);
    const Branch& branch = params_.branches[b];
    const Map& map = branch.map;
    const int64_t begin = (chunk - first_chunk_[b]) * kChunk;
    const int64_t end = std::min(numel(map), begin + kChunk);
    const int64_t run_axis = map.channels_last ? map.size[1] : map.size[4];
    const acc_t scale = params_.weights ? static_cast<const acc_t*>(params_.weights)[b] : acc_t(1);
    std::array<acc_t, kChunk> sum;
    for (int64_t offset = begin; offset < end;) {
      const Position p = position_of(map, offset);
      const int64_t length = std::min(run_axis - (map.channels_last ? p.c : p.at[2]), end - offset);
      std::fill_n(sum.data(), length, acc_t(0));
      const bool over_batch = map.size[0] != params_.grad.size[0];
      const int64_t n_end = over_batch ? params_.grad.size[0] : p.n + 1;
      for (int64_t n = over_batch ? 0 : p.n; n < n_end; ++n) {
        if (map.channels_last) {
          add_channel_run(b, n, p, length, sum.data());
        } else {
          add_width_run(b, n, p, length, sum.data());
        }
      }
      if (params_.inputs[b]) partial_dots_[chunk] += dot(b, p, length, sum.data());
      if (map.data) {
        for (int64_t k = 0; k < length; ++k) sum[k] *= scale;
        store_row(map.data, map.dtype, offset, sum.data(), length);
      }
      offset += length;
    }
  }

  // <R_b^T(gate * grad), x_b>, summed in chunk order, once every chunk has run.
  double dot_of(int b) const {
    double sum = 0;
    for (int64_t i = first_chunk_[b]; i < first_chunk_[b + 1]; ++i) sum += partial_dots_[i];
    return sum;
  }

 private:
  using Table = TapTable<acc_t>;

  // sum[k] += R_b^T(gate * grad[n]) at (c, d, h, w + k)
  void add_width_run(int b, int64_t n, const Position& p, int64_t length, acc_t* sum) const {
    const Branch& branch = params_.branches[b];
    const Map& grad = params_.grad;
    const int64_t c = p.c + branch.channel_begin;
    const Table& table_w = tables_[b][2];
    const auto last = table_w[static_cast<int32_t>(p.at[2] + length - 1)];
    const int32_t w_begin = table_w[p.at[2]].first;
    const int32_t w_end = std::max(w_begin, last.first + last.count);
    std::vector<acc_t> row(w_end - w_begin);  // the part of a row of grad that this run reads
    std::array<acc_t, kChunk> plane;
    with_type(grad.data, grad.dtype, [&](const auto* data) {
      data += n * grad.stride[0] + c * grad.stride[1] + w_begin * grad.stride[4];
      const auto taps_d = tables_[b][0][p.at[0]];
      const auto taps_h = tables_[b][1][p.at[1]];
      for (int32_t i = 0; i < taps_d.count; ++i) {
        std::fill_n(plane.data(), length, acc_t(0));
        for (int32_t j = 0; j < taps_h.count; ++j) {
          const int32_t d = taps_d.first + i, h = taps_h.first + j;
          std::fill(row.begin(), row.end(), acc_t(0));
          add_row(row.data(), data + d * grad.stride[2] + h * grad.stride[3], grad.stride[4],
                  static_cast<int64_t>(row.size()), acc_t(1));
          gate(offset_of(grad, n, c, d, h, w_begin), grad.channels_last ? grad.size[1] : 1,
               row.data(), static_cast<int64_t>(row.size()));
          for (int64_t k = 0; k < length; ++k) {
            const auto taps_w = table_w[static_cast<int32_t>(p.at[2] + k)];
            const acc_t* values = row.data() + (taps_w.first - w_begin);
            acc_t value = 0;
            for (int32_t t = 0; t < taps_w.count; ++t) value += taps_w.weights[t] * values[t];
            plane[k] += taps_h.weights[j] * value;
          }
        }
        for (int64_t k = 0; k < length; ++k) sum[k] += taps_d.weights[i] * plane[k];
      }
    });
  }

  // sum[k] += R_b^T(gate * grad[n]) at (c + k, d, h, w)
  void add_channel_run(int b, int64_t n, const Position& p, int64_t length, acc_t* sum) const {
    const Branch& branch = params_.branches[b];
    const Map& grad = params_.grad;
    const int64_t c = p.c + branch.channel_begin;
    std::array<acc_t, kChunk> value, row, plane;
    with_type(grad.data, grad.dtype, [&](const auto* data) {
      data += n * grad.stride[0] + c * grad.stride[1];
      const auto taps_d = tables_[b][0][p.at[0]];
      const auto taps_h = tables_[b][1][p.at[1]];
      const auto taps_w = tables_[b][2][p.at[2]];
      for (int32_t i = 0; i < taps_d.count; ++i) {
        std::fill_n(plane.data(), length, acc_t(0));
        for (int32_t j = 0; j < taps_h.count; ++j) {
          std::fill_n(row.data(), length, acc_t(0));
          for (int32_t t = 0; t < taps_w.count; ++t) {
            const int32_t d = taps_d.first + i, h = taps_h.first + j, w = taps_w.first + t;
            const auto* from = data + d * grad.stride[2] + h * grad.stride[3] + w * grad.stride[4];
            if (params_.gate) {
              std::fill_n(value.data(), length, acc_t(0));
              add_row(value.data(), from, grad.stride[1], length, taps_w.weights[t]);
              gate(offset_of(grad, n, c, d, h, w),
                   grad.channels_last ? 1 : grad.size[2] * grad.size[3] * grad.size[4], value.data(), length);
              for (int64_t k = 0; k < length; ++k) row[k] += value[k];
            } else {
              add_row(row.data(), from, grad.stride[1], length, taps_w.weights[t]);
            }
          }
          for (int64_t k = 0; k < length; ++k) plane[k] += taps_h.weights[j] * row[k];
        }
        for (int64_t k = 0; k < length; ++k) sum[k] += taps_d.weights[i] * plane[k];
      }
    });
  }

  // Zeroes the values whose bit, at offset + k * stride, is not set.
  void gate(int64_t offset, int64_t stride, acc_t* values, int64_t length) const {
    if (!params_.gate) return;
    for (int64_t k = 0; k < length; ++k) {
      values[k] = mask_bit(params_.gate, offset + k * stride) ? values[k] : acc_t(0);
    }
  }

  double dot(int b, const Position& p, int64_t length, const acc_t* sum) const {
    const int64_t(&stride)[kDims] = params_.input_stride[b];
    const int64_t step = params_.branches[b].map.channels_last ? stride[1] : stride[4];
    double result = 0;
    with_type(params_.inputs[b], params_.input_dtype[b], [&](const auto* data) {
      data += p.n * stride[0] + p.c * stride[1] + p.at[0] * stride[2] + p.at[1] * stride[3] + p.at[2] * stride[4];
      for (int64_t k = 0; k < length; ++k) {
        result += static_cast<double>(sum[k]) * widen<double>(data[k * step]);
      }
    });
    return result;
  }

  const SpreadParams& params_;
  std::array<std::array<Table, kSpatialDims>, kMaxInputs> tables_;
  std::array<int64_t, kMaxInputs + 1> first_chunk_{};
  std::vector<double> partial_dots_;
};

}  // namespace msr
