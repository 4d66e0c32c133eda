#include "kernel_engine.h"

#include <algorithm>

#include "disk_cache.h"

namespace jax_qconv {
namespace {

class KernelExecutable : public Executable {
 public:
  KernelExecutable(KernelModule module, CUfunction function, const KernelSpec& spec)
      : module_(std::move(module)),
        function_(function),
        name_(spec.function),
        blocks_(spec.blocks),
        threads_(spec.threads),
        shared_bytes_(spec.shared_bytes) {}

  Error Launch(const Operands& operands, CUstream stream) const override {
    void* arguments[] = {const_cast<Operands*>(&operands)};
    return LaunchFunction(function_, name_.c_str(), blocks_, threads_, shared_bytes_, stream,
                          arguments);
  }

  std::string code() const override { return module_.code(); }

 private:
  KernelModule module_;
  CUfunction function_;  // of the module
  std::string name_;
  KernelModule::Grid blocks_;
  unsigned threads_, shared_bytes_;
};

class KernelEngine : public Engine {
 public:
  explicit KernelEngine(const KernelSource& source) : source_(source) {}

  ErrorOr<std::vector<PlanName>> Suggestions(const Problem& problem, int device) const override {
    JQ_ASSIGN_OR_UNEXPECTED(const DeviceInfo info, GetDeviceInfo(device));
    return source_.Suits(info.compute_capability) ? source_.Suggestions(problem)
                                                  : std::vector<PlanName>{};
  }

  ErrorOr<std::vector<PlanName>> Configurations(const Problem& problem, int device) const override {
    JQ_ASSIGN_OR_UNEXPECTED(const DeviceInfo info, GetDeviceInfo(device));
    return source_.Suits(info.compute_capability) ? source_.plans(problem)
                                                  : std::vector<PlanName>{};
  }

  ErrorOr<std::unique_ptr<Executable>> Build(const Problem& problem, const PlanName& name,
                                             int device) const override {
    JQ_ASSIGN_OR_UNEXPECTED(const KernelSpec spec, source_.kernel(problem, name));
    JQ_ASSIGN_OR_UNEXPECTED(const DeviceInfo info, GetDeviceInfo(device));
    if (!source_.Suits(info.compute_capability)) {
      return Unexpected(CantRun(
          problem, name,
          StrCat("it is for GPUs of sm_", source_.only, ", not sm_", info.compute_capability)));
    }
    auto executable = Loaded(spec, info);
    if (executable.has_value()) return executable;
    return Unexpected(Annotate(executable.error(), StrCat("building plan '", name.ToString(),
                                                          "' for '", problem.text, "'")));
  }

  // Its cubin, which CompileCubin keeps.
  void Forget(const Problem& problem, const PlanName& name, int device) const override {
    const auto info = GetDeviceInfo(device);
    const auto spec = source_.kernel(problem, name);
    if (!info.has_value() || !spec.has_value()) return;
    ForgetCubin(spec->file_name, spec->source, info->compute_capability);
  }

  ErrorOr<std::string> Version() const override {
    return StrCat(source_.name, " ", HexHash(source_.source));
  }

 private:
  static ErrorOr<std::unique_ptr<Executable>> Loaded(const KernelSpec& spec,
                                                     const DeviceInfo& info) {
    JQ_ASSIGN_OR_UNEXPECTED(KernelModule module, KernelModule::Load(spec.file_name, spec.source,
                                                                    info.compute_capability));
    JQ_ASSIGN_OR_UNEXPECTED(const CUfunction function, module.Find(spec.function));
    if (spec.shared_bytes > 0) {
      // More than 48 KB must be asked for.
      JQ_ASSIGN_OR_UNEXPECTED(const CudaDriver* driver, CudaDriver::Get());
      JQ_RETURN_UNEXPECTED_IF_ERROR(driver->Check(
          driver->FuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                   static_cast<int>(spec.shared_bytes)),
          StrCat("giving ", spec.shared_bytes, " bytes of shared memory to ", spec.function)
              .c_str()));
    }
    return std::unique_ptr<Executable>(new KernelExecutable(std::move(module), function, spec));
  }

  const KernelSource& source_;
};

}  // namespace

Error CantRun(const Problem& problem, const PlanName& name, const std::string& why) {
  return Error::InvalidArgument(StrCat("plan '", name.ToString(), "' can't run '", problem.text,
                                       "': ", why, "; leave plan= out to have one chosen"));
}

std::vector<PlanName> KernelSource::Suggestions(const Problem& problem) const {
  std::vector<PlanName> names = plans(problem);
  names.resize(std::min(names.size(), suggested));
  return names;
}

std::unique_ptr<Engine> MakeKernelEngine(const KernelSource& source) {
  return std::make_unique<KernelEngine>(source);
}

}  // namespace jax_qconv
