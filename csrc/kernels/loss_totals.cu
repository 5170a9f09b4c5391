#include "logit_launch.cuh"
#include "loss_totals_kernel.cuh"

namespace msr {

int64_t workspace_bytes(const LogitParams& logits, LogitPass pass) {
  return parts_bytes(logits, pass) + plan_taps(logits).bytes;
}

const char* launch_loss_totals(const LossPart* parts, int64_t blocks, double divisor,
                               bool acc_is_double, const LossTotals& totals, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (acc_is_double) {
    MSR_LAUNCH(loss_totals_kernel<double>, dim3(1), dim3(kLogitThreads), 0, cuda_stream, parts,
               blocks, divisor, static_cast<double*>(totals.loss),
               static_cast<double*>(totals.divisor));
  } else {
    MSR_LAUNCH(loss_totals_kernel<float>, dim3(1), dim3(kLogitThreads), 0, cuda_stream, parts,
               blocks, divisor, static_cast<float*>(totals.loss),
               static_cast<float*>(totals.divisor));
  }
  return last_logit_error();
}

}  // namespace msr
