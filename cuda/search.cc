#include "search.h"

#include <algorithm>
#include <cmath>

#include "disk_cache.h"
#include "engines.h"
#include "plan_registry.h"
#include "tuner.h"

namespace jax_qconv {
namespace {

// Empty if the plan is exact, else what is wrong with it.
ErrorOr<std::string> VerifyPlan(const Problem& problem, const PlanPtr& plan, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const auto tuner, Tuner::Create(problem, device));
  tuner->Add(plan);
  JQ_ASSIGN_OR_UNEXPECTED(const auto verdicts, tuner->Verify({plan->name()}));
  return verdicts[0].reason;
}

ErrorOr<PlanPtr> BuildVerified(const Problem& problem, const PlanName& name, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(PlanPtr plan, Plan::Make(problem, name, device));
  JQ_ASSIGN_OR_UNEXPECTED(const std::string verdict, VerifyPlan(problem, plan, device));
  if (verdict.empty()) return plan;
  return Unexpected(
      Error(ErrorCode::kFailedPrecondition,
            StrCat("plan '", name.ToString(), "' is refused for '", problem.text, "': ", verdict)));
}

// The least of a few short runs.
ErrorOr<double> Time(Tuner& tuner, const PlanName& name) {
  constexpr int kRuns = 5, kLaunches = 10;
  double best = HUGE_VAL;
  for (int run = 0; run < kRuns; ++run) {
    JQ_ASSIGN_OR_UNEXPECTED(const double time, tuner.Time(name, kLaunches));
    best = std::min(best, time);
  }
  return best;
}

ErrorOr<PlanPtr> BestSuggestion(const Problem& problem, bool cudnn_only, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const auto tuner, Tuner::Create(problem, device));
  JQ_ASSIGN_OR_UNEXPECTED(const auto names, tuner->Suggestions(cudnn_only));
  const std::vector<Error> errors = tuner->Build(names);
  std::vector<PlanName> built;
  std::string reasons;
  for (size_t i = 0; i < names.size(); ++i) {
    if (errors[i].success()) {
      built.push_back(names[i]);
    } else {
      reasons += StrCat("; ", names[i].ToString(), ": ", errors[i].message());
    }
  }
  PlanPtr best;
  double least = HUGE_VAL;
  JQ_ASSIGN_OR_UNEXPECTED(const auto verdicts, tuner->Verify(built));
  for (size_t i = 0; i < built.size(); ++i) {
    if (verdicts[i].outcome != Verdict::kExact) {
      reasons += StrCat("; ", built[i].ToString(), ": ", verdicts[i].reason);
      continue;
    }
    JQ_ASSIGN_OR_UNEXPECTED(const double time, Time(*tuner, built[i]));
    if (time < least) {
      least = time;
      best = tuner->Find(built[i]);
    }
  }
  for (const PlanName& name : built) {
    if (best == nullptr || name.ToString() != best->name().ToString()) tuner->Forget(name);
  }
  if (best != nullptr) return best;
  return Unexpected(
      Error(ErrorCode::kUnimplemented,
            StrCat("no plan can run '", problem.text, "' exactly", reasons,
                   "; use implementation='reference', or another padding of the channels")));
}

// BestSuggestion, remembered on disk by its name.
ErrorOr<PlanPtr> BestSuggestionOnce(const Problem& problem, bool cudnn_only, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const std::string versions, EngineVersions(problem));
  JQ_ASSIGN_OR_UNEXPECTED(const DeviceInfo info, GetDeviceInfo(device));
  const std::string key =
      StrCat(problem.text, " | ", info.name, " | ", versions, cudnn_only ? " | only cudnn" : "");
  if (const auto kept = ReadCache("suggested", key)) {
    if (const auto name = PlanName::Parse(*kept); name.has_value() && !name->deferred()) {
      if (auto plan = BuildVerified(problem, *name, device); plan.has_value()) return plan;
    }
  }
  auto plan = BestSuggestion(problem, cudnn_only, device);
  if (plan.has_value()) WriteCache("suggested", key, (*plan)->name().ToString());
  return plan;
}

}  // namespace

ErrorOr<std::string> Verify(const Problem& problem, const PlanName& name, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const ScopedDevice scope, ScopedDevice::Enter(device));
  JQ_ASSIGN_OR_UNEXPECTED(PlanPtr plan, Plan::Make(problem, name, device));
  return VerifyPlan(problem, plan, device);
}

ErrorOr<PlanPtr> ResolvePlan(const Problem& problem, const PlanName& name, bool pinned,
                             int device) {
  const std::string key = PlanRegistry::Key(problem, name, pinned, device);
  return PlanRegistry::Get().FindOrMake(key, [&]() -> ErrorOr<PlanPtr> {
    JQ_ASSIGN_OR_UNEXPECTED(const ScopedDevice scope, ScopedDevice::Enter(device));
    if (!name.deferred()) {
      auto plan = BuildVerified(problem, name, device);
      if (plan.has_value() || pinned) return plan;
    }
    // Where cuDNN was asked for, no other engine takes its place.
    return BestSuggestionOnce(problem, name.engine == "cudnn", device);
  });
}

ErrorOr<std::vector<std::pair<std::string, std::string>>> KernelsFor(const Problem& problem,
                                                                     const PlanName& name,
                                                                     bool pinned) {
  std::vector<std::pair<std::string, std::string>> kernels{Checker::KernelFile()};
  if (IsOwn(name)) {
    const auto spec = OwnKernel(problem, name);
    if (spec.has_value()) kernels.emplace_back(spec->file_name, spec->source);
    if (!spec.has_value() && pinned) return Unexpected(spec.error());
  }
  if (pinned && !name.deferred()) return kernels;
  const std::vector<PlanName> suggestions = OwnSuggestions(problem);
  for (const PlanName& suggestion : suggestions) {
    JQ_ASSIGN_OR_UNEXPECTED(KernelSpec spec, OwnKernel(problem, suggestion));
    kernels.emplace_back(std::move(spec.file_name), std::move(spec.source));
  }
  return kernels;
}

}  // namespace jax_qconv
