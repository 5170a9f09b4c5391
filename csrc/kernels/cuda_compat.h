// What a kernel file includes instead of the CUDA runtime, so that one source serves two compilers:
// nvcc builds it for the GPU, and the test harness builds it with g++ -DMSR_CUDA_ON_CPU and runs
// the same kernels on the CPU (tests/harness). Only two things differ between the two and go
// through a macro: starting a kernel, and naming its dynamic shared memory.
//
//   MSR_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//     starts `kernel`. One whose name holds a comma stands in parentheses: (expand<float, 4>).
//   MSR_LAUNCH_NAMED(name, kernel, grid, block, shared_bytes, stream, arguments...)
//     the same; the harness counts the launch under `name` (anything a std::string is made from),
//     not under the kernel's spelling, which is the same for every instance launched from one
//     template. nvcc never evaluates `name`.
//   MSR_DYNAMIC_SHARED(type, name)
//     declares `type* const name`, the block's dynamic shared memory, aligned to 16 bytes.
#pragma once

#if defined(MSR_CUDA_ON_CPU)

#include "cuda_on_cpu.h"

#define MSR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  MSR_LAUNCH_NAMED(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

#define MSR_LAUNCH_NAMED(name, kernel, grid, block, shared_bytes, stream, ...) \
  ::cuda_on_cpu::KernelLaunch(name, kernel, grid, block, shared_bytes, stream)(__VA_ARGS__)

#define MSR_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::cuda_on_cpu::dynamic_shared<alignof(type)>())

#elif defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define MSR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

#define MSR_LAUNCH_NAMED(name, kernel, grid, block, shared_bytes, stream, ...) \
  MSR_LAUNCH(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

// Every kernel of a file declares the same array (of bytes), because extern __shared__ arrays of
// different types that share a name do not compile in templates.
#define MSR_DYNAMIC_SHARED(type, name)                                            \
  static_assert(alignof(type) <= 16, "dynamic shared memory is 16-byte aligned"); \
  extern __shared__ __align__(16) unsigned char msr_dynamic_shared_bytes[];       \
  type* const name = reinterpret_cast<type*>(msr_dynamic_shared_bytes)

#else
#error "cuda_compat.h: compile with nvcc, or with -DMSR_CUDA_ON_CPU and tests/harness to include"
#endif
