#include "array_view.h"

#include <cstring>

#include "cuda_on_cpu_control.h"

namespace msr::harness {
namespace {

struct Description {
  const char* name;
  int bytes;
};

// In the order of ElementType.
constexpr Description kDescriptions[] = {
    {"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"float64", 8}, {"bool", 1},
    {"uint8", 1},   {"uint16", 2},  {"int32", 4},    {"uint32", 4},  {"int64", 8},
};

}  // namespace

const char* name_of(ElementType type) { return kDescriptions[static_cast<int>(type)].name; }

int bytes_of(ElementType type) { return kDescriptions[static_cast<int>(type)].bytes; }

ElementType element_type(const std::string& name) {
  int code = 0;
  for (const Description& description : kDescriptions) {
    if (name == description.name) return static_cast<ElementType>(code);
    ++code;
  }
  throw std::invalid_argument("no kernel takes elements of type " + name);
}

void poison(const ArrayView& array) {
  if (!array.writable) throw std::invalid_argument("expected a writable output array");
  if (cuda_on_cpu::records_launches()) return;
  const std::int64_t count = array.numel();
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i;
    std::int64_t offset = 0;
    for (int axis = array.rank - 1; axis >= 0; --axis) {
      offset += rest % array.size[axis] * array.stride[axis];
      rest /= array.size[axis];
    }
    std::memset(static_cast<char*>(array.data) + offset * array.element_bytes, 0xff,
                array.element_bytes);
  }
}

}  // namespace msr::harness
