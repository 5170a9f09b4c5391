// Which instruction set the CPU kernels use.
#include "row_ops.h"

#include <cstdlib>
#include <cstring>

namespace msr {
namespace {

const RowOps<float>* best() {
  const RowOps<float>* ops = row_ops_generic();
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    ops = row_ops_avx2();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      ops = row_ops_avx512();
    }
  }
#endif
  return ops;
}

RowOpsChoice choose() {
  const RowOps<float>* ops = best();
  const char* asked = std::getenv("MSR_CUDA_CPU_ISA");
  if (!asked || !*asked || std::strcmp(asked, ops->name) == 0) return {ops, nullptr};
  // What this machine can do is ordered: each set includes those before it.
  const RowOps<float>* ordered[] = {row_ops_generic(), row_ops_avx2(), row_ops_avx512()};
  for (const RowOps<float>* candidate : ordered) {
    if (!candidate) continue;
    if (std::strcmp(asked, candidate->name) == 0) return {candidate, nullptr};
    if (candidate == ops) break;
  }
  const char* names[] = {"generic", "avx2", "avx512"};
  for (const char* name : names) {
    if (std::strcmp(asked, name) == 0)
      return {nullptr, "MSR_CUDA_CPU_ISA: this machine does not have what it asks for"};
  }
  return {nullptr, "MSR_CUDA_CPU_ISA: expected avx512, avx2 or generic"};
}

}  // namespace

RowOpsChoice choose_row_ops() {
  static const RowOpsChoice choice = choose();
  return choice;
}

}  // namespace msr
