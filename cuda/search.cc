#include "search.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "checker.h"
#include "disk_cache.h"

namespace jax_qconv {
namespace {

using PlanPtr = std::shared_ptr<const Plan>;

Launch LaunchOf(const PlanPtr& plan) {
  return [plan](const Operands& operands, CUstream stream) {
    return plan->Launch(operands, stream);
  };
}

std::string VerdictKey(const Problem& problem, const PlanName& name, const DeviceInfo& device,
                       int64_t cudnn) {
  return StrCat(problem.text, " | ", name.ToString(), " | ", device.name, " sm_",
                device.compute_capability, " | cudnn ", CudnnVersionText(cudnn), " | checker ",
                Checker::Version());
}

// Verdicts are kept as "exact" or as what is wrong.
constexpr char kExact[] = "exact";

ErrorOr<std::vector<PlanName>> Suggestions(const Problem& problem, int device) {
  HandlePool& handles = HandlePool::Of(device);
  JQ_RETURN_UNEXPECTED_IF_ERROR(handles.TopUp());
  JQ_ASSIGN_OR_UNEXPECTED(HandlePool::Borrowed handle, handles.Borrow(nullptr));
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
      plans[i] = scope.has_value() ? Plan::Build(problem, names[i], device)
                                   : ErrorOr<PlanPtr>(Unexpected(scope.error()));
    }
  };
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> crew;
  for (size_t i = 1; i < std::min(cores, names.size()); ++i) crew.emplace_back(work);
  work();
  for (std::thread& thread : crew) thread.join();
  return plans;
}

// Plans in use or used lately, by problem, name, device. Executables hold their own references;
// what is dropped here is only built again if it is asked for again.
class Registry {
 public:
  static Registry& Get() {
    static auto* registry = new Registry;  // never destroyed: threads may outlive main
    return *registry;
  }

  static std::string Key(const Problem& problem, const PlanName& name, bool pinned, int device) {
    return StrCat(problem.text, "|", name.ToString(), "|", pinned, "|", device);
  }

  // The value of `key`. The first caller computes it with no lock held, others wait for it.
  template <typename Compute>
  ErrorOr<PlanPtr> FindOrCompute(const std::string& key, Compute&& compute) {
    std::promise<ErrorOr<PlanPtr>> promise;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (const auto it = plans_.find(key); it != plans_.end()) {
        auto future = it->second;
        lock.unlock();
        return future.get();
      }
      Insert(key, promise.get_future().share());
    }
    ErrorOr<PlanPtr> plan = NoThrow(compute);
    promise.set_value(plan);
    if (!plan.has_value()) {
      // A failure (out of memory, say) may pass: the next caller tries again.
      std::lock_guard<std::mutex> lock(mutex_);
      plans_.erase(key);
    }
    return plan;
  }

  void Remember(const std::string& key, PlanPtr plan) {
    std::promise<ErrorOr<PlanPtr>> promise;
    promise.set_value(ErrorOr<PlanPtr>(std::move(plan)));
    std::lock_guard<std::mutex> lock(mutex_);
    Insert(key, promise.get_future().share());
  }

 private:
  static constexpr size_t kCapacity = 1024;

  void Insert(const std::string& key, std::shared_future<ErrorOr<PlanPtr>> plan) {
    if (plans_.emplace(key, std::move(plan)).second) order_.push_back(key);
    while (order_.size() > kCapacity) {
      plans_.erase(order_.front());
      order_.pop_front();
    }
  }

  std::mutex mutex_;
  std::map<std::string, std::shared_future<ErrorOr<PlanPtr>>> plans_;
  std::deque<std::string> order_;
};

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
    candidate->rejected = verdicts[i];
    WriteCache("verdicts", VerdictKey(problem, candidate->name, info, cudnn),
               verdicts[i].empty() ? kExact : verdicts[i]);
    if (!verdicts[i].empty()) continue;
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
  WriteCache("verdicts", key, verdicts[0].empty() ? kExact : verdicts[0]);
  return verdicts[0];
}

ErrorOr<PlanPtr> BuildVerified(const Problem& problem, const PlanName& name, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(PlanPtr plan, Plan::Build(problem, name, device));
  JQ_ASSIGN_OR_UNEXPECTED(const std::string verdict, VerifyPlan(problem, plan, device));
  if (verdict.empty()) return plan;
  return Unexpected(Error(ErrorCode::kFailedPrecondition,
                          StrCat("plan '", name.ToString(), "' is refused for '", problem.text,
                                 "': ", verdict)));
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
    Registry::Get().Remember(Registry::Key(problem, result.best->name(), false, device),
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
  const std::string key = Registry::Key(problem, name, pinned, device);
  return Registry::Get().FindOrCompute(key, [&]() -> ErrorOr<PlanPtr> {
    JQ_ASSIGN_OR_UNEXPECTED(const ScopedDevice scope, ScopedDevice::Enter(device));
    if (!name.deferred()) {
      auto plan = BuildVerified(problem, name, device);
      if (plan.has_value() || pinned) return plan;
    }
    return BestPlan(problem, device);
  });
}

}  // namespace jax_qconv
