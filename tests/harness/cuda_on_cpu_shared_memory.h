// The kernels of this module and their static __shared__ variables, found in its symbol table.
//
// C++ gives a program no list of its functions or their static variables, but the compiled module
// has one: the specifiers of cuda_on_cpu.h tag the names of kernels and of shared variables.
#pragma once

#include <cstddef>
#include <map>
#include <string>
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

// Every kernel that was compiled into this module, each instance of a template by itself: its
// address, and its name as in "msr::scale_kernel<float, 4>".
const std::map<const void*, std::string>& compiled_kernels();

}  // namespace cuda_on_cpu
