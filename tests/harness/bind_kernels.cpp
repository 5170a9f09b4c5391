#include "bind_kernels.h"

#include "msr_launchers.h"

namespace msr::harness {

void bind_kernels(pybind11::module_& module) {
  bind_launchers(module, msr_launchers());
  bind_launchers(module, loss_launchers());
}

}  // namespace msr::harness
