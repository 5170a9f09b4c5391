#include "reduce_planar_kernel.cuh"

namespace msr {
namespace {

template <typename T, int V, int kColumns, int kRows>
void start(const char* name, const SpreadParams& params, const ReduceLaunch& launch,
           const WindowTables& tables, void* stream) {
  constexpr DType kDType = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat16;
  static_assert(kColumns == reduce_planar_columns(kDType, V, kRows), "what the plan counts on");
  const dim3 grid(static_cast<unsigned>(launch.blocks()));
  TablesFor<kRows> own_tables;
  if constexpr (kRows == kWindowTapRows) own_tables = tables;
  MSR_LAUNCH_NAMED(name, (reduce_planar_kernel<T, V, kColumns, kRows>), grid, dim3(launch.threads),
                   static_cast<size_t>(launch.shared_bytes), static_cast<cudaStream_t>(stream),
                   params, launch, own_tables);
}

#define MSR_INSTANCE(T, dtype, V, kColumns, kRows)                    \
  {"reduce_planar_kernel<" #T ", " #V ", " #kColumns ", " #kRows ">", \
   dtype,                                                             \
   V,                                                                 \
   1,                                                                 \
   kRows,                                                             \
   start<T, V, kColumns, kRows>}
static_assert(kTapRows == 2 && kWindowTapRows == 4, "the instances below");
constexpr ReduceInstance kInstances[] = {
    MSR_INSTANCE(float, DType::kFloat32, 4, 4, 2),
    MSR_INSTANCE(float, DType::kFloat32, 1, 4, 2),
    MSR_INSTANCE(Half, DType::kFloat16, 8, 8, 2),
    MSR_INSTANCE(Half, DType::kFloat16, 2, 8, 2),
    MSR_INSTANCE(Half, DType::kFloat16, 1, 4, 2),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 8, 8, 2),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 2, 8, 2),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 1, 4, 2),
    // Windows, factors of pixels, leaky gates.
    MSR_INSTANCE(float, DType::kFloat32, 4, 4, 4),
    MSR_INSTANCE(float, DType::kFloat32, 1, 4, 4),
    MSR_INSTANCE(Half, DType::kFloat16, 4, 4, 4),
    MSR_INSTANCE(Half, DType::kFloat16, 1, 4, 4),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 4, 4, 4),
    MSR_INSTANCE(BFloat16, DType::kBFloat16, 1, 4, 4),
};

}  // namespace

ReduceInstances reduce_planar_instances() {
  return {kInstances, static_cast<int>(sizeof kInstances / sizeof kInstances[0])};
}

}  // namespace msr
