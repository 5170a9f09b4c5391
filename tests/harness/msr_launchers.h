#pragma once

#include <vector>

#include "launchers.h"

namespace msr::harness {

// Those of msr_cuda's kernels: of maps,
const std::vector<Launcher>& msr_launchers();
// and of losses and decisions of resampled logits.
const std::vector<Launcher>& loss_launchers();

}  // namespace msr::harness
