// Python module msr_cuda_harness: control of cuda_on_cpu, and the kernels to run with it.
#include <pybind11/pybind11.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bind_kernels.h"
#include "cuda_on_cpu_control.h"
#include "numpy_view.h"

namespace msr::harness {

namespace py = pybind11;

ArrayView view(py::handle array_or_pair) {
  py::object array = py::reinterpret_borrow<py::object>(array_or_pair);
  std::string carried;
  if (py::isinstance<py::tuple>(array)) {
    const auto pair = py::reinterpret_borrow<py::tuple>(array);
    if (pair.size() != 2) throw py::type_error("expected (uint16 array, dtype name)");
    carried = py::cast<std::string>(pair[1]);
    array = pair[0];
  }
  const auto dtype = py::cast<std::string>(array.attr("dtype").attr("name"));
  ArrayView result;
  result.type = element_type(dtype);
  if (!carried.empty()) {
    if (result.type != ElementType::kUInt16) {
      throw py::type_error(carried + " is carried as uint16, got " + dtype);
    }
    result.type = element_type(carried);
  }
  result.element_bytes = bytes_of(result.type);
  const py::tuple sizes = array.attr("shape");
  const py::tuple strides = array.attr("strides");
  if (sizes.size() > kMaxRank) throw py::value_error("expected at most 8 axes");
  result.rank = static_cast<int>(sizes.size());
  for (int i = 0; i < result.rank; ++i) {
    result.size[i] = py::cast<std::int64_t>(sizes[i]);
    const auto bytes = py::cast<std::int64_t>(strides[i]);
    if (bytes % result.element_bytes != 0) {
      throw py::value_error("expected strides of whole elements");
    }
    result.stride[i] = bytes / result.element_bytes;
  }
  const py::dict interface = array.attr("__array_interface__");
  const py::tuple data = interface["data"];
  result.data = reinterpret_cast<void*>(py::cast<std::uintptr_t>(data[0]));
  result.writable = !py::cast<bool>(data[1]);
  return result;
}

ArrayView output_view(py::handle array_or_pair) {
  const ArrayView result = view(array_or_pair);
  poison(result);
  return result;
}

namespace {

Arguments::Value value_of(py::handle value) {
  if (py::isinstance<py::bool_>(value) || py::isinstance<py::int_>(value)) {
    return py::cast<std::int64_t>(value);
  }
  if (py::isinstance<py::float_>(value)) return py::cast<double>(value);
  if (py::isinstance<py::str>(value)) return py::cast<std::string>(value);
  if (py::isinstance<py::list>(value)) {
    std::vector<ArrayView> arrays;
    for (const py::handle item : value) {
      arrays.push_back(item.is_none() ? ArrayView{} : view(item));
    }
    return arrays;
  }
  return view(value);
}

void set_thread_order(const std::string& order, std::uint64_t seed) {
  using cuda_on_cpu::ThreadOrder;
  if (order == "forward") {
    cuda_on_cpu::set_thread_order(ThreadOrder::kForward, seed);
  } else if (order == "reverse") {
    cuda_on_cpu::set_thread_order(ThreadOrder::kReverse, seed);
  } else if (order == "shuffled") {
    cuda_on_cpu::set_thread_order(ThreadOrder::kShuffled, seed);
  } else {
    throw py::value_error("set_thread_order: expected 'forward', 'reverse' or 'shuffled', got '" +
                          order + "'");
  }
}

py::dict dict_of(const std::map<std::string, std::uint64_t>& counts) {
  py::dict result;
  for (const auto& [name, count] : counts) result[name.c_str()] = count;
  return result;
}

py::dict launch_counts() { return dict_of(cuda_on_cpu::launch_counts()); }

py::dict compiled_kernels() { return dict_of(cuda_on_cpu::launches_of_compiled_kernels()); }

py::list take_recorded() {
  py::list result;
  for (const cuda_on_cpu::RecordedLaunch& launch : cuda_on_cpu::take_recorded()) {
    py::dict fields;
    fields["kernel"] = launch.kernel;
    fields["grid"] = py::make_tuple(launch.grid[0], launch.grid[1], launch.grid[2]);
    fields["block"] = py::make_tuple(launch.block[0], launch.block[1], launch.block[2]);
    fields["dynamic_shared_bytes"] = launch.dynamic_shared_bytes;
    fields["parameters"] = py::bytes(reinterpret_cast<const char*>(launch.parameters.data()),
                                     launch.parameters.size());
    result.append(fields);
  }
  return result;
}

py::dict describe(py::handle array) {
  const ArrayView seen = view(array);
  py::list sizes;
  py::list strides;
  for (int i = 0; i < seen.rank; ++i) {
    sizes.append(seen.size[i]);
    strides.append(seen.stride[i]);
  }
  py::dict result;
  result["address"] = reinterpret_cast<std::uintptr_t>(seen.data);
  result["dtype"] = name_of(seen.type);
  result["code"] = static_cast<int>(seen.type);
  result["size"] = sizes;
  result["stride"] = strides;
  result["writable"] = seen.writable;
  return result;
}

}  // namespace

void bind_launchers(py::module_& module, const std::vector<Launcher>& launchers) {
  for (const Launcher& launcher : launchers) {
    module.def(launcher.name, [launch = launcher.launch](const py::kwargs& given) {
      Arguments arguments;
      for (const auto& [name, value] : given) {
        if (!value.is_none()) arguments.set(py::cast<std::string>(name), value_of(value));
      }
      launch(arguments);
    });
  }
}

}  // namespace msr::harness

PYBIND11_MODULE(msr_cuda_harness, module) {
  namespace py = pybind11;
  using namespace msr::harness;  // NOLINT: the module is its own scope
  module.def("set_thread_order", &set_thread_order, py::arg("order"), py::arg("seed") = 0,
             "Run threads and blocks in 'forward', 'reverse' or 'shuffled' order.");
  module.def("set_os_threads", &cuda_on_cpu::set_os_threads, py::arg("count"),
             "How many blocks may run at once (always one under AddressSanitizer).");
  module.def("set_portable_fibers", &cuda_on_cpu::set_portable_fibers, py::arg("portable"),
             "Switch fibres by ucontext, as on platforms other than x86-64.");
  module.def("launch_counts", &launch_counts, "Launches since the last reset, by kernel name.");
  module.def("compiled_kernels", &compiled_kernels,
             "Every kernel instance of the module, with its launches since the last reset.");
  module.def("reset_launch_counts", &cuda_on_cpu::reset_launch_counts);
  module.def("record_launches", &cuda_on_cpu::record_launches, py::arg("on"),
             "Whether launches are kept for take_recorded() instead of run.");
  module.def("take_recorded", &take_recorded,
             "The launches recorded since the last call: kernel, grid, block, "
             "dynamic_shared_bytes, and parameters as a GPU's constant memory has them.");
  module.def("describe", &describe, py::arg("array"), "How bindings see an array.");
  module.def(
      "poison", [](py::handle array) { poison(view(array)); }, py::arg("array"),
      "Fill an array's elements with 0xff bytes, as bindings do with outputs.");
  module.attr("sanitized") = cuda_on_cpu::sanitized();
  bind_kernels(module);
  py::module_ selftest = module.def_submodule("selftest", "Kernels that test the harness itself.");
  bind_launchers(selftest, selftest_launchers());
}
