#include "search.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <system_error>
#include <thread>

#include "checker.h"
#include "disk_cache.h"
#include "plan_registry.h"

namespace jax_qconv {
namespace {

Launch LaunchOf(const PlanPtr& plan) {
  return
      [plan](const Operands& operands, CUstream stream) { return plan->Launch(operands, stream); };
}

// What decides whether a plan is exact: the problem, its kernel (which cuDNN has NVRTC compile),
// the GPU, and how it is verified. A verdict is believed for as long as its key is the same.
std::string VerdictKey(const Problem& problem, const PlanName& name, const DeviceInfo& device,
                       int64_t cudnn) {
  return StrCat(problem.text, " | ", name.ToString(), " | ", device.name, " sm_",
                device.compute_capability, " | cudnn ", CudnnVersionText(cudnn), " graph ",
                kCudnnGraphVersion, " nvrtc ", NvrtcVersion(), " | checker ", Checker::Version());
}

constexpr char kExact[] = "exact";

// Keeps what was found of a plan's results; that it couldn't be launched may pass.
void KeepVerdict(const std::string& key, const Verdict& verdict) {
  if (verdict.outcome == Verdict::kNotRun) return;
  WriteCache("verdicts", key, verdict.outcome == Verdict::kExact ? kExact : verdict.reason);
}

ErrorOr<std::vector<PlanName>> Suggestions(const Problem& problem, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const auto handle, HandlePool::Of(device).BorrowForBuilding());
  JQ_ASSIGN_OR_UNEXPECTED(auto graph, CudnnGraph::Create(problem, "cudnn", handle.get()));
  return graph->Suggest();
}

// Builds every plan on its own thread of a small crew.
std::vector<ErrorOr<PlanPtr>> BuildAll(const Problem& problem, const std::vector<PlanName>& names,
                                       int device) {
  std::vector<ErrorOr<PlanPtr>> plans(names.size(), ErrorOr<PlanPtr>(PlanPtr()));
  std::atomic<size_t> next{0};
  auto work = [&] {
    const auto scope = ScopedDevice::Enter(device);
    for (size_t i; (i = next++) < names.size();) {
      plans[i] = !scope.has_value()
                     ? ErrorOr<PlanPtr>(Unexpected(scope.error()))
                     : NoThrow([&] { return Plan::Build(problem, names[i], device); });
    }
  };
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::jthread> crew;  // joined at the end, whatever happens
  try {
    for (size_t i = 1; i < std::min(cores, names.size()); ++i) crew.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those there are do the work.
  }
  work();
  crew.clear();
  return plans;
}

// Search, and the fastest plan itself (null if no candidate is right).
struct SearchResult {
  std::vector<Candidate> candidates;
  PlanPtr best;
};

ErrorOr<SearchResult> SearchPlans(const Problem& problem, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const int64_t cudnn, OpenCudnn());
  JQ_ASSIGN_OR_UNEXPECTED(const DeviceInfo info, GetDeviceInfo(device));
  JQ_ASSIGN_OR_UNEXPECTED(const ScopedDevice scope, ScopedDevice::Enter(device));
  JQ_ASSIGN_OR_UNEXPECTED(const auto suggestions, Suggestions(problem, device));

  SearchResult result;
  std::set<std::string> seen;  // heuristics and their fallback may offer one plan twice
  std::vector<PlanName> names;
  for (const PlanName& name : suggestions) {
    if (!seen.insert(name.ToString()).second) continue;
    names.push_back(name);
    result.candidates.push_back({name, {}, {}});
  }
  const auto plans = BuildAll(problem, names, device);

  std::vector<std::pair<Candidate*, PlanPtr>> built;
  for (size_t i = 0; i < plans.size(); ++i) {
    if (plans[i].has_value()) {
      built.emplace_back(&result.candidates[i], *plans[i]);
    } else {
      result.candidates[i].rejected = plans[i].error().message();
    }
  }
  if (built.empty()) return result;

  JQ_ASSIGN_OR_UNEXPECTED(Checker checker, Checker::Create(problem, info));
  std::vector<Launch> launches;
  for (const auto& [candidate, plan] : built) launches.push_back(LaunchOf(plan));
  JQ_ASSIGN_OR_UNEXPECTED(const auto verdicts, checker.Verify(launches));
  std::optional<double> best_time;
  for (size_t i = 0; i < built.size(); ++i) {
    auto& [candidate, plan] = built[i];
    candidate->rejected = verdicts[i].reason;
    KeepVerdict(VerdictKey(problem, candidate->name, info, cudnn), verdicts[i]);
    if (verdicts[i].outcome != Verdict::kExact) continue;
    JQ_ASSIGN_OR_UNEXPECTED(candidate->microseconds, checker.Time(launches[i]));
    if (!best_time || *candidate->microseconds < *best_time) {
      best_time = candidate->microseconds;
      result.best = plan;
    }
  }
  return result;
}

ErrorOr<std::string> VerifyPlan(const Problem& problem, const PlanPtr& plan, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const int64_t cudnn, OpenCudnn());
  JQ_ASSIGN_OR_UNEXPECTED(const DeviceInfo info, GetDeviceInfo(device));
  const std::string key = VerdictKey(problem, plan->name(), info, cudnn);
  if (const auto verdict = ReadCache("verdicts", key)) {
    return *verdict == kExact ? std::string() : *verdict;
  }
  JQ_ASSIGN_OR_UNEXPECTED(Checker checker, Checker::Create(problem, info));
  JQ_ASSIGN_OR_UNEXPECTED(const auto verdicts, checker.Verify({LaunchOf(plan)}));
  KeepVerdict(key, verdicts[0]);
  return verdicts[0].reason;
}

ErrorOr<PlanPtr> BuildVerified(const Problem& problem, const PlanName& name, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(PlanPtr plan, Plan::Build(problem, name, device));
  JQ_ASSIGN_OR_UNEXPECTED(const std::string verdict, VerifyPlan(problem, plan, device));
  if (verdict.empty()) return plan;
  return Unexpected(
      Error(ErrorCode::kFailedPrecondition,
            StrCat("plan '", name.ToString(), "' is refused for '", problem.text, "': ", verdict)));
}

ErrorOr<PlanPtr> BestPlan(const Problem& problem, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const SearchResult result, SearchPlans(problem, device));
  if (result.best != nullptr) return result.best;
  std::string reasons;
  for (const Candidate& candidate : result.candidates) {
    reasons += StrCat("; ", candidate.name.ToString(), ": ", candidate.rejected);
  }
  return Unexpected(
      Error(ErrorCode::kUnimplemented,
            StrCat("cuDNN has no plan that can run '", problem.text, "' exactly", reasons,
                   "; use implementation='reference', or another padding of the channels")));
}

}  // namespace

ErrorOr<std::vector<Candidate>> Search(const Problem& problem, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(SearchResult result, SearchPlans(problem, device));
  if (result.best != nullptr) {
    PlanRegistry::Get().Remember(PlanRegistry::Key(problem, result.best->name(), false, device),
                                 result.best);
  }
  return std::move(result.candidates);
}

ErrorOr<std::string> Verify(const Problem& problem, const PlanName& name, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const ScopedDevice scope, ScopedDevice::Enter(device));
  JQ_ASSIGN_OR_UNEXPECTED(PlanPtr plan, Plan::Build(problem, name, device));
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
    return BestPlan(problem, device);
  });
}

}  // namespace jax_qconv
