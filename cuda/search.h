// Which plan runs a call on a device.

#pragma once

#include <string>
#include <utility>
#include <vector>

#include "plan.h"
#include "plan_name.h"
#include "problem.h"
#include "status.h"

namespace jax_qconv {

// Verifies one named plan on a device, or finds the verdict of an earlier time. Empty if exact,
// else what is wrong.
ErrorOr<std::string> Verify(const Problem& problem, const PlanName& name, int device);

// The plan to run a call with, built and verified. A pinned plan is used or refused; another one
// that doesn't exist or isn't exact on this device, or is deferred, is replaced by the fastest of
// its engines' suggestions that is exact.
ErrorOr<PlanPtr> ResolvePlan(const Problem& problem, const PlanName& name, bool pinned, int device);

// The files and sources of the own kernels that ResolvePlan may need, on any device. Needs no GPU.
ErrorOr<std::vector<std::pair<std::string, std::string>>> KernelsFor(const Problem& problem,
                                                                     const PlanName& name,
                                                                     bool pinned);

}  // namespace jax_qconv
