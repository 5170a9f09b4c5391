// Functions that launch kernels, and how Python calls them: by keyword arguments alone, whatever
// they are. No Python here, so that what launches kernels compiles fast and under sanitizers.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "array_view.h"

namespace msr::harness {

// The arguments of one call, by name. std::invalid_argument where one is missing or of another
// type.
class Arguments {
 public:
  using Value = std::variant<std::int64_t, double, std::string, ArrayView, std::vector<ArrayView>>;

  void set(const std::string& name, Value value);

  // Those whose names begin with a prefix, without it.
  Arguments part(const std::string& prefix) const;

  bool has(const std::string& name) const;
  int integer(const std::string& name) const;
  double real(const std::string& name) const;
  const std::string& text(const std::string& name) const;
  const ArrayView& array(const std::string& name) const;
  const std::vector<ArrayView>& arrays(const std::string& name) const;
  // An array that the kernel is to write: poisoned.
  const ArrayView& output(const std::string& name) const;

 private:
  template <class T>
  const T& get(const std::string& name, const char* expected) const;

  std::map<std::string, Value> values_;
};

struct Launcher {
  const char* name;
  void (*launch)(const Arguments&);
};

// Those of selftest_launchers.cpp.
const std::vector<Launcher>& selftest_launchers();

}  // namespace msr::harness
