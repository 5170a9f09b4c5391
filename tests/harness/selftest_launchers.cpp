#include <string>

#include "launchers.h"
#include "selftest_kernels.cuh"

namespace msr::harness {
namespace {

using namespace selftest;  // NOLINT: this file is made for that namespace

unsigned int blocks_for(std::int64_t n, int threads) {
  return static_cast<unsigned int>((n + threads - 1) / threads);
}

template <typename T>
const T* input(const Arguments& a, const char* name) {
  return a.array(name).as<const T>();
}

template <typename T>
T* output(const Arguments& a, const char* name) {
  return a.output(name).as<T>();
}

int numel(const Arguments& a, const char* name) { return static_cast<int>(a.array(name).numel()); }

void block_sum(const Arguments& a) {
  const int n = numel(a, "x");
  const dim3 grid(blocks_for(n, kThreads));
  const float* x = input<float>(a, "x");
  MSR_LAUNCH(block_sum_kernel, grid, kThreads, 0, nullptr, x, n, output<float>(a, "partial"));
}

template <typename T>
void shuffle_sum_of(const Arguments& a) {
  const int n = numel(a, "x");
  MSR_LAUNCH_NAMED(std::string("shuffle_sum_") + name_of(a.array("x").type),
                   (shuffle_sum_kernel<T, 96>), blocks_for(n, 96), 96, 0, nullptr, input<T>(a, "x"),
                   n, output<T>(a, "partial"));
}

void shuffle_sum(const Arguments& a) {
  if (a.array("x").type == ElementType::kFloat64) {
    shuffle_sum_of<double>(a);
  } else {
    shuffle_sum_of<float>(a);
  }
}

void shuffle_kinds(const Arguments& a) {
  const int argument = a.integer("argument");
  const int width = a.integer("width");
  const int threads = a.integer("threads");
  int* out = output<int>(a, "out");
  MSR_LAUNCH(shuffle_kinds_kernel, 1, threads, 0, nullptr, argument, width, out);
}

void half_warps(const Arguments& a) {
  MSR_LAUNCH(half_warps_kernel, 1, 32, 0, nullptr, input<int>(a, "x"), output<int>(a, "out"));
}

void vote(const Arguments& a) {
  const int threads = a.integer("threads");
  MSR_LAUNCH(vote_kernel, blocks_for(numel(a, "x"), threads), threads, 0, nullptr,
             input<int>(a, "x"), output<unsigned int>(a, "ballot"), output<int>(a, "any"),
             output<int>(a, "all"));
}

void reverse(const Arguments& a) {
  const int threads = a.integer("threads");
  const dim3 grid(blocks_for(numel(a, "x"), threads));
  const double* x = input<double>(a, "x");
  double* out = output<double>(a, "out");
  MSR_LAUNCH(reverse_kernel, grid, threads, threads * sizeof(double), nullptr, x, out);
}

void indices(const Arguments& a) {
  const dim3 grid(a.integer("grid_x"), a.integer("grid_y"), a.integer("grid_z"));
  const dim3 block(a.integer("block_x"), a.integer("block_y"), a.integer("block_z"));
  const int dynamic_bytes = a.has("dynamic_bytes") ? a.integer("dynamic_bytes") : 0;
  MSR_LAUNCH(indices_kernel, grid, block, dynamic_bytes, nullptr, output<int>(a, "out"));
}

void count_positive(const Arguments& a) {
  const int n = numel(a, "x");
  int* count = output<int>(a, "count");
  *count = 0;
  const dim3 grid(blocks_for(n, kThreads));
  MSR_LAUNCH(count_positive_kernel, grid, kThreads, 0, nullptr, input<int>(a, "x"), n, count);
}

template <typename T>
void round_trip_of(const Arguments& a) {
  const int n = numel(a, "x");
  MSR_LAUNCH((round_trip_kernel<T>), blocks_for(n, 8 * kThreads), kThreads, 0, nullptr,
             input<T>(a, "x"), n, output<float>(a, "widened"), output<T>(a, "out"));
}

void round_trip(const Arguments& a) {
  if (a.array("x").type == ElementType::kBFloat16) {
    round_trip_of<__nv_bfloat16>(a);
  } else {
    round_trip_of<__half>(a);
  }
}

template <typename T>
void round_of(const Arguments& a) {
  const int n = numel(a, "x");
  const dim3 grid(blocks_for(n, kThreads));
  const float* x = input<float>(a, "x");
  MSR_LAUNCH((round_kernel<T>), grid, kThreads, 0, nullptr, x, n, output<T>(a, "out"));
}

void round_to_half(const Arguments& a) {
  if (a.array("out").type == ElementType::kBFloat16) {
    round_of<__nv_bfloat16>(a);
  } else {
    round_of<__half>(a);
  }
}

void unwritten_shared(const Arguments& a) {
  unsigned int* out = output<unsigned int>(a, "out");
  const bool write = a.integer("write") != 0;
  MSR_LAUNCH(unwritten_shared_kernel, a.integer("blocks"), 4, 16, nullptr, out, write);
}

void large_static_shared(const Arguments& a) {
  const int bytes = a.integer("dynamic_bytes");
  float* out = output<float>(a, "out");
  cudaFuncSetAttribute(large_static_shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       a.integer("allowed_bytes"));
  MSR_LAUNCH(large_static_shared_kernel, 1, 32, bytes, nullptr, out);
}

void missing_barrier(const Arguments& a) {
  const float* x = input<float>(a, "x");
  MSR_LAUNCH(missing_barrier_kernel, 1, kThreads, 0, nullptr, x, output<float>(a, "out"));
}

void block_race(const Arguments& a) {
  MSR_LAUNCH(block_race_kernel, a.integer("blocks"), 1, 0, nullptr, output<int>(a, "out"));
}

void early_return(const Arguments& a) {
  MSR_LAUNCH(early_return_kernel, 1, kThreads, 0, nullptr, a.integer("n"), output<float>(a, "out"),
             a.array("destroyed").as<int>());
}

void divergent_barrier(const Arguments& a) {
  MSR_LAUNCH(divergent_barrier_kernel, 1, 64, 0, nullptr, output<float>(a, "out"));
}

void missing_lane(const Arguments& a) {
  MSR_LAUNCH(missing_lane_kernel, 1, 64, 0, nullptr, output<int>(a, "out"));
}

void lane_at_barrier(const Arguments& a) {
  MSR_LAUNCH(lane_at_barrier_kernel, 1, 64, 0, nullptr, output<int>(a, "out"));
}

void outside_mask(const Arguments& a) {
  MSR_LAUNCH(outside_mask_kernel, 1, 64, 0, nullptr, output<int>(a, "out"));
}

void masks_differ(const Arguments& a) {
  MSR_LAUNCH(masks_differ_kernel, 1, 64, 0, nullptr, output<int>(a, "out"));
}

void shuffle_width(const Arguments& a) {
  MSR_LAUNCH(shuffle_width_kernel, 1, 64, 0, nullptr, output<int>(a, "out"));
}

void trap(const Arguments& a) {
  const int block = a.integer("block");
  const int thread = a.integer("thread");
  int* out = output<int>(a, "out");
  MSR_LAUNCH(trap_kernel, a.integer("blocks"), kThreads, 0, nullptr, block, thread, out);
}

void read_past_end(const Arguments& a) {
  const float* x = input<float>(a, "x");
  const int n = numel(a, "x");
  MSR_LAUNCH(read_past_end_kernel, 1, kThreads, 0, nullptr, x, n, output<float>(a, "out"));
}

void write_past_end(const Arguments& a) {
  const int n = numel(a, "out");
  MSR_LAUNCH(write_past_end_kernel, 1, kThreads, 0, nullptr, n, output<float>(a, "out"));
}

void static_shared_overflow(const Arguments& a) {
  const int index = a.integer("index");
  float* out = output<float>(a, "out");
  MSR_LAUNCH(static_shared_overflow_kernel, 1, kThreads, 0, nullptr, index, out);
}

void dynamic_shared_overflow(const Arguments& a) {
  const int index = a.integer("index");
  float* out = output<float>(a, "out");
  const std::size_t bytes = kThreads * sizeof(float);
  MSR_LAUNCH(dynamic_shared_overflow_kernel, 1, kThreads, bytes, nullptr, index, out);
}

void misaligned_load(const Arguments& a) {
  const float* x = input<float>(a, "x");
  const int offset = a.integer("offset");
  MSR_LAUNCH(misaligned_load_kernel, 1, 1, 0, nullptr, x, offset, output<float>(a, "out"));
}

void signed_overflow(const Arguments& a) {
  MSR_LAUNCH(signed_overflow_kernel, 1, 1, 0, nullptr, a.integer("x"), output<int>(a, "out"));
}

void unwritten_output(const Arguments& a) {
  const int n = numel(a, "out");
  const dim3 grid(blocks_for(n, kThreads));
  MSR_LAUNCH(unwritten_output_kernel, grid, kThreads, 0, nullptr, n, output<float>(a, "out"));
}

void stray_write(const Arguments& a) {
  const ArrayView& out = a.output("out");
  MSR_LAUNCH(stray_write_kernel, 1, kThreads, 0, nullptr, static_cast<int>(out.size[0]),
             static_cast<int>(out.size[1]), static_cast<int>(out.stride[0]), out.as<float>());
}

}  // namespace

const std::vector<Launcher>& selftest_launchers() {
  static const std::vector<Launcher> launchers = {
      {"block_sum", block_sum},
      {"shuffle_sum", shuffle_sum},
      {"shuffle_kinds", shuffle_kinds},
      {"half_warps", half_warps},
      {"vote", vote},
      {"reverse", reverse},
      {"indices", indices},
      {"count_positive", count_positive},
      {"round_trip", round_trip},
      {"round_to_half", round_to_half},
      {"unwritten_shared", unwritten_shared},
      {"large_static_shared", large_static_shared},
      {"missing_barrier", missing_barrier},
      {"block_race", block_race},
      {"early_return", early_return},
      {"divergent_barrier", divergent_barrier},
      {"missing_lane", missing_lane},
      {"lane_at_barrier", lane_at_barrier},
      {"outside_mask", outside_mask},
      {"masks_differ", masks_differ},
      {"shuffle_width", shuffle_width},
      {"trap", trap},
      {"read_past_end", read_past_end},
      {"write_past_end", write_past_end},
      {"static_shared_overflow", static_shared_overflow},
      {"dynamic_shared_overflow", dynamic_shared_overflow},
      {"misaligned_load", misaligned_load},
      {"signed_overflow", signed_overflow},
      {"unwritten_output", unwritten_output},
      {"stray_write", stray_write},
  };
  return launchers;
}

}  // namespace msr::harness
