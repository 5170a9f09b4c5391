#include "cuda_on_cpu.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_on_cpu_shared_memory.h"
#include "fiber.h"

namespace cuda_on_cpu {

__thread const ThreadContext* current_thread = nullptr;

namespace {

// Limits of a device of compute capability 9.0.
constexpr unsigned int kWarpThreads = 32;
constexpr unsigned int kMaxBlockThreads = 1024;
constexpr unsigned int kMaxBlockZ = 64;
constexpr unsigned int kMaxGridX = 0x7fffffffu;
constexpr unsigned int kMaxGridYZ = 65535;
constexpr std::size_t kDefaultSharedBytes = 48 << 10;
constexpr std::size_t kMaxSharedBytes = 227 << 10;

constexpr int kPoison = 0xff;  // NaN in every floating-point type
// Bytes after dynamic shared memory that must stay poisoned: finds short overflows where there is
// no AddressSanitizer.
constexpr std::size_t kCanaryBytes = 64;

// Below this many CUDA threads a second OS thread costs more than it gives.
constexpr std::uint64_t kMinThreadsToShare = 4096;

struct Settings {
  ThreadOrder order = ThreadOrder::kForward;
  std::uint64_t seed = 0;
  bool portable_fibers = false;
#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
  int os_threads = 1;  // static shared variables are not thread-local
#else
  int os_threads = 2;
#endif
};

Settings settings;
std::mutex launch_mutex;  // one launch at a time; guards what follows
std::map<std::string, std::uint64_t> counts;
std::map<const void*, std::uint64_t> counts_by_address;
std::map<const void*, std::size_t> allowed_dynamic_shared;
std::atomic<bool> recording{false};
std::vector<RecordedLaunch> recorded;

std::string text(const char* label, unsigned int x, unsigned int y, unsigned int z) {
  std::ostringstream out;
  out << label << " (" << x << ", " << y << ", " << z << ")";
  return out.str();
}

std::string text(const dim3& v) { return text("", v.x, v.y, v.z).substr(1); }

std::string text(const uint3& v) { return text("thread", v.x, v.y, v.z); }

// A small generator whose sequences are the same on every platform (SplitMix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t below(std::uint64_t bound) {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % bound;
  }

 private:
  std::uint64_t state_;
};

template <class T>
void shuffle(std::vector<T>* items, Random* random) {
  for (std::size_t i = items->size(); i > 1; --i) {
    std::swap((*items)[i - 1], (*items)[random->below(i)]);
  }
}

template <class T>
std::vector<T> ordered(T count, ThreadOrder order, Random* random) {
  std::vector<T> result(count);
  for (T i = 0; i < count; ++i) result[i] = order == ThreadOrder::kReverse ? count - 1 - i : i;
  if (order == ThreadOrder::kShuffled) shuffle(&result, random);
  return result;
}

struct CallSite {
  const char* file = nullptr;
  int line = 0;

  bool operator==(const CallSite& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
};

std::ostream& operator<<(std::ostream& out, const CallSite& site) {
  return out << site.file << ":" << site.line;
}

// Thrown into a suspended fibre to unwind it after another one failed. Not a std::exception, so
// that nothing but the fibre's own entry takes it for an error.
struct Cancelled {};

class BlockRunner;

struct Thread {
  enum class Status { kReady, kAtBarrier, kAtCollective, kExited };

  ThreadContext context;  // first: current_thread points here
  BlockRunner* runner;
  unsigned int index;
  Status status;
  CallSite site;  // of the barrier or collective it waits at
  // The collective it waits at, or took part in last.
  WarpCollective collective;
  const char* collective_name;
  unsigned int mask;
  unsigned int source;
  std::uint64_t value;
  std::uint64_t result;
};

struct Warp {
  unsigned int lanes;    // that exist: the last warp of a block may be partial
  unsigned int waiting;  // at a collective
};

// Runs one block at a time on the calling OS thread. Keeps its fibres for the next.
class BlockRunner {
 public:
  void begin_launch(const LaunchConfig& config, const StaticShared& shared, const Settings& now);
  void run(std::uint64_t block, void (*body)(void*), void* closure);

  // For the running fibre.
  void barrier(Thread* self, CallSite site);
  std::uint64_t collective(Thread* self);
  // Of a thread, for messages: kernel, block and thread.
  LaunchError error(const Thread& thread, const std::string& message) const;

 private:
  static void fiber_body(void* thread);
  void reset_block(std::uint64_t block);
  void check_canary() const;
  void suspend(Thread* self);
  bool run_ready_threads(const std::vector<unsigned int>& order);
  bool release_barrier();
  bool release_collective(const Thread& arrived);
  std::string missing_lanes(const Thread& waiting) const;
  void unwind();
  Thread& lane(const Thread& of_warp, unsigned int lane) {
    return threads_[of_warp.index / kWarpThreads * kWarpThreads + lane];
  }
  const Thread& lane(const Thread& of_warp, unsigned int lane) const {
    return const_cast<BlockRunner*>(this)->lane(of_warp, lane);
  }
  std::string block_description() const;

  const LaunchConfig* config_ = nullptr;
  const StaticShared* static_shared_ = nullptr;
  Settings settings_;
  std::unique_ptr<FiberScheduler> scheduler_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  BlockContext block_;
  void (*body_)(void*) = nullptr;
  void* closure_ = nullptr;
  std::unique_ptr<unsigned char[]> dynamic_shared_;
  std::size_t canary_bytes_ = 0;
  std::exception_ptr error_;
  bool cancelled_ = false;
};

std::string BlockRunner::block_description() const {
  const uint3& b = block_.block_index;
  return "kernel '" + config_->name + "', " + text("block", b.x, b.y, b.z);
}

LaunchError BlockRunner::error(const Thread& thread, const std::string& message) const {
  return LaunchError(block_description() + ", " + text(thread.context.thread_index) + ": " +
                     message);
}

void BlockRunner::begin_launch(const LaunchConfig& config, const StaticShared& shared,
                               const Settings& now) {
  config_ = &config;
  static_shared_ = &shared;
  settings_ = now;
  scheduler_ = std::make_unique<FiberScheduler>(now.portable_fibers);
  const unsigned int count = config.block.x * config.block.y * config.block.z;
  while (fibers_.size() < count) fibers_.push_back(std::make_unique<Fiber>(fibers_.size()));
  threads_.resize(count);
  warps_.resize((count + kWarpThreads - 1) / kWarpThreads);
  // Exactly as long as asked for, so that AddressSanitizer's red zone begins at its end.
#if !defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
  canary_bytes_ = kCanaryBytes;
#endif
  dynamic_shared_.reset(new unsigned char[config.dynamic_shared_bytes + canary_bytes_]);
}

void BlockRunner::reset_block(std::uint64_t block) {
  const dim3& grid = config_->grid;
  const dim3& dim = config_->block;
  block_.block_index = {static_cast<unsigned int>(block % grid.x),
                        static_cast<unsigned int>(block / grid.x % grid.y),
                        static_cast<unsigned int>(block / grid.x / grid.y)};
  block_.block_dim = dim;
  block_.grid_dim = grid;
  block_.dynamic_shared = dynamic_shared_.get();
  std::memset(dynamic_shared_.get(), kPoison, config_->dynamic_shared_bytes + canary_bytes_);
  for (const SharedVariable& variable : static_shared_->variables) {
    std::memset(variable.address(), kPoison, variable.bytes);
  }
  const unsigned int count = static_cast<unsigned int>(threads_.size());
  for (unsigned int i = 0; i < count; ++i) {
    Thread& thread = threads_[i];
    thread.context = {{i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y}, i % kWarpThreads, &block_};
    thread.runner = this;
    thread.index = i;
    thread.status = Thread::Status::kReady;
    fibers_[i]->start(scheduler_.get(), &BlockRunner::fiber_body, &thread);
  }
  for (unsigned int w = 0; w < warps_.size(); ++w) {
    const unsigned int lanes = std::min(kWarpThreads, count - w * kWarpThreads);
    warps_[w] = {lanes == kWarpThreads ? ~0u : (1u << lanes) - 1u, 0};
  }
}

void BlockRunner::run(std::uint64_t block, void (*body)(void*), void* closure) {
  body_ = body;
  closure_ = closure;
  reset_block(block);
  // Depends on the block alone, not on the OS thread that runs it.
  Random random(settings_.seed * 0x9e3779b9u + block + 1);
  auto order = ordered(static_cast<unsigned int>(threads_.size()), settings_.order, &random);
  try {
    do {
      while (run_ready_threads(order)) {
        if (settings_.order == ThreadOrder::kShuffled) shuffle(&order, &random);
      }
    } while (release_barrier());
    check_canary();
  } catch (...) {
    unwind();
    throw;
  }
}

// Returns whether there were any.
bool BlockRunner::run_ready_threads(const std::vector<unsigned int>& order) {
  bool any = false;
  for (const unsigned int i : order) {
    if (threads_[i].status != Thread::Status::kReady) continue;
    any = true;
    current_thread = &threads_[i].context;
    fibers_[i]->resume();
    current_thread = nullptr;
    if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
  }
  return any;
}

// Called when no thread can run. Returns whether some can now; false is the end of the block.
bool BlockRunner::release_barrier() {
  const Thread* at_barrier = nullptr;
  const Thread* elsewhere = nullptr;
  const Thread* exited = nullptr;
  unsigned int number_exited = 0;
  for (const Thread& thread : threads_) {
    switch (thread.status) {
      case Thread::Status::kAtCollective:
        throw error(thread, missing_lanes(thread));
      case Thread::Status::kAtBarrier:
        if (at_barrier == nullptr) at_barrier = &thread;
        if (elsewhere == nullptr && !(thread.site == at_barrier->site)) elsewhere = &thread;
        break;
      case Thread::Status::kExited:
        ++number_exited;
        if (exited == nullptr) exited = &thread;
        break;
      case Thread::Status::kReady:
        break;
    }
  }
  if (at_barrier == nullptr) return false;
  std::ostringstream message;
  if (exited != nullptr) {
    message << "waits in __syncthreads() at " << at_barrier->site << ", but " << number_exited
            << " of " << threads_.size() << " threads have exited, the first "
            << text(exited->context.thread_index);
    throw error(*at_barrier, message.str());
  }
  if (elsewhere != nullptr) {
    message << "waits in __syncthreads() at " << at_barrier->site << ", but "
            << text(elsewhere->context.thread_index) << " waits in the one at " << elsewhere->site;
    throw error(*at_barrier, message.str());
  }
  for (Thread& thread : threads_) thread.status = Thread::Status::kReady;
  return true;
}

void BlockRunner::check_canary() const {
  const unsigned char* canary = dynamic_shared_.get() + config_->dynamic_shared_bytes;
  for (std::size_t i = 0; i < canary_bytes_; ++i) {
    if (canary[i] == kPoison) continue;
    throw LaunchError(block_description() + ": byte " +
                      std::to_string(config_->dynamic_shared_bytes + i) +
                      " of dynamic shared memory was written, but the launch gave it " +
                      std::to_string(config_->dynamic_shared_bytes) + " bytes");
  }
}

// Lets every suspended thread leave its kernel by an exception, so that destructors run and the
// fibres can be used again.
void BlockRunner::unwind() {
  cancelled_ = true;
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    const Thread::Status status = threads_[i].status;
    // Ready threads have either not begun or been released by a collective; both go through
    // fiber_body or suspend(), which look at cancelled_.
    if (status == Thread::Status::kExited) continue;
    current_thread = &threads_[i].context;
    fibers_[i]->resume();
    current_thread = nullptr;
  }
  cancelled_ = false;
  error_ = nullptr;
}

void BlockRunner::fiber_body(void* opaque) {
  auto* thread = static_cast<Thread*>(opaque);
  BlockRunner* const runner = thread->runner;
  if (!runner->cancelled_) {
    try {
      runner->body_(runner->closure_);
    } catch (const Cancelled&) {
    } catch (...) {
      if (!runner->cancelled_) runner->error_ = std::current_exception();
    }
  }
  thread->status = Thread::Status::kExited;
}

void BlockRunner::suspend(Thread* self) {
  fibers_[self->index]->suspend();
  if (cancelled_) throw Cancelled();
}

void BlockRunner::barrier(Thread* self, CallSite site) {
  self->site = site;
  self->status = Thread::Status::kAtBarrier;
  suspend(self);
}

std::uint64_t BlockRunner::collective(Thread* self) {
  warps_[self->index / kWarpThreads].waiting |= 1u << self->context.lane;
  self->status = Thread::Status::kAtCollective;
  if (!release_collective(*self)) suspend(self);
  return self->result;
}

// Completes the collective that `arrived` waits at if all its lanes are there. Every lane gets its
// result now: a lane that runs on may come to another collective before its partners have run.
bool BlockRunner::release_collective(const Thread& arrived) {
  Warp& warp = warps_[arrived.index / kWarpThreads];
  const unsigned int group = arrived.mask & warp.lanes;
  if ((warp.waiting & group) != group) return false;
  std::uint64_t votes = 0;
  for (unsigned int l = 0; l < kWarpThreads; ++l) {
    if (!(group >> l & 1u)) continue;
    const Thread& member = lane(arrived, l);
    if (member.collective != arrived.collective || member.mask != arrived.mask) return false;
    if (member.value != 0) votes |= std::uint64_t{1} << l;
  }
  for (unsigned int l = 0; l < kWarpThreads; ++l) {
    if (!(group >> l & 1u)) continue;
    Thread& member = lane(arrived, l);
    if (member.collective == WarpCollective::kVote) {
      member.result = votes;
    } else {
      const bool defined = member.source < kWarpThreads && (group >> member.source & 1u);
      member.result = defined ? lane(arrived, member.source).value : ~std::uint64_t{0};
    }
    member.status = Thread::Status::kReady;
  }
  warp.waiting &= ~group;
  return true;
}

std::string BlockRunner::missing_lanes(const Thread& waiting) const {
  std::ostringstream message;
  message << waiting.collective_name << " at " << waiting.site << " with mask 0x" << std::hex
          << waiting.mask << std::dec << " waits for ";
  const unsigned int group = waiting.mask & warps_[waiting.index / kWarpThreads].lanes;
  const char* separator = "";
  for (unsigned int l = 0; l < kWarpThreads; ++l) {
    if (!(group >> l & 1u)) continue;
    const Thread& member = lane(waiting, l);
    const bool at_collective = member.status == Thread::Status::kAtCollective;
    if (at_collective && member.collective == waiting.collective && member.mask == waiting.mask) {
      continue;
    }
    message << separator << "lane " << l;
    separator = ", ";
    if (at_collective) {
      message << " (in " << member.collective_name << " at " << member.site << " with mask 0x"
              << std::hex << member.mask << std::dec << ")";
    } else if (member.status == Thread::Status::kAtBarrier) {
      message << " (in __syncthreads() at " << member.site << ")";
    } else {
      message << " (exited)";
    }
  }
  return message.str();
}

Thread* running_thread() {
  if (current_thread == nullptr) throw LaunchError("a device function was called outside a kernel");
  return reinterpret_cast<Thread*>(const_cast<ThreadContext*>(current_thread));
}

// ---- launches ----------------------------------------------------------------------------------

void require(const LaunchConfig& config, bool condition, const std::string& message) {
  if (!condition) {
    throw LaunchError("kernel '" + config.name + "': invalid launch configuration: " + message);
  }
}

void check(const LaunchConfig& config, const StaticShared& shared) {
  const dim3& grid = config.grid;
  const dim3& block = config.block;
  require(config,
          grid.x >= 1 && grid.x <= kMaxGridX && grid.y >= 1 && grid.y <= kMaxGridYZ &&
              grid.z >= 1 && grid.z <= kMaxGridYZ,
          "expected a grid from (1, 1, 1) to (2147483647, 65535, 65535), got " + text(grid));
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  require(config,
          threads >= 1 && block.x <= kMaxBlockThreads && block.y <= kMaxBlockThreads &&
              block.z <= kMaxBlockZ && threads <= kMaxBlockThreads,
          "expected a block of 1 to 1024 threads with z up to 64, got " + text(block));
  const std::size_t own = shared.own_bytes;
  const std::size_t total = own + config.dynamic_shared_bytes;
  const std::string sum = std::to_string(own) + " static + " +
                          std::to_string(config.dynamic_shared_bytes) + " dynamic bytes";
  require(config, own <= kDefaultSharedBytes,
          "expected at most 49152 bytes of static shared memory, got " + std::to_string(own));
  require(config, total <= kMaxSharedBytes,
          "expected at most 232448 bytes of shared memory, got " + sum);
  const auto allowed = allowed_dynamic_shared.find(config.kernel);
  const bool opted_in =
      allowed != allowed_dynamic_shared.end() && config.dynamic_shared_bytes <= allowed->second;
  require(config, total <= kDefaultSharedBytes || opted_in,
          "more than 49152 bytes of shared memory need cudaFuncSetAttribute(kernel, "
          "cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) first, got " +
              sum);
}

// Runs the blocks of one launch on some OS threads. A block is taken up only when all before it (in
// the order of this launch) have been, and the error reported is the first one in that order:
// neither results nor errors depend on the number of OS threads.
class Launch {
 public:
  Launch(const LaunchConfig& config, void (*body)(void*), void* closure)
      : body_(body), closure_(closure) {
    const std::uint64_t blocks = std::uint64_t{config.grid.x} * config.grid.y * config.grid.z;
    Random random(settings.seed);
    order_ = ordered(blocks, settings.order, &random);
  }

  void work(BlockRunner* runner) {
    while (!failed_) {
      const std::uint64_t position = next_++;
      if (position >= order_.size()) return;
      try {
        runner->run(order_[position], body_, closure_);
      } catch (...) {
        failed_ = true;
        const std::lock_guard<std::mutex> lock(error_mutex_);
        if (error_ == nullptr || position < error_position_) {
          error_ = std::current_exception();
          error_position_ = position;
        }
      }
    }
  }

  void rethrow_error() const {
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  void (*body_)(void*);
  void* closure_;
  std::vector<std::uint64_t> order_;
  std::atomic<std::uint64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::uint64_t error_position_ = 0;
};

// "#kernel" of a kernel whose name holds a comma is in parentheses.
std::string without_parentheses(const std::string& name) {
  if (name.size() < 2 || name.front() != '(' || name.back() != ')') return name;
  return name.substr(1, name.size() - 2);
}

}  // namespace

void set_thread_order(ThreadOrder order, std::uint64_t seed) {
  settings.order = order;
  settings.seed = seed;
}

void set_os_threads(int count) {
#if !defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
  settings.os_threads = std::max(1, count);
#else
  static_cast<void>(count);
#endif
}

bool sanitized() {
#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
  return true;
#else
  return false;
#endif
}

void set_portable_fibers(bool portable) { settings.portable_fibers = portable; }

std::map<std::string, std::uint64_t> launch_counts() {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  return counts;
}

std::map<std::string, std::uint64_t> launches_of_compiled_kernels() {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  std::map<std::string, std::uint64_t> result;
  for (const auto& [address, name] : compiled_kernels()) {
    const auto found = counts_by_address.find(address);
    result[name] += found == counts_by_address.end() ? 0 : found->second;
  }
  return result;
}

void reset_launch_counts() {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  counts.clear();
  counts_by_address.clear();
}

void record_launches(bool on) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  recording = on;
}

bool records_launches() { return recording; }

void record_launch(const LaunchConfig& config, std::vector<unsigned char> parameters) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  check(config, static_shared_of(config.kernel));
  const dim3 &grid = config.grid, &block = config.block;
  recorded.push_back({compiled_kernels().at(config.kernel),
                      {grid.x, grid.y, grid.z},
                      {block.x, block.y, block.z},
                      config.dynamic_shared_bytes,
                      std::move(parameters)});
}

std::vector<RecordedLaunch> take_recorded() {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  return std::exchange(recorded, {});
}

void allow_dynamic_shared(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<std::size_t>(bytes) > kMaxSharedBytes) {
    throw LaunchError("cudaFuncSetAttribute: expected 0 to 232448 bytes, got " +
                      std::to_string(bytes));
  }
  const std::lock_guard<std::mutex> lock(launch_mutex);
  allowed_dynamic_shared[kernel] = static_cast<std::size_t>(bytes);
}

void launch(const LaunchConfig& given, void (*thread_body)(void*), void* closure) {
  if (current_thread != nullptr) fail("kernels can't launch kernels");
  LaunchConfig config = given;
  config.name = without_parentheses(given.name);
  const std::lock_guard<std::mutex> lock(launch_mutex);
  const StaticShared shared = static_shared_of(config.kernel);
  check(config, shared);
  ++counts[config.name];
  ++counts_by_address[config.kernel];

  Launch work(config, thread_body, closure);
  const std::uint64_t blocks = std::uint64_t{config.grid.x} * config.grid.y * config.grid.z;
  const std::uint64_t threads = blocks * config.block.x * config.block.y * config.block.z;
  const std::uint64_t os_threads =
      threads < kMinThreadsToShare ? 1 : std::min<std::uint64_t>(settings.os_threads, blocks);
  // Kept for the next launch: making a thousand stacks takes longer than most kernels.
  static std::vector<std::unique_ptr<BlockRunner>> runners;
  while (runners.size() < os_threads) runners.push_back(std::make_unique<BlockRunner>());
  for (std::uint64_t i = 0; i < os_threads; ++i) runners[i]->begin_launch(config, shared, settings);
  std::vector<std::thread> helpers;
  for (std::uint64_t i = 1; i < os_threads; ++i) {
    helpers.emplace_back([&work, runner = runners[i].get()] { work.work(runner); });
  }
  work.work(runners[0].get());
  for (std::thread& helper : helpers) helper.join();
  work.rethrow_error();
}

void fail(const std::string& message) {
  const Thread* thread = running_thread();
  throw thread->runner->error(*thread, message);
}

void block_barrier(const char* file, int line) {
  Thread* const thread = running_thread();
  thread->runner->barrier(thread, {file, line});
}

std::uint64_t warp_collective(WarpCollective kind, const char* name, unsigned int mask,
                              std::uint64_t value, unsigned int source, const char* file,
                              int line) {
  Thread* const thread = running_thread();
  if (!(mask >> thread->context.lane & 1u)) {
    std::ostringstream message;
    message << name << " at " << CallSite{file, line} << ": lane " << thread->context.lane
            << " is not in its own mask 0x" << std::hex << mask;
    fail(message.str());
  }
  thread->collective = kind;
  thread->collective_name = name;
  thread->mask = mask;
  thread->value = value;
  thread->source = source;
  thread->site = {file, line};
  return thread->runner->collective(thread);
}

}  // namespace cuda_on_cpu
