// A vector of floats of the instruction set that the including file is compiled for, and its
// one-lane twin for the ends of rows. Loads widen float16 and bfloat16, stores round.
//
// Only row_ops_impl.h includes this, in files that each choose an instruction set by MSR_ISA_AVX2,
// MSR_ISA_AVX512 or none. Nothing here may
// have external linkage: the linker keeps one copy of an inline function, and it could keep the one
// with instructions that another machine lacks.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtypes.h"

#if defined(MSR_ISA_AVX2) || defined(MSR_ISA_AVX512)
#include <immintrin.h>
#endif

namespace msr {
namespace {

#define MSR_INLINE inline __attribute__((always_inline))

// One value of another type. kConvertsInVectors: whether there are instructions for that; without
// them the conversions are long, and a call is short beside them.
#if defined(MSR_ISA_AVX2) || defined(MSR_ISA_AVX512)
constexpr bool kConvertsInVectors = true;
#define MSR_CONVERSION MSR_INLINE
#else
constexpr bool kConvertsInVectors = false;
#define MSR_CONVERSION inline __attribute__((noinline))
#endif
template <typename T>
MSR_CONVERSION float load_narrow(const T* from) {
#if defined(MSR_ISA_AVX2) || defined(MSR_ISA_AVX512)
  if constexpr (std::is_same_v<T, Half>) return _cvtsh_ss(from->bits);
#endif
  return widen<float>(*from);
}
template <typename value_t, typename T>
MSR_CONVERSION void store_narrow(value_t value, T* to) {
#if defined(MSR_ISA_AVX2) || defined(MSR_ISA_AVX512)
  if constexpr (std::is_same_v<T, Half> && sizeof(value_t) == sizeof(float)) {
    *to = {static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
    return;
  }
#endif
  *to = Narrow<T>::from(value);
}

// One lane. value_t is the accumulation type.
template <typename value_t>
struct Scalar {
  static constexpr int kLanes = 1;
  using acc_t = value_t;
  value_t v;

  static MSR_INLINE Scalar broadcast(value_t value) { return {value}; }
  static MSR_INLINE Scalar load(const value_t* from) { return {*from}; }
  template <typename T>
  static MSR_INLINE Scalar load(const T* from) {
    return {static_cast<value_t>(load_narrow(from))};
  }
  MSR_INLINE void store(value_t* to) const { *to = v; }
  template <typename T>
  MSR_INLINE void store(T* to) const {
    store_narrow(v, to);
  }
  MSR_INLINE Scalar operator+(Scalar other) const { return {v + other.v}; }
  MSR_INLINE Scalar operator-(Scalar other) const { return {v - other.v}; }
  MSR_INLINE Scalar operator*(Scalar other) const { return {v * other.v}; }
  // Zero where it is NaN.
  MSR_INLINE Scalar if_number() const { return {v == v ? v : value_t(0)}; }
  // this * factor + term
  MSR_INLINE Scalar times_plus(Scalar factor, Scalar term) const {
#if defined(MSR_ISA_AVX2) || defined(MSR_ISA_AVX512)
    if constexpr (sizeof(value_t) == 4) return {__builtin_fmaf(v, factor.v, term.v)};
#endif
    return {v * factor.v + term.v};
  }
  // The positive part, which keeps NaN; a bit per lane, !(v <= 0).
  MSR_INLINE Scalar relu(uint32_t& passes) const {
    passes = v <= 0 ? 0u : 1u;
    return {v <= 0 ? value_t(0) : v};
  }
  // The larger one; NaN stays.
  MSR_INLINE Scalar at_least(value_t floor) const { return {v < floor ? floor : v}; }
  // Zero where the lane's bit, bits[k] to bits[k + kLanes - 1], is not set.
  MSR_INLINE Scalar select(const uint8_t* bits, int64_t k) const {
    return {(bits[k >> 3] >> (k & 7) & 1) != 0 ? v : value_t(0)};
  }
};

#if defined(MSR_ISA_AVX512)

struct Vec {
  static constexpr int kLanes = 16;
  using acc_t = float;
  __m512 v;

  static MSR_INLINE Vec broadcast(float value) { return {_mm512_set1_ps(value)}; }
  static MSR_INLINE Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static MSR_INLINE Vec load(const BFloat16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static MSR_INLINE Vec load(const Half* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  MSR_INLINE void store(float* to) const { _mm512_storeu_ps(to, v); }
  MSR_INLINE __m256i narrow(const BFloat16*) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_mov_epi32(rounded, nan, quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16));
  }
  MSR_INLINE __m256i narrow(const Half*) const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  }
  template <typename T>
  MSR_INLINE void store(T* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(to));
  }
  MSR_INLINE Vec operator+(Vec other) const { return {_mm512_add_ps(v, other.v)}; }
  MSR_INLINE Vec operator-(Vec other) const { return {_mm512_sub_ps(v, other.v)}; }
  MSR_INLINE Vec operator*(Vec other) const { return {_mm512_mul_ps(v, other.v)}; }
  MSR_INLINE Vec if_number() const {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v)};
  }
  MSR_INLINE Vec times_plus(Vec factor, Vec term) const {
    return {_mm512_fmadd_ps(v, factor.v, term.v)};
  }
  MSR_INLINE Vec relu(uint32_t& passes) const {
    const __mmask16 mask = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NLE_UQ);
    passes = mask;
    return {_mm512_maskz_mov_ps(mask, v)};
  }
  MSR_INLINE Vec at_least(float floor) const { return {_mm512_max_ps(_mm512_set1_ps(floor), v)}; }
  typedef int32_t Ints __attribute__((vector_size(64)));
  static MSR_INLINE Ints load_ints(const uint8_t* from) {
    const __m512i wide =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    Ints result;
    memcpy(&result, &wide, sizeof result);
    return result;
  }
  // Bit i: whether lane i of a comparison of the compiler's own vectors holds.
  template <typename C>
  static MSR_INLINE uint32_t condition_bits(C conditions) {
    __m512i all;
    memcpy(&all, &conditions, sizeof all);
    return _mm512_test_epi32_mask(all, all);
  }
  MSR_INLINE Vec select(const uint8_t* bits, int64_t k) const {
    uint16_t mask;
    memcpy(&mask, bits + (k >> 3), sizeof mask);
    return {_mm512_maskz_mov_ps(static_cast<__mmask16>(mask), v)};
  }

  // Lane i: window[index[i]], where every index is below kLanes or, if wide, below 2 * kLanes.
  static constexpr bool kCanLookUp = true;
  template <bool kWide>
  static MSR_INLINE Vec look_up(Vec low, Vec high, const int32_t* index) {
    const __m512i at = _mm512_loadu_si512(index);
    if constexpr (!kWide) return {_mm512_permutexvar_ps(at, low.v)};
    return {_mm512_permutex2var_ps(low.v, at, high.v)};
  }
  // The even and the odd lanes of low, followed by high.
  static MSR_INLINE void split_pairs(Vec low, Vec high, Vec& even, Vec& odd) {
    const __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even.v = _mm512_permutex2var_ps(low.v, at, high.v);
    odd.v = _mm512_permutex2var_ps(low.v, _mm512_or_si512(at, _mm512_set1_epi32(1)), high.v);
  }
};

#elif defined(MSR_ISA_AVX2)

struct Vec {
  static constexpr int kLanes = 8;
  using acc_t = float;
  __m256 v;

  static MSR_INLINE Vec broadcast(float value) { return {_mm256_set1_ps(value)}; }
  static MSR_INLINE Vec load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static MSR_INLINE Vec load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static MSR_INLINE Vec load(const Half* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  MSR_INLINE void store(float* to) const { _mm256_storeu_ps(to, v); }
  MSR_INLINE __m128i narrow(const BFloat16*) const {
    const __m256i words = _mm256_srli_epi32(rounded_to_bfloat16(), 16);
    // Packing works within halves of the register: the first and the third quarter hold them.
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    return _mm256_castsi256_si128(packed);
  }
  MSR_INLINE __m128i narrow(const Half*) const {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  }
  template <typename T>
  MSR_INLINE void store(T* to) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(to));
  }
  MSR_INLINE Vec operator+(Vec other) const { return {_mm256_add_ps(v, other.v)}; }
  MSR_INLINE Vec operator-(Vec other) const { return {_mm256_sub_ps(v, other.v)}; }
  MSR_INLINE Vec operator*(Vec other) const { return {_mm256_mul_ps(v, other.v)}; }
  MSR_INLINE Vec if_number() const { return {_mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q))}; }
  MSR_INLINE Vec times_plus(Vec factor, Vec term) const {
    return {_mm256_fmadd_ps(v, factor.v, term.v)};
  }
  MSR_INLINE Vec relu(uint32_t& passes) const {
    const __m256 mask = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NLE_UQ);
    passes = static_cast<uint32_t>(_mm256_movemask_ps(mask));
    return {_mm256_and_ps(v, mask)};
  }
  MSR_INLINE Vec at_least(float floor) const { return {_mm256_max_ps(_mm256_set1_ps(floor), v)}; }
  typedef int32_t Ints __attribute__((vector_size(32)));
  static MSR_INLINE Ints load_ints(const uint8_t* from) {
    const __m256i wide =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    Ints result;
    memcpy(&result, &wide, sizeof result);
    return result;
  }
  // Bit i: whether lane i of a comparison of the compiler's own vectors holds.
  template <typename C>
  static MSR_INLINE uint32_t condition_bits(C conditions) {
    __m256 all;
    memcpy(&all, &conditions, sizeof all);
    return static_cast<uint32_t>(_mm256_movemask_ps(all));
  }
  MSR_INLINE Vec select(const uint8_t* bits, int64_t k) const {
    const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i all = _mm256_set1_epi8(static_cast<char>(bits[k >> 3]));
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(all, lane_bit), lane_bit);
    return {_mm256_and_ps(v, _mm256_castsi256_ps(set))};
  }

  static constexpr bool kCanLookUp = true;
  template <bool kWide>
  static MSR_INLINE Vec look_up(Vec low, Vec high, const int32_t* index) {
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
    const __m256 from_low = _mm256_permutevar8x32_ps(low.v, at);
    if constexpr (!kWide) return {from_low};
    const __m256 from_high = _mm256_permutevar8x32_ps(high.v, at);
    const __m256i is_high = _mm256_cmpgt_epi32(at, _mm256_set1_epi32(kLanes - 1));
    return {_mm256_blendv_ps(from_low, from_high, _mm256_castsi256_ps(is_high))};
  }
  static MSR_INLINE void split_pairs(Vec low, Vec high, Vec& even, Vec& odd) {
    // Within halves first, [0 2 8 10 | 4 6 12 14], then the quarters into order.
    const __m256d evens = _mm256_castps_pd(_mm256_shuffle_ps(low.v, high.v, 0x88));
    const __m256d odds = _mm256_castps_pd(_mm256_shuffle_ps(low.v, high.v, 0xdd));
    even.v = _mm256_castpd_ps(_mm256_permute4x64_pd(evens, 0xd8));
    odd.v = _mm256_castpd_ps(_mm256_permute4x64_pd(odds, 0xd8));
  }

  // The upper halves are the value in bfloat16, rounded to nearest, ties to even.
  MSR_INLINE __m256i rounded_to_bfloat16() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
  }
};

// Sixteen lanes, the even ones and the odd ones. Neighbours in bfloat16 come apart, and together
// again, without crossing lanes.
struct VecPair {
  static constexpr int kLanes = 16;
  using acc_t = float;
  Vec even, odd;

  static MSR_INLINE VecPair broadcast(float value) {
    return {Vec::broadcast(value), Vec::broadcast(value)};
  }
  static MSR_INLINE VecPair load(const BFloat16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i upper = _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))}, {_mm256_castsi256_ps(upper)}};
  }
  static MSR_INLINE VecPair load(const float* from) {
    VecPair result;
    Vec::split_pairs(Vec::load(from), Vec::load(from + Vec::kLanes), result.even, result.odd);
    return result;
  }
  MSR_INLINE void store(BFloat16* to) const {
    const __m256i lower = _mm256_srli_epi32(even.rounded_to_bfloat16(), 16);
    const __m256i both = _mm256_blend_epi16(lower, odd.rounded_to_bfloat16(), 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), both);
  }
  MSR_INLINE VecPair operator+(VecPair other) const { return {even + other.even, odd + other.odd}; }
  MSR_INLINE VecPair operator*(VecPair other) const { return {even * other.even, odd * other.odd}; }
  MSR_INLINE VecPair times_plus(VecPair factor, VecPair term) const {
    return {even.times_plus(factor.even, term.even), odd.times_plus(factor.odd, term.odd)};
  }
  MSR_INLINE VecPair relu(uint32_t& passes) const {
    const __m256 zero = _mm256_setzero_ps();
    const __m256 even_set = _mm256_cmp_ps(even.v, zero, _CMP_NLE_UQ);
    const __m256 odd_set = _mm256_cmp_ps(odd.v, zero, _CMP_NLE_UQ);
    const __m256i words =
        _mm256_blend_epi16(_mm256_castps_si256(even_set), _mm256_castps_si256(odd_set), 0xaa);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    passes = static_cast<uint32_t>(_mm_movemask_epi8(bytes));
    return {{_mm256_and_ps(even.v, even_set)}, {_mm256_and_ps(odd.v, odd_set)}};
  }
  MSR_INLINE VecPair at_least(float floor) const {
    return {even.at_least(floor), odd.at_least(floor)};
  }
  MSR_INLINE VecPair select(const uint8_t* bits, int64_t k) const {
    uint16_t all;
    memcpy(&all, bits + (k >> 3), sizeof all);
    const __m256i even_bit = _mm256_setr_epi32(1, 4, 16, 64, 256, 1024, 4096, 16384);
    const __m256i odd_bit = _mm256_slli_epi32(even_bit, 1);
    const auto keep = [&](Vec value, __m256i bit) {
      const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(all), bit), bit);
      return Vec{_mm256_and_ps(value.v, _mm256_castsi256_ps(set))};
    };
    return {keep(even, even_bit), keep(odd, odd_bit)};
  }
};

#else

// Four lanes by the compiler's own vectors: SSE2 on x86-64, NEON on Arm.
struct Vec {
  static constexpr int kLanes = 4;
  using acc_t = float;
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  Floats v;

  static MSR_INLINE Vec broadcast(float value) { return {Floats{value, value, value, value}}; }
  static MSR_INLINE Vec load(const float* from) {
    Vec result;
    memcpy(&result.v, from, sizeof result.v);
    return result;
  }
  template <typename T>
  static MSR_CONVERSION Vec load(const T* from) {
    return {Floats{to_float(from[0]), to_float(from[1]), to_float(from[2]), to_float(from[3])}};
  }
  MSR_INLINE void store(float* to) const { memcpy(to, &v, sizeof v); }
  template <typename T>
  MSR_CONVERSION void store(T* to) const {
    for (int i = 0; i < kLanes; ++i) to[i] = Narrow<T>::from(v[i]);
  }
  MSR_INLINE Vec operator+(Vec other) const { return {v + other.v}; }
  MSR_INLINE Vec operator-(Vec other) const { return {v - other.v}; }
  MSR_INLINE Vec operator*(Vec other) const { return {v * other.v}; }
  MSR_INLINE Vec if_number() const { return masked(v == v); }
  MSR_INLINE Vec times_plus(Vec factor, Vec term) const { return {v * factor.v + term.v}; }
  static MSR_INLINE Ints load_ints(const uint8_t* from) {
    return Ints{from[0], from[1], from[2], from[3]};
  }
  static MSR_INLINE uint32_t condition_bits(Ints conditions) {
    const Ints bits = conditions & Ints{1, 2, 4, 8};
    return static_cast<uint32_t>(bits[0] | bits[1] | bits[2] | bits[3]);
  }
  MSR_INLINE Vec relu(uint32_t& passes) const {
    const Ints set = ~(v <= Floats{});
    passes = condition_bits(set);
    return masked(set);
  }
  MSR_INLINE Vec at_least(float floor) const {
    const Floats least = broadcast(floor).v;
    return {v < least ? least : v};
  }
  MSR_INLINE Vec select(const uint8_t* bits, int64_t k) const {
    const Ints lane_bit = {1, 2, 4, 8};
    const int32_t four = bits[k >> 3] >> (k & 7);
    return masked((Ints{four, four, four, four} & lane_bit) == lane_bit);
  }
  MSR_INLINE Vec masked(Ints set) const {
    Ints words;
    memcpy(&words, &v, sizeof words);
    words &= set;
    Vec result;
    memcpy(&result.v, &words, sizeof words);
    return result;
  }

  static constexpr bool kCanLookUp = false;
  static MSR_INLINE void split_pairs(Vec low, Vec high, Vec& even, Vec& odd) {
    even.v = Floats{low.v[0], low.v[2], high.v[0], high.v[2]};
    odd.v = Floats{low.v[1], low.v[3], high.v[1], high.v[3]};
  }
};

#endif

}  // namespace
}  // namespace msr
