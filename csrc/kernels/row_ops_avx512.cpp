// The row operations for AVX-512.
//
// The instruction set is switched on here and not on the command line, which is the same for every
// file. Standard headers come first: their inline functions must be compiled for any machine.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own intrinsics begin with a register that they declare undefined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define MSR_ISA_AVX512
#include "row_ops_impl.h"

namespace msr {
const RowOps<float>* row_ops_avx512() {
  static constexpr RowOps<float> kOps = make_row_ops<Vec, Vec::kCanLookUp>("avx512");
  return &kOps;
}
}  // namespace msr

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
#include "row_ops.h"

namespace msr {
const RowOps<float>* row_ops_avx512() { return nullptr; }
}  // namespace msr
#endif
