#include "engines.h"

#include "cudnn_engine.h"
#include "depthwise.h"
#include "kernel_engine.h"

namespace jax_qconv {
namespace {

const Engine& DepthwiseEngine() {
  static const auto* engine = MakeKernelEngine(Depthwise()).release();
  return *engine;
}

}  // namespace

std::vector<const Engine*> EnginesFor(const Problem& problem) {
  // cuDNN has no fused depthwise kernel of int8, and its bare one was wrong.
  if (problem.depthwise()) return {&DepthwiseEngine()};
  return {&CudnnEngine()};
}

ErrorOr<std::string> EngineVersions(const Problem& problem) {
  std::string versions;
  for (const Engine* engine : EnginesFor(problem)) {
    JQ_ASSIGN_OR_UNEXPECTED(const std::string version, engine->Version());
    versions += StrCat(versions.empty() ? "" : " ", version);
  }
  return versions;
}

ErrorOr<const Engine*> EngineOf(const PlanName& name) {
  if (name.engine == "cudnn" || name.engine == "cudnn_bare") return &CudnnEngine();
  if (name.engine == Depthwise().name) return &DepthwiseEngine();
  return Unexpected(Error::Internal(StrCat("plan '", name.ToString(), "' has no engine")));
}

std::vector<PlanName> OwnPlans(const Problem& problem) {
  return problem.depthwise() ? Depthwise().plans(problem) : std::vector<PlanName>{};
}

ErrorOr<std::vector<PlanName>> OwnSuggestions(const Problem& problem) {
  if (!problem.depthwise()) return std::vector<PlanName>{};
  constexpr int kAnyDevice = 0;  // own kernels are suggested by the problem alone
  return DepthwiseEngine().Suggestions(problem, kAnyDevice);
}

bool IsOwn(const PlanName& name) { return name.engine == Depthwise().name && !name.deferred(); }

ErrorOr<KernelSpec> OwnKernel(const Problem& problem, const PlanName& name) {
  if (IsOwn(name)) return Depthwise().kernel(problem, name);
  return Unexpected(Error::InvalidArgument(
      StrCat("plan '", name.ToString(), "' isn't one of an engine with own kernels")));
}

}  // namespace jax_qconv
