// Row operations of the CPU kernels: load, widen and add; gate; pack bits; round and store. The
// element type is resolved once per row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "params.h"

namespace msr {

// Calls f with a typed pointer to data.
template <typename F>
void with_type(const void* data, DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(static_cast<const Half*>(data));
    case DType::kBFloat16:
      return f(static_cast<const BFloat16*>(data));
    case DType::kFloat64:
      return f(static_cast<const double*>(data));
    case DType::kFloat32:
      return f(static_cast<const float*>(data));
  }
}

// A stretch of a row: `columns` pixels of `channels` values each. In memory the values of a pixel
// are channel_stride apart and pixels are column_stride apart.
struct Stretch {
  int64_t columns, channels;
  int64_t column_stride, channel_stride;

  int64_t numel() const { return columns * channels; }
  bool is_dense() const {
    return channels == 1 ? column_stride == 1 : channel_stride == 1 && column_stride == channels;
  }
};

// to[k] = (or +=) factor * from[k] over the values of a stretch; `to` is dense, pixel by pixel.
template <bool kAdd, typename acc_t, typename T>
void scale_stretch(acc_t* __restrict to, const T* __restrict from, const Stretch& s, acc_t factor) {
  const auto put = [factor](acc_t& target, T value) {
    const acc_t term = factor * widen<acc_t>(value);
    target = kAdd ? target + term : term;
  };
  if (s.is_dense()) {
    const int64_t length = s.numel();
    for (int64_t k = 0; k < length; ++k) put(to[k], from[k]);
  } else if (s.channels == 1) {
    for (int64_t k = 0; k < s.columns; ++k) put(to[k], from[k * s.column_stride]);
  } else {
    for (int64_t k = 0; k < s.columns; ++k) {
      const T* pixel = from + k * s.column_stride;
      if (s.channel_stride == 1) {
        for (int64_t c = 0; c < s.channels; ++c) put(to[k * s.channels + c], pixel[c]);
      } else {
        for (int64_t c = 0; c < s.channels; ++c)
          put(to[k * s.channels + c], pixel[c * s.channel_stride]);
      }
    }
  }
}

// The bits of a byte, for loops over its eight elements that the compiler turns into vector code.
constexpr int32_t kBits[8] = {1, 2, 4, 8, 16, 32, 64, 128};

// Zeroes the values whose bit is not set; value k has bit offset + k * step.
template <typename acc_t>
void gate_row(const uint8_t* gate, int64_t offset, int64_t step, acc_t* values, int64_t length) {
  int64_t k = 0;
  const auto one = [&] {
    values[k] = mask_bit(gate, offset + k * step) ? values[k] : acc_t(0);
    ++k;
  };
  if (step == 1) {
    while (k < length && (offset + k) % 8 != 0) one();
    for (; k + 8 <= length; k += 8) {
      const int32_t byte = gate[(offset + k) >> 3];
      // As integers: baseline x86-64 has no conditional move for vectors of floats.
      using bits_t = std::conditional_t<sizeof(acc_t) == 4, uint32_t, uint64_t>;
      bits_t words[8];
      memcpy(words, values + k, sizeof words);
      for (int j = 0; j < 8; ++j) words[j] &= (byte & kBits[j]) != 0 ? ~bits_t(0) : bits_t(0);
      memcpy(values + k, words, sizeof words);
    }
  }
  while (k < length) one();
}

// Bits [offset, offset + length) of mask = !(value <= 0). Bits before `offset` in its byte stay;
// those after the last one in its byte become 0.
template <typename acc_t>
void pack_row(uint8_t* mask, int64_t offset, const acc_t* values, int64_t length) {
  int64_t k = 0;
  const auto one = [&] {
    const int64_t at = offset + k;
    const int before = at % 8 == 0 ? 0 : mask[at >> 3];
    mask[at >> 3] = static_cast<uint8_t>(before | (!(values[k] <= 0) ? kBits[at % 8] : 0));
    ++k;
  };
  while (k < length && (offset + k) % 8 != 0) one();
  for (; k + 8 <= length; k += 8) {
    int32_t byte = 0;
    for (int j = 0; j < 8; ++j) byte |= values[k + j] <= 0 ? 0 : kBits[j];
    mask[(offset + k) >> 3] = static_cast<uint8_t>(byte);
  }
  while (k < length) one();
}

template <typename acc_t>
void store_row(void* data, DType dtype, int64_t offset, const acc_t* from, int64_t length) {
  switch (dtype) {
    case DType::kFloat16:
      for (int64_t k = 0; k < length; ++k)
        static_cast<Half*>(data)[offset + k] = Narrow<Half>::from(from[k]);
      return;
    case DType::kBFloat16:
      for (int64_t k = 0; k < length; ++k)
        static_cast<BFloat16*>(data)[offset + k] = Narrow<BFloat16>::from(from[k]);
      return;
    case DType::kFloat64:
      for (int64_t k = 0; k < length; ++k)
        static_cast<double*>(data)[offset + k] = static_cast<double>(from[k]);
      return;
    case DType::kFloat32:
      for (int64_t k = 0; k < length; ++k)
        static_cast<float*>(data)[offset + k] = static_cast<float>(from[k]);
      return;
  }
}

// How the rows of a dense map are walked. A row has `width` pixels of `channels` values: all of
// them in channels_last, else one, and there is a row for every channel.
struct Rows {
  explicit Rows(const Map& map)
      : channels(map.channels_last ? map.size[1] : 1),
        width(map.size[4]),
        count(numel(map) > 0 ? numel(map) / (channels * width) : 0) {
    // Whole bytes of the mask per chunk, so that no two threads share one; and enough work to be
    // worth a task.
    const int64_t length = channels * width;
    const int64_t step = length > 0 ? 8 / std::gcd(length, int64_t{8}) : 1;
    per_chunk = ceil_div(std::max<int64_t>(1, kChunk / std::max<int64_t>(length, 1)), step) * step;
  }

  int64_t num_chunks() const { return ceil_div(count, per_chunk); }

  static constexpr int64_t kChunk = 8192;  // elements
  static constexpr int64_t kTile =
      2048;  // elements whose sums are kept at once: they stay in the first-level cache

  int64_t channels, width, count, per_chunk;
};

}  // namespace msr
