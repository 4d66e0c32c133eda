// What Python sees of the extension.

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "conv_ffi.h"
#include "cuda_driver.h"
#include "cudnn_graph.h"
#include "cudnn_library.h"
#include "disk_cache.h"
#include "engines.h"
#include "kernel.h"
#include "kernel_sources.h"
#include "plan_name.h"
#include "problem.h"
#include "search.h"
#include "settings.h"
#include "tuner.h"

namespace nb = nanobind;

namespace jax_qconv {
namespace {

// The value, or the Python exception for its error: ValueError where an argument is wrong.
template <typename T>
T ValueOrThrow(ErrorOr<T> result) {
  if (result.has_value()) return std::move(result).value();
  const Error& error = result.error();
  if (error.errc() == ErrorCode::kInvalidArgument) throw nb::value_error(error.message().c_str());
  throw std::runtime_error(error.message());
}

// Runs `body` without Python's lock.
template <typename Body>
auto WithoutGil(Body&& body) {
  nb::gil_scoped_release release;
  return body();
}

nb::dict Versions() {
  nb::dict versions;
  versions["ffi_api"] = nb::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  versions["schema"] = kConvSchema;
  versions["cudnn"] = nb::cast(CudnnHeaderVersion());
  versions["cudnn_frontend"] = nb::cast(CudnnFrontendVersion());
  return versions;
}

nb::object VersionTuple(int64_t version, int64_t major_unit, int64_t minor_unit) {
  return nb::make_tuple(version / major_unit, version % major_unit / minor_unit,
                        version % minor_unit);
}

// The CUDA version of the driver; None without one.
nb::object DriverVersion() {
  const auto driver = CudaDriver::Get();
  int version = 0;
  if (!driver.has_value() || (*driver)->DriverGetVersion(&version) != CUDA_SUCCESS) {
    return nb::none();
  }
  return nb::make_tuple(version / 1000, version % 1000 / 10);
}

nb::dict Libraries() {
  nb::dict found;
  for (const char* name : {"cudnn", "cudnn_error", "driver", "driver_error", "nvrtc_error"}) {
    found[name] = nb::none();
  }
  const auto cudnn = OpenCudnn();
  if (cudnn.has_value()) {
    found["cudnn"] = VersionTuple(*cudnn, 10000, 100);
  } else {
    found["cudnn_error"] = cudnn.error().message();
  }
  if (const Error nvrtc = CheckNvrtc(); nvrtc.failure()) found["nvrtc_error"] = nvrtc.message();
  // The kernel that every plan needs.
  const auto kept = [](const DeviceInfo& device) {
    return KeptCubin(kCheckConvSource, device.compute_capability).has_value();
  };
  const auto devices = VisibleDevices();
  found["loaded_kernels"] = std::any_of(devices.begin(), devices.end(), kept);
  found["driver"] = DriverVersion();
  if (found["driver"].is_none()) {
    const auto driver = CudaDriver::Get();
    found["driver_error"] = driver.has_value() ? "the NVIDIA driver doesn't tell its version"
                                               : driver.error().message();
  }
  return found;
}

nb::dict Device(int device) {
  const DeviceInfo info = ValueOrThrow(GetDeviceInfo(device));
  const int64_t cudnn = ValueOrThrow(OpenCudnn());
  nb::dict description;
  description["gpu"] = info.name;
  description["compute_capability"] = info.compute_capability;
  description["cudnn"] = CudnnVersionText(cudnn);
  return description;
}

// The names of plans as Python has them, and back.
std::vector<std::string> Texts(const std::vector<PlanName>& names) {
  std::vector<std::string> texts;
  for (const PlanName& name : names) texts.push_back(name.ToString());
  return texts;
}
std::vector<PlanName> Parse(const std::vector<std::string>& texts) {
  std::vector<PlanName> names;
  for (const std::string& text : texts) {
    names.push_back(ValueOrThrow(PlanName::Parse(text)));
    if (names.back().deferred()) throw nb::value_error("a deferred plan can't be tuned");
  }
  return names;
}

std::unique_ptr<Tuner> MakeTuner(const std::string& problem_text, int device) {
  return ValueOrThrow(Tuner::Create(ValueOrThrow(Problem::Parse(problem_text)), device));
}

std::vector<std::string> BuildPlans(Tuner& tuner, const std::vector<std::string>& texts) {
  const std::vector<PlanName> names = Parse(texts);
  const std::vector<Error> errors = WithoutGil([&] { return tuner.Build(names); });
  std::vector<std::string> reasons;
  for (const Error& error : errors) reasons.push_back(error.success() ? "" : error.message());
  return reasons;
}

std::vector<std::string> VerifyPlans(Tuner& tuner, const std::vector<std::string>& texts) {
  const std::vector<PlanName> names = Parse(texts);
  const auto verdicts = ValueOrThrow(WithoutGil([&] { return tuner.Verify(names); }));
  std::vector<std::string> reasons;
  for (const Verdict& verdict : verdicts) reasons.push_back(verdict.reason);
  return reasons;
}

double TimePlan(Tuner& tuner, const std::string& text, int launches) {
  const PlanName name = Parse({text})[0];
  return ValueOrThrow(WithoutGil([&] { return tuner.Time(name, launches); }));
}

std::string VerifyText(const std::string& problem_text, const std::string& plan, int device) {
  const Problem problem = ValueOrThrow(Problem::Parse(problem_text));
  const PlanName name = ValueOrThrow(PlanName::Parse(plan));
  if (name.deferred()) throw nb::value_error("a deferred plan has nothing to verify");
  return ValueOrThrow(WithoutGil([&] { return Verify(problem, name, device); }));
}

std::vector<std::string> SuggestWithoutDevice(const std::string& problem_text,
                                              const std::string& device_properties,
                                              const std::string& engine) {
  const Problem problem = ValueOrThrow(Problem::Parse(problem_text));
  const auto graph =
      ValueOrThrow(CudnnGraph::CreateWithoutDevice(problem, engine, device_properties));
  const auto suggestions = ValueOrThrow(graph->Suggest());
  return Texts(suggestions);
}

nb::bytes BuildWithoutDevice(const std::string& problem_text, const std::string& device_properties,
                             const std::string& plan) {
  const Problem problem = ValueOrThrow(Problem::Parse(problem_text));
  const PlanName name = ValueOrThrow(PlanName::Parse(plan));
  if (name.deferred()) throw nb::value_error("a deferred plan can't be built");
  const std::string bytes = ValueOrThrow(WithoutGil([&]() -> ErrorOr<std::string> {
    JQ_ASSIGN_OR_UNEXPECTED(
        auto graph, CudnnGraph::CreateWithoutDevice(problem, name.engine, device_properties));
    JQ_RETURN_UNEXPECTED_IF_ERROR(graph->Build(name));
    return graph->Serialize();
  }));
  return nb::bytes(bytes.data(), bytes.size());
}

std::vector<std::string> OwnPlanTexts(const std::string& problem_text, int compute_capability) {
  return Texts(OwnPlans(ValueOrThrow(Problem::Parse(problem_text)), compute_capability));
}

nb::dict OwnKernelOf(const std::string& problem_text, const std::string& plan) {
  const Problem problem = ValueOrThrow(Problem::Parse(problem_text));
  const KernelSpec spec = ValueOrThrow(OwnKernel(problem, ValueOrThrow(PlanName::Parse(plan))));
  nb::dict kernel;
  kernel["source"] = spec.source;
  kernel["function"] = spec.function;
  kernel["blocks"] = spec.blocks.x;
  kernel["threads"] = spec.threads;
  return kernel;
}

std::vector<std::pair<std::string, std::string>> KernelsOf(const std::string& problem_text,
                                                           const std::string& plan, bool pinned) {
  const Problem problem = ValueOrThrow(Problem::Parse(problem_text));
  return ValueOrThrow(KernelsFor(problem, ValueOrThrow(PlanName::Parse(plan)), pinned));
}

// A function that makes a cubin of a source, as Python has it.
template <ErrorOr<std::string> (*make)(const std::string&, const std::string&, int)>
nb::bytes CubinOf(const std::string& source, int compute_capability, const std::string& file_name) {
  const std::string cubin =
      ValueOrThrow(WithoutGil([&] { return make(file_name, source, compute_capability); }));
  return nb::bytes(cubin.data(), cubin.size());
}

bool Keep(const std::string& source_hash, int compute_capability, const nb::bytes& bytes) {
  const std::string cubin(bytes.c_str(), bytes.size());
  return WithoutGil([&] { return KeepCubin(source_hash, compute_capability, cubin); });
}

std::vector<int> ComputeCapabilities() {
  std::vector<int> found;
  for (const DeviceInfo& device : VisibleDevices()) found.push_back(device.compute_capability);
  return found;
}

nb::capsule Handler(XLA_FFI_Error* (*handler)(XLA_FFI_CallFrame*)) {
  return nb::capsule(reinterpret_cast<void*>(handler));
}

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "Native side of jax_qconv: plans and the XLA custom call.";
  m.def("versions", &Versions, "Versions that the extension was built with.");
  m.def(
      "configure",
      [](std::string cache_dir, std::vector<std::string> library_dirs) {
        GetSettings() = {std::move(cache_dir), std::move(library_dirs)};
      },
      nb::arg("cache_dir"), nb::arg("library_dirs"),
      "Sets the folder of caches and those of NVIDIA's libraries; once, before all else.");
  m.def("libraries", &Libraries,
        "Versions of cuDNN and the driver found at run time, or why they and NVRTC weren't; and "
        "whether kernels for a GPU here were loaded.");
  m.def("driver_version", &DriverVersion, "(major, minor) of the driver's CUDA; None without one.");
  m.def(
      "nvrtc_version",
      [] {
        if (Error error = CheckNvrtc(); error.failure()) throw std::runtime_error(error.message());
        return NvrtcVersion();
      },
      "Of the NVRTC that is found; RuntimeError without one.");
  m.def("device", &Device, nb::arg("device"), "GPU model and cuDNN version, as plans are kept by.");
  m.def(
      "parse_plan",
      [](const std::string& plan) { return ValueOrThrow(PlanName::Parse(plan)).ToString(); },
      nb::arg("plan"), "The one spelling of a plan's name; ValueError if it can't be one.");
  nb::class_<Tuner>(m, "Tuner", "The candidates for one problem on one device.")
      .def(nb::new_(&MakeTuner), nb::arg("problem"), nb::arg("device"))
      .def(
          "suggestions", [](const Tuner& t) { return Texts(ValueOrThrow(t.Suggestions())); },
          "Names of the plans that are worth a first try, best guess first.")
      .def(
          "configurations", [](const Tuner& t) { return Texts(ValueOrThrow(t.Configurations())); },
          "The suggestions, then all other configurations.")
      .def("build", &BuildPlans, nb::arg("plans"),
           "Builds plans on all cores; for each what went wrong, or nothing.")
      .def(
          "forget", [](Tuner& t, const std::string& plan) { t.Forget(Parse({plan})[0]); },
          nb::arg("plan"), "Drops a plan, also from the disk.")
      .def("verify", &VerifyPlans, nb::arg("plans"),
           "For each built plan what is wrong with its results; empty if they are exact.")
      .def("time", &TimePlan, nb::arg("plan"), nb::arg("launches"),
           "Microseconds of a launch, the mean of so many in a row.");
  m.def("verify", &VerifyText, nb::arg("problem"), nb::arg("plan"), nb::arg("device"),
        "What is wrong with a plan's results; empty if they are exact.");
  m.def("suggest_without_device", &SuggestWithoutDevice, nb::arg("problem"),
        nb::arg("device_properties"), nb::arg("engine") = "cudnn",
        "Names of cuDNN's plans for a described GPU; needs no GPU.");
  m.def("build_without_device", &BuildWithoutDevice, nb::arg("problem"),
        nb::arg("device_properties"), nb::arg("plan"),
        "A plan for a described GPU, with its compiled kernel, as bytes; needs no GPU.");
  m.def("own_plans", &OwnPlanTexts, nb::arg("problem"), nb::arg("compute_capability") = 0,
        "Names of the plans of own kernels for a problem, for GPUs of a compute capability or, "
        "with 0, of any; of each engine best guess first; needs no GPU.");
  m.def("own_kernel", &OwnKernelOf, nb::arg("problem"), nb::arg("plan"),
        "The source of a plan of own kernels, its function, blocks and threads; needs no GPU.");
  m.def(
      "checker_source", [] { return std::string(kCheckConvSource); },
      "The source of the kernels that plans are verified by.");
  m.def("kernels_of", &KernelsOf, nb::arg("problem"), nb::arg("plan"), nb::arg("pinned"),
        "Files and sources of the kernels that a call may need where it first runs; needs no GPU.");
  m.def("compile_kernels", &CubinOf<&CompileCubin>, nb::arg("source"),
        nb::arg("compute_capability"), nb::arg("file_name") = "kernel.cu",
        "The cubin of a source; needs NVRTC, but no GPU.");
  m.def("find_kernels", &CubinOf<&FindCubin>, nb::arg("source"), nb::arg("compute_capability"),
        nb::arg("file_name") = "kernel.cu",
        "The cubin that a call gets: one that was kept, or else compiled; needs no GPU.");
  m.def("keep_kernels", &Keep, nb::arg("source_hash"), nb::arg("compute_capability"),
        nb::arg("cubin"),
        "Keeps a cubin, for this process and others, by the hash of its source; whether it could.");
  m.def("hash", &HexHash, nb::arg("text"), "What a source is kept by.");
  m.def("compute_capabilities", &ComputeCapabilities,
        "Those of the GPUs that the process sees, such as 90; none where there is no driver.");
  m.def(
      "handlers",
      [] {
        nb::dict handlers;
        handlers["instantiate"] = Handler(JaxQconvInstantiate);
        handlers["initialize"] = Handler(JaxQconvInitialize);
        handlers["execute"] = Handler(JaxQconvExecute);
        return handlers;
      },
      "The stages of the custom call, for jax.ffi.register_ffi_target.");
  m.def(
      "state_type",
      [] {
        nb::dict type;
        type["type_id"] = nb::capsule(reinterpret_cast<void*>(ConvStateTypeId()));
        type["type_info"] =
            nb::capsule(const_cast<void*>(static_cast<const void*>(ConvStateTypeInfo())));
        return type;
      },
      "The state of the custom call, for jax.ffi.register_ffi_type.");
}

}  // namespace jax_qconv
