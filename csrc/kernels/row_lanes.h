// Rows as vectors of the instruction set of the including file, and their bits.
#pragma once

#include <type_traits>

#include "row_ops.h"
#include "vec_cpu.h"

namespace msr {
namespace {

// Writes bits [k, k + lanes) of a bit row, where lanes divides 8 or is 16 and k is a multiple of
// it. The first ones of a byte clear the rest of it.
template <int kLanes>
MSR_INLINE void put_bits(uint8_t* bits, int64_t k, uint32_t value) {
  if constexpr (kLanes == 16) {
    const auto both = static_cast<uint16_t>(value);
    memcpy(bits + (k >> 3), &both, sizeof both);
  } else if constexpr (kLanes == 8) {
    bits[k >> 3] = static_cast<uint8_t>(value);
  } else {
    const uint32_t before = (k & 7) == 0 ? 0u : bits[k >> 3];
    bits[k >> 3] = static_cast<uint8_t>(before | value << (k & 7));
  }
}

// The value where its bit is set, else `off` of it; without that, zero, also of an infinite one.
template <typename V>
MSR_INLINE V gated(V value, const uint8_t* bits, int64_t k, typename V::acc_t off) {
  const V part = value.select(bits, k);
  if (off == 0) return part;
  return value.times_plus(V::broadcast(off), part * V::broadcast(typename V::acc_t(1) - off));
}

// Calls step(vector type, k) for whole vectors: for rows of S and results of T. kOverlap: the last
// one ends where the run ends, whatever it writes again; otherwise, and in shorter runs,
// step(scalar, k) does the rest.
template <typename vec_t, bool kOverlap, typename S, typename T, typename F>
MSR_INLINE void for_each_lane_block(int64_t length, F&& step) {
  constexpr int kLanes = vec_t::kLanes;
  int64_t k = 0;
#if defined(MSR_ISA_AVX2)
  if constexpr (std::is_same_v<S, BFloat16> && std::is_same_v<T, BFloat16>) {
    for (; k + VecPair::kLanes <= length; k += VecPair::kLanes) step(VecPair{}, k);
  }
#endif
  for (; k + kLanes <= length; k += kLanes) step(vec_t{}, k);
  if constexpr (kLanes > 1) {
    if (k == length) return;
    if (kOverlap && length > kLanes) return step(vec_t{}, length - kLanes);
    for (; k < length; ++k) {
      __asm__ volatile("");  // keeps the compiler from making vectors of the few that are left
      step(Scalar<typename vec_t::acc_t>{}, k);
    }
  }
}

// Two vectors, one after the other, for loops that do the same for every vector of a row: what they
// read besides the row is read once for both.
template <typename V>
struct Two {
  static constexpr int kLanes = 2 * V::kLanes;
  using acc_t = typename V::acc_t;
  V low, high;

  static MSR_INLINE Two broadcast(acc_t value) {
    return {V::broadcast(value), V::broadcast(value)};
  }
  template <typename T>
  static MSR_INLINE Two load(const T* from) {
    return {V::load(from), V::load(from + V::kLanes)};
  }
  MSR_INLINE Two operator+(Two other) const { return {low + other.low, high + other.high}; }
  MSR_INLINE Two operator-(Two other) const { return {low - other.low, high - other.high}; }
  MSR_INLINE Two operator*(Two other) const { return {low * other.low, high * other.high}; }
  MSR_INLINE Two if_number() const { return {low.if_number(), high.if_number()}; }
  MSR_INLINE Two times_plus(Two factor, Two term) const {
    return {low.times_plus(factor.low, term.low), high.times_plus(factor.high, term.high)};
  }
  MSR_INLINE Two select(const uint8_t* bits, int64_t k) const {
    return {low.select(bits, k), high.select(bits, k + V::kLanes)};
  }
};

// The same as for_each_lane_block, two vectors at a time as long as there are as many.
template <typename vec_t, bool kOverlap, typename S, typename T, typename F>
MSR_INLINE void for_each_two_lane_blocks(int64_t length, F&& step) {
  constexpr int kLanes = vec_t::kLanes;
  // Rows of bfloat16 have vectors of their own, in pairs.
  constexpr bool kTwo = kLanes > 1 && !(std::is_same_v<S, BFloat16> && std::is_same_v<T, BFloat16>);
  int64_t done = 0;
  if constexpr (kTwo) {
    for (; done + 2 * kLanes <= length; done += 2 * kLanes) step(Two<vec_t>{}, done);
    if (kOverlap && done > 0 && length % kLanes != 0) done -= kLanes;
  }
  for_each_lane_block<vec_t, kOverlap, S, T>(length - done,
                                             [&](auto lane, int64_t k) { step(lane, done + k); });
}

}  // namespace
}  // namespace msr
