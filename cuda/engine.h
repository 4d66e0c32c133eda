// What all engines have in common: families of kernels, each with plans for some problems.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "plan_name.h"
#include "problem.h"
#include "status.h"

namespace jax_qconv {

// A problem's kernel, built for a device. Lives and dies in the context that it was built in.
class Executable {
 public:
  virtual ~Executable() = default;

  // Launches on `stream`; several threads may at once. No allocation, no synchronisation.
  virtual Error Launch(const Operands& operands, CUstream stream) const = 0;

  // Names its machine code, where that isn't decided by what Engine::Version tells.
  virtual std::string code() const { return ""; }
};

// All functions that take a device want its context current.
class Engine {
 public:
  virtual ~Engine() = default;

  // The plans that are worth a try at a call's first run, best guess first.
  virtual ErrorOr<std::vector<PlanName>> Suggestions(const Problem& problem, int device) const = 0;

  // The suggestions, then all other plans.
  virtual ErrorOr<std::vector<PlanName>> Configurations(const Problem& problem,
                                                        int device) const = 0;

  // Builds a plan, or loads it where an earlier process left it on disk. Doesn't verify it.
  virtual ErrorOr<std::unique_ptr<Executable>> Build(const Problem& problem, const PlanName& name,
                                                     int device) const = 0;

  // Removes what Build left on the disk.
  virtual void Forget(const Problem& problem, const PlanName& name, int device) const = 0;

  // What decides the kernels of its plans, beside the problem, the name, the GPU and the compiler:
  // who keeps something about a plan keeps it by this, and by the code of its executable.
  virtual ErrorOr<std::string> Version() const = 0;
};

}  // namespace jax_qconv
