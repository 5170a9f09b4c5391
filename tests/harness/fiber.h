// Stackful coroutines for cuda_on_cpu: one OS thread switches between a scheduler and many fibres.
//
// Switching costs a few nanoseconds on x86-64 (our own assembly) and a system call elsewhere
// (ucontext). Both tell AddressSanitizer about the stacks.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <memory>

namespace cuda_on_cpu {

// A place where execution can go on: a stack, and the registers saved on it.
struct ExecutionContext {
  void* stack_pointer = nullptr;
  ucontext_t* portable = nullptr;
  const void* stack_bottom = nullptr;
  std::size_t stack_bytes = 0;
  void* sanitizer_state = nullptr;
};

// What the fibres of one OS thread return to.
class FiberScheduler {
 public:
  explicit FiberScheduler(bool portable);

 private:
  friend class Fiber;
  bool portable_;
  ExecutionContext context_;
  ucontext_t ucontext_;
};

class Fiber {
 public:
  // Fibres that take turns should have different indices.
  explicit Fiber(unsigned int index);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Lets the next resume() call body(argument). The body must not throw, and must end only when
  // the fibre may be started anew.
  void start(FiberScheduler* scheduler, void (*body)(void*), void* argument);

  // Scheduler's side: runs the fibre until it suspends or its body ends.
  void resume();

  // Fibre's side: back to the scheduler until the next resume().
  void suspend();

 private:
  static void enter();
  void leave(bool for_ever);

  ExecutionContext context_;
  std::unique_ptr<ucontext_t> ucontext_;  // made on first use: it is large
  FiberScheduler* scheduler_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* mapping_ = nullptr;
  std::size_t stagger_;
};

}  // namespace cuda_on_cpu
