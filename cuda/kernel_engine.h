// Engines of own kernels: what each has to say, and how its plans are built.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "kernel.h"

namespace jax_qconv {

// An engine that makes the source of a kernel for a problem. Needs no GPU.
struct KernelSource {
  std::string name;    // in plan names
  std::string source;  // that all its kernels are made of
  // All plans, best guess first; of these so many are suggested.
  std::vector<PlanName> (*plans)(const Problem& problem);
  size_t suggested;
  std::vector<PlanName> Suggestions(const Problem& problem) const;
  ErrorOr<KernelSpec> (*kernel)(const Problem& problem, const PlanName& name);
  int only = 0;  // the one compute capability that it is for, if not all
  bool Suits(int compute_capability) const { return only == 0 || only == compute_capability; }
};

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// That a plan can't run a problem, and why.
Error CantRun(const Problem& problem, const PlanName& name, const std::string& why);

// `source` lives as long as the process.
std::unique_ptr<Engine> MakeKernelEngine(const KernelSource& source);

}  // namespace jax_qconv
