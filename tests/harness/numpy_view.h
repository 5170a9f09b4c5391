// Views of NumPy arrays.
#pragma once

#include <pybind11/pybind11.h>

#include "array_view.h"

namespace msr::harness {

// The view of a NumPy array, or of a pair (uint16 array, "float16" or "bfloat16"): NumPy has no
// bfloat16. Sizes and strides are the array's own, also where an axis has one element and NumPy's
// buffer interface would normalise its stride: kernels choose their path by strides.
ArrayView view(pybind11::handle array_or_pair);

// The same of an array to be written, whose elements are poisoned.
ArrayView output_view(pybind11::handle array_or_pair);

}  // namespace msr::harness
