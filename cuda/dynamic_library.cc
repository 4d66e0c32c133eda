#include "dynamic_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>

#include "settings.h"

namespace jax_qconv {

ErrorOr<DynamicLibrary> DynamicLibrary::Open(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD)) {
      return DynamicLibrary(handle, name);
    }
  }
  std::string reasons;
  auto try_open = [&](const std::string& path) -> void* {
    void* handle = dlopen(path.c_str(), RTLD_NOW);
    if (handle == nullptr) reasons += StrCat(reasons.empty() ? "" : "; ", dlerror());
    return handle;
  };
  for (const std::string& name : names) {
    if (void* handle = try_open(name)) return DynamicLibrary(handle, name);
  }
  for (const std::string& dir : GetSettings().library_dirs) {
    for (const std::string& name : names) {
      const std::string path = dir + "/" + name;
      // Most folders don't have it; a copy that is there and fails is worth a report.
      std::error_code ignored;
      if (!std::filesystem::exists(path, ignored)) continue;
      if (void* handle = try_open(path)) return DynamicLibrary(handle, path);
    }
  }
  return Unexpected(Error(ErrorCode::kNotFound, reasons));
}

ErrorOr<void*> DynamicLibrary::Symbol(const char* name) const {
  dlerror();
  void* symbol = dlsym(handle_, name);
  if (symbol != nullptr) return symbol;
  return Unexpected(Error(ErrorCode::kNotFound, StrCat(name_, " has no symbol ", name)));
}

}  // namespace jax_qconv
