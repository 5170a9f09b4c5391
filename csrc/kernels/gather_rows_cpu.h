// What all ways to a gather on the CPU share: the branches that are read; the rows of theirs that a
// row of the result is made of: listed, copied, combined.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "row_sums_cpu.h"
#include "table_cache_cpu.h"

namespace msr {

// What a GatherCpu is asked for: the result; tiles of a sum that stay in the cache, or of single
// branches.
enum class GatherPart { kResult, kSum, kBranches };

template <typename acc_t>
class GatherRowsCpu {
 public:
  using Table = std::shared_ptr<const TapTable<acc_t>>;

  static constexpr Finish kKeep{nullptr, nullptr, false, kSumType<acc_t>};
  static constexpr int32_t kMostRows = 2;  // of a branch, that are read where they lie

  // One branch, as it is read. Tables are empty for axes that keep their size.
  struct Source {
    const char* data;
    int64_t stride[kDims];  // bytes
    DType dtype;
    bool weighted;
    int64_t channel_begin, channels;  // in the output
    int64_t column_stride, channel_stride;
    Table depth, height, width;  // in channels_last always one of the width
    TapRows<acc_t> depth_rows{}, height_rows{};
    // The rows that a destination reads are neighbours: the last bits of depth and height tell
    // apart as many as there are.
    int32_t depth_mask, height_mask;
    Taps<acc_t> taps;            // of the width
    std::vector<Range> columns;  // of the source, per tile
    bool makes_up;               // for what products of weights lose, whose sum would be one
    bool resampled_rows_serve_twice;
    bool rows_first;    // there are more of them than rows of the result: they are combined before
    bool rows_repeat;   // a row of the result is one row, resampled along the width
    bool only_copied;   // every pixel of the result is one of its own
    bool picks_pixels;  // the same in channels_last, of a map of another size
    bool dense_planes, dense_image;  // each channel without gaps; one channel after the other
    bool as_it_lies;  // it has the result's size, type and strides: it can be added where it is
    bool lies_well;   // in channels_last: its rows are read where they are
    bool by_planes;   // small and resampled: as a whole

    bool has_channel(int64_t c) const { return c >= channel_begin && c < channel_begin + channels; }
  };

  // Where a share of the result goes.
  struct Target {
    const void* base;  // or null
    void* to;
    const Finish& finish;
  };

  // A thread's memory between rows.
  struct Scratch {
    explicit Scratch(const GatherRowsCpu& rows)
        : taps(rows.most_taps_), weights(rows.most_taps_), slots(rows.most_taps_) {}

    std::vector<acc_t> sum;                 // of a tile that is finished in a pass of its own
    std::vector<acc_t> rows[kMaxBranches];  // the source columns that the tile reads
    int32_t count;                          // of the rows that are combined:
    std::vector<const void*> taps;          // where they are,
    std::vector<acc_t> weights;
    std::vector<int32_t> slots;  // and where they are kept once resampled along the width
    std::vector<acc_t> copies;   // of rows that the row operations cannot walk
  };

  GatherRowsCpu(const GatherParams& params, const RowOps<acc_t>& ops, GatherPart part)
      : params(params), ops(ops), rows(params.out), plane(plane_size(params.out)) {
    const Map& out = params.out;
    bool whole_bytes = true;  // every branch has a multiple of eight channels
    for (int b = 0; b < params.num_branches; ++b) {
      const int64_t channels = params.branches[b].map.size[1];
      is_cat = is_cat || channels != out.size[1];
      whole_bytes = whole_bytes && channels % 8 == 0;
    }
    // Pixels of several channels share bytes of the bit rows, unless each is whole bytes: then a
    // tile is finished as one row, in a pass of its own.
    has_bits = params.gate || params.mask;
    at_once = !has_bits || !out.channels_last || (out.size[1] % 8 == 0 && (!is_cat || whole_bytes));
    for (int b = params.num_branches - 1; b >= 0; --b) {
      const DType dtype = params.branches[b].map.dtype;
      if (takes<acc_t>(dtype, out.dtype) && dtype != kKeep.dtype) narrow = dtype;
    }
    for (int b = 0; b < params.num_branches; ++b) add_source(b);
    for (int b = params.num_branches - 1; b >= 0; --b)
      if (sources[b].as_it_lies && at_once && !is_cat && part != GatherPart::kBranches &&
          params.num_branches > 1)
        base = b;
    // The sources of one sum have one type.
    for (int b = 0; b < params.num_branches && !is_cat; ++b)
      if (b != base && (!sources[b].lies_well || sources[b].dtype != narrow)) narrow = kKeep.dtype;
    // Whether something is kept in scratch between two steps.
    bool in_scratch = part != GatherPart::kResult || !at_once;
    for (int b = 0; b < params.num_branches; ++b) {
      Source& s = sources[b];
      s.lies_well = s.lies_well && (s.dtype == narrow || s.dtype == kKeep.dtype);
      in_scratch = in_scratch || !s.lies_well;
    }
    if (!out.channels_last) {
      tile = kTile;
    } else if (in_scratch) {
      tile = std::max<int64_t>(1, kTile / std::max<int64_t>(1, rows.channels));
    } else {
      tile = std::max<int64_t>(1, rows.width);
    }
    for (int b = 0; b < params.num_branches; ++b) list_columns(sources[b]);
  }
  GatherRowsCpu(const GatherRowsCpu&) = delete;

  const GatherParams& params;
  const RowOps<acc_t>& ops;
  const Rows rows;
  const int64_t plane;  // elements of a channel of the result
  int64_t tile;         // columns of a row that are written at once, at most
  Source sources[kMaxBranches];
  DType narrow = kKeep.dtype;  // the type of rows, other than the accumulation type, that are read
                               // in channels_last without being copied
  bool is_cat = false;
  bool has_bits;
  bool at_once;   // one branch finishes the tile,
  int base = -1;  // and adds this one as it lies

  Stretch stretch_of(const Source& s, int64_t columns) const {
    return {columns, params.out.channels_last ? s.channels : 1, s.column_stride, s.channel_stride};
  }

  const void* base_of(const Position& p) const {
    return base < 0 ? nullptr : element_at(sources[base], p);
  }

  // The element of a branch of the result's size at p.
  const char* element_at(const Source& s, const Position& p) const {
    return plane_of(s, p) + p.at[0] * s.stride[2] + p.at[1] * s.stride[3] + p.at[2] * s.stride[4];
  }

  // The branch's element at (n, c, 0, 0, 0), where c is a channel of the output.
  const char* plane_of(const Source& s, const Position& p) const {
    return s.data + p.n * s.stride[0] +
           (params.out.channels_last ? 0 : (p.c - s.channel_begin) * s.stride[1]);
  }

  acc_t factor_of(const Source& s, const Position& p) const {
    if (!s.weighted) return acc_t(1);
    return weight_of<acc_t>(params.weights, static_cast<int>(&s - sources), p.n, p.c);
  }

  // The source rows that a row of the output reads, with their weights, from column `begin` on:
  // behind `count` that are listed already.
  void list_taps(const Source& s, const Position& p, int32_t begin, Scratch& scratch,
                 int32_t count = 0) const {
    const acc_t factor = factor_of(s, p);
    const char* data = plane_of(s, p) + begin * s.stride[4];
    const Range depth = s.depth_rows.of(p.at[0]), height = s.height_rows.of(p.at[1]);
    const acc_t* weights_d = s.depth_rows.weights_of(p.at[0]);
    const acc_t* weights_h = s.height_rows.weights_of(p.at[1]);
    const void** taps = scratch.taps.data();
    acc_t* weights = scratch.weights.data();
    int32_t* slots = scratch.slots.data();
    for (int32_t d = depth.begin; d < depth.end; ++d) {
      const acc_t weight = weights_d ? factor * weights_d[d - depth.begin] : factor;
      for (int32_t h = height.begin; h < height.end; ++h) {
        taps[count] = data + d * s.stride[2] + h * s.stride[3];
        weights[count] = weights_h ? weight * weights_h[h - height.begin] : weight;
        slots[count] = (d & s.depth_mask) * (s.height_mask + 1) + (h & s.height_mask);
        ++count;
      }
    }
    if (s.makes_up && std::isfinite(factor)) {
      // As in the tables: the largest takes up what rounding left.
      acc_t* const end = scratch.weights.data() + count;
      acc_t* const begin = end - (depth.end - depth.begin) * (height.end - height.begin);
      ExactSum rest;
      rest.add(static_cast<double>(factor));
      for (const acc_t* weight = begin; weight != end; ++weight)
        rest.add(-static_cast<double>(*weight));
      *std::max_element(begin, end) += static_cast<acc_t>(rest.sum + rest.lost);
    }
    scratch.count = count;
  }

  // target = finish(base + the listed rows), which are copied first if they cannot be walked.
  void combine(DType dtype, const Stretch& stretch, const Target& target, Scratch& scratch,
               int32_t first = 0) const {
    const void** listed = scratch.taps.data() + first;
    int32_t count = scratch.count - first;
    int64_t column_stride = stretch.column_stride;
    if (count == 0) {  // nothing is read: zero times a row of zeros
      const int64_t length = stretch.numel();
      acc_t* zeros = room(scratch.copies, length);
      std::fill_n(zeros, length, acc_t(0));
      listed[0] = zeros;
      scratch.weights[first] = acc_t(0);
      count = 1;
      dtype = kKeep.dtype;
      column_stride = stretch.channels;
    } else if (!stretch.is_vectorizable() || !takes<acc_t>(dtype, target.finish.dtype)) {
      const int64_t length = stretch.numel();
      acc_t* copy = room(scratch.copies, count * length);
      for (int32_t i = 0; i < count; ++i, copy += length) {
        copy_stretch(copy, listed[i], dtype, stretch);
        listed[i] = copy;
      }
      dtype = kKeep.dtype;
      column_stride = stretch.channels;
    }
    // One by one: a list would be cleared before, which short rows notice.
    CombineArgs<acc_t> args;
    args.to = target.to;
    args.base = target.base;
    args.rows = listed;
    args.gates = nullptr;
    args.weights = scratch.weights.data() + first;
    args.count = count;
    args.dtype = dtype;
    // Pixels of one channel are one long run.
    args.columns = params.out.channels_last ? stretch.columns : 1;
    args.channels = params.out.channels_last ? stretch.channels : stretch.columns;
    args.row_stride = column_stride;
    args.gate_stride = 0;
    args.finish = target.finish;
    ops.combine(args);
  }

  // A row in scratch: vector loads may reach beyond both of its ends.
  static acc_t* padded_row(Scratch& scratch, int64_t length) {
    constexpr int32_t kPadding = TapTable<acc_t>::kPadding;
    return room(scratch.rows[0], length + 2 * kPadding) + kPadding;
  }

 private:
  static constexpr int64_t kTile = 2048;  // elements; a multiple of every number of lanes

  void add_source(int b) {
    const Branch& branch = params.branches[b];
    const Map& map = branch.map;
    const bool planar = !params.out.channels_last;
    Source& s = sources[b];
    s.data = static_cast<const char*>(map.data);
    s.dtype = map.dtype;
    for (int i = 0; i < kDims; ++i) s.stride[i] = map.stride[i] * element_size(map.dtype);
    s.weighted = params.weights.has(b);
    s.channel_begin = branch.channel_begin;
    s.channels = map.size[1];
    s.column_stride = map.stride[4];
    s.channel_stride = map.stride[1];
    const auto make = [&](Table& table, int axis, TableUse use) {
      const bool needed = branch.axis[axis].rule != Rule::kIdentity || (axis == 2 && !planar);
      if (needed) table = tap_table(branch.axis[axis], use, ops);
      return table ? table->max_count() : 1;
    };
    const int32_t most_d = make(s.depth, 0, TableUse::kLists);
    const int32_t most_h = make(s.height, 1, TableUse::kLists);
    most_taps_ += std::max(1, most_d * most_h);
    s.depth_mask = power_of_two_from(most_d) - 1;
    s.height_mask = power_of_two_from(most_h) - 1;
    if (s.depth) s.depth_rows = s.depth->rows();
    if (s.height) s.height_rows = s.height->rows();
    make(s.width, 2, planar ? TableUse::kBlocks : TableUse::kPairs);
    if (s.width) s.taps = s.width->view();
    const auto sums = [&](int axis) {
      return sums_to_one(branch.axis[axis].rule) && !branch.axis[axis].transposed;
    };
    s.makes_up = most_d > 1 && most_h > 1 && most_d * most_h > 4 && sums(0) && sums(1);
    s.resampled_rows_serve_twice = s.depth || s.height || s.weighted;
    const Stretch pixels = stretch_of(s, rows.width);
    s.as_it_lies = is_identity(branch) && map.dtype == params.out.dtype && !s.weighted &&
                   pixels.is_vectorizable() && (planar || s.column_stride == s.channels);
    const auto full = [](const Table& table) { return !table || !table->has_gaps(); };
    const auto single = [](const Table& table) { return !table || table->picks(); };
    const bool full_rows = full(s.depth) && full(s.height);
    s.lies_well = most_d * most_h <= kMostRows && full_rows && pixels.is_vectorizable() &&
                  (map.dtype == kKeep.dtype || map.dtype == narrow);
    s.rows_repeat = single(s.depth) && single(s.height) && !s.weighted;
    s.rows_first =
        map.size[2] * map.size[3] > params.out.size[2] * params.out.size[3] && most_d * most_h > 1;
    s.picks_pixels =
        !planar && s.channels > 1 && s.rows_repeat && single(s.width) && !is_identity(branch);
    s.only_copied = s.rows_repeat && single(s.width) && map.dtype == params.out.dtype &&
                    (s.channels == 1 || s.channel_stride == 1);
    s.dense_planes = planar && has_dense_planes(map.size, map.stride);
    s.dense_image = planar && is_identity(branch) && has_dense_images(map.size, map.stride);
    s.by_planes = s.dense_planes && !is_identity(branch) && is_small_plane(map.size) &&
                  is_small_plane(params.out.size) && rows.width < plane;
  }

  void list_columns(Source& s) const {
    for (int64_t w = 0; w < rows.width && s.width; w += tile) {
      s.columns.push_back(s.width->range(static_cast<int32_t>(w),
                                         static_cast<int32_t>(std::min(rows.width, w + tile))));
    }
  }

  static int32_t power_of_two_from(int32_t value) {
    int32_t power = 1;
    while (power < value) power *= 2;
    return power;
  }

  int32_t most_taps_ = 0;  // rows that a row of the result reads
};

}  // namespace msr
