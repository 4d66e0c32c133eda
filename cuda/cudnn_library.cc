#include "cudnn_library.h"

#include <cudnn.h>

#include <algorithm>
#include <map>

#include "dynamic_library.h"

// The handle through which cudnn-frontend finds every function of cuDNN.
namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}  // namespace cudnn_frontend

namespace jax_qconv {
namespace {

constexpr int64_t kOldestCudnn = 90800;  // what JAX's oldest supported plugin asks for

struct Functions {
  decltype(&::cudnnGetVersion) get_version = nullptr;
  decltype(&::cudnnGetErrorString) get_error_string = nullptr;
  decltype(&::cudnnCreate) create = nullptr;
  decltype(&::cudnnSetStream) set_stream = nullptr;
  int64_t version = 0;
  std::string runtime;  // name of the CUDA runtime
};

ErrorOr<Functions> Load() {
  const char* remedy =
      "; install it with `pip install 'jax_qconv[cuda13]'` (cuda12 for drivers older than 580)";
  auto library = DynamicLibrary::Open({"libcudnn.so.9"});
  if (!library.has_value()) {
    return Unexpected(Error(ErrorCode::kNotFound, StrCat("cuDNN 9 can't be loaded (",
                                                         library.error().message(), ")", remedy)));
  }
  Functions functions;
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("cudnnGetVersion", &functions.get_version));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("cudnnGetErrorString", &functions.get_error_string));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("cudnnCreate", &functions.create));
  JQ_RETURN_UNEXPECTED_IF_ERROR(library->Bind("cudnnSetStream", &functions.set_stream));
  functions.version = static_cast<int64_t>(functions.get_version());
  if (functions.version < kOldestCudnn) {
    return Unexpected(
        Error(ErrorCode::kFailedPrecondition,
              StrCat("cuDNN ", CudnnVersionText(functions.version), " is older than the ",
                     CudnnVersionText(kOldestCudnn), " that is needed", remedy)));
  }
  auto runtime = DynamicLibrary::Open({"libcudart.so.13", "libcudart.so.12"});
  if (!runtime.has_value()) {
    return Unexpected(Error(ErrorCode::kNotFound, StrCat("the CUDA runtime can't be loaded (",
                                                         runtime.error().message(), ")", remedy)));
  }
  functions.runtime = runtime->name();
  cudnn_frontend::cudnn_dlhandle = library->handle();
  return functions;
}

const ErrorOr<Functions>& Loaded() {
  static const auto* functions = new ErrorOr<Functions>(Load());
  return *functions;
}

Error Check(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return Error::Success();
  return Error::Internal(StrCat(what, " failed: ", Loaded()->get_error_string(status)));
}

}  // namespace

ErrorOr<int64_t> OpenCudnn() {
  const auto& functions = Loaded();
  if (!functions.has_value()) return Unexpected(functions.error());
  return functions->version;
}

std::string CudaRuntimeName() { return Loaded().has_value() ? Loaded()->runtime : ""; }

std::string CudnnVersionText(int64_t version) {
  return StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

HandlePool& HandlePool::Of(int device) {
  static std::mutex mutex;
  static auto* pools = new std::map<int, HandlePool>;
  std::lock_guard<std::mutex> lock(mutex);
  return (*pools)[device];
}

Error HandlePool::TopUp() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) return Error::Success();
  }
  JQ_RETURN_IF_ERROR(StatusOf(Loaded()));
  cudnnHandle_t handle = nullptr;
  JQ_RETURN_IF_ERROR(Check(Loaded()->create(&handle), "cudnnCreate"));
  std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back({handle, nullptr});
  returned_.notify_one();
  return Error::Success();
}

ErrorOr<HandlePool::Borrowed> HandlePool::Borrow(CUstream stream) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (free_.empty() && used_ == 0) {
    return Unexpected(Error::Internal("no cuDNN handle was made before launching"));
  }
  returned_.wait(lock, [this] { return !free_.empty(); });
  // Prefer a handle that is already on this stream: setting it costs more than the search.
  auto it = std::find_if(free_.begin(), free_.end(),
                         [stream](const Entry& entry) { return entry.stream == stream; });
  if (it == free_.end()) it = free_.end() - 1;
  Borrowed borrowed(this, *it);
  free_.erase(it);
  ++used_;
  lock.unlock();
  if (borrowed.entry_.stream != stream) {
    JQ_RETURN_UNEXPECTED_IF_ERROR(
        Check(Loaded()->set_stream(borrowed.get(), reinterpret_cast<cudaStream_t>(stream)),
              "cudnnSetStream"));
    borrowed.entry_.stream = stream;
  }
  return borrowed;
}

ErrorOr<HandlePool::Borrowed> HandlePool::BorrowForBuilding() {
  JQ_RETURN_UNEXPECTED_IF_ERROR(TopUp());
  JQ_ASSIGN_OR_UNEXPECTED(Borrowed handle, Borrow(nullptr));
  JQ_RETURN_UNEXPECTED_IF_ERROR(TopUp());
  return handle;
}

void HandlePool::Return(Entry entry) {
  std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(entry);
  --used_;
  returned_.notify_one();
}

HandlePool::Borrowed::~Borrowed() {
  if (pool_ != nullptr) pool_->Return(entry_);
}

}  // namespace jax_qconv
