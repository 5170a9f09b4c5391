// spread on the CPU by small planes of one channel: what a plane of the gradient gives to all
// branches, one after the other.
#pragma once

#include "spread_rows_cpu.h"

namespace msr {

template <typename acc_t>
class SpreadPlanesCpu {
  using Shared = SpreadRowsCpu<acc_t>;
  using Target = typename Shared::Target;

 public:
  // Takes those branches that are written so.
  explicit SpreadPlanesCpu(Shared& shared) : shared_(shared) {
    // What is only copied is so in longer runs, unless the gradient's plane is at hand or wanted.
    for (const Target& t : shared.targets)
      in_use_ = in_use_ || (can_take(t) && (!t.copied || t.wants_dots));
    for (Target& t : shared.targets)
      if (in_use_ && can_take(t)) t.way = Shared::Way::kPlanes;
  }

  // A thread's memory.
  struct Scratch {
    typename Shared::Scratch& rows;
    // What the rows of a branch's planes are made of, under one factor.
    struct Sums {
      acc_t factor;
      RowSums<acc_t> rows;
    };
    Sums sums[kMaxBranches]{};
    std::vector<acc_t> plane{};     // of the gradient, behind the gate,
    std::vector<acc_t> weighted{};  // times the weights of its pixels
  };

  // Writes what the unit's planes of the gradient give.
  void run(int64_t unit, Scratch& scratch) {
    if (!in_use_) return;
    const Map& grad = shared_.params.grad;
    const int64_t planes = grad.size[0] * grad.size[1], units = shared_.units;
    for (int64_t i = planes * unit / units; i < planes * (unit + 1) / units; ++i) {
      const int64_t n = i / grad.size[1], c = i % grad.size[1];
      const acc_t* plane = nullptr;
      const uint8_t* gate = nullptr;
      for (const Target& t : shared_.targets) {
        if (t.way != Shared::Way::kPlanes || c < t.channel_begin ||
            c >= t.channel_begin + t.map.size[1])
          continue;
        if (!plane || t.gate != gate) plane = gated_plane(t, n, c, scratch);
        gate = t.gate;
        write(t, {n, c - t.channel_begin, {0, 0, 0}}, weighted(t, n, plane, scratch), unit,
              scratch);
      }
    }
  }

 private:
  static constexpr Finish kKeep = Shared::kKeep;

  bool can_take(const Target& t) const {
    const Map& grad = shared_.params.grad;
    return !t.map.channels_last && !grad.channels_last && !t.pool && !t.over_batch &&
           has_dense_planes(grad.size, grad.stride) && is_small_plane(grad.size) &&
           is_small_plane(t.map.size) && Shared::most_rows(t) <= Shared::kMostAtOnce;
  }

  // One channel of one image of the gradient, of the accumulation type, behind the branch's gate.
  const acc_t* gated_plane(const Target& t, int64_t n, int64_t c, Scratch& scratch) const {
    const Map& grad = shared_.params.grad;
    const int64_t length = plane_size(grad);
    const void* from = advance(grad.data, grad.dtype, offset_in(grad.stride, n, c, 0, 0, 0));
    return shared_.gated(t, from, offset_of(grad, n, c, 0, 0, 0), {length, 1, 1, 1},
                         room(scratch.plane, length), scratch.rows);
  }

  // The same times the weights of the branch's pixels.
  const acc_t* weighted(const Target& t, int64_t n, const acc_t* plane, Scratch& scratch) const {
    const PixelWeights& pixels = shared_.params.pixel_weights;
    if (!pixels.has(t.branch)) return plane;
    const int64_t length = plane_size(shared_.params.grad);
    acc_t* to = room(scratch.weighted, length);
    const acc_t* factors =
        static_cast<const acc_t*>(pixels.data) + n * pixels.stride_n + t.branch * pixels.stride_b;
    shared_.ops.weigh({to, plane, acc_t(1), nullptr, factors, length, 1, false});
    return to;
  }

  // The branch's plane that begins at p, from that of the gradient.
  void write(const Target& t, const Position& p, const acc_t* plane, int64_t unit,
             Scratch& scratch) {
    const int64_t length = plane_size(t.map), offset = (p.n * t.map.size[1] + p.c) * length;
    if (t.wants_dots && t.copied)
      return shared_.write_weighted(t, p, length, offset, plane, unit, scratch.rows);
    shared_.write(t, p, length, offset, unit, scratch.rows,
                  [&](void* to, const Finish& how) { apply(t, p, plane, to, how, scratch); });
  }

  void apply(const Target& t, const Position& p, const acc_t* plane, void* to, const Finish& how,
             Scratch& scratch) const {
    const acc_t factor = shared_.factor_of(t, p);
    if (t.copied) return store_run(shared_.ops, plane, plane_size(t.map), to, how, factor);
    typename Scratch::Sums& sums = scratch.sums[t.branch];
    if (sums.rows.empty() || sums.factor != factor) list(t, p, factor, sums, scratch);
    const int64_t columns = shared_.params.grad.size[4], rows = sums.rows.rows();
    if (!t.width) return sums.rows.write(shared_.ops, &plane, columns, nullptr, to, how);
    acc_t* combined = Shared::row_of(scratch.rows, 0, rows * columns);
    sums.rows.write(shared_.ops, &plane, columns, nullptr, combined, kKeep);
    shared_.ops.along_row(
        {to, nullptr, combined, kKeep.dtype, &t.taps, 0, t.rows.width, how, rows, columns});
  }

  // Lists which of the gradient's rows the branch's rows read, in any plane.
  void list(const Target& t, const Position& p, acc_t factor, typename Scratch::Sums& sums,
            Scratch& scratch) const {
    const Map& grad = shared_.params.grad;
    const void* plane =
        advance(grad.data, grad.dtype, offset_in(grad.stride, p.n, p.c + t.channel_begin, 0, 0, 0));
    const int64_t row_bytes = grad.size[4] * element_size(grad.dtype);
    sums.factor = factor;
    sums.rows.clear();
    Position row = p;
    for (int64_t i = 0; i < t.map.size[2] * t.map.size[3]; ++i, next_row(t.map, row)) {
      shared_.list_taps(t, row, shared_.images_of(t, p), {0, 0}, factor, scratch.rows);
      for (int32_t k = 0; k < scratch.rows.count; ++k) {
        const int32_t from = row_number(scratch.rows.taps[k], plane, row_bytes);
        sums.rows.add(0, from, scratch.rows.weights[k]);
      }
      sums.rows.end_row();
    }
  }

  Shared& shared_;
  bool in_use_ = false;
};

}  // namespace msr
