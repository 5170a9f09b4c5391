// The launchers of EXPAND, one for each element type.
#pragma once

#include "launch.h"
#include "params.h"

namespace msr {

// `choice` is one of kExpandVariants that fits, but for steps and turns. Null, or the text of the
// error.
const char* launch_expand_half(const GatherParams& params, const GatherChoice& choice,
                               void* stream);
const char* launch_expand_bfloat16(const GatherParams& params, const GatherChoice& choice,
                                   void* stream);
const char* launch_expand_float(const GatherParams& params, const GatherChoice& choice,
                                void* stream);

}  // namespace msr
