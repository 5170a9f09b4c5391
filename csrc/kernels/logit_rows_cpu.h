// Rows of resampled logits, class by class, and the way back: rows of their gradients to those of
// the logits.
#pragma once

#include <algorithm>
#include <vector>

#include "logit_params.h"
#include "rows_cpu.h"
#include "table_cache_cpu.h"

namespace msr {

// Where a row of the result is: its image and its place.
struct ResultRow {
  int64_t n;
  int32_t z, y;
};

// One sum for each of a few columns, and then theirs: a single one would wait for each addition.
template <typename acc_t>
double sum_in_columns(const acc_t* values, int64_t count) {
  constexpr int64_t kColumns = 8;
  double sums[kColumns] = {};
  int64_t k = 0;
  for (; k + kColumns <= count; k += kColumns)
    for (int64_t i = 0; i < kColumns; ++i) sums[i] += static_cast<double>(values[k + i]);
  for (; k < count; ++k) sums[k % kColumns] += static_cast<double>(values[k]);
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

template <typename acc_t>
class LogitRowsCpu {
 public:
  using Table = std::shared_ptr<const TapTable<acc_t>>;

  LogitRowsCpu(const LogitParams& params, const RowOps<acc_t>& ops)
      : params_(params),
        ops_(ops),
        depth_(tap_table(params.axis[0], TableUse::kLists, ops)),
        height_(tap_table(params.axis[1], TableUse::kLists, ops)),
        width_(tap_table(params.axis[2], TableUse::kBlocks, ops)),
        taps_(width_->view()),
        same_width_(width_->picks() && params.axis[2].in_size == params.axis[2].out_size),
        walkable_((params.logits.stride[4] == 1 || params.logits.size[4] == 1) &&
                  takes<acc_t>(params.logits.dtype, kSumType<acc_t>)) {}

  struct Scratch {
    // The rows of the logits that a row of the result reads: those of the first class, how far
    // those of the next class are, and their weights.
    std::vector<const void*> first_rows, rows;
    std::vector<acc_t> weights;
    int32_t count = 0;
    std::vector<acc_t> combined;
    // Rows whose columns do not lie side by side, copied for all classes of a block.
    struct Copy {
      int64_t n = -1, first_class = -1, classes = 0;
      int32_t z = -1, y = -1;
      std::vector<acc_t> values;
    };
    std::vector<Copy> copies;
  };

  const TapTable<acc_t>& depth() const { return *depth_; }
  const TapTable<acc_t>& height() const { return *height_; }
  int64_t width() const { return params_.size[2]; }
  int64_t num_classes() const { return params_.logits.size[1]; }
  int64_t num_rows() const { return params_.logits.size[0] * params_.size[0] * params_.size[1]; }

  ResultRow row_at(int64_t number) const {
    const int64_t h = params_.size[1], image = params_.size[0] * h;
    return {number / image, static_cast<int32_t>(number % image / h),
            static_cast<int32_t>(number % h)};
  }

  // Before write(): finds the rows of classes [begin, end).
  void list_rows(const ResultRow& at, int64_t begin, int64_t end, Scratch& scratch) const {
    const int32_t most = depth_->max_count() * height_->max_count();
    scratch.first_rows.resize(most);
    scratch.rows.resize(most);
    scratch.weights.resize(most);
    scratch.copies.resize(walkable_ ? 0 : most);
    int32_t count = 0;
    for (int32_t i = 0; i < depth_->count(at.z); ++i) {
      for (int32_t j = 0; j < height_->count(at.y); ++j, ++count) {
        const int32_t z = depth_->first(at.z) + i, y = height_->first(at.y) + j;
        scratch.weights[count] = depth_->weights(at.z)[i] * height_->weights(at.y)[j];
        scratch.first_rows[count] =
            walkable_ ? row_of(at.n, begin, z, y) : copied(at.n, begin, end, z, y, scratch);
      }
    }
    scratch.count = count;
  }

  // Writes columns [begin, begin + columns) of the row for the class that is `number` after the
  // first one listed.
  void write(int64_t number, int64_t begin, int64_t columns, acc_t* to, Scratch& scratch) const {
    const DType dtype = walkable_ ? params_.logits.dtype : kSumType<acc_t>;
    const int64_t step = walkable_ ? params_.logits.stride[1] : params_.logits.size[4];
    const Range source =
        same_width_
            ? Range{static_cast<int32_t>(begin), static_cast<int32_t>(begin + columns)}
            : width_->range(static_cast<int32_t>(begin), static_cast<int32_t>(begin + columns));
    for (int32_t i = 0; i < scratch.count; ++i)
      scratch.rows[i] = advance(scratch.first_rows[i], dtype, number * step + source.begin);
    const int64_t length = source.end - source.begin;
    constexpr int32_t kPadding = TapTable<acc_t>::kPadding;
    acc_t* combined = same_width_ ? to : room(scratch.combined, length + 2 * kPadding) + kPadding;
    ops_.combine({combined, nullptr, scratch.rows.data(), nullptr, scratch.weights.data(),
                  scratch.count, dtype, 1, length, length, 0, kKeep});
    if (same_width_) return;
    ops_.along_row(
        {to, nullptr, combined - source.begin, kSumType<acc_t>, &taps_, begin, columns, kKeep});
  }

  static constexpr Finish kKeep = {nullptr, nullptr, false, kSumType<acc_t>};

 private:
  const void* row_of(int64_t n, int64_t c, int32_t z, int32_t y) const {
    const Map& map = params_.logits;
    return advance(map.data, map.dtype, offset_in(map.stride, n, c, z, y, 0));
  }

  const acc_t* copied(int64_t n, int64_t begin, int64_t end, int32_t z, int32_t y,
                      Scratch& scratch) const {
    // Neighbouring rows take turns, so that those of the row before are still there.
    auto& copy =
        scratch.copies[(z % depth_->max_count()) * height_->max_count() + y % height_->max_count()];
    const bool there = copy.n == n && copy.first_class == begin && copy.classes == end - begin &&
                       copy.z == z && copy.y == y;
    if (!there) {
      const Map& map = params_.logits;
      const int64_t width = map.size[4], classes = end - begin;
      acc_t* to = room(copy.values, classes * width);
      with_type(row_of(n, begin, z, y), map.dtype, [&](const auto* from) {
        for (int64_t x = 0; x < width; ++x) {
          for (int64_t c = 0; c < classes; ++c)
            to[c * width + x] = widen<acc_t>(from[x * map.stride[4] + c * map.stride[1]]);
        }
      });
      copy.n = n;
      copy.first_class = begin;
      copy.classes = classes;
      copy.z = z;
      copy.y = y;
    }
    return copy.values.data();
  }

  const LogitParams& params_;
  const RowOps<acc_t>& ops_;
  const Table depth_, height_, width_;
  const Taps<acc_t> taps_;
  const bool same_width_;
  const bool walkable_;  // the row operations read the logits where they lie
};

// A part of the logits' gradients: some classes of an image, a band of its planes, or of its rows
// where there is one plane.
struct GradUnit {
  int64_t n, first_class, classes;
  int32_t begin, end;
};

// Which parts there are. Which thread does which shows in no bit, nor do the bands.
class GradUnits {
 public:
  static constexpr int64_t kClasses = 16;  // at most, in one unit

  GradUnits(const Map& grads, int32_t banded_size)
      : images_(grads.size[0]),
        num_classes_(grads.size[1]),
        blocks_(ceil_div(num_classes_, kClasses)),
        banded_size_(banded_size) {
    // Enough for many threads; at the ends of bands, rows of the result are read twice.
    constexpr int64_t kUnits = 64, kShortest = 8;
    const int64_t wanted = ceil_div(kUnits, std::max<int64_t>(1, images_ * blocks_));
    bands_ = std::clamp<int64_t>(banded_size / kShortest, 1, wanted);
  }

  int64_t count() const { return images_ * blocks_ * bands_; }

  GradUnit at(int64_t number) const {
    const int64_t band = number % bands_, block = number / bands_ % blocks_;
    const int64_t first = block * kClasses;
    return {number / bands_ / blocks_, first, std::min(kClasses, num_classes_ - first),
            static_cast<int32_t>(band * banded_size_ / bands_),
            static_cast<int32_t>((band + 1) * banded_size_ / bands_)};
  }

 private:
  int64_t images_, num_classes_, blocks_, bands_;
  int32_t banded_size_;
};

// Adds rows of the resampled logits' gradients, given in order, up to rows of the logits'
// gradients: for some classes of an image, and for a band of the logits' planes, or of their rows
// where there is one plane.
template <typename acc_t>
class LogitGradsCpu {
 public:
  LogitGradsCpu(const LogitParams& params, const Map& grads, const LogitRowsCpu<acc_t>& rows,
                const RowOps<acc_t>& ops)
      : params_(params),
        grads_(grads),
        rows_(rows),
        ops_(ops),
        width_(tap_table(transposed(params.axis[2]), TableUse::kBlocks, ops)),
        taps_(width_->view()),
        one_plane_(grads.size[2] == 1 && params.size[0] == 1) {}

  // What is banded: the outermost axis that has more than one element.
  int32_t banded_size() const {
    return static_cast<int32_t>(one_plane_ ? grads_.size[3] : grads_.size[2]);
  }

  struct Scratch {
    std::vector<acc_t> rows;    // by place in the ring, class: gradients along the result's rows
    std::vector<acc_t> planes;  // by place in the ring, class: planes of the logits' gradients
    std::vector<char> row_begun, plane_begun;
    std::vector<acc_t> one;
  };

  // Calls fill(row of the result, number of a class, to) for all that the unit reads; it writes a
  // row of gradients.
  template <typename F>
  void run(const GradUnit& job, Scratch& scratch, F&& fill) const {
    const Band band{job.begin, job.end};
    if (one_plane_) return run_plane(job, 0, band, scratch, fill, nullptr);
    const TapTable<acc_t>& depth = rows_.depth();
    const int32_t ring = depth.max_count();
    const int64_t plane = grads_.size[3] * grads_.size[4];
    room(scratch.planes, ring * kClasses * plane);
    scratch.plane_begun.assign(ring, 0);
    const Band all{0, static_cast<int32_t>(grads_.size[3])};
    int32_t done = band.begin;
    for_each_reader(depth, static_cast<int32_t>(params_.size[0]), band, [&](int32_t z) {
      for (; done < std::min(depth.first(z), band.end); ++done) store_plane(job, done, scratch);
      // Every plane that it touches gets its part of each row.
      const auto add_row = [&](int64_t c, int32_t y, const acc_t* row) {
        for (int32_t i = 0; i < depth.count(z); ++i) {
          const int32_t to = depth.first(z) + i;
          if (to < band.begin || to >= band.end) continue;
          const bool begun = scratch.plane_begun[to % ring] != 0;
          acc_t* values = plane_at(to, c, job, scratch) + y * grads_.size[4];
          add(values, row, depth.weights(z)[i], grads_.size[4], begun);
        }
      };
      run_plane(job, z, all, scratch, fill, &add_row);
      for (int32_t i = 0; i < depth.count(z); ++i) {
        const int32_t to = depth.first(z) + i;
        if (to >= band.begin && to < band.end) scratch.plane_begun[to % ring] = 1;
      }
    });
    for (; done < band.end; ++done) store_plane(job, done, scratch);
  }

 private:
  struct Band {
    int32_t begin, end;
  };
  static constexpr int64_t kClasses = GradUnits::kClasses;

  static Axis transposed(Axis axis) {
    axis.transposed = true;
    return axis;
  }

  // Calls f(i) for the `count` rows of a table that read elements of the band.
  template <typename F>
  static void for_each_reader(const TapTable<acc_t>& table, int32_t count, Band band, F&& f) {
    for (int32_t i = 0; i < count; ++i) {
      if (table.first(i) >= band.end) return;
      if (table.first(i) + table.count(i) > band.begin) f(i);
    }
  }

  void add(acc_t* to, const acc_t* from, acc_t factor, int64_t length, bool begun) const {
    ops_.weigh({to, from, factor, nullptr, nullptr, length, 1, begun});
  }

  // The rows of plane z of the result; finished ones are stored, or given to add_row.
  template <typename F, typename G>
  void run_plane(const GradUnit& job, int32_t z, Band band, Scratch& scratch, F&& fill,
                 G&& add_row) const {
    const TapTable<acc_t>& height = rows_.height();
    const int32_t ring = height.max_count();
    constexpr int32_t kPadding = TapTable<acc_t>::kPadding;
    const int64_t width = params_.size[2], padded = width + 2 * kPadding;
    // Rows have the same places in every call: what lies between them stays zero.
    acc_t* rows = room(scratch.rows, ring * kClasses * padded) + kPadding;
    acc_t* one = room(scratch.one, padded + grads_.size[4]);
    scratch.row_begun.assign(ring, 0);
    const auto row_at = [&](int32_t y, int64_t c) {
      return rows + ((y % ring) * kClasses + c) * padded;
    };
    const auto finish = [&](int32_t y) {
      for (int64_t c = 0; c < job.classes; ++c) {
        const bool any = scratch.row_begun[y % ring] != 0;
        finish_row(job, c, y, any ? row_at(y, c) : nullptr, one + padded, add_row);
      }
      scratch.row_begun[y % ring] = 0;
    };
    int32_t done = band.begin;
    for_each_reader(height, static_cast<int32_t>(params_.size[1]), band, [&](int32_t y) {
      for (; done < std::min(height.first(y), band.end); ++done) finish(done);
      for (int64_t c = 0; c < job.classes; ++c) {
        fill(ResultRow{job.n, z, y}, c, one);
        for (int32_t i = 0; i < height.count(y); ++i) {
          const int32_t to = height.first(y) + i;
          if (to < band.begin || to >= band.end) continue;
          add(row_at(to, c), one, height.weights(y)[i], width, scratch.row_begun[to % ring] != 0);
        }
      }
      for (int32_t i = 0; i < height.count(y); ++i) {
        const int32_t to = height.first(y) + i;
        if (to >= band.begin && to < band.end) scratch.row_begun[to % ring] = 1;
      }
    });
    for (; done < band.end; ++done) finish(done);
  }

  // Resamples a sum of rows back along the width; null: it is zero.
  template <typename G>
  void finish_row(const GradUnit& job, int64_t c, int32_t y, const acc_t* sum, acc_t* row,
                  G&& add_row) const {
    const int64_t width = grads_.size[4];
    if (sum) {
      ops_.along_row({row, nullptr, sum, kSumType<acc_t>, &taps_, 0, width, Keep::kKeep});
    } else {
      std::fill_n(row, width, acc_t(0));
    }
    if constexpr (std::is_null_pointer_v<std::decay_t<G>>) {
      store_row(job, c, 0, y, row);
    } else {
      (*add_row)(c, y, row);
    }
  }

  acc_t* plane_at(int32_t z, int64_t c, const GradUnit& job, Scratch& scratch) const {
    const int64_t plane = grads_.size[3] * grads_.size[4];
    const int32_t ring = rows_.depth().max_count();
    return scratch.planes.data() + ((z % ring) * kClasses + c) * plane;
  }

  void store_plane(const GradUnit& job, int32_t z, Scratch& scratch) const {
    char& begun = scratch.plane_begun[z % rows_.depth().max_count()];
    for (int64_t c = 0; c < job.classes; ++c) {
      acc_t* plane = plane_at(z, c, job, scratch);
      if (!begun) std::fill_n(plane, grads_.size[3] * grads_.size[4], acc_t(0));
      for (int32_t y = 0; y < grads_.size[3]; ++y)
        store_row(job, c, z, y, plane + y * grads_.size[4]);
    }
    begun = 0;
  }

  void store_row(const GradUnit& job, int64_t c, int32_t z, int32_t y, const acc_t* row) const {
    void* to = advance(grads_.data, grads_.dtype,
                       offset_in(grads_.stride, job.n, job.first_class + c, z, y, 0));
    const Stretch stretch{grads_.size[4], 1, grads_.stride[4], 1};
    if (stretch.is_vectorizable()) {
      store_run(ops_, row, stretch.columns, to, {nullptr, nullptr, false, grads_.dtype});
    } else {
      store_stretch(to, grads_.dtype, stretch, row);
    }
  }

  using Keep = LogitRowsCpu<acc_t>;

  const LogitParams& params_;
  const Map& grads_;
  const LogitRowsCpu<acc_t>& rows_;
  const RowOps<acc_t>& ops_;
  const typename LogitRowsCpu<acc_t>::Table width_;
  const Taps<acc_t> taps_;
  const bool one_plane_;
};

}  // namespace msr
