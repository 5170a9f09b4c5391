#include "reduce_planar_kernel.cuh"

namespace msr {
namespace {

template <typename T, int V, int kColumns>
void start(const char* name, const SpreadParams& params, const ReduceLaunch& launch, void* stream) {
  static_assert(
      sizeof(T) == 4 ? kColumns == 4 : kColumns == reduce_planar_columns(DType::kFloat16, V),
      "what the plan counts on");
  const dim3 grid(static_cast<unsigned>(launch.blocks()));
  MSR_LAUNCH_NAMED(name, (reduce_planar_kernel<T, V, kColumns>), grid, dim3(launch.threads),
                   static_cast<size_t>(launch.shared_bytes), static_cast<cudaStream_t>(stream),
                   params, launch);
}

#define MSR_INSTANCE(T, dtype, V, kColumns) \
  {"reduce_planar_kernel<" #T ", " #V ", " #kColumns ">", dtype, V, 1, start<T, V, kColumns>}

constexpr ReduceInstance kInstances[] = {
    MSR_INSTANCE(float, DType::kFloat32, 4, 4),     MSR_INSTANCE(float, DType::kFloat32, 1, 4),
    MSR_INSTANCE(Half, DType::kFloat16, 8, 8),      MSR_INSTANCE(Half, DType::kFloat16, 2, 8),
    MSR_INSTANCE(Half, DType::kFloat16, 1, 4),      MSR_INSTANCE(BFloat16, DType::kBFloat16, 8, 8),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 2, 8), MSR_INSTANCE(BFloat16, DType::kBFloat16, 1, 4),
};

}  // namespace

ReduceInstances reduce_planar_instances() {
  return {kInstances, static_cast<int>(sizeof kInstances / sizeof kInstances[0])};
}

}  // namespace msr
