// Small planes of one channel as wholes. To find the rows that a short row is made of takes longer
// than to add them up: here they are listed once, for all planes of a map.
#pragma once

#include <vector>

#include "rows_cpu.h"

namespace msr {

inline int64_t plane_size(const Map& map) { return map.size[2] * map.size[3] * map.size[4]; }

// Whether the rows of a plane are short enough for that, and it stays in the cache.
inline bool is_small_plane(const int64_t (&size)[kDims]) {
  constexpr int64_t kWidest = 256, kLargest = 32768;  // elements
  return size[4] <= kWidest && size[2] * size[3] * size[4] <= kLargest;
}

// Whether the values of a channel follow each other in memory without gaps.
inline bool has_dense_planes(const int64_t (&size)[kDims], const int64_t (&stride)[kDims]) {
  int64_t expected = 1;
  for (int i = kDims - 1; i >= 2; --i) {
    if (size[i] != 1 && stride[i] != expected) return false;
    expected *= size[i];
  }
  return true;
}

// The same of those of an image, with pixels that are neighbours also where they are one column.
inline bool has_dense_images(const int64_t (&size)[kDims], const int64_t (&stride)[kDims]) {
  return has_dense_planes(size, stride) && stride[4] == 1 &&
         (size[1] == 1 || stride[1] == size[2] * size[3] * size[4]);
}

// Which row of a plane is at `row`, where they follow each other without gaps.
inline int32_t row_number(const void* row, const void* plane, int64_t row_bytes) {
  const int64_t bytes = static_cast<const char*>(row) - static_cast<const char*>(plane);
  return static_cast<int32_t>(bytes / row_bytes);
}

// The rows of a plane, each as a sum of rows of a few others, its sources. They have one length.
template <typename acc_t>
class RowSums {
 public:
  // Begins a list.
  void clear() {
    first_.assign(1, 0);
    source_.clear();
    row_.clear();
    weights_.clear();
  }
  // Adds a term to the row that is listed.
  void add(int32_t source, int32_t row, acc_t weight) {
    source_.push_back(source);
    row_.push_back(row);
    weights_.push_back(weight);
  }
  void end_row() {
    first_.push_back(static_cast<int32_t>(source_.size()));
    room(pointers_, first_.back() - first_[first_.size() - 2]);
  }

  bool empty() const { return first_.empty(); }
  int32_t rows() const { return static_cast<int32_t>(first_.size()) - 1; }

  // to = finish(base + the sums). sources: their dense rows of `columns` values each.
  void write(const RowOps<acc_t>& ops, const acc_t* const* sources, int64_t columns,
             const void* base, void* to, const Finish& finish) {
    ops.combine_rows({to, base, sources, first_.data(), source_.data(), row_.data(),
                      weights_.data(), rows(), columns, pointers_.data(), finish});
  }

 private:
  std::vector<int32_t> first_, source_, row_;
  std::vector<acc_t> weights_;
  std::vector<const void*> pointers_;
};

}  // namespace msr
