// Vectors of map elements and of mask bits, as the fast paths read and write them.
#pragma once

#include "cuda_compat.h"
#include "params.h"

namespace msr {

// V neighbours in memory. The alignment is what one load instruction needs, at most 16 bytes: the
// compiler turns a copy of a Vector into as few loads or stores as that allows. Elements of two
// bytes stay in pairs, as registers hold them: taken apart, each would need one of its own, and an
// instruction to get there.
template <typename T, int V, bool kPairs = sizeof(T) == 2 && V % 2 == 0>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Vector {
  T at[V];
};
template <typename T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Vector<T, V, true> {
  uint32_t pairs[V / 2];
};

template <typename T, int V>
__device__ __forceinline__ Vector<T, V> load_vector(const T* address) {
  return *reinterpret_cast<const Vector<T, V>*>(address);
}

__device__ __forceinline__ float2 widen_pair(uint32_t word, Half) {
  __half2 pair;
  memcpy(&pair, &word, sizeof word);
  return __half22float2(pair);
}
__device__ __forceinline__ float2 widen_pair(uint32_t word, BFloat16) {
  return make_float2(bits_to_float(word << 16), bits_to_float(word & 0xffff0000u));
}

// Two neighbours in one word, rounded by one instruction.
__device__ __forceinline__ uint32_t narrow_pair(float first, float second, Half) {
  const __half2 pair = __floats2half2_rn(first, second);
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
}
__device__ __forceinline__ uint32_t narrow_pair(float first, float second, BFloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
}

// Element i, which is a constant once loops are unrolled.
template <typename T, int V>
__device__ __forceinline__ float widen_element(const Vector<T, V>& raw, int i) {
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {
    const float2 pair = widen_pair(raw.pairs[i / 2], T{});
    return i % 2 == 0 ? pair.x : pair.y;
  } else {
    return widen<float>(raw.at[i]);
  }
}

template <typename T, int V>
__device__ __forceinline__ void widen_vector(const Vector<T, V>& raw, float (&values)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = widen_element<T, V>(raw, i);
}

// NaN stays, and so does every zero a positive one.
__device__ __forceinline__ float relu(float value) { return value <= 0.0f ? 0.0f : value; }

// The same of two neighbours after rounding, which changes no order: half the work. Both zeros and
// all below give +0, NaN stays. Devices before sm_80 cannot.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr bool kPairsHaveRelu = true;
__device__ __forceinline__ uint32_t relu_pair(uint32_t word, Half) {
  asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(word) : "r"(0));
  return word;
}
__device__ __forceinline__ uint32_t relu_pair(uint32_t word, BFloat16) {
  asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(word) : "r"(0));
  return word;
}
#else
constexpr bool kPairsHaveRelu = false;
template <typename T>
__device__ __forceinline__ uint32_t relu_pair(uint32_t word, T) {
  return word;
}
#endif

template <typename T, int V>
__device__ __forceinline__ void store_vector(T* address, const float (&values)[V],
                                             bool has_relu = false) {
  Vector<T, V> raw;
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 2) {
      float first = values[i], second = values[i + 1];
      if (!kPairsHaveRelu && has_relu) {
        first = relu(first);
        second = relu(second);
      }
      raw.pairs[i / 2] = narrow_pair(first, second, T{});
    }
    if (kPairsHaveRelu && has_relu) {
#pragma unroll
      for (int k = 0; k < V / 2; ++k) raw.pairs[k] = relu_pair(raw.pairs[k], T{});
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      raw.at[i] = Narrow<T>::from(has_relu ? relu(values[i]) : values[i]);
    }
  }
  *reinterpret_cast<Vector<T, V>*>(address) = raw;
}

// Bits [offset, offset + count) of a mask, the first one lowest; at most 8, so they lie in two
// bytes.
__device__ __forceinline__ uint32_t gate_bits(const uint8_t* gate, int64_t offset, int count) {
  const int shift = static_cast<int>(offset & 7);
  uint32_t bits = gate[offset >> 3];
  if (shift + count > 8) bits |= static_cast<uint32_t>(gate[(offset >> 3) + 1]) << 8;
  return bits >> shift;
}
template <int V>
__device__ __forceinline__ uint32_t gate_bits(const uint8_t* gate, int64_t offset) {
  static_assert(V <= 8, "two bytes hold at most 9 neighbouring bits for certain");
  return gate_bits(gate, offset, V);
}

// Two halves, each all ones where bit 7 of a byte of `signs` is set: of bytes 2 * kPair and the
// next.
template <int kPair>
__device__ __forceinline__ uint32_t mask_of_signs(uint32_t signs) {
#if defined(__CUDA_ARCH__)
  // One instruction; __byte_perm does not promise what the selectors' highest bits do.
  uint32_t mask;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(mask) : "r"(signs), "n"(kPair == 0 ? 0x9988 : 0xbbaa));
  return mask;
#else
  const uint32_t bytes = signs >> (16 * kPair);
  return (bytes & 0x80u ? 0xffffu : 0u) | (bytes & 0x8000u ? 0xffff0000u : 0u);
#endif
}

// Sets elements whose bit is 0 to zero, whatever they hold.
template <typename T, int V>
__device__ __forceinline__ void apply_gate(Vector<T, V>& raw, uint32_t bits) {
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {
#pragma unroll
    for (int k = 0; k < V / 2; k += 2) {
      // Four bits, each to the sign of a byte.
      const uint32_t signs = (bits >> (2 * k) & 0xfu) * 0x10204080u;
      raw.pairs[k] &= mask_of_signs<0>(signs);
      if (k + 1 < V / 2) raw.pairs[k + 1] &= mask_of_signs<1>(signs);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (!(bits >> i & 1)) raw.at[i] = T{};
    }
  }
}

}  // namespace msr
