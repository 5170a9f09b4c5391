// Kernels that test the harness itself: right ones, and one for every kind of fault it must find.
// The tests look for the FAULT comments, to compare their lines with what a sanitizer reports.
#pragma once

#include "cuda_compat.h"

namespace msr::selftest {

constexpr int kThreads = 128;

// ---- right -------------------------------------------------------------------------------------

// partial[block] = sum of the block's part of x, by a tree in shared memory.
__global__ void __launch_bounds__(kThreads)
    block_sum_kernel(const float* x, int n, float* partial) {
  __shared__ float tree[kThreads];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  tree[threadIdx.x] = i < n ? __ldg(x + i) : 0.0f;
  __syncthreads();
  for (unsigned int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) tree[threadIdx.x] += tree[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) partial[blockIdx.x] = tree[0];
}

// The same by shuffles: within warps, then over the warps' sums.
template <typename T, int kBlockThreads>
__global__ void shuffle_sum_kernel(const T* x, int n, T* partial) {
  __shared__ T of_warp[kBlockThreads / 32];
  const int i = blockIdx.x * kBlockThreads + threadIdx.x;
  T sum = i < n ? x[i] : T(0);
  for (int offset = 16; offset > 0; offset /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, offset);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < kBlockThreads / 32 ? of_warp[threadIdx.x] : T(0);
    for (int offset = 16; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
  }
}

// out[kind][thread]: what each lane gets from sync, up, down and xor.
__global__ void shuffle_kinds_kernel(int argument, int width, int* out) {
  const int thread = threadIdx.x;
  const int value = 100 + thread;
  const int stride = blockDim.x;
  out[thread] = __shfl_sync(0xffffffffu, value, argument, width);
  out[stride + thread] = __shfl_up_sync(0xffffffffu, value, argument, width);
  out[2 * stride + thread] = __shfl_down_sync(0xffffffffu, value, argument, width);
  out[3 * stride + thread] = __shfl_xor_sync(0xffffffffu, value, argument, width);
}

// Two halves of a warp that diverge, each with collectives of its own; a lane that is released runs
// ahead of its partners.
__global__ void half_warps_kernel(const int* x, int* out) {
  const int lane = threadIdx.x;
  int value = x[lane];
  if (lane < 16) {
    for (int step = 1; step < 16; step *= 2) value += __shfl_xor_sync(0x0000ffffu, value, step);
  } else {
    value = max(value, __shfl_xor_sync(0xffff0000u, value, 1));
    value += __shfl_sync(0xffff0000u, value, 31);
  }
  __syncwarp();
  out[lane] = value + __shfl_sync(0xffffffffu, value, 0);
}

__global__ void vote_kernel(const int* x, unsigned int* ballot, int* any, int* all) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const bool positive = x[i] > 0;
  ballot[i] = __ballot_sync(0xffffffffu, positive);
  any[i] = __any_sync(0xffffffffu, positive);
  all[i] = __all_sync(0xffffffffu, positive);
}

// Each block reverses its part through dynamic shared memory.
__global__ void reverse_kernel(const double* x, double* out) {
  MSR_DYNAMIC_SHARED(double, tile);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  tile[threadIdx.x] = x[i];
  __syncthreads();
  out[i] = tile[blockDim.x - 1 - threadIdx.x];
}

// out[z][y][x] of a three-dimensional grid = which thread of which block wrote it.
__global__ void indices_kernel(int* out) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  const int z = blockIdx.z * blockDim.z + threadIdx.z;
  const int width = gridDim.x * blockDim.x;
  const int height = gridDim.y * blockDim.y;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[(z * height + y) * width + x] = block * 10000 + thread;
}

__global__ void count_positive_kernel(const int* x, int n, int* count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && x[i] > 0) atomicAdd(count, 1);
}

// Copies the bits, widened to float and rounded back: eight elements a thread by one vector.
template <typename T>
__global__ void round_trip_kernel(const T* x, int n, float* widened, T* out) {
  const int i = 8 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (i + 8 > n) return;
  union {
    uint4 vector;
    T element[8];
  } pack{*reinterpret_cast<const uint4*>(x + i)};
  for (int j = 0; j < 8; ++j) {
    const float value = static_cast<float>(pack.element[j]);
    widened[i + j] = value;
    pack.element[j] = T(value);
  }
  __stcs(reinterpret_cast<uint4*>(out + i), pack.vector);
}

template <typename T>
__global__ void round_kernel(const float* x, int n, T* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = T(x[i]);
}

// A __device__ function with a shared variable of its own.
__device__ inline unsigned int shared_bits_in_function(bool write) {
  __shared__ unsigned int word;
  const unsigned int before = word;
  __syncthreads();
  if (write) word = 1;
  return before;
}

// What shared memory holds before anything is written to it; then it is written, for the next block
// to find if it were not poisoned again.
__global__ void unwritten_shared_kernel(unsigned int* out, bool write) {
  __shared__ unsigned int words[4];
  MSR_DYNAMIC_SHARED(unsigned int, dynamic);
  const int i = threadIdx.x;
  out[blockIdx.x * 12 + i] = words[i];
  out[blockIdx.x * 12 + 4 + i] = dynamic[i];
  out[blockIdx.x * 12 + 8 + i] = shared_bits_in_function(write);
  __syncthreads();
  if (write) words[i] = dynamic[i] = 1;
}

__global__ void large_static_shared_kernel(float* out) {
  __shared__ float most[11 << 10];  // 44 KB
  most[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = most[threadIdx.x];
}

// An object whose destructor shows that a failed kernel's fibres were unwound.
struct CountsDestruction {
  int* count;
  __device__ ~CountsDestruction() { *count += 1; }
};

// ---- faulty ------------------------------------------------------------------------------------

// The barrier between the write and the read of another thread's element is missing.
__global__ void missing_barrier_kernel(const float* x, float* out) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// Blocks that read what another block may or may not have written.
__global__ void block_race_kernel(int* out) {
  out[blockIdx.x] = blockIdx.x == 0 ? 1 : out[blockIdx.x - 1] + 1;
}

__global__ void early_return_kernel(int n, float* out, int* destroyed) {
  const CountsDestruction counts{destroyed};
  const int i = threadIdx.x;
  if (i >= n) return;
  __syncthreads();  // FAULT early_return
  out[i] = 1.0f;
}

__global__ void divergent_barrier_kernel(float* out) {
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = 0.0f;
    __syncthreads();  // FAULT divergent_barrier even
  } else {
    out[threadIdx.x] = 1.0f;
    __syncthreads();  // FAULT divergent_barrier odd
  }
}

__global__ void missing_lane_kernel(int* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);  // FAULT missing_lane
}

__global__ void lane_at_barrier_kernel(int* out) {
  if (threadIdx.x == 7) __syncthreads();
  out[threadIdx.x] = __any_sync(0xffffffffu, 1);  // FAULT lane_at_barrier
}

__global__ void outside_mask_kernel(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 1);  // FAULT outside_mask
}

__global__ void masks_differ_kernel(int* out) {
  const unsigned int mask = threadIdx.x % 32 < 16 ? 0xffffffffu : 0xffff0001u;
  out[threadIdx.x] = __shfl_sync(mask, 1, 1);  // FAULT masks_differ
}

__global__ void shuffle_width_kernel(int* out) { out[0] = __shfl_sync(0xffffffffu, 1, 0, 12); }

__global__ void trap_kernel(int block, int thread, int* out) {
  out[0] = 1;
  if (static_cast<int>(blockIdx.x) == block && static_cast<int>(threadIdx.x) == thread) __trap();
}

// Only a sanitizer sees the rest of these.

__global__ void read_past_end_kernel(const float* x, int n, float* out) {
  const int i = threadIdx.x;
  if (i <= n) out[0] = x[i];  // FAULT read_past_end
}

__global__ void write_past_end_kernel(int n, float* out) {
  const int i = threadIdx.x;
  if (i <= n) out[i] = 1.0f;  // FAULT write_past_end
}

// Not inlined, where UBSan would know the array's size: AddressSanitizer's red zone is to be tried.
__device__ __attribute__((noinline)) inline void set_element(float* array, int index) {
  array[index] = 1.0f;  // FAULT static_shared_overflow
}

__global__ void static_shared_overflow_kernel(int index, float* out) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = 1.0f;
  if (threadIdx.x == 0) set_element(tile, index);
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void dynamic_shared_overflow_kernel(int index, float* out) {
  MSR_DYNAMIC_SHARED(float, tile);
  if (threadIdx.x == 0) tile[index] = 1.0f;  // FAULT dynamic_shared_overflow
  __syncthreads();
  out[threadIdx.x] = 0.0f;
}

__global__ void misaligned_load_kernel(const float* x, int offset, float* out) {
  const float4 v = *reinterpret_cast<const float4*>(x + offset);  // FAULT misaligned_load
  out[threadIdx.x] = v.x + v.w;
}

__global__ void signed_overflow_kernel(int x, int* out) {
  out[threadIdx.x] = x + 1;  // FAULT signed_overflow
}

// No tool sees this; the poison in the output does.
__global__ void unwritten_output_kernel(int n, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n - 1) out[i] = 1.0f;
}

// Writes an element that is none of the output's: between the rows of a strided one.
__global__ void stray_write_kernel(int rows, int columns, int stride, float* out) {
  const int i = threadIdx.x;
  if (i >= rows * columns) return;
  out[i / columns * stride + i % columns] = 1.0f;
  out[columns] = 2.0f;
}

}  // namespace msr::selftest
