// The candidates for one problem on one device: found, built, verified and timed, in the order and
// as often as the caller decides.

#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checker.h"
#include "cuda_driver.h"
#include "plan.h"
#include "plan_name.h"
#include "problem.h"
#include "status.h"

namespace jax_qconv {

class Tuner {
 public:
  ~Tuner();

  // Takes no memory of the GPU before Verify or Time.
  static ErrorOr<std::unique_ptr<Tuner>> Create(const Problem& problem, int device);

  // What the problem's engines suggest, best guess first.
  ErrorOr<std::vector<PlanName>> Suggestions(bool cudnn_only = false) const;

  // The suggestions, then all other configurations.
  ErrorOr<std::vector<PlanName>> Configurations() const;

  // Builds plans on all cores, or loads them. For each the error, or success.
  std::vector<Error> Build(const std::vector<PlanName>& names);

  // Takes over a plan that was built elsewhere.
  void Add(PlanPtr plan);

  // Drops a plan, also from the disk, where built ones are kept for the next process.
  void Forget(const PlanName& name);

  // Verifies built plans on all elements, or finds the verdicts of an earlier time. All of them go
  // through a data set before the next one is made: verify many at once. A plan that faults leaves
  // the CUDA context of the process unusable.
  ErrorOr<std::vector<Verdict>> Verify(const std::vector<PlanName>& names);

  // Microseconds of a launch of a built plan: the mean of `launches` in a row.
  ErrorOr<double> Time(const PlanName& name, int launches);

  // A built plan, or null.
  PlanPtr Find(const PlanName& name) const;

 private:
  Tuner(const Problem& problem, int device, DeviceInfo info)
      : problem_(problem), device_(device), info_(std::move(info)) {}
  ErrorOr<Checker*> GetChecker();
  ErrorOr<PlanPtr> Built(const PlanName& name) const;
  ErrorOr<Launch> LaunchOf(const PlanName& name) const;
  ErrorOr<std::string> VerdictKey(const PlanName& name) const;

  Problem problem_;
  int device_;
  DeviceInfo info_;
  std::map<std::string, PlanPtr> plans_;  // by name
  std::optional<Checker> checker_;
};

}  // namespace jax_qconv
