#include "reduce_channels_last_kernel.cuh"

namespace msr {
namespace {

template <typename T, int V>
void start(const char* name, const SpreadParams& params, const ReduceLaunch& launch, void* stream) {
  const dim3 grid(static_cast<unsigned>(launch.blocks()));
  MSR_LAUNCH_NAMED(name, (reduce_channels_last_kernel<T, V>), grid, dim3(launch.threads),
                   static_cast<size_t>(launch.shared_bytes), static_cast<cudaStream_t>(stream),
                   params, launch);
}

#define MSR_INSTANCE(T, dtype, V) \
  {"reduce_channels_last_kernel<" #T ", " #V ">", dtype, V, 1, start<T, V>}

constexpr ReduceInstance kInstances[] = {
    MSR_INSTANCE(float, DType::kFloat32, 4),     MSR_INSTANCE(float, DType::kFloat32, 1),
    MSR_INSTANCE(Half, DType::kFloat16, 8),      MSR_INSTANCE(Half, DType::kFloat16, 2),
    MSR_INSTANCE(Half, DType::kFloat16, 1),      MSR_INSTANCE(BFloat16, DType::kBFloat16, 8),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 2), MSR_INSTANCE(BFloat16, DType::kBFloat16, 1),
};

}  // namespace

ReduceInstances reduce_channels_last_instances() {
  return {kInstances, static_cast<int>(sizeof kInstances / sizeof kInstances[0])};
}

}  // namespace msr
