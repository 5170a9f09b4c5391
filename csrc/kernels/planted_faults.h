// Faults that are planted on purpose, to show that the tests find faults of their kind: each is off
// unless a test compiles a kernel with its macro. What a flag switches stands in the kernel itself,
// so that the fault is one of the shipped code.
#pragma once

namespace msr {

// Reads one element beyond the support of the last taps.
#if defined(MSR_FAULT_OUT_OF_BOUNDS_READ)
constexpr bool kFaultOutOfBoundsRead = true;
#else
constexpr bool kFaultOutOfBoundsRead = false;
#endif

// Writes one element beyond the block's shared memory.
#if defined(MSR_FAULT_SHARED_OVERFLOW)
constexpr bool kFaultSharedOverflow = true;
#else
constexpr bool kFaultSharedOverflow = false;
#endif

// Leaves out a barrier between a write to shared memory and another thread's read.
#if defined(MSR_FAULT_MISSING_BARRIER)
constexpr bool kFaultMissingBarrier = true;
#else
constexpr bool kFaultMissingBarrier = false;
#endif

// Moves a vector access by one element, off its alignment.
#if defined(MSR_FAULT_MISALIGNED_VECTOR)
constexpr bool kFaultMisalignedVector = true;
#else
constexpr bool kFaultMisalignedVector = false;
#endif

// Never writes the last part of the output.
#if defined(MSR_FAULT_UNWRITTEN_OUTPUT)
constexpr bool kFaultUnwrittenOutput = true;
#else
constexpr bool kFaultUnwrittenOutput = false;
#endif

}  // namespace msr
