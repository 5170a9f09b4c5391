// From tensors to the parameters of losses and decisions of resampled logits, the same for every
// device.
#pragma once

#include "../kernels/logit_params.h"
#include "prepare.h"

namespace msr {

// What the kernels are asked, and the tensors that hold what they give.
template <typename Params>
struct LogitsCall {
  Params params{};
  bool acc_is_double = false;
  std::vector<Tensor> tensors;  // results, in the operator's order, and what keeps inputs alive
};

inline LogitParams logit_params(const char* op, const Tensor& logits,
                                const std::vector<int64_t>& size, int64_t bits,
                                bool& acc_is_double) {
  const auto rank = static_cast<int64_t>(size.size());
  STD_TORCH_CHECK(rank >= 1 && rank <= kSpatialDims, op, ": expected 1 to 3 spatial axes, got ",
                  rank);
  const Spec spec = unpack_spec(op, bits, 1);
  STD_TORCH_CHECK(!is_pool(spec.modes[0]) && !spec.transposed, op,
                  ": expected a resampling, no pool and no adjoint");
  acc_is_double = logits.scalar_type() == ScalarType::Double;
  Branch branch{};
  branch.map = map_of(op, logits, rank);
  // Numbers of classes are also kept as float32.
  constexpr int64_t kMostClasses = int64_t{1} << 24;
  STD_TORCH_CHECK(branch.map.size[1] >= 1 && branch.map.size[1] <= kMostClasses, op,
                  ": expected 1 to ", kMostClasses, " classes, got ", branch.map.size[1]);
  int64_t common[kDims] = {branch.map.size[0], branch.map.size[1], 1, 1, 1};
  for (int64_t i = 0; i < rank; ++i) common[kDims - rank + i] = size[i];
  const std::vector<double> scales;
  const std::vector<int64_t> windows;
  set_axes(op, branch, common, spec, 0, rank, {scales, windows});
  LogitParams params{};
  params.logits = branch.map;
  for (int i = 0; i < kSpatialDims; ++i) {
    params.axis[i] = branch.axis[i];
    params.size[i] = common[2 + i];
  }
  return params;
}

// A contiguous tensor for every pixel of the result, or an empty one.
inline Tensor empty_pixels(const LogitParams& params, const std::vector<int64_t>& size,
                           int32_t dtype, bool wanted, const Tensor& like) {
  if (!wanted) return empty_vector(0, dtype, like);
  std::vector<int64_t> sizes{params.logits.size[0]};
  sizes.insert(sizes.end(), size.begin(), size.end());
  return empty_contiguous(sizes, dtype, like);
}

// Strides of a tensor [N, *size], or [N, C, *size], in five axes.
inline void set_pixel_strides(int64_t (&stride)[kDims], const Tensor& tensor, bool per_class) {
  const int first = per_class ? 2 : 1;
  const auto rank = tensor.dim() - first;
  for (int64_t& one : stride) one = 0;
  stride[0] = tensor.stride(0);
  if (per_class) stride[1] = tensor.stride(1);
  for (int64_t i = 0; i < rank; ++i) stride[kDims - rank + i] = tensor.stride(first + i);
}

inline void check_pixels(const char* op, const Tensor& tensor, const char* name,
                         const LogitParams& params, const std::vector<int64_t>& size,
                         bool per_class) {
  const int first = per_class ? 2 : 1;
  bool fits = tensor.dim() == static_cast<int64_t>(size.size()) + first &&
              tensor.size(0) == params.logits.size[0] &&
              (!per_class || tensor.size(1) == params.logits.size[1]);
  for (size_t i = 0; i < size.size() && fits; ++i)
    fits = tensor.size(first + static_cast<int64_t>(i)) == size[i];
  STD_TORCH_CHECK(fits, op, ": expected ", name, " of the size of the result");
}

inline IndexType index_type_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Byte:
      return IndexType::kUint8;
    case ScalarType::Short:
      return IndexType::kInt16;
    case ScalarType::Int:
      return IndexType::kInt32;
    case ScalarType::Long:
      return IndexType::kInt64;
    default:
      STD_TORCH_CHECK(false, op, ": expected class indices as uint8, int16, int32 or int64");
  }
}

// The arguments of a cross entropy.
struct CrossEntropyArguments {
  const Tensor& logits;
  const Tensor& target;
  const std::optional<Tensor>& weight;
  int64_t spec, ignore_index;
  double label_smoothing;
  int64_t reduction;
};

// The spatial size that a target has.
inline std::vector<int64_t> size_of_target(const char* op, const Tensor& logits,
                                           const Tensor& target) {
  const auto sizes = target.sizes();
  const int64_t first = target.dim() - (logits.dim() - 2);
  STD_TORCH_CHECK(first == 1 || first == 2, op, ": expected a target of ", logits.dim() - 1, " or ",
                  logits.dim(), " dimensions, got ", target.dim());
  return {sizes.begin() + first, sizes.end()};
}

inline CrossEntropyParams cross_entropy_params(const char* op,
                                               const CrossEntropyArguments& arguments,
                                               const std::vector<int64_t>& size,
                                               bool& acc_is_double) {
  const Tensor& target = arguments.target;
  CrossEntropyParams params{};
  params.logits = logit_params(op, arguments.logits, size, arguments.spec, acc_is_double);
  check_same_device(op, target, arguments.logits);
  params.target.probabilities = target.dim() == arguments.logits.dim();
  check_pixels(op, target, "a target", params.logits, size, params.target.probabilities);
  params.target.data = target.const_data_ptr();
  set_pixel_strides(params.target.stride, target, params.target.probabilities);
  if (params.target.probabilities) {
    params.target.dtype = dtype_of(op, target);
  } else {
    params.target.index_type = index_type_of(op, target);
  }
  if (arguments.weight) {
    check_same_device(op, *arguments.weight, arguments.logits);
    STD_TORCH_CHECK(has_type(*arguments.weight, acc_is_double) &&
                        arguments.weight->is_contiguous() && arguments.weight->dim() == 1 &&
                        arguments.weight->size(0) == params.logits.logits.size[1],
                    op, ": expected a contiguous weight per class, of the accumulation type");
    params.weight = arguments.weight->const_data_ptr();
  }
  params.ignore_index = arguments.ignore_index;
  params.label_smoothing = arguments.label_smoothing;
  STD_TORCH_CHECK(arguments.reduction >= 0 && arguments.reduction <= 2, op, ": unknown reduction ",
                  arguments.reduction);
  params.reduction = static_cast<LossReduction>(arguments.reduction);
  return params;
}

// Results: losses [N, *size], or their one sum or mean; log-sum-exp [N, *size]; sums of targets
// (empty for indices); what the mean divided by.
inline LogitsCall<CrossEntropyParams> prepare_cross_entropy(
    const CrossEntropyArguments& arguments) {
  const char* op = "msr_cuda::cross_entropy";
  LogitsCall<CrossEntropyParams> call;
  const Tensor& like = arguments.logits;
  const std::vector<int64_t> size = size_of_target(op, like, arguments.target);
  CrossEntropyParams& params = call.params;
  params = cross_entropy_params(op, arguments, size, call.acc_is_double);
  const int32_t dtype = sum_dtype(call.acc_is_double);
  const bool keeps_losses = params.reduction == LossReduction::kNone;
  const auto scalar = [&] { return empty_contiguous({}, dtype, like); };
  call.tensors = {keeps_losses ? empty_pixels(params.logits, size, dtype, true, like) : scalar(),
                  empty_pixels(params.logits, size, dtype, true, like),
                  empty_pixels(params.logits, size, dtype, params.target.probabilities, like),
                  scalar()};
  params.loss = keeps_losses ? call.tensors[0].mutable_data_ptr() : nullptr;
  params.lse = call.tensors[1].mutable_data_ptr();
  params.target_sums = params.target.probabilities ? call.tensors[2].mutable_data_ptr() : nullptr;
  return call;
}

// Results: the gradient of the logits.
inline LogitsCall<CrossEntropyBackwardParams> prepare_cross_entropy_backward(
    const Tensor& grad, const Tensor& lse, const Tensor& target_sums,
    const CrossEntropyArguments& arguments) {
  const char* op = "msr_cuda::cross_entropy_backward";
  LogitsCall<CrossEntropyBackwardParams> call;
  const std::vector<int64_t> size = size_of_target(op, arguments.logits, arguments.target);
  CrossEntropyBackwardParams& params = call.params;
  params.forward = cross_entropy_params(op, arguments, size, call.acc_is_double);
  const LogitParams& logits = params.forward.logits;
  for (const Tensor* one : {&grad, &lse, &target_sums}) {
    check_same_device(op, *one, arguments.logits);
    STD_TORCH_CHECK(has_type(*one, call.acc_is_double), op,
                    ": expected what was saved in the accumulation type");
  }
  check_pixels(op, grad, "a gradient", logits, size, false);
  check_pixels(op, lse, "a log-sum-exp", logits, size, false);
  STD_TORCH_CHECK(lse.is_contiguous() && target_sums.is_contiguous(), op,
                  ": expected what was saved to be contiguous");
  if (params.forward.target.probabilities)
    check_pixels(op, target_sums, "sums of targets", logits, size, false);
  params.forward.lse = const_cast<void*>(lse.const_data_ptr());
  params.forward.target_sums = const_cast<void*>(target_sums.const_data_ptr());
  params.grad = grad.const_data_ptr();
  set_pixel_strides(params.grad_stride, grad, false);
  params.logit_grads = logits.logits;
  params.logit_grads.channels_last = unpack_spec(op, arguments.spec, 1).channels_last;
  call.tensors = {
      allocate(params.logit_grads, static_cast<int64_t>(size.size()), arguments.logits)};
  return call;
}

// What is given for every resampled logit: [N, C, *size], broadcast by strides of 0.
inline LogitFactors logit_factors(const char* op, const std::optional<Tensor>& tensor,
                                  const char* name, const LogitParams& params,
                                  const std::vector<int64_t>& size, const Tensor& like) {
  LogitFactors factors{};
  if (!tensor) return factors;
  check_same_device(op, *tensor, like);
  check_pixels(op, *tensor, name, params, size, true);
  factors.data = tensor->const_data_ptr();
  set_pixel_strides(factors.stride, *tensor, true);
  const ScalarType type = tensor->scalar_type();
  factors.bytes = type == ScalarType::Byte || type == ScalarType::Bool;
  if (!factors.bytes) factors.dtype = dtype_of(op, *tensor);
  return factors;
}

struct BinaryArguments {
  const Tensor& logits;
  const Tensor& target;
  const std::optional<Tensor>& weight;
  const std::optional<Tensor>& pos_weight;
  int64_t spec;
};

inline BinaryParams binary_params(const char* op, const BinaryArguments& arguments,
                                  const std::vector<int64_t>& size, bool& acc_is_double) {
  BinaryParams params{};
  const Tensor& logits = arguments.logits;
  params.logits = logit_params(op, logits, size, arguments.spec, acc_is_double);
  params.target = logit_factors(op, arguments.target, "a target", params.logits, size, logits);
  params.weight = logit_factors(op, arguments.weight, "a weight", params.logits, size, logits);
  params.pos_weight =
      logit_factors(op, arguments.pos_weight, "pos_weight", params.logits, size, logits);
  return params;
}

// Results: losses [N, C, *size], or their one sum or mean.
inline LogitsCall<BinaryParams> prepare_binary(const BinaryArguments& arguments, bool reduced) {
  const char* op = "msr_cuda::binary_cross_entropy";
  LogitsCall<BinaryParams> call;
  const std::vector<int64_t> size = spatial_size(arguments.target);
  call.params = binary_params(op, arguments, size, call.acc_is_double);
  std::vector<int64_t> sizes;
  if (!reduced) {
    sizes = {call.params.logits.logits.size[0], call.params.logits.logits.size[1]};
    sizes.insert(sizes.end(), size.begin(), size.end());
  }
  call.tensors = {empty_contiguous(sizes, sum_dtype(call.acc_is_double), arguments.logits)};
  if (!reduced) call.params.loss = call.tensors[0].mutable_data_ptr();
  return call;
}

// Results: the gradient of the logits.
inline LogitsCall<BinaryParams> prepare_binary_backward(const Tensor& grad,
                                                        const BinaryArguments& arguments) {
  const char* op = "msr_cuda::binary_cross_entropy_backward";
  LogitsCall<BinaryParams> call;
  const std::vector<int64_t> size = spatial_size(arguments.target);
  BinaryParams& params = call.params;
  params = binary_params(op, arguments, size, call.acc_is_double);
  STD_TORCH_CHECK(has_type(grad, call.acc_is_double), op,
                  ": expected a gradient of the accumulation type");
  params.grad = logit_factors(op, grad, "a gradient", params.logits, size, arguments.logits);
  params.logit_grads = params.logits.logits;
  params.logit_grads.channels_last = unpack_spec(op, arguments.spec, 1).channels_last;
  call.tensors = {
      allocate(params.logit_grads, static_cast<int64_t>(size.size()), arguments.logits)};
  return call;
}

// Results: class indices, and their probabilities (empty unless wanted).
inline LogitsCall<ArgmaxParams> prepare_argmax(const Tensor& logits,
                                               const std::vector<int64_t>& size, int64_t spec,
                                               int64_t index_type, bool with_probability) {
  const char* op = "msr_cuda::argmax";
  LogitsCall<ArgmaxParams> call;
  ArgmaxParams& params = call.params;
  params.logits = logit_params(op, logits, size, spec, call.acc_is_double);
  STD_TORCH_CHECK(index_type >= 0 && index_type <= 3, op, ": unknown type of indices");
  params.index_type = static_cast<IndexType>(index_type);
  const int32_t types[] = {aoti_torch_dtype_uint8(), aoti_torch_dtype_int16(),
                           aoti_torch_dtype_int32(), aoti_torch_dtype_int64()};
  const int32_t dtype = sum_dtype(call.acc_is_double);
  call.tensors = {empty_pixels(params.logits, size, types[index_type], true, logits),
                  empty_pixels(params.logits, size, dtype, with_probability, logits)};
  params.index = call.tensors[0].mutable_data_ptr();
  params.probability = with_probability ? call.tensors[1].mutable_data_ptr() : nullptr;
  return call;
}

}  // namespace msr
