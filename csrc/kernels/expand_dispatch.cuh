// From a choice to the instance of a kernel that it names.
#pragma once

#include <type_traits>
#include <utility>

#include "cuda_compat.h"
#include "expand_plan.h"

namespace msr {

template <int kVariant>
using VariantNumber = std::integral_constant<int, kVariant>;

template <typename Launch, int... kVariants>
bool launch_variant(const GatherChoice& choice, const Launch& launch,
                    std::integer_sequence<int, kVariants...>) {
  const auto launch_if = [&](auto number) {
    constexpr GatherChoice kVariant = kExpandVariants[number()];
    if constexpr (Launch::has(kVariant)) {
      if (kVariant.kernel == choice.kernel && kVariant.vector == choice.vector &&
          kVariant.sources == choice.sources) {
        launch(number);
        return true;
      }
    }
    return false;
  };
  return (launch_if(VariantNumber<kVariants>()) || ...);
}

// Plans a call, and calls launch(the number of the choice in kExpandVariants). Launch::has tells
// which of the variants there are.
template <typename Launch>
const char* launch_planned(const GatherParams& params, const GatherChoice& choice, Launch launch) {
  if (!plan_expand(params, choice, launch.plan))
    return "launch_expand: the grid would be too large";
  if (!launch_variant(choice, launch, std::make_integer_sequence<int, kNumExpandVariants>()))
    return "launch_expand: there is no such variant";
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace msr
