// The part of CUDA's device language that needs no thread: vector types, half and bfloat16 storage
// types, bit casts, rounding intrinsics, cache hints. A strict subset of what nvcc offers: what
// compiles here compiles there (nvcc also allows, for one, arithmetic on __half).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

// ---- vector types ------------------------------------------------------------------------------
// The alignments are the device's: UBSan then reports a vector load from a misaligned address,
// which is an error on the GPU too.

#define CUDA_ON_CPU_VECTOR(name, scalar)                               \
  struct name##1 { scalar x; };                                        \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };         \
  struct name##3 { scalar x, y, z; };                                  \
  inline name##1 make_##name##1(scalar x) { return {x}; }              \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }

#define CUDA_ON_CPU_VECTOR4(name, scalar)                            \
  struct alignas(4 * sizeof(scalar)) name##4 { scalar x, y, z, w; }; \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTOR(char, signed char)
CUDA_ON_CPU_VECTOR(uchar, unsigned char)
CUDA_ON_CPU_VECTOR(short, short)
CUDA_ON_CPU_VECTOR(ushort, unsigned short)
CUDA_ON_CPU_VECTOR(int, int)
CUDA_ON_CPU_VECTOR(uint, unsigned int)
CUDA_ON_CPU_VECTOR(float, float)
CUDA_ON_CPU_VECTOR(longlong, long long)
CUDA_ON_CPU_VECTOR(ulonglong, unsigned long long)
CUDA_ON_CPU_VECTOR(double, double)
// No 32-byte types: their alignment changed with CUDA 13.
CUDA_ON_CPU_VECTOR4(char, signed char)
CUDA_ON_CPU_VECTOR4(uchar, unsigned char)
CUDA_ON_CPU_VECTOR4(short, short)
CUDA_ON_CPU_VECTOR4(ushort, unsigned short)
CUDA_ON_CPU_VECTOR4(int, int)
CUDA_ON_CPU_VECTOR4(uint, unsigned int)
CUDA_ON_CPU_VECTOR4(float, float)

#undef CUDA_ON_CPU_VECTOR
#undef CUDA_ON_CPU_VECTOR4

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

// ---- bit casts ---------------------------------------------------------------------------------

namespace cuda_on_cpu {

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable<From>::value);
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace cuda_on_cpu

inline int __float_as_int(float v) { return cuda_on_cpu::bit_cast<int>(v); }
inline unsigned int __float_as_uint(float v) { return cuda_on_cpu::bit_cast<unsigned int>(v); }
inline float __int_as_float(int v) { return cuda_on_cpu::bit_cast<float>(v); }
inline float __uint_as_float(unsigned int v) { return cuda_on_cpu::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return cuda_on_cpu::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return cuda_on_cpu::bit_cast<double>(v); }

// ---- half and bfloat16 -------------------------------------------------------------------------

namespace cuda_on_cpu {

inline float half_bits_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  const std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return bit_cast<float>(bit_cast<std::uint32_t>(magnitude) | sign);
  }
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest, ties to even; a NaN becomes CUDA's canonical NaN.
inline std::uint16_t float_to_half_bits(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x47800000u) return sign | 0x7c00;  // 65536 and up, infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal, a multiple of 2^-24: the spacing of floats at 0.5, so
    // that the addition itself rounds.
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<std::uint16_t>(bit_cast<std::uint32_t>(shifted) - 0x3f000000u);
  }
  magnitude += 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<std::uint16_t>((magnitude - 0x38000000u) >> 13);
}

inline float bfloat16_bits_to_float(std::uint16_t bfloat16) {
  return bit_cast<float>(static_cast<std::uint32_t>(bfloat16) << 16);
}

inline std::uint16_t float_to_bfloat16_bits(float value) {
  std::uint32_t bits = bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<std::uint16_t>(bits >> 16);
}

}  // namespace cuda_on_cpu

// Conversions are explicit although CUDA's are not: an implicit one in a kernel is more often an
// unwanted rounding than a wish.
struct alignas(2) __half {
  std::uint16_t bits;
  __half() = default;
  explicit __half(float v) : bits(cuda_on_cpu::float_to_half_bits(v)) {}
  explicit operator float() const { return cuda_on_cpu::half_bits_to_float(bits); }
};

struct alignas(2) __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float v) : bits(cuda_on_cpu::float_to_bfloat16_bits(v)) {}
  explicit operator float() const { return cuda_on_cpu::bfloat16_bits_to_float(bits); }
};

struct alignas(4) __half2 {
  __half x, y;
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __half2float(__half v) { return static_cast<float>(v); }
inline __half __float2half(float v) { return __half(v); }
inline __half __float2half_rn(float v) { return __half(v); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half v) { return {v, v}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(unsigned short v) { return cuda_on_cpu::bit_cast<__half>(v); }

inline float __bfloat162float(__nv_bfloat16 v) { return static_cast<float>(v); }
inline __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16(v); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {__bfloat162float(v.x), __bfloat162float(v.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) {
  return cuda_on_cpu::bit_cast<__nv_bfloat16>(v);
}

// ---- integer intrinsics ------------------------------------------------------------------------

inline int __popc(unsigned int v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<long long>(a) * b) >> 32); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((static_cast<unsigned long long>(a) * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>((static_cast<Wide>(a) * b) >> 64);
}

// CUDA's global min and max. For floating point they are fminf and fmaxf (a NaN loses), which
// std::min and std::max are not.
#define CUDA_ON_CPU_MIN_MAX(type)                           \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
CUDA_ON_CPU_MIN_MAX(int)
CUDA_ON_CPU_MIN_MAX(unsigned int)
CUDA_ON_CPU_MIN_MAX(long)
CUDA_ON_CPU_MIN_MAX(unsigned long)
CUDA_ON_CPU_MIN_MAX(long long)
CUDA_ON_CPU_MIN_MAX(unsigned long long)
#undef CUDA_ON_CPU_MIN_MAX
inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }

// ---- floating point ----------------------------------------------------------------------------
// The harness compiles without contraction, so these round as they say. The fast approximations
// are exact here: a test must not rely on their error.

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fsqrt_rn(float v) { return ::sqrtf(v); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return ::expf(v); }
inline float __logf(float v) { return ::logf(v); }
inline float rsqrtf(float v) { return 1.0f / ::sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / ::sqrt(v); }
inline float __saturatef(float v) { return ::fminf(::fmaxf(v, 0.0f), 1.0f); }

// ---- loads and stores with a cache hint --------------------------------------------------------
// nvcc accepts them for scalars and vector types alone, not for a struct of one's own.

namespace cuda_on_cpu {

template <class T>
inline T load(const T* address) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 16);
  return *address;
}

template <class T>
inline void store(T* address, T value) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 16);
  *address = value;
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_LOAD(name)         \
  template <class T>                   \
  inline T name(const T* address) {    \
    return cuda_on_cpu::load(address); \
  }
#define CUDA_ON_CPU_STORE(name)           \
  template <class T>                      \
  inline void name(T* address, T value) { \
    cuda_on_cpu::store(address, value);   \
  }
CUDA_ON_CPU_LOAD(__ldg)
CUDA_ON_CPU_LOAD(__ldca)
CUDA_ON_CPU_LOAD(__ldcg)
CUDA_ON_CPU_LOAD(__ldcs)
CUDA_ON_CPU_LOAD(__ldlu)
CUDA_ON_CPU_LOAD(__ldcv)
CUDA_ON_CPU_STORE(__stwb)
CUDA_ON_CPU_STORE(__stcg)
CUDA_ON_CPU_STORE(__stcs)
CUDA_ON_CPU_STORE(__stwt)
#undef CUDA_ON_CPU_LOAD
#undef CUDA_ON_CPU_STORE
