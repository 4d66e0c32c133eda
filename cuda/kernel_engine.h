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
};

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Output channels of a warp on the matrix units: a block's are dealt out evenly, in products of 8.
int64_t WarpChannels(int64_t channels);

// Output channels of a block there: the most up to a number that divide them, of which no warp has
// few; where there are none, those of which a warp has the most.
int64_t BlockChannels(int64_t k, int64_t most);

// `source` lives as long as the process.
std::unique_ptr<Engine> MakeKernelEngine(const KernelSource& source);

}  // namespace jax_qconv
