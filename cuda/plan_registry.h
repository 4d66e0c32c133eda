// The plans of this process: each is made once, by one thread, while others wait for that one.

#pragma once

#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "plan.h"
#include "plan_name.h"
#include "problem.h"
#include "status.h"

namespace jax_qconv {

// Holds the plans that were made last. Compiled programs hold their own references, so what is
// dropped here is only made again if it is asked for again.
class PlanRegistry {
 public:
  static PlanRegistry& Get();

  static std::string Key(const Problem& problem, const PlanName& name, bool pinned, int device);

  // The plan of `key`. The first caller makes it, with no lock held; others wait for it. A failure
  // is reported to all of them and forgotten: it may pass (out of memory, say).
  ErrorOr<PlanPtr> FindOrMake(const std::string& key,
                              const std::function<ErrorOr<PlanPtr>()>& make);

 private:
  using Future = std::shared_future<ErrorOr<PlanPtr>>;

  void Insert(const std::string& key, Future plan);  // with `mutex_` held

  std::mutex mutex_;
  std::map<std::string, Future> plans_;
  std::deque<std::string> order_;  // of insertion
};

}  // namespace jax_qconv
