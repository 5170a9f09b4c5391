// From tensors and packed arguments to the kernels' parameters: checks, allocation and strides, the
// same for every device. Public functions have validated already, with friendlier messages; these
// checks keep a direct call of a raw operator from reading or writing out of bounds.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "../kernels/params.h"

namespace msr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The packed enumerations of an operator call; msr_cuda/_spec.py writes them and documents the
// bits.
struct Spec {
  Mode modes[kMaxInputs];
  Activation activation;
  bool cat;
  bool channels_last;
  bool save_mask;
  bool acc_is_double;
  DType dtype;
};

inline Spec unpack_spec(const char* op, int64_t bits, int num_branches, bool cuda) {
  const int num_modes = cuda ? kNumCudaModes : kNumModes;
  Spec spec;
  for (int i = 0; i < kMaxInputs; ++i) {
    const int64_t mode = (bits >> (4 * i)) & 15;
    STD_TORCH_CHECK(i >= num_branches || mode < num_modes, op, ": unknown mode ", mode,
                    " for input ", i);
    spec.modes[i] = static_cast<Mode>(mode);
  }
  const int64_t activation = (bits >> 32) & 15;
  STD_TORCH_CHECK(activation <= static_cast<int64_t>(Activation::kRelu), op,
                  ": unknown activation ", activation);
  spec.activation = static_cast<Activation>(activation);
  spec.cat = (bits >> 36) & 1;
  spec.channels_last = (bits >> 37) & 1;
  spec.dtype = static_cast<DType>((bits >> 38) & 3);
  spec.save_mask = (bits >> 40) & 1;
  spec.acc_is_double = (bits >> 41) & 1;
  return spec;
}

// What is asked of one branch of a spread; four bits each.
struct BranchRequest {
  bool wanted;
  bool channels_last;
  DType dtype;
};

inline BranchRequest unpack_request(int64_t bits, int branch) {
  const int64_t request = bits >> (4 * branch);
  return {(request & 1) != 0, (request & 2) != 0, static_cast<DType>((request >> 2) & 3)};
}

inline DType dtype_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float16, bfloat16 or float64");
  }
}

inline void check_same_device(const char* op, const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(), op,
                  ": expected all tensors on one device");
}

// Sizes [N, C, *spatial] to five axes, the missing spatial ones in front.
template <typename Sizes>
void set_sizes(Map& map, const Sizes& sizes, int64_t rank) {
  int64_t all[kDims] = {sizes[0], sizes[1], 1, 1, 1};
  for (int64_t i = 0; i < rank; ++i) all[kDims - rank + i] = sizes[2 + i];
  set_sizes(map, all);
}

inline void set_strides(int64_t (&stride)[kDims], const Tensor& tensor, int64_t rank) {
  for (int i = 0; i < kDims; ++i) stride[i] = 0;
  stride[0] = tensor.stride(0);
  stride[1] = tensor.stride(1);
  for (int64_t i = 0; i < rank; ++i) stride[kDims - rank + i] = tensor.stride(2 + i);
}

inline Map map_of(const char* op, const Tensor& tensor, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank + 2, op, ": expected a map of ", rank + 2,
                  " dimensions, got ", tensor.dim());
  Map map;
  map.data = const_cast<void*>(tensor.const_data_ptr());
  map.dtype = dtype_of(op, tensor);
  map.channels_last = false;
  set_sizes(map, tensor.sizes(), rank);
  set_strides(map.stride, tensor, rank);
  return map;
}

// An uninitialised tensor on the device of `like`.
inline Tensor empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides,
                            int32_t dtype, const Tensor& like) {
  const int32_t device =
      like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, dtype, device,
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
}

// A one-dimensional one.
inline Tensor empty_vector(int64_t size, int32_t dtype, const Tensor& like) {
  const int64_t stride = 1;
  return empty_strided(1, &size, &stride, dtype, like);
}

// A dense, uninitialised tensor for `map`, whose sizes, dtype and channels_last are set; sets data
// and strides.
inline Tensor allocate(Map& map, int64_t rank, const Tensor& like) {
  int64_t sizes[kDims] = {map.size[0], map.size[1]};
  int64_t strides[kDims];
  for (int64_t i = 0; i < rank; ++i) sizes[2 + i] = map.size[kDims - rank + i];
  int64_t step = 1;
  const auto place = [&](int64_t axis) {
    strides[axis] = step;
    step *= sizes[axis] > 1 ? sizes[axis] : 1;
  };
  if (map.channels_last) place(1);
  for (int64_t axis = rank + 1; axis >= 2; --axis) place(axis);
  if (!map.channels_last) place(1);
  place(0);
  int32_t dtype = aoti_torch_dtype_float32();
  if (map.dtype == DType::kFloat16) dtype = aoti_torch_dtype_float16();
  if (map.dtype == DType::kBFloat16) dtype = aoti_torch_dtype_bfloat16();
  if (map.dtype == DType::kFloat64) dtype = aoti_torch_dtype_float64();
  Tensor tensor = empty_strided(rank + 2, sizes, strides, dtype, like);
  map.data = tensor.mutable_data_ptr();
  set_strides(map.stride, tensor, rank);
  return tensor;
}

// One bit per element, in whole 32-bit words: a warp writes one.
inline int64_t mask_bytes(const Map& map) { return 4 * ceil_div(numel(map), 32); }

// The axes of a branch that is related to a map of `size`; scales: empty, or one factor per input
// and spatial axis.
inline void set_axes(const char* op, Branch& branch, const int64_t (&size)[kDims], Mode mode,
                     const double* scales, int64_t rank) {
  for (int i = 0; i < kSpatialDims; ++i) {
    const int64_t in = branch.map.size[2 + i], out = size[2 + i];
    STD_TORCH_CHECK(in > 0 && out > 0, op, ": expected spatial sizes above 0, got ", in, " and ",
                    out);
    constexpr int64_t limit = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(in < limit && out < limit, op, ": expected every axis below 2^31, got ", in,
                    " and ", out);
    const int64_t axis = i - (kSpatialDims - rank);
    branch.axis[i] = make_axis(mode, static_cast<int32_t>(in), static_cast<int32_t>(out),
                               scales && axis >= 0 ? scales[axis] : 0.0);
  }
}

inline void check_weights(const char* op, const Tensor& weights, int64_t count, bool acc_is_double,
                          const Tensor& like) {
  check_same_device(op, weights, like);
  STD_TORCH_CHECK(weights.dim() == 1 && weights.size(0) == count && weights.is_contiguous(), op,
                  ": expected contiguous weights [", count, "]");
  STD_TORCH_CHECK(weights.scalar_type() == (acc_is_double ? ScalarType::Double : ScalarType::Float),
                  op, ": expected weights of the accumulation type");
}

inline void check_mask(const char* op, const Tensor& mask, const Map& map, const Tensor& like) {
  check_same_device(op, mask, like);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte && mask.dim() == 1 &&
                      mask.is_contiguous() && mask.size(0) == mask_bytes(map),
                  op, ": expected a mask of ", mask_bytes(map), " contiguous uint8");
}

struct GatherCall {
  GatherParams params;
  bool acc_is_double;
  Tensor out, mask;
};

inline GatherCall prepare_gather(const std::vector<Tensor>& inputs,
                                 const std::optional<Tensor>& weights,
                                 const std::optional<Tensor>& gate,
                                 const std::vector<int64_t>& size, int64_t spec_bits,
                                 const std::vector<double>& scales) {
  const char* op = "msr_cuda::gather";
  const int count = static_cast<int>(inputs.size());
  const auto rank = static_cast<int64_t>(size.size());
  STD_TORCH_CHECK(count >= 1 && count <= kMaxInputs, op, ": expected 1 to ", kMaxInputs,
                  " inputs, got ", count);
  STD_TORCH_CHECK(rank >= 1 && rank <= kSpatialDims, op, ": expected 1 to 3 spatial sizes, got ",
                  rank);
  STD_TORCH_CHECK(scales.empty() || scales.size() == static_cast<size_t>(count * rank), op,
                  ": expected ", count * rank, " scales, got ", scales.size());
  const Spec spec = unpack_spec(op, spec_bits, count, inputs[0].is_cuda());

  GatherCall call;
  GatherParams& params = call.params;
  params.num_branches = count;
  params.activation = spec.activation;
  call.acc_is_double = spec.acc_is_double;
  int64_t batch = 1, channels = 0;
  for (int i = 0; i < count; ++i) {
    check_same_device(op, inputs[i], inputs[0]);
    params.branches[i].map = map_of(op, inputs[i], rank);
    const Map& map = params.branches[i].map;
    if (map.size[0] != 1) batch = map.size[0];
    params.branches[i].channel_begin = spec.cat ? channels : 0;
    STD_TORCH_CHECK(spec.cat || i == 0 || map.size[1] == channels, op, ": expected ", channels,
                    " channels, got ", map.size[1]);
    channels = spec.cat ? channels + map.size[1] : map.size[1];
  }
  Map& out = params.out;
  std::vector<int64_t> out_sizes = {batch, channels};
  out_sizes.insert(out_sizes.end(), size.begin(), size.end());
  set_sizes(out, out_sizes, rank);
  out.dtype = spec.dtype;
  out.channels_last = spec.channels_last;
  for (int i = 0; i < count; ++i) {
    Branch& branch = params.branches[i];
    STD_TORCH_CHECK(branch.map.size[0] == batch || branch.map.size[0] == 1, op,
                    ": expected a batch of ", batch, " or 1, got ", branch.map.size[0]);
    if (branch.map.size[0] != batch) branch.map.stride[0] = 0;
    set_axes(op, branch, out.size, spec.modes[i],
             scales.empty() ? nullptr : scales.data() + i * rank, rank);
  }
  params.weights = nullptr;
  if (weights) {
    check_weights(op, *weights, count, call.acc_is_double, inputs[0]);
    params.weights = weights->const_data_ptr();
  }
  params.gate = nullptr;
  if (gate) {
    check_mask(op, *gate, out, inputs[0]);
    params.gate = static_cast<const uint8_t*>(gate->const_data_ptr());
  }
  call.out = allocate(out, rank, inputs[0]);
  call.mask =
      empty_vector(spec.save_mask ? mask_bytes(out) : 0, aoti_torch_dtype_uint8(), inputs[0]);
  params.mask = spec.save_mask ? static_cast<uint8_t*>(call.mask.mutable_data_ptr()) : nullptr;
  return call;
}

struct SpreadCall {
  SpreadParams params;
  bool acc_is_double;
  std::vector<Tensor> grads;  // of the wanted branches, in order
  int64_t rank;
};

// shapes: [N, C, *spatial] of every branch, one after the other. inputs: empty, or every branch's
// forward value, for the gradient of the weights.
inline SpreadCall prepare_spread(const Tensor& grad, const std::optional<Tensor>& gate,
                                 const std::optional<Tensor>& weights,
                                 const std::vector<Tensor>& inputs,
                                 const std::vector<int64_t>& shapes, int64_t spec_bits,
                                 int64_t requests, const std::vector<double>& scales) {
  const char* op = "msr_cuda::spread";
  const int64_t dims = grad.dim();
  STD_TORCH_CHECK(dims >= 3 && dims <= kDims, op,
                  ": expected a gradient of 3 to 5 dimensions, got ", dims);
  STD_TORCH_CHECK(
      !shapes.empty() && shapes.size() % dims == 0 && shapes.size() / dims <= kMaxInputs, op,
      ": expected shapes of 1 to ", kMaxInputs, " maps of ", dims, " dimensions");
  const int count = static_cast<int>(shapes.size() / dims);
  SpreadCall call;
  call.rank = dims - 2;
  STD_TORCH_CHECK(scales.empty() || scales.size() == static_cast<size_t>(count * call.rank), op,
                  ": expected ", count * call.rank, " scales, got ", scales.size());
  STD_TORCH_CHECK(inputs.empty() || inputs.size() == static_cast<size_t>(count), op,
                  ": expected no inputs or ", count);
  const Spec spec = unpack_spec(op, spec_bits, count, grad.is_cuda());

  SpreadParams& params = call.params;
  params.num_branches = count;
  params.grad = map_of(op, grad, call.rank);
  params.grad.channels_last = spec.channels_last;
  call.acc_is_double = spec.acc_is_double;
  int64_t channels = 0;
  for (int i = 0; i < count; ++i) {
    Branch& branch = params.branches[i];
    Map& map = branch.map;
    const int64_t* shape = shapes.data() + i * dims;
    for (int64_t k = 0; k < dims; ++k)
      STD_TORCH_CHECK(shape[k] >= 0, op, ": expected sizes of at least 0");
    set_sizes(map, shape, call.rank);
    STD_TORCH_CHECK(map.size[0] == params.grad.size[0] || map.size[0] == 1, op,
                    ": expected a batch of ", params.grad.size[0], " or 1, got ", map.size[0]);
    branch.channel_begin = spec.cat ? channels : 0;
    channels = branch.channel_begin + map.size[1];
    STD_TORCH_CHECK(spec.cat ? channels <= params.grad.size[1] : channels == params.grad.size[1],
                    op, ": expected ", params.grad.size[1], " channels, got ", channels);
    set_axes(op, branch, params.grad.size, spec.modes[i],
             scales.empty() ? nullptr : scales.data() + i * call.rank, call.rank);
    const BranchRequest request = unpack_request(requests, i);
    map.dtype = request.dtype;
    map.channels_last = request.channels_last;
    map.data = nullptr;
    params.inputs[i] = nullptr;
    if (!inputs.empty()) {
      check_same_device(op, inputs[i], grad);
      const Map value = map_of(op, inputs[i], call.rank);
      for (int k = 0; k < kDims; ++k) {
        STD_TORCH_CHECK(value.size[k] == map.size[k], op, ": expected input ", i,
                        " to have its given shape");
        params.input_stride[i][k] = value.stride[k];
      }
      params.inputs[i] = value.data;
      params.input_dtype[i] = value.dtype;
    }
  }
  params.weights = nullptr;
  if (weights) {
    check_weights(op, *weights, count, call.acc_is_double, grad);
    params.weights = weights->const_data_ptr();
  }
  params.gate = nullptr;
  if (gate) {
    check_mask(op, *gate, params.grad, grad);
    params.gate = static_cast<const uint8_t*>(gate->const_data_ptr());
  }
  params.partial_dots = nullptr;
  for (int i = 0; i < count; ++i) {
    if (unpack_request(requests, i).wanted)
      call.grads.push_back(allocate(params.branches[i].map, call.rank, grad));
  }
  return call;
}

// Room for the gradients of the weights, of the accumulation type; empty where they are not wanted.
inline Tensor allocate_dots(const SpreadCall& call, bool wanted, const Tensor& like) {
  return empty_vector(wanted ? call.params.num_branches : 0,
                      call.acc_is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(),
                      like);
}

}  // namespace msr
