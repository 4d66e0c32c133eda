// A problem as a cuDNN graph: the only place that knows cuDNN's nodes and their order.

#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "cudnn_library.h"
#include "plan_name.h"
#include "problem.h"
#include "status.h"

namespace jax_qconv {

// Raised when the nodes change: plans verified before are verified again.
inline constexpr int kCudnnGraphVersion = 2;

class CudnnGraph {
 public:
  // The graph on the device of `handle`, whose context must be current. `engine` is that of the
  // plan names: "cudnn", or "cudnn_bare" for the convolution alone (int32 outputs only).
  static ErrorOr<std::unique_ptr<CudnnGraph>> Create(const Problem& problem,
                                                     const std::string& engine,
                                                     cudnnHandle_t handle);

  // The graph on a device described in JSON (cuDNN's device properties): needs no GPU, can
  // suggest and build plans, but not execute them.
  static ErrorOr<std::unique_ptr<CudnnGraph>> CreateWithoutDevice(
      const Problem& problem, const std::string& engine, const std::string& device_properties);

  ~CudnnGraph();

  // The plans that cuDNN's heuristics offer, best guess first.
  ErrorOr<std::vector<PlanName>> Suggest();

  // Every kernel configuration of an engine, by the range that the engine itself tells; its other
  // knobs stay as cuDNN sets them. Just the engine where it has no such knob.
  ErrorOr<std::vector<PlanName>> Configurations(int64_t index);

  // Builds the plan (compiles its kernel). Refuses one that needs workspace. Once per graph.
  Error Build(const PlanName& plan);

  // The built plan with its compiled kernel, for Load in a process with the same GPU model and
  // cuDNN.
  ErrorOr<std::string> Serialize() const;

  // In place of Create and Build.
  static ErrorOr<std::unique_ptr<CudnnGraph>> Load(const Problem& problem,
                                                   const std::string& serialized,
                                                   cudnnHandle_t handle);

  // Launches the built plan on the handle's stream. Several threads may, with a handle each.
  Error Execute(cudnnHandle_t handle, const Operands& operands) const;

 private:
  struct Impl;
  explicit CudnnGraph(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

// (major, minor, patch) of cuDNN's and cudnn-frontend's headers in this build.
std::array<int, 3> CudnnHeaderVersion();
std::array<int, 3> CudnnFrontendVersion();

}  // namespace jax_qconv
