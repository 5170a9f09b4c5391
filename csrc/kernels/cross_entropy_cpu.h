// Cross entropy of resampled logits, and the gradient of the logits. The resampled logits exist for
// some classes of a part of a row at a time.
#pragma once

#include <atomic>
#include <limits>

#include "logit_rows_cpu.h"

namespace msr {

// Calls f with a typed pointer to class indices.
template <typename F>
void with_index(IndexType type, void* data, F&& f) {
  switch (type) {
    case IndexType::kUint8:
      return f(static_cast<uint8_t*>(data));
    case IndexType::kInt16:
      return f(static_cast<int16_t*>(data));
    case IndexType::kInt32:
      return f(static_cast<int32_t*>(data));
    case IndexType::kInt64:
      return f(static_cast<int64_t*>(data));
  }
}

// What both passes know of targets and weights.
template <typename acc_t>
class CrossEntropyTermsCpu {
 public:
  explicit CrossEntropyTermsCpu(const CrossEntropyParams& params)
      : params_(params),
        smoothing_(static_cast<acc_t>(params.label_smoothing)),
        of_each_(static_cast<acc_t>(params.label_smoothing /
                                    static_cast<double>(params.logits.logits.size[1]))) {
    const int64_t classes = params.logits.logits.size[1];
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += static_cast<double>(weight(c));
    weight_sum_ = static_cast<acc_t>(sum);
  }

  bool smooths() const { return smoothing_ != 0; }
  acc_t weight(int64_t c) const {
    return params_.weight ? static_cast<const acc_t*>(params_.weight)[c] : acc_t(1);
  }
  // Of the target's own class or probability; of every class besides, from the smoothing.
  acc_t of_target() const { return 1 - smoothing_; }
  acc_t of_each() const { return of_each_; }
  acc_t weight_sum() const { return weight_sum_; }

  // Classes of columns [begin, begin + columns) of a row; -1: ignored. Returns whether all are
  // classes or ignored.
  bool load_classes(const ResultRow& at, int64_t begin, int64_t columns, int32_t* to) const {
    const auto classes = static_cast<uint64_t>(params_.logits.logits.size[1]);
    const int64_t ignore = params_.ignore_index, stride = params_.target.stride[4];
    bool bad = false;
    void* lies = const_cast<void*>(place(at, 0, begin));
    with_index(params_.target.index_type, lies, [&](const auto* from) {
      // Without branches: labels change from pixel to pixel.
      for (int64_t k = 0; k < columns; ++k) {
        const auto index = static_cast<int64_t>(from[k * stride]);
        const bool known = static_cast<uint64_t>(index) < classes, ignored = index == ignore;
        bad |= !known & !ignored;
        to[k] = known & !ignored ? static_cast<int32_t>(index) : -1;
      }
    });
    return !bad;
  }

  // The first index of these columns that is neither a class nor ignored; there is one.
  int64_t bad_class(const ResultRow& at, int64_t begin, int64_t columns) const {
    const auto classes = static_cast<uint64_t>(params_.logits.logits.size[1]);
    void* lies = const_cast<void*>(place(at, 0, begin));
    int64_t found = 0;
    with_index(params_.target.index_type, lies, [&](const auto* from) {
      for (int64_t k = columns - 1; k >= 0; --k) {
        const auto index = static_cast<int64_t>(from[k * params_.target.stride[4]]);
        const bool known = static_cast<uint64_t>(index) < classes;
        if (!known && index != params_.ignore_index) found = index;
      }
    });
    return found;
  }

  // Of the classes that load_classes gave; zero where it is ignored.
  void load_weights(const int32_t* classes, int64_t columns, acc_t* to) const {
    if (!params_.weight) {
      for (int64_t k = 0; k < columns; ++k) to[k] = classes[k] < 0 ? acc_t(0) : acc_t(1);
      return;
    }
    for (int64_t k = 0; k < columns; ++k) to[k] = classes[k] < 0 ? acc_t(0) : weight(classes[k]);
  }

  // Probabilities of a class.
  const acc_t* load_probabilities(const ResultRow& at, int64_t c, int64_t begin, int64_t columns,
                                  std::vector<acc_t>& memory, const RowOps<acc_t>& ops) const {
    return loaded(memory, place(at, c, begin), params_.target.dtype,
                  {columns, 1, params_.target.stride[4], 1}, ops);
  }

 private:
  const void* place(const ResultRow& at, int64_t c, int64_t column) const {
    const Target& target = params_.target;
    const int64_t offset = offset_in(target.stride, at.n, c, at.z, at.y, column);
    if (target.probabilities) return advance(target.data, target.dtype, offset);
    constexpr int64_t kBytes[] = {1, 2, 4, 8};
    return static_cast<const char*>(target.data) +
           offset * kBytes[static_cast<int>(target.index_type)];
  }

  const CrossEntropyParams& params_;
  const acc_t smoothing_, of_each_;
  acc_t weight_sum_;
};

template <typename acc_t>
class CrossEntropyCpu {
 public:
  CrossEntropyCpu(const CrossEntropyParams& params, const RowOps<acc_t>& ops)
      : params_(params),
        ops_(ops),
        rows_(params.logits, ops),
        terms_(params),
        totals_(2 * rows_.num_rows()) {}

  struct Scratch {
    typename LogitRowsCpu<acc_t>::Scratch rows;
    std::vector<acc_t> values;  // of a block of classes
    std::vector<acc_t> largest, sum, picked, weighted, target_sum, probabilities, weights, losses;
    std::vector<int32_t> classes;
  };

  int64_t num_units() const { return rows_.num_rows(); }

  // Rows [begin, end) of the result.
  void run(int64_t begin, int64_t end, Scratch& scratch) const {
    for (int64_t row = begin; row < end; ++row) {
      Totals totals{0, 0};
      for (int64_t column = 0; column < rows_.width(); column += kColumns)
        run_tile(row, column, std::min(kColumns, rows_.width() - column), totals, scratch);
      totals_[2 * row] = totals.loss;
      totals_[2 * row + 1] = totals.weight;
    }
  }

  // After all rows: sums of the losses, and of what their mean divides by, in one order.
  struct Totals {
    double loss, weight;
  };
  Totals totals() const {
    Totals all{0, 0};
    for (size_t i = 0; i < totals_.size(); i += 2) {
      all.loss += totals_[i];
      all.weight += totals_[i + 1];
    }
    return all;
  }

  // An index that is no class, if there was one.
  bool has_bad_class(int64_t& index) const {
    index = bad_class_.load();
    return has_bad_class_.load();
  }

 private:
  static constexpr int64_t kColumns = 256, kClasses = 16;

  void run_tile(int64_t row, int64_t begin, int64_t columns, Totals& totals,
                Scratch& scratch) const {
    const ResultRow at = rows_.row_at(row);
    const Target& target = params_.target;
    const int64_t num_classes = rows_.num_classes();
    constexpr acc_t kLowest = -std::numeric_limits<acc_t>::infinity();
    acc_t* largest = filled(scratch.largest, columns, kLowest);
    acc_t* sum = filled(scratch.sum, columns, acc_t(0));
    acc_t* picked = filled(scratch.picked, columns, acc_t(0));
    acc_t* weighted = filled(scratch.weighted, columns, acc_t(0));
    acc_t* target_sum = filled(scratch.target_sum, columns, terms_.of_each() * terms_.weight_sum());
    acc_t* values = room(scratch.values, kClasses * kColumns);
    int32_t* classes = room(scratch.classes, columns);
    if (!target.probabilities) {
      if (!terms_.load_classes(at, begin, columns, classes)) {
        bad_class_.store(terms_.bad_class(at, begin, columns));
        has_bad_class_.store(true);
      }
    }
    for (int64_t first = 0; first < num_classes; first += kClasses) {
      const int64_t count = std::min(kClasses, num_classes - first);
      rows_.list_rows(at, first, first + count, scratch.rows);
      for (int64_t c = 0; c < count; ++c)
        rows_.write(c, begin, columns, values + c * kColumns, scratch.rows);
      ops_.add_exponentials({values, kColumns, static_cast<int32_t>(count), columns, largest, sum});
      for (int64_t c = 0; c < count && (target.probabilities || terms_.smooths()); ++c) {
        const acc_t weight = terms_.weight(first + c);
        const acc_t* value = values + c * kColumns;
        if (terms_.smooths()) add(weighted, value, weight * terms_.of_each(), nullptr, columns);
        if (!target.probabilities) continue;
        const acc_t* share =
            terms_.load_probabilities(at, first + c, begin, columns, scratch.probabilities, ops_);
        add(weighted, value, weight * terms_.of_target(), share, columns);
        add(target_sum, share, weight * terms_.of_target(), nullptr, columns);
      }
      if (target.probabilities) continue;
      const auto before = static_cast<int32_t>(first), listed = static_cast<int32_t>(count);
      for (int64_t k = 0; k < columns; ++k) {
        const int32_t c = classes[k] - before, place = std::clamp(c, 0, listed - 1);
        const acc_t value = values[place * kColumns + k];
        picked[k] = c == place ? value : picked[k];
      }
    }
    const int64_t offset = row * rows_.width() + begin;
    acc_t* losses =
        params_.loss ? static_cast<acc_t*>(params_.loss) + offset : room(scratch.losses, columns);
    acc_t* lse = static_cast<acc_t*>(params_.lse) + offset;
    ops_.log_sums(lse, largest, sum, columns);
    if (target.probabilities) {
      for (int64_t k = 0; k < columns; ++k) losses[k] = lse[k] * target_sum[k] - weighted[k];
      std::copy_n(target_sum, columns, static_cast<acc_t*>(params_.target_sums) + offset);
      totals.weight += static_cast<double>(columns);
    } else {
      acc_t* weights = room(scratch.weights, columns);
      terms_.load_weights(classes, columns, weights);
      for (int64_t k = 0; k < columns; ++k)
        losses[k] = terms_.of_target() * weights[k] * (lse[k] - picked[k]);
      for (int64_t k = 0; k < columns && terms_.smooths(); ++k)
        losses[k] += target_sum[k] * lse[k] - weighted[k];
      // Not by a factor of zero: logits may be infinite there.
      for (int64_t k = 0; k < columns; ++k) losses[k] = classes[k] < 0 ? acc_t(0) : losses[k];
      totals.weight += sum_in_columns(weights, columns);
    }
    totals.loss += sum_in_columns(losses, columns);
  }

  // to += factor * factors * from
  void add(acc_t* to, const acc_t* from, acc_t factor, const acc_t* factors,
           int64_t columns) const {
    ops_.weigh({to, from, factor, nullptr, factors, columns, 1, true});
  }

  static acc_t* filled(std::vector<acc_t>& memory, int64_t length, acc_t value) {
    acc_t* to = room(memory, length);
    std::fill_n(to, length, value);
    return to;
  }

  const CrossEntropyParams& params_;
  const RowOps<acc_t>& ops_;
  const LogitRowsCpu<acc_t> rows_;
  const CrossEntropyTermsCpu<acc_t> terms_;
  mutable std::vector<double> totals_;
  mutable std::atomic<bool> has_bad_class_{false};
  mutable std::atomic<int64_t> bad_class_{0};
};

template <typename acc_t>
class CrossEntropyBackwardCpu {
 public:
  CrossEntropyBackwardCpu(const CrossEntropyBackwardParams& params, const RowOps<acc_t>& ops)
      : params_(params),
        ops_(ops),
        rows_(params.forward.logits, ops),
        grads_(params.forward.logits, params.logit_grads, rows_, ops),
        units_(params.logit_grads, grads_.banded_size()),
        terms_(params.forward) {}

  struct Scratch {
    typename LogitRowsCpu<acc_t>::Scratch rows;
    typename LogitGradsCpu<acc_t>::Scratch grads;
    // Of the pixels of a row: incoming gradient, zero where it is ignored; factors of the softmax
    // and of the target's class, whose numbers are also kept as numbers.
    std::vector<acc_t> grad, factor, of_class, numbers, probabilities;
    std::vector<int32_t> classes;
  };

  int64_t num_units() const { return units_.count(); }

  void run(int64_t begin, int64_t end, Scratch& scratch) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const GradUnit job = units_.at(unit);
      grads_.run(job, scratch.grads, [&](const ResultRow& at, int64_t c, acc_t* to) {
        if (c == 0) begin_row(at, job, scratch);
        fill(at, job.first_class + c, c, to, scratch);
      });
    }
  }

 private:
  const CrossEntropyParams& forward() const { return params_.forward; }
  int64_t offset_of(const ResultRow& at) const {
    const LogitParams& logits = forward().logits;
    return ((at.n * logits.size[0] + at.z) * logits.size[1] + at.y) * rows_.width();
  }

  void begin_row(const ResultRow& at, const GradUnit& job, Scratch& scratch) const {
    const int64_t width = rows_.width();
    rows_.list_rows(at, job.first_class, job.first_class + job.classes, scratch.rows);
    acc_t* grad = room(scratch.grad, width);
    acc_t* factor = room(scratch.factor, width);
    const auto* incoming = static_cast<const acc_t*>(params_.grad) +
                           offset_in(params_.grad_stride, at.n, 0, at.z, at.y, 0);
    for (int64_t k = 0; k < width; ++k) grad[k] = incoming[k * params_.grad_stride[4]];
    if (forward().target.probabilities) {
      const acc_t* sums = static_cast<const acc_t*>(forward().target_sums) + offset_of(at);
      for (int64_t k = 0; k < width; ++k) factor[k] = grad[k] * sums[k];
      return;
    }
    int32_t* classes = room(scratch.classes, width);
    acc_t* of_class = room(scratch.of_class, width);
    acc_t* numbers = room(scratch.numbers, width);
    terms_.load_classes(at, 0, width, classes);
    terms_.load_weights(classes, width, of_class);
    const acc_t of_all = terms_.of_each() * terms_.weight_sum(), of_target = terms_.of_target();
    for (int64_t k = 0; k < width; ++k) grad[k] = classes[k] < 0 ? acc_t(0) : grad[k];
    for (int64_t k = 0; k < width; ++k) numbers[k] = static_cast<acc_t>(classes[k]);
    for (int64_t k = 0; k < width; ++k) of_class[k] *= of_target * grad[k];
    for (int64_t k = 0; k < width; ++k) factor[k] = of_class[k] + grad[k] * of_all;
  }

  // The gradient of one class of a row, number `listed` of those listed: factor * softmax - the
  // target's part.
  void fill(const ResultRow& at, int64_t c, int64_t listed, acc_t* to, Scratch& scratch) const {
    const int64_t width = rows_.width();
    const acc_t weight = terms_.weight(c);
    rows_.write(listed, 0, width, to, scratch.rows);
    const bool indices = !forward().target.probabilities;
    const acc_t* lse = static_cast<const acc_t*>(forward().lse) + offset_of(at);
    ops_.softmax_gradients(
        {to, lse, scratch.factor.data(), indices ? scratch.numbers.data() : nullptr,
         indices ? scratch.of_class.data() : nullptr, static_cast<acc_t>(c), width});
    const acc_t* grad = scratch.grad.data();
    if (terms_.smooths()) {
      ops_.weigh({to, grad, -weight * terms_.of_each(), nullptr, nullptr, width, 1, true});
    }
    if (indices) return;
    const acc_t* share = terms_.load_probabilities(at, c, 0, width, scratch.probabilities, ops_);
    ops_.weigh({to, share, -weight * terms_.of_target(), nullptr, grad, width, 1, true});
  }

  const CrossEntropyBackwardParams& params_;
  const RowOps<acc_t>& ops_;
  const LogitRowsCpu<acc_t> rows_;
  const LogitGradsCpu<acc_t> grads_;
  const GradUnits units_;
  const CrossEntropyTermsCpu<acc_t> terms_;
};

// The class with the largest resampled logit, the first of equal ones, and its probability.
template <typename acc_t>
class ArgmaxCpu {
 public:
  ArgmaxCpu(const ArgmaxParams& params, const RowOps<acc_t>& ops)
      : params_(params), ops_(ops), rows_(params.logits, ops) {}

  struct Scratch {
    typename LogitRowsCpu<acc_t>::Scratch rows;
    std::vector<acc_t> values, largest, before, numbers, sum;
  };

  int64_t num_units() const { return rows_.num_rows(); }

  void run(int64_t begin, int64_t end, Scratch& scratch) const {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < rows_.width(); column += kColumns)
        run_tile(row, column, std::min(kColumns, rows_.width() - column), scratch);
    }
  }

 private:
  static constexpr int64_t kColumns = 256, kClasses = 16;

  void run_tile(int64_t row, int64_t begin, int64_t columns, Scratch& scratch) const {
    const ResultRow at = rows_.row_at(row);
    acc_t* values = room(scratch.values, kClasses * kColumns);
    acc_t* largest = room(scratch.largest, columns);
    acc_t* numbers = room(scratch.numbers, columns);  // of classes
    acc_t* sum = room(scratch.sum, columns);
    std::fill_n(largest, columns, -std::numeric_limits<acc_t>::infinity());
    std::fill_n(numbers, columns, acc_t(0));
    std::fill_n(sum, columns, acc_t(0));
    const int64_t num_classes = rows_.num_classes();
    for (int64_t first = 0; first < num_classes; first += kClasses) {
      const int64_t count = std::min(kClasses, num_classes - first);
      rows_.list_rows(at, first, first + count, scratch.rows);
      for (int64_t c = 0; c < count; ++c)
        rows_.write(c, begin, columns, values + c * kColumns, scratch.rows);
      if (!params_.probability) {
        ops_.find_largest({values, kColumns, static_cast<int32_t>(count), columns, largest, sum},
                          numbers, static_cast<acc_t>(first));
        continue;
      }
      // The largest one is kept by both: each looks at it before the other changes it.
      acc_t* before = room(scratch.before, columns);
      std::copy_n(largest, columns, before);
      ops_.find_largest({values, kColumns, static_cast<int32_t>(count), columns, before, sum},
                        numbers, static_cast<acc_t>(first));
      ops_.add_exponentials({values, kColumns, static_cast<int32_t>(count), columns, largest, sum});
    }
    const int64_t offset = row * rows_.width() + begin;
    with_index(params_.index_type, params_.index, [&](auto* index) {
      using index_t = std::remove_pointer_t<decltype(index)>;
      for (int64_t k = 0; k < columns; ++k) index[offset + k] = static_cast<index_t>(numbers[k]);
    });
    if (!params_.probability) return;
    acc_t* probability = static_cast<acc_t*>(params_.probability) + offset;
    for (int64_t k = 0; k < columns; ++k) probability[k] = 1 / sum[k];
  }

  const ArgmaxParams& params_;
  const RowOps<acc_t>& ops_;
  const LogitRowsCpu<acc_t> rows_;
};

}  // namespace msr
