// How tests control cuda_on_cpu. Apart from the device language, which no binding should see.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace cuda_on_cpu {

struct LaunchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class ThreadOrder { kForward, kReverse, kShuffled };

// The order in which blocks, and the runnable threads of a block between two barriers, run.
void set_thread_order(ThreadOrder order, std::uint64_t seed = 0);

// How many blocks may run at once. 1 under AddressSanitizer, whatever is asked for.
void set_os_threads(int count);

// Switch fibres by ucontext, as platforms other than x86-64 do. Only tests want it elsewhere.
void set_portable_fibers(bool portable);

// Launches since the last reset, by kernel name.
std::map<std::string, std::uint64_t> launch_counts();
// The same for every kernel of the module, also those never launched. Here each instance of a
// template counts by itself, and nothing that a launch says of its kernel matters.
std::map<std::string, std::uint64_t> launches_of_compiled_kernels();
void reset_launch_counts();

// A launch as it was asked for: the kernel as launches_of_compiled_kernels names it.
struct RecordedLaunch {
  std::string kernel;
  std::array<std::uint64_t, 3> grid, block;
  std::uint64_t dynamic_shared_bytes;
  std::vector<unsigned char> parameters;
};

// While on, nothing that is launched runs: launches are checked, and kept for take_recorded. Nor
// are outputs poisoned.
void record_launches(bool on);
bool records_launches();
std::vector<RecordedLaunch> take_recorded();

// Whether the kernels were compiled with AddressSanitizer.
bool sanitized();

}  // namespace cuda_on_cpu
