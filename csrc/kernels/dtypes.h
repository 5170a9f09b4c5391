// Element types of feature maps, carried at run time, and their conversions to and from the
// accumulation type.
#pragma once

#include <cstdint>
#include <cstring>

#include "resample_math.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace msr {

// The numbers are those of msr_cuda/_spec.py.
enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3 };

// In bytes.
MSR_HOST_DEVICE int64_t element_size(DType dtype) {
  if (dtype == DType::kFloat64) return 8;
  return dtype == DType::kFloat32 ? 4 : 2;
}

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

MSR_HOST_DEVICE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

MSR_HOST_DEVICE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

MSR_HOST_DEVICE float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Shifted into place, the exponent is off by the difference of the biases, 127 - 15: a product
  // with 2^112 mends it, and turns subnormal halves into normal floats on the way.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
#endif
}

MSR_HOST_DEVICE float to_float(BFloat16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}

// Round to nearest, ties to even.
MSR_HOST_DEVICE Half to_half(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // >= 2^16
  if (magnitude < 0x38800000u) {
    // Subnormal halves are multiples of 2^-24: added to 0.5, the float adder rounds at exactly that
    // bit.
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
#endif
}

MSR_HOST_DEVICE BFloat16 to_bfloat16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};  // one instruction for two of them
#else
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

template <typename acc_t, typename T>
MSR_HOST_DEVICE acc_t widen(T value) {
  return static_cast<acc_t>(value);
}
template <>
MSR_HOST_DEVICE float widen<float, Half>(Half value) {
  return to_float(value);
}
template <>
MSR_HOST_DEVICE double widen<double, Half>(Half value) {
  return to_float(value);
}
template <>
MSR_HOST_DEVICE float widen<float, BFloat16>(BFloat16 value) {
  return to_float(value);
}
template <>
MSR_HOST_DEVICE double widen<double, BFloat16>(BFloat16 value) {
  return to_float(value);
}

template <typename T>
struct Narrow {
  template <typename acc_t>
  MSR_HOST_DEVICE static T from(acc_t value) {
    return static_cast<T>(value);
  }
};
template <>
struct Narrow<Half> {
  template <typename acc_t>
  MSR_HOST_DEVICE static Half from(acc_t value) {
    return to_half(static_cast<float>(value));
  }
};
template <>
struct Narrow<BFloat16> {
  template <typename acc_t>
  MSR_HOST_DEVICE static BFloat16 from(acc_t value) {
    return to_bfloat16(static_cast<float>(value));
  }
};

// Element `offset` of a map whose type is known at run time only: a uniform branch.
template <typename acc_t>
MSR_HOST_DEVICE acc_t load(const void* data, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::kFloat16:
      return widen<acc_t>(static_cast<const Half*>(data)[offset]);
    case DType::kBFloat16:
      return widen<acc_t>(static_cast<const BFloat16*>(data)[offset]);
    case DType::kFloat64:
      return widen<acc_t>(static_cast<const double*>(data)[offset]);
    case DType::kFloat32:
      break;
  }
  return widen<acc_t>(static_cast<const float*>(data)[offset]);
}

template <typename acc_t>
MSR_HOST_DEVICE void store(void* data, DType dtype, int64_t offset, acc_t value) {
  switch (dtype) {
    case DType::kFloat16:
      static_cast<Half*>(data)[offset] = Narrow<Half>::from(value);
      return;
    case DType::kBFloat16:
      static_cast<BFloat16*>(data)[offset] = Narrow<BFloat16>::from(value);
      return;
    case DType::kFloat64:
      static_cast<double*>(data)[offset] = static_cast<double>(value);
      return;
    case DType::kFloat32:
      static_cast<float*>(data)[offset] = static_cast<float>(value);
      return;
  }
}

}  // namespace msr
