#include "cuda_on_cpu_shared_memory.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include "cuda_on_cpu.h"

// A thread-local variable whose symbol gives the thread-local block's start.
extern "C" {
__thread char cuda_on_cpu_thread_local_anchor;
}

namespace cuda_on_cpu {
namespace {

struct Function {
  std::string name;
  std::size_t offset;
};

struct NamedVariable {
  std::string name;
  SharedVariable variable;
};

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

class SymbolTable {
 public:
  static const SymbolTable& instance() {
    static const SymbolTable table;
    return table;
  }

  const char* load_address() const { return load_address_; }
  const std::vector<Function>& kernels() const { return kernels_; }
  std::size_t anchor_offset() const { return anchor_offset_; }

  StaticShared static_shared_of(const void* kernel) const {
    const std::size_t offset = static_cast<const char*>(kernel) - load_address_;
    StaticShared result{{}, 0};
    std::string prefix;
    for (const Function& function : kernels_) {
      // _Z<kernel> has the local variable _ZZ<kernel>E<variable>.
      if (function.offset == offset) prefix = "_ZZ" + function.name.substr(2) + "E";
    }
    for (const NamedVariable& shared : variables_) {
      const bool own = !prefix.empty() && shared.name.compare(0, prefix.size(), prefix) == 0;
      const bool of_a_kernel = contains(shared.name, "B11cuda_global");
      if (own) result.own_bytes += shared.variable.bytes;
      if (own || !of_a_kernel) result.variables.push_back(shared.variable);
    }
    return result;
  }

 private:
  SymbolTable() {
    Dl_info info;
    const auto here = reinterpret_cast<const void*>(&SymbolTable::instance);
    if (dladdr(here, &info) == 0) {
      throw std::runtime_error("cuda_on_cpu: the module's file is not known to the loader");
    }
    load_address_ = static_cast<const char*>(info.dli_fbase);
    std::ifstream file(info.dli_fname, std::ios::binary);
    const std::vector<char> image{std::istreambuf_iterator<char>(file), {}};
    read(image, info.dli_fname);
  }

  template <class T>
  static T at(const std::vector<char>& image, std::size_t offset) {
    T value;
    if (offset + sizeof(T) > image.size()) {
      throw std::runtime_error("cuda_on_cpu: the module's file is cut short");
    }
    std::memcpy(&value, image.data() + offset, sizeof(T));
    return value;
  }

  void read(const std::vector<char>& image, const char* path) {
    const auto header = at<ElfW(Ehdr)>(image, 0);
    bool found_symbols = false;
    for (unsigned int i = 0; i < header.e_shnum; ++i) {
      const auto section = at<ElfW(Shdr)>(image, header.e_shoff + i * header.e_shentsize);
      if (section.sh_type != SHT_SYMTAB) continue;
      found_symbols = true;
      const auto names =
          at<ElfW(Shdr)>(image, header.e_shoff + section.sh_link * header.e_shentsize);
      for (std::size_t entry = 0; entry < section.sh_size; entry += sizeof(ElfW(Sym))) {
        const auto symbol = at<ElfW(Sym)>(image, section.sh_offset + entry);
        add(image.data() + names.sh_offset + symbol.st_name, symbol);
      }
    }
    if (!found_symbols) {
      throw std::runtime_error(std::string("cuda_on_cpu: ") + path + " has no symbol table");
    }
  }

  void add(const char* name, const ElfW(Sym) & symbol) {
    const int type = symbol.st_info & 0xf;  // ELF32_ST_TYPE and ELF64_ST_TYPE
    if (symbol.st_shndx == SHN_UNDEF) return;
    if (type == STT_FUNC && std::strstr(name, "B11cuda_global") != nullptr) {
      kernels_.push_back({name, symbol.st_value});
    } else if (type == STT_TLS && std::strcmp(name, "cuda_on_cpu_thread_local_anchor") == 0) {
      anchor_offset_ = symbol.st_value;
    } else if ((type == STT_OBJECT || type == STT_TLS) && std::strncmp(name, "_ZZ", 3) == 0 &&
               std::strstr(name, "B11cuda_shared") != nullptr) {
      variables_.push_back({name, {symbol.st_value, symbol.st_size, type == STT_TLS}});
    }
  }

  const char* load_address_ = nullptr;
  std::size_t anchor_offset_ = 0;
  std::vector<Function> kernels_;
  std::vector<NamedVariable> variables_;
};

// "msr::scale_kernel<float, 4>" of a kernel's symbol: without return type, tag and parameters.
std::string kernel_name(const std::string& symbol) {
  char* const demangled = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, nullptr);
  if (demangled == nullptr) return symbol;
  std::string name = demangled;
  std::free(demangled);
  const std::string tag = "[abi:cuda_global]";
  const std::size_t tag_begin = name.find(tag);
  std::size_t end = tag_begin;
  name.erase(tag_begin, tag.size());
  for (int depth = 0; end < name.size() && (depth > 0 || name[end] != '('); ++end) {
    if (name[end] == '<') ++depth;
    if (name[end] == '>') --depth;
  }
  name.erase(end);
  return name.compare(0, 5, "void ") == 0 ? name.substr(5) : name;
}

}  // namespace

const std::map<const void*, std::string>& compiled_kernels() {
  static const std::map<const void*, std::string> kernels = [] {
    const SymbolTable& table = SymbolTable::instance();
    std::map<const void*, std::string> result;
    for (const Function& kernel : table.kernels()) {
      result[table.load_address() + kernel.offset] = kernel_name(kernel.name);
    }
    return result;
  }();
  return kernels;
}

void* SharedVariable::address() const {
  const SymbolTable& table = SymbolTable::instance();
  if (!thread_local_storage) return const_cast<char*>(table.load_address()) + offset;
  return &cuda_on_cpu_thread_local_anchor - table.anchor_offset() + offset;
}

StaticShared static_shared_of(const void* kernel) {
  return SymbolTable::instance().static_shared_of(kernel);
}

}  // namespace cuda_on_cpu
