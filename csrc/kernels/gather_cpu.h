// gather-sum on the CPU: any strides, rank, element types and taps.
//
// The output is written row by row, a row in tiles that fit into the first-level cache. In
// channels_last it is written pixel by pixel (gather_pixels_cpu.h). Along the width of one channel
// the resampling comes first: it is the dearer part, and its results serve all output rows that
// read the same source row. Where there are more source rows than rows of the output, they are
// combined before. Then the rows of all branches are summed and finished at once. Small planes take
// these steps as wholes (gather_planes_cpu.h). Rows that the row operations cannot walk are copied
// first. Chunks of rows are the unit of threading; they depend on the sizes alone.
#pragma once

#include "gather_pixels_cpu.h"
#include "gather_planes_cpu.h"

namespace msr {

template <typename acc_t>
class GatherCpu {
  using Shared = GatherRowsCpu<acc_t>;
  using Source = typename Shared::Source;
  using Target = typename Shared::Target;

 public:
  GatherCpu(const GatherParams& params, const RowOps<acc_t>& ops,
            GatherPart part = GatherPart::kResult)
      : shared_(params, ops, part),
        pixels_(shared_),
        planes_(shared_),
        writes_result_(part == GatherPart::kResult &&
                       (shared_.is_cat || params.num_branches == 1)) {
    plan_rows();
    for (int b = 0; b < params.num_branches; ++b) {
      dense_images_ = dense_images_ && shared_.sources[b].dense_image;
      plane_at_once_ = plane_at_once_ || shared_.sources[b].by_planes;
    }
    // Whole bytes of the mask per chunk, so that no two threads share one; and enough work to be
    // worth a task.
    const Rows& rows = shared_.rows;
    const int64_t at_once = plane_at_once_ ? params.out.size[2] * params.out.size[3] : 1;
    const int64_t length = std::max<int64_t>(1, rows.channels * rows.width * at_once);
    const int64_t step = 8 / std::gcd(length, int64_t{8});
    rows_per_chunk_ = ceil_div(std::max<int64_t>(1, kChunk / length), step) * step * at_once;
  }
  GatherCpu(const GatherCpu&) = delete;  // pixels_ and planes_ refer to shared_

  // A source row of one branch that was resampled along the width of a tile.
  struct Resampled {
    const void* source = nullptr;  // the row it was made of
    int64_t tile = -1;
    std::vector<acc_t> row;
    const void* result;  // or, where rows repeat, the row of the output that holds it
  };

  // A thread's memory between rows.
  struct Scratch {
    explicit Scratch(const GatherCpu& gather) : rows(gather.shared_), planes{rows} {
      for (int b = 0; b < gather.shared_.params.num_branches; ++b) {
        const Source& s = gather.shared_.sources[b];
        resampled[b].resize((s.depth_mask + 1) * (s.height_mask + 1));
      }
      const int64_t widest = gather.shared_.rows.channels * gather.tile();
      for (std::vector<uint8_t>& row : bits) row.resize(ceil_div(widest, 8));
    }
    Scratch(const Scratch&) = delete;  // planes refer to rows

    typename Shared::Scratch rows;
    typename GatherPlanesCpu<acc_t>::Scratch planes;
    std::vector<Resampled> resampled[kMaxBranches];
    std::vector<uint8_t> bits[2];  // of gate and mask, where they begin within a byte
  };

  int64_t num_chunks() const { return ceil_div(shared_.rows.count, rows_per_chunk_); }
  // That are worth a thread.
  int64_t chunks_per_task() const {
    const int64_t chunk = rows_per_chunk_ * shared_.rows.width * shared_.rows.channels;
    return std::max<int64_t>(1, 4 * kChunk / std::max<int64_t>(1, chunk));
  }

  // Writes the rows of chunks [begin, end).
  void run(int64_t begin, int64_t end, Scratch& scratch) const {
    const GatherParams& params = shared_.params;
    const Rows& rows = shared_.rows;
    const int64_t last = std::min(rows.count, end * rows_per_chunk_);
    int64_t offset = begin * rows_per_chunk_ * rows.width * rows.channels;
    int64_t chunk_end = begin * rows_per_chunk_;
    Position p = position_of(params.out, offset);
    for (int64_t row = chunk_end; row < last;) {
      // Not beyond the chunk: which rows a thread does may not show in a bit.
      if (row == chunk_end) chunk_end = std::min(last, chunk_end + rows_per_chunk_);
      const int64_t together = rows_together(p, chunk_end - row);
      if (together > 1) {
        run_tile(p, 0, together * rows.width, offset, scratch);
        offset += together * rows.width;
        p = position_of(params.out, offset);
      } else {
        for (int64_t tile = 0; p.at[2] < rows.width; ++tile) {
          const int64_t columns = std::min(shared_.tile, rows.width - p.at[2]);
          run_tile(p, tile, columns, offset, scratch);
          offset += columns * rows.channels;
          p.at[2] += static_cast<int32_t>(columns);
        }
        next_row(params.out, p);
        p.at[2] = 0;
      }
      row += together;
    }
    if (params.mask && last == rows.count) {
      // The mask ends with a whole 32-bit word, as warps write it: no bit of it may stay unwritten.
      const int64_t total = numel(params.out);
      std::fill(params.mask + ceil_div(total, 8), params.mask + 4 * ceil_div(total, 32),
                uint8_t{0});
    }
  }

  // The walk over the result: rows in chunks, a row in tiles, in pixels.
  int64_t rows_per_chunk() const { return rows_per_chunk_; }
  int64_t tile() const {
    return plane_at_once_ ? std::max(shared_.tile, shared_.plane) : shared_.tile;
  }

  // Whether branch_row (of a branch) or sum_tile takes whole planes of one channel: then tile 0 may
  // have as many columns.
  bool takes_planes(int b) const { return shared_.sources[b].by_planes; }
  bool sums_planes() const { return by_planes_; }

  // One branch alone, for pixels p.at[2] to p.at[2] + columns - 1 of a row, which are tile number
  // `tile` of it: [columns, the branch's channels, or 1 where a row has one].
  void branch_row(int b, const Position& p, int64_t tile, int64_t columns, acc_t* to,
                  Scratch& scratch) const {
    if (shared_.params.out.channels_last) {
      pixels_.write(b, b + 1, p, tile, columns, to, kKeep, scratch.rows);
    } else {
      add_branch(b, p, tile, columns, {nullptr, to, kKeep}, scratch);
    }
  }

  // The sum of all branches, for the same pixels.
  void sum_tile(const Position& p, int64_t tile, int64_t columns, acc_t* to,
                Scratch& scratch) const {
    if (shared_.params.out.channels_last) {
      pixels_.write(0, shared_.params.num_branches, p, tile, columns, to, kKeep, scratch.rows);
    } else {
      sum_rows(p, tile, columns, to, kKeep, scratch);
    }
  }

  // Whether the values of neighbouring rows of a channel are one run.
  bool is_dense(int b) const { return shared_.sources[b].dense_image; }

  // Whether the row at p, of one channel, is the same as the one before.
  bool repeats_row(int b, const Position& p) const {
    const Source& s = shared_.sources[b];
    return s.rows_repeat && s.height && !shared_.params.out.channels_last && p.at[1] > 0 &&
           s.height->first(p.at[1]) == s.height->first(p.at[1] - 1);
  }

  // See GatherPixelsCpu.
  PickedPixels<acc_t> picked_pixels(int b, const Position& p, int64_t tile,
                                    std::vector<acc_t>& memory, Scratch& scratch) const {
    return pixels_.picked(b, p, tile, memory, scratch.rows);
  }

  // Where the values of branch_row lie already, or null.
  const acc_t* row_in_place(int b, const Position& p) const {
    const Source& s = shared_.sources[b];
    if (!s.as_it_lies || s.dtype != kKeep.dtype) return nullptr;
    return reinterpret_cast<const acc_t*>(shared_.element_at(s, p));
  }

 private:
  static constexpr int64_t kChunk = 8192;  // elements
  static constexpr Finish kKeep = Shared::kKeep;

  // How the branches of one channel are summed.
  void plan_rows() {
    const GatherParams& params = shared_.params;
    bool as_they_lie = !params.out.channels_last;
    // Those of the result's width come last, as the base does: weights of one change no bit.
    for (const bool resampled : {true, false}) {
      for (int b = 0; b < params.num_branches; ++b) {
        const Source& s = shared_.sources[b];
        if (b == shared_.base || (s.width != nullptr) != resampled) continue;
        listed_[num_listed_++] = b;
        as_they_lie = as_they_lie && !s.width && s.dtype == shared_.narrow &&
                      shared_.stretch_of(s, shared_.rows.width).is_vectorizable();
      }
    }
    if (as_they_lie) listed_dtype_ = shared_.narrow;
    // Maps that are only added take part in the sum of planes if their values are one run.
    const auto takes_part = [&](int b) {
      const Source& s = shared_.sources[b];
      return s.by_planes || (s.dense_planes && is_identity(params.branches[b]));
    };
    by_planes_ = !shared_.is_cat && (shared_.base < 0 || takes_part(shared_.base));
    bool any = false;
    for (int i = 0; i < num_listed_; ++i) {
      by_planes_ = by_planes_ && takes_part(listed_[i]);
      any = any || shared_.sources[listed_[i]].by_planes;
    }
    by_planes_ = by_planes_ && any;
  }

  // How many rows from p's on, up to `rows`, are one run in every source that they read.
  int64_t rows_together(const Position& p, int64_t rows) const {
    const GatherParams& params = shared_.params;
    if (params.out.channels_last) return 1;
    const int64_t per_plane = params.out.size[2] * params.out.size[3];
    const int64_t before = p.at[0] * params.out.size[3] + p.at[1];
    if (!shared_.is_cat) {
      if (by_planes_) return per_plane;
      if (!dense_images_) return 1;
      const int64_t planes = params.weights.stride_c == 0 ? params.out.size[1] - p.c : 1;
      const int64_t most = std::min(rows, std::max<int64_t>(1, shared_.tile / shared_.rows.width));
      return std::min(most, planes * per_plane - before);
    }
    for (int b = 0; b < params.num_branches; ++b) {
      const Source& s = shared_.sources[b];
      if (!s.has_channel(p.c)) continue;
      if (s.by_planes) return per_plane;
      if (!s.dense_image || shared_.has_bits) return 1;
      return std::min(rows, (s.channel_begin + s.channels - p.c) * per_plane - before);
    }
    return 1;
  }

  // Finish for `length` values from `offset` on. Bits that begin within a byte go through scratch.
  Finish finish_at(int64_t offset, int64_t length, Scratch& scratch) const {
    const GatherParams& params = shared_.params;
    Finish how{nullptr, nullptr, params.activation == Activation::kRelu, params.out.dtype};
    if (params.gate) how.gate = aligned_bits(params.gate, offset, length, scratch.bits[0].data());
    if (params.mask)
      how.mask =
          ((offset | length) & 7) == 0 ? params.mask + (offset >> 3) : scratch.bits[1].data();
    return how;
  }

  // Writes the pixels of a tile, which begins at p and at element `offset` of the output.
  void run_tile(const Position& p, int64_t tile, int64_t columns, int64_t offset,
                Scratch& scratch) const {
    const GatherParams& params = shared_.params;
    const int64_t length = columns * shared_.rows.channels;
    void* to = advance(params.out.data, params.out.dtype, offset);
    const Finish how = finish_at(offset, length, scratch);
    if (params.out.channels_last) {
      acc_t* sums = shared_.at_once ? nullptr : room(scratch.rows.sum, length);
      pixels_.write(0, params.num_branches, p, tile, columns, sums ? sums : to, sums ? kKeep : how,
                    scratch.rows);
      if (sums) store_run(shared_.ops, sums, length, to, how);
    } else if (shared_.is_cat) {
      int b = 0;
      while (!shared_.sources[b].has_channel(p.c)) ++b;
      add_branch(b, p, tile, columns, {nullptr, to, how}, scratch);
    } else {
      sum_rows(p, tile, columns, to, how, scratch);
    }
    if (how.mask == scratch.bits[1].data() && how.mask)
      place_bits(params.mask, offset, how.mask, length);
  }

  // One channel: adds up the branches, in one go over the rows of all that are resampled.
  void sum_rows(const Position& p, int64_t tile, int64_t columns, void* to, const Finish& how,
                Scratch& scratch) const {
    const Target target{shared_.base_of(p), to, how};
    if (by_planes_ && columns == shared_.plane)
      return planes_.sum(listed_, num_listed_, p, target, scratch.planes);
    if (num_listed_ == 1) return add_branch(listed_[0], p, tile, columns, target, scratch);
    typename Shared::Scratch& rows = scratch.rows;
    int32_t count = 0;
    for (int i = 0; i < num_listed_; ++i) {
      const int b = listed_[i];
      const Source& s = shared_.sources[b];
      const Range source = s.width ? s.columns[tile] : Range{p.at[2], p.at[2]};
      const Stretch stretch = shared_.stretch_of(s, columns);
      shared_.list_taps(s, p, source.begin, rows, count);
      if (s.width) {
        resample_listed(s, b, p.at[2], tile, columns, source, count, scratch);
      } else if (s.dtype != listed_dtype_ || !stretch.is_vectorizable()) {
        acc_t* copy = room(scratch.resampled[b][0].row, (rows.count - count) * columns);
        for (int32_t row = count; row < rows.count; ++row, copy += columns)
          rows.taps[row] = loaded_to(copy, rows.taps[row], s.dtype, stretch, shared_.ops);
      }
      count = rows.count;
    }
    shared_.combine(listed_dtype_, {columns, 1, 1, 1}, target, rows);
  }

  // target = finish(base + w_b * R_b(x_b)) for the pixels of the tile that begins at p.
  void add_branch(int b, const Position& p, int64_t tile, int64_t columns, const Target& target,
                  Scratch& scratch) const {
    const Source& s = shared_.sources[b];
    if (s.by_planes && columns == shared_.plane)
      return planes_.sum(&b, 1, p, target, scratch.planes);
    if (!s.width) {
      shared_.list_taps(s, p, p.at[2], scratch.rows);
      shared_.combine(s.dtype, shared_.stretch_of(s, columns), target, scratch.rows);
      return;
    }
    const Range source = s.columns[tile];
    shared_.list_taps(s, p, source.begin, scratch.rows);
    along_row(s, b, p.at[2], tile, columns, source, target, scratch);
  }

  // One channel: goes along the width of each listed row, then combines.
  void along_row(const Source& s, int b, int32_t begin, int64_t tile, int64_t columns, Range source,
                 const Target& target, Scratch& scratch) const {
    if (s.rows_first) {
      const acc_t* row = combined_row(s, source, 0, scratch.rows);
      return along_walkable(s, begin, columns, source, row, kKeep.dtype, target);
    }
    const void* row = scratch.rows.taps[0];
    if (!s.resampled_rows_serve_twice)
      return resample_row(s, begin, columns, source, row, target, scratch.rows);
    if (s.rows_repeat && writes_result_ && !shared_.has_bits) {
      Resampled& kept = scratch.resampled[b][scratch.rows.slots[0]];
      if (kept.source == row && kept.tile == tile) {
        memcpy(target.to, kept.result, columns * element_size(target.finish.dtype));
      } else {
        kept.source = row;
        kept.tile = tile;
        resample_row(s, begin, columns, source, row, target, scratch.rows);
      }
      kept.result = target.to;  // where it is warm
      return;
    }
    resample_listed(s, b, begin, tile, columns, source, 0, scratch);
    shared_.combine(kKeep.dtype, {columns, 1, 1, 0}, target, scratch.rows);
  }

  // Replaces the listed rows, from number `first` on, by what they are along the width of the tile.
  void resample_listed(const Source& s, int b, int32_t begin, int64_t tile, int64_t columns,
                       Range source, int32_t first, Scratch& scratch) const {
    typename Shared::Scratch& rows = scratch.rows;
    if (s.rows_first) {
      const acc_t* row = combined_row(s, source, first, rows);
      acc_t* to = room(scratch.resampled[b][0].row, columns);
      along_walkable(s, begin, columns, source, row, kKeep.dtype, {nullptr, to, kKeep});
      rows.taps[first] = to;
      rows.weights[first] = acc_t(1);
      rows.count = first + 1;
      return;
    }
    for (int32_t i = first; i < rows.count; ++i) {
      Resampled& kept = scratch.resampled[b][rows.slots[i]];
      if (kept.source != rows.taps[i] || kept.tile != tile) {
        kept.source = rows.taps[i];
        kept.tile = tile;
        const Target to{nullptr, room(kept.row, columns), kKeep};
        resample_row(s, begin, columns, source, rows.taps[i], to, rows);
      }
      rows.taps[i] = kept.row.data();
    }
  }

  // The sum of the rows that are listed from number `first` on, for the columns of `source`.
  const acc_t* combined_row(const Source& s, Range source, int32_t first,
                            typename Shared::Scratch& rows) const {
    const Stretch stretch = shared_.stretch_of(s, source.end - source.begin);
    acc_t* row = Shared::padded_row(rows, stretch.numel());
    shared_.combine(s.dtype, stretch, {nullptr, row, kKeep}, rows, first);
    return row;
  }

  void resample_row(const Source& s, int32_t begin, int64_t columns, Range source, const void* row,
                    const Target& target, typename Shared::Scratch& rows) const {
    const Stretch stretch = shared_.stretch_of(s, source.end - source.begin);
    // The permutes read whole vectors, also beyond the end of a row that is shorter.
    if (stretch.is_vectorizable() && !s.width->needs_padding() &&
        takes<acc_t>(s.dtype, target.finish.dtype))
      return along_walkable(s, begin, columns, source, row, s.dtype, target);
    acc_t* copy = Shared::padded_row(rows, stretch.numel());
    copy_stretch(copy, row, s.dtype, stretch);
    along_walkable(s, begin, columns, source, copy, kKeep.dtype, target);
  }

  // row: the columns of `source`, as the row operations walk them.
  void along_walkable(const Source& s, int32_t begin, int64_t columns, Range source,
                      const void* row, DType dtype, const Target& target) const {
    shared_.ops.along_row({target.to, target.base, advance(row, dtype, -source.begin), dtype,
                           &s.taps, begin, columns, target.finish});
  }

  const Shared shared_;
  const GatherPixelsCpu<acc_t> pixels_;
  const GatherPlanesCpu<acc_t> planes_;
  const bool writes_result_;    // each branch by itself, in one channel
  bool plane_at_once_ = false;  // some branch takes whole planes;
  bool by_planes_ = false;      // the sum does
  bool dense_images_ = true;    // every branch has the result's size, and rows without gaps
  int listed_[kMaxBranches];    // the branches whose rows are summed in one go,
  int num_listed_ = 0;
  DType listed_dtype_ = kKeep.dtype;  // and the type of the rows
  int64_t rows_per_chunk_;
};

}  // namespace msr
