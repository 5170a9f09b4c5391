// The extension's root: the schema of every operator, what the binary was built with, and the
// module that Python can import. Kernels register themselves, one dispatch key a file.

#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <string>

#include "cpu_isa.h"

// setup.py defines these; the defaults serve a file compiled on its own.
#ifndef MSR_VERSION
#define MSR_VERSION "unknown"
#endif
#ifndef MSR_CUDA_TOOLKIT
#define MSR_CUDA_TOOLKIT ""
#endif
#ifndef MSR_CUDA_ARCHITECTURES
#define MSR_CUDA_ARCHITECTURES ""
#endif

#ifdef MSR_WITH_CUDA
#define MSR_HAS_CUDA "true"
#else
#define MSR_HAS_CUDA "false"
#endif
#ifdef MSR_SANITIZE
#define MSR_IS_SANITIZED "true"
#else
#define MSR_IS_SANITIZED "false"
#endif
#ifdef __clang__
#define MSR_COMPILER __VERSION__
#else
#define MSR_COMPILER "GCC " __VERSION__
#endif

namespace msr {
namespace {

// JSON, because the stable ABI returns strings but not dictionaries.
// clang-format off
constexpr const char kBuildInfo[] =
    "{\"version\": \"" MSR_VERSION "\""
    ", \"compiler\": \"" MSR_COMPILER "\""
    ", \"torch\": \"" TORCH_VERSION "\""
    ", \"with_cuda\": " MSR_HAS_CUDA
    ", \"cuda_toolkit\": \"" MSR_CUDA_TOOLKIT "\""
    ", \"cuda_architectures\": \"" MSR_CUDA_ARCHITECTURES "\""
    ", \"sanitized\": " MSR_IS_SANITIZED "}";
// clang-format on

std::string build_info() { return kBuildInfo; }

// The instruction set that the CPU kernels run with: "avx512", "avx2" or "generic".
std::string cpu_isa() { return cpu_row_ops().name; }

}  // namespace
}  // namespace msr

STABLE_TORCH_LIBRARY(msr_cuda, m) {
  m.def("build_info() -> str");
  m.def("cpu_isa() -> str");
  // Hot calls have few arguments, because a call costs by their number; .full takes the rarer ones,
  // .extended the rest. The integers are packed as msr_cuda/_spec.py says.
  m.def("gather(Tensor[] inputs, SymInt[] size, int spec) -> Tensor");
  // The same for calls outside of graphs: a list of sizes costs as much as making a result.
  m.def("gather.one(Tensor input, int size, int spec) -> Tensor");
  m.def("gather.packed(Tensor[] inputs, int size, int spec) -> Tensor");
  m.def("gather.saving(Tensor[] inputs, int size, int spec) -> (Tensor output, Tensor mask)");
  m.def(
      "gather.full(Tensor[] inputs, Tensor? weights, Tensor? gate, SymInt[] size, int spec, "
      "float[] scales) -> (Tensor output, Tensor mask)");
  m.def(
      "gather.extended(Tensor[] inputs, Tensor? weights, Tensor? pixel_weights, Tensor? gate, "
      "Tensor? grad, SymInt[] size, int spec, float[] scales, SymInt[] windows)"
      " -> (Tensor output, Tensor mask, Tensor[] indices)");
  m.def(
      "gather.out(Tensor[] inputs, Tensor? weights, Tensor? pixel_weights, int spec, "
      "float[] scales, SymInt[] windows, *, Tensor(a!) out) -> ()");
  m.def(
      "gather_many(Tensor[] inputs, int[] counts, Tensor[] weights, Tensor[] pixel_weights, "
      "SymInt[] sizes, int[] specs, float[] scales, SymInt[] windows)"
      " -> (Tensor[] outputs, Tensor[] masks, Tensor[] indices)");
  m.def("spread(Tensor grad, SymInt[] shapes, int spec, int requests) -> Tensor[]");
  m.def(
      "spread.full(Tensor grad, Tensor? gate, Tensor? weights, Tensor[] inputs, SymInt[] shapes, "
      "int spec, int requests, float[] scales) -> (Tensor[] grads, Tensor weight_grads)");
  m.def(
      "spread.extended(Tensor grad, Tensor? gate, Tensor? weights, Tensor? pixel_weights, "
      "Tensor[] inputs, Tensor[] indices, SymInt[] shapes, int spec, int requests, float[] scales, "
      "SymInt[] windows) -> (Tensor[] grads, Tensor weight_grads)");
  m.def(
      "pixel_weight_grads(Tensor grad, Tensor[] inputs, Tensor? weights, Tensor? gate, int spec, "
      "float[] scales, SymInt[] windows) -> Tensor");
  // Of resampled logits, which are never written. What is saved: log-sum-exp, sums of targets.
  m.def(
      "cross_entropy(Tensor logits, Tensor target, Tensor? weight, int spec, int ignore_index, "
      "float label_smoothing, int reduction)"
      " -> (Tensor loss, Tensor lse, Tensor target_sums, Tensor divisor)");
  m.def(
      "cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor? weight, "
      "Tensor lse, Tensor target_sums, int spec, int ignore_index, float label_smoothing)"
      " -> Tensor");
  m.def(
      "binary_cross_entropy(Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, "
      "int spec, int reduction) -> Tensor");
  m.def(
      "binary_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor? weight, "
      "Tensor? pos_weight, int spec) -> Tensor");
  m.def(
      "argmax(Tensor logits, SymInt[] size, int spec, int index_type, bool with_probability)"
      " -> (Tensor index, Tensor probability)");
  // Raises what CUDA kernels met that have run; only a binary that has them implements it.
  m.def("check_targets(int device) -> ()");
  m.def(
      "taps(int mode, int in_size, int out_size, float scale_factor, bool adjoint, bool single)"
      " -> (Tensor first, Tensor count, Tensor weights)");
}

// They take no tensor, so no device chooses them.
STABLE_TORCH_LIBRARY_IMPL(msr_cuda, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&msr::build_info));
  m.impl("cpu_isa", TORCH_BOX(&msr::cpu_isa));
}

// Loading the binary registers the operators; the module itself is empty. PyMODINIT_FUNC keeps the
// function visible under -fvisibility=hidden.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
