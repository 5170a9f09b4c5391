// Which part of a spread belongs to which block: what follows from the taps of resample_math.h for
// strips and tiles of the incoming gradient. Host and device.
#pragma once

#include "resample_math.h"

// For what only the set-up of a block needs: dozens of kernel instances would each hold a copy for
// every call of it.
#if defined(__CUDACC__)
#define MSR_OUT_OF_LINE __host__ __device__ __noinline__ inline
#else
#define MSR_OUT_OF_LINE inline
#endif

namespace msr {

// resample_math.h's, not inlined.
MSR_OUT_OF_LINE int32_t first_reading(const Axis& axis, int32_t s) {
  return first_destination(axis, s);
}
MSR_OUT_OF_LINE Range readers(const Axis& axis, int32_t s) { return adjoint_support(axis, s); }

// Destinations are cut into pieces [d0, d1), [d1, d2), ...; the piece that begins at d owns the
// sources from first_owned_source(d) on. Every source has one owner. Linear: source index(d) also
// takes from destinations before d, so it stays with the piece before; a piece then reads about one
// source's worth of destinations beyond its ends. Nearest: a piece that begins where a source does
// reads nothing beyond.
MSR_OUT_OF_LINE int32_t first_owned_source(const Axis& axis, int32_t d) {
  if (d <= 0) return 0;
  if (d >= axis.out_size) return axis.in_size;
  return source_coordinate(axis, d).index + (is_linear(axis.rule) ? 1 : 0);
}

// The sources that a piece of destinations owns, and the destinations that it must read for them.
struct Piece {
  Range owned;
  Range read;
};

MSR_OUT_OF_LINE Piece piece_of(const Axis& axis, Range destinations) {
  Piece piece{
      {first_owned_source(axis, destinations.begin), first_owned_source(axis, destinations.end)},
      {0, 0}};
  if (piece.owned.begin < piece.owned.end) {
    piece.read = {readers(axis, piece.owned.begin).begin, readers(axis, piece.owned.end - 1).end};
  }
  return piece;
}

// The taps of one destination: sources index and index + 1. The second weight is 0 where there is
// but one.
struct TapPair {
  int32_t index;
  float first;
  float second;
};

MSR_OUT_OF_LINE TapPair tap_pair(const Axis& axis, int32_t d) {
  const Range sources = support(axis, d);
  return {sources.begin, weight<float>(axis, d, sources.begin),
          sources.end - sources.begin > 1 ? weight<float>(axis, d, sources.begin + 1) : 0.0f};
}

// No more than this many neighbouring destinations have the same source index.
inline int32_t longest_run(const Axis& axis) {
  if (axis.rule == Rule::kIdentity) return 1;
  double step = axis.inverse;  // destinations per source, between the clamped ends
  if (axis.rule == Rule::kLinearRational)
    step = static_cast<double>(axis.out_size) / static_cast<double>(axis.in_size);
  if (axis.rule == Rule::kLinearAlignCorners)
    step = axis.in_size > 1 ? (axis.out_size - 1.0) / (axis.in_size - 1.0) : axis.out_size;
  const double inner = step < axis.out_size ? step + 2 : axis.out_size;
  const int32_t first = first_destination(axis, 1);
  const int32_t last = axis.out_size - first_destination(axis, axis.in_size - 1);
  const int32_t ends = first > last ? first : last;
  return ends > inner ? ends : static_cast<int32_t>(inner);
}

// No more than this many destinations are read beyond those of a piece, before and after it.
inline int32_t widest_halo(const Axis& axis) {
  return axis.rule == Rule::kIdentity ? 0 : 2 * longest_run(axis);
}

// The factor by which the axis grows if every source is read by a fixed pattern of `factor`
// destinations of its own (nearest) or of 2 * factor around them (linear); else 0.
inline int32_t exact_factor(const Axis& axis) {
  if (axis.rule == Rule::kIdentity) return 1;
  if (axis.out_size % axis.in_size != 0) return 0;
  const int32_t factor = axis.out_size / axis.in_size;
  switch (axis.rule) {
    case Rule::kNearest:
    case Rule::kNearestExact:
      // Powers of two alone: their float32 scale is exact, whatever the size.
      return (factor & (factor - 1)) == 0 && axis.nearest_scale == 1.0f / factor ? factor : 0;
    case Rule::kLinearRational:
      return factor;
    case Rule::kLinearScaled:
      return axis.scale == 1.0 / factor ? factor : 0;
    default:
      return 0;
  }
}

}  // namespace msr
