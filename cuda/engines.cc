#include "engines.h"

#include "cudnn_engine.h"
#include "depthwise.h"
#include "kernel_engine.h"
#include "pointwise.h"
#include "stem.h"

namespace jax_qconv {
namespace {

const Engine& DepthwiseEngine() {
  static const auto* engine = MakeKernelEngine(Depthwise()).release();
  return *engine;
}

const Engine& PointwiseEngine() {
  static const auto* engine = MakeKernelEngine(Pointwise()).release();
  return *engine;
}

const Engine& StemEngine() {
  static const auto* engine = MakeKernelEngine(Stem()).release();
  return *engine;
}

// The own kernels of a problem; null without any.
const KernelSource* OwnSource(const Problem& problem) {
  if (problem.depthwise()) return &Depthwise();
  if (IsStem(problem)) return &Stem();
  return IsPointwise(problem) ? &Pointwise() : nullptr;
}

}  // namespace

std::vector<const Engine*> EnginesFor(const Problem& problem, bool cudnn_only) {
  // cuDNN has no fused depthwise kernel of int8, and its bare one was wrong.
  if (problem.depthwise()) return {&DepthwiseEngine()};
  if (cudnn_only) return {&CudnnEngine()};
  if (IsStem(problem)) return {&CudnnEngine(), &StemEngine()};
  if (IsPointwise(problem)) return {&CudnnEngine(), &PointwiseEngine()};
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
  if (name.engine == Pointwise().name) return &PointwiseEngine();
  if (name.engine == Stem().name) return &StemEngine();
  return Unexpected(Error::Internal(StrCat("plan '", name.ToString(), "' has no engine")));
}

std::vector<PlanName> OwnPlans(const Problem& problem) {
  const KernelSource* source = OwnSource(problem);
  return source == nullptr ? std::vector<PlanName>{} : source->plans(problem);
}

std::vector<PlanName> OwnSuggestions(const Problem& problem) {
  const KernelSource* source = OwnSource(problem);
  return source == nullptr ? std::vector<PlanName>{} : source->Suggestions(problem);
}

bool IsOwn(const PlanName& name) {
  const auto is = [&](const KernelSource& source) { return name.engine == source.name; };
  return !name.deferred() && (is(Depthwise()) || is(Pointwise()) || is(Stem()));
}

ErrorOr<KernelSpec> OwnKernel(const Problem& problem, const PlanName& name) {
  for (const KernelSource* source : {&Depthwise(), &Pointwise(), &Stem()}) {
    if (name.engine == source->name && !name.deferred()) return source->kernel(problem, name);
  }
  return Unexpected(Error::InvalidArgument(
      StrCat("plan '", name.ToString(), "' isn't one of an engine with own kernels")));
}

}  // namespace jax_qconv
