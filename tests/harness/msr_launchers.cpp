// msr_cuda's own launchers, called with NumPy arrays. Parameters are filled from sizes and strides
// as csrc/ops does it from tensors; the launchers and kernels are the shipped sources.
#include "msr_launchers.h"

#include <stdexcept>
#include <string>

#include "../../csrc/kernels/launch.h"

namespace msr::harness {
namespace {

Map map_of(const ArrayView& array) {
  if (array.rank < 3 || array.rank > kDims)
    throw std::invalid_argument("expected a map of 3 to 5 dimensions");
  Map map;
  int64_t size[kDims] = {array.size[0], array.size[1], 1, 1, 1};
  int64_t stride[kDims] = {array.stride[0], array.stride[1], 0, 0, 0};
  for (int i = 2; i < array.rank; ++i) {
    size[kDims - array.rank + i] = array.size[i];
    stride[kDims - array.rank + i] = array.stride[i];
  }
  set_sizes(map, size);
  for (int i = 0; i < kDims; ++i) map.stride[i] = stride[i];
  map.data = array.data;
  map.dtype = static_cast<DType>(array.type);
  map.channels_last = false;
  return map;
}

// Mode and channels of every branch; modes is packed as in msr_cuda/_spec.py, scales is [branches,
// rank] or absent.
void set_branches(const Arguments& a, const std::vector<ArrayView>& arrays, const Map& common,
                  Branch* branches) {
  const auto modes = static_cast<uint32_t>(a.integer("modes"));
  const bool cat = a.integer("cat") != 0;
  const double* scales = a.has("scales") ? a.array("scales").as<const double>() : nullptr;
  int64_t channels = 0;
  for (size_t b = 0; b < arrays.size(); ++b) {
    Branch& branch = branches[b];
    const int rank = arrays[b].rank - 2;
    branch.map = map_of(arrays[b]);
    branch.channel_begin = cat ? channels : 0;
    channels += branch.map.size[1];
    for (int i = 0; i < kSpatialDims; ++i) {
      const int axis = i - (kSpatialDims - rank);
      branch.axis[i] = make_axis(
          static_cast<Mode>(modes >> (4 * b) & 15u), static_cast<int32_t>(branch.map.size[2 + i]),
          static_cast<int32_t>(common.size[2 + i]),
          scales && axis >= 0 ? scales[b * static_cast<size_t>(rank) + axis] : 0.0);
    }
  }
}

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

void gather(const Arguments& a) {
  GatherParams params;
  const std::vector<ArrayView>& inputs = a.arrays("inputs");
  params.num_branches = static_cast<int32_t>(inputs.size());
  params.out = map_of(a.output("out"));
  params.out.channels_last = a.integer("channels_last") != 0;
  set_branches(a, inputs, params.out, params.branches);
  for (int b = 0; b < params.num_branches; ++b) {
    if (params.branches[b].map.size[0] != params.out.size[0]) params.branches[b].map.stride[0] = 0;
  }
  params.activation = static_cast<Activation>(a.integer("activation"));
  params.weights = a.has("weights") ? a.array("weights").data : nullptr;
  params.gate = a.has("gate") ? a.array("gate").as<const uint8_t>() : nullptr;
  params.mask = a.has("mask") ? a.output("mask").as<uint8_t>() : nullptr;
  check(launch_gather(params, a.integer("acc_is_double") != 0, nullptr));
}

// grads: a list of outputs, with null data where one is not wanted; values: their forward inputs,
// or absent.
void spread(const Arguments& a) {
  SpreadParams params;
  const std::vector<ArrayView>& grads = a.arrays("grads");
  const bool acc_is_double = a.integer("acc_is_double") != 0;
  params.num_branches = static_cast<int32_t>(grads.size());
  params.grad = map_of(a.array("grad"));
  params.grad.channels_last = a.integer("channels_last") != 0;
  set_branches(a, grads, params.grad, params.branches);
  for (int b = 0; b < params.num_branches; ++b) {
    poison(grads[b]);
    params.branches[b].map.channels_last = (a.integer("grads_channels_last") >> b & 1) != 0;
    if ((a.integer("wanted") >> b & 1) == 0) params.branches[b].map.data = nullptr;
    params.inputs[b] = nullptr;
    if (a.has("values")) {
      const Map value = map_of(a.arrays("values")[b]);
      params.inputs[b] = value.data;
      params.input_dtype[b] = value.dtype;
      for (int i = 0; i < kDims; ++i) params.input_stride[b][i] = value.stride[i];
    }
  }
  params.weights = a.has("weights") ? a.array("weights").data : nullptr;
  params.gate = a.has("gate") ? a.array("gate").as<const uint8_t>() : nullptr;
  plan_spread_blocks(params);
  std::vector<double> partial_dots(static_cast<size_t>(params.block_begin[kMaxInputs]));
  params.partial_dots = a.has("values") ? partial_dots.data() : nullptr;
  check(launch_spread(params, acc_is_double, nullptr));
  if (a.has("values"))
    check(launch_sum_dots(params, acc_is_double, a.output("dots").data, nullptr));
}

// Index arithmetic with made-up sizes: where an offset lies, and back. No memory is touched.
void positions(const Arguments& a) {
  Map map;
  int64_t size[kDims];
  for (int i = 0; i < kDims; ++i) size[i] = a.array("size").as<const int64_t>()[i];
  set_sizes(map, size);
  map.channels_last = a.integer("channels_last") != 0;
  const ArrayView& offsets = a.array("offsets");
  const ArrayView& found =
      a.output("found");  // [count, 6]: n, c, d, h, w, and the offset of that position
  for (int64_t i = 0; i < offsets.size[0]; ++i) {
    const Position p = position_of(map, offsets.as<const int64_t>()[i]);
    int64_t* row = found.as<int64_t>() + 6 * i;
    row[0] = p.n;
    row[1] = p.c;
    for (int k = 0; k < kSpatialDims; ++k) row[2 + k] = p.at[k];
    row[5] = offset_of(map, p.n, p.c, p.at[0], p.at[1], p.at[2]);
  }
}

}  // namespace

const std::vector<Launcher>& msr_launchers() {
  static const std::vector<Launcher> launchers = {
      {"gather", gather}, {"spread", spread}, {"positions", positions}};
  return launchers;
}

}  // namespace msr::harness
