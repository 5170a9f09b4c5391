// Runs CUDA kernels on the CPU, for tests: what csrc/kernels/cuda_compat.h includes when a kernel
// is compiled by g++ -DMSR_CUDA_ON_CPU.
//
// A launch runs block after block; within a block every CUDA thread is a fibre that runs until it
// needs other threads (a barrier, a shuffle) or ends. Nothing is simulated beyond what the language
// promises, and what it does not promise is made visible:
//   - The order in which runnable threads and blocks run can be forward, reverse or shuffled. A
//     race shows as a result that depends on it.
//   - Shared memory starts each block as 0xff bytes (NaN); so does what a shuffle reads from a lane
//     that did not take part.
//   - A barrier that some threads never reach or that threads reach at different places, a lane
//     missing from a shuffle or outside its own mask, a launch a GPU would refuse: LaunchError,
//     which names kernel, block and thread. All fibres are unwound before it leaves the launch.
//   - Under AddressSanitizer and UBSan, each kernel access is checked as any other C++ code.
// Limits: no inline PTX, asynchronous copies, tensor cores, textures, clusters or grid-wide sync,
// no weak memory model. The thread order is a probe, not a proof of absence of races. Memory
// coalescing, bank conflicts and time mean nothing here. __launch_bounds__ is not checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_on_cpu_builtins.h"
#include "cuda_on_cpu_control.h"

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_CPU_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_ON_CPU_ADDRESS_SANITIZER 1
#endif
#endif

// ---- declaration specifiers --------------------------------------------------------------------
// The tags become part of the symbol names. cuda_on_cpu_shared_memory.cpp finds the static shared
// variables of each kernel by them, to poison them and to count them against the device's limit.

#define __global__ __attribute__((abi_tag("cuda_global")))
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
// AddressSanitizer puts red zones around static variables, but not around thread-local ones. Blocks
// run one at a time under it.
#define __shared__ __attribute__((abi_tag("cuda_shared"))) static
#else
#define __shared__ __attribute__((abi_tag("cuda_shared"))) static thread_local
#endif

// ---- runtime API -------------------------------------------------------------------------------

struct CUstream_st;
using cudaStream_t = CUstream_st*;

// Launch errors are C++ exceptions here, so what the runtime API reports is always success.
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace cuda_on_cpu {

// ---- the running thread ------------------------------------------------------------------------

struct BlockContext {
  uint3 block_index;
  dim3 block_dim;
  dim3 grid_dim;
  void* dynamic_shared;
};

struct ThreadContext {
  uint3 thread_index;
  unsigned int lane;
  const BlockContext* block;
};

// Null outside kernels. __thread, unlike thread_local, is read without a call that could initialise
// it: kernels read it with each use of threadIdx.
extern __thread const ThreadContext* current_thread;

// Ends the kernel with a LaunchError that names the calling thread.
[[noreturn]] void fail(const std::string& message);

void block_barrier(const char* file, int line);

// Waits until all lanes of `mask` have come to a collective of the same kind with the same mask.
enum class WarpCollective { kSync, kShuffle, kVote };

// kShuffle: the bits that lane `source` passed as value, all ones if it took no part. kVote: a bit
// for each lane of the mask that passed a value other than 0. `name` and place are for messages.
std::uint64_t warp_collective(WarpCollective kind, const char* name, unsigned int mask,
                              std::uint64_t value, unsigned int source, const char* file, int line);

template <std::size_t alignment>
inline void* dynamic_shared() {
  static_assert(alignment <= 16, "dynamic shared memory is 16-byte aligned");
  return current_thread->block->dynamic_shared;
}

// ---- launching ---------------------------------------------------------------------------------

struct LaunchConfig {
  std::string name;
  const void* kernel;
  dim3 grid;
  dim3 block;
  std::size_t dynamic_shared_bytes;
};

// Runs thread_body(closure) once for each thread of the grid.
void launch(const LaunchConfig& config, void (*thread_body)(void*), void* closure);

// What becomes of a launch while records_launches(). The bytes of the parameters are those that a
// GPU's kernel finds in its constant memory.
void record_launch(const LaunchConfig& config, std::vector<unsigned char> parameters);

void allow_dynamic_shared(const void* kernel, int bytes);

// What MSR_LAUNCH makes. The call operator takes the kernel's arguments, so that a kernel without
// any needs no special case in the macro.
template <class... Parameters>
class KernelLaunch {
 public:
  KernelLaunch(std::string name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
               std::size_t dynamic_shared_bytes, cudaStream_t /* launches are synchronous */)
      : kernel_(kernel),
        config_{std::move(name), reinterpret_cast<const void*>(kernel), grid, block,
                dynamic_shared_bytes} {}

  template <class... Arguments>
  void operator()(Arguments&&... arguments) {
    static_assert((!std::is_reference<Parameters>::value && ...),
                  "a kernel takes its parameters by value");
    static_assert((std::is_trivially_copyable<Parameters>::value && ... && true),
                  "the parameters of a kernel are copied to the device as bytes");
    static_assert((sizeof(Parameters) + ... + 0) <= 32764,
                  "CUDA 12.1 and later pass at most 32764 bytes of parameters");
    // Converted once, at the launch, and copied for each thread, as on the device.
    Closure closure{kernel_, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
    if (records_launches()) {
      record_launch(config_, std::apply(bytes_of_parameters, closure.parameters));
      return;
    }
    launch(
        config_,
        [](void* opaque) {
          const auto* closure = static_cast<const Closure*>(opaque);
          std::apply(closure->kernel, closure->parameters);
        },
        &closure);
  }

 private:
  struct Closure {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };

  // One after the other, each at the next offset that its alignment allows.
  static std::vector<unsigned char> bytes_of_parameters(const Parameters&... parameters) {
    std::vector<unsigned char> bytes;
    const auto append = [&bytes](const auto& parameter) {
      constexpr std::size_t kAlignment = alignof(decltype(parameter));
      const std::size_t begin = (bytes.size() + kAlignment - 1) / kAlignment * kAlignment;
      bytes.resize(begin + sizeof(parameter));
      std::memcpy(bytes.data() + begin, &parameter, sizeof(parameter));
    };
    (append(parameters), ...);
    return bytes;
  }

  void (*kernel_)(Parameters...);
  LaunchConfig config_;
};

// ---- warp shuffles -----------------------------------------------------------------------------

template <class T>
constexpr bool kShuffles =
    std::is_arithmetic<T>::value || std::is_same<T, __half>::value ||
    std::is_same<T, __half2>::value || std::is_same<T, __nv_bfloat16>::value ||
    std::is_same<T, __nv_bfloat162>::value;

// First lane of the segment of `width` lanes that the calling thread is in.
inline unsigned int segment_begin(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail("the width of a shuffle is a power of two up to 32, got " + std::to_string(width));
  }
  return current_thread->lane & ~(static_cast<unsigned int>(width) - 1u);
}

template <class T>
inline T shuffle(const char* name, unsigned int mask, T value, unsigned int source,
                 const char* file, int line) {
  static_assert(kShuffles<T> && sizeof(T) <= 8, "CUDA has no shuffle for this type");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(WarpCollective::kShuffle, name, mask, bits, source, file, line);
  T result;
  std::memcpy(&result, &bits, sizeof(T));
  return result;
}

}  // namespace cuda_on_cpu

// The defaults of `file` and `line` are those of the place where the kernel calls the function.
#define CUDA_ON_CPU_CALL_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

template <class T>
inline T __shfl_sync(unsigned int mask, T value, int source, int width = 32,
                     CUDA_ON_CPU_CALL_SITE) {
  const unsigned int begin = cuda_on_cpu::segment_begin(width);
  const unsigned int offset = static_cast<unsigned int>(source) & (width - 1u);
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, begin + offset, file, line);
}

template <class T>
inline T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32,
                        CUDA_ON_CPU_CALL_SITE) {
  const unsigned int lane = cuda_on_cpu::current_thread->lane;
  const bool inside = delta <= lane - cuda_on_cpu::segment_begin(width);
  const unsigned int source = inside ? lane - delta : lane;
  return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, source, file, line);
}

template <class T>
inline T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32,
                          CUDA_ON_CPU_CALL_SITE) {
  const unsigned int lane = cuda_on_cpu::current_thread->lane;
  const bool inside = delta < cuda_on_cpu::segment_begin(width) + width - lane;
  const unsigned int source = inside ? lane + delta : lane;
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, source, file, line);
}

template <class T>
inline T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = 32,
                         CUDA_ON_CPU_CALL_SITE) {
  const unsigned int lane = cuda_on_cpu::current_thread->lane;
  const unsigned int other = lane ^ static_cast<unsigned int>(lane_mask);
  // An earlier segment may be read, a later one may not.
  const bool readable = other < cuda_on_cpu::segment_begin(width) + width;
  const unsigned int source = readable ? other : lane;
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, source, file, line);
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, CUDA_ON_CPU_CALL_SITE) {
  using cuda_on_cpu::WarpCollective;
  return static_cast<unsigned int>(cuda_on_cpu::warp_collective(
      WarpCollective::kVote, "__ballot_sync", mask, predicate != 0, 0, file, line));
}

inline int __any_sync(unsigned int mask, int predicate, CUDA_ON_CPU_CALL_SITE) {
  using cuda_on_cpu::WarpCollective;
  return cuda_on_cpu::warp_collective(WarpCollective::kVote, "__any_sync", mask, predicate != 0, 0,
                                      file, line) != 0;
}

inline int __all_sync(unsigned int mask, int predicate, CUDA_ON_CPU_CALL_SITE) {
  using cuda_on_cpu::WarpCollective;
  return cuda_on_cpu::warp_collective(WarpCollective::kVote, "__all_sync", mask, predicate == 0, 0,
                                      file, line) == 0;
}

inline void __syncwarp(unsigned int mask = 0xffffffffu, CUDA_ON_CPU_CALL_SITE) {
  using cuda_on_cpu::WarpCollective;
  cuda_on_cpu::warp_collective(WarpCollective::kSync, "__syncwarp", mask, 0, 0, file, line);
}

inline void __syncthreads(CUDA_ON_CPU_CALL_SITE) { cuda_on_cpu::block_barrier(file, line); }

#undef CUDA_ON_CPU_CALL_SITE

// Which lanes are active together is not defined by the program text on any GPU since Volta.
unsigned int __activemask() = delete;

[[noreturn]] inline void __trap() { cuda_on_cpu::fail("__trap()"); }

constexpr int warpSize = 32;  // NOLINT: CUDA's name
#define threadIdx (::cuda_on_cpu::current_thread->thread_index)
#define blockIdx (::cuda_on_cpu::current_thread->block->block_index)
#define blockDim (::cuda_on_cpu::current_thread->block->block_dim)
#define gridDim (::cuda_on_cpu::current_thread->block->grid_dim)

// Integers only: the order of floating-point atomics decides their sum, and msr_cuda's results do
// not depend on the order of threads.
inline int atomicAdd(int* address, int value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline unsigned int atomicAdd(unsigned int* address, unsigned int value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// A kernel that takes more than 48 KB of shared memory must say so first, as on the device.
template <class... Parameters>
inline cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute,
                                        int value) {
  cuda_on_cpu::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), value);
  return cudaSuccess;
}
