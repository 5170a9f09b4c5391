// The launchers of EXPAND, one for each element type.
#pragma once

#include "launch.h"
#include "params.h"
#include "window_tables.h"

namespace msr {

// `choice` is one of kExpandVariants that fits, but for steps and turns. Null, or the text of the
// error.
const char* launch_expand_half(const GatherParams& params, const GatherChoice& choice,
                               void* stream);
const char* launch_expand_bfloat16(const GatherParams& params, const GatherChoice& choice,
                                   void* stream);
const char* launch_expand_float(const GatherParams& params, const GatherChoice& choice,
                                void* stream);

// The same of the extended kernels and those of windows, which read the tables of the call. There
// the element type is that of the maps.
const char* launch_extended_half(const GatherParams& params, const GatherChoice& choice,
                                 const WindowTables& tables, void* stream);
const char* launch_extended_bfloat16(const GatherParams& params, const GatherChoice& choice,
                                     const WindowTables& tables, void* stream);
const char* launch_extended_float(const GatherParams& params, const GatherChoice& choice,
                                  const WindowTables& tables, void* stream);

}  // namespace msr
