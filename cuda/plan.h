// A plan that is built and can be launched.

#pragma once

#include <memory>
#include <string>

#include "engine.h"
#include "plan_name.h"
#include "problem.h"
#include "status.h"

namespace jax_qconv {

class Plan;
using PlanPtr = std::shared_ptr<const Plan>;

class Plan {
 public:
  ~Plan();

  // Builds the plan on a device, whose context must be current, or loads it where an earlier
  // process left it on disk. Doesn't verify it.
  static ErrorOr<PlanPtr> Make(const Problem& problem, const PlanName& name, int device);

  // Removes it from the disk.
  static void Forget(const Problem& problem, const PlanName& name, int device);

  // Launches on `stream`; several threads may at once. No allocation, no synchronisation.
  Error Launch(const Operands& operands, CUstream stream) const;

  const PlanName& name() const { return name_; }
  std::string code() const { return executable_->code(); }

 private:
  Plan(PlanName name, int device, std::unique_ptr<Executable> executable)
      : name_(std::move(name)), device_(device), executable_(std::move(executable)) {}

  PlanName name_;
  int device_;
  std::unique_ptr<Executable> executable_;
};

}  // namespace jax_qconv
