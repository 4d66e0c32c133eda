#include "engines.h"

#include "cudnn_engine.h"
#include "depthwise.h"
#include "kernel_engine.h"
#include "pointwise.h"
#include "stem.h"

namespace jax_qconv {
namespace {

// An engine of own kernels, and which problems it takes.
struct Own {
  const KernelSource* source;
  bool (*takes)(const Problem& problem);
  std::unique_ptr<Engine> engine;
};

const std::vector<Own>& OwnEngines() {
  static const auto* all = [] {
    auto* made = new std::vector<Own>;
    const auto add = [&](const KernelSource& source, bool (*takes)(const Problem&)) {
      made->push_back({&source, takes, MakeKernelEngine(source)});
    };
    add(Depthwise(), [](const Problem& problem) { return problem.depthwise(); });
    add(Stem(), &IsStem);
    add(Pointwise(), &IsPointwise);
    return made;
  }();
  return *all;
}

// The one that takes a problem; null without any.
const Own* OwnFor(const Problem& problem) {
  for (const Own& own : OwnEngines()) {
    if (own.takes(problem)) return &own;
  }
  return nullptr;
}

// The one that a plan is of; null if it is of none.
const Own* OwnOf(const PlanName& name) {
  for (const Own& own : OwnEngines()) {
    if (name.engine == own.source->name) return &own;
  }
  return nullptr;
}

}  // namespace

std::vector<const Engine*> EnginesFor(const Problem& problem, bool cudnn_only) {
  const Own* own = OwnFor(problem);
  // cuDNN has no fused depthwise kernel of int8, and its bare one was wrong.
  if (problem.depthwise()) return {own->engine.get()};
  if (cudnn_only || own == nullptr) return {&CudnnEngine()};
  return {&CudnnEngine(), own->engine.get()};
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
  if (const Own* own = OwnOf(name)) return own->engine.get();
  return Unexpected(Error::Internal(StrCat("plan '", name.ToString(), "' has no engine")));
}

std::vector<PlanName> OwnPlans(const Problem& problem) {
  const Own* own = OwnFor(problem);
  return own == nullptr ? std::vector<PlanName>{} : own->source->plans(problem);
}

std::vector<PlanName> OwnSuggestions(const Problem& problem) {
  const Own* own = OwnFor(problem);
  return own == nullptr ? std::vector<PlanName>{} : own->source->Suggestions(problem);
}

bool IsOwn(const PlanName& name) { return !name.deferred() && OwnOf(name) != nullptr; }

ErrorOr<KernelSpec> OwnKernel(const Problem& problem, const PlanName& name) {
  if (IsOwn(name)) return OwnOf(name)->source->kernel(problem, name);
  return Unexpected(Error::InvalidArgument(
      StrCat("plan '", name.ToString(), "' isn't one of an engine with own kernels")));
}

}  // namespace jax_qconv
