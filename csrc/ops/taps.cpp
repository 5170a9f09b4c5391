// A debug operator that shows the tap tables which the kernels use, so that tests on any machine
// compare the very code that runs on the GPU with the reference.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/resample_math.h"
#include "prepare.h"

namespace msr {
namespace {

// Rows are destinations (or, adjoint, sources). Returns the first index and the count of each row's
// taps, and all rows' float64 weights one after the other. single: the fraction as float32 kernels
// see it.
std::tuple<Tensor, Tensor, Tensor> taps(int64_t mode, int64_t in_size, int64_t out_size,
                                        double scale_factor, bool adjoint, bool single) {
  const char* op = "msr_cuda::taps";
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(mode >= 0 && mode < kNumModes, op, ": unknown mode ", mode);
  STD_TORCH_CHECK(in_size > 0 && out_size > 0 && in_size < limit && out_size < limit, op,
                  ": expected sizes in [1, 2^31), got ", in_size, " and ", out_size);
  const Axis axis = make_axis(static_cast<Mode>(mode), static_cast<int32_t>(in_size),
                              static_cast<int32_t>(out_size), scale_factor);
  const int32_t rows = adjoint ? axis.in_size : axis.out_size;
  const auto vector = [](int64_t size, int32_t dtype) {
    const int64_t stride = 1;
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &size, &stride, dtype,
                                                    aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
  };
  Tensor first = vector(rows, aoti_torch_dtype_int64()),
         count = vector(rows, aoti_torch_dtype_int64());
  auto* first_data = static_cast<int64_t*>(first.mutable_data_ptr());
  auto* count_data = static_cast<int64_t*>(count.mutable_data_ptr());
  std::vector<double> all;
  for (int32_t i = 0; i < rows; ++i) {
    const Range range = adjoint ? adjoint_support(axis, i) : support(axis, i);
    first_data[i] = range.begin;
    count_data[i] = range.end - range.begin;
    for (int32_t j = range.begin; j < range.end; ++j) {
      const int32_t d = adjoint ? j : i, s = adjoint ? i : j;
      all.push_back(single ? weight<float>(axis, d, s) : weight<double>(axis, d, s));
    }
  }
  Tensor weights = vector(static_cast<int64_t>(all.size()), aoti_torch_dtype_float64());
  std::copy(all.begin(), all.end(), static_cast<double*>(weights.mutable_data_ptr()));
  return {first, count, weights};
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CompositeExplicitAutograd, m) {
  m.impl("taps", TORCH_BOX(&msr::taps));
}
