// The row operations of the instruction set that the CPU kernels run with.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include "../kernels/row_ops.h"

namespace msr {

inline const RowOps<float>& cpu_row_ops() {
  const RowOpsChoice choice = choose_row_ops();
  STD_TORCH_CHECK(choice.ops, choice.why);
  return *choice.ops;
}

}  // namespace msr
