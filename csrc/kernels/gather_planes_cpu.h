// gather on the CPU by small planes of one channel: the rows of each branch are resampled along the
// width, then the result's are summed, which are listed once for all planes of one weight.
#pragma once

#include "gather_rows_cpu.h"

namespace msr {

template <typename acc_t>
class GatherPlanesCpu {
  using Shared = GatherRowsCpu<acc_t>;
  using Source = typename Shared::Source;

 public:
  explicit GatherPlanesCpu(const Shared& shared) : shared_(shared) {}

  // A thread's memory.
  struct Scratch {
    typename Shared::Scratch& rows;
    // How planes of some branches become one of the result.
    struct Sums {
      struct Part {
        acc_t factor;             // under which the rows were listed
        std::vector<Range> read;  // runs of source rows that are resampled
        RowSums<acc_t> before;    // or how they are combined before
      };
      std::vector<Part> parts;
      RowSums<acc_t> rows;
    };
    Sums sums[kMaxBranches]{};                  // of the branches from this one on
    std::vector<acc_t> planes[kMaxBranches]{};  // resampled along the width
  };

  // target = finish(base + the sum of `count` branches), for the plane that begins at p.
  void sum(const int* branches, int count, const Position& p, const typename Shared::Target& target,
           Scratch& scratch) const {
    typename Scratch::Sums& sums = scratch.sums[branches[0]];
    list(branches, count, p, sums, scratch);
    const acc_t* planes[kMaxBranches];
    for (int i = 0; i < count; ++i) planes[i] = along_width(branches[i], p, sums.parts[i], scratch);
    const Finish& how = target.finish;
    const int64_t width = shared_.rows.width, plane = shared_.plane;
    if ((!how.gate && !how.mask) || width % 8 == 0)
      return sums.rows.write(shared_.ops, planes, width, target.base, target.to, how);
    // The bits of its rows begin within bytes: it is finished as one run.
    acc_t* sum = room(scratch.rows.sum, plane);
    if (target.base) {
      const acc_t* base =
          loaded(scratch.rows.copies, target.base, how.dtype, {plane, 1, 1, 1}, shared_.ops);
      sums.rows.write(shared_.ops, planes, width, base, sum, kKeep);
    } else {
      sums.rows.write(shared_.ops, planes, width, nullptr, sum, kKeep);
    }
    store_run(shared_.ops, sum, plane, target.to, how);
  }

 private:
  static constexpr Finish kKeep = Shared::kKeep;

  // Rows of the result's planes.
  int64_t num_rows() const { return shared_.plane / shared_.rows.width; }

  static bool combines_before(const Source& s) { return s.width && s.rows_first; }

  // Lists what the rows of planes are made of that have p's weights.
  void list(const int* branches, int count, const Position& p, typename Scratch::Sums& sums,
            Scratch& scratch) const {
    bool listed = !sums.parts.empty();
    if (!listed) {
      sums.parts.resize(count);
      for (int i = 0; i < count; ++i) sums.parts[i].read = rows_read(branches[i]);
    }
    for (int i = 0; i < count; ++i) {
      const acc_t factor = shared_.factor_of(shared_.sources[branches[i]], p);
      listed = listed && sums.parts[i].factor == factor;
      sums.parts[i].factor = factor;
    }
    if (listed) return;
    sums.rows.clear();
    for (auto& part : sums.parts) part.before.clear();
    Position row = p;
    for (int32_t number = 0; number < num_rows(); ++number, next_row(shared_.params.out, row)) {
      for (int i = 0; i < count; ++i) {
        const Source& s = shared_.sources[branches[i]];
        const int64_t width = shared_.params.branches[branches[i]].map.size[4];
        const int64_t row_bytes = width * element_size(s.dtype);
        RowSums<acc_t>& before = sums.parts[i].before;
        shared_.list_taps(s, row, 0, scratch.rows);
        for (int32_t t = 0; t < scratch.rows.count; ++t) {
          const acc_t weight = scratch.rows.weights[t];
          const int32_t from = row_number(scratch.rows.taps[t], shared_.plane_of(s, p), row_bytes);
          if (combines_before(s)) {
            before.add(0, from, weight);
          } else {
            sums.rows.add(i, from, weight);
          }
        }
        if (!combines_before(s)) continue;
        before.end_row();
        sums.rows.add(i, number, acc_t(1));
      }
      sums.rows.end_row();
    }
  }

  // The rows of branch b's planes that those of the result read, in runs.
  std::vector<Range> rows_read(int b) const {
    const Source& s = shared_.sources[b];
    const Map& out = shared_.params.out;
    const int64_t (&size)[kDims] = shared_.params.branches[b].map.size;
    std::vector<char> is_read(size[2] * size[3]);
    for (int32_t z = 0; z < out.size[2]; ++z) {
      for (int32_t y = 0; y < out.size[3]; ++y) {
        const Range depth = s.depth_rows.of(z), height = s.height_rows.of(y);
        for (int32_t d = depth.begin; d < depth.end; ++d)
          std::fill_n(is_read.begin() + d * size[3] + height.begin, height.end - height.begin, 1);
      }
    }
    std::vector<Range> runs;
    for (int32_t row = 0; row < static_cast<int32_t>(is_read.size()); ++row) {
      if (!is_read[row]) continue;
      if (runs.empty() || runs.back().end < row) runs.push_back({row, row});
      runs.back().end = row + 1;
    }
    return runs;
  }

  // The plane of branch b that p is in, its rows resampled along the width.
  const acc_t* along_width(int b, const Position& p, typename Scratch::Sums::Part& part,
                           Scratch& scratch) const {
    const Source& s = shared_.sources[b];
    const RowOps<acc_t>& ops = shared_.ops;
    const Map& map = shared_.params.branches[b].map;
    const int64_t width = map.size[4], columns = shared_.rows.width, length = plane_size(map);
    const Stretch whole{length, 1, 1, 1};
    const void* from = shared_.plane_of(s, p);
    if (!s.width) return loaded(scratch.planes[b], from, s.dtype, whole, ops);
    if (combines_before(s)) {
      const acc_t* rows = loaded(scratch.rows.copies, from, s.dtype, whole, ops);
      acc_t* combined = Shared::padded_row(scratch.rows, num_rows() * width);
      part.before.write(ops, &rows, width, nullptr, combined, kKeep);
      acc_t* to = room(scratch.planes[b], shared_.plane);
      ops.along_row(
          {to, nullptr, combined, kKeep.dtype, &s.taps, 0, columns, kKeep, num_rows(), width});
      return to;
    }
    DType dtype = s.dtype;
    if (s.width->needs_padding() || !takes<acc_t>(dtype, kKeep.dtype)) {
      acc_t* copy = Shared::padded_row(scratch.rows, length);
      load_stretch(copy, from, dtype, whole, ops);
      from = copy;
      dtype = kKeep.dtype;
    }
    acc_t* to = room(scratch.planes[b], map.size[2] * map.size[3] * columns);
    for (const Range& rows : part.read) {
      ops.along_row({to + rows.begin * columns, nullptr, advance(from, dtype, rows.begin * width),
                     dtype, &s.taps, 0, columns, kKeep, rows.end - rows.begin, width});
    }
    return to;
  }

  const Shared& shared_;
};

}  // namespace msr
