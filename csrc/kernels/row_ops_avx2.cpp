// The row operations for AVX2, FMA and F16C: x86-64 since 2013.
//
// The instruction set is switched on here and not on the command line, which is the same for every
// file. Standard headers come first: their inline functions must be compiled for any machine.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define MSR_ISA_AVX2
#include "row_ops_impl.h"

namespace msr {
const RowOps<float>* row_ops_avx2() {
  static constexpr RowOps<float> kOps = make_row_ops<Vec, Vec::kCanLookUp>("avx2");
  return &kOps;
}
}  // namespace msr

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
#include "row_ops.h"

namespace msr {
const RowOps<float>* row_ops_avx2() { return nullptr; }
}  // namespace msr
#endif
