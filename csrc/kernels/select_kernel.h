// Which kernel runs a call: pure functions of its parameters, on the host. Each fast path has
// several variants; a call takes the first of its list that fits, or else the general kernel, which
// fits everything. Tests ask for a variant by its number instead, and launchers refuse one that
// does not fit.
#pragma once

#include <cstdint>

#include "expand_plan.h"
#include "launch.h"
#include "params.h"
#include "spread_plan.h"

namespace msr {

// ---- gather-sum ---------------------------------------------------------------------------------

constexpr GatherChoice kGeneralGather = {GatherKernel::kGeneral, 1, 0, 0, 0};

// Whether a variant computes a call: element types, strides, alignment, ranges.
inline bool fits(const GatherParams& params, bool acc_is_double, const GatherChoice& choice) {
  if (choice.kernel == GatherKernel::kGeneral) return true;
  const bool has_all =
      is_extended(choice.kernel) ? params.reduction == Reduction::kSum : is_plain(params);
  return !acc_is_double && has_all && is_channels_last(choice.kernel) == params.out.channels_last &&
         expand_fits(params, choice);
}

inline GatherChoice select_kernel(const GatherParams& params, bool acc_is_double) {
  // To plain kernels a constant is a map to resample, to extended ones a number.
  bool has_constants = false;
  for (int b = 0; b < params.num_branches; ++b) has_constants |= is_constant(params.branches[b]);
  for (const bool plain : {!has_constants, has_constants}) {
    for (const GatherChoice& variant : kExpandVariants) {
      if (is_extended(variant.kernel) != plain && fits(params, acc_is_double, variant))
        return variant;
    }
  }
  return kGeneralGather;
}

// ---- spread -------------------------------------------------------------------------------------

// Branches choose between the instances of a kernel one by one, where plan_spread (spread_plan.h)
// sorts them into launches; those that the kernel cannot write go to the general one.
inline SpreadChoice select_kernel(const SpreadParams& params, bool acc_is_double) {
  SpreadChoice choice{SpreadKernel::kGeneral, kMaxVector, kMaxGroup, 0, true};
  if (acc_is_double) return choice;
  for (const auto kernel : {SpreadKernel::kPlanar, SpreadKernel::kChannelsLast}) {
    choice.kernel = kernel;
    if (detail::fitting_branches(params, choice) != 0) return choice;
  }
  choice.kernel = SpreadKernel::kGeneral;
  return choice;
}

}  // namespace msr
