// Shared libraries opened at run time: nothing of CUDA is linked.

#pragma once

#include <string>
#include <vector>

#include "status.h"

namespace jax_qconv {

class DynamicLibrary {
 public:
  // Opens the first of `names` that is already loaded (the copy that JAX's plugin uses), else
  // the first that the loader or the folders of NVIDIA's wheels have. Never closed.
  static ErrorOr<DynamicLibrary> Open(const std::vector<std::string>& names);

  // Address of a symbol; an error that names the symbol and the library if it is missing.
  ErrorOr<void*> Symbol(const char* name) const;

  // Sets `*function` to the symbol.
  template <typename F>
  Error Bind(const char* name, F** function) const {
    JQ_ASSIGN_OR_RETURN(void* symbol, Symbol(name));
    *function = reinterpret_cast<F*>(symbol);
    return Error::Success();
  }

  void* handle() const { return handle_; }
  const std::string& name() const { return name_; }

 private:
  DynamicLibrary(void* handle, std::string name) : handle_(handle), name_(std::move(name)) {}

  void* handle_;
  std::string name_;
};

}  // namespace jax_qconv
