// Own CUDA kernels, compiled by NVRTC: at run time for the device at hand, or beforehand.

#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "status.h"

namespace jax_qconv {

// "13.0", or empty where NVRTC can't be loaded.
std::string NvrtcVersion();

// Why NVRTC can't be used, or success.
Error CheckNvrtc();

// Compiles a source to a cubin for sm_<compute_capability>, or finds it on disk, where it is kept
// by source, architecture and NVRTC version. Needs no GPU.
ErrorOr<std::string> CompileCubin(const std::string& file_name, const std::string& source,
                                  int compute_capability);

// Removes what CompileCubin left on the disk for the next process.
void ForgetCubin(const std::string& file_name, const std::string& source, int compute_capability);

// Cubins that were compiled elsewhere, kept on disk for this process and others by the hash of
// their source (HexHash) and the architecture. KeepCubin tells whether it is there now.
bool KeepCubin(const std::string& source_hash, int compute_capability, const std::string& cubin);
std::optional<std::string> KeptCubin(const std::string& source, int compute_capability);

// The one that is kept; without it, NVRTC is needed.
ErrorOr<std::string> FindCubin(const std::string& file_name, const std::string& source,
                               int compute_capability);

// The functions of one source, loaded into the current context from what FindCubin finds.
class KernelModule {
 public:
  static ErrorOr<KernelModule> Load(const std::string& file_name, const std::string& source,
                                    int compute_capability);
  KernelModule(KernelModule&& other) noexcept
      : module_(std::exchange(other.module_, nullptr)), code_(std::move(other.code_)) {}
  KernelModule& operator=(KernelModule&&) = delete;
  ~KernelModule();

  struct Grid {
    unsigned x = 1, y = 1, z = 1;
  };

  // Names its machine code, which not the source alone decides.
  const std::string& code() const { return code_; }

  // A function of the source, which is loaded by then.
  ErrorOr<CUfunction> Find(const std::string& name) const;

  // Launches `name` with the arguments, each of exactly the type of the kernel's parameter.
  template <typename... Args>
  Error Launch(const char* name, Grid blocks, unsigned threads, CUstream stream,
               Args... args) const {
    void* pointers[] = {&args...};
    return LaunchPointers(name, blocks, threads, stream, pointers);
  }

 private:
  KernelModule(CUmodule module, std::string code) : module_(module), code_(std::move(code)) {}
  Error LaunchPointers(const char* name, Grid blocks, unsigned threads, CUstream stream,
                       void** arguments) const;

  CUmodule module_;
  std::string code_;
};

// A function of one source with the size of its only launch.
struct KernelSpec {
  std::string file_name, function, source;
  KernelModule::Grid blocks;
  unsigned threads = 0;
  unsigned shared_bytes = 0;  // of dynamic shared memory
};

// Launches a function on a stream; `arguments` point at its parameters.
Error LaunchFunction(CUfunction function, const char* name, KernelModule::Grid blocks,
                     unsigned threads, unsigned shared_bytes, CUstream stream, void** arguments);

}  // namespace jax_qconv
