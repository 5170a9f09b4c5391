// The CUDA launchers of losses and decisions of resampled logits, without CUDA types: what csrc/ops
// links against. As in launch.h, they return null or the text of the error.
#pragma once

#include "logit_params.h"

namespace msr {

// Device memory, aligned to 16 bytes, that a launch needs: for tables of taps, and for sums a
// little that is limited, however large the maps are.
enum class LogitPass { kLoss, kDecision, kBackward };
int64_t workspace_bytes(const LogitParams& logits, LogitPass pass);

// Results of one element, of the accumulation type.
struct LossTotals {
  void* loss;     // sum or mean; or null
  void* divisor;  // what a mean divides by, else 1; or null
};

// Which kernels are launched: those that are general, those that share work between neighbours
// (logit_columns.cuh, logit_grads.cuh) where they fit the maps, or what is best for their sizes.
enum class LogitWay { kBest, kGeneral, kShared };

// As a test asks for it.
struct LogitChoice {
  LogitWay way;
  int32_t rows;  // of a strip of gradients; 0: chosen from the sizes
};
constexpr LogitChoice kBestLogits = {LogitWay::kBest, 0};

// A target that is neither a class nor ignored makes the loss NaN, and is told to
// params.bad_target.
const char* launch_cross_entropy(const CrossEntropyParams& params, const LossTotals& totals,
                                 void* workspace, void* stream,
                                 const LogitChoice& choice = kBestLogits);
const char* launch_cross_entropy_backward(const CrossEntropyBackwardParams& params, void* workspace,
                                          void* stream, const LogitChoice& choice = kBestLogits);

// With params.loss, or else with totals and `reduction`.
const char* launch_binary_cross_entropy(const BinaryParams& params, LossReduction reduction,
                                        const LossTotals& totals, void* workspace, void* stream);
const char* launch_binary_cross_entropy_backward(const BinaryParams& params, void* workspace,
                                                 void* stream,
                                                 const LogitChoice& choice = kBestLogits);

const char* launch_argmax(const ArgmaxParams& params, void* workspace, void* stream,
                          const LogitChoice& choice = kBestLogits);

}  // namespace msr
