#include "plan.h"

#include "disk_cache.h"
#include "kernel.h"

namespace jax_qconv {
namespace {

// What decides the compiled kernel of a plan. cuDNN itself refuses what another version wrote.
ErrorOr<std::string> BuildKey(const Problem& problem, const PlanName& name, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const DeviceInfo info, GetDeviceInfo(device));
  JQ_ASSIGN_OR_UNEXPECTED(const int64_t cudnn, OpenCudnn());
  std::string frontend;
  for (const int part : CudnnFrontendVersion()) frontend += StrCat(".", part);
  return StrCat(problem.text, " | ", name.ToString(), " | ", info.name, " sm_",
                info.compute_capability, " | cudnn ", CudnnVersionText(cudnn), " frontend ",
                frontend.substr(1), " graph ", kCudnnGraphVersion, " nvrtc ", NvrtcVersion());
}

}  // namespace

ErrorOr<PlanPtr> Plan::Make(const Problem& problem, const PlanName& name, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const std::string key, BuildKey(problem, name, device));
  JQ_ASSIGN_OR_UNEXPECTED(const auto handle, HandlePool::Of(device).BorrowForBuilding());
  if (const auto kept = ReadCache("built", key)) {
    if (auto graph = CudnnGraph::Load(problem, *kept, handle.get()); graph.has_value()) {
      return PlanPtr(new Plan(name, device, std::move(*graph)));
    }
  }
  JQ_ASSIGN_OR_UNEXPECTED(auto graph, CudnnGraph::Create(problem, name.engine, handle.get()));
  JQ_RETURN_UNEXPECTED_IF_ERROR(graph->Build(name));
  // One that can't be kept is built again by the next process.
  if (const auto bytes = graph->Serialize(); bytes.has_value()) WriteCache("built", key, *bytes);
  return PlanPtr(new Plan(name, device, std::move(graph)));
}

void Plan::Forget(const Problem& problem, const PlanName& name, int device) {
  const auto key = BuildKey(problem, name, device);
  if (key.has_value()) RemoveFromCache("built", *key);
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
