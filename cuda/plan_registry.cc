#include "plan_registry.h"

namespace jax_qconv {
namespace {

constexpr size_t kCapacity = 1024;

}  // namespace

PlanRegistry& PlanRegistry::Get() {
  static auto* registry = new PlanRegistry;  // never destroyed: threads may outlive main
  return *registry;
}

std::string PlanRegistry::Key(const Problem& problem, const PlanName& name, bool pinned,
                              int device) {
  return StrCat(problem.text, "|", name.ToString(), "|", pinned, "|", device);
}

ErrorOr<PlanPtr> PlanRegistry::FindOrMake(const std::string& key,
                                          const std::function<ErrorOr<PlanPtr>()>& make) {
  std::promise<ErrorOr<PlanPtr>> promise;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (const auto it = plans_.find(key); it != plans_.end()) {
      const Future future = it->second;
      lock.unlock();
      return future.get();
    }
    Insert(key, promise.get_future().share());
  }
  ErrorOr<PlanPtr> plan = NoThrow(make);
  if (!plan.has_value()) {
    std::lock_guard<std::mutex> lock(mutex_);
    plans_.erase(key);
    std::erase(order_, key);
  }
  promise.set_value(plan);
  return plan;
}

void PlanRegistry::Insert(const std::string& key, Future plan) {
  if (plans_.emplace(key, std::move(plan)).second) order_.push_back(key);
  while (order_.size() > kCapacity) {
    plans_.erase(order_.front());
    order_.pop_front();
  }
}

}  // namespace jax_qconv
