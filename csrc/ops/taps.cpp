// A debug operator that shows the tap tables which the kernels use, so that tests on any machine
// compare the very code that runs on the GPU with the reference.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/tap_lists.h"
#include "prepare.h"

namespace msr {
namespace {

template <typename element_t, typename T>
Tensor copy_of(const std::vector<T>& values, int32_t dtype) {
  const auto size = static_cast<int64_t>(values.size());
  const int64_t stride = 1;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(1, &size, &stride, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  std::copy(values.begin(), values.end(), static_cast<element_t*>(tensor.mutable_data_ptr()));
  return tensor;
}

template <typename acc_t>
std::tuple<Tensor, Tensor, Tensor> tensors_of(const TapLists<acc_t>& lists) {
  return {copy_of<int64_t>(lists.first, aoti_torch_dtype_int64()),
          copy_of<int64_t>(lists.count, aoti_torch_dtype_int64()),
          copy_of<double>(lists.weights, aoti_torch_dtype_float64())};
}

// Rows are destinations (or, adjoint, sources). Returns the first index and the count of each row's
// taps, and all rows' float64 weights one after the other. single: the fraction as float32 kernels
// see it.
std::tuple<Tensor, Tensor, Tensor> taps(int64_t mode, int64_t in_size, int64_t out_size,
                                        double scale_factor, bool adjoint, bool single) {
  const char* op = "msr_cuda::taps";
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(mode >= 0 && mode < static_cast<int64_t>(Mode::kAveragePool), op,
                  ": unknown mode ", mode);
  STD_TORCH_CHECK(in_size > 0 && out_size > 0 && in_size < limit && out_size < limit, op,
                  ": expected sizes in [1, 2^31), got ", in_size, " and ", out_size);
  Axis axis = make_axis(static_cast<Mode>(mode), static_cast<int32_t>(in_size),
                        static_cast<int32_t>(out_size), scale_factor);
  axis.transposed = adjoint;
  return single ? tensors_of(list_taps<float>(axis)) : tensors_of(list_taps<double>(axis));
}

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CompositeExplicitAutograd, m) {
  m.impl("taps", TORCH_BOX(&msr::taps));
}
