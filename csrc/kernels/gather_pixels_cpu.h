// gather on the CPU in channels_last, pixel by pixel, from all branches at once: from up to two
// rows of a branch where they lie, or from one into which more of them were combined first.
#pragma once

#include "gather_rows_cpu.h"

namespace msr {

// Pixels that are picked from a row: index[k] is the k-th one's column, counted from `row`.
template <typename acc_t>
struct PickedPixels {
  const acc_t* row;
  const int32_t* index;
};

template <typename acc_t>
class GatherPixelsCpu {
  using Shared = GatherRowsCpu<acc_t>;
  using Source = typename Shared::Source;
  using Scratch = typename Shared::Scratch;

 public:
  explicit GatherPixelsCpu(const Shared& shared) : shared_(shared) {}

  // The sum of branches [first, last), or one after the other within each pixel, for the pixels of
  // tile number `tile` of a row, which begins at p.
  void write(int first, int last, const Position& p, int64_t tile, int64_t columns, void* to,
             const Finish& how, Scratch& scratch) const {
    PixelSource<acc_t> sources[Shared::kMostRows * kMaxBranches];
    PixelSlice<acc_t> slices[kMaxBranches];
    AlongPixelsArgs<acc_t> args{to, shared_.base_of(p), slices, 0, p.at[2], columns, how};
    int32_t count = 0;
    const bool plain = !how.relu && !how.gate && !how.mask;
    bool one_run = true;  // pixels need not be told apart
    for (int b = first; b < last; ++b) {
      const Source& s = shared_.sources[b];
      if (b == shared_.base || s.channels == 0) continue;
      const int32_t added = add_sources(sources + count, s, p, tile, scratch.rows[b], scratch);
      one_run = one_run && is_identity(shared_.params.branches[b]) &&
                sources[count].row_stride == s.channels;
      if (args.count == 0 || shared_.is_cat) {
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
    shared_.ops.along_pixels(args);
  }

  // The pixels of tile number `tile` of the row that p is in, where each is one of a source row's:
  // they are in place, or that row is copied to `memory`. Otherwise index is null.
  PickedPixels<acc_t> picked(int b, const Position& p, int64_t tile, std::vector<acc_t>& memory,
                             Scratch& scratch) const {
    const Source& s = shared_.sources[b];
    if (!s.picks_pixels) return {nullptr, nullptr};
    const Range range = s.columns[tile];
    shared_.list_taps(s, p, range.begin, scratch);
    const Stretch read = shared_.stretch_of(s, range.end - range.begin);
    const acc_t* row = loaded(memory, scratch.taps[0], s.dtype, read, shared_.ops);
    return {row - range.begin * s.channels, s.taps.first + p.at[2]};
  }

 private:
  static constexpr Finish kKeep = Shared::kKeep;

  // The rows of a branch that the tile reads, where they lie, or combined over depth and height.
  // Returns how many they are.
  int32_t add_sources(PixelSource<acc_t>* sources, const Source& s, const Position& p, int64_t tile,
                      std::vector<acc_t>& combined, Scratch& scratch) const {
    const Range range = s.columns[tile];
    shared_.list_taps(s, p, range.begin, scratch);
    const auto row_at = [&](const void* row, DType dtype, int64_t stride, acc_t factor) {
      row = advance(row, dtype, -range.begin * stride);
      return PixelSource<acc_t>{row, stride, &s.taps, factor};
    };
    if (s.lies_well) {
      for (int32_t i = 0; i < scratch.count; ++i)
        sources[i] = row_at(scratch.taps[i], s.dtype, s.column_stride, scratch.weights[i]);
      return scratch.count;
    }
    const Stretch stretch = shared_.stretch_of(s, range.end - range.begin);
    acc_t* sum = room(combined, stretch.numel());
    shared_.combine(s.dtype, stretch, {nullptr, sum, kKeep}, scratch);
    sources[0] = row_at(sum, kKeep.dtype, s.channels, acc_t(1));
    return 1;
  }

  const Shared& shared_;
};

}  // namespace msr
