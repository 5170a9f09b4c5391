// What the overloads of gather and spread make of their arguments, the same for every device: `run`
// is the device's.
#pragma once

#include <tuple>
#include <utility>

#include "prepare.h"

namespace msr {

using SpreadResult = std::tuple<std::vector<Tensor>, Tensor>;  // gradients, of maps and of weights

template <GatherCall (*run)(const GatherArguments&)>
Tensor gather(std::vector<Tensor> inputs, std::vector<int64_t> size, int64_t spec) {
  return run({inputs, size, spec}).out;
}

template <GatherCall (*run)(const GatherArguments&)>
std::tuple<Tensor, Tensor> gather_full(std::vector<Tensor> inputs, std::optional<Tensor> weights,
                                       std::optional<Tensor> gate, std::vector<int64_t> size,
                                       int64_t spec, std::vector<double> scales) {
  GatherArguments arguments{inputs, size, spec, weights};
  arguments.gate = gate;
  arguments.scales = std::move(scales);
  GatherCall call = run(arguments);
  return {call.out, call.mask};
}

template <GatherCall (*run)(const GatherArguments&)>
std::tuple<Tensor, Tensor, std::vector<Tensor>> gather_extended(
    std::vector<Tensor> inputs, std::optional<Tensor> weights, std::optional<Tensor> pixel_weights,
    std::optional<Tensor> gate, std::optional<Tensor> grad, std::vector<int64_t> size, int64_t spec,
    std::vector<double> scales, std::vector<int64_t> windows) {
  GatherCall call = run({inputs, size, spec, weights, pixel_weights, gate, grad, std::move(scales),
                         std::move(windows)});
  return {call.out, call.mask, call.indices};
}

template <GatherCall (*run)(const GatherArguments&)>
void gather_out(std::vector<Tensor> inputs, std::optional<Tensor> weights,
                std::optional<Tensor> pixel_weights, int64_t spec, std::vector<double> scales,
                std::vector<int64_t> windows, Tensor out) {
  const std::vector<int64_t> size = spatial_size(out);
  GatherArguments arguments{inputs, size, spec, weights, pixel_weights};
  arguments.scales = std::move(scales);
  arguments.windows = std::move(windows);
  arguments.out = out;
  run(arguments);
}

template <SpreadResult (*run)(const SpreadArguments&)>
std::vector<Tensor> spread(Tensor grad, std::vector<int64_t> shapes, int64_t spec,
                           int64_t requests) {
  return std::get<0>(run({grad, shapes, spec, requests}));
}

template <SpreadResult (*run)(const SpreadArguments&)>
SpreadResult spread_full(Tensor grad, std::optional<Tensor> gate, std::optional<Tensor> weights,
                         std::vector<Tensor> inputs, std::vector<int64_t> shapes, int64_t spec,
                         int64_t requests, std::vector<double> scales) {
  SpreadArguments arguments{grad, shapes, spec, requests, gate, weights};
  arguments.inputs = std::move(inputs);
  arguments.scales = std::move(scales);
  return run(arguments);
}

template <SpreadResult (*run)(const SpreadArguments&)>
SpreadResult spread_extended(Tensor grad, std::optional<Tensor> gate, std::optional<Tensor> weights,
                             std::optional<Tensor> pixel_weights, std::vector<Tensor> inputs,
                             std::vector<Tensor> indices, std::vector<int64_t> shapes, int64_t spec,
                             int64_t requests, std::vector<double> scales,
                             std::vector<int64_t> windows) {
  return run({grad, shapes, spec, requests, gate, weights, pixel_weights, std::move(inputs),
              std::move(indices), std::move(scales), std::move(windows)});
}

}  // namespace msr
