// Sums over the threads of a block.
#pragma once

#include "cuda_compat.h"

namespace msr {

// The sum of `value` over the block's threads, by a fixed tree; every thread of the block calls it,
// and gets the sum. parts: shared memory, a number for each thread.
template <int kThreads>
__device__ __forceinline__ double block_sum(double* parts, double value) {
  parts[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = parts[0];
  __syncthreads();  // it may be called again
  return sum;
}

}  // namespace msr
