// What every CUDA binding does around a launch.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "../kernels/launch.h"
#include "prepare.h"

// Only a CUDA build of torch has this symbol. Weak, so that the same binary also loads into a CPU
// build.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                             void** ret_stream);
#pragma weak aoti_torch_get_current_cuda_stream

namespace msr {

// Makes a tensor's device current, and knows the stream that its work belongs on.
class CudaGuard {
 public:
  explicit CudaGuard(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

// Device memory for the length of a call, from torch's allocator: it knows of streams and of CUDA
// graphs. Nothing is allocated for 0 bytes.
class Workspace {
 public:
  Workspace(int64_t bytes, const torch::stable::Tensor& like) {
    if (bytes > 0) memory_ = empty_vector(bytes, aoti_torch_dtype_uint8(), like);
  }
  void* data() const { return memory_ ? memory_->mutable_data_ptr() : nullptr; }

 private:
  std::optional<torch::stable::Tensor> memory_;
};

inline void check_launch(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, op, ": CUDA error: ", error ? error : "");
}

}  // namespace msr
