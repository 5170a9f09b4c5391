// What the CPU drivers share: the walk over rows, rows of any strides, and bit rows that begin
// within a byte.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "params.h"
#include "row_ops.h"

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

inline void* advance(void* data, DType dtype, int64_t elements) {
  return static_cast<char*>(data) + elements * element_size(dtype);
}

inline const void* advance(const void* data, DType dtype, int64_t elements) {
  return static_cast<const char*>(data) + elements * element_size(dtype);
}

// A stretch of a row: `columns` pixels of `channels` values each. In memory the values of a pixel
// are channel_stride apart and pixels are column_stride apart.
struct Stretch {
  int64_t columns, channels;
  int64_t column_stride, channel_stride;

  int64_t numel() const { return columns * channels; }
  // Whether the row operations can walk it.
  bool is_vectorizable() const {
    return channels == 1 ? column_stride == 1 || columns == 1 : channel_stride == 1;
  }
  // Whether its values follow each other.
  bool is_dense() const {
    return is_vectorizable() && (channels == 1 || column_stride == channels);
  }
};

// At least `size` elements of a vector that is kept from row to row.
template <typename T>
T* room(std::vector<T>& vector, int64_t size) {
  if (vector.size() < static_cast<size_t>(size)) vector.resize(size);
  return vector.data();
}

// to = finish(factor * values), for a dense run of them.
template <typename acc_t>
void store_run(const RowOps<acc_t>& ops, const acc_t* values, int64_t length, void* to,
               const Finish& how, acc_t factor = 1) {
  const void* row = values;
  ops.combine({to, nullptr, &row, nullptr, &factor, 1, kSumType<acc_t>, 1, length, length, 0, how});
}

// Copies a stretch of any strides, widened, to dense memory, pixel by pixel.
template <typename acc_t>
void copy_stretch(acc_t* to, const void* data, DType dtype, const Stretch& s) {
  with_type(data, dtype, [&](const auto* from) {
    for (int64_t k = 0; k < s.columns; ++k) {
      for (int64_t c = 0; c < s.channels; ++c)
        *to++ = widen<acc_t>(from[k * s.column_stride + c * s.channel_stride]);
    }
  });
}

// The same by the row operations, where they can walk it.
template <typename acc_t>
void load_stretch(acc_t* to, const void* data, DType dtype, const Stretch& s,
                  const RowOps<acc_t>& ops) {
  if (!s.is_vectorizable() || !takes<acc_t>(dtype, kSumType<acc_t>))
    return copy_stretch(to, data, dtype, s);
  const acc_t one = 1;
  const bool one_run = s.channels == 1 || s.column_stride == s.channels;
  ops.combine({to,
               nullptr,
               &data,
               nullptr,
               &one,
               1,
               dtype,
               one_run ? 1 : s.columns,
               one_run ? s.numel() : s.channels,
               one_run ? s.numel() : s.column_stride,
               0,
               {nullptr, nullptr, false, kSumType<acc_t>}});
}

// Where a stretch's values are, dense and of the accumulation type: in place, or copied to
// `memory`.
template <typename acc_t>
const acc_t* loaded_to(acc_t* memory, const void* data, DType dtype, const Stretch& s,
                       const RowOps<acc_t>& ops) {
  if (s.is_dense() && dtype == kSumType<acc_t>) return static_cast<const acc_t*>(data);
  load_stretch(memory, data, dtype, s, ops);
  return memory;
}

template <typename acc_t>
const acc_t* loaded(std::vector<acc_t>& memory, const void* data, DType dtype, const Stretch& s,
                    const RowOps<acc_t>& ops) {
  return loaded_to(room(memory, s.numel()), data, dtype, s, ops);
}

// The inverse: rounds dense values to a stretch of any strides.
template <typename acc_t>
void store_stretch(void* data, DType dtype, const Stretch& s, const acc_t* from) {
  for (int64_t k = 0; k < s.columns; ++k) {
    for (int64_t c = 0; c < s.channels; ++c)
      store<acc_t>(data, dtype, k * s.column_stride + c * s.channel_stride, *from++);
  }
}

// Bits [offset, offset + length) of a bit row, shifted so that they begin with a byte. Returns
// where they are: in place if they begin with a byte there, else in `room`, ceil(length / 8) bytes.
inline const uint8_t* aligned_bits(const uint8_t* bits, int64_t offset, int64_t length,
                                   uint8_t* room) {
  const int shift = static_cast<int>(offset & 7);
  const uint8_t* from = bits + (offset >> 3);
  if (shift == 0) return from;
  const int64_t bytes = ceil_div(length, 8);
  const int64_t last = (shift + length - 1) >> 3;  // the last byte that holds a bit of it
  for (int64_t i = 0; i < bytes; ++i) {
    const int32_t next = i < last ? from[i + 1] : 0;
    room[i] = static_cast<uint8_t>(from[i] >> shift | next << (8 - shift));
  }
  return room;
}

// The inverse: writes bits that begin with a byte to [offset, offset + length) of a bit row. Bits
// before `offset` in its byte stay; those after the last one in its byte become 0.
inline void place_bits(uint8_t* bits, int64_t offset, const uint8_t* from, int64_t length) {
  const int shift = static_cast<int>(offset & 7);
  uint8_t* to = bits + (offset >> 3);
  int32_t carry = shift == 0 ? 0 : *to & ((1 << shift) - 1);
  const int64_t bytes = ceil_div(length, 8);
  for (int64_t i = 0; i < bytes; ++i) {
    const int64_t rest = length - 8 * i;
    const int32_t value = rest < 8 ? from[i] & ((1 << rest) - 1) : from[i];
    to[i] = static_cast<uint8_t>(carry | value << shift);
    carry = value >> (8 - shift);
  }
  if (shift + length > 8 * bytes) to[bytes] = static_cast<uint8_t>(carry);
}

// How the rows of a dense map are walked. A row has `width` pixels of `channels` values: all of
// them in channels_last, else one, and there is a row for every channel.
struct Rows {
  explicit Rows(const Map& map)
      : channels(map.channels_last ? map.size[1] : 1),
        width(map.size[4]),
        count(numel(map) > 0 ? numel(map) / (channels * width) : 0) {}

  int64_t channels, width, count;
};

// The position of the row after p's.
inline void next_row(const Map& map, Position& p) {
  if (++p.at[1] < map.size[3]) return;
  p.at[1] = 0;
  if (++p.at[0] < map.size[2]) return;
  p.at[0] = 0;
  if (!map.channels_last && ++p.c < map.size[1]) return;
  p.c = 0;
  ++p.n;
}

}  // namespace msr
