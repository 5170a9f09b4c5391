// From tensors and packed arguments to the kernels' parameters: checks, allocation and strides, the
// same for every device. Public functions have validated already, with friendlier messages; these
// checks keep a direct call of a raw operator from reading or writing out of bounds.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../kernels/params.h"

namespace msr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The packed enumerations of an operator call; msr_cuda/_spec.py writes them and documents the
// bits.
struct Spec {
  Mode modes[kMaxBranches];
  Activation activation;
  Reduction reduction;
  bool cat;
  bool channels_last;
  bool save_mask;
  bool acc_is_double;
  bool transposed;
  bool accumulate;
  double gate_off;  // what a gate's bit of 0 multiplies with
  DType dtype;
};

inline Spec unpack_spec(const char* op, int64_t bits, int num_branches) {
  Spec spec;
  for (int i = 0; i < kMaxBranches; ++i) {
    const int64_t mode = (bits >> (4 * i)) & 15;
    STD_TORCH_CHECK(i >= num_branches || mode < kNumModes, op, ": unknown mode ", mode,
                    " for input ", i);
    spec.modes[i] = static_cast<Mode>(mode);
  }
  const int64_t activation = (bits >> 36) & 15;
  STD_TORCH_CHECK(activation < kNumActivations, op, ": unknown activation ", activation);
  spec.activation = static_cast<Activation>(activation);
  spec.cat = (bits >> 40) & 1;
  spec.channels_last = (bits >> 41) & 1;
  spec.dtype = static_cast<DType>((bits >> 42) & 3);
  spec.save_mask = (bits >> 44) & 1;
  spec.acc_is_double = (bits >> 45) & 1;
  spec.reduction = (bits >> 46) & 1 ? Reduction::kMax : Reduction::kSum;
  spec.transposed = (bits >> 47) & 1;
  spec.accumulate = (bits >> 48) & 1;
  spec.gate_off = (bits >> 49) & 1 ? kLeakySlope : 0.0;
  STD_TORCH_CHECK(!spec.cat || spec.reduction == Reduction::kSum, op,
                  ": expected a maximum or a concatenation, got both");
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

template <typename Strides>
void set_strides(int64_t (&stride)[kDims], const Strides& strides, int64_t rank) {
  for (int i = 0; i < kDims; ++i) stride[i] = 0;
  stride[0] = strides[0];
  stride[1] = strides[1];
  for (int64_t i = 0; i < rank; ++i) stride[kDims - rank + i] = strides[2 + i];
}

inline Map map_of(const char* op, const Tensor& tensor, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank + 2, op, ": expected a map of ", rank + 2,
                  " dimensions, got ", tensor.dim());
  Map map;
  map.data = const_cast<void*>(tensor.const_data_ptr());
  map.dtype = dtype_of(op, tensor);
  map.channels_last = false;
  set_sizes(map, tensor.sizes(), rank);
  set_strides(map.stride, tensor.strides(), rank);
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

inline int32_t sum_dtype(bool acc_is_double) {
  return acc_is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// A contiguous one.
inline Tensor empty_contiguous(const std::vector<int64_t>& sizes, int32_t dtype,
                               const Tensor& like) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i > 1; --i)
    strides[i - 2] = strides[i - 1] * std::max<int64_t>(1, sizes[i - 1]);
  return empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                       like);
}

// A contiguous one of the accumulation type.
inline Tensor empty_sums(const std::vector<int64_t>& sizes, bool acc_is_double,
                         const Tensor& like) {
  return empty_contiguous(sizes, sum_dtype(acc_is_double), like);
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
  set_strides(map.stride, strides, rank);
  return tensor;
}

inline std::vector<int64_t> spatial_size(const Tensor& map) {
  const auto sizes = map.sizes();
  STD_TORCH_CHECK(sizes.size() >= 2, "msr_cuda: expected a map [N, C, *spatial]");
  return {sizes.begin() + 2, sizes.end()};
}

// One bit per element, in whole 32-bit words: a warp writes one.
inline int64_t mask_bytes(const Map& map) { return 4 * ceil_div(numel(map), 32); }

// How one input is related to a map of another size: the entries of its axes in an operator's
// lists, each empty or with `rank` entries per input.
struct AxisLists {
  const std::vector<double>& scales;    // factors, 0 where there is none
  const std::vector<int64_t>& windows;  // of pools: kernel size, stride and padding before; or [0]

  // A list of one number stands for an empty one, which ahead-of-time compiled programs cannot
  // pass.
  bool has_windows() const { return windows.size() > 1; }

  void check(const char* op, int64_t entries) const {
    STD_TORCH_CHECK(scales.empty() || static_cast<int64_t>(scales.size()) == entries, op,
                    ": expected ", entries, " scales, got ", scales.size());
    STD_TORCH_CHECK(!has_windows() || static_cast<int64_t>(windows.size()) == 3 * entries, op,
                    ": expected ", 3 * entries, " numbers of windows, got ", windows.size());
  }
};

inline Axis make_axis(const char* op, const Spec& spec, int input, int32_t in, int32_t out,
                      int64_t axis, int64_t rank, const AxisLists& lists) {
  const Mode mode = spec.modes[input];
  const auto entry = static_cast<size_t>(input * rank + axis);
  Axis made;
  if (spec.transposed) std::swap(in, out);
  STD_TORCH_CHECK(!spec.transposed || mode != Mode::kMaxPool, op,
                  ": a maximum is not linear: it has no transposed operator");
  if (is_pool(mode)) {
    PoolWindow window{1, 1, 0};
    if (axis >= 0) {
      STD_TORCH_CHECK(lists.has_windows(), op, ": expected windows for a pool");
      const int64_t* numbers = lists.windows.data() + 3 * entry;
      window = {static_cast<int32_t>(numbers[0]), static_cast<int32_t>(numbers[1]),
                static_cast<int32_t>(numbers[2])};
    }
    // Every window has at least one element of the map.
    const int64_t last = static_cast<int64_t>(out - 1) * window.stride - window.padding;
    STD_TORCH_CHECK(window.kernel >= 1 && window.stride >= 1 && window.padding >= 0 &&
                        window.padding < window.kernel && last < in,
                    op, ": expected pooling windows that reach into the map");
    made = make_pool_axis(mode, in, out, window);
  } else {
    const double scale = lists.scales.empty() || axis < 0 ? 0.0 : lists.scales[entry];
    made = make_axis(mode, in, out, scale);
  }
  made.transposed = spec.transposed;
  return made;
}

// The axes of a branch that is related to a map of `size`.
inline void set_axes(const char* op, Branch& branch, const int64_t (&size)[kDims], const Spec& spec,
                     int input, int64_t rank, const AxisLists& lists) {
  for (int i = 0; i < kSpatialDims; ++i) {
    const int64_t in = branch.map.size[2 + i], out = size[2 + i];
    STD_TORCH_CHECK(in > 0 && out > 0, op, ": expected spatial sizes above 0, got ", in, " and ",
                    out);
    constexpr int64_t limit = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(in < limit && out < limit, op, ": expected every axis below 2^31, got ", in,
                    " and ", out);
    branch.axis[i] = make_axis(op, spec, input, static_cast<int32_t>(in), static_cast<int32_t>(out),
                               i - (kSpatialDims - rank), rank, lists);
  }
}

inline bool has_type(const Tensor& tensor, bool acc_is_double) {
  return tensor.scalar_type() == (acc_is_double ? ScalarType::Double : ScalarType::Float);
}

// Factors [branches], or [1 or N, branches or fewer, 1 or C].
inline Weights weights_of(const char* op, const std::optional<Tensor>& weights, int count,
                          int64_t batch, int64_t channels, bool acc_is_double, const Tensor& like) {
  Weights found{nullptr, 0, 0, 0, 0};
  if (!weights) return found;
  check_same_device(op, *weights, like);
  STD_TORCH_CHECK(has_type(*weights, acc_is_double) && weights->is_contiguous(), op,
                  ": expected contiguous weights of the accumulation type");
  if (weights->dim() == 1) {
    STD_TORCH_CHECK(weights->size(0) == count, op, ": expected weights [", count, "]");
    return {weights->const_data_ptr(), count, 0, 1, 0};
  }
  STD_TORCH_CHECK(
      weights->dim() == 3 && (weights->size(0) == 1 || weights->size(0) == batch) &&
          weights->size(1) <= count && (weights->size(2) == 1 || weights->size(2) == channels),
      op, ": expected weights [1 or ", batch, ", up to ", count, ", 1 or ", channels, "]");
  found.data = weights->const_data_ptr();
  found.count = static_cast<int32_t>(weights->size(1));
  if (weights->size(0) > 1) found.stride_n = weights->stride(0);
  found.stride_b = weights->size(2);
  if (weights->size(2) > 1) found.stride_c = 1;
  return found;
}

// Factors [1 or N, branches or fewer, 1, *size].
inline PixelWeights pixel_weights_of(const char* op, const std::optional<Tensor>& weights,
                                     int count, const Map& common, int64_t rank, bool acc_is_double,
                                     const Tensor& like) {
  PixelWeights found{nullptr, 0, 0, 0};
  if (!weights) return found;
  check_same_device(op, *weights, like);
  STD_TORCH_CHECK(has_type(*weights, acc_is_double) && weights->is_contiguous(), op,
                  ": expected contiguous pixel weights of the accumulation type");
  bool fits = weights->dim() == rank + 3 &&
              (weights->size(0) == 1 || weights->size(0) == common.size[0]) &&
              weights->size(1) <= count && weights->size(2) == 1;
  for (int64_t i = 0; i < rank && fits; ++i)
    fits = weights->size(3 + i) == common.size[kDims - rank + i];
  STD_TORCH_CHECK(fits, op, ": expected pixel weights [1 or ", common.size[0], ", up to ", count,
                  ", 1, *size]");
  found.data = weights->const_data_ptr();
  found.count = static_cast<int32_t>(weights->size(1));
  found.stride_b = common.size[2] * common.size[3] * common.size[4];
  if (weights->size(0) > 1) found.stride_n = found.count * found.stride_b;
  return found;
}

inline void check_mask(const char* op, const Tensor& mask, int64_t bytes, const Tensor& like) {
  check_same_device(op, mask, like);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte && mask.dim() == 1 &&
                      mask.is_contiguous() && mask.size(0) == bytes,
                  op, ": expected a mask of ", bytes, " contiguous uint8");
}

// Elements of the windows of a max-pooled branch are counted in 8 bits where they can be.
inline bool has_wide_index(const Branch& branch) {
  double elements = 1;
  for (const Axis& axis : branch.axis) elements *= axis.inverse;
  return elements > 256;
}

// The arguments of a gather; those that an overload does not have are empty.
struct GatherArguments {
  const std::vector<Tensor>& inputs;
  const std::vector<int64_t>& size;
  int64_t spec;
  std::optional<Tensor> weights{};
  std::optional<Tensor> pixel_weights{};
  std::optional<Tensor> gate{};
  std::optional<Tensor> grad{};  // the result is grad * act'(z)
  std::vector<double> scales{};
  std::vector<int64_t> windows{};
  std::optional<Tensor> out{};  // where the result goes
};

// What has no value was not asked for: an empty tensor would take as long to make as a result.
struct GatherCall {
  GatherParams params;
  bool acc_is_double;
  bool saves_mask;
  std::optional<Tensor> out, mask;
  std::vector<Tensor> indices;  // of the max-pooled branches, in order
};

// Maps, axes and factors of a gather, without what it writes.
inline GatherCall prepare_branches(const char* op, const GatherArguments& arguments) {
  const std::vector<Tensor>& inputs = arguments.inputs;
  const int count = static_cast<int>(inputs.size());
  const auto rank = static_cast<int64_t>(arguments.size.size());
  STD_TORCH_CHECK(count >= 1 && count <= kMaxBranches, op, ": expected 1 to ", kMaxBranches,
                  " inputs, got ", count);
  STD_TORCH_CHECK(rank >= 1 && rank <= kSpatialDims, op, ": expected 1 to 3 spatial sizes, got ",
                  rank);
  const AxisLists lists{arguments.scales, arguments.windows};
  lists.check(op, count * rank);
  const Spec spec = unpack_spec(op, arguments.spec, count);

  GatherCall call{};
  GatherParams& params = call.params;
  params.num_branches = count;
  params.activation = spec.activation;
  params.reduction = spec.reduction;
  params.accumulate = spec.accumulate;
  params.gate_off = spec.gate_off;
  params.dense = true;
  call.acc_is_double = spec.acc_is_double;
  call.saves_mask = spec.save_mask;
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
  int64_t out_sizes[kDims] = {batch, channels};
  std::copy(arguments.size.begin(), arguments.size.end(), out_sizes + 2);
  set_sizes(out, out_sizes, rank);
  out.dtype = spec.dtype;
  out.channels_last = spec.channels_last;
  for (int i = 0; i < count; ++i) {
    Branch& branch = params.branches[i];
    STD_TORCH_CHECK(branch.map.size[0] == batch || branch.map.size[0] == 1, op,
                    ": expected a batch of ", batch, " or 1, got ", branch.map.size[0]);
    if (branch.map.size[0] != batch) branch.map.stride[0] = 0;
    set_axes(op, branch, out.size, spec, i, rank, lists);
  }
  params.weights =
      weights_of(op, arguments.weights, count, batch, channels, call.acc_is_double, inputs[0]);
  params.pixel_weights = pixel_weights_of(op, arguments.pixel_weights, count, out, rank,
                                          call.acc_is_double, inputs[0]);
  if (arguments.gate) {
    check_mask(op, *arguments.gate, mask_bytes(out), inputs[0]);
    params.gate = static_cast<const uint8_t*>(arguments.gate->const_data_ptr());
  }
  if (arguments.grad) {
    check_same_device(op, *arguments.grad, inputs[0]);
    const Map grad = map_of(op, *arguments.grad, rank);
    for (int i = 0; i < kDims; ++i) {
      STD_TORCH_CHECK(grad.size[i] == out.size[i], op,
                      ": expected a gradient of the result's size");
      params.grad_stride[i] = grad.stride[i];
    }
    params.grad = grad.data;
    params.grad_dtype = grad.dtype;
  }
  return call;
}

inline GatherCall prepare_gather(const GatherArguments& arguments) {
  const char* op = "msr_cuda::gather";
  GatherCall call = prepare_branches(op, arguments);
  const Tensor& like = arguments.inputs[0];
  const auto rank = static_cast<int64_t>(arguments.size.size());
  const bool saves = call.saves_mask;
  GatherParams& params = call.params;
  Map& out = params.out;
  const bool is_max = params.reduction == Reduction::kMax;
  if (arguments.out) {
    check_same_device(op, *arguments.out, like);
    const Map given = map_of(op, *arguments.out, rank);
    int64_t step = 1;
    const int planar[kDims] = {4, 3, 2, 1, 0}, last[kDims] = {1, 4, 3, 2, 0};
    for (const int axis : out.channels_last ? last : planar) {
      STD_TORCH_CHECK(given.size[axis] == out.size[axis], op,
                      ": expected out of the result's size");
      params.dense = params.dense && (out.size[axis] <= 1 || given.stride[axis] == step);
      step *= out.size[axis];
      out.stride[axis] = given.stride[axis];
    }
    out.data = arguments.out->mutable_data_ptr();
    out.dtype = given.dtype;
    call.out = *arguments.out;
  } else {
    STD_TORCH_CHECK(!params.accumulate, op, ": expected out, to be added to");
    call.out = allocate(out, rank, like);
  }
  params.mask_stride = is_max ? mask_bytes(out) : 0;
  const int64_t bytes = mask_bytes(out) * (is_max ? params.num_branches : 1);
  const bool has_bits = is_max || has_bit_derivative(params.activation);
  if (saves && has_bits) {
    call.mask = empty_vector(bytes, aoti_torch_dtype_uint8(), like);
    params.mask = static_cast<uint8_t*>(call.mask->mutable_data_ptr());
  }
  for (int b = 0; b < params.num_branches && saves; ++b) {
    const Branch& branch = params.branches[b];
    if (!is_max_pool(branch)) continue;
    params.wide_index[b] = has_wide_index(branch);
    const int64_t size =
        branch.map.size[0] * branch.map.size[1] * out.size[2] * out.size[3] * out.size[4];
    call.indices.push_back(empty_vector(
        size, params.wide_index[b] ? aoti_torch_dtype_int32() : aoti_torch_dtype_uint8(), like));
    params.index[b] = call.indices.back().mutable_data_ptr();
  }
  return call;
}

// Independent gathers of maps of one rank: the arguments of all, one job after the other. Jobs with
// the bits kHasWeights and kHasPixelWeights take the next of those; what is left of them is
// ignored.
struct ManyArguments {
  const std::vector<Tensor>& inputs;
  const std::vector<int64_t>& counts;  // of each job's inputs
  const std::vector<Tensor>& weights;
  const std::vector<Tensor>& pixel_weights;
  const std::vector<int64_t>& sizes;
  const std::vector<int64_t>& specs;
  const std::vector<double>& scales;
  const std::vector<int64_t>& windows;
};

constexpr int64_t kHasWeights = int64_t{1} << 50;
constexpr int64_t kHasPixelWeights = int64_t{1} << 51;

inline std::vector<GatherCall> prepare_many(const ManyArguments& all) {
  const char* op = "msr_cuda::gather_many";
  const size_t jobs = all.counts.size();
  STD_TORCH_CHECK(jobs > 0 && all.specs.size() == jobs && all.sizes.size() % jobs == 0, op,
                  ": expected counts, sizes and specs of as many jobs");
  const auto rank = static_cast<int64_t>(all.sizes.size() / jobs);
  const auto entries = static_cast<int64_t>(all.inputs.size()) * rank;
  AxisLists{all.scales, all.windows}.check(op, entries);
  const auto part = [](const auto& list, int64_t begin, int64_t count) {
    using List = std::decay_t<decltype(list)>;
    return list.empty() ? List() : List(list.begin() + begin, list.begin() + begin + count);
  };
  const auto next = [&](const std::vector<Tensor>& given, size_t& used) {
    STD_TORCH_CHECK(used < given.size(), op, ": expected weights of every job that has some");
    return given[used++];
  };
  std::vector<GatherCall> calls;
  calls.reserve(jobs);
  int64_t first = 0;
  size_t used_weights = 0, used_pixel_weights = 0;
  for (size_t job = 0; job < jobs; ++job) {
    const int64_t count = all.counts[job];
    STD_TORCH_CHECK(count >= 0 && first + count <= static_cast<int64_t>(all.inputs.size()), op,
                    ": expected as many inputs as the counts say");
    const std::vector<Tensor> inputs = part(all.inputs, first, count);
    const std::vector<int64_t> size = part(all.sizes, static_cast<int64_t>(job) * rank, rank);
    GatherArguments arguments{inputs, size, all.specs[job]};
    arguments.scales = part(all.scales, first * rank, count * rank);
    if (all.windows.size() > 1)
      arguments.windows = part(all.windows, 3 * first * rank, 3 * count * rank);
    if (all.specs[job] & kHasWeights) arguments.weights = next(all.weights, used_weights);
    if (all.specs[job] & kHasPixelWeights)
      arguments.pixel_weights = next(all.pixel_weights, used_pixel_weights);
    calls.push_back(prepare_gather(arguments));
    first += count;
  }
  return calls;
}

// What operators return where nothing was asked for.
inline Tensor or_empty(const std::optional<Tensor>& tensor, int32_t dtype, const Tensor& like) {
  return tensor ? *tensor : empty_vector(0, dtype, like);
}

inline Tensor mask_of(const GatherCall& call) {
  return or_empty(call.mask, aoti_torch_dtype_uint8(), *call.out);
}

// What gather_many returns: indices of all jobs' max-pooled branches, one after the other.
inline std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> results_of(
    const std::vector<GatherCall>& calls) {
  std::vector<Tensor> outputs, masks, indices;
  for (const GatherCall& call : calls) {
    outputs.push_back(*call.out);
    masks.push_back(mask_of(call));
    indices.insert(indices.end(), call.indices.begin(), call.indices.end());
  }
  return {outputs, masks, indices};
}

// The gradients of the pixel weights of a gather: [N, branches, 1, *size] in call.out.
inline GatherCall prepare_pixel_weight_grads(const GatherArguments& arguments) {
  const char* op = "msr_cuda::pixel_weight_grads";
  STD_TORCH_CHECK(!arguments.inputs.empty() && arguments.grad, op,
                  ": expected inputs and a gradient");
  STD_TORCH_CHECK(!unpack_spec(op, arguments.spec, 0).cat, op,
                  ": expected a sum, got a concatenation");
  GatherCall call = prepare_branches(op, arguments);
  const Map& out = call.params.out;
  std::vector<int64_t> sizes = {out.size[0], call.params.num_branches, 1};
  sizes.insert(sizes.end(), arguments.size.begin(), arguments.size.end());
  call.out = empty_sums(sizes, call.acc_is_double, arguments.inputs[0]);
  call.params.pixel_weight_grads = call.out->mutable_data_ptr();
  return call;
}

// The arguments of a spread; those that an overload does not have are empty.
struct SpreadArguments {
  const Tensor& grad;
  const std::vector<int64_t>& shapes;  // [N, C, *spatial] of every branch, one after the other
  int64_t spec;
  int64_t requests;
  std::optional<Tensor> gate{};
  std::optional<Tensor> weights{};
  std::optional<Tensor> pixel_weights{};
  std::vector<Tensor> inputs{};   // every branch's forward value, for the gradient of the weights
  std::vector<Tensor> indices{};  // of max-pooled branches, in order
  std::vector<double> scales{};
  std::vector<int64_t> windows{};
};

struct SpreadCall {
  SpreadParams params;
  bool acc_is_double;
  std::vector<Tensor> grads;           // of the wanted branches, in order
  std::optional<Tensor> weight_grads;  // of the weights' shape
  int64_t rank;
};

inline SpreadCall prepare_spread(const SpreadArguments& arguments) {
  const char* op = "msr_cuda::spread";
  const Tensor& grad = arguments.grad;
  const int64_t dims = grad.dim();
  STD_TORCH_CHECK(dims >= 3 && dims <= kDims, op,
                  ": expected a gradient of 3 to 5 dimensions, got ", dims);
  const std::vector<int64_t>& shapes = arguments.shapes;
  STD_TORCH_CHECK(
      !shapes.empty() && shapes.size() % dims == 0 && shapes.size() / dims <= kMaxBranches, op,
      ": expected shapes of 1 to ", kMaxBranches, " maps of ", dims, " dimensions");
  const int count = static_cast<int>(shapes.size() / dims);
  const std::vector<Tensor>& inputs = arguments.inputs;
  SpreadCall call{};
  call.rank = dims - 2;
  const AxisLists lists{arguments.scales, arguments.windows};
  lists.check(op, count * call.rank);
  STD_TORCH_CHECK(inputs.empty() || inputs.size() == static_cast<size_t>(count), op,
                  ": expected no inputs or ", count);
  const Spec spec = unpack_spec(op, arguments.spec, count);

  SpreadParams& params = call.params;
  params.num_branches = count;
  params.grad = map_of(op, grad, call.rank);
  params.grad.channels_last = spec.channels_last;
  params.gate_off = spec.gate_off;
  call.acc_is_double = spec.acc_is_double;
  int64_t channels = 0;
  size_t next_index = 0;
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
    set_axes(op, branch, params.grad.size, spec, i, call.rank, lists);
    const BranchRequest request = unpack_request(arguments.requests, i);
    map.dtype = request.dtype;
    map.channels_last = request.channels_last;
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
    if (!is_max_pool(branch)) continue;
    STD_TORCH_CHECK(next_index < arguments.indices.size(), op,
                    ": expected indices of every max-pooled branch");
    const Tensor& index = arguments.indices[next_index++];
    params.wide_index[i] = has_wide_index(branch);
    const int64_t size =
        map.size[0] * map.size[1] * params.grad.size[2] * params.grad.size[3] * params.grad.size[4];
    check_same_device(op, index, grad);
    STD_TORCH_CHECK(
        index.scalar_type() == (params.wide_index[i] ? ScalarType::Int : ScalarType::Byte) &&
            index.dim() == 1 && index.is_contiguous() && index.size(0) == size,
        op, ": expected ", size, " contiguous indices of input ", i);
    params.index[i] = index.const_data_ptr();
  }
  params.weights = weights_of(op, arguments.weights, count, params.grad.size[0],
                              params.grad.size[1], call.acc_is_double, grad);
  params.pixel_weights = pixel_weights_of(op, arguments.pixel_weights, count, params.grad,
                                          call.rank, call.acc_is_double, grad);
  if (arguments.gate) {
    const bool is_max = spec.reduction == Reduction::kMax;
    const int64_t bytes = mask_bytes(params.grad);
    check_mask(op, *arguments.gate, is_max ? count * bytes : bytes, grad);
    params.gate = static_cast<const uint8_t*>(arguments.gate->const_data_ptr());
    params.gate_stride = is_max ? bytes : 0;
  }
  for (int i = 0; i < count; ++i) {
    if (unpack_request(arguments.requests, i).wanted)
      call.grads.push_back(allocate(params.branches[i].map, call.rank, grad));
  }
  if (!inputs.empty()) {
    STD_TORCH_CHECK(arguments.weights.has_value(), op, ": expected weights with inputs");
    const auto given = arguments.weights->sizes();
    call.weight_grads = empty_sums({given.begin(), given.end()}, call.acc_is_double, grad);
  }
  return call;
}

}  // namespace msr
