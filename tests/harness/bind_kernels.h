#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "launchers.h"

namespace msr::harness {

// Adds the functions that launch msr_cuda's kernels on NumPy arrays.
void bind_kernels(pybind11::module_& module);

// Adds a function for each launcher. In Python it takes keyword arguments: integers and bools,
// floats, strings, arrays (see numpy_view.h), lists of arrays, and None, which is as if absent (in
// a list: an array whose data is null).
void bind_launchers(pybind11::module_& module, const std::vector<Launcher>& launchers);

}  // namespace msr::harness
