// What Python sees of the extension.

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "conv_ffi.h"
#include "cuda_driver.h"
#include "cudnn_graph.h"
#include "cudnn_library.h"
#include "kernel.h"
#include "kernel_sources.h"
#include "plan_name.h"
#include "problem.h"
#include "search.h"
#include "settings.h"

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

nb::dict Libraries() {
  nb::dict found;
  for (const char* name : {"cudnn", "cudnn_error", "driver", "driver_error"}) {
    found[name] = nb::none();
  }
  const auto cudnn = OpenCudnn();
  if (cudnn.has_value()) {
    found["cudnn"] = VersionTuple(*cudnn, 10000, 100);
  } else {
    found["cudnn_error"] = cudnn.error().message();
  }
  if (const Error nvrtc = CheckNvrtc(); cudnn.has_value() && nvrtc.failure()) {
    found["cudnn_error"] = nvrtc.message();
  }
  const auto driver = CudaDriver::Get();
  int version = 0;
  if (driver.has_value() && (*driver)->DriverGetVersion(&version) == CUDA_SUCCESS) {
    found["driver"] = nb::make_tuple(version / 1000, version % 1000 / 10);
  } else {
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

nb::list SearchList(const std::string& problem_text, int device) {
  const Problem problem = ValueOrThrow(Problem::Parse(problem_text));
  const auto candidates = ValueOrThrow(WithoutGil([&] { return Search(problem, device); }));
  nb::list list;
  for (const Candidate& candidate : candidates) {
    nb::dict entry;
    entry["plan"] = candidate.name.ToString();
    entry["us"] = nb::cast(candidate.microseconds);
    entry["rejected"] = candidate.rejected.empty() ? nb::none() : nb::cast(candidate.rejected);
    list.append(entry);
  }
  return list;
}

std::string VerifyText(const std::string& problem_text, const std::string& plan, int device) {
  const Problem problem = ValueOrThrow(Problem::Parse(problem_text));
  const PlanName name = ValueOrThrow(PlanName::Parse(plan));
  if (name.deferred()) throw nb::value_error("a deferred plan has nothing to verify");
  return ValueOrThrow(WithoutGil([&] { return Verify(problem, name, device); }));
}

std::vector<std::string> SuggestWithoutDevice(const std::string& problem_text,
                                              const std::string& device_properties,
                                              const std::string& engine, bool build_first) {
  const Problem problem = ValueOrThrow(Problem::Parse(problem_text));
  auto make = [&] {
    return ValueOrThrow(CudnnGraph::CreateWithoutDevice(problem, engine, device_properties));
  };
  const auto suggestions = ValueOrThrow(make()->Suggest());
  if (build_first && !suggestions.empty()) {
    const Error error = make()->Build(suggestions[0]);
    if (error.failure()) throw std::runtime_error(error.message());
  }
  std::vector<std::string> names;
  for (const PlanName& name : suggestions) names.push_back(name.ToString());
  return names;
}

nb::bytes CompileCheckConv(int compute_capability) {
  const std::string cubin = ValueOrThrow(WithoutGil(
      [&] { return CompileCubin("check_conv.cu", kCheckConvSource, compute_capability); }));
  return nb::bytes(cubin.data(), cubin.size());
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
        "Versions of cuDNN and the driver found at run time, or why they weren't.");
  m.def("device", &Device, nb::arg("device"), "GPU model and cuDNN version, as plans are kept by.");
  m.def(
      "parse_plan",
      [](const std::string& plan) { return ValueOrThrow(PlanName::Parse(plan)).ToString(); },
      nb::arg("plan"), "The one spelling of a plan's name; ValueError if it can't be one.");
  m.def("search", &SearchList, nb::arg("problem"), nb::arg("device"),
        "Candidates for a problem, verified and timed: dicts of plan, us, rejected.");
  m.def("verify", &VerifyText, nb::arg("problem"), nb::arg("plan"), nb::arg("device"),
        "What is wrong with a plan's results; empty if they are exact.");
  m.def("suggest_without_device", &SuggestWithoutDevice, nb::arg("problem"),
        nb::arg("device_properties"), nb::arg("engine") = "cudnn", nb::arg("build_first") = false,
        "Names of cuDNN's plans for a described GPU; needs no GPU.");
  m.def("compile_check_conv", &CompileCheckConv, nb::arg("compute_capability"),
        "The cubin of the checker's kernels; needs NVRTC, but no GPU.");
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
