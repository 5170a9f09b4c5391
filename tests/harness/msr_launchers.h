#pragma once

#include <vector>

#include "launchers.h"

namespace msr::harness {

// Those of msr_cuda's kernels.
const std::vector<Launcher>& msr_launchers();

}  // namespace msr::harness
