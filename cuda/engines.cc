#include "engines.h"

#include "cudnn_engine.h"
#include "depthwise.h"
#include "kernel_engine.h"
#include "pointwise.h"
#include "stem.h"
#include "wgmma.h"

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
    add(Wgmma(), &IsWgmma);
    return made;
  }();
  return *all;
}

// Those that take a problem.
std::vector<const Own*> OwnFor(const Problem& problem) {
  std::vector<const Own*> found;
  for (const Own& own : OwnEngines()) {
    if (own.takes(problem)) found.push_back(&own);
  }
  return found;
}

// The plans that `ask` finds with the engines of a problem.
template <typename Ask>
std::vector<PlanName> PlansOf(const Problem& problem, const Ask& ask) {
  std::vector<PlanName> plans;
  for (const Own* own : OwnFor(problem)) {
    for (PlanName& plan : ask(*own->source)) plans.push_back(std::move(plan));
  }
  return plans;
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
  std::vector<const Engine*> engines;
  // cuDNN has no fused depthwise kernel of int8, and its bare one was wrong.
  if (!problem.depthwise()) engines.push_back(&CudnnEngine());
  if (cudnn_only && !engines.empty()) return engines;
  for (const Own* own : OwnFor(problem)) engines.push_back(own->engine.get());
  return engines;
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

std::vector<PlanName> OwnPlans(const Problem& problem, int compute_capability) {
  return PlansOf(problem, [&](const KernelSource& source) {
    const bool suits = compute_capability == 0 || source.Suits(compute_capability);
    return suits ? source.plans(problem) : std::vector<PlanName>{};
  });
}

std::vector<PlanName> OwnSuggestions(const Problem& problem) {
  return PlansOf(problem, [&](const KernelSource& source) { return source.Suggestions(problem); });
}

bool IsOwn(const PlanName& name) { return !name.deferred() && OwnOf(name) != nullptr; }

ErrorOr<KernelSpec> OwnKernel(const Problem& problem, const PlanName& name) {
  if (IsOwn(name)) return OwnOf(name)->source->kernel(problem, name);
  return Unexpected(Error::InvalidArgument(
      StrCat("plan '", name.ToString(), "' isn't one of an engine with own kernels")));
}

}  // namespace jax_qconv
