#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "cuda_on_cpu.h"

#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// void cuda_on_cpu_switch_stack(void** saved_stack_pointer, void* next_stack_pointer)
// Saves the registers that a callee must preserve on the current stack, and takes up the other one.
// The floating-point control words belong to the OS thread, and kernels leave them alone.
extern "C" void cuda_on_cpu_switch_stack(void** saved_stack_pointer, void* next_stack_pointer);
asm(R"(
.text
.p2align 4
.hidden cuda_on_cpu_switch_stack
.globl cuda_on_cpu_switch_stack
.type cuda_on_cpu_switch_stack, @function
cuda_on_cpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch_stack, .-cuda_on_cpu_switch_stack
)");
#endif

namespace cuda_on_cpu {
namespace {

// Memory is committed as it is touched, so that the size costs address space only. Sanitizers put
// red zones between the variables of a frame.
#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
constexpr std::size_t kStackBytes = 512 << 10;
#else
constexpr std::size_t kStackBytes = 128 << 10;
#endif
// Mappings begin at page boundaries. If all stacks did, their used parts would share a few sets of
// the processor's caches, and every switch would miss.
constexpr std::size_t kStaggerBytes = 5 * 64;
constexpr std::size_t kMaxStaggerBytes = 4096;
constexpr std::size_t kGuardBytes = 64 << 10;  // a multiple of every page size in use

// The fibre that enter() is to begin: a new stack can't take an argument portably.
__thread Fiber* starting_fiber = nullptr;

void switch_context(bool portable, ExecutionContext* from, const ExecutionContext* to) {
#if defined(__x86_64__)
  if (!portable) {
    cuda_on_cpu_switch_stack(&from->stack_pointer, to->stack_pointer);
    return;
  }
#endif
  swapcontext(from->portable, to->portable);
}

#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
void announce_switch(void** state, const ExecutionContext& to) {
  __sanitizer_start_switch_fiber(state, to.stack_bottom, to.stack_bytes);
}

void finish_switch(void* state, ExecutionContext* came_from) {
  __sanitizer_finish_switch_fiber(state, &came_from->stack_bottom, &came_from->stack_bytes);
}
#else
void announce_switch(void**, const ExecutionContext&) {}
void finish_switch(void*, ExecutionContext*) {}
#endif

}  // namespace

FiberScheduler::FiberScheduler(bool portable) : portable_(portable) {
  context_.portable = &ucontext_;
}

Fiber::Fiber(unsigned int index) : stagger_(index * kStaggerBytes % kMaxStaggerBytes) {
  mapping_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  // Stacks grow downwards: an overflow faults here and doesn't reach another fibre's stack.
  mprotect(mapping_, kGuardBytes, PROT_NONE);
  context_.stack_bottom = static_cast<char*>(mapping_) + kGuardBytes;
  context_.stack_bytes = kStackBytes;
}

Fiber::~Fiber() { munmap(mapping_, kGuardBytes + kStackBytes); }

void Fiber::start(FiberScheduler* scheduler, void (*body)(void*), void* argument) {
  scheduler_ = scheduler;
  body_ = body;
  argument_ = argument;
  context_.sanitizer_state = nullptr;
#if defined(__x86_64__)
  if (!scheduler->portable_) {
    // What cuda_on_cpu_switch_stack pops: six registers and the address of enter(). A null return
    // address above it ends stack traces; with it the stack is aligned as after a call.
    char* const top = static_cast<char*>(mapping_) + kGuardBytes + kStackBytes - stagger_;
    void** saved = reinterpret_cast<void**>(top) - 8;
    for (int i = 0; i < 8; ++i) saved[i] = nullptr;
    saved[6] = reinterpret_cast<void*>(&Fiber::enter);
    context_.stack_pointer = saved;
    return;
  }
#endif
  if (ucontext_ == nullptr) ucontext_ = std::make_unique<ucontext_t>();
  getcontext(ucontext_.get());
  ucontext_->uc_stack.ss_sp = static_cast<char*>(mapping_) + kGuardBytes;
  ucontext_->uc_stack.ss_size = kStackBytes;
  ucontext_->uc_link = nullptr;
  makecontext(ucontext_.get(), &Fiber::enter, 0);
  context_.portable = ucontext_.get();
}

void Fiber::resume() {
  starting_fiber = this;
  announce_switch(&scheduler_->context_.sanitizer_state, context_);
  switch_context(scheduler_->portable_, &scheduler_->context_, &context_);
  ExecutionContext ignored;  // the fibre's own stack, which is known
  finish_switch(scheduler_->context_.sanitizer_state, &ignored);
}

void Fiber::suspend() {
  leave(false);
  finish_switch(context_.sanitizer_state, &scheduler_->context_);
}

// Not instrumented: its frame is abandoned, and must not leave red zones on a stack that is used
// again.
__attribute__((no_sanitize("address", "undefined"))) void Fiber::enter() {
  Fiber* const fiber = starting_fiber;
  finish_switch(nullptr, &fiber->scheduler_->context_);
  fiber->body_(fiber->argument_);
  fiber->leave(true);
  std::abort();
}

void Fiber::leave(bool for_ever) {
  // Null tells AddressSanitizer to free what it keeps for a fibre that ends.
  announce_switch(for_ever ? nullptr : &context_.sanitizer_state, scheduler_->context_);
  switch_context(scheduler_->portable_, &context_, &scheduler_->context_);
}

}  // namespace cuda_on_cpu
