#include "launchers.h"

#include <stdexcept>
#include <utility>

namespace msr::harness {

template <class T>
const T& Arguments::get(const std::string& name, const char* expected) const {
  const auto found = values_.find(name);
  if (found == values_.end()) throw std::invalid_argument("argument " + name + " is missing");
  const T* value = std::get_if<T>(&found->second);
  if (value == nullptr) {
    throw std::invalid_argument("argument " + name + ": expected " + expected);
  }
  return *value;
}

void Arguments::set(const std::string& name, Value value) { values_[name] = std::move(value); }

Arguments Arguments::part(const std::string& prefix) const {
  Arguments found;
  for (const auto& [name, value] : values_) {
    if (name.compare(0, prefix.size(), prefix) == 0) found.set(name.substr(prefix.size()), value);
  }
  return found;
}

bool Arguments::has(const std::string& name) const { return values_.count(name) != 0; }

int Arguments::integer(const std::string& name) const {
  const std::int64_t value = get<std::int64_t>(name, "an integer");
  if (value != static_cast<int>(value)) {
    throw std::invalid_argument("argument " + name + " does not fit in an int");
  }
  return static_cast<int>(value);
}

double Arguments::real(const std::string& name) const { return get<double>(name, "a float"); }

const std::string& Arguments::text(const std::string& name) const {
  return get<std::string>(name, "a string");
}

const ArrayView& Arguments::array(const std::string& name) const {
  return get<ArrayView>(name, "an array");
}

const std::vector<ArrayView>& Arguments::arrays(const std::string& name) const {
  return get<std::vector<ArrayView>>(name, "a list of arrays");
}

const ArrayView& Arguments::output(const std::string& name) const {
  poison(array(name));
  return array(name);
}

}  // namespace msr::harness
