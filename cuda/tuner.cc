#include "tuner.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <system_error>
#include <thread>

#include "disk_cache.h"
#include "engines.h"

namespace jax_qconv {
namespace {

constexpr char kExact[] = "exact";

using Ask = ErrorOr<std::vector<PlanName>> (Engine::*)(const Problem&, int) const;

// What the engines answer, each plan once: heuristics and their fallback may offer one twice.
ErrorOr<std::vector<PlanName>> AskEngines(Ask ask, const Problem& problem, int device,
                                          bool cudnn_only = false) {
  JQ_ASSIGN_OR_UNEXPECTED(const ScopedDevice scope, ScopedDevice::Enter(device));
  std::vector<PlanName> names;
  std::set<std::string> seen;
  for (const Engine* engine : EnginesFor(problem, cudnn_only)) {
    JQ_ASSIGN_OR_UNEXPECTED(const auto more, (engine->*ask)(problem, device));
    for (const PlanName& name : more) {
      if (seen.insert(name.ToString()).second) names.push_back(name);
    }
  }
  return names;
}

}  // namespace

ErrorOr<std::unique_ptr<Tuner>> Tuner::Create(const Problem& problem, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(DeviceInfo info, GetDeviceInfo(device));
  return std::unique_ptr<Tuner>(new Tuner(problem, device, std::move(info)));
}

Tuner::~Tuner() {
  // What it holds is freed in the context that it was taken from.
  const auto scope = ScopedDevice::Enter(device_);
  checker_.reset();
  plans_.clear();
}

ErrorOr<std::vector<PlanName>> Tuner::Suggestions(bool cudnn_only) const {
  return AskEngines(&Engine::Suggestions, problem_, device_, cudnn_only);
}

ErrorOr<std::vector<PlanName>> Tuner::Configurations() const {
  return AskEngines(&Engine::Configurations, problem_, device_);
}

std::vector<Error> Tuner::Build(const std::vector<PlanName>& names) {
  std::vector<ErrorOr<PlanPtr>> plans(names.size(), ErrorOr<PlanPtr>(PlanPtr()));
  std::atomic<size_t> next{0};
  auto work = [&] {
    const auto scope = ScopedDevice::Enter(device_);
    for (size_t i; (i = next++) < names.size();) {
      plans[i] = !scope.has_value()
                     ? ErrorOr<PlanPtr>(Unexpected(scope.error()))
                     : NoThrow([&] { return Plan::Make(problem_, names[i], device_); });
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
  std::vector<Error> errors;
  for (const auto& plan : plans) {
    errors.push_back(StatusOf(plan));
    if (plan.has_value()) Add(*plan);
  }
  return errors;
}

void Tuner::Add(PlanPtr plan) { plans_.insert_or_assign(plan->name().ToString(), plan); }

void Tuner::Forget(const PlanName& name) {
  Plan::Forget(problem_, name, device_);
  plans_.erase(name.ToString());
}

ErrorOr<std::vector<Verdict>> Tuner::Verify(const std::vector<PlanName>& names) {
  std::vector<Verdict> verdicts(names.size());
  std::vector<Launch> launches;
  std::vector<size_t> unknown;
  for (size_t i = 0; i < names.size(); ++i) {
    JQ_ASSIGN_OR_UNEXPECTED(const std::string key, VerdictKey(names[i]));
    if (const auto kept = ReadCache("verdicts", key)) {
      if (*kept != kExact) verdicts[i] = {Verdict::kWrong, *kept};
      continue;
    }
    JQ_ASSIGN_OR_UNEXPECTED(Launch launch, LaunchOf(names[i]));
    launches.push_back(std::move(launch));
    unknown.push_back(i);
  }
  if (unknown.empty()) return verdicts;
  JQ_ASSIGN_OR_UNEXPECTED(const ScopedDevice scope, ScopedDevice::Enter(device_));
  JQ_ASSIGN_OR_UNEXPECTED(Checker * checker, GetChecker());
  JQ_ASSIGN_OR_UNEXPECTED(auto found, checker->Verify(launches));
  for (size_t i = 0; i < unknown.size(); ++i) {
    Verdict& verdict = verdicts[unknown[i]] = std::move(found[i]);
    // That a plan couldn't be launched may pass.
    if (verdict.outcome == Verdict::kNotRun) continue;
    JQ_ASSIGN_OR_UNEXPECTED(const std::string key, VerdictKey(names[unknown[i]]));
    WriteCache("verdicts", key, verdict.outcome == Verdict::kExact ? kExact : verdict.reason);
  }
  return verdicts;
}

ErrorOr<double> Tuner::Time(const PlanName& name, int launches) {
  JQ_ASSIGN_OR_UNEXPECTED(const ScopedDevice scope, ScopedDevice::Enter(device_));
  JQ_ASSIGN_OR_UNEXPECTED(const Launch launch, LaunchOf(name));
  JQ_ASSIGN_OR_UNEXPECTED(Checker * checker, GetChecker());
  return checker->Time(launch, launches);
}

PlanPtr Tuner::Find(const PlanName& name) const {
  const auto it = plans_.find(name.ToString());
  return it == plans_.end() ? nullptr : it->second;
}

ErrorOr<Checker*> Tuner::GetChecker() {
  if (!checker_) {
    JQ_ASSIGN_OR_UNEXPECTED(Checker checker, Checker::Create(problem_, info_));
    checker_.emplace(std::move(checker));
  }
  return &*checker_;
}

ErrorOr<PlanPtr> Tuner::Built(const PlanName& name) const {
  if (PlanPtr plan = Find(name)) return plan;
  return Unexpected(
      Error::InvalidArgument(StrCat("plan '", name.ToString(), "' isn't built; build it first")));
}

ErrorOr<Launch> Tuner::LaunchOf(const PlanName& name) const {
  JQ_ASSIGN_OR_UNEXPECTED(PlanPtr plan, Built(name));
  return Launch([plan = std::move(plan)](const Operands& operands, CUstream stream) {
    return plan->Launch(operands, stream);
  });
}

// What decides whether a plan is exact: the problem, its kernel, the GPU, and how it is verified. A
// verdict is believed for as long as its key is the same.
ErrorOr<std::string> Tuner::VerdictKey(const PlanName& name) const {
  JQ_ASSIGN_OR_UNEXPECTED(const Engine* engine, EngineOf(name));
  JQ_ASSIGN_OR_UNEXPECTED(const std::string version, engine->Version());
  JQ_ASSIGN_OR_UNEXPECTED(const PlanPtr plan, Built(name));
  const std::string code = plan->code();
  return StrCat(problem_.text, " | ", name.ToString(), " | ", info_.name, " sm_",
                info_.compute_capability, " | ", version, code.empty() ? "" : " code ", code,
                " | checker ", Checker::Version());
}

}  // namespace jax_qconv
