// The general gather-sum on the CPU: any strides, rank, element types and taps.
//
// The output's memory is cut into chunks of kChunk elements, whatever the number of threads; a chunk is walked in runs
// along its innermost axis (width, or channels in channels_last), which are summed in the accumulation type.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "params.h"
#include "rows_cpu.h"
#include "tables_cpu.h"

namespace msr {

constexpr int64_t kChunk = 4096;  // a multiple of 8: chunks never share a byte of the mask

template <typename acc_t>
class GatherCpu {
 public:
  explicit GatherCpu(const GatherParams& params) : params_(params) {
    for (int b = 0; b < params.num_branches; ++b) {
      if (is_identity(params.branches[b])) continue;
      for (int a = 0; a < kSpatialDims; ++a) {
        tables_[b][a] = TapTable<acc_t>::make(params.branches[b].axis[a], /*adjoint=*/false);
      }
    }
  }

  int64_t num_chunks() const { return ceil_div(numel(params_.out), kChunk); }

  // Writes the elements of one chunk.
  void run(int64_t chunk) const {
    const Map& out = params_.out;
    const int64_t end = std::min(numel(out), (chunk + 1) * kChunk);
    const int64_t run_axis = out.channels_last ? out.size[1] : out.size[4];
    std::array<acc_t, kChunk> sum;
    for (int64_t offset = chunk * kChunk; offset < end;) {
      const Position p = position_of(out, offset);
      const int64_t at = out.channels_last ? p.c : p.at[2];
      const int64_t length = std::min(run_axis - at, end - offset);
      std::fill_n(sum.data(), length, acc_t(0));
      for (int b = 0; b < params_.num_branches; ++b) {
        if (out.channels_last) {
          add_channel_run(b, p, length, sum.data());
        } else {
          add_width_run(b, p, length, sum.data());
        }
      }
      finish(offset, length, sum.data());
      offset += length;
    }
    if (params_.mask && end == numel(out)) {
      // The mask ends with a whole 32-bit word, as warps write it: no bit of it may stay unwritten.
      std::fill(params_.mask + ceil_div(end, 8), params_.mask + 4 * ceil_div(end, 32), uint8_t{0});
    }
  }

 private:
  acc_t weight_of(int b) const { return params_.weights ? static_cast<const acc_t*>(params_.weights)[b] : acc_t(1); }

  // sum[k] += w_b * R_b(x_b) at (n, c, d, h, w + k)
  void add_width_run(int b, const Position& p, int64_t length, acc_t* sum) const {
    const Branch& branch = params_.branches[b];
    const Map& map = branch.map;
    const int64_t c = p.c - branch.channel_begin;
    if (c < 0 || c >= map.size[1]) return;
    with_type(map.data, map.dtype, [&](const auto* data) {
      data += p.n * map.stride[0] + c * map.stride[1];
      if (is_identity(branch)) {
        data += p.at[0] * map.stride[2] + p.at[1] * map.stride[3] + p.at[2] * map.stride[4];
        add_row(sum, data, map.stride[4], length, weight_of(b));
        return;
      }
      std::array<acc_t, kChunk> plane, volume;
      std::fill_n(volume.data(), length, acc_t(0));
      for_taps(tables_[b][0][p.at[0]], [&](int32_t d, acc_t weight_d) {
        std::fill_n(plane.data(), length, acc_t(0));
        for_taps(tables_[b][1][p.at[1]], [&](int32_t h, acc_t weight_h) {
          const auto* row = data + d * map.stride[2] + h * map.stride[3];
          for (int64_t k = 0; k < length; ++k) {
            acc_t value = 0;
            for_taps(tables_[b][2][static_cast<int32_t>(p.at[2] + k)], [&](int32_t w, acc_t weight_w) {
              value += weight_w * widen<acc_t>(row[w * map.stride[4]]);
            });
            plane[k] += weight_h * value;
          }
        });
        for (int64_t k = 0; k < length; ++k) volume[k] += weight_d * plane[k];
      });
      for (int64_t k = 0; k < length; ++k) sum[k] += weight_of(b) * volume[k];
    });
  }

  // sum[k] += w_b * R_b(x_b) at (n, c + k, d, h, w)
  void add_channel_run(int b, const Position& p, int64_t length, acc_t* sum) const {
    const Branch& branch = params_.branches[b];
    const Map& map = branch.map;
    const int64_t begin = std::max(p.c, branch.channel_begin);
    const int64_t end = std::min(p.c + length, branch.channel_begin + map.size[1]);
    if (begin >= end) return;
    sum += begin - p.c;
    length = end - begin;
    with_type(map.data, map.dtype, [&](const auto* data) {
      data += p.n * map.stride[0] + (begin - branch.channel_begin) * map.stride[1];
      if (is_identity(branch)) {
        data += p.at[0] * map.stride[2] + p.at[1] * map.stride[3] + p.at[2] * map.stride[4];
        add_row(sum, data, map.stride[1], length, weight_of(b));
        return;
      }
      std::array<acc_t, kChunk> row, plane, volume;
      std::fill_n(volume.data(), length, acc_t(0));
      for_taps(tables_[b][0][p.at[0]], [&](int32_t d, acc_t weight_d) {
        std::fill_n(plane.data(), length, acc_t(0));
        for_taps(tables_[b][1][p.at[1]], [&](int32_t h, acc_t weight_h) {
          std::fill_n(row.data(), length, acc_t(0));
          for_taps(tables_[b][2][p.at[2]], [&](int32_t w, acc_t weight_w) {
            add_row(row.data(), data + d * map.stride[2] + h * map.stride[3] + w * map.stride[4], map.stride[1],
                    length, weight_w);
          });
          for (int64_t k = 0; k < length; ++k) plane[k] += weight_h * row[k];
        });
        for (int64_t k = 0; k < length; ++k) volume[k] += weight_d * plane[k];
      });
      for (int64_t k = 0; k < length; ++k) sum[k] += weight_of(b) * volume[k];
    });
  }

  template <typename F>
  static void for_taps(const typename TapTable<acc_t>::Taps& taps, F&& f) {
    for (int32_t j = 0; j < taps.count; ++j) f(taps.first + j, taps.weights[j]);
  }

  // Gate, mask, activation and the one rounding, for elements [offset, offset + length) of the output's memory.
  void finish(int64_t offset, int64_t length, acc_t* sum) const {
    if (params_.gate) {
      for (int64_t k = 0; k < length; ++k) sum[k] = mask_bit(params_.gate, offset + k) ? sum[k] : acc_t(0);
    }
    if (params_.mask) {
      for (int64_t k = 0; k < length; ++k) {
        uint8_t& byte = params_.mask[(offset + k) >> 3];
        const int bit = static_cast<int>((offset + k) & 7);
        byte = static_cast<uint8_t>((bit == 0 ? 0 : byte) | (!(sum[k] <= 0) << bit));
      }
    }
    if (params_.activation == Activation::kRelu) {
      for (int64_t k = 0; k < length; ++k) sum[k] = sum[k] <= 0 ? acc_t(0) : sum[k];  // NaN stays
    }
    store_row(params_.out.data, params_.out.dtype, offset, sum, length);
  }

  const GatherParams& params_;
  std::array<std::array<TapTable<acc_t>, kSpatialDims>, kMaxInputs> tables_;
};

}  // namespace msr
