// msr_cuda's own launchers, called with NumPy arrays. Parameters are filled from sizes and strides
// as csrc/ops does it from tensors; the launchers and kernels are the shipped sources.
#include "msr_launchers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "../../csrc/kernels/launch.h"
#include "../../csrc/kernels/select_kernel.h"
#include "../../csrc/kernels/spread_plan.h"
#include "../../csrc/kernels/tap_lists.h"
#include "kernel_arguments.h"

namespace msr::harness {
namespace {

Axis axis_of(Mode mode, int32_t in, int32_t out, double scale, const int64_t* window) {
  if (!is_pool(mode)) return make_axis(mode, in, out, scale);
  return make_pool_axis(mode, in, out,
                        {static_cast<int32_t>(window[0]), static_cast<int32_t>(window[1]),
                         static_cast<int32_t>(window[2])});
}

// Mode and channels of every branch. modes is [branches], with the numbers of msr_cuda/_spec.py;
// scales is [branches, rank] or absent, windows (kernel size, stride, padding) [branches, rank, 3]
// or absent.
void set_branches(const Arguments& a, const std::vector<ArrayView>& arrays, const Map& common,
                  Branch* branches) {
  const auto* modes = a.array("modes").as<const int64_t>();
  const bool cat = a.integer("cat") != 0;
  const auto* scales = data_or_null<const double>(a, "scales");
  const auto* windows = data_or_null<const int64_t>(a, "windows");
  const bool is_transposed = integer_or_zero(a, "transposed") != 0;
  int64_t channels = 0;
  for (size_t b = 0; b < arrays.size(); ++b) {
    Branch& branch = branches[b];
    const auto rank = static_cast<size_t>(arrays[b].rank - 2);
    branch.map = map_of(arrays[b]);
    branch.channel_begin = cat ? channels : 0;
    channels += branch.map.size[1];
    for (int i = 0; i < kSpatialDims; ++i) {
      const int axis = i - (kSpatialDims - static_cast<int>(rank));
      const size_t entry = b * rank + static_cast<size_t>(axis < 0 ? 0 : axis);
      constexpr int64_t kNoPooling[3] = {1, 1, 0};
      auto in = static_cast<int32_t>(branch.map.size[2 + i]);
      auto out = static_cast<int32_t>(common.size[2 + i]);
      if (is_transposed) std::swap(in, out);
      branch.axis[i] =
          axis_of(static_cast<Mode>(modes[b]), in, out, scales && axis >= 0 ? scales[entry] : 0.0,
                  windows && axis >= 0 ? windows + 3 * entry : kNoPooling);
      branch.axis[i].transposed = is_transposed;
    }
  }
}

// [branches], or [1 or N, branches or fewer, 1 or C].
Weights weights_of(const Arguments& a) {
  if (!a.has("weights")) return {};
  const ArrayView& array = a.array("weights");
  if (array.rank == 1) return {array.data, static_cast<int32_t>(array.size[0]), 0, 1, 0};
  return {array.data, static_cast<int32_t>(array.size[1]),
          array.size[0] > 1 ? array.size[1] * array.size[2] : 0, array.size[2],
          array.size[2] > 1 ? int64_t{1} : int64_t{0}};
}

// [1 or N, branches or fewer, pixels].
PixelWeights pixel_weights_of(const Arguments& a) {
  if (!a.has("pixel_weights")) return {};
  const ArrayView& array = a.array("pixel_weights");
  return {array.data, static_cast<int32_t>(array.size[1]),
          array.size[0] > 1 ? array.size[1] * array.size[2] : 0, array.size[2]};
}

int64_t mask_bytes(const Map& map) { return 4 * ceil_div(numel(map), 32); }

// Copies elements between maps of one size and element type.
void copy_elements(const ArrayView& from, const ArrayView& to) {
  int64_t index[kMaxRank] = {};
  for (int64_t i = 0; i < from.numel(); ++i) {
    int64_t source = 0, target = 0, rest = i;
    for (int k = from.rank - 1; k >= 0; --k) {
      index[k] = rest % from.size[k];
      rest /= from.size[k];
      source += index[k] * from.stride[k];
      target += index[k] * to.stride[k];
    }
    std::memcpy(static_cast<char*>(to.data) + target * to.element_bytes,
                static_cast<const char*>(from.data) + source * from.element_bytes,
                static_cast<size_t>(from.element_bytes));
  }
}

// index: a list with the indices of max-pooled branches, None for others; or absent.
void set_index(const Arguments& a, int b, bool is_output, const void** index, bool* wide) {
  *index = nullptr;
  if (!a.has("index")) return;
  const ArrayView& array = a.arrays("index")[static_cast<size_t>(b)];
  *index = array.data;
  if (!array.data) return;
  *wide = array.type == ElementType::kInt32;
  if (is_output) poison(array);
}

// The branches of a gather to `out`, which may exist as sizes alone, and all that is read.
GatherParams gather_params(const Arguments& a, const Map& out) {
  GatherParams params{};
  const std::vector<ArrayView>& inputs = a.arrays("inputs");
  params.num_branches = static_cast<int32_t>(inputs.size());
  params.out = out;
  params.out.channels_last = a.integer("channels_last") != 0;
  set_branches(a, inputs, params.out, params.branches);
  for (int b = 0; b < params.num_branches; ++b) {
    if (params.branches[b].map.size[0] != params.out.size[0]) params.branches[b].map.stride[0] = 0;
  }
  params.activation = static_cast<Activation>(integer_or_zero(a, "activation"));
  params.reduction = static_cast<Reduction>(integer_or_zero(a, "reduction"));
  params.weights = weights_of(a);
  params.pixel_weights = pixel_weights_of(a);
  params.gate = data_or_null<const uint8_t>(a, "gate");
  params.gate_off = a.has("gate_off") ? a.real("gate_off") : 0.0;
  if (a.has("grad")) {
    const Map grad = map_of(a.array("grad"));
    params.grad = grad.data;
    params.grad_dtype = grad.dtype;
    for (int i = 0; i < kDims; ++i) params.grad_stride[i] = grad.stride[i];
  }
  return params;
}

// And all that is written. before: what `out` holds, to be added to; or absent.
GatherParams gather_params(const Arguments& a) {
  GatherParams params = gather_params(a, map_of(a.output("out")));
  params.accumulate = a.has("before");
  if (params.accumulate) copy_elements(a.array("before"), a.array("out"));
  params.dense = true;
  int64_t step = 1;
  const int planar[kDims] = {4, 3, 2, 1, 0}, last[kDims] = {1, 4, 3, 2, 0};
  for (const int axis : params.out.channels_last ? last : planar) {
    if (params.out.size[axis] > 1 && params.out.stride[axis] != step) params.dense = false;
    step *= params.out.size[axis];
  }
  params.mask = a.has("mask") ? a.output("mask").as<uint8_t>() : nullptr;
  params.mask_stride = params.reduction == Reduction::kMax ? mask_bytes(params.out) : 0;
  for (int b = 0; b < params.num_branches; ++b) {
    const void* index;
    set_index(a, b, /*is_output=*/true, &index, &params.wide_index[b]);
    params.index[b] = const_cast<void*>(index);
  }
  return params;
}

// "choice": kernel, vector, sources, steps, turns, as in GatherChoice; empty: what select_kernel
// finds. Absent: the general kernel.
void gather(const Arguments& a) {
  const GatherParams params = gather_params(a);
  const bool acc_is_double = a.integer("acc_is_double") != 0;
  const Workspace workspace(a, workspace_bytes(params, acc_is_double));
  if (a.has("choice") && a.array("choice").numel() == 0) {
    check(launch_gather(params, acc_is_double, workspace.data(), nullptr));
    return;
  }
  GatherChoice choice = kGeneralGather;
  if (a.has("choice")) {
    const auto* forced = a.array("choice").as<const int64_t>();
    choice = {static_cast<GatherKernel>(forced[0]), static_cast<int32_t>(forced[1]),
              static_cast<int32_t>(forced[2]), static_cast<int32_t>(forced[3]),
              static_cast<int32_t>(forced[4])};
  }
  check(launch_gather(params, acc_is_double, workspace.data(), nullptr, &choice));
}

// As gather, without a mask, each image of the batch a job of its own.
void gather_many(const Arguments& a) {
  const GatherParams whole = gather_params(a);
  const bool acc_is_double = a.integer("acc_is_double") != 0;
  std::vector<GatherParams> images;
  std::vector<Workspace> workspaces;
  std::vector<GatherJob> jobs;
  for (int64_t n = 0; n < whole.out.size[0]; ++n) {
    GatherParams image = whole;
    const auto take = [n](Map& map) {
      map.data = static_cast<char*>(map.data) + n * map.stride[0] * element_size(map.dtype);
      int64_t sizes[kDims] = {1};
      for (int i = 1; i < kDims; ++i) sizes[i] = map.size[i];
      set_sizes(map, sizes);
    };
    take(image.out);
    for (int b = 0; b < image.num_branches; ++b) take(image.branches[b].map);
    images.push_back(image);
    workspaces.emplace_back(workspace_bytes(image, acc_is_double));
  }
  for (size_t i = 0; i < images.size(); ++i) jobs.push_back({&images[i], workspaces[i].data()});
  check(launch_gather_many(jobs.data(), static_cast<int>(jobs.size()), acc_is_double, nullptr));
}

// Jobs of any sizes in one call: the arguments of gather for each, named "0.inputs" and so on.
void gather_jobs(const Arguments& a) {
  std::vector<GatherParams> calls;
  std::vector<Workspace> workspaces;
  std::vector<GatherJob> jobs;
  const bool acc_is_double = a.integer("acc_is_double") != 0;
  for (int j = 0; j < a.integer("count"); ++j) {
    calls.push_back(gather_params(a.part(std::to_string(j) + ".")));
    workspaces.emplace_back(workspace_bytes(calls.back(), acc_is_double));
  }
  for (size_t j = 0; j < calls.size(); ++j) jobs.push_back({&calls[j], workspaces[j].data()});
  check(launch_gather_many(jobs.data(), static_cast<int>(jobs.size()), acc_is_double, nullptr));
}

// found: [N, branches, pixels]. The result of the gather exists as sizes alone, those of grad.
void pixel_weight_grads(const Arguments& a) {
  Map out = map_of(a.array("grad"));
  out.data = nullptr;
  GatherParams params = gather_params(a, out);
  params.pixel_weight_grads = a.output("found").data;
  const bool acc_is_double = a.integer("acc_is_double") != 0;
  const Workspace workspace(workspace_bytes(params, acc_is_double));
  check(launch_pixel_weight_grads(params, acc_is_double, workspace.data(), nullptr));
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
// alone: found [7] is whether it fits, then blocks, threads, bytes of shared memory, steps, turns,
// vector.
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
  params.dense = true;
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
  found[6] = choice.vector;
}

// grads: a list of outputs, with null data where one is not wanted; values: their forward inputs,
// or absent.
void spread(const Arguments& a) {
  SpreadParams params{};
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
    set_index(a, b, /*is_output=*/false, &params.index[b], &params.wide_index[b]);
    if (a.has("values")) {
      const Map value = map_of(a.arrays("values")[b]);
      params.inputs[b] = value.data;
      params.input_dtype[b] = value.dtype;
      for (int i = 0; i < kDims; ++i) params.input_stride[b][i] = value.stride[i];
    }
  }
  params.weights = weights_of(a);
  params.pixel_weights = pixel_weights_of(a);
  params.gate = data_or_null<const uint8_t>(a, "gate");
  params.gate_off = a.has("gate_off") ? a.real("gate_off") : 0.0;
  if (static_cast<Reduction>(integer_or_zero(a, "reduction")) == Reduction::kMax)
    params.gate_stride = mask_bytes(params.grad);
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
  const SpreadPlan plan = plan_spread(params, choice, acc_is_double);
  const Workspace workspace(a, plan.workspace_bytes);
  void* const dots = a.has("values") ? a.output("dots").data : nullptr;
  check(launch_spread(params, plan, acc_is_double, workspace.data(), dots, nullptr));
}

// The worst difference between two lists of rows, infinite where they are not the same rows.
template <typename acc_t>
double difference(const TapLists<acc_t>& a, const TapLists<acc_t>& b) {
  if (a.first.size() != b.first.size() || a.weights.size() != b.weights.size()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < a.first.size(); ++i) {
    if (a.count[i] != b.count[i] || (a.count[i] > 0 && a.first[i] != b.first[i])) return INFINITY;
  }
  for (size_t i = 0; i < a.weights.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a.weights[i] - b.weights[i])));
  return worst;
}

// The table of one axis as the kernel fills it, read by rows: of destinations, or of sources.
template <typename acc_t>
TapLists<acc_t> read_table(const WindowTables& tables, const Axis& axis) {
  const WindowTable& table = tables.table[0][2];
  const Range* const windows = tables.windows(table);
  const acc_t* const weights = tables.weights<acc_t>(table, axis);
  TapLists<acc_t> lists;
  for (int32_t i = 0; i < (axis.transposed ? axis.in_size : axis.out_size); ++i) {
    const Range range = axis.transposed ? tables.readers(table, axis)[i] : windows[i];
    lists.begin_row(range.begin);
    for (int32_t j = range.begin; j < range.end; ++j) {
      const int32_t d = axis.transposed ? j : i, s = axis.transposed ? i : j;
      lists.add(weights[int64_t{d} * table.width + s - windows[d].begin]);
    }
  }
  return lists;
}

template <typename acc_t>
void compare_table(Branch& branch, double* found) {
  constexpr bool kIsDouble = sizeof(acc_t) == sizeof(double);
  Axis& axis = branch.axis[2];
  for (const bool is_transposed : {false, true}) {
    axis.transposed = is_transposed;
    WindowPlan plan = plan_windows(&branch, 1, /*adjoint=*/false, kIsDouble);
    const Workspace workspace(plan.bytes);
    plan.tables.workspace = workspace.data();
    check(launch_window_tables(&branch, 1, plan.tables, kIsDouble, nullptr));
    const TapLists<acc_t> lists = list_taps<acc_t>(axis);
    found[is_transposed ? 1 : 0] = difference(lists, read_table<acc_t>(plan.tables, axis));
    if (is_transposed) continue;
    found[2] = plan.tables.table[0][2].width;
    found[3] = *std::max_element(lists.count.begin(), lists.count.end());
  }
}

// One axis of windows: found [4] is the worst difference between the kernel's table and the host's
// lists of destinations and of sources, then the width of the table and of the widest window.
void window_table(const Arguments& a) {
  Branch branch{};
  const auto in = a.integer("in_size"), out = a.integer("out_size");
  const int64_t size[kDims] = {1, 1, 1, 1, in};
  set_sizes(branch.map, size);
  for (Axis& axis : branch.axis) axis = make_axis(Mode::kNearest, 1, 1, 0.0);
  branch.axis[2] =
      axis_of(static_cast<Mode>(a.integer("mode")), in, out, a.has("scale") ? a.real("scale") : 0.0,
              data_or_null<const int64_t>(a, "windows"));
  auto* const found = a.output("found").as<double>();
  if (a.integer("acc_is_double") != 0) {
    compare_table<double>(branch, found);
  } else {
    compare_table<float>(branch, found);
  }
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
  const SpreadPlan plan = plan_spread(params, select_kernel(params, false), false);
  const ArrayView& found = a.output("found");  // kernel, blocks, vector, shared bytes
  found.as<int64_t>()[0] = static_cast<int64_t>(plan.choice.kernel);
  int64_t blocks = params.block_begin[kMaxBranches];  // of the general kernel
  for (int i = 0; i < plan.num_launches; ++i) blocks += plan.launches[i].blocks();
  found.as<int64_t>()[1] = blocks;
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
  static const std::vector<Launcher> launchers = {{"gather", gather},
                                                  {"gather_many", gather_many},
                                                  {"gather_jobs", gather_jobs},
                                                  {"pixel_weight_grads", pixel_weight_grads},
                                                  {"fitting_kernels", fitting_kernels},
                                                  {"plan_of_expand", plan_of_expand},
                                                  {"window_table", window_table},
                                                  {"spread", spread},
                                                  {"plan_of_spread", plan_of_spread},
                                                  {"positions", positions}};
  return launchers;
}

}  // namespace msr::harness
