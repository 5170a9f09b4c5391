// Arrays as the launchers of the harness see them: a pointer, sizes and strides in elements. No
// Python here: numpy_view.h makes them from NumPy's.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda_on_cpu_builtins.h"

namespace msr::harness {

// The first four numbers are those of msr::DType.
enum class ElementType : std::int32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kBFloat16 = 2,
  kFloat64 = 3,
  kBool,
  kUInt8,
  kUInt16,
  kInt32,
  kUInt32,
  kInt64,
};

constexpr int kMaxRank = 8;

struct ArrayView {
  void* data;
  ElementType type;
  int element_bytes;
  int rank;
  std::int64_t size[kMaxRank];
  std::int64_t stride[kMaxRank];  // in elements
  bool writable;

  std::int64_t numel() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= size[i];
    return n;
  }

  // The data as T, which must be the element type: float, double, bool, a fixed-width integer, or
  // for half and bfloat16 __half and __nv_bfloat16. Not const: an array to be written.
  template <class T>
  T* as() const;
};

const char* name_of(ElementType type);
int bytes_of(ElementType type);
ElementType element_type(const std::string& name);  // std::invalid_argument if there is none

// Fills the elements, and nothing between them, with 0xff bytes: NaN, -1, or the largest number.
// Launchers do this to every output first.
void poison(const ArrayView& array);

template <class T>
struct ElementTypeOf;
#define MSR_HARNESS_ELEMENT_TYPE(type, code)                 \
  template <>                                                \
  struct ElementTypeOf<type> {                               \
    static constexpr ElementType kValue = ElementType::code; \
  }
MSR_HARNESS_ELEMENT_TYPE(float, kFloat32);
MSR_HARNESS_ELEMENT_TYPE(__half, kFloat16);
MSR_HARNESS_ELEMENT_TYPE(__nv_bfloat16, kBFloat16);
MSR_HARNESS_ELEMENT_TYPE(double, kFloat64);
MSR_HARNESS_ELEMENT_TYPE(bool, kBool);
MSR_HARNESS_ELEMENT_TYPE(std::uint8_t, kUInt8);
MSR_HARNESS_ELEMENT_TYPE(std::uint16_t, kUInt16);
MSR_HARNESS_ELEMENT_TYPE(std::int32_t, kInt32);
MSR_HARNESS_ELEMENT_TYPE(std::uint32_t, kUInt32);
MSR_HARNESS_ELEMENT_TYPE(std::int64_t, kInt64);
#undef MSR_HARNESS_ELEMENT_TYPE

template <class T>
T* ArrayView::as() const {
  constexpr ElementType kWanted = ElementTypeOf<std::remove_const_t<T>>::kValue;
  if (type != kWanted) {
    throw std::invalid_argument(std::string("expected an array of ") + name_of(kWanted) + ", got " +
                                name_of(type));
  }
  if (!std::is_const<T>::value && !writable) {
    throw std::invalid_argument("expected a writable array, got a read-only one");
  }
  return static_cast<T*>(data);
}

}  // namespace msr::harness
