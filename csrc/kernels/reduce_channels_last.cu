#include "reduce_channels_last_kernel.cuh"

namespace msr {
namespace {

template <typename T, int V, int kRows>
void start(const char* name, const SpreadParams& params, const ReduceLaunch& launch,
           const WindowTables& tables, void* stream) {
  const dim3 grid(static_cast<unsigned>(launch.blocks()));
  TablesFor<kRows> own_tables;
  if constexpr (kRows == kWindowTapRows) own_tables = tables;
  MSR_LAUNCH_NAMED(name, (reduce_channels_last_kernel<T, V, kRows>), grid, dim3(launch.threads),
                   static_cast<size_t>(launch.shared_bytes), static_cast<cudaStream_t>(stream),
                   params, launch, own_tables);
}

#define MSR_INSTANCE(T, dtype, V, kRows)                      \
  {"reduce_channels_last_kernel<" #T ", " #V ", " #kRows ">", \
   dtype,                                                     \
   V,                                                         \
   1,                                                         \
   kRows,                                                     \
   start<T, V, kRows>}
static_assert(kTapRows == 2 && kWindowTapRows == 4, "the instances below");
constexpr ReduceInstance kInstances[] = {
    MSR_INSTANCE(float, DType::kFloat32, 4, 2),
    MSR_INSTANCE(float, DType::kFloat32, 1, 2),
    MSR_INSTANCE(Half, DType::kFloat16, 8, 2),
    MSR_INSTANCE(Half, DType::kFloat16, 2, 2),
    MSR_INSTANCE(Half, DType::kFloat16, 1, 2),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 8, 2),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 2, 2),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 1, 2),
    // Windows.
    MSR_INSTANCE(float, DType::kFloat32, 4, 4),
    MSR_INSTANCE(float, DType::kFloat32, 1, 4),
    MSR_INSTANCE(Half, DType::kFloat16, 8, 4),
    MSR_INSTANCE(Half, DType::kFloat16, 1, 4),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 8, 4),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 1, 4),
};

}  // namespace

ReduceInstances reduce_channels_last_instances() {
  return {kInstances, static_cast<int>(sizeof kInstances / sizeof kInstances[0])};
}

}  // namespace msr
