#include "cudnn_engine.h"

#include <set>

#include "cudnn_graph.h"
#include "disk_cache.h"
#include "kernel.h"

namespace jax_qconv {
namespace {

class GraphExecutable : public Executable {
 public:
  GraphExecutable(int device, std::unique_ptr<CudnnGraph> graph)
      : device_(device), graph_(std::move(graph)) {}

  Error Launch(const Operands& operands, CUstream stream) const override {
    JQ_ASSIGN_OR_RETURN(HandlePool::Borrowed handle, HandlePool::Of(device_).Borrow(stream));
    return graph_->Execute(handle.get(), operands);
  }

 private:
  int device_;
  std::unique_ptr<CudnnGraph> graph_;
};

ErrorOr<std::unique_ptr<CudnnGraph>> GraphOn(const Problem& problem, int device) {
  JQ_ASSIGN_OR_UNEXPECTED(const auto handle, HandlePool::Of(device).BorrowForBuilding());
  return CudnnGraph::Create(problem, "cudnn", handle.get());
}

class Cudnn : public Engine {
 public:
  ErrorOr<std::vector<PlanName>> Suggestions(const Problem& problem, int device) const override {
    JQ_ASSIGN_OR_UNEXPECTED(const auto graph, GraphOn(problem, device));
    return graph->Suggest();
  }

  ErrorOr<std::vector<PlanName>> Configurations(const Problem& problem, int device) const override {
    JQ_ASSIGN_OR_UNEXPECTED(const auto graph, GraphOn(problem, device));
    JQ_ASSIGN_OR_UNEXPECTED(std::vector<PlanName> names, graph->Suggest());
    std::set<int64_t> families;
    for (const PlanName& name : names) families.insert(*name.index);
    for (const int64_t family : families) {
      JQ_ASSIGN_OR_UNEXPECTED(const auto more, graph->Configurations(family));
      names.insert(names.end(), more.begin(), more.end());
    }
    return names;
  }

  ErrorOr<std::unique_ptr<Executable>> Build(const Problem& problem, const PlanName& name,
                                             int device) const override {
    JQ_ASSIGN_OR_UNEXPECTED(const std::string key, Key(problem, name, device));
    JQ_ASSIGN_OR_UNEXPECTED(const auto handle, HandlePool::Of(device).BorrowForBuilding());
    if (const auto kept = ReadCache("built", key)) {
      if (auto graph = CudnnGraph::Load(problem, *kept, handle.get()); graph.has_value()) {
        return Made(device, std::move(*graph));
      }
    }
    JQ_ASSIGN_OR_UNEXPECTED(auto graph, CudnnGraph::Create(problem, name.engine, handle.get()));
    JQ_RETURN_UNEXPECTED_IF_ERROR(graph->Build(name));
    // One that can't be kept is built again by the next process.
    if (const auto bytes = graph->Serialize(); bytes.has_value()) WriteCache("built", key, *bytes);
    return Made(device, std::move(graph));
  }

  void Forget(const Problem& problem, const PlanName& name, int device) const override {
    const auto key = Key(problem, name, device);
    if (key.has_value()) RemoveFromCache("built", *key);
  }

  // cuDNN has NVRTC compile its kernels.
  ErrorOr<std::string> Version() const override {
    JQ_ASSIGN_OR_UNEXPECTED(const int64_t cudnn, OpenCudnn());
    std::string frontend;
    for (const int part : CudnnFrontendVersion()) frontend += StrCat(".", part);
    return StrCat("cudnn ", CudnnVersionText(cudnn), " frontend ", frontend.substr(1), " graph ",
                  kCudnnGraphVersion, " nvrtc ", NvrtcVersion());
  }

 private:
  static std::unique_ptr<Executable> Made(int device, std::unique_ptr<CudnnGraph> graph) {
    return std::make_unique<GraphExecutable>(device, std::move(graph));
  }

  // What decides the compiled kernel of a plan. cuDNN itself refuses what another version wrote.
  ErrorOr<std::string> Key(const Problem& problem, const PlanName& name, int device) const {
    JQ_ASSIGN_OR_UNEXPECTED(const DeviceInfo info, GetDeviceInfo(device));
    JQ_ASSIGN_OR_UNEXPECTED(const std::string version, Version());
    return StrCat(problem.text, " | ", name.ToString(), " | ", info.name, " sm_",
                  info.compute_capability, " | ", version);
  }
};

}  // namespace

const Engine& CudnnEngine() {
  static const auto* engine = new Cudnn;
  return *engine;
}

}  // namespace jax_qconv
