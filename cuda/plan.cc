#include "plan.h"

#include "engines.h"

namespace jax_qconv {

ErrorOr<PlanPtr> Plan::Make(const Problem& problem, const PlanName& name, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const Engine* engine, EngineOf(name));
  JQ_ASSIGN_OR_UNEXPECTED(auto executable, engine->Build(problem, name, device));
  return PlanPtr(new Plan(name, device, std::move(executable)));
}

void Plan::Forget(const Problem& problem, const PlanName& name, int device) {
  const auto engine = EngineOf(name);
  if (engine.has_value()) (*engine)->Forget(problem, name, device);
}

Plan::~Plan() {
  // Its kernels are unloaded from the context that they were loaded into.
  const auto scope = ScopedDevice::Enter(device_);
  executable_.reset();
}

Error Plan::Launch(const Operands& operands, CUstream stream) const {
  return executable_->Launch(operands, stream);
}

}  // namespace jax_qconv
