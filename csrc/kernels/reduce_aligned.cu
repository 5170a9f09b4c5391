#include "reduce_aligned_kernel.cuh"

namespace msr {
namespace {

template <typename T, int V, int kGroup>
void start(const char* name, const SpreadParams& params, const ReduceLaunch& launch,
           const WindowTables&, void* stream) {
  const dim3 grid(static_cast<unsigned>(launch.blocks()));
  MSR_LAUNCH_NAMED(name, (reduce_aligned_kernel<T, V, kGroup>), grid, dim3(launch.threads),
                   static_cast<size_t>(launch.shared_bytes), static_cast<cudaStream_t>(stream),
                   params, launch);
}

#define MSR_INSTANCE(T, dtype, V, kGroup)                \
  {"reduce_aligned_kernel<" #T ", " #V ", " #kGroup ">", \
   dtype,                                                \
   V,                                                    \
   kGroup,                                               \
   kTapRows,                                             \
   start<T, V, kGroup>}
static_assert(kMaxGroup == 3, "the instances below");
constexpr ReduceInstance kInstances[] = {
    MSR_INSTANCE(float, DType::kFloat32, 4, 1),     MSR_INSTANCE(float, DType::kFloat32, 4, 3),
    MSR_INSTANCE(Half, DType::kFloat16, 8, 1),      MSR_INSTANCE(Half, DType::kFloat16, 8, 3),
    MSR_INSTANCE(Half, DType::kFloat16, 4, 1),      MSR_INSTANCE(Half, DType::kFloat16, 4, 3),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 8, 1), MSR_INSTANCE(BFloat16, DType::kBFloat16, 8, 3),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 4, 1), MSR_INSTANCE(BFloat16, DType::kBFloat16, 4, 3),
};

}  // namespace

ReduceInstances reduce_aligned_instances() {
  return {kInstances, static_cast<int>(sizeof kInstances / sizeof kInstances[0])};
}

}  // namespace msr
