// Where kernels leave what they can't raise: memory of the host that every GPU sees, so that
// reading it waits for nothing and a captured graph may write it.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/headeronly/util/Exception.h>

#include <cstring>

#include "../kernels/logit_params.h"

namespace msr {

// One for each GPU; made at the first use, and never freed: a kernel may still write it when the
// process ends.
class BadTargets {
 public:
  static BadTargets& instance() {
    static BadTargets* const all = new BadTargets;
    return *all;
  }

  // What kernels on a GPU, which is the current one, are given.
  BadTarget* of_device(int32_t device) {
    check_index(device);
    void* seen_by_device = nullptr;
    check(cudaHostGetDevicePointer(&seen_by_device, words_ + device, 0));
    return static_cast<BadTarget*>(seen_by_device);
  }

  // Whether kernels that have run on a GPU met one; then it is forgotten.
  bool take(int32_t device, int64_t& index) {
    check_index(device);
    volatile BadTarget& word = words_[device];
    if (word.seen == 0) return false;
    index = word.index;
    word.seen = 0;
    return true;
  }

 private:
  BadTargets() {
    check(cudaGetDeviceCount(&count_));
    // The stream may be one that is being captured, which forbids allocations but for this.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode));
    void* memory = nullptr;
    const size_t bytes = static_cast<size_t>(count_) * sizeof(BadTarget);
    const cudaError_t error =
        cudaHostAlloc(&memory, bytes, cudaHostAllocPortable | cudaHostAllocMapped);
    check(cudaThreadExchangeStreamCaptureMode(&mode));
    check(error);
    std::memset(memory, 0, bytes);
    words_ = static_cast<BadTarget*>(memory);
  }

  static void check(cudaError_t error) {
    STD_TORCH_CHECK(error == cudaSuccess,
                    "resample_cross_entropy: CUDA error: ", cudaGetErrorString(error));
  }
  void check_index(int32_t device) const {
    STD_TORCH_CHECK(device >= 0 && device < count_, "msr_cuda: expected one of ", count_,
                    " CUDA devices, got ", device);
  }

  int count_ = 0;
  BadTarget* words_ = nullptr;
};

}  // namespace msr
