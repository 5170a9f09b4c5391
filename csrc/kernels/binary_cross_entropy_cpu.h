// Binary cross entropy of resampled logits, and the gradient of the logits.
#pragma once

#include "logit_rows_cpu.h"

namespace msr {

template <typename acc_t>
class BinaryTermsCpu {
 public:
  BinaryTermsCpu(const BinaryParams& params, const RowOps<acc_t>& ops)
      : params_(params), ops_(ops) {}

  struct Scratch {
    std::vector<acc_t> target, weight, pos_weight, grad;
  };

  // What belongs to columns [begin, begin + columns) of a row of channel c.
  BinaryArgs<acc_t> load(const ResultRow& at, int64_t c, int64_t begin, int64_t columns,
                         acc_t* values, Scratch& scratch) const {
    const auto load = [&](const LogitFactors& factors, std::vector<acc_t>& memory) {
      if (!factors.data) return static_cast<const acc_t*>(nullptr);
      const int64_t offset = offset_in(factors.stride, at.n, c, at.z, at.y, begin);
      if (factors.bytes) return load_bytes(factors, offset, columns, memory);
      if (factors.stride[4] == 0) return load_one(factors, offset, columns, memory);
      return loaded(memory, advance(factors.data, factors.dtype, offset), factors.dtype,
                    {columns, 1, factors.stride[4], 1}, ops_);
    };
    return {values,
            load(params_.target, scratch.target),
            load(params_.weight, scratch.weight),
            load(params_.pos_weight, scratch.pos_weight),
            load(params_.grad, scratch.grad),
            columns};
  }

 private:
  static const acc_t* load_bytes(const LogitFactors& factors, int64_t offset, int64_t columns,
                                 std::vector<acc_t>& memory) {
    const uint8_t* from = static_cast<const uint8_t*>(factors.data) + offset;
    acc_t* to = room(memory, columns);
    for (int64_t k = 0; k < columns; ++k) to[k] = static_cast<acc_t>(from[k * factors.stride[4]]);
    return to;
  }

  static const acc_t* load_one(const LogitFactors& factors, int64_t offset, int64_t columns,
                               std::vector<acc_t>& memory) {
    acc_t* to = room(memory, columns);
    std::fill_n(to, columns, msr::load<acc_t>(factors.data, factors.dtype, offset));
    return to;
  }

  const BinaryParams& params_;
  const RowOps<acc_t>& ops_;
};

template <typename acc_t>
class BinaryCrossEntropyCpu {
 public:
  BinaryCrossEntropyCpu(const BinaryParams& params, const RowOps<acc_t>& ops)
      : params_(params),
        ops_(ops),
        rows_(params.logits, ops),
        terms_(params, ops),
        totals_(rows_.num_rows()) {}

  struct Scratch {
    typename LogitRowsCpu<acc_t>::Scratch rows;
    typename BinaryTermsCpu<acc_t>::Scratch terms;
    std::vector<acc_t> values;
  };

  int64_t num_units() const { return rows_.num_rows(); }

  // Rows [begin, end) of the result, of all channels.
  void run(int64_t begin, int64_t end, Scratch& scratch) const {
    const int64_t width = rows_.width(), channels = rows_.num_classes();
    const int64_t rows_of_image = params_.logits.size[0] * params_.logits.size[1];
    for (int64_t row = begin; row < end; ++row) {
      const ResultRow at = rows_.row_at(row);
      rows_.list_rows(at, 0, channels, scratch.rows);
      double total = 0;
      for (int64_t c = 0; c < channels; ++c) {
        acc_t* values = room(scratch.values, width);
        if (params_.loss) {
          const int64_t in_channel = at.z * params_.logits.size[1] + at.y;
          values = static_cast<acc_t*>(params_.loss) +
                   ((at.n * channels + c) * rows_of_image + in_channel) * width;
        }
        rows_.write(c, 0, width, values, scratch.rows);
        const auto terms = terms_.load(at, c, 0, width, values, scratch.terms);
        if (params_.loss) {
          ops_.binary_losses(terms);
        } else {
          total += ops_.binary_loss_sum(terms);
        }
      }
      totals_[row] = total;
    }
  }

  // After all rows, in one order.
  double total() const {
    double all = 0;
    for (const double one : totals_) all += one;
    return all;
  }

 private:
  const BinaryParams& params_;
  const RowOps<acc_t>& ops_;
  const LogitRowsCpu<acc_t> rows_;
  const BinaryTermsCpu<acc_t> terms_;
  mutable std::vector<double> totals_;
};

template <typename acc_t>
class BinaryCrossEntropyBackwardCpu {
 public:
  BinaryCrossEntropyBackwardCpu(const BinaryParams& params, const RowOps<acc_t>& ops)
      : ops_(ops),
        rows_(params.logits, ops),
        grads_(params.logits, params.logit_grads, rows_, ops),
        units_(params.logit_grads, grads_.banded_size()),
        terms_(params, ops) {}

  struct Scratch {
    typename LogitRowsCpu<acc_t>::Scratch rows;
    typename LogitGradsCpu<acc_t>::Scratch grads;
    typename BinaryTermsCpu<acc_t>::Scratch terms;
  };

  int64_t num_units() const { return units_.count(); }

  void run(int64_t begin, int64_t end, Scratch& scratch) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const GradUnit job = units_.at(unit);
      grads_.run(job, scratch.grads, [&](const ResultRow& at, int64_t c, acc_t* to) {
        const int64_t width = rows_.width(), first = job.first_class;
        if (c == 0) rows_.list_rows(at, first, first + job.classes, scratch.rows);
        rows_.write(c, 0, width, to, scratch.rows);
        ops_.binary_gradients(terms_.load(at, first + c, 0, width, to, scratch.terms));
      });
    }
  }

 private:
  const RowOps<acc_t>& ops_;
  const LogitRowsCpu<acc_t> rows_;
  const LogitGradsCpu<acc_t> grads_;
  const GradUnits units_;
  const BinaryTermsCpu<acc_t> terms_;
};

}  // namespace msr
