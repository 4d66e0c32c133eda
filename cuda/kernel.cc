#include "kernel.h"

#include <nvrtc.h>

#include "disk_cache.h"
#include "dynamic_library.h"

namespace jax_qconv {
namespace {

struct Nvrtc {
  decltype(&::nvrtcVersion) version = nullptr;
  decltype(&::nvrtcGetErrorString) error_string = nullptr;
  decltype(&::nvrtcCreateProgram) create = nullptr;
  decltype(&::nvrtcCompileProgram) compile = nullptr;
  decltype(&::nvrtcGetProgramLogSize) log_size = nullptr;
  decltype(&::nvrtcGetProgramLog) log = nullptr;
  decltype(&::nvrtcGetCUBINSize) cubin_size = nullptr;
  decltype(&::nvrtcGetCUBIN) cubin = nullptr;
  decltype(&::nvrtcDestroyProgram) destroy = nullptr;
};

ErrorOr<Nvrtc> LoadNvrtc() {
  auto library = DynamicLibrary::Open({"libnvrtc.so.13", "libnvrtc.so.12"});
  if (!library.has_value()) {
    return Unexpected(Error(
        ErrorCode::kNotFound,
        StrCat("NVRTC, CUDA's run-time compiler, can't be loaded (", library.error().message(),
               "); it comes with `pip install 'jax_qconv[cuda13]'` (or cuda12). Where it can't be "
               "installed, jax_qconv.load_kernels takes kernels that jax_qconv.export_kernels "
               "compiled elsewhere")));
  }
  Nvrtc nvrtc;
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("nvrtcVersion", &nvrtc.version));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("nvrtcGetErrorString", &nvrtc.error_string));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("nvrtcCreateProgram", &nvrtc.create));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("nvrtcCompileProgram", &nvrtc.compile));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("nvrtcGetProgramLogSize", &nvrtc.log_size));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("nvrtcGetProgramLog", &nvrtc.log));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("nvrtcGetCUBINSize", &nvrtc.cubin_size));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("nvrtcGetCUBIN", &nvrtc.cubin));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("nvrtcDestroyProgram", &nvrtc.destroy));
  // NVRTC opens its builtins by their bare name, which finds those of a wheel only if they are
  // loaded already. Where they aren't found here either, NVRTC itself says so best.
  int major = 0, minor = 0;
  nvrtc.version(&major, &minor);
  static_cast<void>(DynamicLibrary::Open({StrCat("libnvrtc-builtins.so.", major, ".", minor)}));
  return nvrtc;
}

const ErrorOr<Nvrtc>& Loaded() {
  static const auto* nvrtc = new ErrorOr<Nvrtc>(LoadNvrtc());
  return *nvrtc;
}

ErrorOr<std::string> Compile(const Nvrtc& nvrtc, const std::string& file_name,
                             const std::string& source, const std::string& architecture) {
  nvrtcProgram program = nullptr;
  auto check = [&](nvrtcResult result, const char* what) {
    if (result == NVRTC_SUCCESS) return Error::Success();
    return Error::Internal(StrCat(what, " of ", file_name, " for ", architecture,
                                  " failed: ", nvrtc.error_string(result)));
  };
  JQ_RETURN_UNEXPECTED_IF_ERROR(check(
      nvrtc.create(&program, source.c_str(), file_name.c_str(), 0, nullptr, nullptr), "reading"));
  const auto destroy = [&nvrtc](nvrtcProgram* p) { nvrtc.destroy(p); };
  const std::unique_ptr<nvrtcProgram, decltype(destroy)> owner(&program, destroy);

  const std::string option = "--gpu-architecture=" + architecture;
  // No contraction of a * b + c: kernels say __fmaf_rn where they mean it.
  const char* options[] = {option.c_str(), "--std=c++17", "--fmad=false"};
  if (Error error = check(nvrtc.compile(program, 3, options), "compilation"); error.failure()) {
    size_t size = 0;
    std::string log;
    if (nvrtc.log_size(program, &size) == NVRTC_SUCCESS) {
      log.resize(size);
      nvrtc.log(program, log.data());
    }
    return Unexpected(Error::Internal(StrCat(error.message(), "\n", log)));
  }
  size_t size = 0;
  JQ_RETURN_UNEXPECTED_IF_ERROR(check(nvrtc.cubin_size(program, &size), "linking"));
  std::string cubin(size, '\0');
  JQ_RETURN_UNEXPECTED_IF_ERROR(check(nvrtc.cubin(program, cubin.data()), "linking"));
  return cubin;
}

}  // namespace

Error CheckNvrtc() { return StatusOf(Loaded()); }

std::string NvrtcVersion() {
  if (!Loaded().has_value()) return "";
  int major = 0, minor = 0;
  Loaded()->version(&major, &minor);
  return StrCat(major, ".", minor);
}

namespace {

std::string CubinKey(const std::string& file_name, const std::string& source,
                     const std::string& architecture) {
  return StrCat(file_name, " ", HexHash(source), " ", architecture, " nvrtc ", NvrtcVersion());
}

// Of Hopper also what later GPUs don't have: all of 9.0 are of 9.0a.
std::string Architecture(int compute_capability) {
  return StrCat("sm_", compute_capability, compute_capability == 90 ? "a" : "");
}

// The folder of cubins that were compiled elsewhere, and their names in it.
constexpr char kLoaded[] = "loaded";

std::string LoadedKey(const std::string& source_hash, int compute_capability) {
  return StrCat(source_hash, " ", Architecture(compute_capability));
}

}  // namespace

ErrorOr<std::string> CompileCubin(const std::string& file_name, const std::string& source,
                                  int compute_capability) {
  const auto& nvrtc = Loaded();
  if (!nvrtc.has_value()) return Unexpected(nvrtc.error());
  const std::string architecture = Architecture(compute_capability);
  const std::string key = CubinKey(file_name, source, architecture);
  if (auto cubin = ReadCache("kernels", key)) return *cubin;
  JQ_ASSIGN_OR_UNEXPECTED(std::string cubin, Compile(*nvrtc, file_name, source, architecture));
  WriteCache("kernels", key, cubin);
  return cubin;
}

void ForgetCubin(const std::string& file_name, const std::string& source, int compute_capability) {
  RemoveFromCache("kernels", CubinKey(file_name, source, Architecture(compute_capability)));
}

bool KeepCubin(const std::string& source_hash, int compute_capability, const std::string& cubin) {
  const std::string key = LoadedKey(source_hash, compute_capability);
  // Processes that start together, and often, write it once.
  return ReadCache(kLoaded, key) == cubin || WriteCache(kLoaded, key, cubin);
}

std::optional<std::string> KeptCubin(const std::string& source, int compute_capability) {
  return ReadCache(kLoaded, LoadedKey(HexHash(source), compute_capability));
}

ErrorOr<std::string> FindCubin(const std::string& file_name, const std::string& source,
                               int compute_capability) {
  if (auto cubin = KeptCubin(source, compute_capability)) return *cubin;
  if (const Error nvrtc = CheckNvrtc(); nvrtc.failure()) {
    return Unexpected(Annotate(nvrtc, StrCat("kernel ", file_name, " for sm_", compute_capability,
                                             " isn't among those that were loaded")));
  }
  return CompileCubin(file_name, source, compute_capability);
}

ErrorOr<KernelModule> KernelModule::Load(const std::string& file_name, const std::string& source,
                                         int compute_capability) {
  JQ_ASSIGN_OR_UNEXPECTED(std::string cubin, FindCubin(file_name, source, compute_capability));
  JQ_ASSIGN_OR_UNEXPECTED(const CudaDriver* driver, CudaDriver::Get());
  CUmodule module;
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      driver->Check(driver->ModuleLoadData(&module, cubin.data()),
                    StrCat("loading ", file_name, ", which needs a driver as new as the CUDA ",
                           "version that compiled it,")
                        .c_str()));
  return KernelModule(module, HexHash(cubin));
}

KernelModule::~KernelModule() {
  if (module_ != nullptr) (*CudaDriver::Get())->ModuleUnload(module_);
}

ErrorOr<CUfunction> KernelModule::Find(const std::string& name) const {
  const CudaDriver* driver = *CudaDriver::Get();
  CUfunction function;
  JQ_RETURN_UNEXPECTED_IF_ERROR(
      driver->Check(driver->ModuleGetFunction(&function, module_, name.c_str()),
                    StrCat("finding kernel ", name).c_str()));
  return function;
}

Error KernelModule::LaunchPointers(const char* name, Grid blocks, unsigned threads, CUstream stream,
                                   void** arguments) const {
  JQ_ASSIGN_OR_RETURN(const CUfunction function, Find(name));
  return LaunchFunction(function, name, blocks, threads, 0, stream, arguments);
}

Error LaunchFunction(CUfunction function, const char* name, KernelModule::Grid blocks,
                     unsigned threads, unsigned shared_bytes, CUstream stream, void** arguments) {
  JQ_ASSIGN_OR_RETURN(const CudaDriver* driver, CudaDriver::Get());
  const CUresult result = driver->LaunchKernel(function, blocks.x, blocks.y, blocks.z, threads, 1,
                                               1, shared_bytes, stream, arguments, nullptr);
  if (result == CUDA_SUCCESS) return Error::Success();
  return driver->Check(result, StrCat("launching kernel ", name).c_str());
}

}  // namespace jax_qconv
