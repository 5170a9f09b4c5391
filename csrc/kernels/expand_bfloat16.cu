#include "expand_kernel.cuh"
#include "expand_launch.h"

namespace msr {

const char* launch_expand_bfloat16(const GatherParams& params, const GatherChoice& choice,
                                   void* stream) {
  return launch_expand<BFloat16>(params, choice, stream);
}

}  // namespace msr
