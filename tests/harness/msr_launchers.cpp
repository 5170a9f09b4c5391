// msr_cuda's own launchers, called with NumPy arrays. Parameters are filled from sizes and strides
// as csrc/ops does it from tensors; the launchers and kernels are the shipped sources.
#include "msr_launchers.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "../../csrc/kernels/launch.h"
#include "../../csrc/kernels/reduce_plan.h"
#include "../../csrc/kernels/select_kernel.h"

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

GatherParams gather_params(const Arguments& a) {
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
  return params;
}

// "choice": kernel, vector, sources, steps, turns, as in GatherChoice; empty: what select_kernel
// finds. Absent: the general kernel.
void gather(const Arguments& a) {
  const GatherParams params = gather_params(a);
  const bool acc_is_double = a.integer("acc_is_double") != 0;
  if (a.has("choice") && a.array("choice").numel() == 0) {
    check(launch_gather(params, acc_is_double, nullptr));
    return;
  }
  GatherChoice choice = kGeneralGather;
  if (a.has("choice")) {
    const auto* forced = a.array("choice").as<const int64_t>();
    choice = {static_cast<GatherKernel>(forced[0]), static_cast<int32_t>(forced[1]),
              static_cast<int32_t>(forced[2]), static_cast<int32_t>(forced[3]),
              static_cast<int32_t>(forced[4])};
  }
  check(launch_gather(params, acc_is_double, nullptr, &choice));
}

// The instances of EXPAND that fit a call of gather(): found [more than there are, 3] has kernel,
// vector and sources of each, the best first; the rest of it keeps the poison. The first row is
// what select_kernel finds, whatever fits.
void fitting_kernels(const Arguments& a) {
  const GatherParams params = gather_params(a);
  const bool acc_is_double = a.integer("acc_is_double") != 0;
  const ArrayView& found = a.output("found");
  if (found.size[0] <= kNumExpandVariants) throw std::invalid_argument("found has too few rows");
  auto* row = found.as<int64_t>();
  const auto add = [&](const GatherChoice& choice) {
    *row++ = static_cast<int64_t>(choice.kernel);
    *row++ = choice.vector;
    *row++ = choice.sources;
  };
  const GatherChoice selected = select_kernel(params, acc_is_double);
  add(selected);
  for (const GatherChoice& variant : kExpandVariants) {
    const bool is_selected = variant.kernel == selected.kernel &&
                             variant.vector == selected.vector &&
                             variant.sources == selected.sources;
    if (!is_selected && fits(params, acc_is_double, variant)) add(variant);
  }
}

// How EXPAND cuts up a sum of maps [size] of `dtype` with one linear source, which exist as sizes
// alone: found [6] is whether it fits, then blocks, threads, bytes of shared memory, steps, turns.
void plan_of_expand(const Arguments& a) {
  GatherParams params{};
  const bool channels_last = a.integer("channels_last") != 0;
  const auto* size = a.array("size").as<const int64_t>();
  const auto describe = [&](Map& map) {
    int64_t sizes[kDims];
    for (int i = 0; i < kDims; ++i) sizes[i] = size[i];
    set_sizes(map, sizes);
    map.channels_last = channels_last;
    map.dtype = static_cast<DType>(a.integer("dtype"));
    int64_t step = 1;
    for (const int axis : {channels_last ? 1 : 4, channels_last ? 4 : 3, channels_last ? 3 : 2,
                           channels_last ? 2 : 1, 0}) {
      map.stride[axis] = step;
      step *= size[axis];
    }
  };
  describe(params.out);
  describe(params.branches[0].map);
  params.num_branches = 1;
  for (int i = 0; i < kSpatialDims; ++i) {
    const auto extent = static_cast<int32_t>(size[2 + i]);
    params.branches[0].axis[i] = make_axis(Mode::kLinear, extent, extent, 0.0);
  }
  params.branches[0].axis[2].rule = Rule::kLinearRational;  // a source, whatever its size
  const GatherChoice choice = select_kernel(params, false);
  auto* const found = a.output("found").as<int64_t>();
  ExpandParams plan;
  found[0] = choice.kernel != GatherKernel::kGeneral && plan_expand(params, choice, plan);
  if (found[0] == 0) return;
  found[1] = plan.num_blocks;
  found[2] = plan.threads;
  found[3] = plan.shared_bytes;
  found[4] = plan.jobs[0].steps;
  found[5] = plan.jobs[0].turns;
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
  // "choice": kernel, vector, group, strip rows, aligned, as in SpreadChoice; empty: what
  // select_kernel finds. Absent: the general kernel.
  SpreadChoice choice = select_kernel(params, acc_is_double);
  if (!a.has("choice")) {
    choice.kernel = SpreadKernel::kGeneral;
  } else if (a.array("choice").numel() > 0) {
    const auto* forced = a.array("choice").as<const int64_t>();
    choice = {static_cast<SpreadKernel>(forced[0]), static_cast<int32_t>(forced[1]),
              static_cast<int32_t>(forced[2]), static_cast<int32_t>(forced[3]), forced[4] != 0};
  }
  const SpreadPlan plan = plan_spread(params, choice);
  std::vector<double> partial_dots(static_cast<size_t>(params.block_begin[kMaxInputs]), NAN);
  params.partial_dots = a.has("values") ? partial_dots.data() : nullptr;
  check(launch_spread(params, plan, acc_is_double, nullptr));
  if (a.has("values"))
    check(launch_sum_dots(params, acc_is_double, a.output("dots").data, nullptr));
}

// How a spread to one branch would be run, with made-up sizes. No memory is touched.
void plan_of_spread(const Arguments& a) {
  SpreadParams params{};
  params.num_branches = 1;
  const bool channels_last = a.integer("channels_last") != 0;
  Branch& branch = params.branches[0];
  const auto fill = [&](Map& map, const char* name) {
    int64_t size[kDims];
    for (int i = 0; i < kDims; ++i) size[i] = a.array(name).as<const int64_t>()[i];
    set_sizes(map, size);
    map.data = reinterpret_cast<void*>(uintptr_t{256});  // aligned, never followed
    map.dtype = static_cast<DType>(a.integer("dtype"));
    map.channels_last = channels_last;
    const int planar[kDims] = {4, 3, 2, 1, 0}, last[kDims] = {1, 4, 3, 2, 0};
    int64_t step = 1;
    for (const int axis : channels_last ? last : planar) {
      map.stride[axis] = step;
      step *= size[axis];
    }
  };
  fill(params.grad, "grad");
  fill(branch.map, "branch");
  for (int i = 0; i < kSpatialDims; ++i)
    branch.axis[i] = make_axis(static_cast<Mode>(a.integer("mode")),
                               static_cast<int32_t>(branch.map.size[2 + i]),
                               static_cast<int32_t>(params.grad.size[2 + i]), 0.0);
  const SpreadPlan plan = plan_spread(params, select_kernel(params, false));
  const ArrayView& found = a.output("found");  // kernel, blocks, vector, shared bytes
  found.as<int64_t>()[0] = static_cast<int64_t>(plan.choice.kernel);
  found.as<int64_t>()[1] = params.block_begin[kMaxInputs];
  found.as<int64_t>()[2] = plan.num_launches == 1 ? plan.launches[0].vector : 0;
  found.as<int64_t>()[3] = plan.num_launches == 1 ? plan.launches[0].shared_bytes : 0;
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
      {"gather", gather}, {"fitting_kernels", fitting_kernels}, {"plan_of_expand", plan_of_expand},
      {"spread", spread}, {"plan_of_spread", plan_of_spread},   {"positions", positions}};
  return launchers;
}

}  // namespace msr::harness
