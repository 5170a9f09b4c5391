// gather-sum on the CPU: any strides, rank, element types and taps.
//
// The output is written row by row, a row in tiles that fit into the first-level cache; the last
// branch of a sum finishes and stores it. A branch's rows are resampled along the width and
// combined over depth and height. In channels_last the combining comes first, because it is done on
// the low-resolution row. Along the width of one channel the resampling comes first: it is the
// dearer part, and its results serve all output rows that read the same source row. Rows that the
// row operations cannot walk are copied first. Chunks of rows are the unit of threading; they
// depend on the sizes alone.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "rows_cpu.h"
#include "tables_cpu.h"

namespace msr {

template <typename acc_t>
class GatherCpu {
 public:
  GatherCpu(const GatherParams& params, const RowOps<acc_t>& ops)
      : params_(params), ops_(ops), rows_(params.out) {
    const Map& out = params.out;
    tile_ = out.channels_last ? std::max<int64_t>(1, kTile / std::max<int64_t>(1, rows_.channels))
                              : kTile;
    for (int b = 0; b < params.num_branches; ++b) {
      const int64_t channels = params.branches[b].map.size[1];
      is_cat_ = is_cat_ || channels != out.size[1];
      whole_bytes_ = whole_bytes_ && channels % 8 == 0;
      add_source(b);
    }
    // Pixels of several channels share bytes of the bit rows, unless each is whole bytes: then a
    // tile is finished as one row, in a pass of its own.
    has_bits_ = params.gate || params.mask;
    at_once_ =
        !has_bits_ || !out.channels_last || (out.size[1] % 8 == 0 && (!is_cat_ || whole_bytes_));
    interleave_ = is_cat_ && out.channels_last && !has_bits_;
    if (at_once_ && !is_cat_) {
      finisher_ = params.num_branches - 1;
      for (int b = params.num_branches - 1; b >= 0 && params.num_branches > 1; --b)
        if (sources_[b].as_it_lies) base_ = b;
      if (base_ == finisher_) --finisher_;
    }
    // Whole bytes of the mask per chunk, so that no two threads share one; and enough work to be
    // worth a task.
    const int64_t length = std::max<int64_t>(1, rows_.channels * rows_.width);
    const int64_t step = 8 / std::gcd(length, int64_t{8});
    rows_per_chunk_ = ceil_div(std::max<int64_t>(1, kChunk / length), step) * step;
  }

  int64_t num_chunks() const { return ceil_div(rows_.count, rows_per_chunk_); }

  // Writes the rows of chunks [begin, end).
  void run(int64_t begin, int64_t end) const {
    const Map& out = params_.out;
    Scratch scratch;
    scratch.taps.resize(max_taps_);
    scratch.weights.resize(max_taps_);
    for (std::vector<uint8_t>& bits : scratch.bits)
      bits.resize(ceil_div(std::min(tile_, rows_.width) * rows_.channels, 8));
    const int64_t last = std::min(rows_.count, end * rows_per_chunk_);
    int64_t offset = begin * rows_per_chunk_ * rows_.width * rows_.channels;
    Position p = position_of(out, offset);
    for (int64_t row = begin * rows_per_chunk_; row < last;) {
      const int64_t together = rows_together(p, last - row);
      if (together > 1) {
        run_tile(p, 0, together * rows_.width, offset, scratch);
        offset += together * rows_.width;
      } else {
        for (int64_t tile = 0; p.at[2] < rows_.width; ++tile) {
          const int64_t columns = std::min(tile_, rows_.width - p.at[2]);
          run_tile(p, tile, columns, offset, scratch);
          offset += columns * rows_.channels;
          p.at[2] += static_cast<int32_t>(columns);
        }
      }
      row += together;
      for (int64_t i = 0; i < together; ++i) next_row(out, p);
      p.at[2] = 0;
    }
    if (params_.mask && last == rows_.count) {
      // The mask ends with a whole 32-bit word, as warps write it: no bit of it may stay unwritten.
      const int64_t total = numel(out);
      std::fill(params_.mask + ceil_div(total, 8), params_.mask + 4 * ceil_div(total, 32),
                uint8_t{0});
    }
  }

 private:
  static constexpr int64_t kChunk = 8192;  // elements
  static constexpr int64_t kTile = 2048;   // elements; a multiple of every number of lanes

  using Table = std::optional<TapTable<acc_t>>;

  // One branch, as it is read. Tables are empty for axes that keep their size.
  struct Source {
    const char* data;
    int64_t stride[kDims];  // bytes
    int64_t element;        // bytes
    DType dtype;
    acc_t factor;
    int64_t channel_begin, channels;  // in the output
    int64_t column_stride, channel_stride;
    Table depth, height, width;
    Taps<acc_t> taps;            // of the width
    std::vector<Range> columns;  // of the source, per tile
    bool resampled_rows_serve_twice;
    bool only_copied;  // every pixel of the result is one of its own
    bool dense_image;  // one channel after the other, without gaps
    bool as_it_lies;   // it has the result's size, type and strides: it can be added where it is
  };

  // Source rows of one branch that were resampled along the width of a tile. Destinations read at
  // most two neighbouring rows of each axis, so the last bits of depth and height tell them apart.
  struct Resampled {
    std::vector<acc_t> row;
    const void* source = nullptr;  // the row it was made of
    int64_t tile = -1;
  };

  struct Scratch {
    std::vector<acc_t> sums[2];     // of the branches so far, one after the other
    std::vector<acc_t> row;         // the source columns that the tile reads, combined
    std::vector<uint8_t> bits[2];   // of gate and mask, where they begin within a byte
    int32_t count;                  // of the rows that are combined:
    std::vector<const void*> taps;  // where they are,
    std::vector<acc_t> weights;
    int32_t slots[4];           // and where they are kept once resampled along the width
    std::vector<acc_t> copies;  // of rows that the row operations cannot walk
    Resampled resampled[kMaxInputs][4];
    std::vector<char> slices[kMaxInputs];  // of a concatenation's tile
  };

  // Where a branch's share of a tile goes.
  struct Target {
    const acc_t* previous;  // or null
    const void* base;       // or null
    void* to;
    int64_t stride, previous_stride, finish_stride;  // per pixel
    Finish finish;
  };

  static constexpr Finish kKeep{nullptr, nullptr, false,
                                sizeof(acc_t) == 4 ? DType::kFloat32 : DType::kFloat64};

  // How many rows from p's on, up to `rows`, are only copied: all of them one run in their source.
  int64_t rows_together(const Position& p, int64_t rows) const {
    if (!is_cat_ || params_.out.channels_last || has_bits_) return 1;
    for (int b = 0; b < params_.num_branches; ++b) {
      const Source& s = sources_[b];
      if (!touches(s, p.c)) continue;
      const int64_t per_plane = params_.out.size[2] * params_.out.size[3];
      const int64_t rest = (s.channel_begin + s.channels - p.c) * per_plane -
                           (p.at[0] * params_.out.size[3] + p.at[1]);
      return s.dense_image ? std::min(rows, rest) : 1;
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
    s.element = element_size(map.dtype);
    for (int i = 0; i < kDims; ++i) s.stride[i] = map.stride[i] * s.element;
    s.factor = params_.weights ? static_cast<const acc_t*>(params_.weights)[b] : acc_t(1);
    s.channel_begin = branch.channel_begin;
    s.channels = map.size[1];
    s.column_stride = map.stride[4];
    s.channel_stride = map.stride[1];
    const auto make = [&](Table& table, int axis) {
      if (branch.axis[axis].rule != Rule::kIdentity) table.emplace(branch.axis[axis], false);
      return table ? table->max_count() : 1;
    };
    const int32_t taps = make(s.depth, 0) * make(s.height, 1);
    max_taps_ = std::max(max_taps_, taps);
    make(s.width, 2);
    if (s.width) {
      if (planar) s.width->prepare_blocks(ops_.lanes, ops_.can_look_up);
      s.taps = s.width->view();
      for (int64_t w = 0; w < rows_.width; w += tile_) {
        s.columns.push_back(s.width->range(static_cast<int32_t>(w),
                                           static_cast<int32_t>(std::min(rows_.width, w + tile_))));
      }
    }
    s.resampled_rows_serve_twice = s.depth || s.height || s.factor != 1;
    const Stretch pixels = stretch_of(s, rows_.width);
    s.as_it_lies = is_identity(branch) && map.dtype == params_.out.dtype && s.factor == 1 &&
                   pixels.is_vectorizable() && (planar || s.column_stride == s.channels);
    const auto single = [](const Table& table) { return !table || table->max_count() <= 1; };
    s.only_copied = single(s.depth) && single(s.height) && single(s.width) && s.factor == 1 &&
                    map.dtype == params_.out.dtype && (s.channels == 1 || s.channel_stride == 1);
    s.dense_image = planar && is_identity(branch) && map.stride[4] == 1 &&
                    map.stride[3] == map.size[4] && map.stride[2] == map.size[3] * map.stride[3] &&
                    map.stride[1] == map.size[2] * map.stride[2];
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

  // Whether a branch has part in a row; in channels_last, rows have all channels.
  bool touches(const Source& s, int64_t c) const {
    if (params_.out.channels_last) return s.channels > 0;
    return c >= s.channel_begin && c < s.channel_begin + s.channels;
  }

  // Writes the pixels of a tile, which begins at p and at element `offset` of the output.
  void run_tile(const Position& p, int64_t tile, int64_t columns, int64_t offset,
                Scratch& scratch) const {
    const Map& out = params_.out;
    const int64_t stride = rows_.channels, length = columns * stride;
    char* to = static_cast<char*>(out.data) + offset * element_size(out.dtype);
    const Finish how = finish_at(offset, length, scratch);
    if (interleave_) {
      interleave_slices(p, tile, columns, to, how, scratch);
    } else if (is_cat_) {
      write_slices(p, tile, columns, to, how, scratch);
    } else {
      // The branch that needs nothing joins the one that finishes the tile.
      const void* base = nullptr;
      if (base_ >= 0) {
        const Source& s = sources_[base_];
        base = plane(s, p) + p.at[0] * s.stride[2] + p.at[1] * s.stride[3] + p.at[2] * s.stride[4];
      }
      const acc_t* previous = nullptr;
      int turn = 0;
      for (int b = 0; b < params_.num_branches; ++b) {
        if (b == base_) continue;
        if (b == finisher_) {
          add_branch(b, p, tile, columns, {previous, base, to, stride, stride, stride / 8, how},
                     scratch);
          continue;
        }
        acc_t* sum = room(scratch.sums[turn], length);
        turn = 1 - turn;
        add_branch(b, p, tile, columns, {previous, nullptr, sum, stride, stride, 0, kKeep},
                   scratch);
        previous = sum;
      }
      if (!at_once_) finish_row(previous, to, length, how);
    }
    if (how.mask == scratch.bits[1].data() && how.mask)
      place_bits(params_.mask, offset, how.mask, length);
  }

  // The tile of a concatenation: each branch writes its own channels.
  void write_slices(const Position& p, int64_t tile, int64_t columns, char* to, const Finish& how,
                    Scratch& scratch) const {
    const int64_t stride = rows_.channels, length = columns * stride;
    acc_t* kept = at_once_ ? nullptr : room(scratch.sums[0], length);
    for (int b = 0; b < params_.num_branches; ++b) {
      const Source& s = sources_[b];
      if (!touches(s, p.c)) continue;
      const int64_t begin = params_.out.channels_last ? s.channel_begin : 0;
      Target target{nullptr, nullptr, nullptr, stride, stride, stride / 8, kKeep};
      if (!at_once_) {
        target.to = kept + begin;
      } else {
        target.to = to + begin * element_size(params_.out.dtype);
        target.finish = how;
        if (how.gate) target.finish.gate += begin / 8;
        if (how.mask) target.finish.mask += begin / 8;
      }
      add_branch(b, p, tile, columns, target, scratch);
    }
    if (!at_once_) finish_row(kept, to, length, how);
  }

  // The same in channels_last without bits: what is resampled goes to scratch, then all is copied
  // pixel by pixel, so that the output is written in order.
  void interleave_slices(const Position& p, int64_t tile, int64_t columns, char* to,
                         const Finish& how, Scratch& scratch) const {
    // Pixel k of a slice is at from + (index ? index[k] : k) * stride bytes.
    struct Slice {
      const char* from;
      const int32_t* index;
      int64_t stride, bytes;
    };
    Slice slices[kMaxInputs];
    int count = 0;
    for (int b = 0; b < params_.num_branches; ++b) {
      const Source& s = sources_[b];
      if (s.channels == 0) continue;
      const int64_t bytes = s.channels * element_size(how.dtype);
      if (s.only_copied && !how.relu) {
        list_taps(s, p, 0, scratch);
        const auto* row = static_cast<const char*>(scratch.taps[0]);
        const int32_t* index = s.width ? s.taps.first + p.at[2] : nullptr;
        slices[count++] = {index ? row : row + p.at[2] * s.stride[4], index, s.stride[4], bytes};
      } else {
        std::vector<char>& slice = scratch.slices[b];
        slice.resize(columns * bytes);
        add_branch(b, p, tile, columns,
                   {nullptr, nullptr, slice.data(), s.channels, s.channels, 0, how}, scratch);
        slices[count++] = {slice.data(), nullptr, bytes, bytes};
      }
    }
    for (int64_t k = 0; k < columns; ++k) {
      for (int i = 0; i < count; ++i) {
        const Slice& slice = slices[i];
        memcpy(to, slice.from + (slice.index ? slice.index[k] : k) * slice.stride, slice.bytes);
        to += slice.bytes;
      }
    }
  }

  void finish_row(const acc_t* values, void* to, int64_t length, const Finish& how) const {
    const void* row = values;
    const acc_t one = 1;
    ops_.combine({to, nullptr, nullptr, &row, nullptr, &one, 1, kKeep.dtype, 1, length, length,
                  length, length, 0, 0, how});
  }

  // The branch's element at (n, c, 0, 0, 0), where c is a channel of the output.
  const char* plane(const Source& s, const Position& p) const {
    return s.data + p.n * s.stride[0] +
           (params_.out.channels_last ? 0 : (p.c - s.channel_begin) * s.stride[1]);
  }

  // target = finish(previous + w_b * R_b(x_b)) for the pixels of the tile that begins at p.
  void add_branch(int b, const Position& p, int64_t tile, int64_t columns, const Target& target,
                  Scratch& scratch) const {
    const Source& s = sources_[b];
    if (!s.width) {
      list_taps(s, p, p.at[2], scratch);
      combine(s.dtype, stretch_of(s, columns), target, scratch);
      return;
    }
    const Range source = s.columns[tile];
    list_taps(s, p, source.begin, scratch);
    if (params_.out.channels_last) {
      along_pixels(s, p.at[2], columns, source, target, scratch);
    } else {
      along_row(s, b, p.at[2], tile, columns, source, target, scratch);
    }
  }

  // The source rows that a row of the output reads, with their weights, from column `begin` on.
  void list_taps(const Source& s, const Position& p, int32_t begin, Scratch& scratch) const {
    const char* data = plane(s, p) + begin * s.stride[4];
    const int32_t first_d = s.depth ? s.depth->first(p.at[0]) : p.at[0];
    const int32_t first_h = s.height ? s.height->first(p.at[1]) : p.at[1];
    const int32_t count_d = s.depth ? s.depth->count(p.at[0]) : 1;
    const int32_t count_h = s.height ? s.height->count(p.at[1]) : 1;
    const acc_t* weights_h = s.height ? s.height->weights(p.at[1]) : nullptr;
    int32_t count = 0;
    for (int32_t d = first_d; d < first_d + count_d; ++d) {
      const acc_t weight = s.depth ? s.factor * s.depth->weights(p.at[0])[d - first_d] : s.factor;
      for (int32_t h = first_h; h < first_h + count_h; ++h) {
        scratch.taps[count] = data + d * s.stride[2] + h * s.stride[3];
        scratch.weights[count] = weights_h ? weight * weights_h[h - first_h] : weight;
        if (s.width) scratch.slots[count] = 2 * (d & 1) + (h & 1);
        ++count;
      }
    }
    scratch.count = count;
  }

  // target = finish(previous + the listed rows), which are copied first if they cannot be walked.
  void combine(DType dtype, Stretch stretch, const Target& target, Scratch& scratch) const {
    if (!stretch.is_vectorizable() || !takes<acc_t>(dtype, target.finish.dtype)) {
      const int64_t length = stretch.numel();
      acc_t* copy = room(scratch.copies, scratch.count * length);
      for (int32_t i = 0; i < scratch.count; ++i, copy += length) {
        copy_stretch(copy, scratch.taps[i], dtype, stretch);
        scratch.taps[i] = copy;
      }
      dtype = kKeep.dtype;
      stretch.column_stride = stretch.channels;
    }
    CombineArgs<acc_t> args{target.to,
                            target.previous,
                            target.base,
                            scratch.taps.data(),
                            nullptr,
                            scratch.weights.data(),
                            scratch.count,
                            dtype,
                            stretch.columns,
                            stretch.channels,
                            target.stride,
                            target.previous_stride,
                            stretch.column_stride,
                            0,
                            target.finish_stride,
                            target.finish};
    if (stretch.channels == 1 && target.stride == 1) {  // pixels of one channel are one long run
      args.columns = 1;
      args.channels = stretch.columns;
    }
    ops_.combine(args);
  }

  // channels_last: combines the listed rows, then goes along the width.
  void along_pixels(const Source& s, int32_t begin, int64_t columns, Range source,
                    const Target& target, Scratch& scratch) const {
    const Stretch stretch = stretch_of(s, source.end - source.begin);
    AlongPixelsArgs<acc_t> args{target.to,
                                target.previous,
                                target.base,
                                scratch.taps[0],
                                s.dtype,
                                &s.taps,
                                begin,
                                columns,
                                s.channels,
                                target.stride,
                                target.previous_stride,
                                stretch.column_stride,
                                target.finish_stride,
                                target.finish};
    int64_t element = s.element;
    if (scratch.count > 1 || scratch.weights[0] != 1 || !stretch.is_vectorizable() ||
        !takes<acc_t>(s.dtype, target.finish.dtype)) {
      acc_t* sum = room(scratch.row, stretch.numel());
      combine(s.dtype, stretch, {nullptr, nullptr, sum, s.channels, s.channels, 0, kKeep}, scratch);
      args.row = sum;
      args.dtype = kKeep.dtype;
      args.row_stride = s.channels;
      element = sizeof(acc_t);
    }
    args.row = static_cast<const char*>(args.row) - source.begin * args.row_stride * element;
    ops_.along_pixels(args);
  }

  // One channel: goes along the width of each listed row, then combines.
  void along_row(const Source& s, int b, int32_t begin, int64_t tile, int64_t columns, Range source,
                 const Target& target, Scratch& scratch) const {
    if (!s.resampled_rows_serve_twice) {
      resample_row(s, begin, columns, source, scratch.taps[0], target, scratch);
      return;
    }
    // What is only copied is rounded here, once for all rows that it serves.
    const bool rounded =
        s.only_copied && !target.previous && !target.base && !has_bits_ && !target.finish.relu;
    const Finish& keep = rounded ? target.finish : kKeep;
    for (int32_t i = 0; i < scratch.count; ++i) {
      Resampled& kept = scratch.resampled[b][scratch.slots[i]];
      if (kept.source != scratch.taps[i] || kept.tile != tile) {
        kept.source = scratch.taps[i];
        kept.tile = tile;
        const Target to{nullptr, nullptr, room(kept.row, columns), 1, 1, 0, keep};
        resample_row(s, begin, columns, source, scratch.taps[i], to, scratch);
      }
      scratch.taps[i] = kept.row.data();
    }
    combine(keep.dtype, {columns, 1, 1, 0}, target, scratch);
  }

  void resample_row(const Source& s, int32_t begin, int64_t columns, Range source, const void* row,
                    const Target& target, Scratch& scratch) const {
    const Stretch stretch = stretch_of(s, source.end - source.begin);
    AlongRowArgs<acc_t> args{target.to, target.previous, target.base, row,          s.dtype,
                             &s.taps,   begin,           columns,     target.finish};
    int64_t element = s.element;
    // The permutes read whole vectors, also beyond the end of a row that is shorter.
    if (!stretch.is_vectorizable() || s.width->needs_padding() ||
        !takes<acc_t>(s.dtype, target.finish.dtype)) {
      acc_t* copy = room(scratch.row, stretch.numel() + TapTable<acc_t>::kPadding);
      copy_stretch(copy, row, s.dtype, stretch);
      args.row = copy;
      args.dtype = kKeep.dtype;
      element = sizeof(acc_t);
    }
    args.row = static_cast<const char*>(args.row) - source.begin * element;
    ops_.along_row(args);
  }

  const GatherParams& params_;
  const RowOps<acc_t>& ops_;
  const Rows rows_;
  int64_t rows_per_chunk_, tile_;
  int32_t max_taps_ = 1;
  bool is_cat_ = false;
  bool whole_bytes_ = true;  // every branch has a multiple of eight channels
  bool has_bits_;
  bool interleave_;
  bool at_once_;       // one branch finishes the tile,
  int finisher_ = -1;  // this one,
  int base_ = -1;      // and adds this one as it lies
  Source sources_[kMaxInputs];
};

}  // namespace msr
