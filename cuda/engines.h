// The engines there are, and which of them a problem goes to.

#pragma once

#include <string>
#include <vector>

#include "engine.h"
#include "kernel.h"

namespace jax_qconv {

// Those whose plans are tried for a problem; with `cudnn_only`, no own kernels where cuDNN has
// some.
std::vector<const Engine*> EnginesFor(const Problem& problem, bool cudnn_only = false);

// Their versions.
ErrorOr<std::string> EngineVersions(const Problem& problem);

// The engine of a plan. A name that was parsed has one.
ErrorOr<const Engine*> EngineOf(const PlanName& name);

// Of the engines with own kernels, without a GPU: the names of all plans (for GPUs of one compute
// capability, or 0 for any), those that are suggested, whether a plan is theirs, and its kernel.
std::vector<PlanName> OwnPlans(const Problem& problem, int compute_capability);
std::vector<PlanName> OwnSuggestions(const Problem& problem);
bool IsOwn(const PlanName& name);
ErrorOr<KernelSpec> OwnKernel(const Problem& problem, const PlanName& name);

}  // namespace jax_qconv
