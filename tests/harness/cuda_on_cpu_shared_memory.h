// The static __shared__ variables of this module's kernels, found in its symbol table.
//
// C++ gives a program no list of its function-local statics, but the compiled module has one: the
// specifiers of cuda_on_cpu.h tag the names of kernels and of shared variables.
#pragma once

#include <cstddef>
#include <vector>

namespace cuda_on_cpu {

struct SharedVariable {
  std::size_t offset;  // from the module's load address, or from its thread-local block
  std::size_t bytes;
  bool thread_local_storage;

  // Where the calling OS thread has it.
  void* address() const;
};

struct StaticShared {
  // The variables that a block of the kernel may use: its own, and those of every __device__
  // function of the module (which of them the kernel calls is not known).
  std::vector<SharedVariable> variables;
  std::size_t own_bytes;
};

StaticShared static_shared_of(const void* kernel);

}  // namespace cuda_on_cpu
