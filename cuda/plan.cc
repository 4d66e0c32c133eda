#include "plan.h"

namespace jax_qconv {

ErrorOr<PlanPtr> Plan::Build(const Problem& problem, const PlanName& name, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const auto handle, HandlePool::Of(device).BorrowForBuilding());
  JQ_ASSIGN_OR_UNEXPECTED(auto graph, CudnnGraph::Create(problem, name.engine, handle.get()));
  JQ_RETURN_UNEXPECTED_IF_ERROR(graph->Build(name));
  return PlanPtr(new Plan(name, device, std::move(graph)));
}

Plan::~Plan() {
  // Its kernels are unloaded from the context that they were loaded into.
  const auto scope = ScopedDevice::Enter(device_);
  graph_.reset();
}

Error Plan::Launch(const Operands& operands, CUstream stream) const {
  JQ_ASSIGN_OR_RETURN(HandlePool::Borrowed handle, HandlePool::Of(device_).Borrow(stream));
  return graph_->Execute(handle.get(), operands);
}

}  // namespace jax_qconv
