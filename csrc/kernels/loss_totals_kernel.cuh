// Sums and means of losses, from what the blocks of a launch left of them.
#pragma once

#include "block_sum.cuh"
#include "logit_device.cuh"

namespace msr {

// The parts of all blocks, in one order, by one block. divisor: what the sum is divided by; 0: the
// sum of the weights.
template <typename acc_t>
__global__ void __launch_bounds__(kLogitThreads)
    loss_totals_kernel(const LossPart* parts, int64_t count, double divisor, acc_t* loss,
                       acc_t* divided_by) {
  __shared__ double shared[kLogitThreads];
  double losses = 0, weights = 0;
  for (int64_t i = threadIdx.x; i < count; i += kLogitThreads) {
    losses += parts[i].loss;
    weights += parts[i].weight;
  }
  losses = block_sum<kLogitThreads>(shared, losses);
  weights = block_sum<kLogitThreads>(shared, weights);
  if (threadIdx.x != 0) return;
  const double by = divisor == 0 ? weights : divisor;
  if (loss) *loss = static_cast<acc_t>(losses / by);
  if (divided_by) *divided_by = static_cast<acc_t>(by);
}

}  // namespace msr
