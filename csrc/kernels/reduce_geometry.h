// Which part of a spread belongs to which block: what follows from the taps of resample_math.h for
// strips and tiles of the incoming gradient. Host and device.
#pragma once

#include "resample_math.h"
#include "windows.h"

namespace msr {

// resample_math.h's, not inlined.
MSR_HOST_DEVICE_OUT_OF_LINE int32_t first_reading(const Axis& axis, int32_t s) {
  return first_destination(axis, s);
}
MSR_HOST_DEVICE_OUT_OF_LINE Range readers(const Axis& axis, int32_t s) {
  return adjoint_support(axis, s);
}

// Destinations are cut into pieces [d0, d1), [d1, d2), ...; the piece that begins at d owns the
// sources from first_owned_source(d) on. Every source has one owner. Linear: source index(d) also
// takes from destinations before d, so it stays with the piece before; a piece then reads about one
// source's worth of destinations beyond its ends. Nearest: a piece that begins where a source does
// reads nothing beyond.
MSR_HOST_DEVICE_OUT_OF_LINE int32_t first_owned_source(const Axis& axis, int32_t d) {
  if (d <= 0) return 0;
  if (d >= axis.out_size) return axis.in_size;
  return source_coordinate(axis, d).index + (is_linear(axis.rule) ? 1 : 0);
}

// The same on the host, for any rule: a piece of windows owns those from the middle of its first
// window on. (Kernels take windows from tables.)
inline int32_t first_owned(const Axis& axis, int32_t d) {
  if (!is_windowed(axis.rule) || d <= 0 || d >= axis.out_size) return first_owned_source(axis, d);
  const Range window = window_of(axis, d).range;
  return window.begin + (window.end - window.begin) / 2;
}

// The weight with which destination d reads source s: resample_math.h's, not inlined.
MSR_HOST_DEVICE_OUT_OF_LINE float tap_weight(const Axis& axis, int32_t d, int32_t s) {
  return weight<float>(axis, d, s);
}

// The taps of one destination: sources index and index + 1. The second weight is 0 where there is
// but one.
struct TapPair {
  int32_t index;
  float first;
  float second;
};

MSR_HOST_DEVICE_OUT_OF_LINE TapPair tap_pair(const Axis& axis, int32_t d) {
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

// No more destinations than this read one source. They are neighbours.
inline int32_t most_readers(const Axis& axis) {
  if (axis.rule == Rule::kIdentity) return 1;
  double readers = 2.0 * longest_run(axis);
  if (is_windowed(axis.rule)) {
    const double in = axis.in_size, out = axis.out_size;
    const bool is_cut = axis.rule == Rule::kArea;  // into equal parts
    const bool is_pool = axis.rule >= Rule::kAveragePool;
    const double step = is_cut ? out / in : is_pool ? 1 / axis.scale : axis.inverse / axis.scale;
    // Destinations beyond the last source, as a scale factor may make some, read that one.
    const double behind = out > in * step ? out - in * step : 0.0;
    // Without a scale there is but one source, or one destination.
    readers = axis.scale > 0 || is_cut ? widest_reach(axis) * step + 2 + behind : out;
  }
  return readers < axis.out_size ? static_cast<int32_t>(readers) : axis.out_size;
}

// No more than this many destinations are read beyond those of a piece, before and after it.
inline int32_t widest_halo(const Axis& axis) {
  if (axis.rule == Rule::kIdentity) return 0;
  return 2 * (is_windowed(axis.rule) ? most_readers(axis) : longest_run(axis));
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
