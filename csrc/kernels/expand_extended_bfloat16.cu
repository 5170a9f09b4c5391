#include "expand_extended_kernel.cuh"
#include "expand_launch.h"

namespace msr {

const char* launch_extended_bfloat16(const GatherParams& params, const GatherChoice& choice,
                                     const WindowTables& tables, void* stream) {
  return launch_extended<BFloat16>(params, choice, tables, stream);
}

}  // namespace msr
