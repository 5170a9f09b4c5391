#include "expand_kernel.cuh"
#include "expand_launch.h"

namespace msr {

const char* launch_expand_half(const GatherParams& params, const GatherChoice& choice,
                               void* stream) {
  return launch_expand<Half>(params, choice, stream);
}

}  // namespace msr
