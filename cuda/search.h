// From a problem to a verified plan: candidates, verification, timing.

#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "plan.h"
#include "plan_name.h"
#include "problem.h"
#include "status.h"

namespace jax_qconv {

// A plan that was considered: its time, or why it was rejected.
struct Candidate {
  PlanName name;
  std::optional<double> microseconds;
  std::string rejected;
};

// Builds all of cuDNN's suggestions that need no workspace (on all cores), verifies them on all
// elements, and times the right ones. Returns them as cuDNN ranked them.
ErrorOr<std::vector<Candidate>> Search(const Problem& problem, int device);

// Verifies one named plan on a device, or finds the verdict of an earlier time. Empty if exact,
// else what is wrong.
ErrorOr<std::string> Verify(const Problem& problem, const PlanName& name, int device);

// The plan to run a call with, built and verified. A pinned plan is used or refused; another one
// that doesn't exist or isn't exact on this device, or is deferred, is replaced by the fastest
// that Search finds.
ErrorOr<PlanPtr> ResolvePlan(const Problem& problem, const PlanName& name, bool pinned, int device);

}  // namespace jax_qconv
