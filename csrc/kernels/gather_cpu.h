// gather-sum on the CPU: any strides, rank, element types and taps.
//
// The output is written row by row, a row in tiles that fit into the first-level cache. In
// channels_last it is written pixel by pixel, from all branches at once: from up to two rows of a
// branch where they lie, or from one into which more of them were combined first. Along the
// width of one channel the resampling comes first: it is the dearer part, and its results serve all
// output rows that read the same source row. Where there are more source rows than rows of the
// output, they are combined before. Then the rows of all branches are summed and finished at once.
// Small planes take these steps as wholes. Rows that the row operations cannot walk are copied
// first. Chunks of rows are the unit of threading; they depend on the sizes alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "row_sums_cpu.h"
#include "table_cache_cpu.h"

namespace msr {

// What a GatherCpu is asked for: the result; tiles of a sum that stay in the cache, or of single
// branches.
enum class GatherPart { kResult, kSum, kBranches };

// Pixels that are picked from a row: index[k] is the k-th one's column, counted from `row`.
template <typename acc_t>
struct PickedPixels {
  const acc_t* row;
  const int32_t* index;
};

template <typename acc_t>
class GatherCpu {
 public:
  GatherCpu(const GatherParams& params, const RowOps<acc_t>& ops,
            GatherPart part = GatherPart::kResult)
      : params_(params), ops_(ops), rows_(params.out), plane_(plane_size(params.out)) {
    const Map& out = params.out;
    for (int b = params.num_branches - 1; b >= 0; --b) {
      const DType dtype = params.branches[b].map.dtype;
      if (takes<acc_t>(dtype, out.dtype) && dtype != kKeep.dtype) narrow_ = dtype;
    }
    for (int b = 0; b < params.num_branches; ++b) {
      const int64_t channels = params.branches[b].map.size[1];
      is_cat_ = is_cat_ || channels != out.size[1];
      whole_bytes_ = whole_bytes_ && channels % 8 == 0;
      add_source(b);
      dense_images_ = dense_images_ && sources_[b].dense_image;
    }
    // Pixels of several channels share bytes of the bit rows, unless each is whole bytes: then a
    // tile is finished as one row, in a pass of its own.
    has_bits_ = params.gate || params.mask;
    at_once_ =
        !has_bits_ || !out.channels_last || (out.size[1] % 8 == 0 && (!is_cat_ || whole_bytes_));
    for (int b = params.num_branches - 1; b >= 0; --b)
      if (sources_[b].as_it_lies && at_once_ && !is_cat_ && part != GatherPart::kBranches &&
          params.num_branches > 1)
        base_ = b;
    // The sources of one sum have one type.
    writes_result_ = part == GatherPart::kResult && (is_cat_ || params.num_branches == 1);
    // Something is kept in scratch between two steps.
    bool in_scratch = part != GatherPart::kResult || !at_once_;
    for (int b = 0; b < params.num_branches && !is_cat_; ++b) {
      if (b != base_ && (!sources_[b].lies_well || sources_[b].dtype != narrow_))
        narrow_ = kKeep.dtype;
    }
    for (int b = 0; b < params.num_branches; ++b) {
      Source& s = sources_[b];
      s.lies_well = s.lies_well && (s.dtype == narrow_ || s.dtype == kKeep.dtype);
      in_scratch = in_scratch || !s.lies_well;
    }
    if (!out.channels_last) {
      tile_ = kTile;
    } else if (in_scratch) {
      tile_ = std::max<int64_t>(1, kTile / std::max<int64_t>(1, rows_.channels));
    } else {
      tile_ = std::max<int64_t>(1, rows_.width);
    }
    for (int b = 0; b < params.num_branches; ++b) list_columns(sources_[b]);
    plan_rows();
    // Whole bytes of the mask per chunk, so that no two threads share one; and enough work to be
    // worth a task.
    plane_at_once_ = std::any_of(sources_, sources_ + params.num_branches,
                                 [](const Source& s) { return s.by_planes; });
    const int64_t at_once = plane_at_once_ ? out.size[2] * out.size[3] : 1;
    const int64_t length = std::max<int64_t>(1, rows_.channels * rows_.width * at_once);
    const int64_t step = 8 / std::gcd(length, int64_t{8});
    rows_per_chunk_ = ceil_div(std::max<int64_t>(1, kChunk / length), step) * step * at_once;
  }

  // A source row of one branch that was resampled along the width of a tile.
  struct Resampled {
    const void* source = nullptr;  // the row it was made of
    int64_t tile = -1;
    std::vector<acc_t> row;
    const void* result;  // or, where rows repeat, the row of the output that holds it
  };

  // How planes of some branches become one of the result.
  struct PlaneSums {
    struct Part {
      acc_t factor;             // under which the rows were listed
      std::vector<Range> read;  // runs of source rows that are resampled
      RowSums<acc_t> before;    // or how they are combined before
    };
    std::vector<Part> parts;
    RowSums<acc_t> rows;
  };

  // A thread's memory between rows.
  struct Scratch {
    explicit Scratch(const GatherCpu& gather)
        : taps(gather.all_taps_), weights(gather.all_taps_), slots(gather.all_taps_) {
      for (int b = 0; b < gather.params_.num_branches; ++b) {
        const Source& s = gather.sources_[b];
        resampled[b].resize((s.depth_mask + 1) * (s.height_mask + 1));
        if (s.by_planes) plane_sums.resize(gather.params_.num_branches);
      }
      const int64_t widest = gather.rows_.channels * gather.tile();
      for (std::vector<uint8_t>& row : bits) row.resize(ceil_div(widest, 8));
    }

    std::vector<acc_t> sum;                 // of a tile that is finished in a pass of its own
    std::vector<acc_t> rows[kMaxBranches];  // the source columns that the tile reads
    std::vector<uint8_t> bits[2];           // of gate and mask, where they begin within a byte
    int32_t count;                          // of the rows that are combined:
    std::vector<const void*> taps;          // where they are,
    std::vector<acc_t> weights;
    std::vector<int32_t> slots;  // and where they are kept once resampled along the width
    std::vector<acc_t> copies;   // of rows that the row operations cannot walk
    std::vector<Resampled> resampled[kMaxBranches];
    std::vector<PlaneSums> plane_sums;        // of all branches that are summed, or of each one
    std::vector<acc_t> planes[kMaxBranches];  // resampled along the width
  };

  int64_t num_chunks() const { return ceil_div(rows_.count, rows_per_chunk_); }
  // That are worth a thread.
  int64_t chunks_per_task() const {
    const int64_t chunk = rows_per_chunk_ * rows_.width * rows_.channels;
    return std::max<int64_t>(1, 4 * kChunk / std::max<int64_t>(1, chunk));
  }

  // Writes the rows of chunks [begin, end).
  void run(int64_t begin, int64_t end, Scratch& scratch) const {
    const Map& out = params_.out;
    const int64_t last = std::min(rows_.count, end * rows_per_chunk_);
    int64_t offset = begin * rows_per_chunk_ * rows_.width * rows_.channels;
    int64_t chunk_end = begin * rows_per_chunk_;
    Position p = position_of(out, offset);
    for (int64_t row = chunk_end; row < last;) {
      // Not beyond the chunk: which rows a thread does may not show in a bit.
      if (row == chunk_end) chunk_end = std::min(last, chunk_end + rows_per_chunk_);
      const int64_t together = rows_together(p, chunk_end - row);
      if (together > 1) {
        run_tile(p, 0, together * rows_.width, offset, scratch);
        offset += together * rows_.width;
        p = position_of(out, offset);
      } else {
        for (int64_t tile = 0; p.at[2] < rows_.width; ++tile) {
          const int64_t columns = std::min(tile_, rows_.width - p.at[2]);
          run_tile(p, tile, columns, offset, scratch);
          offset += columns * rows_.channels;
          p.at[2] += static_cast<int32_t>(columns);
        }
        next_row(out, p);
        p.at[2] = 0;
      }
      row += together;
    }
    if (params_.mask && last == rows_.count) {
      // The mask ends with a whole 32-bit word, as warps write it: no bit of it may stay unwritten.
      const int64_t total = numel(out);
      std::fill(params_.mask + ceil_div(total, 8), params_.mask + 4 * ceil_div(total, 32),
                uint8_t{0});
    }
  }

  // The walk over the result: rows in chunks, a row in tiles, in pixels.
  int64_t rows_per_chunk() const { return rows_per_chunk_; }
  int64_t tile() const { return plane_at_once_ ? std::max(tile_, plane_) : tile_; }

  // Whether branch_row (of a branch) or sum_tile takes whole planes of one channel: then tile 0 may
  // have as many columns.
  bool takes_planes(int b) const { return sources_[b].by_planes; }
  bool sums_planes() const { return by_planes_; }

  // One branch alone, for pixels p.at[2] to p.at[2] + columns - 1 of a row, which are tile number
  // `tile` of it: [columns, the branch's channels, or 1 where a row has one].
  void branch_row(int b, const Position& p, int64_t tile, int64_t columns, acc_t* to,
                  Scratch& scratch) const {
    if (params_.out.channels_last) {
      write_pixels(b, b + 1, p, tile, columns, to, kKeep, scratch);
    } else {
      add_branch(b, p, tile, columns, {nullptr, to, kKeep}, scratch);
    }
  }

  // The sum of all branches, for the same pixels.
  void sum_tile(const Position& p, int64_t tile, int64_t columns, acc_t* to,
                Scratch& scratch) const {
    if (params_.out.channels_last) {
      write_pixels(0, params_.num_branches, p, tile, columns, to, kKeep, scratch);
    } else {
      sum_rows(p, tile, columns, to, kKeep, scratch);
    }
  }

  // Whether the values of neighbouring rows of a channel are one run.
  bool is_dense(int b) const { return sources_[b].dense_image; }

  // Whether the row at p, of one channel, is the same as the one before.
  bool repeats_row(int b, const Position& p) const {
    const Source& s = sources_[b];
    return s.rows_repeat && s.height && !params_.out.channels_last && p.at[1] > 0 &&
           s.height->first(p.at[1]) == s.height->first(p.at[1] - 1);
  }

  // The pixels of tile number `tile` of the row that p is in, where each is one of a source row's:
  // they are in place, or that row is copied to `memory`. Otherwise index is null.
  PickedPixels<acc_t> picked_pixels(int b, const Position& p, int64_t tile,
                                    std::vector<acc_t>& memory, Scratch& scratch) const {
    const Source& s = sources_[b];
    if (!s.picks_pixels) return {nullptr, nullptr};
    const Range range = s.columns[tile];
    list_taps(s, p, range.begin, scratch);
    const Stretch read = stretch_of(s, range.end - range.begin);
    const acc_t* row = loaded(memory, scratch.taps[0], s.dtype, read, ops_);
    return {row - range.begin * s.channels, s.taps.first + p.at[2]};
  }

  // Where the values of branch_row lie already, or null.
  const acc_t* row_in_place(int b, const Position& p) const {
    const Source& s = sources_[b];
    if (!s.as_it_lies || s.dtype != kKeep.dtype) return nullptr;
    return reinterpret_cast<const acc_t*>(element_at(s, p));
  }

 private:
  static constexpr int64_t kChunk = 8192;  // elements
  static constexpr int64_t kTile = 2048;   // elements; a multiple of every number of lanes

  static constexpr int32_t kMostRows = 2;  // of a branch, that are read where they lie

  using Table = std::shared_ptr<const TapTable<acc_t>>;

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
  };

  // Where a branch's share of a tile goes.
  struct Target {
    const void* base;  // or null
    void* to;
    const Finish& finish;
  };

  static constexpr Finish kKeep{nullptr, nullptr, false, kSumType<acc_t>};

  // How the branches of one channel are summed.
  void plan_rows() {
    bool as_they_lie = !params_.out.channels_last;
    // Those of the result's width come last, as the base does: weights of one change no bit.
    for (const bool resampled : {true, false}) {
      for (int b = 0; b < params_.num_branches; ++b) {
        const Source& s = sources_[b];
        if (b == base_ || (s.width != nullptr) != resampled) continue;
        listed_[num_listed_++] = b;
        as_they_lie = as_they_lie && !s.width && s.dtype == narrow_ &&
                      stretch_of(s, rows_.width).is_vectorizable();
      }
    }
    if (as_they_lie) listed_dtype_ = narrow_;
    // Maps that are only added take part in the sum of planes if their values are one run.
    const auto takes_part = [&](int b) {
      return sources_[b].by_planes ||
             (sources_[b].dense_planes && is_identity(params_.branches[b]));
    };
    by_planes_ = !is_cat_ && (base_ < 0 || takes_part(base_));
    bool any = false;
    for (int i = 0; i < num_listed_; ++i) {
      by_planes_ = by_planes_ && takes_part(listed_[i]);
      any = any || sources_[listed_[i]].by_planes;
    }
    by_planes_ = by_planes_ && any;
  }

  // How many rows from p's on, up to `rows`, are one run in every source that they read.
  int64_t rows_together(const Position& p, int64_t rows) const {
    if (params_.out.channels_last) return 1;
    const int64_t per_plane = params_.out.size[2] * params_.out.size[3];
    const int64_t before = p.at[0] * params_.out.size[3] + p.at[1];
    if (!is_cat_) {
      if (by_planes_) return per_plane;
      if (!dense_images_) return 1;
      const int64_t planes = params_.weights.stride_c == 0 ? params_.out.size[1] - p.c : 1;
      const int64_t most = std::min(rows, std::max<int64_t>(1, tile_ / rows_.width));
      return std::min(most, planes * per_plane - before);
    }
    for (int b = 0; b < params_.num_branches; ++b) {
      const Source& s = sources_[b];
      if (!has_channel(s, p.c)) continue;
      if (s.by_planes) return per_plane;
      if (!s.dense_image || has_bits_) return 1;
      return std::min(rows, (s.channel_begin + s.channels - p.c) * per_plane - before);
    }
    return 1;
  }

  void add_source(int b) {
    const Branch& branch = params_.branches[b];
    const Map& map = branch.map;
    const bool planar = !params_.out.channels_last;
    Source& s = sources_[b];
    s.data = static_cast<const char*>(map.data);
    s.dtype = map.dtype;
    for (int i = 0; i < kDims; ++i) s.stride[i] = map.stride[i] * element_size(map.dtype);
    s.weighted = params_.weights.has(b);
    s.channel_begin = branch.channel_begin;
    s.channels = map.size[1];
    s.column_stride = map.stride[4];
    s.channel_stride = map.stride[1];
    const auto make = [&](Table& table, int axis, TableUse use) {
      const bool needed = branch.axis[axis].rule != Rule::kIdentity || (axis == 2 && !planar);
      if (needed) table = tap_table(branch.axis[axis], use, ops_);
      return table ? table->max_count() : 1;
    };
    const int32_t most_d = make(s.depth, 0, TableUse::kLists);
    const int32_t most_h = make(s.height, 1, TableUse::kLists);
    all_taps_ += std::max(1, most_d * most_h);
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
    const Stretch pixels = stretch_of(s, rows_.width);
    s.as_it_lies = is_identity(branch) && map.dtype == params_.out.dtype && !s.weighted &&
                   pixels.is_vectorizable() && (planar || s.column_stride == s.channels);
    const auto full = [](const Table& table) { return !table || !table->has_gaps(); };
    const auto single = [](const Table& table) { return !table || table->picks(); };
    const bool full_rows = full(s.depth) && full(s.height);
    s.lies_well = most_d * most_h <= kMostRows && full_rows && pixels.is_vectorizable() &&
                  (map.dtype == kKeep.dtype || map.dtype == narrow_);
    s.rows_repeat = single(s.depth) && single(s.height) && !s.weighted;
    s.rows_first = map.size[2] * map.size[3] > params_.out.size[2] * params_.out.size[3] &&
                   most_d * most_h > 1;
    s.picks_pixels =
        !planar && s.channels > 1 && s.rows_repeat && single(s.width) && !is_identity(branch);
    s.only_copied = s.rows_repeat && single(s.width) && map.dtype == params_.out.dtype &&
                    (s.channels == 1 || s.channel_stride == 1);
    s.dense_planes = planar && has_dense_planes(map.size, map.stride);
    s.dense_image = planar && is_identity(branch) && has_dense_images(map.size, map.stride);
    s.by_planes = s.dense_planes && !is_identity(branch) && is_small_plane(map.size) &&
                  is_small_plane(params_.out.size) && rows_.width < plane_;
  }

  void list_columns(Source& s) const {
    for (int64_t w = 0; w < rows_.width && s.width; w += tile_) {
      s.columns.push_back(s.width->range(static_cast<int32_t>(w),
                                         static_cast<int32_t>(std::min(rows_.width, w + tile_))));
    }
  }

  Stretch stretch_of(const Source& s, int64_t columns) const {
    return {columns, params_.out.channels_last ? s.channels : 1, s.column_stride, s.channel_stride};
  }

  // Finish for `length` values from `offset` on. Bits that begin within a byte go through scratch.
  Finish finish_at(int64_t offset, int64_t length, Scratch& scratch) const {
    Finish how{nullptr, nullptr, params_.activation == Activation::kRelu, params_.out.dtype};
    if (params_.gate) how.gate = aligned_bits(params_.gate, offset, length, scratch.bits[0].data());
    if (params_.mask)
      how.mask =
          ((offset | length) & 7) == 0 ? params_.mask + (offset >> 3) : scratch.bits[1].data();
    return how;
  }

  static int32_t power_of_two_from(int32_t value) {
    int32_t power = 1;
    while (power < value) power *= 2;
    return power;
  }

  static bool has_channel(const Source& s, int64_t c) {
    return c >= s.channel_begin && c < s.channel_begin + s.channels;
  }

  // Writes the pixels of a tile, which begins at p and at element `offset` of the output.
  void run_tile(const Position& p, int64_t tile, int64_t columns, int64_t offset,
                Scratch& scratch) const {
    const Map& out = params_.out;
    const int64_t length = columns * rows_.channels;
    void* to = static_cast<char*>(out.data) + offset * element_size(out.dtype);
    const Finish how = finish_at(offset, length, scratch);
    if (out.channels_last) {
      acc_t* sums = at_once_ ? nullptr : room(scratch.sum, length);
      write_pixels(0, params_.num_branches, p, tile, columns, sums ? sums : to, sums ? kKeep : how,
                   scratch);
      if (sums) store_run(ops_, sums, length, to, how);
    } else if (is_cat_) {
      int b = 0;
      while (!has_channel(sources_[b], p.c)) ++b;
      add_branch(b, p, tile, columns, {nullptr, to, how}, scratch);
    } else {
      sum_rows(p, tile, columns, to, how, scratch);
    }
    if (how.mask == scratch.bits[1].data() && how.mask)
      place_bits(params_.mask, offset, how.mask, length);
  }

  // One channel: adds up the branches, in one go over the rows of all that are resampled.
  void sum_rows(const Position& p, int64_t tile, int64_t columns, void* to, const Finish& how,
                Scratch& scratch) const {
    const Target target{base_of(p), to, how};
    if (by_planes_ && columns == plane_)
      return sum_planes(listed_, num_listed_, p, target, scratch.plane_sums[0], scratch);
    if (num_listed_ == 1) return add_branch(listed_[0], p, tile, columns, target, scratch);
    int32_t count = 0;
    for (int i = 0; i < num_listed_; ++i) {
      const int b = listed_[i];
      const Source& s = sources_[b];
      const Range source = s.width ? s.columns[tile] : Range{p.at[2], p.at[2]};
      list_taps(s, p, source.begin, scratch, count);
      if (s.width) {
        resample_listed(s, b, p.at[2], tile, columns, source, count, scratch);
      } else if (s.dtype != listed_dtype_ || !stretch_of(s, columns).is_vectorizable()) {
        const int32_t rows = scratch.count - count;
        acc_t* copy = room(scratch.resampled[b][0].row, rows * columns);
        for (int32_t row = count; row < scratch.count; ++row, copy += columns)
          scratch.taps[row] =
              loaded_to(copy, scratch.taps[row], s.dtype, stretch_of(s, columns), ops_);
      }
      count = scratch.count;
    }
    combine(listed_dtype_, {columns, 1, 1, 1}, target, scratch);
  }

  // channels_last: the sum of branches [first, last), or one after the other within each pixel.
  void write_pixels(int first, int last, const Position& p, int64_t tile, int64_t columns, void* to,
                    const Finish& how, Scratch& scratch) const {
    PixelSource<acc_t> sources[kMostRows * kMaxBranches];
    PixelSlice<acc_t> slices[kMaxBranches];
    AlongPixelsArgs<acc_t> args{to, base_of(p), slices, 0, p.at[2], columns, how};
    int32_t count = 0;
    const bool plain = !how.relu && !how.gate && !how.mask;
    bool one_run = true;  // pixels need not be told apart
    for (int b = first; b < last; ++b) {
      const Source& s = sources_[b];
      if (b == base_ || s.channels == 0) continue;
      const int32_t added = add_sources(sources + count, s, p, tile, scratch.rows[b], scratch);
      one_run =
          one_run && is_identity(params_.branches[b]) && sources[count].row_stride == s.channels;
      if (args.count == 0 || is_cat_) {
        const DType dtype = s.lies_well ? s.dtype : kKeep.dtype;
        const bool copied = s.only_copied && plain && !args.base;
        slices[args.count++] = {sources + count, 0, 0, s.channels, dtype, true, copied};
      }
      PixelSlice<acc_t>& slice = slices[args.count - 1];
      slice.count += added;
      slice.max_taps = std::max(slice.max_taps, s.width->max_count());
      slice.few = slice.few && s.width->has_pairs();
      slice.copied = slice.copied && slice.count == 1;
      count += added;
    }
    if (args.count == 1 && one_run) {
      for (int32_t i = 0; i < count; ++i)
        sources[i].row = advance(sources[i].row, slices[0].dtype, p.at[2] * slices[0].channels);
      slices[0].channels *= columns;
      args.begin = 0;
      args.columns = 1;
    }
    ops_.along_pixels(args);
  }

  // The rows of a branch that the tile reads, where they lie, or combined over depth and height.
  // Returns how many they are.
  int32_t add_sources(PixelSource<acc_t>* sources, const Source& s, const Position& p, int64_t tile,
                      std::vector<acc_t>& combined, Scratch& scratch) const {
    const Range range = s.columns[tile];
    list_taps(s, p, range.begin, scratch);
    const auto row_at = [&](const void* row, DType dtype, int64_t stride, acc_t factor) {
      row = advance(row, dtype, -range.begin * stride);
      return PixelSource<acc_t>{row, stride, &s.taps, factor};
    };
    if (s.lies_well) {
      for (int32_t i = 0; i < scratch.count; ++i)
        sources[i] = row_at(scratch.taps[i], s.dtype, s.column_stride, scratch.weights[i]);
      return scratch.count;
    }
    const Stretch stretch = stretch_of(s, range.end - range.begin);
    acc_t* sum = room(combined, stretch.numel());
    combine(s.dtype, stretch, {nullptr, sum, kKeep}, scratch);
    sources[0] = row_at(sum, kKeep.dtype, s.channels, acc_t(1));
    return 1;
  }

  const void* base_of(const Position& p) const {
    return base_ < 0 ? nullptr : element_at(sources_[base_], p);
  }

  // The element of a branch of the result's size at p.
  const char* element_at(const Source& s, const Position& p) const {
    return plane(s, p) + p.at[0] * s.stride[2] + p.at[1] * s.stride[3] + p.at[2] * s.stride[4];
  }

  // The branch's element at (n, c, 0, 0, 0), where c is a channel of the output.
  const char* plane(const Source& s, const Position& p) const {
    return s.data + p.n * s.stride[0] +
           (params_.out.channels_last ? 0 : (p.c - s.channel_begin) * s.stride[1]);
  }

  // target = finish(base + w_b * R_b(x_b)) for the pixels of the tile that begins at p.
  void add_branch(int b, const Position& p, int64_t tile, int64_t columns, const Target& target,
                  Scratch& scratch) const {
    const Source& s = sources_[b];
    if (s.by_planes && columns == plane_)
      return sum_planes(&b, 1, p, target, scratch.plane_sums[b], scratch);
    if (!s.width) {
      list_taps(s, p, p.at[2], scratch);
      combine(s.dtype, stretch_of(s, columns), target, scratch);
      return;
    }
    const Range source = s.columns[tile];
    list_taps(s, p, source.begin, scratch);
    along_row(s, b, p.at[2], tile, columns, source, target, scratch);
  }

  // target = finish(base + the sum of `count` branches), for the plane that begins at p.
  void sum_planes(const int* branches, int count, const Position& p, const Target& target,
                  PlaneSums& sums, Scratch& scratch) const {
    list_planes(branches, count, p, sums, scratch);
    const acc_t* planes[kMaxBranches];
    for (int i = 0; i < count; ++i)
      planes[i] = plane_along_width(branches[i], p, sums.parts[i], scratch);
    const Finish& how = target.finish;
    if ((!how.gate && !how.mask) || rows_.width % 8 == 0)
      return sums.rows.write(ops_, planes, rows_.width, target.base, target.to, how);
    // The bits of its rows begin within bytes: it is finished as one run.
    acc_t* sum = room(scratch.sum, plane_);
    if (target.base) {
      const acc_t* base = loaded(scratch.copies, target.base, how.dtype, {plane_, 1, 1, 1}, ops_);
      sums.rows.write(ops_, planes, rows_.width, base, sum, kKeep);
    } else {
      sums.rows.write(ops_, planes, rows_.width, nullptr, sum, kKeep);
    }
    store_run(ops_, sum, plane_, target.to, how);
  }

  // Lists what the rows of planes are made of that have p's weights.
  void list_planes(const int* branches, int count, const Position& p, PlaneSums& sums,
                   Scratch& scratch) const {
    bool listed = !sums.parts.empty();
    if (!listed) {
      sums.parts.resize(count);
      for (int i = 0; i < count; ++i) sums.parts[i].read = rows_read(branches[i]);
    }
    for (int i = 0; i < count; ++i) {
      const acc_t factor = factor_of(sources_[branches[i]], p);
      listed = listed && sums.parts[i].factor == factor;
      sums.parts[i].factor = factor;
    }
    if (listed) return;
    sums.rows.clear();
    for (typename PlaneSums::Part& part : sums.parts) part.before.clear();
    Position row = p;
    for (int32_t number = 0; number < plane_ / rows_.width; ++number, next_row(params_.out, row)) {
      for (int i = 0; i < count; ++i) {
        const Source& s = sources_[branches[i]];
        const int64_t row_bytes = params_.branches[branches[i]].map.size[4] * element_size(s.dtype);
        RowSums<acc_t>& before = sums.parts[i].before;
        list_taps(s, row, 0, scratch);
        for (int32_t t = 0; t < scratch.count; ++t) {
          const int32_t from = row_number(scratch.taps[t], plane(s, p), row_bytes);
          if (combines_before(s)) {
            before.add(0, from, scratch.weights[t]);
          } else {
            sums.rows.add(i, from, scratch.weights[t]);
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
    const Source& s = sources_[b];
    const int64_t (&size)[kDims] = params_.branches[b].map.size;
    std::vector<char> is_read(size[2] * size[3]);
    for (int32_t z = 0; z < params_.out.size[2]; ++z) {
      for (int32_t y = 0; y < params_.out.size[3]; ++y) {
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

  static bool combines_before(const Source& s) { return s.width && s.rows_first; }

  // The plane of branch b that p is in, its rows resampled along the width.
  const acc_t* plane_along_width(int b, const Position& p, typename PlaneSums::Part& part,
                                 Scratch& scratch) const {
    const Source& s = sources_[b];
    const Map& map = params_.branches[b].map;
    const int64_t width = map.size[4], length = plane_size(map);
    const Stretch whole{length, 1, 1, 1};
    const void* from = plane(s, p);
    if (!s.width) return loaded(scratch.planes[b], from, s.dtype, whole, ops_);
    DType dtype = s.dtype;
    if (combines_before(s)) {
      const acc_t* rows = loaded(scratch.copies, from, dtype, whole, ops_);
      acc_t* combined = padded_row(scratch, plane_ / rows_.width * width);
      part.before.write(ops_, &rows, width, nullptr, combined, kKeep);
      acc_t* to = room(scratch.planes[b], plane_);
      ops_.along_row({to, nullptr, combined, kKeep.dtype, &s.taps, 0, rows_.width, kKeep,
                      plane_ / rows_.width, width});
      return to;
    }
    if (s.width->needs_padding() || !takes<acc_t>(dtype, kKeep.dtype)) {
      acc_t* copy = padded_row(scratch, length);
      load_stretch(copy, from, dtype, whole, ops_);
      from = copy;
      dtype = kKeep.dtype;
    }
    acc_t* to = room(scratch.planes[b], map.size[2] * map.size[3] * rows_.width);
    for (const Range& rows : part.read) {
      ops_.along_row({to + rows.begin * rows_.width, nullptr,
                      advance(from, dtype, rows.begin * width), dtype, &s.taps, 0, rows_.width,
                      kKeep, rows.end - rows.begin, width});
    }
    return to;
  }

  acc_t factor_of(const Source& s, const Position& p) const {
    if (!s.weighted) return acc_t(1);
    return weight_of<acc_t>(params_.weights, static_cast<int>(&s - sources_), p.n, p.c);
  }

  // The source rows that a row of the output reads, with their weights, from column `begin` on:
  // behind `count` that are listed already.
  void list_taps(const Source& s, const Position& p, int32_t begin, Scratch& scratch,
                 int32_t count = 0) const {
    const acc_t factor = factor_of(s, p);
    const char* data = plane(s, p) + begin * s.stride[4];
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
    const void** rows = scratch.taps.data() + first;
    int32_t count = scratch.count - first;
    int64_t column_stride = stretch.column_stride;
    if (count == 0) {  // nothing is read: zero times a row of zeros
      const int64_t length = stretch.numel();
      acc_t* zeros = room(scratch.copies, length);
      std::fill_n(zeros, length, acc_t(0));
      rows[0] = zeros;
      scratch.weights[first] = acc_t(0);
      count = 1;
      dtype = kKeep.dtype;
      column_stride = stretch.channels;
    } else if (!stretch.is_vectorizable() || !takes<acc_t>(dtype, target.finish.dtype)) {
      const int64_t length = stretch.numel();
      acc_t* copy = room(scratch.copies, count * length);
      for (int32_t i = 0; i < count; ++i, copy += length) {
        copy_stretch(copy, rows[i], dtype, stretch);
        rows[i] = copy;
      }
      dtype = kKeep.dtype;
      column_stride = stretch.channels;
    }
    // One by one: a list would be cleared before, which short rows notice.
    CombineArgs<acc_t> args;
    args.to = target.to;
    args.base = target.base;
    args.rows = rows;
    args.gates = nullptr;
    args.weights = scratch.weights.data() + first;
    args.count = count;
    args.dtype = dtype;
    // Pixels of one channel are one long run.
    args.columns = params_.out.channels_last ? stretch.columns : 1;
    args.channels = params_.out.channels_last ? stretch.channels : stretch.columns;
    args.row_stride = column_stride;
    args.gate_stride = 0;
    args.finish = target.finish;
    ops_.combine(args);
  }

  // One channel: goes along the width of each listed row, then combines.
  void along_row(const Source& s, int b, int32_t begin, int64_t tile, int64_t columns, Range source,
                 const Target& target, Scratch& scratch) const {
    if (s.rows_first) {
      const acc_t* row = combined_row(s, source, 0, scratch);
      return along_walkable(s, begin, columns, source, row, kKeep.dtype, target);
    }
    if (!s.resampled_rows_serve_twice)
      return resample_row(s, begin, columns, source, scratch.taps[0], target, scratch);
    if (s.rows_repeat && writes_result_ && !has_bits_) {
      Resampled& kept = scratch.resampled[b][scratch.slots[0]];
      if (kept.source == scratch.taps[0] && kept.tile == tile) {
        memcpy(target.to, kept.result, columns * element_size(target.finish.dtype));
      } else {
        kept.source = scratch.taps[0];
        kept.tile = tile;
        resample_row(s, begin, columns, source, scratch.taps[0], target, scratch);
      }
      kept.result = target.to;  // where it is warm
      return;
    }
    resample_listed(s, b, begin, tile, columns, source, 0, scratch);
    combine(kKeep.dtype, {columns, 1, 1, 0}, target, scratch);
  }

  // Replaces the listed rows, from number `first` on, by what they are along the width of the tile.
  void resample_listed(const Source& s, int b, int32_t begin, int64_t tile, int64_t columns,
                       Range source, int32_t first, Scratch& scratch) const {
    if (s.rows_first) {
      const acc_t* row = combined_row(s, source, first, scratch);
      acc_t* to = room(scratch.resampled[b][0].row, columns);
      along_walkable(s, begin, columns, source, row, kKeep.dtype, {nullptr, to, kKeep});
      scratch.taps[first] = to;
      scratch.weights[first] = acc_t(1);
      scratch.count = first + 1;
      return;
    }
    for (int32_t i = first; i < scratch.count; ++i) {
      Resampled& kept = scratch.resampled[b][scratch.slots[i]];
      if (kept.source != scratch.taps[i] || kept.tile != tile) {
        kept.source = scratch.taps[i];
        kept.tile = tile;
        const Target to{nullptr, room(kept.row, columns), kKeep};
        resample_row(s, begin, columns, source, scratch.taps[i], to, scratch);
      }
      scratch.taps[i] = kept.row.data();
    }
  }

  // The sum of the rows that are listed from number `first` on, for the columns of `source`.
  const acc_t* combined_row(const Source& s, Range source, int32_t first, Scratch& scratch) const {
    const Stretch stretch = stretch_of(s, source.end - source.begin);
    acc_t* row = padded_row(scratch, stretch.numel());
    combine(s.dtype, stretch, {nullptr, row, kKeep}, scratch, first);
    return row;
  }

  void resample_row(const Source& s, int32_t begin, int64_t columns, Range source, const void* row,
                    const Target& target, Scratch& scratch) const {
    const Stretch stretch = stretch_of(s, source.end - source.begin);
    // The permutes read whole vectors, also beyond the end of a row that is shorter.
    if (stretch.is_vectorizable() && !s.width->needs_padding() &&
        takes<acc_t>(s.dtype, target.finish.dtype))
      return along_walkable(s, begin, columns, source, row, s.dtype, target);
    acc_t* copy = padded_row(scratch, stretch.numel());
    copy_stretch(copy, row, s.dtype, stretch);
    along_walkable(s, begin, columns, source, copy, kKeep.dtype, target);
  }

  // A row in scratch: vector loads may reach beyond both of its ends.
  static acc_t* padded_row(Scratch& scratch, int64_t length) {
    constexpr int32_t kPadding = TapTable<acc_t>::kPadding;
    return room(scratch.rows[0], length + 2 * kPadding) + kPadding;
  }

  // row: the columns of `source`, as the row operations walk them.
  void along_walkable(const Source& s, int32_t begin, int64_t columns, Range source,
                      const void* row, DType dtype, const Target& target) const {
    ops_.along_row({target.to, target.base, advance(row, dtype, -source.begin), dtype, &s.taps,
                    begin, columns, target.finish});
  }

  const GatherParams& params_;
  const RowOps<acc_t>& ops_;
  const Rows rows_;
  DType narrow_ = kKeep.dtype;  // the type of rows, other than the accumulation type, that are read
                                // in channels_last without being copied
  const int64_t plane_;         // elements of a channel of the result
  int64_t rows_per_chunk_, tile_;
  int32_t all_taps_ = 0;  // rows that a row of the result reads, at most
  bool is_cat_ = false;
  bool plane_at_once_;        // some branch takes whole planes;
  bool by_planes_ = false;    // the sum does
  bool dense_images_ = true;  // every branch has the result's size, and rows without gaps
  bool whole_bytes_ = true;   // every branch has a multiple of eight channels
  bool has_bits_;
  bool writes_result_;        // each branch by itself, in one channel
  bool at_once_;              // one branch finishes the tile,
  int base_ = -1;             // and adds this one as it lies
  int listed_[kMaxBranches];  // the branches whose rows are summed in one go,
  int num_listed_ = 0;
  DType listed_dtype_ = kKeep.dtype;  // and the type of the rows
  Source sources_[kMaxBranches];
};

}  // namespace msr
