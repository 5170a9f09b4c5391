// From a choice to the instance of expand_kernel that it names.
#pragma once

#include <utility>

#include "expand_kernel.cuh"
#include "expand_launch.h"

namespace msr {

template <typename T, int kVariant>
void launch_expand_variant(const ExpandParams& params, cudaStream_t stream) {
  constexpr GatherChoice kChoice = kExpandVariants[kVariant];
  if constexpr (kChoice.vector * sizeof(T) <= 16) {
    constexpr bool kChannelsLast = kChoice.kernel == GatherKernel::kExpandChannelsLast;
    MSR_LAUNCH((expand_kernel<T, kChoice.vector, kChoice.sources, kChannelsLast>),
               dim3(params.num_blocks), dim3(params.threads), params.shared_bytes, stream, params);
  }
}

template <typename T, int... kVariants>
const char* launch_expand(const GatherParams& params, const GatherChoice& choice, void* stream,
                          std::integer_sequence<int, kVariants...>) {
  ExpandParams plan;
  if (!plan_expand(params, choice, plan)) return "launch_expand: the grid would be too large";
  const auto launch_if = [&](const GatherChoice& variant, auto launch) {
    const bool is_it = variant.kernel == choice.kernel && variant.vector == choice.vector &&
                       variant.sources == choice.sources;
    if (is_it) launch(plan, static_cast<cudaStream_t>(stream));
    return is_it;
  };
  const bool found =
      (launch_if(kExpandVariants[kVariants], launch_expand_variant<T, kVariants>) || ...);
  if (!found) return "launch_expand: there is no such variant";
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T>
const char* launch_expand(const GatherParams& params, const GatherChoice& choice, void* stream) {
  return launch_expand<T>(params, choice, stream,
                          std::make_integer_sequence<int, kNumExpandVariants>());
}

}  // namespace msr
