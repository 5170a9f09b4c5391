// What the overloads of gather and spread make of their arguments, the same for every device: `run`
// is the device's.
#pragma once

#include <tuple>
#include <utility>

#include "prepare.h"

namespace msr {

using SpreadResult = std::tuple<std::vector<Tensor>, Tensor>;  // gradients, of maps and of weights

inline SpreadResult result_of(const SpreadCall& call, const Tensor& like) {
  return {call.grads, or_empty(call.weight_grads, sum_dtype(call.acc_is_double), like)};
}

// Spatial sizes in one number, 21 bits each, the first lowest; msr_cuda/_spec.py packs them.
inline std::vector<int64_t> unpack_size(int64_t packed, int64_t rank) {
  constexpr int kBits = 21;
  std::vector<int64_t> size(static_cast<size_t>(std::clamp<int64_t>(rank, 0, kSpatialDims)));
  for (int64_t& axis : size) {
    axis = packed & ((int64_t{1} << kBits) - 1);
    packed >>= kBits;
  }
  return size;
}

inline std::vector<int64_t> unpack_size(int64_t packed, const std::vector<Tensor>& inputs) {
  STD_TORCH_CHECK(!inputs.empty(), "msr_cuda::gather: expected at least one input");
  return unpack_size(packed, inputs[0].dim() - 2);
}

template <GatherCall (*run)(const GatherArguments&)>
Tensor gather(const std::vector<Tensor>& inputs, const std::vector<int64_t>& size, int64_t spec) {
  return *run({inputs, size, spec}).out;
}

template <GatherCall (*run)(const GatherArguments&)>
Tensor gather_one(const Tensor& input, int64_t size, int64_t spec) {
  const std::vector<Tensor> inputs = {input};
  return *run({inputs, unpack_size(size, inputs), spec}).out;
}

template <GatherCall (*run)(const GatherArguments&)>
Tensor gather_packed(const std::vector<Tensor>& inputs, int64_t size, int64_t spec) {
  return *run({inputs, unpack_size(size, inputs), spec}).out;
}

template <GatherCall (*run)(const GatherArguments&)>
std::tuple<Tensor, Tensor> gather_saving(const std::vector<Tensor>& inputs, int64_t size,
                                         int64_t spec) {
  const GatherCall call = run({inputs, unpack_size(size, inputs), spec});
  return {*call.out, mask_of(call)};
}

template <GatherCall (*run)(const GatherArguments&)>
std::tuple<Tensor, Tensor> gather_full(const std::vector<Tensor>& inputs,
                                       const std::optional<Tensor>& weights,
                                       const std::optional<Tensor>& gate,
                                       const std::vector<int64_t>& size, int64_t spec,
                                       std::vector<double> scales) {
  GatherArguments arguments{inputs, size, spec, weights};
  arguments.gate = gate;
  arguments.scales = std::move(scales);
  GatherCall call = run(arguments);
  return {*call.out, mask_of(call)};
}

template <GatherCall (*run)(const GatherArguments&)>
std::tuple<Tensor, Tensor, std::vector<Tensor>> gather_extended(
    const std::vector<Tensor>& inputs, const std::optional<Tensor>& weights,
    const std::optional<Tensor>& pixel_weights, const std::optional<Tensor>& gate,
    const std::optional<Tensor>& grad, const std::vector<int64_t>& size, int64_t spec,
    std::vector<double> scales, std::vector<int64_t> windows) {
  GatherCall call = run({inputs, size, spec, weights, pixel_weights, gate, grad, std::move(scales),
                         std::move(windows)});
  return {*call.out, mask_of(call), call.indices};
}

template <GatherCall (*run)(const GatherArguments&)>
void gather_out(const std::vector<Tensor>& inputs, const std::optional<Tensor>& weights,
                const std::optional<Tensor>& pixel_weights, int64_t spec,
                std::vector<double> scales, std::vector<int64_t> windows, const Tensor& out) {
  const std::vector<int64_t> size = spatial_size(out);
  GatherArguments arguments{inputs, size, spec, weights, pixel_weights};
  arguments.scales = std::move(scales);
  arguments.windows = std::move(windows);
  arguments.out = out;
  run(arguments);
}

// Registers them for the device whose `run` it is.
template <GatherCall (*run)(const GatherArguments&), typename Library>
void register_gather(Library& m) {
  m.impl("gather", TORCH_BOX(&gather<run>));
  m.impl("gather.one", TORCH_BOX(&gather_one<run>));
  m.impl("gather.packed", TORCH_BOX(&gather_packed<run>));
  m.impl("gather.saving", TORCH_BOX(&gather_saving<run>));
  m.impl("gather.full", TORCH_BOX(&gather_full<run>));
  m.impl("gather.extended", TORCH_BOX(&gather_extended<run>));
  m.impl("gather.out", TORCH_BOX(&gather_out<run>));
}

template <SpreadCall (*run)(const SpreadArguments&)>
std::vector<Tensor> spread(const Tensor& grad, const std::vector<int64_t>& shapes, int64_t spec,
                           int64_t requests) {
  return run({grad, shapes, spec, requests}).grads;
}

template <SpreadCall (*run)(const SpreadArguments&)>
SpreadResult spread_full(const Tensor& grad, const std::optional<Tensor>& gate,
                         const std::optional<Tensor>& weights, std::vector<Tensor> inputs,
                         const std::vector<int64_t>& shapes, int64_t spec, int64_t requests,
                         std::vector<double> scales) {
  SpreadArguments arguments{grad, shapes, spec, requests, gate, weights};
  arguments.inputs = std::move(inputs);
  arguments.scales = std::move(scales);
  return result_of(run(arguments), grad);
}

template <SpreadCall (*run)(const SpreadArguments&)>
SpreadResult spread_extended(const Tensor& grad, const std::optional<Tensor>& gate,
                             const std::optional<Tensor>& weights,
                             const std::optional<Tensor>& pixel_weights, std::vector<Tensor> inputs,
                             std::vector<Tensor> indices, const std::vector<int64_t>& shapes,
                             int64_t spec, int64_t requests, std::vector<double> scales,
                             std::vector<int64_t> windows) {
  return result_of(
      run({grad, shapes, spec, requests, gate, weights, pixel_weights, std::move(inputs),
           std::move(indices), std::move(scales), std::move(windows)}),
      grad);
}

template <SpreadCall (*run)(const SpreadArguments&), typename Library>
void register_spread(Library& m) {
  m.impl("spread", TORCH_BOX(&spread<run>));
  m.impl("spread.full", TORCH_BOX(&spread_full<run>));
  m.impl("spread.extended", TORCH_BOX(&spread_extended<run>));
}

}  // namespace msr
