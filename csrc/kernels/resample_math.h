// The one place for scales, source indices, taps, weights and inverse ranges.
//
// A resampling is a linear operator, separable per axis. Along one axis of in_size -> out_size
// elements
//
//   forward   out[d] = sum over s in support(axis, d)          of  weight(axis, d, s) * in[s]
//   adjoint   in[s]  = sum over d in adjoint_support(axis, s)  of  weight(axis, d, s) * out[d]
//
// Both directions gather, and both use the same weight function, so each is the exact adjoint of
// the other. CPU kernels, CUDA kernels and their test harness all include this file; a new linear
// mode is a new Rule here.
//
// Sources. Nearest: ATen's float32 rule, reproduced bit for bit, min(floor(dst * scale), in - 1),
// because rounding decides which pixel is picked. Linear: the half-pixel and the corner-aligned
// coordinate of ATen's area_pixel_compute_source_index, but evaluated exactly (an integer rational
// when it comes from the sizes, double when a scale factor is given); only the fraction is
// narrowed.
#pragma once

#include <cmath>
#include <cstdint>

// MSR_HOST_DEVICE_OUT_OF_LINE and MSR_DEVICE_OUT_OF_LINE: for what kernels need once per block or
// line. Dozens of instances would each hold a copy for every call of it.
#if defined(__CUDACC__)
#define MSR_HOST_DEVICE __host__ __device__ __forceinline__
#define MSR_HOST_DEVICE_OUT_OF_LINE __host__ __device__ __noinline__ inline
#define MSR_DEVICE_OUT_OF_LINE __device__ __noinline__ inline
#elif defined(MSR_CUDA_ON_CPU)
#define MSR_HOST_DEVICE inline
#define MSR_HOST_DEVICE_OUT_OF_LINE inline
#define MSR_DEVICE_OUT_OF_LINE inline
#else
// Always inlined: files for several instruction sets include this, and the linker must not keep one
// set's copy for all.
#define MSR_HOST_DEVICE inline __attribute__((always_inline))
#define MSR_HOST_DEVICE_OUT_OF_LINE inline
#endif

namespace msr {

// The numbers are those of msr_cuda/_spec.py.
enum class Mode : int32_t {
  kNearest = 0,
  kNearestExact = 1,
  kLinear = 2,
  kLinearAlignCorners = 3,
  kCubic = 4,
  kCubicAlignCorners = 5,
  kArea = 6,
  kLinearAntialias = 7,
  kLinearAntialiasAlignCorners = 8,
  kCubicAntialias = 9,
  kCubicAntialiasAlignCorners = 10,
  kLanczosAntialias = 11,
  kAveragePool = 12,        // windows are divided by their full size,
  kAveragePoolInside = 13,  // or by the number of elements inside the map
  kMaxPool = 14,
};
constexpr int32_t kNumModes = 15;

// How a source coordinate follows from a destination index.
enum class Rule : int16_t {
  kIdentity,            // the axis keeps its size
  kNearest,             // floor(d * scale), float32
  kNearestExact,        // floor((d + 0.5) * scale), float32
  kLinearRational,      // ((2d + 1) * in - out) / (2 * out), clamped at 0
  kLinearScaled,        // (d + 0.5) * scale - 0.5 in double, clamped at 0
  kLinearAlignCorners,  // d * (in - 1) / (out - 1)
  // Windows, which windows.h knows; the functions below do not, but for the ranges of pools.
  kCubic,
  kCubicAlignCorners,
  kArea,
  kLinearAntialias,
  kCubicAntialias,
  kLanczosAntialias,
  kAveragePool,
  kAveragePoolInside,
  kMaxPool,
};

MSR_HOST_DEVICE bool is_windowed(Rule rule) { return rule >= Rule::kCubic; }

// Quotient and rest by a fixed divisor, without a division: GPUs call a subroutine for one. Exact
// for quotients below 2^31 and for numerators below 2^53, whichever holds: the product is then off
// by one at most.
struct Divided {
  int64_t quotient;
  int64_t rest;
};

MSR_HOST_DEVICE Divided divide(int64_t numerator, int64_t divisor, double inverse) {
  int64_t quotient = static_cast<int64_t>(static_cast<double>(numerator) * inverse);
  int64_t rest = numerator - quotient * divisor;
  if (rest < 0) {
    --quotient;
    rest += divisor;
  } else if (rest >= divisor) {
    ++quotient;
    rest -= divisor;
  }
  return {quotient, rest};
}

struct Axis {
  int32_t in_size;
  int32_t out_size;
  Rule rule;
  bool transposed;  // destinations and sources change places: R^T instead of R
  union {
    float nearest_scale;  // source elements per destination element, as ATen rounds it
    int32_t padding;      // pools: elements before the axis
  };
  double scale;    // linear: the same, or 1 / the forward coordinate's denominator
  double inverse;  // destinations per source, or 1 / the inverse coordinate's denominator
  // Windows: scale / inverse is the number of source elements per destination element; both are
  // whole numbers where it follows from the sizes. Pools: scale is the stride, inverse the size of
  // a window, in elements.
};

// Whether two axes have the same taps.
inline bool same_taps(const Axis& a, const Axis& b) {
  return a.in_size == b.in_size && a.out_size == b.out_size && a.rule == b.rule &&
         a.transposed == b.transposed && a.padding == b.padding && a.scale == b.scale &&
         a.inverse == b.inverse;
}

inline Axis transposed(Axis axis) {
  axis.transposed = !axis.transposed;
  return axis;
}

// What a pooling reads along one axis, in elements: destination d has the window of `kernel` that
// begins at d * stride - padding.
struct PoolWindow {
  int32_t kernel, stride, padding;
};

inline void set_window(Axis& axis, Mode mode, double scale_factor) {
  constexpr struct {
    Rule rule;
    bool align_corners;
  } kWindows[] = {
      // In the order of Mode.
      {Rule::kCubic, false},          {Rule::kCubicAlignCorners, true},
      {Rule::kArea, false},           {Rule::kLinearAntialias, false},
      {Rule::kLinearAntialias, true}, {Rule::kCubicAntialias, false},
      {Rule::kCubicAntialias, true},  {Rule::kLanczosAntialias, false},
  };
  const auto [rule, align_corners] =
      kWindows[static_cast<int32_t>(mode) - static_cast<int32_t>(Mode::kCubic)];
  axis.rule = rule;
  if (align_corners) {
    axis.scale = axis.out_size > 1 ? axis.in_size - 1.0 : 0.0;
    axis.inverse = axis.out_size > 1 ? axis.out_size - 1.0 : 1.0;
  } else if (scale_factor > 0) {
    axis.scale = 1.0 / scale_factor;
    axis.inverse = 1.0;
  } else {
    axis.scale = axis.in_size;
    axis.inverse = axis.out_size;
  }
}

// scale_factor <= 0 stands for "none given": the scale follows from the sizes.
inline Axis make_axis(Mode mode, int32_t in_size, int32_t out_size, double scale_factor) {
  const bool scaled = scale_factor > 0;
  Axis axis{in_size, out_size, Rule::kIdentity, false, {0.0f}, 0.0, 0.0};
  if (in_size == out_size) return axis;
  switch (mode) {
    case Mode::kNearest:
    case Mode::kNearestExact:
      axis.rule = mode == Mode::kNearest ? Rule::kNearest : Rule::kNearestExact;
      axis.nearest_scale = scaled ? static_cast<float>(1.0 / scale_factor)
                                  : static_cast<float>(in_size) / static_cast<float>(out_size);
      axis.inverse = 1.0 / axis.nearest_scale;
      break;
    case Mode::kLinear:
      axis.rule = scaled ? Rule::kLinearScaled : Rule::kLinearRational;
      axis.scale = scaled ? 1.0 / scale_factor : 1.0 / (2.0 * out_size);
      axis.inverse = scaled ? scale_factor : 1.0 / (2.0 * in_size);
      break;
    case Mode::kLinearAlignCorners:
      axis.rule = Rule::kLinearAlignCorners;
      axis.scale = out_size > 1 ? 1.0 / (out_size - 1.0) : 0.0;
      axis.inverse = in_size > 1 ? 1.0 / (in_size - 1.0) : 0.0;
      break;
    default:
      set_window(axis, mode, scale_factor);
  }
  return axis;
}

struct Range {
  int32_t begin;
  int32_t end;
};

inline bool is_pool(Mode mode) { return mode >= Mode::kAveragePool; }

inline Axis make_pool_axis(Mode mode, int32_t in_size, int32_t out_size, const PoolWindow& window) {
  Axis axis{in_size, out_size, Rule::kMaxPool, false, {0.0f}, 0.0, 0.0};
  if (mode == Mode::kAveragePool) axis.rule = Rule::kAveragePool;
  if (mode == Mode::kAveragePoolInside) axis.rule = Rule::kAveragePoolInside;
  axis.padding = window.padding;
  axis.scale = window.stride;
  axis.inverse = window.kernel;
  return axis;
}

MSR_HOST_DEVICE int32_t clamp_to(int64_t value, int32_t last) {
  return static_cast<int32_t>(value < 0 ? 0 : value > last ? last : value);
}

// The elements of a pooling's window that are inside the map.
MSR_HOST_DEVICE Range pool_window(const Axis& axis, int32_t d) {
  const int64_t begin = static_cast<int64_t>(d) * static_cast<int64_t>(axis.scale) - axis.padding;
  const int64_t end = begin + static_cast<int64_t>(axis.inverse);
  return {static_cast<int32_t>(begin > 0 ? begin : 0),
          static_cast<int32_t>(end < axis.in_size ? end : axis.in_size)};
}

// The destinations whose windows hold source s.
MSR_HOST_DEVICE Range pool_readers(const Axis& axis, int32_t s) {
  // Below 2^32, where a division is cheap on GPUs.
  const auto stride = static_cast<uint32_t>(axis.scale);
  const auto kernel = static_cast<uint32_t>(axis.inverse);
  const uint32_t behind = static_cast<uint32_t>(s) + static_cast<uint32_t>(axis.padding) + 1;
  const uint32_t begin = behind > kernel ? (behind - kernel + stride - 1) / stride : 0;
  return {clamp_to(begin, axis.out_size), clamp_to((behind - 1) / stride + 1, axis.out_size)};
}

// A source coordinate: whole part, already limited to [0, in - 1], and fraction in [0, 1).
struct Coordinate {
  int32_t index;
  double fraction;
};

MSR_HOST_DEVICE Coordinate rational_coordinate(int64_t numerator, int64_t denominator,
                                               double inverse) {
  const Divided at = divide(numerator, denominator, inverse);
  return {static_cast<int32_t>(at.quotient), static_cast<double>(at.rest) * inverse};
}

MSR_HOST_DEVICE Coordinate source_coordinate(const Axis& axis, int32_t d) {
  switch (axis.rule) {
    case Rule::kNearest:
    case Rule::kNearestExact: {
      // No addition follows the product, so no compiler can contract it into something else than
      // ATen's value.
      const float offset = axis.rule == Rule::kNearest ? 0.0f : 0.5f;
      const float source = floorf((static_cast<float>(d) + offset) * axis.nearest_scale);
      const float last = static_cast<float>(axis.in_size - 1);
      // Compared as floats: beyond 2^24 the cast of a too large value to int32 would be undefined.
      return {source < last ? static_cast<int32_t>(source) : axis.in_size - 1, 0.0};
    }
    case Rule::kLinearRational: {
      const int64_t numerator = (2 * static_cast<int64_t>(d) + 1) * axis.in_size - axis.out_size;
      return rational_coordinate(numerator > 0 ? numerator : 0,
                                 2 * static_cast<int64_t>(axis.out_size), axis.scale);
    }
    case Rule::kLinearAlignCorners: {
      if (axis.out_size == 1) return {0, 0.0};
      return rational_coordinate(static_cast<int64_t>(d) * (axis.in_size - 1), axis.out_size - 1,
                                 axis.scale);
    }
    case Rule::kLinearScaled: {
      double source = (static_cast<double>(d) + 0.5) * axis.scale - 0.5;
      source = source > 0.0 ? source : 0.0;
      const double last = static_cast<double>(axis.in_size - 1);
      if (source >= last) return {axis.in_size - 1, 0.0};
      const int32_t index = static_cast<int32_t>(source);
      return {index, source - index};
    }
    default:  // kIdentity
      break;
  }
  return {d, 0.0};
}

MSR_HOST_DEVICE bool is_linear(Rule rule) {
  return rule == Rule::kLinearRational || rule == Rule::kLinearScaled ||
         rule == Rule::kLinearAlignCorners;
}

// The sources that destination d reads.
MSR_HOST_DEVICE Range support(const Axis& axis, int32_t d) {
  const int32_t index = source_coordinate(axis, d).index;
  const bool two = is_linear(axis.rule) && index + 1 < axis.in_size;
  return {index, index + 1 + (two ? 1 : 0)};
}

// A fraction on the grid of 2^-24 (2^-53 for double): 1 - f is then exact, so the two weights of a
// linear tap pair sum to exactly one and a constant map stays constant. The step is half an ulp of
// the larger weight.
MSR_HOST_DEVICE float narrow_fraction(double fraction, float) {
  return static_cast<float>(rint(fraction * 16777216.0) * (1.0 / 16777216.0));
}
MSR_HOST_DEVICE double narrow_fraction(double fraction, double) {
  return rint(fraction * 9007199254740992.0) * (1.0 / 9007199254740992.0);
}

// The weight with which destination d reads source s, for any s in support(axis, d) (0 for any
// other).
template <typename acc_t>
MSR_HOST_DEVICE acc_t weight(const Axis& axis, int32_t d, int32_t s) {
  const Coordinate at = source_coordinate(axis, d);
  if (!is_linear(axis.rule) || at.index + 1 >= axis.in_size) return acc_t(s == at.index ? 1 : 0);
  const acc_t fraction = narrow_fraction(at.fraction, acc_t(0));
  if (s == at.index) return acc_t(1) - fraction;
  return s == at.index + 1 ? fraction : acc_t(0);
}

// For host code: the kernels divide by divide().
inline int64_t ceil_div(int64_t numerator, int64_t denominator) {
  return (numerator + denominator - 1) / denominator;
}

// The first destination whose source index is at least s (out_size if there is none). Source
// indices never decrease with the destination, so destinations [first(s), first(s + 1)) are exactly
// those with index s.
MSR_HOST_DEVICE int32_t first_destination(const Axis& axis, int32_t s) {
  if (s <= 0) return 0;
  if (s >= axis.in_size) return axis.out_size;
  const int64_t in = axis.in_size, out = axis.out_size;
  int64_t d = 0;
  switch (axis.rule) {
    case Rule::kLinearRational: {  // the least d with (2d + 1) * in - out >= 2 * out * s
      const int64_t numerator = (2 * static_cast<int64_t>(s) + 1) * out - in;
      if (numerator <= 0) return 0;
      const Divided at = divide(numerator, 2 * in, axis.inverse);
      return clamp_to(at.quotient + (at.rest > 0 ? 1 : 0), axis.out_size);
    }
    case Rule::kLinearAlignCorners: {  // the least d with d * (in - 1) >= s * (out - 1)
      if (out == 1) return 1;
      const Divided at = divide(s * (out - 1), in - 1, axis.inverse);
      return clamp_to(at.quotient + (at.rest > 0 ? 1 : 0), axis.out_size);
    }
    case Rule::kNearest:
    case Rule::kNearestExact:
      d = static_cast<int64_t>(static_cast<double>(s) * axis.inverse);
      break;
    case Rule::kLinearScaled:
      d = static_cast<int64_t>((static_cast<double>(s) + 0.5) * axis.inverse - 0.5);
      break;
    default:  // kIdentity
      return s;
  }
  // Floating point gave an estimate; the forward rule itself decides.
  int32_t first = clamp_to(d, axis.out_size);
  while (first > 0 && source_coordinate(axis, first - 1).index >= s) --first;
  while (first < axis.out_size && source_coordinate(axis, first).index < s) ++first;
  return first;
}

// The destinations that read source s.
MSR_HOST_DEVICE Range adjoint_support(const Axis& axis, int32_t s) {
  return {first_destination(axis, is_linear(axis.rule) ? s - 1 : s),
          first_destination(axis, s + 1)};
}

}  // namespace msr
